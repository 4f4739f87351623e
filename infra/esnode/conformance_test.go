package esnode_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/infra/esnode"
)

// The tests of this file are a conformance suite: they know only the official client, and say what the rest of the program counts on. They
// run against a node of their own process, or against the server that MUSIQUE_EVENTSTORE_URL names.

// patience bounds every call and every wait for an event in these tests.
const patience = time.Minute

var shared struct {
	once sync.Once
	url  string
	err  error
}

func serverURL(t testing.TB) string {
	t.Helper()
	shared.once.Do(func() {
		if shared.url = os.Getenv("MUSIQUE_EVENTSTORE_URL"); shared.url != "" {
			return
		}
		dir, err := os.MkdirTemp("", "musique-esnode-") // lives as long as the process; no test owns it
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

func connect(t testing.TB, url string) *esdb.Client {
	t.Helper()
	config, err := esdb.ParseConnectionString(url)
	require.NoError(t, err)
	config.Logger = nil
	client, err := esdb.NewClient(config)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	return client
}

// bench is what a conformance test has: a client of its own and a bounded context.
type bench struct {
	*testing.T
	ctx    context.Context
	client *esdb.Client
}

func newBench(t *testing.T) bench {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return bench{t, ctx, connect(t, serverURL(t))}
}

// stream is a name that no other test uses, on a server that may hold anything.
func (b bench) stream() string { return "conformance-" + uuid.NewString() }

func newEvent(eventType, data string) esdb.EventData {
	return esdb.EventData{EventID: uuid.New(), EventType: eventType, ContentType: esdb.ContentTypeJson, Data: []byte(data), Metadata: []byte(`{"by":"test"}`)}
}

func newEvents(n int) []esdb.EventData {
	events := make([]esdb.EventData, n)
	for i := range events {
		events[i] = newEvent("Counted", fmt.Sprintf(`{"n":%d}`, i))
	}
	return events
}

func (b bench) append(stream string, expected esdb.ExpectedRevision, events ...esdb.EventData) (*esdb.WriteResult, error) {
	return b.client.AppendToStream(b.ctx, stream, esdb.AppendToStreamOptions{ExpectedRevision: expected}, events...)
}

func (b bench) mustAppend(stream string, expected esdb.ExpectedRevision, events ...esdb.EventData) *esdb.WriteResult {
	b.Helper()
	result, err := b.append(stream, expected, events...)
	require.NoError(b, err)
	return result
}

func (b bench) read(stream string, options esdb.ReadStreamOptions, count uint64) ([]*esdb.RecordedEvent, error) {
	reading, err := b.client.ReadStream(b.ctx, stream, options, count)
	if err != nil {
		return nil, err
	}
	return drain(reading)
}

func (b bench) mustRead(stream string) []*esdb.RecordedEvent {
	b.Helper()
	events, err := b.read(stream, esdb.ReadStreamOptions{From: esdb.Start{}}, 10_000)
	require.NoError(b, err)
	return events
}

func drain(reading *esdb.ReadStream) ([]*esdb.RecordedEvent, error) {
	defer reading.Close()
	var events []*esdb.RecordedEvent
	for {
		resolved, err := reading.Recv()
		if errors.Is(err, io.EOF) {
			return events, nil
		}
		if err != nil {
			return nil, err
		}
		events = append(events, resolved.OriginalEvent())
	}
}

func requireCode(t testing.TB, code esdb.ErrorCode, err error) {
	t.Helper()
	var failure *esdb.Error
	require.ErrorAs(t, err, &failure)
	require.Equal(t, code, failure.Code(), "%v", err)
}

func revisions(events []*esdb.RecordedEvent) []uint64 {
	numbers := []uint64{}
	for _, e := range events {
		numbers = append(numbers, e.EventNumber)
	}
	return numbers
}

func ids(events []*esdb.RecordedEvent) []uuid.UUID {
	list := []uuid.UUID{}
	for _, e := range events {
		list = append(list, e.EventID)
	}
	return list
}

func TestAppendedEventReadsBackWhole(t *testing.T) {
	b := newBench(t)
	stream := b.stream()
	before := time.Now()
	binary := esdb.EventData{EventID: uuid.New(), EventType: "Blob", ContentType: esdb.ContentTypeBinary, Data: []byte{0, 1, 2, 255}}
	sent := []esdb.EventData{newEvent("AudioUploaded.v2", `{"title":"Grüße"}`), binary}
	result := b.mustAppend(stream, esdb.NoStream{}, sent...)
	require.Equal(t, uint64(1), result.NextExpectedVersion)

	got := b.mustRead(stream)
	require.Len(t, got, 2)
	for i, e := range got {
		require.Equal(t, sent[i].EventID, e.EventID)
		require.Equal(t, sent[i].EventType, e.EventType)
		require.Equal(t, stream, e.StreamID)
		require.Equal(t, uint64(i), e.EventNumber)
		require.Equal(t, string(sent[i].Data), string(e.Data))
		require.Equal(t, string(sent[i].Metadata), string(e.UserMetadata))
		require.WithinDuration(t, before, e.CreatedDate, time.Minute)
	}
	require.Equal(t, "application/json", got[0].ContentType)
	require.Equal(t, "application/octet-stream", got[1].ContentType)
	require.Equal(t, result.CommitPosition, got[1].Position.Commit)
	require.Less(t, got[0].Position.Commit, got[1].Position.Commit)
}

func TestExpectedRevisions(t *testing.T) {
	b := newBench(t)
	stream := b.stream()
	wrong := func(expected esdb.ExpectedRevision) {
		t.Helper()
		_, err := b.append(stream, expected, newEvents(1)...)
		requireCode(t, esdb.ErrorCodeWrongExpectedVersion, err)
	}
	wrong(esdb.StreamExists{})
	wrong(esdb.Revision(0))
	require.Equal(t, uint64(2), b.mustAppend(stream, esdb.NoStream{}, newEvents(3)...).NextExpectedVersion)
	wrong(esdb.NoStream{})
	wrong(esdb.Revision(1))
	wrong(esdb.Revision(3))
	require.Equal(t, uint64(3), b.mustAppend(stream, esdb.Revision(2), newEvents(1)...).NextExpectedVersion)
	require.Equal(t, uint64(4), b.mustAppend(stream, esdb.StreamExists{}, newEvents(1)...).NextExpectedVersion)
	require.Equal(t, uint64(6), b.mustAppend(stream, esdb.Any{}, newEvents(2)...).NextExpectedVersion)
	require.Equal(t, []uint64{0, 1, 2, 3, 4, 5, 6}, revisions(b.mustRead(stream)))
}

func TestWrongRevisionSaysWhereTheStreamIs(t *testing.T) {
	b := newBench(t)
	stream := b.stream()
	b.mustAppend(stream, esdb.NoStream{}, newEvents(2)...)
	_, err := b.append(stream, esdb.NoStream{}, newEvents(1)...)
	require.ErrorContains(t, err, "expecting 'no_stream' but got '1'")
	_, err = b.append(b.stream(), esdb.Revision(7), newEvents(1)...)
	require.ErrorContains(t, err, "expecting '7' but got 'no_stream'")
}

func TestRepeatedAppendIsAnsweredAsBeforeAndAddsNothing(t *testing.T) {
	for _, c := range []struct {
		name   string
		first  esdb.ExpectedRevision
		second esdb.ExpectedRevision
	}{
		{"no stream", esdb.NoStream{}, esdb.NoStream{}},
		{"any", esdb.Any{}, esdb.Any{}},
		{"no stream, then any", esdb.NoStream{}, esdb.Any{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			stream := b.stream()
			events := newEvents(3)
			first := b.mustAppend(stream, c.first, events...)
			b.mustAppend(stream, esdb.Revision(2), newEvents(1)...)
			again := b.mustAppend(stream, c.second, events...)
			require.Equal(t, first.NextExpectedVersion, again.NextExpectedVersion)
			require.Equal(t, []uint64{0, 1, 2, 3}, revisions(b.mustRead(stream)))
		})
	}
	t.Run("exact", func(t *testing.T) {
		b := newBench(t)
		stream := b.stream()
		b.mustAppend(stream, esdb.NoStream{}, newEvents(2)...)
		events := newEvents(2)
		b.mustAppend(stream, esdb.Revision(1), events...)
		require.Equal(t, uint64(3), b.mustAppend(stream, esdb.Revision(1), events...).NextExpectedVersion)
		require.Len(t, b.mustRead(stream), 4)
	})
	t.Run("the same ID in another stream is new", func(t *testing.T) {
		b := newBench(t)
		events := newEvents(1)
		one, other := b.stream(), b.stream()
		b.mustAppend(one, esdb.Any{}, events...)
		b.mustAppend(other, esdb.Any{}, events...)
		require.Len(t, b.mustRead(other), 1)
	})
	t.Run("half a repeat is refused", func(t *testing.T) {
		b := newBench(t)
		stream := b.stream()
		events := newEvents(2)
		b.mustAppend(stream, esdb.NoStream{}, events[0])
		_, err := b.append(stream, esdb.NoStream{}, events...)
		requireCode(t, esdb.ErrorCodeWrongExpectedVersion, err)
		require.Len(t, b.mustRead(stream), 1)
	})
}

func TestConcurrentAppendsAtOneRevisionHaveOneWinner(t *testing.T) {
	b := newBench(t)
	stream := b.stream()
	const rivals = 16
	errs := make([]error, rivals)
	var all sync.WaitGroup
	for i := range rivals {
		all.Go(func() { _, errs[i] = b.append(stream, esdb.NoStream{}, newEvents(2)...) })
	}
	all.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
			continue
		}
		requireCode(t, esdb.ErrorCodeWrongExpectedVersion, err)
	}
	require.Equal(t, 1, won)
	require.Len(t, b.mustRead(stream), 2)
}

func TestAppendLimit(t *testing.T) {
	b := newBench(t)
	stream := b.stream()
	large := func(bytes int) esdb.EventData {
		return esdb.EventData{EventID: uuid.New(), EventType: "Large", ContentType: esdb.ContentTypeBinary, Data: make([]byte, bytes)}
	}
	_, err := b.append(stream, esdb.NoStream{}, large(600<<10), large(600<<10))
	require.ErrorContains(t, err, "Maximum Append Size")
	_, err = b.read(stream, esdb.ReadStreamOptions{From: esdb.Start{}}, 1)
	requireCode(t, esdb.ErrorCodeResourceNotFound, err)
	b.mustAppend(stream, esdb.NoStream{}, large(500<<10), large(500<<10))
	require.Len(t, b.mustRead(stream), 2)
}

func TestReadStream(t *testing.T) {
	b := newBench(t)
	stream := b.stream()
	b.mustAppend(stream, esdb.NoStream{}, newEvents(10)...)
	for _, c := range []struct {
		name    string
		options esdb.ReadStreamOptions
		count   uint64
		want    []uint64
	}{
		{"from the start", esdb.ReadStreamOptions{From: esdb.Start{}}, 3, []uint64{0, 1, 2}},
		{"a revision is included", esdb.ReadStreamOptions{From: esdb.Revision(7)}, 100, []uint64{7, 8, 9}},
		{"from behind the end", esdb.ReadStreamOptions{From: esdb.Revision(10)}, 100, []uint64{}},
		{"backwards from the end", esdb.ReadStreamOptions{Direction: esdb.Backwards, From: esdb.End{}}, 3, []uint64{9, 8, 7}},
		{"backwards, a revision is included", esdb.ReadStreamOptions{Direction: esdb.Backwards, From: esdb.Revision(2)}, 100, []uint64{2, 1, 0}},
		{"backwards from behind the end", esdb.ReadStreamOptions{Direction: esdb.Backwards, From: esdb.Revision(50)}, 2, []uint64{9, 8}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := b.read(stream, c.options, c.count)
			require.NoError(t, err)
			require.Equal(t, c.want, revisions(got))
		})
	}
	_, err := b.read(b.stream(), esdb.ReadStreamOptions{From: esdb.Start{}}, 1)
	requireCode(t, esdb.ErrorCodeResourceNotFound, err)
	_, err = b.read(b.stream(), esdb.ReadStreamOptions{Direction: esdb.Backwards, From: esdb.End{}}, 1)
	requireCode(t, esdb.ErrorCodeResourceNotFound, err)
}

