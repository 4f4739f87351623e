package eventstore_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/esnode"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/eventstore/storetest"
)

// following is a subscription and what it was given.
type following struct {
	config     eventstore.SubscriberConfig
	begin      event.Position
	subscriber *eventstore.Subscriber

	mu      sync.Mutex
	got     []uuid.UUID
	through event.Position
	moved   chan struct{} // closed when one of these has changed
}

// follow handles pages, one after the other; it refuses one of them once.
func follow(t require.TestingT, store *eventstore.Store, begin event.Position, config eventstore.SubscriberConfig, refused int) *following {
	config.Checkpoint = from(begin)
	f := &following{config: config, begin: begin, subscriber: eventstore.NewSubscriber(store, config), through: begin, moved: make(chan struct{})}
	pages, err := f.subscriber.Subscribe(context.Background(), "follower")
	require.NoError(t, err)
	go func() {
		count := 0
		for msg := range pages {
			if count++; count == refused {
				msg.Nack()
				continue
			}
			page := eventstore.PageOf(msg)
			f.mu.Lock()
			for _, e := range page.Events {
				f.got = append(f.got, e.ID)
			}
			f.through = page.Through
			close(f.moved)
			f.moved = make(chan struct{})
			f.mu.Unlock()
			msg.Ack()
		}
	}()
	return f
}

// after waits until everything up to a position was handled, and gives the events that were.
func (f *following) after(t require.TestingT, position event.Position) []uuid.UUID {
	timeout := time.After(tooLong)
	for {
		f.mu.Lock()
		got, there, moved := slices.Clone(f.got), !f.through.Before(position), f.moved
		f.mu.Unlock()
		if there {
			return got
		}
		select {
		case <-moved:
		case <-timeout:
			require.FailNow(t, "the follower does not get there", "%v of %v", f.through, position)
		}
	}
}

// Subscriptions of one store share a feed that keeps few events, or none. Whatever each follows, wherever it begins, whenever it comes, and however often
// the connection breaks, it gets each of its events once, in order, and its position passes all that there is.
func TestFollowersShareAFeed(t *testing.T) {
	t.Parallel()
	node, direct := storetest.URL(t), storetest.Open(t)
	rapid.Check(t, func(rt *rapid.T) {
		between := storetest.NewProxy(rt, node)
		defer between.Close()
		store, err := eventstore.Open(between.URL(), slog.New(slog.DiscardHandler))
		require.NoError(rt, err)
		defer store.Close()
		store.KeepInFeed(rapid.SampledFrom([]int{0, 600, 3_000, 1 << 20}).Draw(rt, "bytes"))
		start, err := direct.Head(t.Context())
		require.NoError(rt, err)
		kinds, streams := []string{newType(), newType(), newType()}, []string{uuid.NewString(), uuid.NewString()}
		var all []event.Recorded
		var followers []*following
		defer func() {
			for _, f := range followers {
				require.NoError(rt, f.subscriber.Close())
			}
			require.Zero(rt, store.Following(), "the feed ends with the last who leaves")
		}()
		for range rapid.IntRange(1, 10).Draw(rt, "steps") {
			switch rapid.SampledFrom([]string{"append", "append", "append", "follow", "follow", "cut"}).Draw(rt, "step") {
			case "append":
				for range rapid.IntRange(1, 20).Draw(rt, "events") {
					stream := rapid.SampledFrom(streams).Draw(rt, "stream")
					e := proposed(rapid.SampledFrom(kinds).Draw(rt, "kind"), len(all))
					at, err := direct.Append(t.Context(), stream, eventstore.Any, e) // not by the connection that is cut
					require.NoError(rt, err)
					all = append(all, event.Recorded{ID: e.ID, Stream: stream, Type: e.Payload.EventType(), Position: at})
				}
			case "follow":
				begin := start
				if len(all) > 0 && rapid.Bool().Draw(rt, "late") {
					begin = all[rapid.IntRange(0, len(all)-1).Draw(rt, "from")].Position
				}
				config := eventstore.SubscriberConfig{
					Types:      rapid.SliceOfNDistinct(rapid.SampledFrom(kinds), 1, 3, rapid.ID).Draw(rt, "types"),
					FilterHere: rapid.Bool().Draw(rt, "filter here"),
					MaxPage:    rapid.IntRange(1, 40).Draw(rt, "page"),
				}
				if rapid.Bool().Draw(rt, "skips") {
					config.SkipStreams = streams[0]
				}
				followers = append(followers, follow(rt, store, begin, config, rapid.IntRange(-5, 3).Draw(rt, "refused page")))
			case "cut":
				between.Cut()
			}
		}
		for _, f := range followers {
			var want []uuid.UUID
			for _, e := range all {
				if f.begin.Before(e.Position) && slices.Contains(f.config.Types, e.Type) && (f.config.SkipStreams == "" || e.Stream != f.config.SkipStreams) {
					want = append(want, e.ID)
				}
			}
			head, err := direct.HeadFor(t.Context(), f.config)
			require.NoError(rt, err)
			require.Equal(rt, want, f.after(rt, head))
		}
	})
}

