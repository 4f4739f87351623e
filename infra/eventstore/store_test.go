package eventstore_test

import (
	"encoding/json"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/event"
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
	return event.Proposed{
		ID:       uuid.New(),
		Payload:  noted{Type: eventType, Number: number},
		Metadata: event.Metadata{CompanyID: "co_1", Actor: "test", Time: time.Now().UTC()},
	}
}

// bare is the official client on the same store.
func bare(t testing.TB, url string) *esdb.Client {
	config, err := esdb.ParseConnectionString(url)
	require.NoError(t, err)
	config.Logger = nil
	client, err := esdb.NewClient(config)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	return client
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
	require.Equal(t, []event.Recorded{{
		ID: first.ID, Stream: stream, Revision: 0, Position: position, Type: "Noted", Data: []byte(`{"number":1}`), Metadata: first.Metadata,
	}}, history)

	t.Run("a writer that read an older revision is refused", func(t *testing.T) {
		for _, expected := range []eventstore.Expected{eventstore.NoStream, eventstore.Exact(7), eventstore.ExpectedAfter(nil)} {
			_, err := store.Append(ctx, stream, expected, proposed("Noted", 2))
			require.ErrorIs(t, err, eventstore.ErrConflict)
			require.NotErrorIs(t, err, eventstore.ErrUnavailable)
		}
	})
	t.Run("the same append again changes nothing", func(t *testing.T) {
		for _, expected := range []eventstore.Expected{eventstore.NoStream, eventstore.Any} {
			again, err := store.Append(ctx, stream, expected, first)
			require.NoError(t, err)
			require.Equal(t, position, again)
		}
		after, err := store.Load(ctx, stream)
		require.NoError(t, err)
		require.Equal(t, history, after)
	})
	t.Run("a stream is read in pages", func(t *testing.T) {
		for i := range uint64(9) {
			_, err := store.Append(ctx, stream, eventstore.Exact(i), proposed("Noted", int(i)+2))
			require.NoError(t, err)
		}
		whole, err := store.Load(ctx, stream)
		require.NoError(t, err)
		require.Len(t, whole, 10)
		var paged []event.Recorded
		for {
			page, err := store.Page(ctx, stream, uint64(len(paged)), 4)
			require.NoError(t, err)
			if len(page) == 0 {
				break
			}
			require.LessOrEqual(t, len(page), 4)
			paged = append(paged, page...)
		}
		require.Equal(t, whole, paged)
	})
}

func TestExpected(t *testing.T) {
	t.Parallel()
	history := []event.Recorded{{Revision: 3}, {Revision: 4}}
	revision, ok := eventstore.ExpectedAfter(history).Revision()
	require.True(t, ok)
	require.Equal(t, uint64(4), revision)
	for _, open := range []eventstore.Expected{eventstore.Any, eventstore.NoStream, eventstore.ExpectedAfter(nil)} {
		_, ok := open.Revision()
		require.False(t, ok)
	}
	require.Equal(t, eventstore.Exact(4), eventstore.ExpectedAfter(history))
}

// Metadata that something else wrote is no reason to stop reading, and none to take an earlier event's for it.
func TestForeignMetadata(t *testing.T) {
	t.Parallel()
	store, stream := storetest.Open(t), "noted-"+uuid.NewString()
	own := proposed("Noted", 1)
	_, err := store.Append(t.Context(), stream, eventstore.NoStream, own)
	require.NoError(t, err)
	client := bare(t, storetest.URL(t))
	for _, metadata := range []string{"", "not JSON", `{"company":7}`, `{"actor":"other"}`} {
		_, err := client.AppendToStream(t.Context(), stream, esdb.AppendToStreamOptions{}, esdb.EventData{
			EventID: uuid.New(), EventType: "Noted", ContentType: esdb.ContentTypeJson, Data: []byte("{}"), Metadata: []byte(metadata),
		})
		require.NoError(t, err)
	}
	history, err := store.Load(t.Context(), stream)
	require.NoError(t, err)
	var metadata []event.Metadata
	for _, e := range history {
		metadata = append(metadata, e.Metadata)
	}
	require.Equal(t, []event.Metadata{own.Metadata, {}, {}, {}, {Actor: "other"}}, metadata)
}