func TestStreamsWhoseNamesBeginAlikeStayApart(t *testing.T) {
	b := newBench(t)
	stream := b.stream()
	b.mustAppend(stream+"-1", esdb.NoStream{}, newEvents(2)...)
	b.mustAppend(stream, esdb.NoStream{}, newEvents(1)...)
	b.mustAppend(stream+"\x00", esdb.NoStream{}, newEvents(3)...)
	require.Len(t, b.mustRead(stream), 1)
	require.Len(t, b.mustRead(stream+"-1"), 2)
	require.Len(t, b.mustRead(stream+"\x00"), 3)
}

func TestSoftDeletion(t *testing.T) {
	b := newBench(t)
	stream := b.stream()
	b.mustAppend(stream, esdb.NoStream{}, newEvents(3)...)
	_, err := b.client.DeleteStream(b.ctx, stream, esdb.DeleteStreamOptions{ExpectedRevision: esdb.Revision(1)})
	require.Error(t, err, "a wrong revision deletes nothing")
	require.Len(t, b.mustRead(stream), 3)
	_, err = b.client.DeleteStream(b.ctx, stream, esdb.DeleteStreamOptions{ExpectedRevision: esdb.Revision(2)})
	require.NoError(t, err)
	_, err = b.read(stream, esdb.ReadStreamOptions{From: esdb.Start{}}, 1)
	requireCode(t, esdb.ErrorCodeResourceNotFound, err)

	b.mustAppend(stream, esdb.NoStream{}, newEvents(2)...)
	require.Equal(t, []uint64{3, 4}, revisions(b.mustRead(stream)), "revisions go on where the deleted stream ended")
}

