// Package usagelogs is the read model of the API requests that a company made, for 90 days.
package usagelogs

import (
	"embed"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/usage"
	"github.com/musique/musique/projections/readmodel"
)

// Migrations make the read model's tables.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// Types are the events that the read model follows.
var Types = []string{usage.ApiRequestServed{}.EventType()}

// Apply turns events into statements: one for the weeks that they fall in, one for all of their rows.
func Apply(batch *pgx.Batch, events []event.Recorded) error {
	n := len(events)
	ids, companies, environments, times := make([]pgtype.UUID, n), make([]string, n), make([]string, n), make([]time.Time, n)
	requestIDs, methods, paths, endpoints := make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	statuses, durations, weeks := make([]int32, n), make([]int64, n), []time.Time(nil)
	externalIDs, tokenIDs, ips, agents, codes := make([]string, n), make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	for i, e := range events {
		p, err := readmodel.Decode[usage.ApiRequestServed](e)
		if err != nil {
			return err
		}
		ids[i], companies[i], environments[i], times[i] = pgtype.UUID{Bytes: e.ID, Valid: true}, e.Metadata.CompanyID, string(e.Metadata.Environment), p.Timestamp
		if w := weekOf(p.Timestamp); !slices.ContainsFunc(weeks, w.Equal) {
			weeks = append(weeks, w)
		}
		requestIDs[i], methods[i], paths[i], endpoints[i] = p.RequestID, p.Method, p.Path, p.Endpoint
		statuses[i], durations[i] = int32(p.Status), p.DurationMs
		externalIDs[i], tokenIDs[i], ips[i], agents[i], codes[i] = p.ExternalID, p.TokenID, p.IP, p.UserAgent, p.ErrorCode
	}
	const insert = `
		INSERT INTO request (event_id, company_id, environment, at, request_id, method, path, endpoint, status, duration_ms, external_id, token_id, ip, user_agent, error_code)
		SELECT r.* FROM unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::text[], $6::text[], $7::text[], $8::text[], $9::integer[], $10::bigint[],
			$11::text[], $12::text[], $13::text[], $14::text[], $15::text[])
			AS r (event_id, company_id, environment, at, request_id, method, path, endpoint, status, duration_ms, external_id, token_id, ip, user_agent, error_code)
		WHERE r.at >= (SELECT since FROM kept)
		ON CONFLICT DO NOTHING`
	batch.Queue(`SELECT make_weeks($1)`, weeks)
	batch.Queue(insert, ids, companies, environments, times, requestIDs, methods, paths, endpoints, statuses, durations, externalIDs, tokenIDs, ips, agents, codes)
	return nil
}
