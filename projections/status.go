package projections

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/eventstore"
)

// Status is how one projection is doing, whichever process runs it.
type Status struct {
	Name string `json:"name"`
	// Position is the commit position that it has passed.
	Position uint64 `json:"position"`
	// Lag is how far the newest event that it is sent is ahead, in the store's own unit.
	Lag uint64 `json:"lag"`
	// CaughtUp says that it went live since its instance started.
	CaughtUp bool `json:"caughtUp"`
	// Error is what stopped it; empty while it runs.
	Error        string     `json:"error,omitempty"`
	FailingSince *time.Time `json:"failingSince,omitempty"`
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
	const query = `SELECT projection, commit_position, caught_up, coalesce(error, ''), failing_since FROM projections.checkpoint`
	rows, err := pool.Query(ctx, query)
	if err != nil {
		return nil, fmt.Errorf("read the projections' checkpoints: %w", err)
	}
	known := map[string]Status{}
	var s Status
	if _, err = pgx.ForEachRow(rows, []any{&s.Name, &s.Position, &s.CaughtUp, &s.Error, &s.FailingSince}, func() error {
		known[s.Name] = s
		return nil
	}); err != nil {
		return nil, fmt.Errorf("read the projections' checkpoints: %w", err)
	}
	var statuses []Status
	for i, p := range All() {
		s := known[p.Name]
		s.Name = p.Name
		if s.Position < heads[i].Commit {
			s.Lag = heads[i].Commit - s.Position
		}
		statuses = append(statuses, s)
	}
	return statuses, nil
}