func TestAppendSize(t *testing.T) {
	t.Parallel()
	store, ctx := storetest.Open(t), t.Context()
	sized := func(bytes int) event.Proposed {
		e := event.Proposed{ID: uuid.New(), Payload: noted{Type: "Noted", Text: "x"}}
		e.Payload = noted{Type: "Noted", Text: strings.Repeat("x", 1+bytes-eventstore.EncodedSize(e))}
		require.Equal(t, bytes, eventstore.EncodedSize(e))
		return e
	}
	t.Run("the largest append that is let through fits the server", func(t *testing.T) {
		_, err := store.Append(ctx, "noted-"+uuid.NewString(), eventstore.NoStream, sized(eventstore.MaxAppendBytes/2), sized(eventstore.MaxAppendBytes/2))
		require.NoError(t, err)
	})
	t.Run("what does not fit one append is refused before it is sent", func(t *testing.T) {
		stream := "noted-" + uuid.NewString()
		_, err := store.Append(ctx, stream, eventstore.NoStream, sized(eventstore.MaxAppendBytes/2), sized(eventstore.MaxAppendBytes/2+1))
		require.ErrorIs(t, err, eventstore.ErrTooLarge)
		history, err := store.Load(ctx, stream)
		require.NoError(t, err)
		require.Empty(t, history)
	})
}

// The names that EventStoreDB's own tools look for, and those of the W3C, stand in what is written.
func TestMetadataOnTheWire(t *testing.T) {
	t.Parallel()
	store, stream := storetest.Open(t), "noted-"+uuid.NewString()
	e := proposed("Noted", 1)
	e.Metadata = event.Metadata{
		CompanyID: "co_1", Environment: event.Test, Actor: "tok_1", RequestID: "req_1", CorrelationID: "c", CausationID: "d",
		TraceParent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Fingerprint: "f", Time: time.Date(2026, 2, 3, 4, 5, 6, 7, time.UTC),
	}
	_, err := store.Append(t.Context(), stream, eventstore.NoStream, e)
	require.NoError(t, err)

	read, err := bare(t, storetest.URL(t)).ReadStream(t.Context(), stream, esdb.ReadStreamOptions{}, 1)
	require.NoError(t, err)
	defer read.Close()
	got, err := read.Recv()
	require.NoError(t, err)
	require.Equal(t, "application/json", got.OriginalEvent().ContentType)
	require.JSONEq(t, `{
		"company": "co_1", "environment": "test", "actor": "tok_1", "requestId": "req_1", "$correlationId": "c", "$causationId": "d",
		"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "fingerprint": "f", "time": "2026-02-03T04:05:06.000000007Z"
	}`, string(got.OriginalEvent().UserMetadata))

	history, err := store.Load(t.Context(), stream)
	require.NoError(t, err)
	require.Equal(t, e.Metadata, history[0].Metadata)
}

func TestDeletedStreamsAreEmpty(t *testing.T) {
	t.Parallel()
	store, client, ctx := storetest.Open(t), bare(t, storetest.URL(t)), t.Context()
	for name, remove := range map[string]func(stream string) error{
		"deleted": func(stream string) error {
			_, err := client.DeleteStream(ctx, stream, esdb.DeleteStreamOptions{ExpectedRevision: esdb.Any{}})
			return err
		},
		"tombstoned": func(stream string) error {
			_, err := client.TombstoneStream(ctx, stream, esdb.TombstoneStreamOptions{ExpectedRevision: esdb.Any{}})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			stream := "noted-" + uuid.NewString()
			_, err := store.Append(ctx, stream, eventstore.NoStream, proposed("Noted", 1))
			require.NoError(t, err)
			require.NoError(t, remove(stream))
			history, err := store.Load(ctx, stream)
			require.NoError(t, err)
			require.Empty(t, history)
		})
	}
}

