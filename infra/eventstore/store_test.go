package eventstore_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
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

// noted is an event of these tests' own.
type noted struct {
	Type   string `json:"-"`
	Number int    `json:"number"`
	Text   string `json:"text,omitempty"`
}

func (n noted) EventType() string { return n.Type }

func proposed(eventType string, number int) event.Proposed {
	return event.Proposed{ID: uuid.New(), Payload: noted{Type: eventType, Number: number}, Metadata: event.Metadata{CompanyID: "co_1", Actor: "test", Time: time.Now().UTC()}}
}

func number(t require.TestingT, e event.Recorded) int {
	var n noted
	require.NoError(t, json.Unmarshal(e.Data, &n))
	return n.Number
}

func TestAppendAndLoad(t *testing.T) {
	t.Parallel()
	store, ctx, stream := storetest.Open(t), t.Context(), "noted-"+uuid.NewString()

	empty, err := store.Load(ctx, stream)
	require.NoError(t, err)
	require.Empty(t, empty)

	first := proposed("Noted", 1)
	position, err := store.Append(ctx, stream, eventstore.ExpectedAfter(empty), first)
	require.NoError(t, err)
	require.False(t, position.IsZero())

	history, err := store.Load(ctx, stream)
	require.NoError(t, err)
	require.Len(t, history, 1)
	require.Equal(t, first.ID, history[0].ID)
	require.Equal(t, "Noted", history[0].Type)
	require.Equal(t, position, history[0].Position)
	require.Equal(t, first.Metadata, history[0].Metadata)

	t.Run("a writer that read an older revision is refused", func(t *testing.T) {
		_, err := store.Append(ctx, stream, eventstore.NoStream, proposed("Noted", 2))
		require.ErrorIs(t, err, eventstore.ErrConflict)
		_, err = store.Append(ctx, stream, eventstore.Exact(7), proposed("Noted", 2))
		require.ErrorIs(t, err, eventstore.ErrConflict)
	})
	t.Run("the same append again changes nothing", func(t *testing.T) {
		again, err := store.Append(ctx, stream, eventstore.NoStream, first)
		require.NoError(t, err)
		require.Equal(t, position, again)
		after, err := store.Load(ctx, stream)
		require.NoError(t, err)
		require.Len(t, after, 1)
	})
	t.Run("what does not fit one append is refused before it is sent", func(t *testing.T) {
		large := event.Proposed{ID: uuid.New(), Payload: noted{Type: "Noted", Text: strings.Repeat("x", eventstore.MaxAppendBytes)}}
		_, err := store.Append(ctx, stream, eventstore.Any, large)
		require.ErrorIs(t, err, eventstore.ErrTooLarge)
	})
	t.Run("the largest append that is let through fits the server", func(t *testing.T) {
		e := event.Proposed{ID: uuid.New(), Payload: noted{Type: "Noted"}}
		e.Payload = noted{Type: "Noted", Text: strings.Repeat("x", eventstore.MaxAppendBytes-eventstore.EncodedSize(e)-len(`,"text":""`))}
		require.Equal(t, eventstore.MaxAppendBytes, eventstore.EncodedSize(e))
		_, err := store.Append(ctx, stream, eventstore.Any, e)
		require.NoError(t, err)
	})
}

