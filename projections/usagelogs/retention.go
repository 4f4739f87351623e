package usagelogs

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// week is what a partition holds, from Thursday to Thursday, as the Unix epoch was one.
	week = 7 * 24 * time.Hour
	// dropTimeout bounds DropExpired as a whole.
	dropTimeout = 20 * time.Second
	// stepTimeout bounds one step: the wait for those who read requests now and may still see the week, during which nothing is locked.
	stepTimeout = 3 * time.Second
	// finalizeTimeout bounds the step that keeps the projection from making a new week meanwhile. It is below PostgreSQL's deadlock_timeout (1 s): the two
	// may wait for each other, and this one gives way before PostgreSQL would have the other do so.
	finalizeTimeout = 700 * time.Millisecond
	// dropLock is the advisory lock of who drops.
	dropLock = 0x6d757377
	// closeTimeout bounds the goodbye to the server, the lock's included.
	closeTimeout = time.Second
)

// The SQLSTATEs of a statement that ran out of time, and of one that waited for a lock for too long.
const (
	queryCanceled    = "57014"
	lockNotAvailable = "55P03"
)

// ErrNotYet says that weeks that are over are there still, because somebody reads them or drops them at this moment; a later call finds out.
var ErrNotYet = errors.New("usage logs that are over cannot be dropped yet")

// DropExpired drops the weeks of which each request is older than Retention. It keeps neither the projection nor lists waiting: a week is detached while
// both go on (DETACH PARTITION CONCURRENTLY, from PostgreSQL 14 on) and then dropped, and what a call left half done, because it took too long or its
// process died, is finished by the next. Any number of processes may call it at once; one of them drops.
func DropExpired(ctx context.Context, pool *pgxpool.Pool, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, dropTimeout)
	defer cancel()
	before := weekOf(now.Add(-Retention))
	var kept bool
	if err := pool.QueryRow(ctx, `SELECT since = $1 FROM usage.kept`, before).Scan(&kept); err != nil {
		return fmt.Errorf("drop usage logs: %w", err)
	}
	if _, found, err := findExpired(ctx, pool, before); err != nil || kept && !found {
		return err
	}
	config := pool.Config().ConnConfig
	config.RuntimeParams["application_name"] = "musique usage logs"
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return fmt.Errorf("drop usage logs: %w", err)
	}
	var mine bool
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		if mine { // the server ends the session, and with it the lock, some time after it was closed: the next call may come before
			_, _ = conn.Exec(ctx, `SELECT pg_advisory_unlock($1)`, dropLock)
		}
		_ = conn.Close(ctx) // it is given up either way
	}()
	if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, dropLock).Scan(&mine); err != nil {
		return fmt.Errorf("drop usage logs: %w", err)
	}
	if !mine {
		return fmt.Errorf("%w: another process is at it", ErrNotYet)
	}
	if err := keep(ctx, conn, before); err != nil {
		return err
	}
	for {
		e, found, err := findExpired(ctx, conn, before)
		if err != nil {
			return err
		}
		if !found {
			return keep(ctx, conn, before)
		}
		if err := e.advance(ctx, conn); err != nil {
			return err
		}
	}
}

// keep has requests written from a time on, and none of weeks that are on their way out: they have no place. It goes back with the clock too: one that was
// ahead for a while must not keep requests out until it is right. Who has the lock calls it, so that no week is on its way out that it does not see.
func keep(ctx context.Context, conn *pgx.Conn, since time.Time) error {
	const update = `
		UPDATE usage.kept SET since = k.since FROM (
			SELECT greatest($1::timestamptz, max(to_date(right(c.relname, 8), 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC') + $2::interval) AS since
			FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
			WHERE c.relnamespace = 'usage'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^request_[0-9]{8}$' AND (NOT c.relispartition OR i.inhdetachpending)
		) k WHERE kept.since <> k.since`
	if _, err := conn.Exec(ctx, update, since, week); err != nil {
		return fmt.Errorf("keep usage logs: %w", err)
	}
	return nil
}

// Carry has a rebuild keep out what was dropped, and keeps weeks from being dropped, by name, while it changes places with the tables.
func Carry(ctx context.Context, tx pgx.Tx, from, to string) (now bool, err error) {
	if err := tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock($1)`, dropLock).Scan(&now); err != nil || !now {
		return false, err
	}
	_, err = tx.Exec(ctx, `UPDATE `+pgx.Identifier{to, "kept"}.Sanitize()+` SET since = (SELECT since FROM `+pgx.Identifier{from, "kept"}.Sanitize()+`)`)
	return err == nil, err
}

// expired is a week that is over, and how far it is on its way out.
type expired struct {
	table    string
	attached bool // it is a partition still
	pending  bool // its detachment was begun, and may be finished only
}

// querier is a pool or a connection.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// findExpired finds a week that begins before a time, or is on its way out already, even if the clock has been set back since. What is nearer to its end
// comes first: of one table, PostgreSQL detaches one partition at a time.
func findExpired(ctx context.Context, db querier, before time.Time) (e expired, found bool, err error) {
	const query = `
		SELECT c.relname, c.relispartition, coalesce(i.inhdetachpending, false) AS pending
		FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
		WHERE c.relnamespace = 'usage'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^request_[0-9]{8}$'
			AND (c.relname < $1 OR NOT c.relispartition OR i.inhdetachpending)
		ORDER BY c.relispartition, pending DESC, c.relname LIMIT 1`
	err = db.QueryRow(ctx, query, before.Format("request_20060102")).Scan(&e.table, &e.attached, &e.pending)
	if errors.Is(err, pgx.ErrNoRows) {
		return expired{}, false, nil
	}
	if err != nil {
		return expired{}, false, fmt.Errorf("find usage logs that are over: %w", err)
	}
	return e, true, nil
}

// advance takes the week one step further.
func (e expired) advance(ctx context.Context, conn *pgx.Conn) error {
	table := pgx.Identifier{"usage", e.table}.Sanitize()
	statement, limit := `DROP TABLE `+table, stepTimeout
	switch {
	case e.pending:
		statement, limit = `ALTER TABLE usage.request DETACH PARTITION `+table+` FINALIZE`, finalizeTimeout
	case e.attached:
		statement = `ALTER TABLE usage.request DETACH PARTITION ` + table + ` CONCURRENTLY`
	}
	// It bounds a statement from its beginning to its end, whatever that waits for. A detachment cannot be in a transaction, so each statement is one.
	if _, err := conn.Exec(ctx, `SELECT set_config('statement_timeout', $1, false)`, strconv.FormatInt(limit.Milliseconds(), 10)); err != nil {
		return fmt.Errorf("drop usage logs: %w", err)
	}
	_, err := conn.Exec(ctx, statement)
	if _, reset := conn.Exec(ctx, `RESET statement_timeout`); err == nil && reset != nil { // what comes next has as long as it takes
		err = reset
	}
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok && (refused.Code == queryCanceled || refused.Code == lockNotAvailable) {
		return fmt.Errorf("%w: %s: %w", ErrNotYet, e.table, err)
	}
	if err != nil {
		return fmt.Errorf("drop usage logs: %s: %w", e.table, err)
	}
	return nil
}

// weekOf is when the week of a time began.
func weekOf(at time.Time) time.Time {
	seconds := int64(week / time.Second)
	n := at.Unix() / seconds
	if at.Unix()%seconds < 0 {
		n--
	}
	return time.Unix(n*seconds, 0).UTC()
}