func TestTombstone(t *testing.T) {
	b := newBench(t)
	stream := b.stream()
	b.mustAppend(stream, esdb.NoStream{}, newEvents(2)...)
	_, err := b.client.TombstoneStream(b.ctx, stream, esdb.TombstoneStreamOptions{ExpectedRevision: esdb.Revision(0)})
	require.Error(t, err, "a wrong revision ends nothing")
	_, err = b.client.TombstoneStream(b.ctx, stream, esdb.TombstoneStreamOptions{ExpectedRevision: esdb.Revision(1)})
	require.NoError(t, err)

	_, err = b.read(stream, esdb.ReadStreamOptions{From: esdb.Start{}}, 1)
	requireCode(t, esdb.ErrorCodeStreamDeleted, err)
	_, err = b.append(stream, esdb.Any{}, newEvents(1)...)
	requireCode(t, esdb.ErrorCodeStreamDeleted, err)
	_, err = b.client.DeleteStream(b.ctx, stream, esdb.DeleteStreamOptions{ExpectedRevision: esdb.Any{}})
	require.ErrorContains(t, err, "is deleted")
	_, err = b.client.TombstoneStream(b.ctx, stream, esdb.TombstoneStreamOptions{ExpectedRevision: esdb.Any{}})
	require.ErrorContains(t, err, "is deleted")
}

