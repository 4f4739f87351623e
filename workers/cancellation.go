package workers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/telemetry"
	"github.com/musique/musique/projections"
)

// Reads is what the workers ask the read models.
type Reads interface {
	commands.Reads
	// OpenDeliveries lists the deliveries at a location that have not ended, of sends that were recorded before a position.
	OpenDeliveries(ctx context.Context, companyID string, env event.Environment, userID int64, before event.Position) ([]delivery.Ref, error)
}

// looks is when a removed location is looked at again. A send finds its locations before it is recorded, so it may be recorded after one of them was
// removed; the last look is later than any send takes for that.
var looks = []time.Duration{time.Second, 10 * time.Second, 2 * time.Minute}

const (
	lookPoll = 500 * time.Millisecond
	// lookBatch bounds the locations that are looked at between two questions.
	lookBatch = 100
)

// Cancellation ends the deliveries of a send that was called off, and those of a location that was removed.
type Cancellation struct{ Deps }

// NewCancellation makes the worker.
func NewCancellation(d Deps) *Cancellation { return &Cancellation{d} }

// Run cancels deliveries until ctx ends.
func (w *Cancellation) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return follower{
			Deps: w.Deps, name: "cancellation", types: followedTypes["cancellation"],
			handle: w.handle,
		}.run(ctx)
	})
	group.Go(func() error { return w.every(ctx, "removals", w.lookAgain) })
	return group.Wait()
}

func (w *Cancellation) handle(ctx context.Context, batch *pgx.Batch, events []event.Recorded) error {
	for _, e := range events {
		if e.Type == (location.Removed{}).EventType() {
			if err := w.removed(ctx, batch, e); err != nil {
				return err
			}
			continue
		}
		history, err := w.Store.Load(ctx, e.Stream)
		if err != nil {
			return err
		}
		s, err := send.Load(history)
		if err != nil {
			return err
		}
		refs := make([]delivery.Ref, len(s.Sent))
		for i, sent := range s.Sent {
			refs[i] = delivery.Ref{DeliveryID: sent.DeliveryID, SendID: s.ID, AudioID: sent.AudioID, ExternalID: sent.ExternalID, UserID: sent.UserID}
		}
		if err := w.cancel(ctx, e.Metadata, refs, delivery.CalledOff); err != nil {
			return err
		}
	}
	return nil
}

func (w *Cancellation) cancel(ctx context.Context, meta event.Metadata, refs []delivery.Ref, reason string) error {
	ctx, span := telemetry.Continue(telemetry.WithRequest(ctx, meta.RequestID), telemetry.Followed(telemetry.Next(ctx, meta.TraceParent), len(refs)), "cancel deliveries")
	defer span.End()
	caller := commands.Caller{CompanyID: meta.CompanyID, Environment: meta.Environment, Actor: "worker:cancellation", RequestID: meta.RequestID}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(enders)
	for _, ref := range refs {
		group.Go(func() error {
			return w.Commands.CancelDelivery.Handle(ctx, commands.CancelDelivery{Caller: caller, Ref: ref, Reason: reason})
		})
	}
	return group.Wait()
}

// removal is a location that was removed.
type removal struct {
	Stream      string
	Revision    int64
	CompanyID   string
	Environment event.Environment
	UserID      int64
	RemovedAt   time.Time
	Looks       int
}

func (w *Cancellation) removed(ctx context.Context, batch *pgx.Batch, e event.Recorded) error {
	var removed location.Removed
	if err := json.Unmarshal(e.Data, &removed); err != nil {
		return fmt.Errorf("read %s %d@%s: %w", e.Type, e.Revision, e.Stream, err)
	}
	r := removal{
		Stream: e.Stream, Revision: int64(e.Revision), CompanyID: e.Metadata.CompanyID, Environment: e.Metadata.Environment, UserID: removed.UserID, RemovedAt: w.Now(),
	}
	// Every send that was recorded before the location went must be in the read model when it is asked.
	if err := w.Reads.WaitFor(ctx, e.Position, commands.Sends); err != nil {
		return err
	}
	if err := w.empty(ctx, r, e.Metadata); err != nil {
		return err
	}
	batch.Queue(`INSERT INTO workers.removed_location VALUES ($1, $2, $3, $4, $5, $6, 0, $7) ON CONFLICT DO NOTHING`,
		r.Stream, r.Revision, r.CompanyID, r.Environment, r.UserID, r.RemovedAt, r.RemovedAt.Add(looks[0]))
	return nil
}

// empty cancels what is still to be played at a location that was removed, unless it was sent after the location was made again.
func (w *Cancellation) empty(ctx context.Context, r removal, cause event.Metadata) error {
	before := event.Position{Commit: math.MaxInt64}
	since, err := w.Store.Page(ctx, r.Stream, uint64(r.Revision)+1, math.MaxInt)
	if err != nil {
		return err
	}
	for _, e := range since {
		if e.Type == (location.Registered{}).EventType() {
			before = e.Position
			break
		}
	}
	refs, err := w.Reads.OpenDeliveries(ctx, r.CompanyID, r.Environment, r.UserID, before)
	if err != nil {
		return err
	}
	return w.cancel(ctx, event.Metadata{CompanyID: r.CompanyID, Environment: r.Environment, RequestID: cause.RequestID, TraceParent: cause.TraceParent}, refs, "the location was removed")
}

// lookAgain looks at locations that were removed not long ago.
func (w *Cancellation) lookAgain(ctx context.Context) (time.Duration, error) {
	const query = `SELECT stream, revision, company_id, environment, user_id, removed_at, looks
		FROM workers.removed_location WHERE look_at <= $1 ORDER BY look_at LIMIT $2`
	rows, err := w.Pool.Query(ctx, query, w.Now(), lookBatch)
	if err != nil {
		return 0, err
	}
	due, err := pgx.CollectRows(rows, pgx.RowToStructByPos[removal])
	if err != nil || len(due) == 0 {
		return lookPoll, err
	}
	newest, err := projections.Head(ctx, w.Store)
	if err != nil {
		return 0, err
	}
	if err := w.Reads.WaitFor(ctx, newest, commands.Sends); err != nil {
		return 0, err
	}
	var failed error
	for _, r := range due {
		if err := w.lookAt(ctx, r); err != nil {
			failed = errors.Join(failed, fmt.Errorf("look at %s: %w", r.Stream, err))
		}
	}
	if len(due) == lookBatch && failed == nil {
		return 0, nil
	}
	return lookPoll, failed
}

func (w *Cancellation) lookAt(ctx context.Context, r removal) error {
	if err := w.empty(ctx, r, event.Metadata{}); err != nil {
		return err
	}
	if r.Looks++; r.Looks < len(looks) {
		_, err := w.Pool.Exec(ctx, `UPDATE workers.removed_location SET looks = $3, look_at = $4 WHERE stream = $1 AND revision = $2`,
			r.Stream, r.Revision, r.Looks, r.RemovedAt.Add(looks[r.Looks]))
		return err
	}
	_, err := w.Pool.Exec(ctx, `DELETE FROM workers.removed_location WHERE stream = $1 AND revision = $2`, r.Stream, r.Revision)
	return err
}
