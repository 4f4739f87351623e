package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/postgres"
)

const (
	// nextSuffix and oldSuffix make the names of the schema that a rebuild fills and of the one that it took the place of.
	nextSuffix, oldSuffix = "_next", "_old"
	// lookEvery is how often a process looks which rebuilds are wanted.
	lookEvery = time.Second
	// swapEvery is how often a version that caught up tries to take its place.
	swapEvery = 500 * time.Millisecond
	// swapTimeout bounds one such try, and the last of its wait for events. The serving version, and who waits for it to pass a position, wait as long.
	swapTimeout, swapWait = 3 * time.Second, 2 * time.Second
	// swapRest is how long at most it rests after a try that failed: each keeps the serving version waiting.
	swapRest = 30 * time.Second
	// nearEnough is how many events a version may find at once to be near enough to the end for a try.
	nearEnough = 500
	// dropTries is how often a rebuild tries to drop the tables that it replaced, for which it waits for those who read them still.
	dropTries = 5
	// lockNotAvailable is the SQLSTATE of a wait for a lock that took too long.
	lockNotAvailable = "55P03"
)

// Unknown is the error for the name of no projection.
func Unknown(name string) error { return fault.New(fault.NotFound, "There is no projection %q.", name) }

// known reports, as Unknown, that a name is that of no projection.
func known(name string) error {
	if !slices.ContainsFunc(All(), func(p Projection) bool { return p.Name == name }) {
		return Unknown(name)
	}
	return nil
}

// StartRebuild has a process that runs projections build a new version of a read model beside the serving one, which it takes the place of when it has caught
// up. A rebuild that is under way goes on, and one that was paused, or whose process died, goes on from its checkpoint; fresh throws away what it had built.
// Errors: Unknown.
func StartRebuild(ctx context.Context, pool *pgxpool.Pool, name string, fresh bool) error {
	if err := known(name); err != nil {
		return err
	}
	const start = `INSERT INTO projections.rebuild AS r (projection, building, fresh, begun_at) VALUES ($1, true, $2, now())
		ON CONFLICT (projection) DO UPDATE SET building = true, fresh = r.fresh OR excluded.fresh`
	if _, err := pool.Exec(ctx, start, name, fresh); err != nil {
		return fmt.Errorf("rebuild %s: %w", name, err)
	}
	return nil
}

// PauseRebuild has a rebuild stop where it is, within a second or so. One that is not there, because it has ended, is none to pause. Errors: Unknown.
func PauseRebuild(ctx context.Context, pool *pgxpool.Pool, name string) error {
	if err := known(name); err != nil {
		return err
	}
	if _, err := pool.Exec(ctx, `UPDATE projections.rebuild SET building = false WHERE projection = $1`, name); err != nil {
		return fmt.Errorf("pause the rebuild of %s: %w", name, err)
	}
	return nil
}

// next is the version of the projection that is built beside it.
func (p Projection) next() Projection {
	p.serving = p.Name
	p.Name += nextSuffix
	return p
}

