package eventstore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/eventstore/storetest"
)

// BenchmarkCatchUp reads a store of 100,000 events with everything that a page needs, and with the bare client that only receives them, by
// turns in one run. The ratio is the Subscriber's speed in parts of the bare client's.
func BenchmarkCatchUp(b *testing.B) {
	store, client := storetest.Open(b), bare(b, storetest.URL(b))
	start, err := store.Head(b.Context())
	require.NoError(b, err)
	const total, batch = 100_000, 500
	stream := "bench-" + uuid.NewString()
	for i := 0; i < total; i += batch {
		events := make([]event.Proposed, batch)
		for j := range events {
			events[j] = proposed("Noted", i+j)
			events[j].Metadata = event.Metadata{
				CompanyID: "co_0123456789012345678901", Environment: event.Live, Actor: "tok_0123456789012345678901", RequestID: uuid.NewString(),
				CorrelationID: uuid.NewString(), TraceParent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Time: time.Now().UTC(),
			}
		}
		_, err := store.Append(b.Context(), fmt.Sprintf("%s-%d", stream, i), eventstore.NoStream, events...)
		require.NoError(b, err)
	}
	var bareTime, subscribeTime, pageTime time.Duration
	for b.Loop() {
		began := time.Now()
		require.Equal(b, total, bareReadAll(b, client, start))
		bareTime += time.Since(began)
		began = time.Now()
		bareSubscribe(b, client, start, total)
		subscribeTime += time.Since(began)
		began = time.Now()
		pageThrough(b, store, start, total)
		pageTime += time.Since(began)
	}
	perSecond := func(d time.Duration) float64 { return float64(total*b.N) / d.Seconds() }
	b.ReportMetric(perSecond(bareTime), "bare-read-events/s")
	b.ReportMetric(perSecond(subscribeTime), "bare-subscription-events/s")
	b.ReportMetric(perSecond(pageTime), "page-events/s")
	b.ReportMetric(perSecond(pageTime)/perSecond(bareTime), "ratio-to-read")
}

func position(p event.Position) esdb.AllPosition {
	if p.IsZero() {
		return esdb.Start{}
	}
	return esdb.Position{Commit: p.Commit, Prepare: p.Prepare}
}

// bareReadAll counts the events after a position that the client reads.
func bareReadAll(b *testing.B, client *esdb.Client, start event.Position) (count int) {
	read, err := client.ReadAll(b.Context(), esdb.ReadAllOptions{From: position(start)}, 1<<62)
	require.NoError(b, err)
	defer read.Close()
	for {
		got, err := read.Recv()
		if errors.Is(err, io.EOF) {
			return count
		}
		require.NoError(b, err)
		if got.OriginalEvent().Position.Commit > start.Commit && got.OriginalEvent().EventType == "Noted" {
			count++
		}
	}
}

// bareSubscribe receives so many events from the client's subscription.
func bareSubscribe(b *testing.B, client *esdb.Client, start event.Position, total int) {
	all, err := client.SubscribeToAll(b.Context(), esdb.SubscribeToAllOptions{From: position(start), Filter: esdb.ExcludeSystemEventsFilter()})
	require.NoError(b, err)
	defer all.Close()
	for seen := 0; seen < total; {
		got := all.Recv()
		require.Nil(b, got.SubscriptionDropped)
		if got.EventAppeared != nil {
			seen++
		}
	}
}

func pageThrough(b *testing.B, store *eventstore.Store, start event.Position, total int) {
	subscriber := eventstore.NewSubscriber(store, eventstore.SubscriberConfig{Checkpoint: from(start)})
	defer subscriber.Close()
	pages, err := subscriber.Subscribe(b.Context(), "bench")
	require.NoError(b, err)
	for seen := 0; seen < total; {
		msg := receive(b, pages)
		seen += len(eventstore.PageOf(msg).Events)
		msg.Ack()
	}
}

