// Package storetest gives tests an event store: a node of their own test process, or the one that MUSIQUE_EVENTSTORE_URL names.
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

var shared struct {
	once sync.Once
	url  string
	err  error
}

// URL is the connection string of the test process's event store.
func URL(t testing.TB) string {
	t.Helper()
	shared.once.Do(func() {
		if shared.url = os.Getenv("MUSIQUE_EVENTSTORE_URL"); shared.url != "" {
			return
		}
		// The node lives as long as the process, so its folder is not a test's own; the system clears its temporary folder.
		dir, err := os.MkdirTemp("", "musique-events-")
		if err != nil {
			shared.err = err
			return
		}
		node, err := esnode.Start(esnode.Options{Dir: filepath.Join(dir, "events"), Listen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			shared.err = err
			return
		}
		shared.url = node.ConnectionString()
	})
	require.NoError(t, shared.err)
	return shared.url
}

// Open connects to the test process's event store; the test ends the connection.
func Open(t testing.TB) *eventstore.Store {
	t.Helper()
	store, err := eventstore.Open(URL(t), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	return store
}
