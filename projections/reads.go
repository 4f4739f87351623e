package projections

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/telemetry"
	"github.com/musique/musique/projections/locations"
	"github.com/musique/musique/projections/quotas"
	"github.com/musique/musique/projections/readmodel"
	"github.com/musique/musique/projections/sends"
	"github.com/musique/musique/projections/tokens"
)

// Reads answers what commands ask the read models: it is their commands.Reads.
type Reads struct {
	*Positions
	pool *pgxpool.Pool
}

var _ commands.Reads = (*Reads)(nil)

// NewReads makes reads over a pool, with the positions that WaitFor asks.
func NewReads(pool *pgxpool.Pool, positions *Positions) *Reads { return &Reads{positions, pool} }

// CompanyByTokenHash finds whose company token one of the hashes is. That of a suspended company is nobody's.
func (r *Reads) CompanyByTokenHash(ctx context.Context, hashes []string) (companyID string, found bool, err error) {
	c, found, err := tokens.CompanyByTokenHash(ctx, r.pool, hashes)
	return c.CompanyID, found, err
}

// TokenByHash finds a company's API token, revoked or not.
func (r *Reads) TokenByHash(ctx context.Context, companyID string, hashes []string) (tokenID string, found bool, err error) {
	return tokens.ByHash(ctx, r.pool, companyID, hashes)
}

// Destinations finds the locations that a send goes to, in the order of their external IDs, and the external IDs that are none.
func (r *Reads) Destinations(ctx context.Context, companyID string, env event.Environment, targets send.Targets) (found []send.Location, unknown []string, err error) {
	return locations.Destinations(ctx, r.pool, companyID, env, targets)
}

// PendingSends lists the sends of a piece of audio that were recorded before a position and are not finished.
func (r *Reads) PendingSends(ctx context.Context, companyID string, env event.Environment, audioID string, before event.Position) (sendIDs []string, err error) {
	return sends.Pending(ctx, r.pool, companyID, env, audioID, before)
}

// SendEnded reports whether every delivery of a send has ended.
func (r *Reads) SendEnded(ctx context.Context, sendID string) (bool, error) {
	return sends.Ended(ctx, r.pool, sendID)
}

// Delivery finds a delivery.
func (r *Reads) Delivery(ctx context.Context, companyID string, env event.Environment, deliveryID string) (known commands.KnownDelivery, found bool, err error) {
	ref, d, found, err := sends.FindDelivery(ctx, r.pool, companyID, env, deliveryID)
	known.Ref = ref
	known.TraceParent = telemetry.Followed(d.TraceParent, d.Destinations)
	if d.QueuedAt != nil {
		known.SentAt = *d.QueuedAt
	}
	if d.Status == string(delivery.StatusCancelled) {
		known.CancelledAt = d.EndedAt
	}
	return known, found, err
}

// OpenDeliveries lists the deliveries at a location that have not ended, of sends that were recorded before a position.
func (r *Reads) OpenDeliveries(ctx context.Context, companyID string, env event.Environment, userID int64, before event.Position) ([]delivery.Ref, error) {
	return sends.OpenAt(ctx, r.pool, companyID, env, userID, before)
}

// Quota tells what a company used in the calendar month (UTC) of a time.
func (r *Reads) Quota(ctx context.Context, companyID string, env event.Environment, month time.Time) (used commands.Used, err error) {
	batch := &pgx.Batch{}
	queueQuota(batch, companyID, env, month, &used)
	if err := r.pool.SendBatch(ctx, batch).Close(); err != nil {
		return commands.Used{}, fmt.Errorf("read the quotas: %w", err)
	}
	return used, nil
}

// Reserve holds room in a company's quotas, if there is. Used is what is used of them, with what is held for others.
func (r *Reads) Reserve(ctx context.Context, reservation commands.Reservation) (used commands.Used, reserved bool, err error) {
	return quotas.Reserve(ctx, r.pool, reservation)
}

// Release gives back the room that was held for what was not made, or that is counted as used by now.
func (r *Reads) Release(ctx context.Context, id string, made bool) error {
	return quotas.Release(ctx, r.pool, id, made)
}

// DestinationsAndQuota is Destinations and Quota in one round trip.
func (r *Reads) DestinationsAndQuota(ctx context.Context, companyID string, env event.Environment, targets send.Targets, month time.Time) (found []send.Location, unknown []string, used commands.Used, err error) {
	batch := &pgx.Batch{}
	locations.QueueDestinations(batch, companyID, env, targets, &found, &unknown)
	queueQuota(batch, companyID, env, month, &used)
	if err := r.pool.SendBatch(ctx, batch).Close(); err != nil {
		return nil, nil, commands.Used{}, fmt.Errorf("find the destinations and read the quotas: %w", err)
	}
	return found, unknown, used, nil
}

func queueQuota(batch *pgx.Batch, companyID string, env event.Environment, month time.Time, used *commands.Used) {
	const query = `SELECT
		coalesce((SELECT sends FROM sends.accepted WHERE company_id = $1 AND environment = $2 AND month = $3), 0),
		coalesce((SELECT uploads FROM audio.uploads WHERE company_id = $1 AND environment = $2 AND month = $3), 0),
		coalesce((SELECT bytes FROM audio.storage WHERE company_id = $1 AND environment = $2), 0)`
	batch.Queue(query, companyID, env, readmodel.Month(month)).QueryRow(func(row pgx.Row) error {
		return row.Scan(&used.Sends, &used.Uploads, &used.StorageBytes)
	})
}
