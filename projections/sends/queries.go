package sends

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/projections/readmodel"
)

// Send is a send as its owner sees it.
type Send struct {
	SendID string
	send.Terms
	// Status is `scheduled`, `queued`, `sent`, `failed` or `cancelled`.
	Status string
	// ScheduleAt is nil for a send that was not scheduled.
	ScheduleAt  *time.Time
	LocalTime   string
	Total       int
	Counts      Counts
	CreatedAt   time.Time
	CancelledAt *time.Time
	position    int64
}

// Counts tells how many of a send's deliveries are where.
type Counts struct {
	Scheduled, Queued, Delivered, Playing, Played, Failed, Expired, Cancelled int
}

const selection = `
	SELECT send_id, audio_id, priority, repeat, volume, expires_in, single, status, schedule_at, local_time, total, created_at, cancelled_at, position,
		scheduled, queued, delivered, playing, played, failed, expired, cancelled
	FROM sends.send WHERE sealed AND company_id = $1 AND environment = $2`

func scan(row pgx.CollectableRow) (s Send, err error) {
	c := &s.Counts
	err = row.Scan(&s.SendID, &s.AudioID, &s.Priority, &s.Repeat, &s.Volume, &s.ExpiresIn, &s.Single, &s.Status, &s.ScheduleAt, &s.LocalTime, &s.Total, &s.CreatedAt,
		&s.CancelledAt, &s.position, &c.Scheduled, &c.Queued, &c.Delivered, &c.Playing, &c.Played, &c.Failed, &c.Expired, &c.Cancelled)
	return s, err
}

// Get finds a send. Errors: NotFound, also for another company's.
func Get(ctx context.Context, pool *pgxpool.Pool, companyID string, env event.Environment, sendID string) (Send, error) {
	rows, _ := pool.Query(ctx, selection+` AND send_id = $3`, companyID, env, sendID) // an error shows in rows
	s, err := pgx.CollectExactlyOneRow(rows, scan)
	if errors.Is(err, pgx.ErrNoRows) {
		return Send{}, send.NotFound()
	}
	if err != nil {
		return Send{}, fmt.Errorf("get a send: %w", err)
	}
	return s, nil
}

// Filter says which sends a list shows; the zero Filter is all.
type Filter struct {
	Status  string
	AudioID string
	// The times are not included. One that is asked for by its schedule was scheduled, and those that were not are none.
	ScheduledAfter, ScheduledBefore *time.Time
	CreatedAfter, CreatedBefore     *time.Time
}

// endOfTime is after every moment that a list can be at.
var endOfTime = time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)

// The lists, as their cursors tell them apart.
const (
	listed           = 's'
	listedBySchedule = 'c'
	listedDeliveries = 'd'
)

// List gives sends, newest first or, where they are asked for by their schedule, the latest schedule first, from a cursor on ("" is the beginning). Next is
// empty on the last page. The error for a cursor that is none is InvalidFormat.
func List(ctx context.Context, pool *pgxpool.Pool, companyID string, env event.Environment, f Filter, cursor string, limit int) (sends []Send, next string, err error) {
	list, order, moment := byte(listed), `created_at`, func(s Send) time.Time { return s.CreatedAt }
	if f.ScheduledAfter != nil || f.ScheduledBefore != nil {
		list, order, moment = listedBySchedule, `schedule_at`, func(s Send) time.Time { return *s.ScheduleAt } // what has none is not shown
	}
	from, err := readmodel.ParseCursor(cursor, list, 2)
	if err != nil {
		return nil, "", err
	}
	query := readmodel.NewQuery(selection, companyID, env)
	if len(from.Keys) > 0 {
		if from.Keys[0] > uint64(endOfTime.UnixMicro()) {
			return nil, "", readmodel.NoCursor()
		}
		query.And(`(`+order+`, position) < (`+query.Arg(time.UnixMicro(int64(from.Keys[0])))+`, $?)`, int64(from.Keys[1]))
	}
	if f.Status != "" {
		query.And(`status = $?`, f.Status)
	}
	if f.AudioID != "" {
		query.And(`audio_id = $?`, f.AudioID)
	}
	for _, bound := range []struct {
		condition string
		at        *time.Time
	}{{`schedule_at > $?`, f.ScheduledAfter}, {`schedule_at < $?`, f.ScheduledBefore}, {`created_at > $?`, f.CreatedAfter}, {`created_at < $?`, f.CreatedBefore}} {
		if bound.at != nil {
			query.And(bound.condition, bound.at)
		}
	}
	query.End(`ORDER BY `+order+` DESC, position DESC LIMIT $?`, limit+1)
	rows, _ := pool.Query(ctx, query.Statement(), query.Args()...) // an error shows in rows
	found, err := pgx.CollectRows(rows, scan)
	if err != nil {
		return nil, "", fmt.Errorf("list sends: %w", err)
	}
	sends, next = readmodel.Next(list, found, limit, func(s Send) []uint64 { return []uint64{uint64(moment(s).UnixMicro()), uint64(s.position)} })
	return sends, next, nil
}

