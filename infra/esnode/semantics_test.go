package esnode_test

import (
	"testing"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"
	"github.com/stretchr/testify/require"
)

// These tests are of the conformance suite too: the corners of deletion, of metadata and of repeated appends, where a store that is only like
// EventStoreDB would show.

func (b bench) delete(stream string, expected esdb.ExpectedRevision) error {
	_, err := b.client.DeleteStream(b.ctx, stream, esdb.DeleteStreamOptions{ExpectedRevision: expected})
	return err
}

func (b bench) requireAbsent(stream string) {
	b.Helper()
	_, err := b.read(stream, esdb.ReadStreamOptions{From: esdb.Start{}}, 1)
	requireCode(b, esdb.ErrorCodeResourceNotFound, err)
}

func TestStreamExistsMeansMoreThanThatItHasEvents(t *testing.T) {
	t.Run("a stream with nothing but metadata exists", func(t *testing.T) {
		b := newBench(t)
		stream := b.stream()
		b.setMetadata(stream, func(m *esdb.StreamMetadata) { m.SetMaxCount(5) })
		b.mustAppend(stream, esdb.StreamExists{}, newEvents(1)...)
		require.Len(t, b.mustRead(stream), 1)
	})
	t.Run("one that was deleted is deleted", func(t *testing.T) {
		b := newBench(t)
		stream := b.stream()
		events := newEvents(1)
		b.mustAppend(stream, esdb.NoStream{}, events...)
		require.NoError(t, b.delete(stream, esdb.Any{}))
		for _, again := range [][]esdb.EventData{newEvents(1), events} {
			_, err := b.append(stream, esdb.StreamExists{}, again...)
			requireCode(t, esdb.ErrorCodeStreamDeleted, err)
		}
	})
}

func TestRepeatWithoutARevisionGoesByTheIDs(t *testing.T) {
	for name, expected := range map[string]esdb.ExpectedRevision{"any": esdb.Any{}, "stream exists": esdb.StreamExists{}} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			stream := b.stream()
			events := newEvents(3)
			b.mustAppend(stream, esdb.NoStream{}, events[0])
			b.mustAppend(stream, esdb.Any{}, events[1])
			b.mustAppend(stream, esdb.Any{}, events[2])
			require.Equal(t, uint64(2), b.mustAppend(stream, expected, events[0], events[2]).NextExpectedVersion, "all are there, if not side by side")
			_, err := b.append(stream, expected, events[0], newEvents(1)[0])
			requireCode(t, esdb.ErrorCodeWrongExpectedVersion, err)
			require.Len(t, b.mustRead(stream), 3)
		})
	}
	t.Run("an ID twice in one append", func(t *testing.T) {
		b := newBench(t)
		stream := b.stream()
		twice := newEvents(1)[0]
		b.mustAppend(stream, esdb.Any{}, twice, twice)
		b.mustAppend(stream, esdb.Any{}, twice, twice)
		require.Len(t, b.mustRead(stream), 2)
	})
}

func TestAppendAfterASoftDeletion(t *testing.T) {
	t.Run("a repeat of what was deleted adds nothing", func(t *testing.T) {
		b := newBench(t)
		stream := b.stream()
		events := newEvents(2)
		b.mustAppend(stream, esdb.NoStream{}, events...)
		require.NoError(t, b.delete(stream, esdb.Any{}))
		require.Equal(t, uint64(1), b.mustAppend(stream, esdb.NoStream{}, events...).NextExpectedVersion)
		b.requireAbsent(stream)
	})
	t.Run("half a repeat is refused", func(t *testing.T) {
		b := newBench(t)
		stream := b.stream()
		events := newEvents(2)
		b.mustAppend(stream, esdb.NoStream{}, events...)
		require.NoError(t, b.delete(stream, esdb.Any{}))
		_, err := b.append(stream, esdb.NoStream{}, events[0], newEvents(1)[0])
		requireCode(t, esdb.ErrorCodeWrongExpectedVersion, err)
		b.requireAbsent(stream)
	})
	t.Run("at the last revision it opens the stream again", func(t *testing.T) {
		b := newBench(t)
		stream := b.stream()
		b.mustAppend(stream, esdb.NoStream{}, newEvents(2)...)
		require.NoError(t, b.delete(stream, esdb.Any{}))
		_, err := b.append(stream, esdb.Revision(0), newEvents(1)...)
		requireCode(t, esdb.ErrorCodeWrongExpectedVersion, err)
		b.mustAppend(stream, esdb.Revision(1), newEvents(1)...)
		require.Equal(t, []uint64{2}, revisions(b.mustRead(stream)))
	})
}