// A follower that stands still for long falls behind the feed, and the feed goes on for the others. It gets what it missed by itself.
func TestASlowFollowerFallsBehindTheFeed(t *testing.T) {
	t.Parallel()
	store, err := eventstore.Open(storetest.URL(t), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	defer store.Close()
	store.KeepInFeed(10_000)
	kind := newType()
	start, err := store.Head(t.Context())
	require.NoError(t, err)
	slow := eventstore.NewSubscriber(store, eventstore.SubscriberConfig{Types: []string{kind}, Checkpoint: from(start), MaxPage: 50})
	defer slow.Close()
	pages, err := slow.Subscribe(t.Context(), "slow")
	require.NoError(t, err)
	quick := follow(t, store, start, eventstore.SubscriberConfig{Types: []string{kind}}, 0)
	defer quick.subscriber.Close()

	var want []int
	var last event.Position
	var inHand *message.Message
	for n := range 500 {
		last, err = store.Append(t.Context(), "noted-"+kind, eventstore.Any, proposed(kind, n))
		require.NoError(t, err)
		want = append(want, n)
		if n == 0 {
			inHand = receiveEvents(t, pages)
		}
	}
	require.Len(t, quick.after(t, last), len(want), "it does not wait for the slow one")
	got := numbers(t, eventstore.PageOf(inHand))
	for inHand.Ack(); len(got) < len(want); {
		msg := receive(t, pages)
		got = append(got, numbers(t, eventstore.PageOf(msg))...)
		msg.Ack()
	}
	require.Equal(t, want, got)
}

// nodeOf is a node of a test's own, and a store on it.
func nodeOf(t *testing.T) (node *esnode.Node, direct *eventstore.Store) {
	t.Helper()
	node, err := esnode.Start(esnode.Options{Dir: filepath.Join(t.TempDir(), "events"), Listen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, node.Close()) })
	direct, err = eventstore.Open(node.ConnectionString(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, direct.Close()) })
	return node, direct
}

// The feed began on a node of a cluster that was further than the one that a follower comes to. What that node has yet to get is the follower's when it is there.
func TestAFollowerComesToANodeThatIsBehind(t *testing.T) {
	t.Parallel()
	kind := newType()
	ahead, onAhead := nodeOf(t)
	behind, onBehind := nodeOf(t)
	write := func(to *eventstore.Store, n int) (at event.Position, id uuid.UUID) {
		e := proposed(kind, n)
		at, err := to.Append(t.Context(), "noted", eventstore.Any, e)
		require.NoError(t, err)
		return at, e.ID
	}
	var end event.Position
	for n := range 5 {
		end, _ = write(onAhead, n)
	}
	var want []uuid.UUID
	more := func(from, to int) (at event.Position) {
		var id uuid.UUID
		for n := from; n < to; n++ {
			at, id = write(onBehind, n)
			want = append(want, id)
		}
		return at
	}
	first := more(0, 2)

	between := storetest.NewProxy(t, ahead.ConnectionString())
	defer between.Close()
	store, err := eventstore.Open(between.URL(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	defer store.Close()
	began := follow(t, store, event.Position{}, eventstore.SubscriberConfig{Types: []string{kind}}, 0)
	defer began.subscriber.Close()
	require.Len(t, began.after(t, end), 5)

	between.Lead(behind.ConnectionString())
	live := make(chan struct{}, 10)
	late := follow(t, store, event.Position{}, eventstore.SubscriberConfig{Types: []string{kind}, OnCaughtUp: func() { live <- struct{}{} }}, 0)
	defer late.subscriber.Close()
	require.Equal(t, want, late.after(t, first))
	<-live
	require.Equal(t, end, more(2, 5), "the nodes have the same positions")
	require.Equal(t, want, late.after(t, end))
}

// The store's own events are nobody's, whatever stream they stand in.
func TestTheEndOfAStreamIsNotGivenOut(t *testing.T) {
	t.Parallel()
	node, store := nodeOf(t)
	store.KeepInFeed(0)
	settings, err := esdb.ParseConnectionString(node.ConnectionString())
	require.NoError(t, err)
	client, err := esdb.NewClient(settings)
	require.NoError(t, err)
	defer client.Close()
	var want []uuid.UUID
	var end event.Position
	for n, stream := range []string{"noted-1", "noted-2"} {
		e := proposed(newType(), n)
		end, err = store.Append(t.Context(), stream, eventstore.Any, e)
		require.NoError(t, err)
		if want = append(want, e.ID); n == 0 {
			_, err = client.TombstoneStream(t.Context(), stream, esdb.TombstoneStreamOptions{ExpectedRevision: esdb.Any{}})
			require.NoError(t, err)
		}
	}
	all := follow(t, store, event.Position{}, eventstore.SubscriberConfig{SkipStreams: "usage-"}, 0)
	defer all.subscriber.Close()
	require.Equal(t, want, all.after(t, end))
}
