package workers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/infra/telemetry"
	"github.com/musique/musique/projections/usagelogs"
)

const (
	cleanupPause = 30 * time.Second
	// openTooLong is how old an open broadcast is when it is looked at; the command decides by the stream.
	openTooLong = time.Minute
	// keepClosed is how long it is remembered that a delivery ended, for messages that come late.
	keepClosed = 7 * 24 * time.Hour
	// cleanupBatch bounds the rows of one statement.
	cleanupBatch = 5_000
	// sweepPause is how often blob storage is looked through, orphanAge how old bytes are then: no request that uploads them is under way any more, and
	// none with the same Idempotency-Key comes.
	sweepPause = 6 * time.Hour
	orphanAge  = 48 * time.Hour
)

// Cleanup removes what nobody needs any more: the bytes of deleted audio and of uploads that were never recorded, large broadcasts whose writer died, old
// rows of the inbox, usage logs that are over.
type Cleanup struct{ Deps }

// NewCleanup makes the worker.
func NewCleanup(d Deps) *Cleanup { return &Cleanup{d} }

// Follow removes the bytes of deleted audio until ctx ends. The deletion did so itself, unless its process died first.
func (w *Cleanup) Follow(ctx context.Context) error {
	return follower{Deps: w.Deps, name: "deleted-audio", types: followedTypes["deleted-audio"], handle: w.deleted}.run(ctx)
}

// Run cleans up until ctx ends.
func (w *Cleanup) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return w.every(ctx, "cleanup", w.clean) })
	group.Go(func() error { return w.every(ctx, "sweep", w.sweep) })
	return group.Wait()
}

func (w *Cleanup) deleted(ctx context.Context, _ *pgx.Batch, events []event.Recorded) error {
	for _, e := range events {
		var deleted audio.Deleted
		if err := json.Unmarshal(e.Data, &deleted); err != nil {
			return fmt.Errorf("read %s %d@%s: %w", e.Type, e.Revision, e.Stream, err)
		}
		if err := w.Blobs.Delete(ctx, deleted.BlobKey); err != nil {
			return err
		}
		if err := w.cancelSends(ctx, e, deleted.AudioID); err != nil {
			return err
		}
	}
	return nil
}

// cancelSends ends sends of audio that is gone: whoever recorded them amid the deletion takes them back, unless its process died first.
func (w *Cleanup) cancelSends(ctx context.Context, e event.Recorded, audioID string) error {
	if err := w.Reads.WaitFor(ctx, e.Position, commands.Sends); err != nil {
		return err
	}
	pending, err := w.Reads.PendingSends(ctx, e.Metadata.CompanyID, e.Metadata.Environment, audioID, e.Position)
	if err != nil {
		return err
	}
	ctx, span := telemetry.Continue(telemetry.WithRequest(ctx, e.Metadata.RequestID), telemetry.Next(ctx, e.Metadata.TraceParent), "cancel sends of deleted audio")
	defer span.End()
	caller := commands.Caller{CompanyID: e.Metadata.CompanyID, Environment: e.Metadata.Environment, Actor: "worker:cleanup", RequestID: e.Metadata.RequestID}
	for _, sendID := range pending {
		err := w.Commands.CancelSend.Handle(ctx, commands.CancelSend{Caller: caller, SendID: sendID})
		if code := fault.CodeOf(err); err != nil && code != fault.Conflict && code != fault.NotFound { // it has ended, or is a large broadcast that was never closed
			return err
		}
	}
	return nil
}

// sweep removes bytes whose upload was never recorded: its process died in between. It looks at each object once.
func (w *Cleanup) sweep(ctx context.Context) (time.Duration, error) {
	var after time.Time
	if err := w.Pool.QueryRow(ctx, `SELECT through FROM workers.swept`).Scan(&after); err != nil {
		return 0, err
	}
	through := w.Now().Add(-orphanAge)
	err := w.Blobs.Each(ctx, commands.BlobPrefix, func(key string, changed time.Time) error {
		if !changed.After(after) || changed.After(through) {
			return nil
		}
		return w.sweepOne(ctx, key)
	})
	if err != nil {
		return 0, err
	}
	_, err = w.Pool.Exec(ctx, `UPDATE workers.swept SET through = $1`, through)
	return sweepPause, err
}

func (w *Cleanup) sweepOne(ctx context.Context, key string) error {
	companyID, audioID, ok := commands.ParseBlobKey(key)
	if !ok {
		return nil
	}
	known, err := w.Store.Page(ctx, company.Stream(companyID), 0, 1)
	if err != nil || len(known) == 0 {
		return err // another installation's, with which this one shares the storage
	}
	history, err := w.Store.Load(ctx, audio.Stream(audioID))
	if err != nil {
		return err
	}
	a, err := audio.Load(history)
	if err != nil {
		return err
	}
	if a.BlobKey == key && !a.Deleted {
		return nil
	}
	w.Log.Info("bytes whose upload was never recorded are removed", "key", key)
	return w.Blobs.Delete(ctx, key)
}

func (w *Cleanup) clean(ctx context.Context) (time.Duration, error) {
	now := w.Now()
	rows, err := w.Pool.Query(ctx, `SELECT send_id FROM workers.open_broadcast WHERE since < $1 LIMIT $2`, now.Add(-openTooLong), cleanupBatch)
	if err != nil {
		return 0, err
	}
	open, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return 0, err
	}
	var failed error
	for _, sendID := range open {
		_, err := w.Commands.AbandonBroadcast.Handle(ctx, commands.AbandonBroadcast{SendID: sendID})
		failed = errors.Join(failed, err)
	}
	closed, err := w.Pool.Exec(ctx, `DELETE FROM workers.inbox_closed WHERE delivery_id IN
		(SELECT delivery_id FROM workers.inbox_closed WHERE closed_at < $1 LIMIT $2)`, now.Add(-keepClosed), cleanupBatch)
	failed = errors.Join(failed, err)
	cancels, err := w.Pool.Exec(ctx, `DELETE FROM workers.inbox WHERE seq IN
		(SELECT seq FROM workers.inbox WHERE kind = 'cancel' AND expires_at < $1 LIMIT $2)`, now, cleanupBatch)
	failed = errors.Join(failed, err)
	err = usagelogs.DropExpired(ctx, w.Pool, now)
	if errors.Is(err, usagelogs.ErrNotYet) {
		w.Log.Info("usage logs that are over stay until the next cleanup", "reason", err)
		err = nil
	}
	failed = errors.Join(failed, err)
	if closed.RowsAffected() == cleanupBatch || cancels.RowsAffected() == cleanupBatch {
		return 0, failed
	}
	return cleanupPause, failed
}