// BenchmarkAppend appends one event at a time, by the Store and by the bare client.
func BenchmarkAppend(b *testing.B) {
	store, client := storetest.Open(b), bare(b, storetest.URL(b))
	byStore := func(ctx context.Context, stream string) error {
		_, err := store.Append(ctx, stream, eventstore.Any, proposed("Noted", 1))
		return err
	}
	byClient := func(ctx context.Context, stream string) error {
		_, err := client.AppendToStream(ctx, stream, esdb.AppendToStreamOptions{ExpectedRevision: esdb.Any{}}, esdb.EventData{
			EventID: uuid.New(), EventType: "Noted", ContentType: esdb.ContentTypeJson, Data: []byte(`{"number":1}`), Metadata: []byte(`{"actor":"test"}`),
		})
		return err
	}
	for _, by := range []struct {
		name   string
		append func(context.Context, string) error
	}{{"store", byStore}, {"client", byClient}} {
		b.Run(by.name+"/alone", func(b *testing.B) {
			stream := "bench-" + uuid.NewString()
			for b.Loop() {
				if err := by.append(b.Context(), stream); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(by.name+"/together", func(b *testing.B) {
			b.SetParallelism(32)
			b.RunParallel(func(pb *testing.PB) {
				stream := "bench-" + uuid.NewString()
				for pb.Next() {
					if err := by.append(b.Context(), stream); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// BenchmarkQuietPage is the way of one event through a quiet system: from the end of its append to its page, and from the append's begin.
func BenchmarkQuietPage(b *testing.B) {
	store, kind := storetest.Open(b), newType()
	start, err := store.Head(b.Context())
	require.NoError(b, err)
	subscriber := eventstore.NewSubscriber(store, eventstore.SubscriberConfig{Types: []string{kind}, Checkpoint: from(start)})
	defer subscriber.Close()
	pages, err := subscriber.Subscribe(b.Context(), kind)
	require.NoError(b, err)
	var after, whole []time.Duration
	for b.Loop() {
		began := time.Now()
		appended := make(chan time.Time, 1)
		go func() {
			_, err := store.Append(context.Background(), "bench-"+kind, eventstore.Any, proposed(kind, 1))
			if err != nil {
				b.Error(err)
			}
			appended <- time.Now()
		}()
		msg := receive(b, pages)
		got := time.Now()
		msg.Ack()
		whole = append(whole, got.Sub(began))
		after = append(after, got.Sub(<-appended))
	}
	for name, all := range map[string][]time.Duration{"after-append": after, "whole": whole} {
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Microseconds()), name+"-p50-µs")
		b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), name+"-p99-µs")
	}
}

// BenchmarkFollowers has eight subscriptions of one store follow what is appended meanwhile, and one do so alone. The ratio is how fast all eight have an
// event in parts of how fast the one has it.
func BenchmarkFollowers(b *testing.B) {
	const total, batch = 20_000, 100
	run := func(followers int) time.Duration {
		store, kind := storetest.Open(b), newType()
		start, err := store.Head(b.Context())
		require.NoError(b, err)
		all := make([]*following, followers)
		for i := range all {
			all[i] = follow(b, store, start, eventstore.SubscriberConfig{Types: []string{kind}, FilterHere: true}, 0)
			defer all[i].subscriber.Close()
		}
		began := time.Now()
		var last event.Position
		for i := 0; i < total; i += batch {
			events := make([]event.Proposed, batch)
			for j := range events {
				events[j] = proposed(kind, i+j)
			}
			last, err = store.Append(b.Context(), "bench-"+kind, eventstore.Any, events...)
			require.NoError(b, err)
		}
		for _, f := range all {
			require.Len(b, f.after(b, last), total)
		}
		return time.Since(began)
	}
	var alone, together time.Duration
	for b.Loop() {
		alone += run(1)
		together += run(8)
	}
	b.ReportMetric(float64(total*b.N)/alone.Seconds(), "events/s-of-one")
	b.ReportMetric(float64(total*b.N)/together.Seconds(), "events/s-of-eight")
	b.ReportMetric(alone.Seconds()/together.Seconds(), "ratio")
}
