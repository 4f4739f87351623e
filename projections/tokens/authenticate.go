package tokens

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/infra/postgres"
)

// The lengths of the windows that requests are counted in.
const (
	minute = time.Minute
	hour   = time.Hour
	day    = 24 * time.Hour
)

// Window is one of a token's limits as it stands.
type Window struct {
	// Name is `minute`, `hour` or `day`.
	Name   string
	Length time.Duration
	// Limit is how many requests fit, Used how many there were, this one included if it was allowed.
	Limit, Used int64
	// Reset is when the next window begins.
	Reset time.Time
}

// Remaining is how many requests are left.
func (w Window) Remaining() int64 { return max(w.Limit-w.Used, 0) }

func windowOf(name string, length time.Duration, number, used, limit int64) Window {
	return Window{Name: name, Length: length, Limit: limit, Used: used, Reset: time.Unix(0, 0).Add(time.Duration(number+1) * length).UTC()}
}

func numberOf(t time.Time, length time.Duration) int64 { return t.Unix() / int64(length.Seconds()) }

// Caller is who a token speaks for.
type Caller struct {
	CompanyID        string
	CompanyName      string
	CompanyCreatedAt time.Time
	Plan             string
	Environment      event.Environment
	TokenID          string
	TokenName        string
	ExternalID       string
	UserID           int64
	Permissions      []string
	// ExpiresAt is nil for a token that never expires.
	ExpiresAt *time.Time
	CreatedAt time.Time
	// Windows are the limits of the minute, the hour and the day after this request was counted; empty for a token that is not accepted.
	Windows []Window
}

const (
	// maxGathered bounds the requests of one round trip. The statement looks through all tokens for each that it counts: 100 of them take 2 ms, 1,000 took 80,
	// so that each trip of a busy server would have been a slow one for a Gatherer.
	maxGathered = 100
	// authenticateTimeout bounds one round trip.
	authenticateTimeout = 10 * time.Second
)

// Authenticator finds out whom tokens speak for, and counts the requests made with them: those that come at the same moment in one round trip. It is safe for
// concurrent use.
type Authenticator struct {
	pool  *pgxpool.Pool
	plans company.Plans
	now   func() time.Time
	trips *postgres.Gatherer[presented]
}

// presented is a token that a request came with, and who came with it.
type presented struct {
	hashes []string
	caller Caller
	err    error
}

// NewAuthenticator makes an authenticator over a pool, for these plans; now tells the time.
func NewAuthenticator(pool *pgxpool.Pool, plans company.Plans, now func() time.Time) *Authenticator {
	a := &Authenticator{pool: pool, plans: plans, now: now}
	a.trips = postgres.NewGatherer(maxGathered, a.roundTrip)
	return a
}

// Authenticate finds the token by any of its hashes (one per live key) and counts the request against the limits of the company's plan. Limits are exact
// over all processes: a limit of 100 lets 100 requests through in a window, and a request that is refused does not count.
//
// The caller is given with ExpiredToken and RateLimitExceeded too. Errors: InvalidToken (unknown, revoked, or of a suspended company),
// ExpiredToken, RateLimitExceeded with the time to wait.
func (a *Authenticator) Authenticate(ctx context.Context, hashes []string) (Caller, error) {
	p := &presented{hashes: hashes}
	if err := a.trips.Ask(ctx, p); err != nil {
		return Caller{}, fmt.Errorf("authenticate: %w", err)
	}
	return p.caller, p.err
}

//go:embed authenticate.sql
var authenticate string

// roundTrip answers all of these in one statement.
func (a *Authenticator) roundTrip(all []*presented) {
	var hashes []string
	var numbers []int32
	var requests []int64
	byToken, number := make([][]*presented, 0, len(all)), make(map[string]int, len(all))
	for _, p := range all {
		n, known := number[p.hashes[0]]
		if !known {
			n = len(byToken)
			number[p.hashes[0]], byToken = n, append(byToken, nil)
		}
		byToken[n] = append(byToken[n], p)
	}
	for n, group := range byToken {
		for _, hash := range group[0].hashes {
			hashes, numbers, requests = append(hashes, hash), append(numbers, int32(n)), append(requests, int64(len(group)))
		}
	}
	counts, err := a.count(hashes, numbers, requests)
	for n, group := range byToken {
		found, ok := counts[int32(n)]
		for i, p := range group {
			switch {
			case err != nil:
				p.err = fmt.Errorf("authenticate: %w", err)
			case !ok:
				p.err = errNobody
			default:
				p.caller, p.err = found.at(int64(i))
			}
		}
	}
}

var errNobody = fault.New(fault.InvalidToken, "The token is unknown or revoked; generate a new one.")

// counted is a token with the requests that were counted together.
type counted struct {
	caller        Caller
	dead, expired bool
	limits        [3]int64
	numbers, used [3]int64 // of the windows, after all that were let through
	granted       int64    // how many were
	now           time.Time
}

