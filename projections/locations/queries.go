package locations

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/projections/readmodel"
)

// Location is a place that audio can be sent to.
type Location struct {
	ExternalID string
	UserID     int64
	Name       string
	Timezone   string
	Tags       []string
	Channel    location.Channel
	CreatedAt  time.Time
	// Online says that a player of it is connected now.
	Online bool
	// LastSeenAt is when a player of it was last connected; nil is never.
	LastSeenAt *time.Time
	position   int64
}

// selection reads locations with their presence; $3 is the oldest heartbeat that counts.
const selection = `
	SELECT l.external_id, l.user_id, l.name, l.timezone, l.tags, l.channel_type, l.channel_url, l.created_at, o.online, p.last_seen_at, l.position
	FROM locations.location l
	LEFT JOIN presence.location p ON p.company_id = l.company_id AND p.environment = l.environment AND p.user_id = l.user_id
	CROSS JOIN LATERAL (SELECT EXISTS (
		SELECT FROM presence.stream s
		WHERE s.company_id = l.company_id AND s.environment = l.environment AND s.user_id = l.user_id AND s.beat_at > $3) AS online) o
	WHERE l.company_id = $1 AND l.environment = $2`

func scan(row pgx.CollectableRow) (l Location, err error) {
	err = row.Scan(&l.ExternalID, &l.UserID, &l.Name, &l.Timezone, &l.Tags, &l.Channel.Type, &l.Channel.URL, &l.CreatedAt, &l.Online, &l.LastSeenAt, &l.position)
	return l, err
}

// Get finds a location by its external ID, as it is at a moment. Errors: NotFound.
func Get(ctx context.Context, pool *pgxpool.Pool, companyID string, env event.Environment, externalID string, now time.Time) (Location, error) {
	rows, _ := pool.Query(ctx, selection+` AND l.external_id = $4`, companyID, env, now.Add(-BeatsCountFor), externalID) // an error shows in rows
	l, err := pgx.CollectExactlyOneRow(rows, scan)
	if errors.Is(err, pgx.ErrNoRows) {
		return Location{}, location.NotFound()
	}
	if err != nil {
		return Location{}, fmt.Errorf("get a location: %w", err)
	}
	return l, nil
}

// Filter says which locations a list shows; the zero Filter is all.
type Filter struct {
	Tag    string // with this tag
	Online *bool  // with a player connected now, or without
	Query  string // with this in the name or the external ID, whatever its case
}

const listed = 'l'

// List gives locations, newest first, from a cursor on ("" is the beginning). Next is empty on the last page. The error for a cursor that is none is
// InvalidFormat.
func List(ctx context.Context, pool *pgxpool.Pool, companyID string, env event.Environment, f Filter, cursor string, limit int, now time.Time) (locations []Location, next string, err error) {
	from, err := readmodel.ParseCursor(cursor, listed, 1)
	if err != nil {
		return nil, "", err
	}
	query := readmodel.NewQuery(selection, companyID, env, now.Add(-BeatsCountFor)).And(`l.position < $?`, from.Key(0, math.MaxInt64))
	if f.Tag != "" {
		query.And(`$? = ANY(l.tags)`, f.Tag)
	}
	if f.Online != nil {
		query.And(`o.online = $?`, f.Online)
	}
	if f.Query != "" {
		// An external ID has ASCII letters alone, which each locale but C's has rules of its own for.
		query.And(`(l.search LIKE $? OR lower(l.external_id COLLATE "C") LIKE $?)`, readmodel.Containing(readmodel.Fold(f.Query)))
	}
	query.End(`ORDER BY l.position DESC LIMIT $?`, limit+1)
	rows, _ := pool.Query(ctx, query.Statement(), query.Args()...) // an error shows in rows
	found, err := pgx.CollectRows(rows, scan)
	if err != nil {
		return nil, "", fmt.Errorf("list locations: %w", err)
	}
	locations, next = readmodel.Next(listed, found, limit, func(l Location) []uint64 { return []uint64{uint64(l.position)} })
	return locations, next, nil
}