// Delivery is a send at one location.
type Delivery struct {
	SendID     string
	ExternalID string
	UserID     int64
	// Status is one of package delivery, or `scheduled` before the audio goes out.
	Status string
	// PlayAt is when it is due; nil is as soon as its priority allows.
	PlayAt    *time.Time
	ExpiresAt *time.Time
	// When it took which status; nil for those that it did not take.
	QueuedAt, DeliveredAt, PlayingAt, EndedAt *time.Time
	// Reason tells why it failed, expired or was cancelled.
	Reason *string
	// TraceParent and Destinations are those of its send, as FindDelivery tells them.
	TraceParent  string `db:"-"`
	Destinations int    `db:"-"`
}

// DeliveryID names the delivery.
func (d Delivery) DeliveryID() string { return delivery.ID(d.SendID, d.UserID) }

const deliveryColumns = `d.send_id, d.external_id, d.user_id, d.status, d.play_at, d.expires_at, d.queued_at, d.delivered_at, d.playing_at, d.ended_at, d.reason`

// Deliveries gives a send's deliveries, in the order of their user IDs, from a cursor on ("" is the beginning); status filters them unless it is "". Next is
// empty on the last page. Errors: NotFound, InvalidFormat for a cursor that is none.
func Deliveries(ctx context.Context, pool *pgxpool.Pool, companyID string, env event.Environment, sendID, status, cursor string, limit int) (deliveries []Delivery, next string, err error) {
	from, err := readmodel.ParseCursor(cursor, listedDeliveries, 1)
	if err != nil {
		return nil, "", err
	}
	if _, err := Get(ctx, pool, companyID, env, sendID); err != nil {
		return nil, "", err
	}
	found, err := deliveriesAfter(ctx, pool, sendID, status, from.Key(0, 0), limit+1)
	if err != nil {
		return nil, "", err
	}
	deliveries, next = readmodel.Next(listedDeliveries, found, limit, func(d Delivery) []uint64 { return []uint64{uint64(d.UserID)} })
	return deliveries, next, nil
}

// deliveriesAfter gives deliveries of a send, in the order of their user IDs, after one of them.
func deliveriesAfter(ctx context.Context, pool *pgxpool.Pool, sendID, status string, userID int64, limit int) ([]Delivery, error) {
	query := readmodel.NewQuery(`SELECT `+deliveryColumns+` FROM sends.delivery d WHERE d.send_id = $1`, sendID).And(`d.user_id > $?`, userID)
	if status != "" {
		query.And(`d.status = $?`, status)
	}
	query.End(`ORDER BY d.user_id LIMIT $?`, limit)
	rows, _ := pool.Query(ctx, query.Statement(), query.Args()...) // an error shows in rows
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Delivery])
	if err != nil {
		return nil, fmt.Errorf("list deliveries: %w", err)
	}
	return found, nil
}

// deliveriesPage is how many deliveries EachDelivery holds at a time.
const deliveriesPage = 1000

// EachDelivery gives all deliveries of a send that Get found, in the order of their user IDs, a page at a time; status filters them unless it is "". No
// connection is held while a page is handled, however long that takes. It ends with the first error, its own or that of page.
func EachDelivery(ctx context.Context, pool *pgxpool.Pool, sendID, status string, page func([]Delivery) error) error {
	for after, more := int64(0), true; more; {
		found, err := deliveriesAfter(ctx, pool, sendID, status, after, deliveriesPage)
		if err != nil {
			return err
		}
		if err := page(found); err != nil {
			return err
		}
		if more = len(found) == deliveriesPage; more {
			after = found[len(found)-1].UserID
		}
	}
	return nil
}

// FindDelivery finds a company's delivery, and what its events say of it.
func FindDelivery(ctx context.Context, pool *pgxpool.Pool, companyID string, env event.Environment, deliveryID string) (ref delivery.Ref, d Delivery, found bool, err error) {
	sendID, userID, ok := delivery.ParseID(deliveryID)
	if !ok {
		return delivery.Ref{}, Delivery{}, false, nil
	}
	const query = `SELECT s.audio_id, s.traceparent, s.total, ` + deliveryColumns + `
		FROM sends.delivery d JOIN sends.send s ON s.send_id = d.send_id
		WHERE d.send_id = $1 AND d.user_id = $2 AND s.company_id = $3 AND s.environment = $4 AND s.sealed`
	err = pool.QueryRow(ctx, query, sendID, userID, companyID, env).Scan(&ref.AudioID, &d.TraceParent, &d.Destinations, &d.SendID, &d.ExternalID, &d.UserID, &d.Status, &d.PlayAt, &d.ExpiresAt,
		&d.QueuedAt, &d.DeliveredAt, &d.PlayingAt, &d.EndedAt, &d.Reason)
	if errors.Is(err, pgx.ErrNoRows) {
		return delivery.Ref{}, Delivery{}, false, nil
	}
	if err != nil {
		return delivery.Ref{}, Delivery{}, false, fmt.Errorf("find a delivery: %w", err)
	}
	ref.DeliveryID, ref.SendID, ref.ExternalID, ref.UserID = deliveryID, sendID, d.ExternalID, userID
	return ref, d, true, nil
}

