package postgres_test

import (
	"context"
	"log/slog"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/infra/postgres"
)

func startEmbedded(t *testing.T, dir string) *postgres.Embedded {
	t.Helper()
	server, err := postgres.StartEmbedded(t.Context(), postgres.EmbeddedOptions{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	return server
}

func query(t *testing.T, server *postgres.Embedded, statement string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, server.URL())
	require.NoError(t, err)
	defer conn.Close(ctx)
	var answer string
	require.NoError(t, conn.QueryRow(ctx, statement).Scan(&answer))
	return answer
}

func TestEmbeddedKeepsItsData(t *testing.T) {
	t.Parallel()
	// As os.MkdirTemp makes it: open to this user alone, so that a server under another user has to get through.
	dir, err := os.MkdirTemp("", "musique-embedded-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	dir += "/postgres"

	server := startEmbedded(t, dir)
	require.Equal(t, "1", query(t, server, "WITH made AS (SELECT 1) SELECT count(*)::text FROM made"))
	require.Equal(t, "kept", query(t, server, "SELECT set_config('musique.test', 'kept', false)"))
	conn, err := pgx.Connect(t.Context(), server.URL())
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), "CREATE TABLE kept AS SELECT 'kept' AS word")
	require.NoError(t, err)
	require.NoError(t, conn.Close(t.Context()))

	t.Run("a second program on the same folder is refused", func(t *testing.T) {
		_, err := postgres.StartEmbedded(t.Context(), postgres.EmbeddedOptions{Dir: dir, Log: slog.New(slog.DiscardHandler)})
		require.ErrorContains(t, err, "another program")
	})
	t.Run("a server that dies alone is started again", func(t *testing.T) {
		require.NoError(t, syscall.Kill(-server.PID(), syscall.SIGKILL))
		require.Eventually(t, func() bool {
			conn, err := pgx.Connect(t.Context(), server.URL())
			return err == nil && conn.Close(t.Context()) == nil
		}, 30*time.Second, 20*time.Millisecond)
		require.Equal(t, "kept", query(t, server, "SELECT word FROM kept"))
	})

	require.NoError(t, server.Stop())
	server = startEmbedded(t, dir)
	require.Equal(t, "kept", query(t, server, "SELECT word FROM kept"))
	require.NoError(t, server.Stop())
}
