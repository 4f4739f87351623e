package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/eventstore"
)

const (
	// replayPage bounds the events that a replay applies at once, and replayPageBytes their data; the event that passes it is still applied with them.
	replayPage, replayPageBytes = 2000, 8 << 20
	// replayPatience bounds the wait for another process that is at the same replay.
	replayPatience = 5 * time.Second
)

// ReplayConfig says what a replay is made of. All fields are required but those that say otherwise.
type ReplayConfig struct {
	Store *eventstore.Store
	// Pool reaches a database of the replay's own (CreateReplay). The tables are made in it.
	Pool *pgxpool.Pool
	// AsOf is the moment. What stands before the first event that the store recorded after it has happened by then.
	AsOf time.Time
	// Skip are events that are passed without being applied where they cannot be.
	Skip []uuid.UUID
	// Progress is told now and then how far it is. May be nil.
	Progress func(Replayed)
	Log      *slog.Logger
}

// Replayed is how far a replay is.
type Replayed struct {
	// Events is how many events were looked at, since the beginning or since it went on.
	Events int64 `json:"events"`
	// Through is the position of the last one.
	Through uint64 `json:"through"`
	// At is when the store recorded it; zero where there is none.
	At time.Time `json:"at"`
}

// Replay fills a database with all read models as they were at a moment, from the event store alone and by the same code as the projections. One that broke off
// goes on from its checkpoints. An event that cannot be applied ends it with an error that names the event.
func Replay(ctx context.Context, config ReplayConfig) (Replayed, error) {
	if err := Migrate(ctx, config.Pool); err != nil {
		return Replayed{}, err
	}
	if err := skipInReplay(ctx, config.Pool, config.Skip); err != nil {
		return Replayed{}, err
	}
	r := &replay{config: config}
	defer r.close()
	if err := r.begin(ctx); err != nil {
		return Replayed{}, err
	}
	from := r.from()
	r.done.Through, r.next.Through = from.Commit, from.Commit
	_, err := config.Store.Scan(ctx, from, func(e eventstore.Stored) (more bool, err error) {
		if e.Created.After(config.AsOf) {
			return false, nil
		}
		return true, r.take(ctx, e)
	})
	if err == nil {
		err = r.flush(ctx)
	}
	for _, l := range r.leads {
		if err == nil {
			err = l.tidy(ctx)
		}
	}
	return r.done, err
}

// replay is one that is under way.
type replay struct {
	config ReplayConfig
	leads  []*lead
	page   eventstore.Page
	bytes  int
	done   Replayed
	next   Replayed // with the events of the page
}

func (r *replay) close() {
	for _, l := range r.leads {
		l.close()
	}
}

// begin takes the lead of each projection in the database, which nobody else has unless another process is at the same replay.
func (r *replay) begin(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, replayPatience)
	defer cancel()
	for _, p := range All() {
		l, err := takeLead(ctx, r.config.Pool, p)
		if errors.Is(err, context.DeadlineExceeded) {
			return errors.New("another process is at this replay")
		}
		if err != nil {
			return err
		}
		l.passed = func(e event.Recorded, err error) {
			r.config.Log.Warn("an event was passed without being applied", "projection", p.Name, "event", e.ID, "type", e.Type, "stream", e.Stream, "revision", e.Revision, "error", err)
		}
		r.leads = append(r.leads, l)
	}
	return nil
}

// from is where the projection that is least far is. The others leave out what they have.
func (r *replay) from() event.Position {
	first := r.leads[0].at()
	for _, l := range r.leads[1:] {
		if at := l.at(); at.Before(first) {
			first = at
		}
	}
	return first
}

func (r *replay) take(ctx context.Context, e eventstore.Stored) error {
	r.page.Events, r.page.Through = append(r.page.Events, e.Recorded), e.Position
	r.bytes += len(e.Data)
	r.next = Replayed{Events: r.next.Events + 1, Through: e.Position.Commit, At: e.Created}
	if len(r.page.Events) < replayPage && r.bytes < replayPageBytes {
		return nil
	}
	return r.flush(ctx)
}

// flush applies the page to all read models.
func (r *replay) flush(ctx context.Context) error {
	if len(r.page.Events) == 0 {
		return nil
	}
	applying, applyCtx := errgroup.WithContext(ctx)
	for _, l := range r.leads {
		applying.Go(func() error {
			mine := eventstore.Page{Through: r.page.Through}
			for _, e := range r.page.Events {
				if slices.Contains(l.projection.Types, e.Type) {
					mine.Events = append(mine.Events, e)
				}
			}
			if _, err := l.apply(applyCtx, mine); err != nil {
				return fmt.Errorf("%s: %w", l.projection.Name, err)
			}
			return nil
		})
	}
	if err := applying.Wait(); err != nil {
		return err
	}
	r.page, r.bytes, r.done = eventstore.Page{Events: r.page.Events[:0]}, 0, r.next
	if r.config.Progress != nil {
		r.config.Progress(r.done)
	}
	return nil
}

// skipInReplay notes that events are to be passed where they cannot be applied.
func skipInReplay(ctx context.Context, pool *pgxpool.Pool, events []uuid.UUID) error {
	for _, id := range events {
		const note = `
			INSERT INTO projections.skipped (projection, event_id, type, stream, revision, error, skipped_by, reason, skipped_at)
			SELECT unnest($1::text[]), $2, '', '', 0, '', 'replay', '', now() ON CONFLICT DO NOTHING`
		var names []string
		for _, p := range All() {
			names = append(names, p.Name)
		}
		if _, err := pool.Exec(ctx, note, names, pgtype.UUID{Bytes: id, Valid: true}); err != nil {
			return fmt.Errorf("skip an event: %w", err)
		}
	}
	return nil
}
