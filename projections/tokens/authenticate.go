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

//go:embed authenticate.sql
var authenticate string

// Authenticate finds the token by any of its hashes (one per live key) and counts the request against the limits of the company's plan, in one round
// trip. Limits are exact over all processes: a limit of 100 lets 100 requests through in a window, and a request that is refused does not count.
// A first request is always let through: a limit is 1 or more.
//
// The caller is given with ExpiredToken and RateLimitExceeded too. Errors: InvalidToken (unknown, revoked, or of a suspended company),
// ExpiredToken, RateLimitExceeded with the time to wait.
func Authenticate(ctx context.Context, pool *pgxpool.Pool, hashes []string, plans company.Plans, now time.Time) (Caller, error) {
	names, perMinute, perHour, perDay := make([]string, 0, len(plans)), make([]int, 0, len(plans)), make([]int, 0, len(plans)), make([]int, 0, len(plans))
	for name, p := range plans {
		names, perMinute, perHour, perDay = append(names, name), append(perMinute, p.PerMinute), append(perHour, p.PerHour), append(perDay, p.PerDay)
	}
	var c Caller
	var dead, expired, allowed bool
	var limits, numbers, used [3]int64
	err := pool.QueryRow(ctx, authenticate, hashes, now, numberOf(now, minute), numberOf(now, hour), numberOf(now, day), names, perMinute, perHour, perDay).Scan(
		&c.CompanyID, &c.CompanyName, &c.CompanyCreatedAt, &c.Plan, &c.Environment, &c.TokenID, &c.TokenName, &c.ExternalID, &c.UserID, &c.Permissions,
		&c.ExpiresAt, &c.CreatedAt, &dead, &expired, &limits[0], &limits[1], &limits[2],
		&numbers[0], &numbers[1], &numbers[2], &used[0], &used[1], &used[2], &allowed)
	switch {
	case errors.Is(err, pgx.ErrNoRows), err == nil && dead:
		return Caller{}, fault.New(fault.InvalidToken, "The token is unknown or revoked; generate a new one.")
	case err != nil:
		return Caller{}, fmt.Errorf("authenticate: %w", err)
	case expired:
		return c, fault.New(fault.ExpiredToken, "The token expired at %s; generate a new one.", c.ExpiresAt.UTC().Format(time.RFC3339))
	}
	c.Windows = []Window{
		windowOf("minute", minute, numbers[0], used[0], limits[0]),
		windowOf("hour", hour, numbers[1], used[1], limits[1]),
		windowOf("day", day, numbers[2], used[2], limits[2]),
	}
	if !allowed {
		return c, exceeded(c.Windows, "requests", now)
	}
	return c, nil
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
