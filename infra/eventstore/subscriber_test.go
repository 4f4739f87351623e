package eventstore_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/esnode"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/eventstore/storetest"
)

// tooLong is when a test gives up waiting.
const tooLong = 20 * time.Second

// newType is an event type that no other test uses.
func newType() string { return "Noted" + strings.ReplaceAll(uuid.NewString(), "-", "") }

// from is a checkpoint that stays where it is.
func from(position event.Position) func(context.Context) (event.Position, error) {
	return func(context.Context) (event.Position, error) { return position, nil }
}

func receive(t require.TestingT, pages <-chan *message.Message) *message.Message {
	select {
	case msg, ok := <-pages:
		require.True(t, ok, "the subscription ended")
		return msg
	case <-time.After(tooLong):
		require.FailNow(t, "no page came")
		return nil
	}
}

// receiveEvents passes over pages that only move the position.
func receiveEvents(t require.TestingT, pages <-chan *message.Message) *message.Message {
	for {
		msg := receive(t, pages)
		if len(eventstore.PageOf(msg).Events) > 0 {
			return msg
		}
		msg.Ack()
	}
}

// numbers are what a page's events carry, to see their order.
func numbers(t require.TestingT, page eventstore.Page) []int {
	var all []int
	for _, e := range page.Events {
		var n noted
		require.NoError(t, json.Unmarshal(e.Data, &n))
		all = append(all, n.Number)
	}
	return all
}

// Whatever happens in whatever order (events appended, pages acknowledged and refused, connections broken), the subscriber gives each event once
// in order, and a refused page again.
func TestSubscriberGivesEveryEventOnceInOrder(t *testing.T) {
	t.Parallel()
	node := storetest.URL(t)
	rapid.Check(t, func(rt *rapid.T) {
		between := storetest.NewProxy(rt, node)
		defer between.Close()
		store, err := eventstore.Open(between.URL(), slog.New(slog.DiscardHandler))
		require.NoError(rt, err)
		defer store.Close()
		start, err := store.Head(t.Context())
		require.NoError(rt, err)
		kind, appended, acked, waits := newType(), 0, 0, 0
		add := func() {
			for range rapid.IntRange(1, 4).Draw(rt, "events") {
				// What only begins with, or contains, the name that was asked for must not come.
				_, err := store.Append(t.Context(), "noted-"+kind, eventstore.Any,
					proposed(kind+".v2", -1), proposed(kind, appended), proposed("Un"+kind, -1))
				require.NoError(rt, err)
				appended++
			}
		}
		if rapid.Bool().Draw(rt, "there before") {
			add()
		}
		subscriber := eventstore.NewSubscriber(store, eventstore.SubscriberConfig{
			Types:      []string{kind, "Another"},
			FilterHere: rapid.Bool().Draw(rt, "filter here"),
			MaxPage:    rapid.IntRange(1, 5).Draw(rt, "page"),
			Checkpoint: from(start),
		})
		defer subscriber.Close()
		pages, err := subscriber.Subscribe(t.Context(), kind)
		require.NoError(rt, err)

		// next gives the next page with events, and checks that it goes on where the last acknowledged one ended.
		next := func() (*message.Message, eventstore.Page) {
			msg := receiveEvents(rt, pages)
			page := eventstore.PageOf(msg)
			for i, n := range numbers(rt, page) {
				require.Equal(rt, acked+i, n)
			}
			require.False(rt, page.Through.Before(page.Events[len(page.Events)-1].Position))
			return msg, page
		}
		for range rapid.IntRange(0, 12).Draw(rt, "steps") {
			switch step := rapid.SampledFrom([]string{"append", "append", "ack", "ack", "nack", "cut"}).Draw(rt, "step"); {
			case step == "append":
				add()
			case step == "ack" && acked < appended:
				msg, page := next()
				acked += len(page.Events)
				msg.Ack()
			case step == "nack" && acked < appended && waits < 2: // each costs a pause
				msg, page := next()
				msg.Nack()
				again, samePage := next()
				require.Equal(rt, page, samePage)
				acked += len(page.Events)
				again.Ack()
				waits++
			case step == "cut" && waits < 2:
				between.Cut()
				waits++
			}
		}
		for acked < appended {
			msg, page := next()
			acked += len(page.Events)
			msg.Ack()
		}
		require.NoError(rt, subscriber.Close())
		for msg := range pages { // the subscriber had begun to offer it
			require.Empty(rt, eventstore.PageOf(msg).Events, "nothing comes twice")
		}
	})
}

