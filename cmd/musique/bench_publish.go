package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/infra/kafka"
	"github.com/musique/musique/workers"
	"github.com/musique/musique/workers/cloudevents"
)

// publishPatience bounds one run of the publisher, or of what it is compared with.
const publishPatience = 5 * time.Minute

// publishes measures how fast the publisher puts a history on its topics.
func (b *bench) publishes(ctx context.Context) (figures []benchFigure, err error) {
	config := benchParts(b.dir)
	parts, err := openParts(ctx, config, newLogger("text", "warn"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, parts.close()) }()
	events, err := bareClient(parts.eventStoreURL)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, events.Close()) }()
	if err := appendSends(ctx, events, b.events, false); err != nil {
		return nil, err
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(parts.brokers...), kgo.ConsumeTopics(cloudevents.Topics...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return nil, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, publishPatience)
	defer cancel()

	published := func() (tally, error) {
		ctx, stop := context.WithCancel(ctx)
		running, runCtx := errgroup.WithContext(ctx)
		deps := (&app{config: config, parts: parts, log: newLogger("text", "warn")}).workerDeps()
		began := time.Now()
		running.Go(func() error {
			return workers.NewPublisher(deps, workers.PublisherConfig{Partitions: config.topicPartitions, Retention: config.topicRetention}).Run(runCtx)
		})
		err := awaitOffsets(ctx, client, b.events, cloudevents.Topics...)
		t := tally{b.events, time.Since(began)}
		stop()
		return t, errors.Join(err, running.Wait())
	}
	ours, err := published()
	if err != nil {
		return nil, err
	}
	records, err := takeRecords(ctx, client, b.events)
	if err != nil {
		return nil, err
	}
	bare, err := bareProducer(ctx, parts.brokers, config.topicPartitions, records)
	if err != nil {
		return nil, err
	}
	return []benchFigure{
		newFigure(fmt.Sprintf("publisher, %d events from the first to the last on their topics", b.events), "/s", ours.perSecond(), bare.perSecond(),
			"a bare franz-go producer of the same records, on the same broker"),
	}, nil
}

// awaitOffsets waits until so many records are on topics, which may have yet to be made.
func awaitOffsets(ctx context.Context, client *kgo.Client, count int, topics ...string) error {
	admin, tick := kadm.NewClient(client), time.NewTicker(5*time.Millisecond)
	defer tick.Stop()
	for {
		ends, err := admin.ListEndOffsets(ctx, topics...)
		if err != nil {
			return err
		}
		var there int64
		ends.Each(func(end kadm.ListedOffset) {
			if end.Err == nil {
				there += end.Offset
			}
		})
		if there >= int64(count) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d events are published: %w", there, count, ctx.Err())
		}
	}
}

// takeRecords reads so many records.
func takeRecords(ctx context.Context, client *kgo.Client, count int) (records []*kgo.Record, err error) {
	for len(records) < count {
		fetched := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		records = append(records, fetched.Records()...)
	}
	return records, nil
}

// bareProducer writes records again, to a topic of its own.
func bareProducer(ctx context.Context, brokers []string, partitions int32, records []*kgo.Record) (tally, error) {
	const topic = "bench.bare"
	if err := kafka.EnsureTopics(ctx, brokers, kafka.Topic{Name: topic, Partitions: partitions}); err != nil {
		return tally{}, err
	}
	producer, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.DefaultProduceTopic(topic))
	if err != nil {
		return tally{}, err
	}
	defer producer.Close()
	began := time.Now()
	var failed error
	for _, r := range records {
		producer.Produce(ctx, &kgo.Record{Key: r.Key, Value: r.Value, Headers: r.Headers}, func(_ *kgo.Record, err error) {
			if err != nil {
				failed = err // the client calls one after the other
			}
		})
	}
	err = producer.Flush(ctx)
	return tally{len(records), time.Since(began)}, errors.Join(err, failed)
}
