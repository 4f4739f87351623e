package tokens

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/musique/musique/domain/fault"
)

// maxGuesses is how many wrong company tokens one address may send in a minute.
const maxGuesses = 20

// CheckGuesses answers RateLimitExceeded, with the time to wait, for an address that sent too many wrong company tokens in this minute, to any process.
func CheckGuesses(ctx context.Context, pool *pgxpool.Pool, address string, now time.Time) error {
	number, used := numberOf(now, minute), int64(0)
	err := pool.QueryRow(ctx, `SELECT minute, in_minute FROM counters.guess WHERE address = $1 AND minute >= $2`, address, number).Scan(&number, &used)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("read the guesses: %w", err)
	}
	return guessed(number, used+1, now)
}

// CountGuess counts a wrong company token. It answers RateLimitExceeded if that was one too many: then the caller is told that, and not that the token
// was wrong. Addresses that were last heard of in earlier minutes are forgotten meanwhile.
func CountGuess(ctx context.Context, pool *pgxpool.Pool, address string, now time.Time) error {
	const count = `
		WITH old AS (
			DELETE FROM counters.guess WHERE address IN (
				SELECT address FROM counters.guess WHERE minute < $2 - 1 AND address <> $1 ORDER BY minute LIMIT 10 FOR UPDATE SKIP LOCKED)
		)
		INSERT INTO counters.guess AS g (address, minute, in_minute) VALUES ($1, $2, 1)
		ON CONFLICT (address) DO UPDATE SET
			minute = greatest(g.minute, excluded.minute),
			in_minute = CASE WHEN excluded.minute > g.minute THEN 1 ELSE least(g.in_minute + 1, $3 + 1) END
		RETURNING minute, in_minute`
	var number, used int64
	if err := pool.QueryRow(ctx, count, address, numberOf(now, minute), int64(maxGuesses)).Scan(&number, &used); err != nil {
		return fmt.Errorf("count a guess: %w", err)
	}
	return guessed(number, used, now)
}

func guessed(number, used int64, now time.Time) error {
	if used <= maxGuesses {
		return nil
	}
	err := fault.New(fault.RateLimitExceeded, "Too many wrong company tokens came from this address; wait until the minute is over.")
	err.RetryAfter = windowOf("minute", minute, number, used, maxGuesses).Reset.Sub(now)
	return err
}
