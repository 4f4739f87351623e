package projections

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/eventstore"
)

// The states of a projection, and of a rebuild.
const (
	StateLive       = "live"        // it had everything at some moment since its instance started
	StateCatchingUp = "catching up" // it has not yet
	StateStopped    = "stopped"     // it stands at what it cannot apply
	StateNotRunning = "not running" // no process runs it
	StatePaused     = "paused"      // of a rebuild
)

// Status is how one projection is doing, whichever process runs it.
type Status struct {
	Name  string `json:"name"`
	State string `json:"state"`
	// Version is that of its tables: the number of the last migration.
	Version int64 `json:"version"`
	// Rebuilds are how many rebuilds have taken the place of its tables, RebuiltAt is when the last did.
	Rebuilds  int64      `json:"rebuilds"`
	RebuiltAt *time.Time `json:"rebuiltAt,omitempty"`
	Progress
	// Lag is how far the newest event that it is sent is ahead, in the store's own unit.
	Lag uint64 `json:"lag"`
	// LagSeconds is how long ago the first event happened that it has not passed; 0 where there is none.
	LagSeconds float64 `json:"lagSeconds"`
	// CaughtUp says that it went live since its instance started.
	CaughtUp bool `json:"caughtUp"`
	// Skipped are the events that operators had it pass, in the order of that.
	Skipped []Skipped `json:"skipped,omitempty"`
	// Rebuild is the version that is being built beside it, if one is.
	Rebuild *RebuildStatus `json:"rebuild,omitempty"`
}

// Progress is how far a version of a projection is, and what stopped it.
type Progress struct {
	// Position is the commit position that it has passed.
	Position uint64 `json:"position"`
	// Events are how many events it has applied, since they are counted; of what was rebuilt, from the beginning.
	Events int64 `json:"events"`
	// Rate is how many events a second it applied in the last seconds.
	Rate float64 `json:"rate"`
	// Error is what stopped it; empty while it runs.
	Error        string     `json:"error,omitempty"`
	FailingSince *time.Time `json:"failingSince,omitempty"`
	// FailingEvent is the event that it stands at, where it is one.
	FailingEvent *FailingEvent `json:"failingEvent,omitempty"`
}

// FailingEvent is an event that cannot be applied.
type FailingEvent struct {
	ID       string `json:"id"`
	Type     string `json:"type"`
	Stream   string `json:"stream"`
	Revision int64  `json:"revision"`
}

// Skipped is an event that an operator had a projection pass without applying it.
type Skipped struct {
	FailingEvent
	Error     string    `json:"error"`
	SkippedBy string    `json:"skippedBy"`
	Reason    string    `json:"reason,omitempty"`
	SkippedAt time.Time `json:"skippedAt"`
	// AppliedAt is when a rebuild that could apply it took its place; nil while its rows lack it.
	AppliedAt *time.Time `json:"appliedAt,omitempty"`
}

// RebuildStatus is how a rebuild is doing.
type RebuildStatus struct {
	State string `json:"state"`
	// Percent is how far it is on its way to the newest event, by position.
	Percent float64   `json:"percent"`
	BegunAt time.Time `json:"begunAt"`
	Progress
}

// Statuses tells how the projections are doing, in the order of All. One that never ran is at position 0.
func Statuses(ctx context.Context, pool *pgxpool.Pool, store *eventstore.Store) ([]Status, error) {
	// The heads come before the positions: a lag is never made up by reading in the other order.
	head, err := Head(ctx, store)
	if err != nil {
		return nil, err
	}
	heads := make([]event.Position, len(All()))
	for i, p := range All() {
		if heads[i] = head; p.Beside {
			if heads[i], err = store.HeadFor(ctx, p.events()); err != nil {
				return nil, err
			}
		}
	}
	known, err := versions(ctx, pool)
	if err != nil {
		return nil, err
	}
	skipped, err := skippedEvents(ctx, pool)
	if err != nil {
		return nil, err
	}
	var statuses []Status
	for i, p := range All() {
		v := known[p.Name]
		s := Status{Name: p.Name, Rebuilds: v.generation, RebuiltAt: v.rebuiltAt, Progress: v.Progress, CaughtUp: v.caughtUp, State: v.state(), Skipped: skipped[p.Name]}
		if s.Version, err = tablesVersion(ctx, pool, p.Name); err != nil {
			return nil, fmt.Errorf("read the version of %s: %w", p.Name, err)
		}
		if s.Position < heads[i].Commit {
			s.Lag = heads[i].Commit - s.Position
			if s.LagSeconds, err = behind(ctx, store, v.position); err != nil {
				return nil, err
			}
		}
		if v.begunAt != nil {
			next := known[p.Name+nextSuffix]
			r := &RebuildStatus{State: next.state(), BegunAt: *v.begunAt, Progress: next.Progress}
			if !v.building {
				r.State = StatePaused
			}
			if heads[i].Commit > 0 {
				r.Percent = min(100, 100*float64(r.Position)/float64(heads[i].Commit))
			}
			s.Rebuild = r
		}
		statuses = append(statuses, s)
	}
	return statuses, nil
}