func TestTombstoneOfAStreamThatNeverWas(t *testing.T) {
	b := newBench(t)
	stream := b.stream()
	_, err := b.client.TombstoneStream(b.ctx, stream, esdb.TombstoneStreamOptions{ExpectedRevision: esdb.NoStream{}})
	require.NoError(t, err)
	_, err = b.append(stream, esdb.NoStream{}, newEvents(1)...)
	requireCode(t, esdb.ErrorCodeStreamDeleted, err)
}

func (b bench) setMetadata(stream string, set func(*esdb.StreamMetadata)) {
	b.Helper()
	var m esdb.StreamMetadata
	set(&m)
	_, err := b.client.SetStreamMetadata(b.ctx, stream, esdb.AppendToStreamOptions{ExpectedRevision: esdb.Any{}}, m)
	require.NoError(b, err)
}

func TestMetadataBoundsWhatIsRead(t *testing.T) {
	t.Run("$maxCount", func(t *testing.T) {
		b := newBench(t)
		stream := b.stream()
		b.mustAppend(stream, esdb.NoStream{}, newEvents(5)...)
		b.setMetadata(stream, func(m *esdb.StreamMetadata) { m.SetMaxCount(2) })
		require.Equal(t, []uint64{3, 4}, revisions(b.mustRead(stream)))
		b.mustAppend(stream, esdb.Revision(4), newEvents(1)...)
		require.Equal(t, []uint64{4, 5}, revisions(b.mustRead(stream)))
		got, err := b.read(stream, esdb.ReadStreamOptions{Direction: esdb.Backwards, From: esdb.End{}}, 10)
		require.NoError(t, err)
		require.Equal(t, []uint64{5, 4}, revisions(got))
	})
	t.Run("$tb", func(t *testing.T) {
		b := newBench(t)
		stream := b.stream()
		b.mustAppend(stream, esdb.NoStream{}, newEvents(5)...)
		b.setMetadata(stream, func(m *esdb.StreamMetadata) { m.SetTruncateBefore(3) })
		require.Equal(t, []uint64{3, 4}, revisions(b.mustRead(stream)))
	})
	t.Run("$maxAge", func(t *testing.T) {
		b := newBench(t)
		stream := b.stream()
		b.mustAppend(stream, esdb.NoStream{}, newEvents(2)...)
		b.setMetadata(stream, func(m *esdb.StreamMetadata) { m.SetMaxAge(time.Hour) })
		require.Len(t, b.mustRead(stream), 2)
		b.setMetadata(stream, func(m *esdb.StreamMetadata) { m.SetMaxAge(time.Second) })
		require.Eventually(t, func() bool { return len(b.mustRead(stream)) == 0 }, patience, 50*time.Millisecond)
	})
	t.Run("what it says reads back", func(t *testing.T) {
		b := newBench(t)
		stream := b.stream()
		b.setMetadata(stream, func(m *esdb.StreamMetadata) {
			m.SetMaxCount(7)
			m.AddCustomProperty("owner", "sales")
		})
		m, err := b.client.GetStreamMetadata(b.ctx, stream, esdb.ReadStreamOptions{Direction: esdb.Backwards, From: esdb.End{}})
		require.NoError(t, err)
		require.Equal(t, uint64(7), *m.MaxCount())
		require.Equal(t, "sales", m.CustomProperty("owner"))
	})
}

