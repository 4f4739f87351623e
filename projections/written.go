package projections

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/musique/musique/domain/event"
)

// Written is a position that everything which was answered stands at or before: the furthest that one of the read models has passed which writers wait for.
// Who reads the audit trail waits until that has passed it, so that no writer needs to.
func Written(ctx context.Context, pool *pgxpool.Pool) (written event.Position, err error) {
	const query = `SELECT commit_position, prepare_position FROM projections.checkpoint WHERE projection = ANY($1)
		ORDER BY commit_position DESC, prepare_position DESC LIMIT 1`
	err = pool.QueryRow(ctx, query, []string{Tokens, Locations, Audio, Sends}).Scan(&written.Commit, &written.Prepare)
	if errors.Is(err, pgx.ErrNoRows) {
		return event.Position{}, nil
	}
	if err != nil {
		return event.Position{}, fmt.Errorf("read how far the read models are: %w", err)
	}
	return written, nil
}