// rebuild builds what is wanted, until ctx ends.
func (r *Runner) rebuild(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	type build struct {
		cancel context.CancelFunc
		done   chan struct{}
	}
	builds := map[string]build{}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		if wanted, err := r.wanted(ctx); err == nil { // while the database is away nothing is built, and the projections tell that it is
			for name, b := range builds {
				select {
				case <-b.done:
					delete(builds, name)
				default:
					if !slices.Contains(wanted, name) {
						b.cancel()
					}
				}
			}
			for _, p := range r.config.Projections {
				if _, known := builds[p.Name]; known || !slices.Contains(wanted, p.Name) {
					continue
				}
				ctx, cancel := context.WithCancel(ctx)
				b := build{cancel, make(chan struct{})}
				builds[p.Name] = b
				running.Go(func() {
					defer close(b.done)
					defer cancel()
					(&builder{runner: r, serving: p, next: p.next(), log: r.config.Log.With("projection", p.Name+nextSuffix)}).run(ctx)
				})
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (r *Runner) wanted(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	rows, _ := r.config.Pool.Query(ctx, `SELECT projection FROM projections.rebuild WHERE building`) // an error shows in rows
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// builder builds the new version of one read model. Of the builders of a read model one is at work in all processes together, as of projections.
type builder struct {
	runner        *Runner
	serving, next Projection
	log           *slog.Logger

	failing bool // at the page that it was given last
}

// run builds until the new version serves, nobody wants it any more, or ctx ends.
func (b *builder) run(ctx context.Context) {
	for failures := 0; ctx.Err() == nil; failures++ {
		began := time.Now()
		ended, err := b.lead(ctx)
		if ended || ctx.Err() != nil {
			return
		}
		if time.Since(began) > leadCheckEvery {
			failures = 0
		}
		if !errors.Is(err, errStartAgain) {
			b.log.Warn("the rebuild broke off; it goes on from its checkpoint", "error", err)
		}
		pause(ctx, failures)
	}
}

var (
	// errStartAgain ends a lead whose tables are to be made anew.
	errStartAgain = errors.New("the rebuild starts again from nothing")
	// errNotYet says that this is not the moment for the new version to take its place.
	errNotYet = errors.New("not yet")
	// errEnded ends a lead whose subscription is over.
	errEnded = errors.New("the subscription ended")
)

// lead waits for its turn and builds as long as it lasts. Ended says that there is nothing left to do.
func (b *builder) lead(ctx context.Context) (ended bool, err error) {
	lead, err := takeLock(ctx, b.runner.config.Pool, b.next)
	if err != nil {
		return false, err
	}
	defer lead.close()
	if wanted, err := b.prepare(ctx); err != nil || !wanted {
		return err == nil, err
	}
	if err := lead.begin(ctx); err != nil {
		return false, err
	}
	b.log.Info("a rebuild is under way", "position", lead.at().Commit)
	lead.passed = (&instance{runner: b.runner, projection: b.next, log: b.log}).passed

	defer b.runner.metrics.stopped.WithLabelValues(b.next.Name).Set(0)
	caughtUp := make(chan struct{}, 1)
	config := b.serving.events()
	config.Log, config.Hold = b.log, send.IsUnsealed
	config.Checkpoint = func(context.Context) (event.Position, error) { return lead.at(), nil }
	config.OnCaughtUp = func() {
		select {
		case caughtUp <- struct{}{}:
		default:
		}
	}
	subscriber := eventstore.NewSubscriber(b.runner.config.Store, config)
	defer func() { _ = subscriber.Close() }() // it always returns nil
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pages, err := subscriber.Subscribe(ctx, b.next.Name)
	if err != nil {
		return false, err
	}
	look, try := time.NewTicker(lookEvery), time.NewTicker(swapEvery)
	defer look.Stop()
	defer try.Stop()
	tidy, near := false, true
	var notYet int
	var next time.Time // when to try to take the place
	for {
		select {
		case page, open := <-pages:
			if !open {
				return false, errEnded
			}
			near = b.take(lead, page) <= nearEnough
		case <-caughtUp:
			if !tidy {
				if err := lead.tidy(ctx); err != nil {
					return false, err
				}
				tidy = true
			}
		case <-try.C:
			if !tidy || !near || b.failing || time.Now().Before(next) {
				near = true // unless the next page has many again
				continue
			}
			switch err := b.swap(ctx, lead, pages); {
			case err == nil:
				b.log.Info("the rebuilt read model serves", "position", lead.at().Commit)
				b.drop(ctx)
				return true, nil
			case !errors.Is(err, errNotYet):
				return false, err
			}
			next = time.Now().Add(min(swapEvery<<notYet, swapRest))
			notYet = min(notYet+1, 16)
		case <-look.C:
			if fresh, err := b.fresh(ctx); fresh || err != nil {
				return false, errors.Join(err, errStartAgain)
			}
			lead.check(ctx)
		case <-lead.lost:
			return false, errLeadLost
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// take applies the page of a message, and tells how many events it wrote.
func (b *builder) take(l *lead, page *message.Message) (applied int) {
	name, m := b.next.Name, b.runner.metrics
	applied, err := l.apply(page.Context(), eventstore.PageOf(page))
	m.events.WithLabelValues(name).Add(float64(applied))
	m.position.WithLabelValues(name).Set(float64(l.at().Commit))
	if b.failing = err != nil; err == nil {
		m.stopped.WithLabelValues(name).Set(0)
		page.Ack()
		return applied
	}
	if page.Context().Err() == nil {
		m.failures.WithLabelValues(name).Inc()
		m.stopped.WithLabelValues(name).Set(1)
		b.log.Error("the rebuild stands still: its next events cannot be applied", "error", err)
	}
	page.Nack()
	return applied
}

// fresh says that what is built is to be thrown away.
func (b *builder) fresh(ctx context.Context) (fresh bool, err error) {
	err = b.runner.config.Pool.QueryRow(ctx, `SELECT coalesce((SELECT fresh FROM projections.rebuild WHERE projection = $1), false)`, b.serving.Name).Scan(&fresh)
	return fresh, err
}

// prepare makes the tables, unless they are there from before. It reports false where the rebuild is not wanted any more: it was paused, or another process
// finished it while this one stood by.
func (b *builder) prepare(ctx context.Context) (wanted bool, err error) {
	pool := b.runner.config.Pool
	var fresh, there bool
	const ask = `SELECT fresh, to_regnamespace($2) IS NOT NULL AND EXISTS (SELECT FROM projections.checkpoint WHERE projection = $2)
		FROM projections.rebuild WHERE projection = $1 AND building`
	if err := pool.QueryRow(ctx, ask, b.serving.Name, b.next.Name).Scan(&fresh, &there); err != nil {
		if errors.Is(err, pgx.ErrNoRows) {
			return false, nil
		}
		return false, err
	}
	serving, err := tablesVersion(ctx, pool, b.serving.Name)
	if err != nil {
		return false, err
	}
	if there && !fresh {
		built, err := tablesVersion(ctx, pool, b.next.Name)
		// Tables of an older version of the program would be brought up to date without what the newer one would have written from the beginning.
		if err != nil || built >= serving {
			return err == nil, err
		}
	}
	if err := b.clear(ctx); err != nil {
		return false, err
	}
	if err := migrateSchema(ctx, pool, b.next.Name, b.next.Migrations); err != nil {
		return false, err
	}
	if built, err := tablesVersion(ctx, pool, b.next.Name); err != nil || built < serving {
		return false, errors.Join(err, errors.New("this process is of an older version than the tables that serve"))
	}
	return true, pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if err := b.carry(ctx, tx); err != nil {
			return err
		}
		// With the checkpoint the tables count as there.
		_, err := tx.Exec(ctx, `INSERT INTO projections.checkpoint (projection) VALUES ($1)`, b.next.Name)
		return err
	})
}

// clear throws away what an earlier rebuild left.
func (b *builder) clear(ctx context.Context) error {
	return pgx.BeginFunc(ctx, b.runner.config.Pool, func(tx pgx.Tx) error {
		batch := &pgx.Batch{}
		batch.Queue(`DROP SCHEMA IF EXISTS ` + pgx.Identifier{b.next.Name}.Sanitize() + ` CASCADE`)
		batch.Queue(`DROP SCHEMA IF EXISTS ` + pgx.Identifier{b.serving.Name + oldSuffix}.Sanitize() + ` CASCADE`)
		batch.Queue(`DELETE FROM projections.checkpoint WHERE projection = $1`, b.next.Name)
		batch.Queue(`DELETE FROM projections.skipped WHERE projection = $1`, b.next.Name)
		batch.Queue(`UPDATE projections.rebuild SET fresh = false WHERE projection = $1`, b.serving.Name)
		return tx.SendBatch(ctx, batch).Close()
	})
}

func (b *builder) carry(ctx context.Context, tx pgx.Tx) error {
	if b.serving.Carry == nil {
		return nil
	}
	now, err := b.serving.Carry(ctx, tx, b.serving.Name, b.next.Name)
	if err == nil && !now {
		err = errNotYet
	}
	return err
}

// rower is a pool or a transaction.
type rower interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// tablesVersion is the number of the last migration of a schema's tables.
func tablesVersion(ctx context.Context, db rower, schema string) (version int64, err error) {
	err = db.QueryRow(ctx, `SELECT coalesce(max(version_id), 0) FROM `+pgx.Identifier{schema, "migrations"}.Sanitize()).Scan(&version)
	return version, err
}

// swap puts the new version in the place of the serving one. It holds the serving one's checkpoint, takes what the new one lacks, and then has the schemas change
// their names, and the checkpoint its row, in one transaction: readers find the one or the other, and PostgreSQL looks the names of their prepared statements up anew.
// Who writes the serving version waits for its checkpoint meanwhile, and finds that its generation is over.
func (b *builder) swap(ctx context.Context, l *lead, pages <-chan *message.Message) error {
	ctx, cancel := context.WithTimeout(ctx, swapTimeout)
	defer cancel()
	err := pgx.BeginFunc(ctx, b.runner.config.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT set_config('lock_timeout', '1s', true)`); err != nil {
			return err
		}
		if err := b.sameTables(ctx, tx); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `INSERT INTO projections.checkpoint (projection) VALUES ($1) ON CONFLICT DO NOTHING`, b.serving.Name); err != nil {
			return err
		}
		var served event.Position
		const hold = `SELECT commit_position, prepare_position FROM projections.checkpoint WHERE projection = $1 FOR UPDATE`
		if err := tx.QueryRow(ctx, hold, b.serving.Name).Scan(&served.Commit, &served.Prepare); err != nil {
			return err
		}
		through, err := b.reach(ctx, l, pages, served)
		if err != nil {
			return err
		}
		if err := b.carry(ctx, tx); err != nil {
			return err
		}
		return b.exchange(ctx, tx, through)
	})
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok && refused.Code == lockNotAvailable {
		return fmt.Errorf("%w: %w", errNotYet, err)
	}
	return err
}

// reach takes pages until the new version has everything that the serving one has, which stands where it is meanwhile. It gives the position that both have
// passed: past events that they are not sent, the positions of the two may differ for good.
func (b *builder) reach(ctx context.Context, l *lead, pages <-chan *message.Message, served event.Position) (event.Position, error) {
	look := time.NewTicker(swapWait / 10)
	defer look.Stop()
	enough := time.After(swapWait)
	for l.at().Before(served) {
		head, err := b.runner.config.Store.HeadFor(ctx, b.serving.events())
		if err != nil {
			return event.Position{}, err
		}
		if !l.at().Before(head) {
			return served, nil
		}
		select {
		case page, open := <-pages:
			if !open {
				return event.Position{}, errEnded
			}
			if b.take(l, page); b.failing {
				return event.Position{}, errNotYet
			}
		case <-look.C:
		case <-enough:
			return event.Position{}, errNotYet
		case <-l.lost:
			return event.Position{}, errLeadLost
		case <-ctx.Done():
			return event.Position{}, ctx.Err()
		}
	}
	return l.at(), nil
}

// sameTables holds back migrations until the transaction ends, and refuses a version whose tables are older than those that serve.
func (b *builder) sameTables(ctx context.Context, tx pgx.Tx) error {
	for _, schema := range []string{b.serving.Name, b.next.Name} {
		if held, err := postgres.TryLockMigrations(ctx, tx, schema+".migrations"); err != nil || !held {
			return errors.Join(err, errNotYet)
		}
	}
	serving, err := tablesVersion(ctx, tx, b.serving.Name)
	if err != nil {
		return err
	}
	built, err := tablesVersion(ctx, tx, b.next.Name)
	if err != nil {
		return err
	}
	if built < serving {
		return fmt.Errorf("its tables are of version %d and those that serve of %d: %w", built, serving, errStartAgain)
	}
	return nil
}

// exchange gives the schemas each other's place.
func (b *builder) exchange(ctx context.Context, tx pgx.Tx, through event.Position) error {
	serving, next, old := pgx.Identifier{b.serving.Name}.Sanitize(), pgx.Identifier{b.next.Name}.Sanitize(), pgx.Identifier{b.serving.Name + oldSuffix}.Sanitize()
	batch := &pgx.Batch{}
	batch.Queue(`ALTER SCHEMA ` + serving + ` RENAME TO ` + old)
	batch.Queue(`ALTER SCHEMA ` + next + ` RENAME TO ` + serving)
	const checkpoint = `
		WITH built AS (DELETE FROM projections.checkpoint WHERE projection = $2 RETURNING events, window_at, window_events, rate)
		UPDATE projections.checkpoint c SET commit_position = $3, prepare_position = $4, generation = c.generation + 1, rebuilt_at = now(),
			events = built.events, window_at = built.window_at, window_events = built.window_events, rate = built.rate, error = NULL, failing_since = NULL,
			failing_event = NULL, failing_type = NULL, failing_stream = NULL, failing_revision = NULL
		FROM built WHERE c.projection = $1`
	batch.Queue(checkpoint, b.serving.Name, b.next.Name, int64(through.Commit), int64(through.Prepare))
	// What the new version applied is skipped no more. What it passed too it has recorded with who skipped it.
	batch.Queue(`UPDATE projections.skipped s SET applied_at = now() WHERE projection = $1 AND applied_at IS NULL
		AND NOT EXISTS (SELECT FROM projections.skipped n WHERE n.projection = $2 AND n.event_id = s.event_id)`, b.serving.Name, b.next.Name)
	batch.Queue(`DELETE FROM projections.skipped s USING projections.skipped n WHERE s.projection = $1 AND n.projection = $2 AND n.event_id = s.event_id`, b.serving.Name, b.next.Name)
	batch.Queue(`UPDATE projections.skipped SET projection = $1 WHERE projection = $2`, b.serving.Name, b.next.Name)
	batch.Queue(`DELETE FROM projections.rebuild WHERE projection = $1`, b.serving.Name)
	batch.Queue(`SELECT pg_notify('projection', format('%s %s %s', $1::text, $2::bigint, $3::bigint))`, b.serving.Name, int64(through.Commit), int64(through.Prepare))
	return tx.SendBatch(ctx, batch).Close()
}

// drop drops the tables that served before. It waits for those who read them still; what it cannot drop, the next rebuild does. The connection of the lead may be
// gone, so it is not the one.
func (b *builder) drop(ctx context.Context) {
	for failures := range dropTries {
		try, cancel := context.WithTimeout(ctx, swapTimeout)
		_, err := b.runner.config.Pool.Exec(try, `DROP SCHEMA IF EXISTS `+pgx.Identifier{b.serving.Name + oldSuffix}.Sanitize()+` CASCADE`)
		cancel()
		if err == nil {
			return
		}
		b.log.Warn("the tables that a rebuild replaced cannot be dropped yet", "error", err)
		pause(ctx, failures)
	}
}

// tidy gathers statistics of tables that were just filled, and marks their pages as visible to all, so that statements are as fast on them as on those that serve.
func (l *lead) tidy(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.isLost {
		return errLeadLost
	}
	const list = `SELECT c.relname FROM pg_class c WHERE c.relnamespace = to_regnamespace($1) AND c.relkind IN ('r', 'p') AND NOT c.relispartition`
	rows, _ := l.conn.Query(ctx, list, l.projection.Name) // an error shows in rows
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err == nil {
		_, err = l.conn.Exec(ctx, `SET statement_timeout = 0`)
	}
	for _, table := range tables {
		if err == nil {
			_, err = l.conn.Exec(ctx, `VACUUM (ANALYZE) `+pgx.Identifier{l.projection.Name, table}.Sanitize())
		}
	}
	if err == nil {
		_, err = l.conn.Exec(ctx, `RESET statement_timeout`)
	}
	if l.conn.IsClosed() {
		l.lose()
	}
	return err
}