// Destinations finds the locations that a send goes to, each once, in the order of their external IDs, and which of the external IDs asked for are
// none. One location more than a send may have is enough to know that it is too large.
func Destinations(ctx context.Context, pool *pgxpool.Pool, companyID string, env event.Environment, targets send.Targets) (found []send.Location, unknown []string, err error) {
	batch := &pgx.Batch{}
	QueueDestinations(batch, companyID, env, targets, &found, &unknown)
	if err := pool.SendBatch(ctx, batch).Close(); err != nil {
		return nil, nil, fmt.Errorf("find the destinations: %w", err)
	}
	return found, unknown, nil
}

// QueueDestinations is Destinations as one of several questions of a round trip.
func QueueDestinations(batch *pgx.Batch, companyID string, env event.Environment, targets send.Targets, found *[]send.Location, unknown *[]string) {
	const query = `SELECT external_id, user_id, timezone FROM locations.location WHERE company_id = $1 AND environment = $2`
	var queued *pgx.QueuedQuery
	switch {
	case targets.All:
		queued = batch.Queue(query+` LIMIT $3`, companyID, env, send.MaxDestinations+1)
	case targets.Tags != nil:
		queued = batch.Queue(query+` AND tags && $3 LIMIT $4`, companyID, env, storable(targets.Tags), send.MaxDestinations+1)
	default:
		queued = batch.Queue(query+` AND external_id = ANY($3)`, companyID, env, storable(targets.ExternalIDs))
	}
	queued.Query(func(rows pgx.Rows) (err error) {
		if *found, err = pgx.CollectRows(rows, pgx.RowToStructByPos[send.Location]); err != nil {
			return err
		}
		slices.SortFunc(*found, func(a, b send.Location) int { return strings.Compare(a.ExternalID, b.ExternalID) })
		if !targets.All && targets.Tags == nil {
			*unknown = missing(targets.ExternalIDs, *found)
		}
		return nil
	})
}

// missing are the external IDs that were not found, each told once.
func missing(externalIDs []string, found []send.Location) (unknown []string) {
	known := make(map[string]bool, len(found))
	for _, l := range found {
		known[l.ExternalID] = true
	}
	for _, id := range externalIDs {
		if !known[id] {
			unknown = append(unknown, id)
			known[id] = true
		}
	}
	return unknown
}

// storable leaves out texts with a NUL. PostgreSQL has none, and so nothing that equals them, and refuses to look.
func storable(texts []string) []string {
	return slices.DeleteFunc(slices.Clone(texts), func(text string) bool { return strings.ContainsRune(text, 0) })
}

// Device is a player of a location.
type Device struct {
	DeviceID  string
	Name      string
	CreatedAt time.Time
}

// Devices lists the devices of a location that were not revoked, oldest first; there are at most location.MaxDevices. Errors: NotFound for a location that is
// not there.
func Devices(ctx context.Context, pool *pgxpool.Pool, companyID string, env event.Environment, externalID string) ([]Device, error) {
	const query = `SELECT d.device_id, d.name, d.created_at
		FROM locations.location l
		LEFT JOIN locations.device d ON d.company_id = l.company_id AND d.environment = l.environment AND d.user_id = l.user_id
		WHERE l.company_id = $1 AND l.environment = $2 AND l.external_id = $3
		ORDER BY d.position`
	rows, _ := pool.Query(ctx, query, companyID, env, externalID)
	var devices []Device
	var id, name *string
	var createdAt *time.Time
	tag, err := pgx.ForEachRow(rows, []any{&id, &name, &createdAt}, func() error {
		if id != nil {
			devices = append(devices, Device{*id, *name, *createdAt})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return nil, location.NotFound()
	}
	return devices, nil
}
