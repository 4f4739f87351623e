// Package workers holds what reacts to events: dispatch by Kafka, delivery into the players' inboxes, the scheduler, expiry, cancellation, cleanup, the
// signing of the history and the sandbox's simulated players.
//
// Each worker is safe to run in any number of processes. Followers of the event store, and the workers that look at the clock, are active in one of them
// at a time and on standby in the others; delivery shares the dispatch topic's partitions.
package workers

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/blobs"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/postgres"
	"github.com/musique/musique/infra/telemetry"
	"github.com/musique/musique/workers/inbox"
)

const (
	// standbyPoll is how often a standby asks whether the active instance is gone, alivePoll how often the active one makes sure that it still is.
	standbyPoll = 500 * time.Millisecond
	alivePoll   = 2 * time.Second
	// lockTimeout bounds what is asked on a lock's connection.
	lockTimeout = 5 * time.Second
	// leaderLockClass is the first half of the advisory locks that make an instance the active one.
	leaderLockClass = 0x6d75736c
	// retryPause is the pause after a failure of a worker that looks at the clock.
	retryPause = time.Second
	// checkpointMoved is the SQLSTATE of workers.advance where the checkpoint is not where the instance left it.
	checkpointMoved = "MQ001"
	// unsynced makes a transaction's commit not wait for the disk.
	unsynced = "SELECT set_config('synchronous_commit', 'off', true)"
)

// Deps are the parts that workers work with.
type Deps struct {
	Store    *eventstore.Store
	Pool     *pgxpool.Pool
	Brokers  []string
	Commands *commands.Handlers
	Reads    Reads
	Blobs    *blobs.Store
	Hub      *inbox.Hub
	// Metrics count what the workers do; nil counts nothing.
	Metrics *Metrics
	Now     func() time.Time
	Log     *slog.Logger
}

//go:embed migrations/*.sql
var migrations embed.FS

// Migrate makes the workers' tables, or brings them up to date.
func Migrate(ctx context.Context, pool *pgxpool.Pool) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	return postgres.Migrate(ctx, pool, files, "workers_migrations")
}

// followedTypes are the events that the followers follow, by their names.
var followedTypes = map[string][]string{
	"dispatch":      {send.AudioSent{}.EventType(), send.BroadcastSealed{}.EventType()},
	"closer":        {delivery.Played{}.EventType(), delivery.Failed{}.EventType(), delivery.Expired{}.EventType(), delivery.Cancelled{}.EventType()},
	"cancellation":  {send.Cancelled{}.EventType(), location.Removed{}.EventType()},
	"endpoints":     {location.Registered{}.EventType(), location.Changed{}.EventType(), location.Removed{}.EventType()},
	"deleted-audio": {audio.Deleted{}.EventType()},
	"schedule": {
		send.Scheduled{}.EventType(), send.Rescheduled{}.EventType(), send.AudioSent{}.EventType(), send.BroadcastSealed{}.EventType(),
		send.BroadcastAbandoned{}.EventType(), send.Cancelled{}.EventType(),
	},
}

// errBeginAgain is a failure after which a follower has to find out anew where it is.
var errBeginAgain = errors.New("begin again")

// follower does something for each event of some types, once in effect: what it writes and how far it came are one transaction.
type follower struct {
	Deps
	name  string
	types []string // one of followedTypes
	// begin comes before the checkpoint is read, each time that this instance becomes the active one; nil does nothing.
	begin func(ctx context.Context) error
	// handle queues what it writes. It may also act at once, outside the transaction, if doing so twice is harmless: a failure after it has the same
	// page come again.
	handle func(ctx context.Context, batch *pgx.Batch, events []event.Recorded) error
}