func (b bench) readAll(options esdb.ReadAllOptions, count uint64) []*esdb.RecordedEvent {
	b.Helper()
	reading, err := b.client.ReadAll(b.ctx, options, count)
	require.NoError(b, err)
	events, err := drain(reading)
	require.NoError(b, err)
	return events
}

func TestReadAll(t *testing.T) {
	b := newBench(t)
	one, other := b.stream(), b.stream()
	first := b.mustAppend(one, esdb.NoStream{}, newEvents(1)...)
	b.mustAppend(other, esdb.NoStream{}, newEvents(2)...)
	last := b.mustAppend(one, esdb.Revision(0), newEvents(1)...)
	at := func(w *esdb.WriteResult) esdb.Position {
		return esdb.Position{Commit: w.CommitPosition, Prepare: w.PreparePosition}
	}

	forwards := b.readAll(esdb.ReadAllOptions{From: at(first)}, 1_000_000) // others append meanwhile
	require.Equal(t, at(first), forwards[0].Position, "forwards begins with the event at the position")
	var mine []string
	for i, e := range forwards {
		if i > 0 {
			require.Greater(t, e.Position.Commit, forwards[i-1].Position.Commit)
		}
		if e.StreamID == one || e.StreamID == other {
			mine = append(mine, fmt.Sprintf("%t %d", e.StreamID == one, e.EventNumber))
		}
	}
	require.Equal(t, []string{"true 0", "false 0", "false 1", "true 1"}, mine)

	backwards := b.readAll(esdb.ReadAllOptions{Direction: esdb.Backwards, From: at(last)}, 1)
	require.Len(t, backwards, 1)
	require.Less(t, backwards[0].Position.Commit, last.CommitPosition, "backwards begins before the position")

	require.Len(t, b.readAll(esdb.ReadAllOptions{From: esdb.Start{}}, 3), 3)
	require.Len(t, b.readAll(esdb.ReadAllOptions{Direction: esdb.Backwards, From: esdb.End{}}, 2), 2)
	require.Empty(t, b.readAll(esdb.ReadAllOptions{Direction: esdb.Backwards, From: esdb.Start{}}, 2))
	require.Empty(t, b.readAll(esdb.ReadAllOptions{From: esdb.End{}}, 2))
}

