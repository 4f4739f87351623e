package projections

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/eventstore"
)

const (
	// leadLockClass is the first half of the advisory lock that the one active instance of a projection holds; the second is its name's hash.
	leadLockClass = 0x6d757374
	// standbyEvery is how often an instance that stands by asks for the lead. It asks instead of waiting in the server, because a waiting
	// statement holds back the server's clean-up of dead rows.
	standbyEvery = 500 * time.Millisecond
	// pageTimeout bounds one page's transaction.
	pageTimeout = 60 * time.Second
	// noteTimeout bounds the writing of a note for operators (caught up, failing).
	noteTimeout = 5 * time.Second
	// checkpointMoved is the SQLSTATE of projections.advance where the checkpoint is not where the instance left it.
	checkpointMoved = "MQ001"
	// maxErrorBytes bounds the error that is kept for operators.
	maxErrorBytes = 2000
)

var (
	errLeadLost = errors.New("the database connection broke")
	// errMoved is that of a lead whose tables or checkpoint are not those that it began with: a rebuild took their place, a backup was restored. It begins again.
	errMoved = errors.New("the checkpoint moved meanwhile")
)

// lead is the right to write one projection: a connection that holds its advisory lock. Whatever ends the connection ends the lock, and with it the
// ability to write, so two leads cannot write at once; the checkpoint's compare-and-set holds even if they could.
type lead struct {
	projection Projection
	lost       chan struct{}

	mu       sync.Mutex // the connection does one thing at a time
	conn     *pgx.Conn
	isLost   bool
	position event.Position // the checkpoint
	// generation is that of the tables which the lead writes.
	generation int64
	// passed is told of an event that an operator had skipped, and of why it could not be applied. May be nil.
	passed func(e event.Recorded, err error)
}

// takeLead waits until this instance is the one to run the projection.
func takeLead(ctx context.Context, pool *pgxpool.Pool, p Projection) (*lead, error) {
	l, err := takeLock(ctx, pool, p)
	if err != nil {
		return nil, err
	}
	if err := l.begin(ctx); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// takeLock waits for the projection's lock. The lead is ready for pages once it has begun.
func takeLock(ctx context.Context, pool *pgxpool.Pool, p Projection) (*lead, error) {
	conn, err := connect(ctx, pool, map[string]string{
		"search_path":        pgx.Identifier{p.Name}.Sanitize(),
		"synchronous_commit": "off", // a page that a crash of the server loses, it loses with its checkpoint; it is applied again
		"application_name":   "musique projection " + p.Name,
		// Its statements find their rows by key. Until a table that grows fast has its first statistics, the planner takes it for empty and would read all
		// of it for each page.
		"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off",
	})
	if err != nil {
		return nil, err
	}
	l := &lead{projection: p, conn: conn, lost: make(chan struct{})}
	for {
		led, err := l.try(ctx)
		if err != nil {
			disconnect(conn)
			return nil, err
		}
		if led {
			return l, nil
		}
		select {
		case <-time.After(standbyEvery/2 + rand.N(standbyEvery)): //nolint:gosec // no secret
		case <-ctx.Done():
			disconnect(conn)
			return nil, ctx.Err()
		}
	}
}

// try asks for the lock.
func (l *lead) try(ctx context.Context) (led bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	err = l.conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1, hashtext($2))", leadLockClass, l.projection.Name).Scan(&led)
	return led, err
}

// begin reads where the projection is.
func (l *lead) begin(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	const begin = `
		INSERT INTO projections.checkpoint AS c (projection) VALUES ($1)
		ON CONFLICT (projection) DO UPDATE SET caught_up = false
		RETURNING commit_position, prepare_position, generation`
	return l.conn.QueryRow(ctx, begin, l.projection.Name).Scan(&l.position.Commit, &l.position.Prepare, &l.generation)
}

// at is where the projection is.
func (l *lead) at() event.Position {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.position
}

// close gives up the lead.
func (l *lead) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lose()
	disconnect(l.conn)
}

func (l *lead) lose() {
	if !l.isLost {
		l.isLost = true
		close(l.lost)
	}
}