func TestCheckpoint(t *testing.T) {
	t.Parallel()
	store := storetest.Open(t)

	t.Run("what is handled when a page is refused does not come again", func(t *testing.T) {
		t.Parallel()
		kind := newType()
		start, err := store.Head(t.Context())
		require.NoError(t, err)
		batch := []event.Proposed{proposed(kind, 0), proposed(kind, 1), proposed(kind, 2)}
		_, err = store.Append(t.Context(), "noted-"+kind, eventstore.NoStream, batch...)
		require.NoError(t, err)
		history, err := store.Load(t.Context(), "noted-"+kind)
		require.NoError(t, err)

		var checkpoint atomic.Pointer[event.Position]
		checkpoint.Store(&start)
		subscriber := eventstore.NewSubscriber(store, eventstore.SubscriberConfig{
			Types:      []string{kind},
			MaxPage:    2,
			Checkpoint: func(context.Context) (event.Position, error) { return *checkpoint.Load(), nil },
		})
		defer subscriber.Close()
		pages, err := subscriber.Subscribe(t.Context(), kind)
		require.NoError(t, err)
		msg := receiveEvents(t, pages)
		require.Equal(t, 0, numbers(t, eventstore.PageOf(msg))[0])
		checkpoint.Store(&history[0].Position) // its transaction took effect, but the answer was lost
		msg.Nack()
		for want := 1; want < 3; {
			msg := receive(t, pages)
			for _, n := range numbers(t, eventstore.PageOf(msg)) {
				require.Equal(t, want, n)
				want++
			}
			msg.Ack()
		}
	})
	t.Run("one that cannot be read is asked again", func(t *testing.T) {
		t.Parallel()
		kind := newType()
		start, err := store.Append(t.Context(), "noted-"+kind, eventstore.NoStream, proposed(kind, 0))
		require.NoError(t, err)
		_, err = store.Append(t.Context(), "noted-"+kind, eventstore.Exact(0), proposed(kind, 1))
		require.NoError(t, err)
		var asked atomic.Int32
		subscriber := eventstore.NewSubscriber(store, eventstore.SubscriberConfig{
			Types: []string{kind},
			Checkpoint: func(context.Context) (event.Position, error) {
				if asked.Add(1) < 3 {
					return event.Position{}, errors.New("the database is away")
				}
				return start, nil
			},
		})
		defer subscriber.Close()
		pages, err := subscriber.Subscribe(t.Context(), kind)
		require.NoError(t, err)
		msg := receiveEvents(t, pages)
		require.Equal(t, []int{1}, numbers(t, eventstore.PageOf(msg)))
		msg.Ack()
	})
	t.Run("it moves past events that are left out", func(t *testing.T) {
		t.Parallel()
		kind := newType()
		start, err := store.Head(t.Context())
		require.NoError(t, err)
		caughtUp := make(chan struct{}, 1)
		subscriber := eventstore.NewSubscriber(store, eventstore.SubscriberConfig{
			Types:      []string{kind},
			Checkpoint: from(start),
			OnCaughtUp: func() { caughtUp <- struct{}{} },
		})
		defer subscriber.Close()
		pages, err := subscriber.Subscribe(t.Context(), kind)
		require.NoError(t, err)
		var others []event.Proposed
		for i := range 600 { // more than two of the windows after which the server says how far it looked
			others = append(others, proposed("Un"+kind, i))
		}
		_, err = store.Append(t.Context(), "others-"+kind, eventstore.NoStream, others[:100]...)
		require.NoError(t, err)
		passed, err := store.Head(t.Context())
		require.NoError(t, err)
		_, err = store.Append(t.Context(), "others-"+kind, eventstore.Exact(99), others[100:]...)
		require.NoError(t, err)
		for through := start; through.Before(passed); {
			msg := receive(t, pages)
			page := eventstore.PageOf(msg)
			require.Empty(t, page.Events)
			require.True(t, through.Before(page.Through))
			through = page.Through
			msg.Ack()
		}
		select {
		case <-caughtUp:
		case <-time.After(tooLong):
			require.FailNow(t, "never caught up")
		}
	})
}

