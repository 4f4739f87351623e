// Package postgrestest gives tests a PostgreSQL database of their own: on a server of the test process, or on the one that MUSIQUE_DATABASE_URL
// names.
package postgrestest

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/infra/postgres"
)

var shared struct {
	once sync.Once
	url  string
	err  error
}

// serverURL starts the test process's server. It lives as long as the process, whose end ends it.
func serverURL(t testing.TB) string {
	t.Helper()
	shared.once.Do(func() {
		if shared.url = os.Getenv("MUSIQUE_DATABASE_URL"); shared.url != "" {
			return
		}
		dir, err := os.MkdirTemp("", "musique-postgres-")
		if err != nil {
			shared.err = err
			return
		}
		server, err := postgres.StartEmbedded(context.Background(), postgres.EmbeddedOptions{Dir: dir, Disposable: true, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			shared.err = err
			return
		}
		shared.url = server.URL()
	})
	require.NoError(t, shared.err)
	return shared.url
}

// URL makes an empty database and gives its URL; the test drops it at its end.
func URL(t testing.TB) string {
	t.Helper()
	base := serverURL(t)
	name := "test_" + uuid.NewString()
	execute(t, base, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize())
	t.Cleanup(func() { execute(t, base, "DROP DATABASE "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)") })
	u, err := url.Parse(base)
	require.NoError(t, err)
	u.Path = "/" + name
	return u.String()
}

// New makes an empty database and a pool for it.
func New(t testing.TB) *pgxpool.Pool {
	t.Helper()
	pool, err := postgres.Connect(t.Context(), URL(t))
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

func execute(t testing.TB, url, statement string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	require.NoError(t, err)
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, statement)
	require.NoError(t, err)
}

// Tables lists a schema's tables but for the list of its migrations, the partitions, which are part of another, and those that are named.
func Tables(t require.TestingT, pool *pgxpool.Pool, schema string, without ...string) []string {
	rows, err := pool.Query(context.Background(), `SELECT relname FROM pg_class
		WHERE relnamespace = $1::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition AND relname <> ALL($2::text[]) ORDER BY relname`,
		schema, append([]string{"migrations"}, without...))
	require.NoError(t, err)
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return names
}

// Dump is every row of those tables as text, in an order of its own.
func Dump(t require.TestingT, pool *pgxpool.Pool, schema string, without ...string) string {
	ctx := context.Background()
	var out strings.Builder
	for _, table := range Tables(t, pool, schema, without...) {
		rows, err := pool.Query(ctx, fmt.Sprintf("SELECT r::text FROM %s r ORDER BY r::text", pgx.Identifier{schema, table}.Sanitize()))
		require.NoError(t, err)
		texts, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		fmt.Fprintf(&out, "%s: %d\n%s\n", table, len(texts), strings.Join(texts, "\n"))
	}
	return out.String()
}
