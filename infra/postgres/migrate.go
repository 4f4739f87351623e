package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
)

// migrateTimeout bounds Migrate as a whole, the wait for another process that migrates the same tables included.
const migrateTimeout = 10 * time.Minute

// migrateLockClass is the first half of the advisory lock that a migration holds; the second half is the hash of its table's name. It is an
// arbitrary number that nothing else in the project uses.
const migrateLockClass = 0x6d757371 // "musq"

// Migrate applies those of the goose migrations (*.sql in the root of migrations) that table, which goose makes, does not list as applied.
// Any number of processes may call it at the same moment: one does the work, the others wait for it and find nothing left to do.
func Migrate(ctx context.Context, pool *pgxpool.Pool, migrations fs.FS, table string) error {
	ctx, cancel := context.WithTimeout(ctx, migrateTimeout)
	defer cancel()

	// Connections of its own: a migration may take longer than a statement of a request is allowed to.
	config := pool.Config().ConnConfig
	config.RuntimeParams["statement_timeout"] = "0"
	config.RuntimeParams["lock_timeout"] = "0"
	config.RuntimeParams["idle_in_transaction_session_timeout"] = "0"
	db := stdlib.OpenDB(*config)
	defer db.Close()

	return locked(ctx, db, table, func() error {
		store, err := database.NewStore(database.DialectPostgres, table)
		if err != nil {
			return fmt.Errorf("migrations of %s: %w", table, err)
		}
		provider, err := goose.NewProvider(goose.DialectCustom, db, migrations, goose.WithStore(store), goose.WithDisableGlobalRegistry(true))
		if err != nil {
			return fmt.Errorf("migrations of %s: %w", table, err)
		}
		if _, err := provider.Up(ctx); err != nil {
			return fmt.Errorf("migrations of %s: %w", table, err)
		}
		return nil
	})
}

// locked calls do while holding the advisory lock for table on a session of its own. The lock goes with the session, so a killed process leaves none.
func locked(ctx context.Context, db *sql.DB, table string, do func() error) (err error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("migrations of %s: %w", table, err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if _, err := conn.ExecContext(ctx, "SELECT pg_advisory_lock($1, hashtext($2))", migrateLockClass, table); err != nil {
		return fmt.Errorf("migrations of %s: wait for another process's: %w", table, err)
	}
	defer func() {
		if _, unlockErr := conn.ExecContext(ctx, "SELECT pg_advisory_unlock($1, hashtext($2))", migrateLockClass, table); unlockErr != nil {
			err = errors.Join(err, fmt.Errorf("migrations of %s: unlock: %w", table, unlockErr))
		}
	}()
	return do()
}

// TryLockMigrations keeps migrations of table from running until tx ends, and reports false where one runs now.
func TryLockMigrations(ctx context.Context, tx pgx.Tx, table string) (locked bool, err error) {
	err = tx.QueryRow(ctx, "SELECT pg_try_advisory_xact_lock($1, hashtext($2))", migrateLockClass, table).Scan(&locked)
	return locked, err
}