// run follows until ctx ends.
func (f follower) run(ctx context.Context) error {
	return f.lead(ctx, f.name, func(ctx context.Context) error {
		if f.begin != nil {
			if err := f.begin(ctx); err != nil {
				return err
			}
		}
		at, err := f.checkpoint(ctx)
		if err != nil {
			return err
		}
		subscriber := eventstore.NewSubscriber(f.Store, eventstore.SubscriberConfig{
			Types: f.types, Checkpoint: func(context.Context) (event.Position, error) { return at, nil }, Log: f.Log,
			Hold: send.IsUnsealed,
		})
		defer subscriber.Close()
		pages, err := subscriber.Subscribe(ctx, f.name)
		if err != nil {
			return err
		}
		for msg := range pages {
			page := eventstore.PageOf(msg)
			if err := f.apply(ctx, at, page); err != nil {
				if moved, ok := errors.AsType[*pgconn.PgError](err); (ok && moved.Code == checkpointMoved) || errors.Is(err, errBeginAgain) {
					return err // it begins again from where the checkpoint is
				}
				if ctx.Err() == nil {
					f.Metrics.failed(f.name)
					f.Log.Error("a worker stops at a page of events and tries it again", "worker", f.name, "error", err)
				}
				msg.Nack()
				continue
			}
			at = page.Through
			msg.Ack()
		}
		return ctx.Err()
	})
}

// checkpoint is where the follower is, at the start if it never was anywhere.
func (f follower) checkpoint(ctx context.Context) (p event.Position, err error) {
	const begin = `
INSERT INTO workers.checkpoint AS c VALUES ($1, 0, 0) ON CONFLICT (follower) DO UPDATE SET follower = c.follower
RETURNING commit_position, prepare_position`
	err = f.Pool.QueryRow(ctx, begin, f.name).Scan(&p.Commit, &p.Prepare)
	return p, err
}

// apply writes what the page does and the checkpoint in one round trip, which is one transaction. It fails where the checkpoint is not at the position
// that this instance left it at.
func (f follower) apply(ctx context.Context, at event.Position, page eventstore.Page) (err error) {
	ctx, traced := telemetry.OnEvents(ctx, f.name, page.Events)
	defer func() { traced.End(err) }()
	batch := &pgx.Batch{}
	// What is lost of this when the server crashes is done again from the checkpoint that is lost with it.
	batch.Queue(unsynced)
	if len(page.Events) > 0 {
		if err := f.handle(ctx, batch, page.Events); err != nil {
			return err
		}
	}
	batch.Queue("SELECT workers.advance($1, $2, $3, $4, $5)", f.name, int64(at.Commit), int64(at.Prepare), int64(page.Through.Commit), int64(page.Through.Prepare))
	return f.Pool.SendBatch(ctx, batch).Close()
}

// lead runs work while this instance holds the lock of that name, and waits for the lock otherwise. The lock lies on a connection of its own: it goes
// with the process, and work ends when the connection does.
func (d Deps) lead(ctx context.Context, name string, work func(context.Context) error) error {
	for ctx.Err() == nil {
		if err := d.leadOnce(ctx, name, work); err != nil && ctx.Err() == nil {
			d.Metrics.failed(name)
			d.Log.Warn("a worker stopped; it starts again", "worker", name, "error", err)
		}
		select {
		case <-time.After(standbyPoll):
		case <-ctx.Done():
		}
	}
	return nil
}

func (d Deps) leadOnce(ctx context.Context, name string, work func(context.Context) error) error {
	dialCtx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(dialCtx, d.Pool.Config().ConnConfig)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(ctx) // it is given up either way
	}()
	for {
		var mine bool
		lockCtx, cancel := context.WithTimeout(ctx, lockTimeout)
		err := conn.QueryRow(lockCtx, "SELECT pg_try_advisory_lock($1, hashtext($2))", leaderLockClass, name).Scan(&mine)
		cancel()
		if err != nil {
			return fmt.Errorf("lock of %s: %w", name, err)
		}
		if mine {
			break
		}
		select {
		case <-time.After(standbyPoll):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	working, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	defer d.Metrics.leads(name)()
	go func() { done <- work(working) }()
	alive := time.NewTicker(alivePoll)
	defer alive.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-alive.C:
			pingCtx, cancel := context.WithTimeout(ctx, lockTimeout)
			err := conn.Ping(pingCtx)
			cancel()
			if err != nil {
				stop()
				return errors.Join(fmt.Errorf("the lock of %s is lost: %w", name, err), <-done)
			}
		}
	}
}

// every calls work, again at once while it says that there is more, else after the pause that it asks for, until ctx ends.
func (d Deps) every(ctx context.Context, name string, work func(context.Context) (pause time.Duration, err error)) error {
	return d.lead(ctx, name, func(ctx context.Context) error {
		for {
			pause, err := work(ctx)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				d.Metrics.failed(name)
				d.Log.Error("a worker failed and tries again", "worker", name, "error", err)
				pause = retryPause
			}
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
}
