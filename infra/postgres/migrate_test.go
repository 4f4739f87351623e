package postgres_test

import (
	"context"
	"errors"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/infra/postgres"
	"github.com/musique/musique/infra/postgres/postgrestest"
)

// files makes migrations of SQL statements by file name.
func files(statements map[string]string) fstest.MapFS {
	fs := fstest.MapFS{}
	for name, statement := range statements {
		fs[name] = &fstest.MapFile{Data: []byte("-- +goose Up\n" + statement + ";\n")}
	}
	return fs
}

func TestManyProcessesMigrateAtOnce(t *testing.T) {
	t.Parallel()
	url := postgrestest.URL(t)
	shelves := files(map[string]string{"00001_shelves.sql": "CREATE TABLE shelves (id int)", "00002_one.sql": "INSERT INTO shelves VALUES (1)"})
	books := files(map[string]string{"00001_books.sql": "CREATE TABLE books (id int)", "00002_one.sql": "INSERT INTO books VALUES (1)"})
	var all errgroup.Group
	for range 6 {
		for table, migrations := range map[string]fstest.MapFS{"migrations_shelves": shelves, "migrations_books": books} {
			pool, err := postgres.Connect(t.Context(), url)
			require.NoError(t, err)
			t.Cleanup(pool.Close)
			all.Go(func() error { return postgres.Migrate(t.Context(), pool, migrations, table) })
		}
	}
	require.NoError(t, all.Wait())
	require.Equal(t, "1,1", ask(t, url, "SELECT (SELECT count(*) FROM shelves) || ',' || (SELECT count(*) FROM books)"), "each migration ran once")
}

func TestAMigrationThatFailsChangesNothingAndIsRepeated(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	broken := files(map[string]string{"00001_a.sql": "CREATE TABLE a (id int); SELECT nonsense"})
	require.ErrorContains(t, postgres.Migrate(t.Context(), pool, broken, "migrations_a"), "migrations of migrations_a")
	mended := files(map[string]string{"00001_a.sql": "CREATE TABLE a (id int)"})
	require.NoError(t, postgres.Migrate(t.Context(), pool, mended, "migrations_a"))
	require.NoError(t, postgres.Migrate(t.Context(), pool, mended, "migrations_a"), "nothing is left to do")
}

func TestAMigrationMayTakeLongerThanAStatement(t *testing.T) {
	t.Parallel()
	pool, err := postgres.Connect(t.Context(), postgrestest.URL(t)+"&statement_timeout=50")
	require.NoError(t, err)
	defer pool.Close()
	_, err = pool.Exec(t.Context(), "SELECT pg_sleep(0.2)")
	require.True(t, postgres.IsUnavailable(err), "%v", err)
	require.NoError(t, postgres.Migrate(t.Context(), pool, files(map[string]string{"00001_slow.sql": "SELECT pg_sleep(0.2)"}), "migrations_slow"))
}

func TestConnectSetsLimitsThatTheURLOverrides(t *testing.T) {
	t.Parallel()
	url := postgrestest.URL(t)
	pool, err := postgres.Connect(t.Context(), url)
	require.NoError(t, err)
	defer pool.Close()
	var statement, lock, transaction, zone string
	require.NoError(t, pool.QueryRow(t.Context(),
		`SELECT current_setting('statement_timeout'), current_setting('lock_timeout'), current_setting('idle_in_transaction_session_timeout'), current_setting('timezone')`,
	).Scan(&statement, &lock, &transaction, &zone))
	require.Equal(t, []string{"30s", "10s", "1min", "UTC"}, []string{statement, lock, transaction, zone})
	require.EqualValues(t, 24, pool.Config().MaxConns)

	told, err := postgres.Connect(t.Context(), url+"&pool_max_conns=3&connect_timeout=1&lock_timeout=7000")
	require.NoError(t, err)
	defer told.Close()
	require.NoError(t, told.QueryRow(t.Context(), `SELECT current_setting('lock_timeout')`).Scan(&lock))
	require.Equal(t, "7s", lock)
	require.EqualValues(t, 3, told.Config().MaxConns)
	require.Equal(t, time.Second, told.Config().ConnConfig.ConnectTimeout)

	_, err = postgres.Connect(t.Context(), "postgres://user:secret@host:port/")
	require.Error(t, err)
	require.NotContains(t, err.Error(), "secret")
}

func TestIsUnavailable(t *testing.T) {
	t.Parallel()
	server, err := postgres.StartEmbedded(t.Context(), postgres.EmbeddedOptions{Dir: tempDir(t), Disposable: true})
	require.NoError(t, err)
	pool, err := postgres.Connect(t.Context(), server.URL())
	require.NoError(t, err)
	defer pool.Close()
	run := func(ctx context.Context, statement string) error {
		_, err := pool.Exec(ctx, statement)
		return err
	}
	over, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	left, leave := context.WithCancel(t.Context())
	leave()

	require.NoError(t, run(t.Context(), "SELECT 1"))
	require.False(t, postgres.IsUnavailable(nil))
	require.False(t, postgres.IsUnavailable(errors.New("another")))
	require.False(t, postgres.IsUnavailable(pgx.ErrNoRows))
	require.False(t, postgres.IsUnavailable(run(t.Context(), "SELECT nonsense")), "the server refused the statement")
	require.False(t, postgres.IsUnavailable(run(t.Context(), "SELECT 1/0")))
	require.False(t, postgres.IsUnavailable(run(left, "SELECT 1")), "the caller went away")
	require.True(t, postgres.IsUnavailable(run(over, "SELECT pg_sleep(60)")), "no answer in time")
	require.True(t, postgres.IsUnavailable(run(t.Context(), "SELECT pg_terminate_backend(pg_backend_pid())")), "the session was ended")

	held, err := pool.Acquire(t.Context())
	require.NoError(t, err)
	defer held.Release()
	require.NoError(t, server.Stop(t.Context()))
	_, err = held.Exec(t.Context(), "SELECT 1")
	require.True(t, postgres.IsUnavailable(err), "an open connection to a server that went away: %v", err)
	_, err = held.Exec(t.Context(), "SELECT 1")
	require.True(t, postgres.IsUnavailable(err), "and again, on the broken connection: %v", err)
	require.True(t, postgres.IsUnavailable(run(t.Context(), "SELECT 1")), "a new connection")
	require.True(t, postgres.IsUnavailable(postgres.Migrate(t.Context(), pool, files(nil), "migrations_none")))
}
