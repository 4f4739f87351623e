package usagelogs

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/infra/postgres/postgrestest"
)

// A step is bounded, and what comes after it is not by that.
func TestAStepLeavesNoTimeoutBehind(t *testing.T) {
	t.Parallel()
	conn, err := postgrestest.New(t).Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	timeout := func() (setting string) {
		require.NoError(t, conn.QueryRow(t.Context(), `SHOW statement_timeout`).Scan(&setting))
		return setting
	}
	before := timeout()
	_, err = conn.Exec(t.Context(), `CREATE SCHEMA usage; CREATE TABLE usage.request_20200102 ()`)
	require.NoError(t, err)
	e := expired{table: "request_20200102"}
	require.NoError(t, e.advance(t.Context(), conn.Conn()))
	require.Equal(t, before, timeout())
	require.Error(t, e.advance(t.Context(), conn.Conn()), "it is gone")
	require.Equal(t, before, timeout())
}