func TestSoftDeletionInItsCorners(t *testing.T) {
	t.Run("a stream that never was", func(t *testing.T) {
		b := newBench(t)
		require.Error(t, b.delete(b.stream(), esdb.Any{}))
	})
	t.Run("twice", func(t *testing.T) {
		b := newBench(t)
		stream := b.stream()
		b.mustAppend(stream, esdb.NoStream{}, newEvents(2)...)
		require.NoError(t, b.delete(stream, esdb.Revision(1)))
		require.NoError(t, b.delete(stream, esdb.Revision(1)), "the repeat of a deletion whose answer was lost")
		require.NoError(t, b.delete(stream, esdb.Any{}))
		b.requireAbsent(stream)
	})
	t.Run("a stream with nothing but metadata", func(t *testing.T) {
		b := newBench(t)
		stream := b.stream()
		b.setMetadata(stream, func(m *esdb.StreamMetadata) { m.SetMaxCount(5) })
		require.NoError(t, b.delete(stream, esdb.Any{}))
		b.requireAbsent(stream)
		b.mustAppend(stream, esdb.NoStream{}, newEvents(1)...)
		require.Equal(t, []uint64{0}, revisions(b.mustRead(stream)))
	})
	t.Run("it takes the metadata with it", func(t *testing.T) {
		b := newBench(t)
		stream := b.stream()
		b.mustAppend(stream, esdb.NoStream{}, newEvents(2)...)
		b.setMetadata(stream, func(m *esdb.StreamMetadata) { m.SetMaxCount(1) })
		require.NoError(t, b.delete(stream, esdb.Any{}))
		b.mustAppend(stream, esdb.NoStream{}, newEvents(2)...)
		require.Equal(t, []uint64{2, 3}, revisions(b.mustRead(stream)))
	})
	t.Run("new metadata opens the stream again, without what was deleted", func(t *testing.T) {
		b := newBench(t)
		stream := b.stream()
		b.mustAppend(stream, esdb.NoStream{}, newEvents(3)...)
		require.NoError(t, b.delete(stream, esdb.Any{}))
		b.setMetadata(stream, func(m *esdb.StreamMetadata) { m.AddCustomProperty("owner", "sales") })
		require.Empty(t, b.mustRead(stream))
		b.mustAppend(stream, esdb.StreamExists{}, newEvents(1)...)
		require.Equal(t, []uint64{3}, revisions(b.mustRead(stream)))
		m, err := b.client.GetStreamMetadata(b.ctx, stream, esdb.ReadStreamOptions{Direction: esdb.Backwards, From: esdb.End{}})
		require.NoError(t, err)
		require.Equal(t, "sales", m.CustomProperty("owner"))
		require.Equal(t, uint64(3), *m.TruncateBefore())
	})
	t.Run("in $all the events stand before the metadata that opens their stream", func(t *testing.T) {
		b := newBench(t)
		stream := b.stream()
		b.mustAppend(stream, esdb.NoStream{}, newEvents(1)...)
		require.NoError(t, b.delete(stream, esdb.Any{}))
		opened := b.mustAppend(stream, esdb.NoStream{}, newEvents(2)...)
		events := b.mustRead(stream)
		require.Equal(t, opened.CommitPosition, events[1].Position.Commit, "the answer tells where the last of the caller's events stands")
		meta := b.mustRead("$$" + stream)
		require.Greater(t, meta[len(meta)-1].Position.Commit, opened.CommitPosition)
	})
}

func TestMetadataStreams(t *testing.T) {
	t.Run("show the newest only", func(t *testing.T) {
		b := newBench(t)
		stream := b.stream()
		for _, n := range []uint64{3, 2, 1} {
			b.setMetadata(stream, func(m *esdb.StreamMetadata) { m.SetMaxCount(n) })
		}
		require.Equal(t, []uint64{2}, revisions(b.mustRead("$$"+stream)))
	})
	t.Run("end with their stream", func(t *testing.T) {
		b := newBench(t)
		stream := b.stream()
		b.mustAppend(stream, esdb.NoStream{}, newEvents(1)...)
		b.setMetadata(stream, func(m *esdb.StreamMetadata) { m.SetMaxCount(3) })
		_, err := b.client.TombstoneStream(b.ctx, stream, esdb.TombstoneStreamOptions{ExpectedRevision: esdb.Any{}})
		require.NoError(t, err)
		_, err = b.read("$$"+stream, esdb.ReadStreamOptions{From: esdb.Start{}}, 1)
		requireCode(t, esdb.ErrorCodeStreamDeleted, err)
		_, err = b.append("$$"+stream, esdb.Any{}, newEvents(1)...)
		requireCode(t, esdb.ErrorCodeStreamDeleted, err)
	})
	t.Run("what is not JSON bounds nothing", func(t *testing.T) {
		b := newBench(t)
		stream := b.stream()
		b.mustAppend(stream, esdb.NoStream{}, newEvents(3)...)
		binary := newEvent("$metadata", `{"$maxCount":1}`)
		binary.ContentType = esdb.ContentTypeBinary
		b.mustAppend("$$"+stream, esdb.Any{}, binary)
		require.Len(t, b.mustRead(stream), 3)
	})
	t.Run("$maxCount takes effect on what follows, $tb beyond the end hides all", func(t *testing.T) {
		b := newBench(t)
		stream := b.stream()
		b.setMetadata(stream, func(m *esdb.StreamMetadata) { m.SetMaxCount(2) })
		b.mustAppend(stream, esdb.NoStream{}, newEvents(4)...)
		require.Equal(t, []uint64{2, 3}, revisions(b.mustRead(stream)))
		b.setMetadata(stream, func(m *esdb.StreamMetadata) { m.SetTruncateBefore(100) })
		require.Empty(t, b.mustRead(stream), "the stream is there, and empty")
	})
	t.Run("the stream of no stream's metadata is no stream", func(t *testing.T) {
		b := newBench(t)
		_, err := b.append("$$", esdb.Any{}, newEvents(1)...)
		require.Error(t, err)
	})
}

