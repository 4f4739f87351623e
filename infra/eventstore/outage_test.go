package eventstore_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/infra/esnode"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/eventstore/storetest"
)

// restartable is a node that can be away, and comes back on the same address with the same events.
type restartable struct {
	t    *testing.T
	dir  string
	addr string
	node *esnode.Node
}

func startNode(t *testing.T) *restartable {
	r := &restartable{t: t, dir: filepath.Join(t.TempDir(), "events"), addr: "127.0.0.1:0"}
	r.start()
	r.addr = r.node.Addr()
	t.Cleanup(r.stop)
	return r
}

func (r *restartable) start() {
	node, err := esnode.Start(esnode.Options{Dir: r.dir, Listen: r.addr, Log: slog.New(slog.DiscardHandler)})
	require.NoError(r.t, err)
	r.node = node
}

func (r *restartable) stop() { require.NoError(r.t, r.node.Close()) }

func (r *restartable) open() *eventstore.Store {
	store, err := eventstore.Open(r.node.ConnectionString(), slog.New(slog.DiscardHandler))
	require.NoError(r.t, err)
	return store
}

// numbered are writers that each append their own stream, one event after the other, whatever happens; each event is appended until it is
// certain that it is there.
func numbered(ctx context.Context, store *eventstore.Store, kind string, writers int) (stop func() (appended []int)) {
	var wait sync.WaitGroup
	var over atomic.Bool
	counts := make([]int, writers)
	for w := range writers {
		wait.Go(func() {
			for ; !over.Load(); counts[w]++ {
				e, expected := proposed(kind, counts[w]), eventstore.NoStream
				if counts[w] > 0 {
					expected = eventstore.Exact(uint64(counts[w] - 1))
				}
				for {
					_, err := store.Append(ctx, fmt.Sprintf("%s-%d", kind, w), expected, e)
					if err == nil {
						break
					}
					if !errors.Is(err, eventstore.ErrUnavailable) {
						panic(err)
					}
				}
			}
		})
	}
	return func() []int {
		over.Store(true)
		wait.Wait()
		return counts
	}
}

// The node goes away and comes back again and again while writers and a subscriber are at work: what was acknowledged is there once, in
// order, and the subscriber gets all of it once, in order.
func TestRestartUnderLoad(t *testing.T) {
	t.Parallel()
	node := startNode(t)
	store := node.open()
	defer store.Close()
	kind := newType()
	subscriber := eventstore.NewSubscriber(store, eventstore.SubscriberConfig{Types: []string{kind}})
	defer subscriber.Close()
	pages, err := subscriber.Subscribe(t.Context(), kind)
	require.NoError(t, err)
	const writers, restarts = 8, 4
	stop := numbered(t.Context(), store, kind, writers)

	next := map[string]int{}
	take := func() (events int) {
		msg := receive(t, pages)
		page := eventstore.PageOf(msg)
		for i, n := range numbers(t, page) {
			stream := page.Events[i].Stream
			require.Equal(t, next[stream], n, stream)
			next[stream]++
		}
		msg.Ack()
		return len(page.Events)
	}
	for range restarts {
		for seen := 0; seen < 100; {
			seen += take()
		}
		node.stop()
		node.start()
	}
	counts := stop()
	total, seen := 0, 0
	for w, count := range counts {
		total += count
		history, err := store.Load(t.Context(), fmt.Sprintf("%s-%d", kind, w))
		require.NoError(t, err)
		require.Len(t, history, count)
	}
	for _, n := range next {
		seen += n
	}
	for seen < total {
		seen += take()
	}
	require.Equal(t, total, seen)
}

// A store that is away for longer than the client looks for it is used again when it is back. While it is away calls are refused: at first after a
// short wait, then at once.
func TestStoreThatWasAway(t *testing.T) {
	t.Parallel()
	node := startNode(t)
	store := node.open()
	defer store.Close()
	_, err := store.Append(t.Context(), "away", eventstore.NoStream, proposed("Noted", 0))
	require.NoError(t, err)
	node.stop()

	calls := func() {
		var wait sync.WaitGroup
		for i := range 20 {
			wait.Go(func() {
				_, err := store.Append(t.Context(), fmt.Sprintf("lost-%d", i), eventstore.Any, proposed("Noted", 0))
				if !errors.Is(err, eventstore.ErrUnavailable) {
					t.Errorf("append: %v", err)
				}
				if _, err := store.Load(t.Context(), "away"); !errors.Is(err, eventstore.ErrUnavailable) {
					t.Errorf("load: %v", err)
				}
			})
		}
		wait.Wait()
	}
	began := time.Now()
	calls()
	require.Less(t, time.Since(began), 5*time.Second)
	began = time.Now()
	calls()
	_, err = store.Head(t.Context())
	require.ErrorIs(t, err, eventstore.ErrUnavailable)
	require.ErrorIs(t, store.Ping(t.Context()), eventstore.ErrUnavailable)
	require.Less(t, time.Since(began), time.Second)

	node.start()
	require.Eventually(t, func() bool { return store.Ping(t.Context()) == nil }, 10*time.Second, 10*time.Millisecond)
	history, err := store.Load(t.Context(), "away")
	require.NoError(t, err)
	require.Len(t, history, 1)
}

