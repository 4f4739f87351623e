package projections

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/musique/musique/domain/fault"
)

// Skip has a projection, or the version of it that is being built, pass the event that it stands at without applying it, the next time that it tries. That is
// recorded, with who did it and why, and Status shows it. A rebuild tries the event again.
//
// Only the event that it stands at can be skipped: the ID says that the caller has looked. Errors: Unknown, and Conflict where it stands at no such event.
func Skip(ctx context.Context, pool *pgxpool.Pool, name string, eventID uuid.UUID, by, reason string) (Skipped, error) {
	if err := known(name); err != nil {
		return Skipped{}, err
	}
	const skip = `
		INSERT INTO projections.skipped (projection, event_id, type, stream, revision, error, skipped_by, reason, skipped_at)
		SELECT projection, failing_event, failing_type, failing_stream, failing_revision, error, $4, $5, now() FROM projections.checkpoint
		WHERE projection IN ($1, $2) AND failing_event = $3
		ON CONFLICT (projection, event_id) DO UPDATE SET error = excluded.error, skipped_by = excluded.skipped_by, reason = excluded.reason, skipped_at = excluded.skipped_at, applied_at = NULL
		RETURNING projection, ` + skippedColumns
	rows, _ := pool.Query(ctx, skip, name, name+nextSuffix, pgtype.UUID{Bytes: eventID, Valid: true}, by, reason) // an error shows in rows
	skipped, err := collectSkipped(rows)
	if err != nil {
		return Skipped{}, fmt.Errorf("skip an event: %w", err)
	}
	for _, all := range skipped {
		return all[0], nil
	}
	return Skipped{}, fault.New(fault.Conflict, "The projection %s does not stand at an event %s; its status tells which one it stands at.", name, eventID)
}

const skippedColumns = `event_id, type, stream, revision, error, skipped_by, reason, skipped_at, applied_at`

// skippedEvents reads what was skipped, by projection.
func skippedEvents(ctx context.Context, pool *pgxpool.Pool) (map[string][]Skipped, error) {
	rows, _ := pool.Query(ctx, `SELECT projection, `+skippedColumns+` FROM projections.skipped ORDER BY skipped_at, event_id`) // an error shows in rows
	skipped, err := collectSkipped(rows)
	if err != nil {
		return nil, fmt.Errorf("read the skipped events: %w", err)
	}
	return skipped, nil
}

func collectSkipped(rows pgx.Rows) (map[string][]Skipped, error) {
	all := map[string][]Skipped{}
	var name string
	var id pgtype.UUID
	var s Skipped
	_, err := pgx.ForEachRow(rows, []any{&name, &id, &s.Type, &s.Stream, &s.Revision, &s.Error, &s.SkippedBy, &s.Reason, &s.SkippedAt, &s.AppliedAt}, func() error {
		s.ID = uuid.UUID(id.Bytes).String()
		all[name] = append(all[name], s)
		return nil
	})
	return all, err
}
