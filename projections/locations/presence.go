package locations

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/musique/musique/domain/event"
)

const (
	// BeatEvery is how often the process that holds a player's stream tells that it is still there.
	BeatEvery = 10 * time.Second
	// BeatsCountFor is how long a heartbeat counts: two may be lost.
	BeatsCountFor = 3 * BeatEvery
	// forgottenAfter is when the stream of a process that died without a word is forgotten.
	forgottenAfter = time.Hour
)

// Stream is one player's open connection.
type Stream struct {
	// ID is unique to the connection.
	ID          string
	CompanyID   string
	Environment event.Environment
	UserID      int64
}

// Beat tells that these streams are open now. A process tells all of its streams in one call, when they open and every BeatEvery.
func Beat(ctx context.Context, pool *pgxpool.Pool, streams []Stream, now time.Time) error {
	const beat = `
		WITH beat AS (
			SELECT DISTINCT ON (stream_id) * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) AS b (stream_id, company_id, environment, user_id)
			ORDER BY stream_id
		), unsynced AS MATERIALIZED (
			SELECT set_config('synchronous_commit', 'off', true) -- the next heartbeat comes soon enough
		), streams AS (
			INSERT INTO presence.stream AS s (stream_id, company_id, environment, user_id, beat_at)
			SELECT beat.*, $5 FROM beat, unsynced
			ON CONFLICT (stream_id) DO UPDATE SET beat_at = excluded.beat_at
		), forgotten AS (
			DELETE FROM presence.stream WHERE stream_id IN (
				SELECT s.stream_id FROM presence.stream s JOIN beat USING (company_id, environment, user_id)
				WHERE s.beat_at < $6 AND s.stream_id <> ALL($1) FOR UPDATE OF s SKIP LOCKED)
		)
		INSERT INTO presence.location AS l (company_id, environment, user_id, last_seen_at)
		SELECT DISTINCT company_id, environment, user_id, $5::timestamptz FROM beat ORDER BY company_id, environment, user_id
		ON CONFLICT (company_id, environment, user_id) DO UPDATE SET last_seen_at = greatest(l.last_seen_at, excluded.last_seen_at)`
	if len(streams) == 0 {
		return nil
	}
	ordered := slices.Clone(streams) // rows are locked in one order by all processes
	slices.SortFunc(ordered, func(a, b Stream) int { return strings.Compare(a.ID, b.ID) })
	ids, companies, environments, userIDs := make([]string, 0, len(streams)), make([]string, 0, len(streams)), make([]string, 0, len(streams)), make([]int64, 0, len(streams))
	for _, s := range ordered {
		ids, companies, environments, userIDs = append(ids, s.ID), append(companies, s.CompanyID), append(environments, string(s.Environment)), append(userIDs, s.UserID)
	}
	if _, err := pool.Exec(ctx, beat, ids, companies, environments, userIDs, now, now.Add(-forgottenAfter)); err != nil {
		return fmt.Errorf("tell who is online: %w", err)
	}
	return nil
}

// Leave tells that a stream was closed.
func Leave(ctx context.Context, pool *pgxpool.Pool, stream Stream, now time.Time) error {
	const leave = `
		WITH closed AS (DELETE FROM presence.stream WHERE stream_id = $1)
		INSERT INTO presence.location AS l (company_id, environment, user_id, last_seen_at) VALUES ($2, $3, $4, $5)
		ON CONFLICT (company_id, environment, user_id) DO UPDATE SET last_seen_at = greatest(l.last_seen_at, excluded.last_seen_at)`
	if _, err := pool.Exec(ctx, leave, stream.ID, stream.CompanyID, stream.Environment, stream.UserID, now); err != nil {
		return fmt.Errorf("tell who is offline: %w", err)
	}
	return nil
}