// A page is bounded by bytes as well, and so is what waits for it.
func TestPageBytes(t *testing.T) {
	t.Parallel()
	store, kind := storetest.Open(t), newType()
	start, err := store.Head(t.Context())
	require.NoError(t, err)
	const count, size = 24, 900 << 10
	for i := range count {
		large := event.Proposed{ID: uuid.New(), Payload: noted{Type: kind, Number: i, Text: strings.Repeat("x", size)}}
		_, err := store.Append(t.Context(), "noted-"+kind, eventstore.Any, large)
		require.NoError(t, err)
	}
	subscriber := eventstore.NewSubscriber(store, eventstore.SubscriberConfig{Types: []string{kind}, Checkpoint: from(start)})
	defer subscriber.Close()
	pages, err := subscriber.Subscribe(t.Context(), kind)
	require.NoError(t, err)
	for seen := 0; seen < count; {
		msg := receive(t, pages)
		page := eventstore.PageOf(msg)
		require.LessOrEqual(t, len(page.Events)*size, 8<<20+size)
		for _, n := range numbers(t, page) {
			require.Equal(t, seen, n)
			seen++
		}
		msg.Ack()
	}
}

func TestSubscribeAfterCloseIsRefused(t *testing.T) {
	t.Parallel()
	subscriber := eventstore.NewSubscriber(storetest.Open(t), eventstore.SubscriberConfig{})
	require.NoError(t, subscriber.Close())
	require.NoError(t, subscriber.Close())
	_, err := subscriber.Subscribe(t.Context(), "closed")
	require.Error(t, err)
}

// An event that is left out here moves the position, which a server that leaves out so few events would not tell of.
func TestFilterHerePassesWhatItLeavesOut(t *testing.T) {
	t.Parallel()
	store, kind := storetest.Open(t), newType()
	start, err := store.Head(t.Context())
	require.NoError(t, err)
	subscriber := eventstore.NewSubscriber(store, eventstore.SubscriberConfig{Types: []string{kind}, FilterHere: true, Checkpoint: from(start)})
	defer subscriber.Close()
	pages, err := subscriber.Subscribe(t.Context(), kind)
	require.NoError(t, err)
	_, err = store.Append(t.Context(), "noted-"+kind, eventstore.Any, proposed(kind, 1))
	require.NoError(t, err)
	last, err := store.Append(t.Context(), "noted-"+kind, eventstore.Any, proposed("Un"+kind, 2))
	require.NoError(t, err)
	var got []int
	for passed := false; !passed; {
		msg := receive(t, pages)
		page := eventstore.PageOf(msg)
		got = append(got, numbers(t, page)...)
		passed = !page.Through.Before(last)
		msg.Ack()
	}
	require.Equal(t, []int{1}, got)
}