// version is a version of a projection as its checkpoint tells it.
type version struct {
	Progress
	position   event.Position
	generation int64
	rebuiltAt  *time.Time
	caughtUp   bool
	running    bool
	begunAt    *time.Time // of the rebuild beside it
	building   bool
}

func (v version) state() string {
	switch {
	case v.Error != "":
		return StateStopped
	case !v.running:
		return StateNotRunning
	case v.caughtUp:
		return StateLive
	}
	return StateCatchingUp
}

// versions reads all versions by their names. Who runs one holds its advisory lock.
func versions(ctx context.Context, pool *pgxpool.Pool) (map[string]version, error) {
	const query = `
		SELECT c.projection, c.commit_position, c.prepare_position, c.generation, c.rebuilt_at, c.caught_up, c.events,
			CASE WHEN c.window_at IS NULL THEN 0 WHEN now() - c.window_at > interval '5 s' THEN c.window_events / extract(epoch FROM now() - c.window_at)::float8 ELSE c.rate END,
			coalesce(c.error, ''), c.failing_since, c.failing_event, c.failing_type, c.failing_stream, c.failing_revision, r.begun_at, coalesce(r.building, false),
			EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
				AND l.classid = $1::bigint::oid AND l.objid = (hashtext(c.projection)::bigint & 4294967295)::oid AND l.objsubid = 2)
		FROM projections.checkpoint c LEFT JOIN projections.rebuild r USING (projection)`
	rows, _ := pool.Query(ctx, query, int64(leadLockClass)) // an error shows in rows
	known := map[string]version{}
	_, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (_ struct{}, err error) {
		var v version
		var name string
		var id pgtype.UUID
		var kind, stream *string
		var revision *int64
		err = row.Scan(&name, &v.position.Commit, &v.position.Prepare, &v.generation, &v.rebuiltAt, &v.caughtUp, &v.Events, &v.Rate, &v.Error, &v.FailingSince,
			&id, &kind, &stream, &revision, &v.begunAt, &v.building, &v.running)
		v.Position = v.position.Commit
		if id.Valid {
			v.FailingEvent = &FailingEvent{ID: uuid.UUID(id.Bytes).String(), Type: *kind, Stream: *stream, Revision: *revision}
		}
		known[name] = v
		return struct{}{}, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the projections' checkpoints: %w", err)
	}
	return known, nil
}

// behind is how long ago the first event after a position happened.
func behind(ctx context.Context, store *eventstore.Store, position event.Position) (seconds float64, err error) {
	events, _, _, err := store.ReadAll(ctx, position, 1)
	if err != nil || len(events) == 0 {
		return 0, err
	}
	return max(0, time.Since(events[0].Metadata.Time).Seconds()), nil
}

// Stopped lists the projections that stand at what they cannot apply.
func Stopped(ctx context.Context, pool *pgxpool.Pool) ([]string, error) {
	rows, _ := pool.Query(ctx, `SELECT projection FROM projections.checkpoint WHERE error IS NOT NULL AND right(projection, $1) <> $2 ORDER BY projection`, len(nextSuffix), nextSuffix)
	stopped, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read the projections' checkpoints: %w", err)
	}
	return stopped, nil
}