// following is a subscription whose news come with a deadline.
type following struct {
	bench
	subscription *esdb.Subscription
}

func (b bench) followAll(options esdb.SubscribeToAllOptions) following {
	b.Helper()
	s, err := b.client.SubscribeToAll(b.ctx, options)
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, s.Close()) })
	return following{b, s}
}

func (b bench) follow(stream string, from esdb.StreamPosition) following {
	b.Helper()
	s, err := b.client.SubscribeToStream(b.ctx, stream, esdb.SubscribeToStreamOptions{From: from})
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, s.Close()) })
	return following{b, s}
}

// next gives the next news; the bench's context bounds the wait.
func (f following) next() *esdb.SubscriptionEvent {
	f.Helper()
	e := f.subscription.Recv()
	require.Nil(f, e.SubscriptionDropped, "subscription dropped: %+v", e.SubscriptionDropped)
	return e
}

// events gives the next n events, whatever else is told between them.
func (f following) events(n int) []*esdb.RecordedEvent {
	f.Helper()
	var events []*esdb.RecordedEvent
	for len(events) < n {
		if e := f.next(); e.EventAppeared != nil {
			events = append(events, e.EventAppeared.OriginalEvent())
		}
	}
	return events
}

func (f following) untilCaughtUp() (events []*esdb.RecordedEvent) {
	f.Helper()
	for {
		e := f.next()
		if e.CaughtUp != nil {
			return events
		}
		if e.EventAppeared != nil {
			events = append(events, e.EventAppeared.OriginalEvent())
		}
	}
}