// Writers that load, decide and append lose no update.
func TestWritersThatDecide(t *testing.T) {
	t.Parallel()
	store, ctx, stream := storetest.Open(t), t.Context(), "noted-"+uuid.NewString()
	const writers, each = 4, 10
	var wait sync.WaitGroup
	for range writers {
		wait.Go(func() {
			for done := 0; done < each; {
				history, err := store.Load(ctx, stream)
				if err != nil {
					t.Error(err)
					return
				}
				_, err = store.Append(ctx, stream, eventstore.ExpectedAfter(history), proposed("Noted", len(history)))
				if err == nil {
					done++
				}
			}
		})
	}
	wait.Wait()
	history, err := store.Load(ctx, stream)
	require.NoError(t, err)
	require.Len(t, history, writers*each)
	for i, e := range history {
		require.Equal(t, uint64(i), e.Revision)
		require.JSONEq(t, `{"number":`+strconv.Itoa(i)+`}`, string(e.Data))
	}
}

func TestReadAllPagesThroughEverything(t *testing.T) {
	t.Parallel()
	store, ctx := storetest.Open(t), t.Context()
	start, err := store.Head(ctx)
	require.NoError(t, err)
	stream, client := "all-"+uuid.NewString(), bare(t, storetest.URL(t))
	for i := range 10 {
		_, err := store.Append(ctx, stream, eventstore.Any, proposed("Noted", i))
		require.NoError(t, err)
		// An event of the store's own beside each.
		_, err = client.SetStreamMetadata(ctx, stream, esdb.AppendToStreamOptions{ExpectedRevision: esdb.Any{}}, esdb.StreamMetadata{})
		require.NoError(t, err)
	}
	last, err := store.Load(ctx, stream)
	require.NoError(t, err)
	head, err := store.Head(ctx)
	require.NoError(t, err)
	require.False(t, head.Before(last[9].Position))

	var got []int
	for after, done := start, false; !done; {
		var events []event.Recorded
		before := after
		events, after, done, err = store.ReadAll(ctx, after, 3)
		require.NoError(t, err)
		require.LessOrEqual(t, len(events), 3)
		require.True(t, done || before.Before(after))
		for _, e := range events {
			require.False(t, strings.HasPrefix(e.Type, "$"))
			if e.Stream == stream {
				var n noted
				require.NoError(t, json.Unmarshal(e.Data, &n))
				got = append(got, n.Number)
			}
		}
	}
	require.Equal(t, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, got)
}

// What is older than a stream's limit is not read any more, while `$all` has it still; the limit that is set first stays.
func TestLimitAge(t *testing.T) {
	t.Parallel()
	store, ctx, stream := storetest.Open(t), t.Context(), "aging-"+uuid.NewString()
	before, err := store.Append(ctx, "noted-"+uuid.NewString(), eventstore.NoStream, proposed("Noted", 0))
	require.NoError(t, err)
	for _, age := range []time.Duration{time.Second, time.Hour} {
		require.NoError(t, store.LimitAge(ctx, stream, age))
	}
	metadata, err := bare(t, storetest.URL(t)).GetStreamMetadata(ctx, stream, esdb.ReadStreamOptions{Direction: esdb.Backwards, From: esdb.End{}})
	require.NoError(t, err)
	require.Equal(t, time.Second, *metadata.MaxAge())

	old := proposed("Noted", 1)
	_, err = store.Append(ctx, stream, eventstore.NoStream, old)
	require.NoError(t, err, "a stream is not there for having a limit")
	require.Eventually(t, func() bool {
		history, err := store.Load(ctx, stream)
		return err == nil && len(history) == 0
	}, tooLong, 20*time.Millisecond)
	next := proposed("Noted", 2)
	_, err = store.Append(ctx, stream, eventstore.Exact(0), next)
	require.NoError(t, err)

	var all []uuid.UUID
	for done := false; !done; {
		var events []event.Recorded
		events, before, done, err = store.ReadAll(ctx, before, 1000)
		require.NoError(t, err)
		for _, e := range events {
			if e.Stream == stream {
				all = append(all, e.ID)
			}
		}
	}
	require.Equal(t, []uuid.UUID{old.ID, next.ID}, all)
}