// apply writes a page. Where that fails and the connection still works, it writes what stands before the event that cannot be applied, and tells which
// one that is; one that an operator had skipped it passes. It returns how many events it wrote.
func (l *lead) apply(ctx context.Context, page eventstore.Page) (applied int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.isLost {
		return 0, errLeadLost
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	err = l.write(ctx, page)
	if err == nil {
		return len(page.Events), nil
	}
	var failing *event.Recorded
	for _, e := range page.Events {
		if l.conn.IsClosed() || ctx.Err() != nil {
			break
		}
		if err = l.write(ctx, eventstore.Page{Events: []event.Recorded{e}, Through: e.Position}); err == nil {
			applied++
			continue
		}
		skipped, passErr := l.pass(ctx, e, err)
		if !skipped {
			failing, err = &e, fmt.Errorf("event %s (%s %d@%s): %w", e.ID, e.Type, e.Revision, e.Stream, errors.Join(err, passErr))
			break
		}
		err = nil
	}
	if err == nil { // one by one they work: only their position together is missing
		err = l.write(ctx, eventstore.Page{Through: page.Through})
	}
	if l.conn.IsClosed() {
		l.lose()
	} else if err != nil && ctx.Err() == nil {
		l.noteFailure(ctx, failing, err)
	}
	return applied, err
}

// noteFailure tells operators what the projection stands at; e is nil where that is no event.
func (l *lead) noteFailure(ctx context.Context, e *event.Recorded, err error) {
	const failure = `UPDATE projections.checkpoint SET error = $2, failing_since = coalesce(failing_since, now()),
		failing_event = $3, failing_type = $4, failing_stream = $5, failing_revision = $6 WHERE projection = $1 AND generation = $7`
	args := []any{l.projection.Name, truncated(err.Error()), nil, nil, nil, nil, l.generation}
	if e != nil {
		args = append(args[:2], pgtype.UUID{Bytes: e.ID, Valid: true}, e.Type, e.Stream, int64(e.Revision), l.generation)
	}
	_ = l.note(ctx, failure, args...) // what is answered is the failure itself
}

// pass moves the checkpoint past an event that cannot be applied, if an operator had it skipped. A version that is being built tries again what the serving
// one skipped, and passes it, which is recorded for it too, where that fails again.
func (l *lead) pass(ctx context.Context, e event.Recorded, cause error) (passed bool, err error) {
	if ended := l.conn.IsClosed() || ctx.Err() != nil; ended {
		return false, nil
	}
	const record = `
		INSERT INTO projections.skipped (projection, event_id, type, stream, revision, error, skipped_by, reason, skipped_at)
		SELECT $1, event_id, type, stream, revision, $4, skipped_by, reason, skipped_at FROM projections.skipped
		WHERE projection IN ($1, $2) AND event_id = $3 AND applied_at IS NULL ORDER BY projection = $1 DESC LIMIT 1
		ON CONFLICT (projection, event_id) DO UPDATE SET error = excluded.error`
	recorded, err := l.conn.Exec(ctx, record, l.projection.Name, l.projection.serving, pgtype.UUID{Bytes: e.ID, Valid: true}, truncated(cause.Error()))
	if err != nil || recorded.RowsAffected() == 0 {
		return false, err
	}
	if err := l.write(ctx, eventstore.Page{Through: e.Position}); err != nil {
		return false, err
	}
	if l.passed != nil {
		l.passed(e, cause)
	}
	return true, nil
}

// write is the one place where rows are written: rows, checkpoint and notification in one round trip, which is one transaction.
func (l *lead) write(ctx context.Context, page eventstore.Page) error {
	ctx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	for len(page.Events) > 0 && !l.position.Before(page.Events[0].Position) {
		page.Events = page.Events[1:] // written already
	}
	if !l.position.Before(page.Through) {
		return nil
	}
	batch := &pgx.Batch{} // without statements that begin or end one, a batch is one transaction
	if l.projection.Admits && len(page.Events) > 0 {
		batch.Queue("SELECT set_config('synchronous_commit', 'on', true)")
	}
	// The checkpoint comes first: a rebuild that takes the place of the tables holds it, so rows go neither into tables that are over nor, by a lead that is
	// over, into the new ones.
	batch.Queue("SELECT projections.advance($1, $2, $3, $4, $5, $6, $7)", l.projection.Name, int64(l.position.Commit), int64(l.position.Prepare),
		int64(page.Through.Commit), int64(page.Through.Prepare), l.generation, int64(len(page.Events)))
	if len(page.Events) > 0 {
		if err := l.projection.Apply(batch, page.Events); err != nil {
			return err
		}
	}
	if err := l.conn.SendBatch(ctx, batch).Close(); err != nil {
		if refused, ok := errors.AsType[*pgconn.PgError](err); ok && refused.Code == checkpointMoved {
			disconnect(l.conn) // somebody else moved it, a rebuild, a restored backup or an operator: begin again from where it is
			return fmt.Errorf("%w: %w", errMoved, err)
		}
		return err
	}
	l.position = page.Through
	return nil
}

// caughtUp notes for operators that the projection went live.
func (l *lead) caughtUp(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.isLost {
		return errLeadLost
	}
	return l.note(ctx, "UPDATE projections.checkpoint SET caught_up = true WHERE projection = $1 AND generation = $2 AND NOT caught_up", l.projection.Name, l.generation)
}

func (l *lead) note(ctx context.Context, statement string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, noteTimeout)
	defer cancel()
	_, err := l.conn.Exec(ctx, statement, args...)
	if l.conn.IsClosed() {
		l.lose()
	}
	return err
}

// check finds out whether the connection still lives and the tables are those that the lead began with, unless it is at work.
func (l *lead) check(ctx context.Context) {
	if !l.mu.TryLock() {
		return
	}
	defer l.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, noteTimeout)
	defer cancel()
	var generation int64
	err := l.conn.QueryRow(ctx, "SELECT generation FROM projections.checkpoint WHERE projection = $1", l.projection.Name).Scan(&generation)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && generation != l.generation {
		disconnect(l.conn)
	}
	if l.conn.IsClosed() {
		l.lose()
	}
}

func truncated(text string) string {
	if len(text) > maxErrorBytes {
		return strings.ToValidUTF8(text[:maxErrorBytes], "") + "…"
	}
	return text
}
