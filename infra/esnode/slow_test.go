package esnode

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"
	"github.com/stretchr/testify/require"
)

// Clients that begin to read and then do not receive keep no view of the store: it would keep what is overwritten, merged and flushed meanwhile
// on the disk and in memory, for each of them.
func TestSlowClientsHoldNoView(t *testing.T) {
	t.Parallel()
	node, err := Start(Options{Dir: t.TempDir(), Listen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, node.Close()) })
	config, err := esdb.ParseConnectionString(node.ConnectionString())
	require.NoError(t, err)
	config.Logger = nil
	client, err := esdb.NewClient(config)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)

	const clients, large = 12, 512 << 10
	write := func(stream string) {
		event := esdb.EventData{EventType: "Large", ContentType: esdb.ContentTypeBinary, Data: make([]byte, large)}
		_, err := client.AppendToStream(ctx, stream, esdb.AppendToStreamOptions{ExpectedRevision: esdb.Any{}}, event)
		require.NoError(t, err)
	}
	for range 16 { // more than the windows of HTTP/2 take
		write("read")
	}
	for i := range clients {
		switch i % 4 {
		case 0:
			_, err = client.ReadStream(ctx, "read", esdb.ReadStreamOptions{From: esdb.Start{}}, 1<<20)
		case 1:
			_, err = client.ReadAll(ctx, esdb.ReadAllOptions{From: esdb.Start{}}, 1<<20)
		case 2:
			_, err = client.SubscribeToStream(ctx, "read", esdb.SubscribeToStreamOptions{From: esdb.Start{}})
		case 3:
			_, err = client.SubscribeToAll(ctx, esdb.SubscribeToAllOptions{From: esdb.Start{}})
		}
		require.NoError(t, err)
		write(fmt.Sprintf("other-%d", i))
	}
	require.Eventually(t, func() bool { return node.store.db.Metrics().Snapshots.Count == 1 }, 10*time.Second, 10*time.Millisecond,
		"only the newest view is kept")

	closed := make(chan error, 1)
	go func() { closed <- node.Close() }()
	select {
	case err := <-closed:
		require.NoError(t, err)
	case <-time.After(10 * time.Second):
		t.Fatal("a node waits for clients that do not receive")
	}
}
