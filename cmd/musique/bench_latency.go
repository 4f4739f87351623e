package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/infra/kafka"
)

const (
	// benchTopic is where the bare way through Kafka goes.
	benchTopic = "musique.bench"
	// minRateReached is the part of a steady rate that has to be reached for the machine to bear it.
	minRateReached = 0.95
	// rateTries is how often the rate is halved at most.
	rateTries = 6
)

// latency measures how long after its answer a send is at the player, and how close together players begin with what is due at one moment.
func (b *bench) latency(ctx context.Context) (figures []benchFigure, err error) {
	s, err := startBenchSystem(ctx, b.dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	bare, err := openBareSteps(ctx, s.parts, b.dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, bare.close()) }()

	var floor []time.Duration
	var quiet []passage
	for began := time.Now(); time.Since(began) < 2*b.duration || len(quiet) == 0; {
		took, err := bare.take(ctx)
		if err != nil {
			return nil, err
		}
		floor = append(floor, took)
		if err := s.send(ctx); err != nil {
			return nil, err
		}
		arrived, err := s.sent.all(ctx)
		if err != nil {
			return nil, err
		}
		quiet = append(quiet, arrived...)
	}
	steady, rate, err := b.steady(ctx, s)
	if err != nil {
		return nil, err
	}
	for _, of := range []struct {
		from  string
		since func(passage) time.Duration
		when  string
		sent  []passage
	}{
		{"request", passage.sinceBegun, "quiet", quiet},
		{"202", passage.sinceAccepted, "quiet", quiet},
		{"request", passage.sinceBegun, fmt.Sprintf("%.0f/s", rate), steady},
		{"202", passage.sinceAccepted, fmt.Sprintf("%.0f/s", rate), steady},
	} {
		samples := make([]time.Duration, len(of.sent))
		for i, p := range of.sent {
			samples[i] = of.since(p)
		}
		for _, percent := range []int{50, 99} {
			name := fmt.Sprintf("%s to player, %s, p%d", of.from, of.when, percent)
			figures = append(figures, newFigure(name, "ms", percentile(samples, percent), percentile(floor, percent), "file + fsync, Kafka and back, PostgreSQL commit"))
		}
	}
	together, err := b.starts(ctx, s)
	return append(figures, together...), err
}

// steady sends at a steady rate, at half of it if the machine does not bear it, and so on. It returns what was sent and the rate that was reached.
func (b *bench) steady(ctx context.Context, s *benchSystem) (sent []passage, reached float64, err error) {
	rate := b.rate
	for range rateTries {
		var group errgroup.Group
		group.SetLimit(benchCallers)
		began, count := time.Now(), 0
		for ; time.Since(began) < b.duration; count++ {
			if err := sleepUntil(ctx, began.Add(time.Duration(float64(count)/rate*float64(time.Second)))); err != nil {
				return nil, 0, err
			}
			group.Go(func() error { return s.send(ctx) })
		}
		err := group.Wait()
		sent, allErr := s.sent.all(ctx)
		if err := errors.Join(err, allErr); err != nil {
			return nil, 0, err
		}
		reached = float64(count) / time.Since(began).Seconds() // a rate that piles up what is to be delivered is not borne either
		if reached >= minRateReached*rate || count == 1 {
			return sent, reached, nil
		}
		rate /= 2
	}
	return nil, 0, fmt.Errorf("the machine does not bear %.0f sends a second", 2*rate)
}

func sleepUntil(ctx context.Context, t time.Time) error {
	select {
	case <-time.After(time.Until(t)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// bareSteps are the waits that no delivery can do without, with nothing around them.
type bareSteps struct {
	file  *os.File
	event []byte
	kafka *kgo.Client
	pool  *pgxpool.Pool
}

func openBareSteps(ctx context.Context, p *parts, dir string) (*bareSteps, error) {
	if err := kafka.EnsureTopics(ctx, p.brokers, kafka.Topic{Name: benchTopic, Partitions: 1}); err != nil {
		return nil, err
	}
	if _, err := p.pool.Exec(ctx, "CREATE TABLE IF NOT EXISTS public.bench (payload bytea NOT NULL)"); err != nil {
		return nil, err
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(p.brokers...), kgo.DefaultProduceTopic(benchTopic), kgo.ConsumeTopics(benchTopic), kgo.ProducerLinger(0))
	if err != nil {
		return nil, err
	}
	file, err := os.Create(filepath.Join(dir, "bare-latency"))
	if err != nil {
		client.Close()
		return nil, err
	}
	return &bareSteps{file: file, event: aSend().Data, kafka: client, pool: p.pool}, nil
}

// take goes the way once: an append to a file with its fsync, a message through Kafka and back, a row in PostgreSQL with its commit.
func (b *bareSteps) take(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	if _, err := b.file.Write(b.event); err != nil {
		return 0, err
	}
	if err := b.file.Sync(); err != nil {
		return 0, err
	}
	if err := b.kafka.ProduceSync(ctx, &kgo.Record{Value: b.event}).FirstErr(); err != nil {
		return 0, err
	}
	for received := 0; received == 0; {
		fetches := b.kafka.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return 0, err
		}
		received = fetches.NumRecords()
	}
	if _, err := b.pool.Exec(ctx, "INSERT INTO public.bench VALUES ($1)", b.event); err != nil {
		return 0, err
	}
	return time.Since(began), nil
}

func (b *bareSteps) close() error {
	b.kafka.Close()
	return b.file.Close()
}