func TestSubscriptionToStream(t *testing.T) {
	t.Run("from the start, then live", func(t *testing.T) {
		b := newBench(t)
		stream := b.stream()
		b.mustAppend(stream, esdb.NoStream{}, newEvents(3)...)
		f := b.follow(stream, esdb.Start{})
		require.Equal(t, []uint64{0, 1, 2}, revisions(f.untilCaughtUp()))
		b.mustAppend(stream, esdb.Revision(2), newEvents(2)...)
		require.Equal(t, []uint64{3, 4}, revisions(f.events(2)))
	})
	t.Run("a revision is excluded", func(t *testing.T) {
		b := newBench(t)
		stream := b.stream()
		b.mustAppend(stream, esdb.NoStream{}, newEvents(3)...)
		require.Equal(t, []uint64{2}, revisions(b.follow(stream, esdb.Revision(1)).untilCaughtUp()))
	})
	t.Run("from the end", func(t *testing.T) {
		b := newBench(t)
		stream := b.stream()
		b.mustAppend(stream, esdb.NoStream{}, newEvents(3)...)
		f := b.follow(stream, esdb.End{})
		require.Empty(t, f.untilCaughtUp())
		b.mustAppend(stream, esdb.Revision(2), newEvents(1)...)
		require.Equal(t, []uint64{3}, revisions(f.events(1)))
	})
	t.Run("before the stream is there", func(t *testing.T) {
		b := newBench(t)
		stream := b.stream()
		f := b.follow(stream, esdb.Start{})
		require.Empty(t, f.untilCaughtUp())
		b.mustAppend(stream, esdb.NoStream{}, newEvents(2)...)
		require.Equal(t, []uint64{0, 1}, revisions(f.events(2)))
	})
	t.Run("through a deletion and what follows", func(t *testing.T) {
		b := newBench(t)
		stream := b.stream()
		b.mustAppend(stream, esdb.NoStream{}, newEvents(1)...)
		f := b.follow(stream, esdb.Start{})
		require.Len(t, f.untilCaughtUp(), 1)
		_, err := b.client.DeleteStream(b.ctx, stream, esdb.DeleteStreamOptions{ExpectedRevision: esdb.Any{}})
		require.NoError(t, err)
		b.mustAppend(stream, esdb.NoStream{}, newEvents(1)...)
		require.Equal(t, []uint64{1}, revisions(f.events(1)))
	})
}

func TestSubscriptionToAllStartsAfterItsPosition(t *testing.T) {
	b := newBench(t)
	stream := b.stream()
	first := b.mustAppend(stream, esdb.NoStream{}, newEvents(1)...)
	rest := newEvents(3)
	b.mustAppend(stream, esdb.Revision(0), rest...)
	f := b.followAll(esdb.SubscribeToAllOptions{
		From:   esdb.Position{Commit: first.CommitPosition, Prepare: first.PreparePosition},
		Filter: &esdb.SubscriptionFilter{Type: esdb.StreamFilterType, Prefixes: []string{stream}},
	})
	require.Equal(t, []uint64{1, 2, 3}, revisions(f.events(3)))
}

// No event is missed or told twice where a subscription goes from what is stored to what is new, while writers never pause.
func TestSubscriptionToAllMissesAndRepeatsNothing(t *testing.T) {
	b := newBench(t)
	prefix := b.stream()
	const writers, perWriter = 8, 120
	var all sync.WaitGroup
	defer all.Wait()
	started := make(chan struct{}, writers)
	for w := range writers {
		all.Go(func() {
			for i := range perWriter {
				e := newEvent("Counted", fmt.Sprintf(`{"n":%d}`, i))
				if _, err := b.append(fmt.Sprintf("%s-%d", prefix, w), esdb.Any{}, e); err != nil {
					t.Errorf("append: %v", err)
					return
				}
				if i == perWriter/3 {
					started <- struct{}{}
				}
			}
		})
	}
	<-started // there is something to catch up with, and more to come
	followers := make([]following, 4)
	for i := range followers {
		followers[i] = b.followAll(esdb.SubscribeToAllOptions{From: esdb.Start{}, Filter: &esdb.SubscriptionFilter{Type: esdb.StreamFilterType, Prefixes: []string{prefix}}})
	}
	for _, f := range followers {
		next := map[string]uint64{}
		var last uint64
		for _, e := range f.events(writers * perWriter) {
			require.Greater(t, e.Position.Commit, last)
			last = e.Position.Commit
			require.Equal(t, next[e.StreamID], e.EventNumber)
			next[e.StreamID]++
		}
	}
}

