package sends

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
)

// Ref says which send a worker is to look at. What it finds there, in the send's stream, decides: the read model may be behind.
type Ref struct {
	SendID      string
	CompanyID   string
	Environment event.Environment
}

// Due lists scheduled sends with a destination that is due by a moment, the one that is due first in front.
func Due(ctx context.Context, pool *pgxpool.Pool, by time.Time, limit int) ([]Ref, error) {
	const query = `
		SELECT s.send_id, s.company_id, s.environment FROM sends.send s
		WHERE s.scheduled > 0 AND s.cancelled_at IS NULL AND s.schedule_at <= $1 AND s.sealed
			AND EXISTS (SELECT FROM sends.delivery d WHERE d.send_id = s.send_id AND d.status = 'scheduled' AND d.play_at <= $1)
		ORDER BY s.schedule_at, s.send_id LIMIT $2`
	return refs(ctx, pool, "find due sends", query, by, limit)
}

// Unfinished lists sends of which no part was written since a moment and some are still missing: whoever wrote them may have died.
func Unfinished(ctx context.Context, pool *pgxpool.Pool, since time.Time, limit int) ([]Ref, error) {
	const query = `SELECT send_id, company_id, environment FROM sends.send WHERE parts_at < $1 ORDER BY parts_at, send_id LIMIT $2`
	return refs(ctx, pool, "find unfinished sends", query, since, limit)
}

func refs(ctx context.Context, pool *pgxpool.Pool, what, query string, args ...any) ([]Ref, error) {
	rows, _ := pool.Query(ctx, query, args...) // an error shows in rows
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Ref])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return found, nil
}

// OpenDelivery is a delivery that has not ended.
type OpenDelivery struct {
	delivery.Ref
	CompanyID   string
	Environment event.Environment
	Status      string
}

const openColumns = `d.send_id, s.audio_id, d.external_id, d.user_id, s.company_id, s.environment, d.status`

// Expired lists deliveries whose time is over, the oldest first. One that is playing is let finish.
func Expired(ctx context.Context, pool *pgxpool.Pool, now time.Time, limit int) ([]OpenDelivery, error) {
	const query = `SELECT ` + openColumns + ` FROM sends.delivery d JOIN sends.send s ON s.send_id = d.send_id
		WHERE d.status IN ('queued', 'delivered') AND d.expires_at <= $1 AND s.sealed
		ORDER BY d.expires_at LIMIT $2`
	return open(ctx, pool, "find expired deliveries", query, now, limit)
}

// OpenOf lists a send's deliveries that went out and have not ended, in the order of their user IDs and after one (0 is the beginning).
func OpenOf(ctx context.Context, pool *pgxpool.Pool, sendID string, afterUserID int64, limit int) ([]OpenDelivery, error) {
	const query = `SELECT ` + openColumns + ` FROM sends.delivery d JOIN sends.send s ON s.send_id = d.send_id
		WHERE d.send_id = $1 AND d.user_id > $2 AND d.status IN ('queued', 'delivered', 'playing')
		ORDER BY d.user_id LIMIT $3`
	return open(ctx, pool, "find a send's open deliveries", query, sendID, afterUserID, limit)
}

// OpenAt lists a location's deliveries that have not ended, those that did not go out yet too, the oldest send first.
func OpenAt(ctx context.Context, pool *pgxpool.Pool, companyID string, env event.Environment, userID int64, limit int) ([]OpenDelivery, error) {
	const query = `SELECT ` + openColumns + ` FROM sends.delivery d JOIN sends.send s ON s.send_id = d.send_id
		WHERE d.user_id = $3 AND d.status IN ('scheduled', 'queued', 'delivered', 'playing') AND s.company_id = $1 AND s.environment = $2
		ORDER BY s.position LIMIT $4`
	return open(ctx, pool, "find a location's open deliveries", query, companyID, env, userID, limit)
}

func open(ctx context.Context, pool *pgxpool.Pool, what, query string, args ...any) ([]OpenDelivery, error) {
	rows, _ := pool.Query(ctx, query, args...)
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (d OpenDelivery, err error) {
		err = row.Scan(&d.SendID, &d.AudioID, &d.ExternalID, &d.UserID, &d.CompanyID, &d.Environment, &d.Status)
		d.DeliveryID = delivery.ID(d.SendID, d.UserID)
		return d, err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return found, nil
}