func TestTombstonedStreamAndItsSubscribers(t *testing.T) {
	b := newBench(t)
	stream := b.stream()
	b.mustAppend(stream, esdb.NoStream{}, newEvents(1)...)
	f := b.follow(stream, esdb.Start{})
	require.Len(t, f.untilCaughtUp(), 1)
	_, err := b.client.TombstoneStream(b.ctx, stream, esdb.TombstoneStreamOptions{ExpectedRevision: esdb.Any{}})
	require.NoError(t, err)
	for {
		if e := f.subscription.Recv(); e.SubscriptionDropped != nil {
			require.ErrorContains(t, e.SubscriptionDropped.Error, "deleted")
			return
		}
	}
}

// A read takes as many pages as it needs; its bounds hold across them.
func TestReadsOfManyPages(t *testing.T) {
	b := newBench(t)
	stream := b.stream()
	const total, perAppend = 2500, 500
	for range total / perAppend {
		b.mustAppend(stream, esdb.Any{}, newEvents(perAppend)...)
	}
	for _, count := range []uint64{1, 1024, 1025, 1 << 62} {
		want := int(min(count, total))
		got, err := b.read(stream, esdb.ReadStreamOptions{From: esdb.Start{}}, count)
		require.NoError(b, err)
		require.Equal(t, want, len(got))
		for i, e := range got {
			require.Equal(t, uint64(i), e.EventNumber)
		}
		got, err = b.read(stream, esdb.ReadStreamOptions{Direction: esdb.Backwards, From: esdb.End{}}, count)
		require.NoError(b, err)
		require.Equal(t, want, len(got))
		for i, e := range got {
			require.Equal(t, uint64(total-1-i), e.EventNumber)
		}
	}
	got, err := b.read(stream, esdb.ReadStreamOptions{Direction: esdb.Backwards, From: esdb.Revision(2000)}, 1<<62)
	require.NoError(b, err)
	require.Equal(t, 2001, len(got))

	all := b.readAll(esdb.ReadAllOptions{From: got[2000].Position}, 4*total)
	next := uint64(0)
	for _, e := range all {
		if e.StreamID == stream {
			require.Equal(t, next, e.EventNumber)
			next++
		}
	}
	require.Equal(t, uint64(total), next)
	end := all[len(all)-1].Position
	back := b.readAll(esdb.ReadAllOptions{Direction: esdb.Backwards, From: end}, uint64(len(all)-1))
	require.Equal(t, len(all)-1, len(back))
	for i, e := range back {
		require.Equal(t, all[len(all)-2-i].EventID, e.EventID)
	}
	require.Empty(t, b.readAll(esdb.ReadAllOptions{From: esdb.Position{Commit: 1 << 60, Prepare: 1 << 60}}, 10))
}

// What expired is left out of reads in both directions, on whichever page it stands.
func TestMaxAgeAcrossPages(t *testing.T) {
	b := newBench(t)
	stream := b.stream()
	b.mustAppend(stream, esdb.NoStream{}, newEvents(1500)...)
	b.setMetadata(stream, func(m *esdb.StreamMetadata) { m.SetMaxAge(time.Second) })
	require.Eventually(t, func() bool { return len(b.mustRead(stream)) == 0 }, patience, 50*time.Millisecond)
	b.mustAppend(stream, esdb.Any{}, newEvents(2)...)
	b.setMetadata(stream, func(m *esdb.StreamMetadata) { m.SetMaxAge(time.Hour) })
	require.Len(t, b.mustRead(stream), 1502, "nothing was scavenged")
	b.setMetadata(stream, func(m *esdb.StreamMetadata) { m.SetMaxAge(time.Minute) })
	f := b.follow(stream, esdb.Start{})
	require.Len(t, f.untilCaughtUp(), 1502)
}
