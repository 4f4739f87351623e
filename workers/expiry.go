package workers

import (
	"context"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/telemetry"
)

const (
	expiryPoll  = 500 * time.Millisecond
	expiryBatch = 500
	// playingGrace is how long after its expiry a delivery may still play; then its player is taken to have died amid it.
	playingGrace = time.Hour
	// enders is how many deliveries are ended at the same time; they share the store's syncs.
	enders = 32
)

// Expiry ends deliveries that were not played in time.
type Expiry struct{ Deps }

// NewExpiry makes the worker.
func NewExpiry(d Deps) *Expiry { return &Expiry{d} }

// Run expires deliveries until ctx ends.
func (w *Expiry) Run(ctx context.Context) error { return w.every(ctx, "expiry", w.expire) }

type overdue struct {
	CompanyID   string
	Environment event.Environment
	UserID      int64
	ExternalID  string
	DeliveryID  string
	AudioID     string
	Overdue     bool
	Reason      string // why the last attempt at the location's endpoint failed
	RequestID   string // of the request that made the send
	TraceParent string
}

func (w *Expiry) expire(ctx context.Context) (time.Duration, error) {
	// What an endpoint's answer has ended already is left to those who record that. The limit is a constant, by which the statement is planned for a few.
	query := `
SELECT i.company_id, i.environment, i.user_id, i.external_id, i.delivery_id, i.payload->>'audioId', i.overdue, coalesce(a.reason, ''),
	coalesce(i.payload->>'requestId', ''), coalesce(i.payload->>'traceparent', '')
FROM workers.inbox i LEFT JOIN workers.endpoint_attempt a ON a.delivery_id = i.delivery_id AND a.kind = 'deliver'
WHERE i.expires_at <= $1 AND i.kind = 'deliver' AND coalesce(a.state NOT IN ('played', 'failed') OR a.recorded, true)
ORDER BY i.expires_at LIMIT ` + strconv.Itoa(expiryBatch)
	rows, err := w.Pool.Query(ctx, query, w.Now())
	if err != nil {
		return 0, err
	}
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[overdue])
	if err != nil || len(found) == 0 {
		return expiryPoll, err
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(enders)
	ids := make([]string, len(found))
	for i, o := range found {
		ids[i] = o.DeliveryID
		sendID, userID, ok := delivery.ParseID(o.DeliveryID)
		if !ok {
			continue
		}
		group.Go(func() error {
			ctx, span := telemetry.Continue(telemetry.WithRequest(groupCtx, o.RequestID), o.TraceParent, "expire delivery")
			defer span.End()
			return w.Commands.ExpireDelivery.Handle(ctx, commands.ExpireDelivery{
				Caller: commands.Caller{CompanyID: o.CompanyID, Environment: o.Environment, Actor: "worker:expiry", RequestID: o.RequestID},
				Ref:    delivery.Ref{DeliveryID: o.DeliveryID, SendID: sendID, AudioID: o.AudioID, ExternalID: o.ExternalID, UserID: userID},
				Final:  o.Overdue, Reason: o.Reason,
			})
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	// Those that ended are on their way out by their events, perhaps at this moment, and are left alone then; what plays is looked at once more.
	const later = `
UPDATE workers.inbox SET overdue = true, expires_at = $2
WHERE seq IN (SELECT seq FROM workers.inbox WHERE delivery_id = ANY($1) AND kind = 'deliver' FOR UPDATE SKIP LOCKED)`
	_, err = w.Pool.Exec(ctx, later, ids, w.Now().Add(playingGrace))
	if err != nil {
		return 0, err
	}
	if len(found) == expiryBatch {
		return 0, nil
	}
	return expiryPoll, nil
}