// A store that was never there makes no call wait longer than one that went away, and is used when it comes.
func TestStoreThatComesLater(t *testing.T) {
	t.Parallel()
	node := startNode(t)
	node.stop()
	store := node.open()
	defer store.Close()
	appended := make(chan error)
	go func() {
		_, err := store.Append(t.Context(), "later", eventstore.NoStream, proposed("Noted", 0))
		appended <- err
	}()
	node.start()
	require.NoError(t, <-appended)
}

// The answer to an append is lost with its connection: the append is sent again, with the same IDs, and counts once.
func TestLostAnswer(t *testing.T) {
	t.Parallel()
	between := storetest.NewProxy(t, storetest.URL(t))
	defer between.Close()
	store, err := eventstore.Open(between.URL(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	defer store.Close()
	direct, stream := storetest.Open(t), "lost-"+uuid.NewString()
	require.NoError(t, store.Ping(t.Context()))

	between.Silence()
	appended := make(chan error)
	go func() {
		_, err := store.Append(t.Context(), stream, eventstore.NoStream, proposed("Noted", 0), proposed("Noted", 1))
		appended <- err
	}()
	require.Eventually(t, func() bool {
		history, err := direct.Load(t.Context(), stream)
		return err == nil && len(history) == 2
	}, tooLong, time.Millisecond, "the node has heard it")
	between.Cut()
	require.NoError(t, <-appended)
	history, err := direct.Load(t.Context(), stream)
	require.NoError(t, err)
	require.Len(t, history, 2)
}

// A store that hears and does not answer holds no call for longer than its limit, and a caller that goes away not at all.
func TestSilentStore(t *testing.T) {
	t.Parallel()
	between := storetest.NewProxy(t, storetest.URL(t))
	defer between.Close()
	store, err := eventstore.Open(between.URL(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.NoError(t, store.Ping(t.Context()))
	between.Silence()

	began := time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	var wait sync.WaitGroup
	wait.Go(func() {
		_, err := store.Load(ctx, "silent")
		if !errors.Is(err, context.Canceled) || errors.Is(err, eventstore.ErrUnavailable) {
			t.Errorf("a caller that goes away: %v", err)
		}
	})
	cancel()
	wait.Wait()
	require.Less(t, time.Since(began), time.Second)
	for _, unavailable := range []func() error{
		func() error { _, err := store.Load(t.Context(), "silent"); return err },
		func() error {
			_, err := store.Append(t.Context(), "silent", eventstore.Any, proposed("Noted", 0))
			return err
		},
		func() error { return store.Ping(t.Context()) },
	} {
		wait.Go(func() {
			if err := unavailable(); !errors.Is(err, eventstore.ErrUnavailable) {
				t.Errorf("a silent store: %v", err)
			}
		})
	}
	wait.Wait()
	require.Less(t, time.Since(began), 7*time.Second)

	// Close ends what waits.
	wait.Go(func() {
		if _, err := store.Load(t.Context(), "silent"); !errors.Is(err, eventstore.ErrUnavailable) {
			t.Errorf("a closed store: %v", err)
		}
	})
	began = time.Now()
	require.NoError(t, store.Close())
	wait.Wait()
	require.Less(t, time.Since(began), 3*time.Second)
	require.ErrorIs(t, store.Ping(t.Context()), eventstore.ErrUnavailable)
}

// What a store and its subscribers started ends with them, outages under load included. Not parallel: it looks at the process's goroutines.
func TestNothingIsLeft(t *testing.T) { //nolint:paralleltest // see above
	const outages = 5
	node := startNode(t)
	store := node.open()
	kind := newType()
	subscriber := eventstore.NewSubscriber(store, eventstore.SubscriberConfig{Types: []string{kind}})
	pages, err := subscriber.Subscribe(t.Context(), kind)
	require.NoError(t, err)
	stop := numbered(t.Context(), store, kind, 64)
	for range outages {
		for seen := 0; seen < 100; {
			msg := receive(t, pages)
			seen += len(eventstore.PageOf(msg).Events)
			msg.Ack()
		}
		node.stop()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		require.ErrorIs(t, store.Ping(ctx), eventstore.ErrUnavailable)
		cancel()
		node.start()
	}
	stop()
	require.NotEmpty(t, ofClients())
	require.NoError(t, subscriber.Close())
	require.NoError(t, store.Close())
	require.EventuallyWithT(t, func(c *assert.CollectT) { assert.Empty(c, ofClients()) }, tooLong, 10*time.Millisecond)
}

// ofClients are the goroutines of this package, of the official client and of its gRPC connections; the test's own and the node's are not.
func ofClients() []string {
	buffer := make([]byte, 4<<20)
	var found []string
	for one := range strings.SplitSeq(string(buffer[:runtime.Stack(buffer, true)]), "\n\n") {
		switch {
		case strings.Contains(one, "testing.tRunner"):
		case strings.Contains(one, "/infra/eventstore."), strings.Contains(one, "/esdb."), strings.Contains(one, "grpcsync."), strings.Contains(one, "http2Client"):
			found = append(found, one)
		}
	}
	return found
}