func TestSubscriberGivesEveryEventOnceInOrder(t *testing.T) {
	t.Parallel()
	store := storetest.Open(t)
	rapid.Check(t, func(rt *rapid.T) {
		kind := "Kept" + strings.ReplaceAll(uuid.NewString(), "-", "")
		total := rapid.IntRange(1, 60).Draw(rt, "events")
		refusals := rapid.SliceOfN(rapid.Bool(), 0, 5).Draw(rt, "refusals")
		before := rapid.IntRange(0, total).Draw(rt, "appended before the subscription")
		start, err := store.Head(t.Context())
		require.NoError(rt, err)

		appendFrom := func(from, to int) {
			for i := from; i < to; i++ {
				// An event whose type only begins with the name that was asked for must not come.
				_, err := store.Append(t.Context(), "kept-"+kind, eventstore.Any, proposed(kind, i), proposed(kind+"Not", i))
				require.NoError(rt, err)
			}
		}
		appendFrom(0, before)

		var mu sync.Mutex
		done := start
		subscriber := eventstore.NewSubscriber(store, eventstore.SubscriberConfig{
			Types:   []string{kind},
			MaxPage: rapid.IntRange(1, 10).Draw(rt, "page"),
			Checkpoint: func(context.Context) (event.Position, error) {
				mu.Lock()
				defer mu.Unlock()
				return done, nil
			},
			Log: slog.New(slog.DiscardHandler),
		})
		pages, err := subscriber.Subscribe(t.Context(), kind)
		require.NoError(rt, err)
		appended := make(chan struct{})
		go func() { defer close(appended); appendFrom(before, total) }()

		var got []int
		for len(got) < total {
			msg := receive(rt, pages)
			if len(refusals) > 0 {
				refuse := refusals[0]
				refusals = refusals[1:]
				if refuse {
					msg.Nack()
					continue
				}
			}
			page := eventstore.PageOf(msg)
			mu.Lock()
			done = page.Through
			mu.Unlock()
			for _, e := range page.Events {
				got = append(got, number(rt, e))
			}
			msg.Ack()
		}
		<-appended
		require.NoError(rt, subscriber.Close())
		for i, n := range got {
			require.Equal(rt, i, n)
		}
	})
}

func receive(t require.TestingT, pages <-chan *message.Message) *message.Message {
	select {
	case msg := <-pages:
		return msg
	case <-time.After(20 * time.Second):
		require.FailNow(t, "no page came")
		return nil
	}
}

// A store that is away for longer than the client looks for it, and comes back, is used again without a restart, and a subscription misses
// nothing of it.
func TestStoreThatWasAway(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "events")
	log := slog.New(slog.DiscardHandler)
	node, err := esnode.Start(esnode.Options{Dir: dir, Listen: "127.0.0.1:0", Log: log})
	require.NoError(t, err)
	address := node.Addr()
	store, err := eventstore.Open(node.ConnectionString(), log)
	require.NoError(t, err)
	defer store.Close()

	var mu sync.Mutex
	var done event.Position
	subscriber := eventstore.NewSubscriber(store, eventstore.SubscriberConfig{
		Checkpoint: func(context.Context) (event.Position, error) { mu.Lock(); defer mu.Unlock(); return done, nil },
		Log:        log,
	})
	defer subscriber.Close()
	pages, err := subscriber.Subscribe(t.Context(), "away")
	require.NoError(t, err)

	total := 0
	for round := range 3 {
		for range 5 {
			_, err := store.Append(t.Context(), "away", eventstore.Any, proposed("Noted", total))
			require.NoError(t, err)
			total++
		}
		for seen := round * 5; seen < total; {
			msg := receive(t, pages)
			page := eventstore.PageOf(msg)
			for _, e := range page.Events {
				require.Equal(t, seen, number(t, e))
				seen++
			}
			mu.Lock()
			done = page.Through
			mu.Unlock()
			msg.Ack()
		}
		require.NoError(t, node.Close())
		var wait sync.WaitGroup
		for i := range 20 {
			wait.Go(func() {
				_, err := store.Append(t.Context(), fmt.Sprintf("lost-%d", i), eventstore.Any, proposed("Noted", 0))
				require.ErrorIs(t, err, eventstore.ErrUnavailable)
			})
		}
		wait.Wait()
		require.ErrorIs(t, store.Ping(t.Context()), eventstore.ErrUnavailable)
		node, err = esnode.Start(esnode.Options{Dir: dir, Listen: address, Log: log})
		require.NoError(t, err)
		require.Eventually(t, func() bool { return store.Ping(t.Context()) == nil }, 10*time.Second, 10*time.Millisecond)
	}
	require.NoError(t, node.Close())
}

func TestReadAllPagesThroughEverything(t *testing.T) {
	t.Parallel()
	store := storetest.Open(t)
	start, err := store.Head(t.Context())
	require.NoError(t, err)
	stream := "all-" + uuid.NewString()
	for i := range 10 {
		_, err := store.Append(t.Context(), stream, eventstore.Any, proposed("Noted", i))
		require.NoError(t, err)
	}
	var got []int
	for after, done := start, false; !done; {
		var events []event.Recorded
		events, after, done, err = store.ReadAll(t.Context(), after, 3)
		require.NoError(t, err)
		for _, e := range events {
			if e.Stream == stream {
				got = append(got, number(t, e))
			}
		}
	}
	require.Equal(t, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, got)
}
