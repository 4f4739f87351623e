package workers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/send"
)

const (
	// schedulerPoll is how often the scheduler looks for sends that are due; a send is on the schedule long before it is.
	schedulerPoll = 200 * time.Millisecond
	// dueBatch bounds the sends that are started between two looks.
	dueBatch = 100
)

// Scheduler starts scheduled sends when they are due. What is due is in a table that follows the events; starting is a command that happens once
// however many schedulers try.
type Scheduler struct{ Deps }

// NewScheduler makes the worker.
func NewScheduler(d Deps) *Scheduler { return &Scheduler{d} }

// Follow keeps the schedule until ctx ends.
func (w *Scheduler) Follow(ctx context.Context) error {
	return follower{
		Deps: w.Deps, name: "schedule", types: followedTypes["schedule"],
		handle: w.handle,
	}.run(ctx)
}

// Run starts what is due until ctx ends.
func (w *Scheduler) Run(ctx context.Context) error { return w.every(ctx, "scheduler", w.start) }

func (w *Scheduler) handle(_ context.Context, batch *pgx.Batch, events []event.Recorded) error {
	open := map[string]bool{} // the broadcasts of the page that are noted: each has many parts
	for _, e := range events {
		var p struct {
			SendID     string    `json:"sendId"`
			ScheduleAt time.Time `json:"scheduleAt"`
			Unsealed   bool      `json:"unsealed"`
		}
		if err := json.Unmarshal(e.Data, &p); err != nil {
			return fmt.Errorf("read %s %d@%s: %w", e.Type, e.Revision, e.Stream, err)
		}
		if p.Unsealed && !open[p.SendID] {
			open[p.SendID] = true
			batch.Queue(`INSERT INTO workers.open_broadcast VALUES ($1, $2) ON CONFLICT DO NOTHING`, p.SendID, e.Metadata.Time)
		}
		switch e.Type {
		case send.Scheduled{}.EventType():
			batch.Queue(`INSERT INTO workers.schedule VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, p.SendID, p.ScheduleAt.Add(-send.Lead), !p.Unsealed)
		case send.Rescheduled{}.EventType():
			batch.Queue(`UPDATE workers.schedule SET due_at = $2 WHERE send_id = $1`, p.SendID, p.ScheduleAt.Add(-send.Lead))
		case send.BroadcastSealed{}.EventType():
			batch.Queue(`DELETE FROM workers.open_broadcast WHERE send_id = $1`, p.SendID)
			batch.Queue(`UPDATE workers.schedule SET sealed = true WHERE send_id = $1`, p.SendID)
		case send.BroadcastAbandoned{}.EventType():
			delete(open, p.SendID) // it may be begun anew
			batch.Queue(`DELETE FROM workers.open_broadcast WHERE send_id = $1`, p.SendID)
			batch.Queue(`DELETE FROM workers.schedule WHERE send_id = $1`, p.SendID)
		case send.Cancelled{}.EventType():
			batch.Queue(`DELETE FROM workers.schedule WHERE send_id = $1`, p.SendID)
		}
	}
	return nil
}

func (w *Scheduler) start(ctx context.Context) (time.Duration, error) {
	rows, err := w.Pool.Query(ctx, `SELECT send_id, due_at FROM workers.schedule WHERE sealed AND due_at <= $1 ORDER BY due_at LIMIT $2`, w.Now(), dueBatch)
	if err != nil {
		return 0, err
	}
	due, err := pgx.CollectRows(rows, pgx.RowToStructByPos[dueSend])
	if err != nil {
		return 0, err
	}
	var failed error
	for _, d := range due {
		if err := w.startOne(ctx, d); err != nil {
			failed = errors.Join(failed, fmt.Errorf("start %s: %w", d.SendID, err))
		}
	}
	if len(due) == dueBatch && failed == nil {
		return 0, nil
	}
	return schedulerPoll, failed
}

// dueSend is a send on the schedule whose time has come.
type dueSend struct {
	SendID string
	DueAt  time.Time
}

// startOne starts a send and notes when to come again. The time is left as it is if it is another by now: the send was changed since, and is not due.
func (w *Scheduler) startOne(ctx context.Context, due dueSend) error {
	next, more, err := w.Commands.StartScheduledSend.Handle(ctx, commands.StartScheduledSend{SendID: due.SendID})
	if err != nil {
		return err
	}
	if more {
		_, err = w.Pool.Exec(ctx, `UPDATE workers.schedule SET due_at = $3 WHERE send_id = $1 AND due_at = $2`, due.SendID, due.DueAt, next)
		return err
	}
	_, err = w.Pool.Exec(ctx, `DELETE FROM workers.schedule WHERE send_id = $1`, due.SendID)
	return err
}