// Pending lists the sends of a piece of audio that began before a position and are not finished, oldest first; one that is still being written is one of
// them.
func Pending(ctx context.Context, pool *pgxpool.Pool, companyID string, env event.Environment, audioID string, before event.Position) ([]string, error) {
	const query = `SELECT send_id FROM sends.send
		WHERE audio_id = $1 AND company_id = $2 AND environment = $3 AND status IN ('scheduled', 'queued') AND position < $4 ORDER BY position`
	rows, _ := pool.Query(ctx, query, audioID, companyID, env, int64(before.Commit))
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("find pending sends: %w", err)
	}
	return ids, nil
}

// Ended reports whether every delivery of a send has ended; false for a send that is not there.
func Ended(ctx context.Context, pool *pgxpool.Pool, sendID string) (ended bool, err error) {
	const query = `SELECT coalesce((SELECT played + failed + expired + cancelled >= total FROM sends.send WHERE send_id = $1), false)`
	if err := pool.QueryRow(ctx, query, sendID).Scan(&ended); err != nil {
		return false, fmt.Errorf("find out whether a send ended: %w", err)
	}
	return ended, nil
}

// OpenAt lists a location's deliveries that have not ended, those that did not go out yet too, of sends that began before a position, the oldest send
// first.
func OpenAt(ctx context.Context, pool *pgxpool.Pool, companyID string, env event.Environment, userID int64, before event.Position) ([]delivery.Ref, error) {
	const query = `SELECT d.send_id, s.audio_id, d.external_id FROM sends.delivery d JOIN sends.send s ON s.send_id = d.send_id
		WHERE d.user_id = $3 AND d.status IN ('scheduled', 'queued', 'delivered', 'playing') AND s.company_id = $1 AND s.environment = $2 AND s.position < $4
		ORDER BY s.position`
	rows, _ := pool.Query(ctx, query, companyID, env, userID, int64(before.Commit))
	refs, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r delivery.Ref, err error) {
		err = row.Scan(&r.SendID, &r.AudioID, &r.ExternalID)
		r.UserID, r.DeliveryID = userID, delivery.ID(r.SendID, userID)
		return r, err
	})
	if err != nil {
		return nil, fmt.Errorf("find a location's open deliveries: %w", err)
	}
	return refs, nil
}

// Stats tells what became of the sends to a location.
type Stats struct {
	Counts
	// LastPlayedAt is nil where nothing was ever played.
	LastPlayedAt *time.Time
}

// At counts the deliveries of a location. Those that have ended are counted already; those that are open have an index of their own.
func At(ctx context.Context, pool *pgxpool.Pool, companyID string, env event.Environment, userID int64) (s Stats, err error) {
	const query = `
		SELECT o.scheduled, o.queued, o.delivered, o.playing, coalesce(l.played, 0), coalesce(l.failed, 0), coalesce(l.expired, 0), coalesce(l.cancelled, 0), l.last_played_at
		FROM (
			SELECT count(*) FILTER (WHERE d.status = 'scheduled') AS scheduled, count(*) FILTER (WHERE d.status = 'queued') AS queued,
				count(*) FILTER (WHERE d.status = 'delivered') AS delivered, count(*) FILTER (WHERE d.status = 'playing') AS playing
			FROM sends.delivery d JOIN sends.send s ON s.send_id = d.send_id
			WHERE d.user_id = $3 AND d.status IN ('scheduled', 'queued', 'delivered', 'playing') AND s.company_id = $1 AND s.environment = $2 AND s.sealed
		) o LEFT JOIN sends.location l ON l.company_id = $1 AND l.environment = $2 AND l.user_id = $3`
	err = pool.QueryRow(ctx, query, companyID, env, userID).Scan(&s.Scheduled, &s.Queued, &s.Delivered, &s.Playing, &s.Played, &s.Failed, &s.Expired, &s.Cancelled, &s.LastPlayedAt)
	if err != nil {
		return Stats{}, fmt.Errorf("count a location's deliveries: %w", err)
	}
	return s, nil
}
