// Package quotas holds room in the monthly quotas for what is being made. The read models count what was made; what several callers make at the same moment
// none of them counts yet, and without a reservation all would find the same room.
package quotas

import (
	"context"
	"embed"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/projections/readmodel"
)

// Migrations make the table, in the schema quota.
//
//go:embed migrations/*.sql
var Migrations embed.FS

const (
	// heldFor is how long room is held for a command of which nothing is heard any more: longer than any takes.
	heldFor = 5 * time.Minute
	// lockClass is the first half of the advisory locks under which a company's reservations are made, one after the other.
	lockClass = 0x6d757371
)

//go:embed reserve.sql
var reserve string

// Reserve holds room, if there is enough of each quota. Used is what is used of the quotas, with what is held for others.
func Reserve(ctx context.Context, pool *pgxpool.Pool, r commands.Reservation) (used commands.Used, reserved bool, err error) {
	batch := &pgx.Batch{} // one round trip and one transaction, in which a statement sees what was committed before it began
	batch.Queue(`SELECT pg_advisory_xact_lock($1, hashtext($2))`, lockClass, r.CompanyID+"/"+string(r.Environment))
	batch.Queue(`DELETE FROM quota.reservation WHERE company_id = $1 AND environment = $2 AND at < $3`, r.CompanyID, r.Environment, r.At.Add(-heldFor))
	batch.Queue(reserve, r.CompanyID, r.Environment, readmodel.Month(r.At), r.ID, r.At, r.More.Sends, r.More.Uploads, r.More.StorageBytes,
		r.Limits.Sends, r.Limits.Uploads, r.Limits.StorageBytes).QueryRow(func(row pgx.Row) error {
		return row.Scan(&used.Sends, &used.Uploads, &used.StorageBytes, &reserved)
	})
	if err := pool.SendBatch(ctx, batch).Close(); err != nil {
		return commands.Used{}, false, fmt.Errorf("reserve room in the quotas: %w", err)
	}
	return used, reserved, nil
}

// Release gives back the room of what was not made, or of what the read models count by now. Where they do not yet, it is held until they do.
func Release(ctx context.Context, pool *pgxpool.Pool, id string, made bool) error {
	const release = `DELETE FROM quota.reservation r WHERE r.id = $1 AND (NOT $2
		OR EXISTS (SELECT FROM sends.send s WHERE s.send_id = r.id AND s.sealed) OR EXISTS (SELECT FROM audio.item i WHERE i.audio_id = r.id))`
	if _, err := pool.Exec(ctx, release, id, made); err != nil {
		return fmt.Errorf("release room in the quotas: %w", err)
	}
	return nil
}
