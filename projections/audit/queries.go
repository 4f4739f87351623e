package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/projections/readmodel"
)

// Entry is something that happened.
type Entry struct {
	EventID      uuid.UUID
	Type         string
	At           time.Time
	Actor        string
	ResourceType string
	ResourceID   string
	// What else it has to do with; nil where that is nothing or not known.
	SendID, AudioID, ExternalID *string
	// RequestID is that of the API request that it began with, if there was one.
	RequestID *string
	// Locations is how many a send is for or went out to; nil for what is no such event.
	Locations *int
	// Details is a JSON object.
	Details  json.RawMessage
	position int64
}

// Filter says which entries a list shows; the zero Filter is all.
type Filter struct {
	Actor string
	Type  string
	// ResourceType alone shows what happened to resources of a type. With ResourceID it shows all that has to do with that one: of a send its deliveries too, of
	// audio its sends, of a location its devices, its deliveries and the tokens of its external ID. ResourceID needs it.
	ResourceType, ResourceID string
	// From is included, To is not.
	From, To *time.Time
}

const (
	listed     = 'x'
	columnList = `event_id, type, occurred_at, actor, resource_type, resource_id, send_id, audio_id, external_id, request_id, locations, details, position`
	newest     = `ORDER BY occurred_at DESC, position DESC LIMIT $?`
)

// endOfTime is after every moment that a list can be at.
var endOfTime = time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)

// List gives entries, newest first, from a cursor on ("" is the beginning). Next is empty on the last page. The error for a cursor that is none is InvalidFormat.
func List(ctx context.Context, pool *pgxpool.Pool, companyID string, env event.Environment, f Filter, cursor string, limit int) (entries []Entry, next string, err error) {
	from, err := readmodel.ParseCursor(cursor, listed, 2)
	if err != nil {
		return nil, "", err
	}
	if len(from.Keys) > 0 && from.Keys[0] > uint64(endOfTime.UnixMicro()) {
		return nil, "", readmodel.NoCursor()
	}
	query := f.query(companyID, env, from, limit+1)
	rows, _ := pool.Query(ctx, query.Statement(), query.Args()...) // an error shows in rows
	found, err := pgx.CollectRows(rows, scan)
	if err != nil {
		return nil, "", fmt.Errorf("list the audit trail: %w", err)
	}
	entries, next = readmodel.Next(listed, found, limit, func(e Entry) []uint64 { return []uint64{uint64(e.At.UnixMicro()), uint64(e.position)} })
	return entries, next, nil
}

func scan(row pgx.CollectableRow) (e Entry, err error) {
	var id pgtype.UUID
	err = row.Scan(&id, &e.Type, &e.At, &e.Actor, &e.ResourceType, &e.ResourceID, &e.SendID, &e.AudioID, &e.ExternalID, &e.RequestID, &e.Locations, &e.Details, &e.position)
	e.EventID = id.Bytes
	return e, err
}

// query is the statement of a page. Each filter has an index whose order is that of the list.
func (f Filter) query(companyID string, env event.Environment, from readmodel.Cursor, limit int) *readmodel.Query {
	const of = `SELECT ` + columnList + ` FROM audit.entry WHERE company_id = $1 AND environment = $2`
	ofType := f.ResourceType != "" && f.ResourceID == "" && f.Type == ""
	text, args := of, []any{companyID, env}
	if ofType { // the newest of each type of event, and of these the newest
		text, args = `SELECT `+columnList+` FROM unnest($3::text[]) AS k (kind) CROSS JOIN LATERAL (`+of+` AND type = k.kind`, append(args, typesOf(f.ResourceType))
	}
	query := readmodel.NewQuery(text, args...)
	if f.Type != "" {
		query.And(`type = $?`, f.Type)
	}
	if f.Actor != "" {
		query.And(`actor = $?`, f.Actor)
	}
	f.about(query)
	if f.From != nil {
		query.And(`occurred_at >= $?`, f.From)
	}
	if f.To != nil {
		query.And(`occurred_at < $?`, f.To)
	}
	if len(from.Keys) > 0 {
		query.And(`(occurred_at, position) < (`+query.Arg(time.UnixMicro(int64(from.Keys[0])))+`, $?)`, int64(from.Keys[1]))
	}
	query.End(newest, limit)
	if ofType {
		query.End(`) e `+newest, limit)
	}
	return query
}

// about adds the condition for what is about a resource.
func (f Filter) about(query *readmodel.Query) {
	if f.ResourceID == "" {
		if f.ResourceType != "" && f.Type != "" {
			query.And(`resource_type = $?`, f.ResourceType)
		}
		return
	}
	switch f.ResourceType {
	case Send:
		query.And(`send_id = $?`, f.ResourceID)
	case Audio:
		query.And(`resource_type <> 'delivery' AND audio_id = $?`, f.ResourceID)
	case Location:
		query.And(`external_id = $?`, f.ResourceID)
	case Delivery:
		query.And(`resource_type = 'delivery' AND resource_id = $?`, f.ResourceID)
	default:
		query.And(`resource_type <> 'delivery' AND resource_type = `+query.Arg(f.ResourceType)+` AND resource_id = $?`, f.ResourceID)
	}
}
