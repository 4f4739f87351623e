// Package storetest gives tests an event store: a node of their own test process, or the one that MUSIQUE_EVENTSTORE_URL names. Tests share it, so
// they use streams and event types, or companies, of their own.
package storetest

import (
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/infra/esnode"
	"github.com/musique/musique/infra/eventstore"
)

// shared is the node of the test process. It is there while a test uses it, and its folder goes with it.
var shared struct {
	mu    sync.Mutex
	users int
	dir   string
	node  *esnode.Node
}

// URL is the connection string of the test process's event store, which is there until the test ends.
func URL(t testing.TB) string {
	t.Helper()
	if url := os.Getenv("MUSIQUE_EVENTSTORE_URL"); url != "" {
		return url
	}
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.users == 0 {
		dir, err := os.MkdirTemp("", "musique-events-") // not a test's own folder: the node may outlive the test
		require.NoError(t, err)
		node, err := esnode.Start(esnode.Options{Dir: filepath.Join(dir, "events"), Listen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			_ = os.RemoveAll(dir) // the error below says more
		}
		require.NoError(t, err)
		shared.dir, shared.node = dir, node
	}
	shared.users++
	t.Cleanup(func() { leave(t) })
	return shared.node.ConnectionString()
}

func leave(t testing.TB) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.users--; shared.users > 0 {
		return
	}
	require.NoError(t, shared.node.Close())
	require.NoError(t, os.RemoveAll(shared.dir))
}

// Open connects to the test process's event store; the test ends the connection.
func Open(t testing.TB) *eventstore.Store {
	t.Helper()
	store, err := eventstore.Open(URL(t), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	return store
}