// count finds the tokens and counts the requests made with each.
func (a *Authenticator) count(hashes []string, numbers []int32, requests []int64) (map[int32]counted, error) {
	names, perMinute, perHour, perDay := make([]string, 0, len(a.plans)), make([]int, 0, len(a.plans)), make([]int, 0, len(a.plans)), make([]int, 0, len(a.plans))
	for name, p := range a.plans {
		names, perMinute, perHour, perDay = append(names, name), append(perMinute, p.PerMinute), append(perHour, p.PerHour), append(perDay, p.PerDay)
	}
	ctx, cancel := context.WithTimeout(context.Background(), authenticateTimeout)
	defer cancel()
	now := a.now()
	rows, _ := a.pool.Query(ctx, authenticate, hashes, numbers, requests, now, numberOf(now, minute), numberOf(now, hour), numberOf(now, day), names, perMinute, perHour, perDay) // an error shows in rows
	all := make(map[int32]counted, len(hashes))
	var n int32
	c := counted{now: now}
	_, err := pgx.ForEachRow(rows, []any{
		&n, &c.caller.CompanyID, &c.caller.CompanyName, &c.caller.CompanyCreatedAt, &c.caller.Plan, &c.caller.Environment, &c.caller.TokenID, &c.caller.TokenName,
		&c.caller.ExternalID, &c.caller.UserID, &c.caller.Permissions, &c.caller.ExpiresAt, &c.caller.CreatedAt, &c.dead, &c.expired, &c.limits[0], &c.limits[1], &c.limits[2],
		&c.numbers[0], &c.numbers[1], &c.numbers[2], &c.used[0], &c.used[1], &c.used[2], &c.granted,
	}, func() error {
		all[n] = c
		return nil
	})
	return all, err
}

// at is the outcome of one of the requests that were counted together, by its place among them.
func (c counted) at(place int64) (Caller, error) {
	switch {
	case c.dead:
		return Caller{}, errNobody
	case c.expired:
		return c.caller, fault.New(fault.ExpiredToken, "The token expired at %s; generate a new one.", c.caller.ExpiresAt.UTC().Format(time.RFC3339))
	}
	later := max(0, c.granted-place-1) // those that were let through after this one
	caller := c.caller
	caller.Windows = []Window{
		windowOf("minute", minute, c.numbers[0], c.used[0]-later, c.limits[0]),
		windowOf("hour", hour, c.numbers[1], c.used[1]-later, c.limits[1]),
		windowOf("day", day, c.numbers[2], c.used[2]-later, c.limits[2]),
	}
	if place >= c.granted {
		return caller, exceeded(caller.Windows, "requests", c.now)
	}
	return caller, nil
}

// exceeded is the error of a call that found a window full. What has to pass is the full window that ends last.
func exceeded(windows []Window, what string, now time.Time) error {
	var full Window
	for _, w := range windows {
		if w.Remaining() == 0 && w.Reset.After(full.Reset) {
			full = w
		}
	}
	err := fault.New(fault.RateLimitExceeded, "The token's %d %s of this %s are used up; try again when the next one begins.", full.Limit, what, full.Name)
	err.RetryAfter = full.Reset.Sub(now)
	return err
}

// CountUpload counts an upload against the token's limit of the hour. It is exact over all processes, and what is refused does not count. The error is
// RateLimitExceeded with the time to wait.
func CountUpload(ctx context.Context, pool *pgxpool.Pool, tokenID string, limit int, now time.Time) (Window, error) {
	const count = `
		INSERT INTO counters.upload AS u (token_id, hour, in_hour, allowed) VALUES ($1, $2, 1, true)
		ON CONFLICT (token_id) DO UPDATE SET (hour, in_hour, allowed) = (
			SELECT w.hour, w.in_hour + (w.in_hour < $3)::int, w.in_hour < $3
			FROM (SELECT greatest(u.hour, excluded.hour) AS hour, CASE WHEN excluded.hour > u.hour THEN 0 ELSE u.in_hour END AS in_hour) w
		)
		RETURNING hour, in_hour, allowed`
	var number, used int64
	var allowed bool
	if err := pool.QueryRow(ctx, count, tokenID, numberOf(now, hour), int64(limit)).Scan(&number, &used, &allowed); err != nil {
		return Window{}, fmt.Errorf("count an upload: %w", err)
	}
	w := windowOf("hour", hour, number, used, int64(limit))
	if !allowed {
		return w, exceeded([]Window{w}, "uploads", now)
	}
	return w, nil
}

// Uploads tells how many uploads of the hour a token has used.
func Uploads(ctx context.Context, pool *pgxpool.Pool, tokenID string, limit int, now time.Time) (Window, error) {
	number, used := numberOf(now, hour), int64(0)
	err := pool.QueryRow(ctx, `SELECT hour, in_hour FROM counters.upload WHERE token_id = $1 AND hour >= $2`, tokenID, number).Scan(&number, &used)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return Window{}, fmt.Errorf("read the uploads: %w", err)
	}
	return windowOf("hour", hour, number, used, int64(limit)), nil
}
