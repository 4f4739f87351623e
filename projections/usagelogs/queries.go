package usagelogs

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/projections/readmodel"
)

// Retention is how long requests are shown.
const Retention = 90 * 24 * time.Hour

// Request is one API request as it was answered.
type Request struct {
	eventID    uuid.UUID
	RequestID  string
	Timestamp  time.Time
	Method     string
	Path       string
	Endpoint   string
	Status     int
	DurationMs int64
	ExternalID string
	TokenID    string
	IP         string
	UserAgent  string
	// ErrorCode is empty for a request that succeeded.
	ErrorCode string
}

// Filter says which requests a list shows; the zero Filter is all.
type Filter struct {
	// Start and End bound the time, Start included and End not.
	Start, End *time.Time
	Endpoint   string
	Method     string
	// StatusFrom and StatusTo bound the status, both included: 404 and 404, or 400 and 499. 0 and 0 is all.
	StatusFrom, StatusTo int
	ExternalID           string
	RequestID            string
}

const listed = 'u'

// endOfTime is after every request.
var endOfTime = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

// List gives a company's requests of the last 90 days, newest first, from a cursor on ("" is the beginning). Next is empty on the last page. The error
// for a cursor that is none is InvalidFormat.
func List(ctx context.Context, pool *pgxpool.Pool, companyID string, env event.Environment, f Filter, cursor string, limit int, now time.Time) (requests []Request, next string, err error) {
	from, err := readmodel.ParseCursor(cursor, listed, 3)
	if err != nil {
		return nil, "", err
	}
	start := now.Add(-Retention)
	if f.Start != nil && f.Start.After(start) {
		start = *f.Start
	}
	start = wholeMicrosecond(start)
	if f.StatusTo == 0 {
		f.StatusTo = f.StatusFrom
	}
	// The list goes back from a moment, and at that moment from an event.
	moment, eventID := endOfTime, uuid.Nil
	if f.End != nil {
		moment = wholeMicrosecond(*f.End)
	}
	if len(from.Keys) == 3 {
		if from.Keys[0] > math.MaxInt64 {
			return nil, "", readmodel.NoCursor()
		}
		if at := time.UnixMicro(int64(from.Keys[0])).UTC(); at.Before(moment) {
			moment = at
			binary.BigEndian.PutUint64(eventID[:8], from.Keys[1])
			binary.BigEndian.PutUint64(eventID[8:], from.Keys[2])
		}
	}
	source := `usage.request`
	args := []any{companyID, env, start, moment, eventID, f.Endpoint, f.Method, f.StatusFrom, f.StatusTo, f.ExternalID, limit + 1}
	if f.RequestID != "" {
		// These are few and have an index of their own. OFFSET 0 keeps the planner, which does not know how long the time in question is, from taking the other.
		source = `(SELECT * FROM usage.request WHERE company_id = $1 AND environment = $2 AND request_id = $12 OFFSET 0)`
		args = append(args, f.RequestID)
	}
	query := `
		SELECT event_id, request_id, at, method, path, endpoint, status, duration_ms, external_id, token_id, ip, user_agent, error_code
		FROM ` + source + ` r
		WHERE company_id = $1 AND environment = $2 AND at >= $3 AND at <= $4 AND (at, event_id) < ($4, $5::uuid)
			AND ($6 = '' OR endpoint = $6)
			AND ($7 = '' OR method = $7)
			AND ($8 = 0 OR status BETWEEN $8 AND $9)
			AND ($10 = '' OR external_id = $10)
		ORDER BY at DESC, event_id DESC LIMIT $11`
	rows, _ := pool.Query(ctx, query, args...) // an error shows in rows
	found, err := pgx.CollectRows(rows, scan)
	if err != nil {
		return nil, "", fmt.Errorf("list requests: %w", err)
	}
	requests, next = readmodel.Next(listed, found, limit, func(r Request) []uint64 {
		return []uint64{uint64(r.Timestamp.UnixMicro()), binary.BigEndian.Uint64(r.eventID[:8]), binary.BigEndian.Uint64(r.eventID[8:])}
	})
	return requests, next, nil
}

// wholeMicrosecond is the first whole microsecond that is not before a time. Requests are at whole ones, and PostgreSQL knows no other.
func wholeMicrosecond(at time.Time) time.Time {
	return at.Add(time.Microsecond - time.Nanosecond).Truncate(time.Microsecond)
}

func scan(row pgx.CollectableRow) (r Request, err error) {
	err = row.Scan(&r.eventID, &r.RequestID, &r.Timestamp, &r.Method, &r.Path, &r.Endpoint, &r.Status, &r.DurationMs, &r.ExternalID, &r.TokenID, &r.IP, &r.UserAgent, &r.ErrorCode)
	return r, err
}