func TestFilters(t *testing.T) {
	b := newBench(t)
	mark := strings.ReplaceAll(uuid.NewString(), "-", "")
	one, other := "filter-"+mark+"-one", "filter-"+mark+"-other"
	b.mustAppend(one, esdb.NoStream{}, newEvent("A"+mark, `{}`), newEvent("B"+mark, `{}`))
	b.mustAppend(other, esdb.NoStream{}, newEvent("A"+mark+".v2", `{}`), newEvent("C"+mark, `{}`))
	for _, c := range []struct {
		name   string
		filter esdb.SubscriptionFilter
		want   []string
	}{
		{"event type prefix", esdb.SubscriptionFilter{Type: esdb.EventFilterType, Prefixes: []string{"A" + mark}}, []string{"A" + mark, "A" + mark + ".v2"}},
		{"event type prefixes", esdb.SubscriptionFilter{Type: esdb.EventFilterType, Prefixes: []string{"B" + mark, "C" + mark}}, []string{"B" + mark, "C" + mark}},
		{"event type regex", esdb.SubscriptionFilter{Type: esdb.EventFilterType, Regex: "^[AC]" + mark + "$"}, []string{"A" + mark, "C" + mark}},
		{"stream prefix", esdb.SubscriptionFilter{Type: esdb.StreamFilterType, Prefixes: []string{one}}, []string{"A" + mark, "B" + mark}},
		{"stream regex", esdb.SubscriptionFilter{Type: esdb.StreamFilterType, Regex: mark + "-other$"}, []string{"A" + mark + ".v2", "C" + mark}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var types []string
			for _, e := range b.followAll(esdb.SubscribeToAllOptions{From: esdb.Start{}, Filter: &c.filter}).untilCaughtUp() {
				types = append(types, e.EventType)
			}
			require.Equal(t, c.want, types)
		})
	}
}

// A subscription that selects little still learns how far it got, so that a restart does not look at everything again.
func TestFilteredSubscriptionTellsCheckpoints(t *testing.T) {
	b := newBench(t)
	stream := b.stream()
	b.mustAppend(stream, esdb.NoStream{}, newEvents(200)...)
	last := b.mustAppend(stream, esdb.Revision(199), newEvents(1)...)
	f := b.followAll(esdb.SubscribeToAllOptions{
		From:               esdb.Start{},
		MaxSearchWindow:    10,
		CheckpointInterval: 2,
		Filter:             &esdb.SubscriptionFilter{Type: esdb.EventFilterType, Prefixes: []string{"never-" + uuid.NewString()}},
	})
	var before esdb.Position
	for before.Commit < last.CommitPosition {
		e := f.next()
		require.Nil(t, e.EventAppeared)
		if e.CheckPointReached != nil {
			require.Greater(t, e.CheckPointReached.Commit, before.Commit)
			before = *e.CheckPointReached
		}
	}
}

func TestClosedSubscriptionIsDropped(t *testing.T) {
	b := newBench(t)
	f := b.follow(b.stream(), esdb.Start{})
	require.Empty(t, f.untilCaughtUp())
	require.NoError(t, f.subscription.Close())
	require.NotNil(t, f.subscription.Recv().SubscriptionDropped)
}

// A client that finds its node through gossip, as in a cluster, finds this one.
func TestDiscoveryByGossip(t *testing.T) {
	config, err := esdb.ParseConnectionString(serverURL(t))
	require.NoError(t, err)
	if config.Address == "" {
		t.Skip("the server's connection string names several nodes already")
	}
	host, port, found := strings.Cut(config.Address, ":")
	require.True(t, found)
	url := fmt.Sprintf("esdb://%s:%s,%s:%s?tls=%t", host, port, host, port, !config.DisableTLS)
	b := bench{t, context.Background(), connect(t, url)}
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	b.ctx = ctx
	b.mustAppend(b.stream(), esdb.NoStream{}, newEvents(1)...)
}

// What is stored is the JSON that was sent, byte for byte.
func TestDataIsNotRewritten(t *testing.T) {
	b := newBench(t)
	stream := b.stream()
	data := "{ \"b\" : 1,\n \"a\" : 1.50 }"
	b.mustAppend(stream, esdb.NoStream{}, newEvent("Spaced", data))
	got := b.mustRead(stream)
	require.Equal(t, data, string(got[0].Data))
	require.True(t, json.Valid(got[0].Data))
}
