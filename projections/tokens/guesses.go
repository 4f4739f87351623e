package tokens

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
)

// maxGuesses is how many wrong tokens one may send in a minute: an address, of company tokens; a company in an environment, of tokens to revoke.
const maxGuesses = 20

// guesser is for whom guesses are counted.
type guesser struct {
	key  string
	what string // there were too many of
}

func fromAddress(address string) guesser {
	return guesser{address, "wrong company tokens came from this address"}
}

// ofCompany is never an address: none begins with "company/".
func ofCompany(companyID string, env event.Environment) guesser {
	return guesser{"company/" + companyID + "/" + string(env), "tokens that are not there were to be revoked"}
}

// CheckGuesses answers RateLimitExceeded, with the time to wait, for an address that sent too many wrong company tokens in this minute, to any process.
func CheckGuesses(ctx context.Context, pool *pgxpool.Pool, address string, now time.Time) error {
	return fromAddress(address).check(ctx, pool, now)
}

// CountGuess counts a wrong company token. It answers RateLimitExceeded if that was one too many: then the caller is told that, and not that the token
// was wrong.
func CountGuess(ctx context.Context, pool *pgxpool.Pool, address string, now time.Time) error {
	return fromAddress(address).count(ctx, pool, now)
}

// CheckRevocations is CheckGuesses for the callers of a company that named too many tokens to revoke that are not the company's.
func CheckRevocations(ctx context.Context, pool *pgxpool.Pool, companyID string, env event.Environment, now time.Time) error {
	return ofCompany(companyID, env).check(ctx, pool, now)
}

// CountWrongRevocation is CountGuess for a token to revoke that is not the company's.
func CountWrongRevocation(ctx context.Context, pool *pgxpool.Pool, companyID string, env event.Environment, now time.Time) error {
	return ofCompany(companyID, env).count(ctx, pool, now)
}

func (g guesser) check(ctx context.Context, pool *pgxpool.Pool, now time.Time) error {
	number, used := numberOf(now, minute), int64(0)
	err := pool.QueryRow(ctx, `SELECT minute, in_minute FROM counters.guess WHERE address = $1 AND minute >= $2`, g.key, number).Scan(&number, &used)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("read the guesses: %w", err)
	}
	return g.told(number, used+1, now)
}

// count forgets, meanwhile, who was last heard of in earlier minutes.
func (g guesser) count(ctx context.Context, pool *pgxpool.Pool, now time.Time) error {
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
	if err := pool.QueryRow(ctx, count, g.key, numberOf(now, minute), int64(maxGuesses)).Scan(&number, &used); err != nil {
		return fmt.Errorf("count a guess: %w", err)
	}
	return g.told(number, used, now)
}

func (g guesser) told(number, used int64, now time.Time) error {
	if used <= maxGuesses {
		return nil
	}
	err := fault.New(fault.RateLimitExceeded, "Too many %s; wait until the minute is over.", g.what)
	err.RetryAfter = windowOf("minute", minute, number, used, maxGuesses).Reset.Sub(now)
	return err
}