// Streams that are left out do not come, whoever leaves them out, and the position moves past many of their events.
func TestSkippedStreams(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]eventstore.SubscriberConfig{
		"all types": {}, "types here": {Types: []string{"Noted", "Skipped"}, FilterHere: true}, "types there": {Types: []string{"Noted", "Skipped"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store, id := storetest.Open(t), uuid.NewString()
			start, err := store.Head(t.Context())
			require.NoError(t, err)
			config.SkipStreams, config.Checkpoint = "skip."+id, from(start)
			const last = 700 // in between are more than two of the windows after which the server says how far it looked
			var passed event.Position
			for n := 0; n <= last; {
				_, err := store.Append(t.Context(), "skip-"+id, eventstore.Any, proposed("Noted", n))
				require.NoError(t, err)
				n++
				var skipped []event.Proposed
				for ; n%350 != 0; n++ {
					skipped = append(skipped, proposed("Skipped", n))
				}
				passed, err = store.Append(t.Context(), "skip."+id+"-any", eventstore.Any, skipped[:50]...)
				require.NoError(t, err)
				_, err = store.Append(t.Context(), "skip."+id+"-any", eventstore.Any, skipped[50:]...)
				require.NoError(t, err)
			}
			subscriber := eventstore.NewSubscriber(store, config)
			defer subscriber.Close()
			pages, err := subscriber.Subscribe(t.Context(), name)
			require.NoError(t, err)
			var got []int
			for through := start; through.Before(passed); {
				msg := receive(t, pages)
				page := eventstore.PageOf(msg)
				for _, e := range page.Events {
					require.False(t, strings.HasPrefix(e.Stream, config.SkipStreams))
					if e.Stream == "skip-"+id {
						var n noted
						require.NoError(t, json.Unmarshal(e.Data, &n))
						got = append(got, n.Number)
					}
				}
				through = page.Through
				msg.Ack()
			}
			require.Equal(t, []int{0, 350, 700}, got)
		})
	}
}

// lonely is a store in which nobody else writes.
func lonely(t *testing.T) *eventstore.Store {
	t.Helper()
	node, err := esnode.Start(esnode.Options{Dir: filepath.Join(t.TempDir(), "events"), Listen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, node.Close()) })
	store, err := eventstore.Open(node.ConnectionString(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	return store
}

// A subscriber passes its head while nothing else comes, and what it is given stands before that, whatever was recorded before and after it subscribed.
func TestASubscriberPassesItsHead(t *testing.T) {
	t.Parallel()
	store := lonely(t)
	add := func(stream string, events int) event.Position {
		kind, _, _ := strings.Cut(stream, "-")
		batch := make([]event.Proposed, events)
		for i := range batch {
			batch[i] = proposed(kind, i)
		}
		at, err := store.Append(t.Context(), stream, eventstore.Any, batch...)
		require.NoError(t, err)
		return at
	}
	for _, config := range []eventstore.SubscriberConfig{
		{}, {SkipStreams: "usage-"}, {Types: []string{"sent"}}, {Types: []string{"sent"}, FilterHere: true, SkipStreams: "usage-"},
	} {
		for _, usage := range [][2]int{{1, 1}, {1, 20}, {300, 255}, {20, 600}, {600, 600}} {
			start, err := store.Head(t.Context())
			require.NoError(t, err)
			given := add("sent-any", 2)
			if config.SkipStreams == "" && len(config.Types) == 0 {
				given = add("usage-any", usage[0])
			} else {
				add("usage-any", usage[0])
			}
			config.Checkpoint = from(start)
			subscriber := eventstore.NewSubscriber(store, config)
			pages, err := subscriber.Subscribe(t.Context(), "head")
			require.NoError(t, err)
			first := receive(t, pages)
			add("usage-any", usage[1])
			head, err := store.HeadFor(t.Context(), config)
			require.NoError(t, err)
			require.False(t, head.Before(given))
			through := eventstore.PageOf(first).Through
			for first.Ack(); through.Before(head); {
				msg := receive(t, pages)
				through = eventstore.PageOf(msg).Through
				msg.Ack()
			}
			require.NoError(t, subscriber.Close())
		}
	}
}

func TestTheHeadOfWhatIsNotThere(t *testing.T) {
	t.Parallel()
	store := lonely(t)
	_, err := store.Append(t.Context(), "usage-any", eventstore.Any, proposed("Served", 1))
	require.NoError(t, err)
	for _, config := range []eventstore.SubscriberConfig{{SkipStreams: "usage-"}, {Types: []string{"Sent"}}} {
		head, err := store.HeadFor(t.Context(), config)
		require.NoError(t, err)
		require.True(t, head.IsZero())
	}
}
