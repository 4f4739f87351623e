package workers

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/telemetry"
	"github.com/musique/musique/workers/inbox"
)

// External IDs of the sandbox whose simulated players do not simply play.
const (
	SimulatedOffline = "sim_offline" // never comes
	SimulatedFailure = "sim_fail"    // fails
	SimulatedSlow    = "sim_slow"    // takes its time
)

const (
	// slowness is how long a slow player lets each report wait.
	slowness       = 2 * time.Second
	simulatedBatch = 200
	simulatedPoll  = time.Second
)

// Simulator plays what is sent in the sandbox, where no one has players.
type Simulator struct{ Deps }

// NewSimulator makes the worker.
func NewSimulator(d Deps) *Simulator { return &Simulator{d} }

// Run plays until ctx ends.
func (w *Simulator) Run(ctx context.Context) error {
	wake, stop := w.Hub.SubscribeAll()
	defer stop()
	return w.lead(ctx, "simulator", func(ctx context.Context) error {
		seen := map[string]time.Time{} // what is being played, until when it is left alone
		var playing sync.WaitGroup
		defer playing.Wait()
		for {
			if err := w.play(ctx, seen, &playing); err != nil && ctx.Err() == nil {
				return err
			}
			select {
			case <-wake:
			case <-time.After(simulatedPoll):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
}

type simulated struct {
	CompanyID  string
	UserID     int64
	ExternalID string
	Payload    []byte
}

func (w *Simulator) play(ctx context.Context, seen map[string]time.Time, playing *sync.WaitGroup) error {
	now := w.Now()
	for id, until := range seen {
		if now.After(until) {
			delete(seen, id)
		}
	}
	const query = `
SELECT company_id, user_id, external_id, payload FROM workers.inbox i
WHERE environment = 'test' AND kind = 'deliver' AND NOT overdue AND expires_at > $1 AND external_id <> $2 AND coalesce(play_at, $1) <= $1
  AND NOT EXISTS (SELECT FROM workers.inbox_closed c WHERE c.delivery_id = i.delivery_id)
ORDER BY seq LIMIT $3`
	rows, err := w.Pool.Query(ctx, query, now, SimulatedOffline, simulatedBatch)
	if err != nil {
		return err
	}
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[simulated])
	if err != nil {
		return err
	}
	for _, s := range found {
		var d inbox.Delivery
		if err := json.Unmarshal(s.Payload, &d); err != nil {
			return fmt.Errorf("inbox item: %w", err)
		}
		if _, busy := seen[d.DeliveryID]; busy {
			continue
		}
		seen[d.DeliveryID] = now.Add(time.Minute)
		playing.Go(func() { w.report(ctx, s, d) })
	}
	return nil
}

func (w *Simulator) report(ctx context.Context, s simulated, d inbox.Delivery) {
	ctx, span := telemetry.Continue(telemetry.WithRequest(ctx, d.RequestID), d.TraceParent, "simulate player")
	defer span.End()
	statuses := []delivery.Status{delivery.StatusDelivered, delivery.StatusPlaying, delivery.StatusPlayed}
	if s.ExternalID == SimulatedFailure {
		statuses = []delivery.Status{delivery.StatusDelivered, delivery.StatusFailed}
	}
	for _, status := range statuses {
		if s.ExternalID == SimulatedSlow {
			select {
			case <-time.After(slowness):
			case <-ctx.Done():
				return
			}
		}
		_, err := w.Commands.ReportPlayback.Handle(ctx, commands.ReportPlayback{
			Caller: commands.Caller{CompanyID: s.CompanyID, Environment: event.Test, Actor: "worker:simulator", RequestID: d.RequestID},
			UserID: s.UserID, DeliveryID: d.DeliveryID, Status: string(status), Reason: "simulated failure",
		})
		if err != nil {
			if ctx.Err() == nil {
				w.Log.WarnContext(ctx, "a simulated player could not report; it tries again", "delivery", d.DeliveryID, "error", err)
			}
			return
		}
	}
}
