package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/commands"
)

const (
	// crowdRounds is how many events are sent to all players, one after the other.
	crowdRounds = 3
	// bareEventBytes is about how long the event of a delivery is.
	bareEventBytes = 700
)

// crowd measures what many connected players cost the process that serves them, and how fast something reaches all of them.
func (b *bench) crowd(ctx context.Context) (figures []benchFigure, err error) {
	bare, err := b.bareCrowd(ctx)
	if err != nil {
		return nil, err
	}
	s, err := openBenchSystem(ctx, b.dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.populate(ctx, 0, b.players); err != nil {
		return nil, err
	}
	tokens, err := s.enrol(ctx, 0, b.players)
	if err != nil {
		return nil, err
	}
	var accepted []time.Time
	var product crowdFigures
	err = b.profiled("players", func() (err error) {
		product, err = measureCrowd(ctx, fleetOrders{strings.TrimPrefix(s.url, "http://"), "/api/player/v1/stream", tokens}, b.heapProfile, func() (time.Time, error) {
			began := time.Now()
			_, err := s.sendToAll(ctx, b.players)
			accepted = append(accepted, time.Now())
			return began, err
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	name := func(what string) string { return fmt.Sprintf("%d players, %s", b.players, what) }
	per := func(bytes int64) float64 { return float64(bytes) / 1024 / float64(b.players) }
	const bareIs = "a bare net/http server with as many streams"
	figures = []benchFigure{
		newFigure(name("heap and stacks of each"), "KB", per(product.inUse), per(bare.inUse), bareIs),
	}
	if product.resident > 0 {
		figures = append(figures, newFigure(name("resident of each"), "KB", per(product.resident), per(bare.resident), bareIs))
	}
	figures = append(figures, newFigure(name(fmt.Sprintf("all connected, %d at once", benchCallers)), "ms", milliseconds(product.connected), milliseconds(bare.connected), bareIs))
	for _, of := range []struct {
		name string
		at   func(fleetNews) int64
	}{
		{"p50", func(n fleetNews) int64 { return n.P50 }},
		{"p99", func(n fleetNews) int64 { return n.P99 }},
		{"last", func(n fleetNews) int64 { return n.Last }},
	} {
		baseline := median(bare.rounds, bare.began, of.at)
		const writesIs = "that server, from the first write of one event to all"
		figures = append(figures,
			newFigure(name(fmt.Sprintf("request to player, %s, median of %d", of.name, crowdRounds)), "ms", median(product.rounds, product.began, of.at), baseline, writesIs),
			newFigure(name(fmt.Sprintf("202 to player, %s, median of %d", of.name, crowdRounds)), "ms", median(product.rounds, accepted, of.at), baseline, writesIs))
	}
	return figures, nil
}

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1000 }

// median is the middle of how long after from the rounds came to a point, in milliseconds; 0 where that was before.
func median(rounds []fleetNews, from []time.Time, at func(fleetNews) int64) float64 {
	samples := make([]time.Duration, len(rounds))
	for i, r := range rounds {
		samples[i] = max(0, time.Duration(at(r)-from[i].UnixNano()))
	}
	return percentile(samples, 50)
}

// crowdFigures is what was measured of a server and its players.
type crowdFigures struct {
	connected       time.Duration
	inUse, resident int64 // bytes, of all streams
	began           []time.Time
	rounds          []fleetNews
}

// measureCrowd connects the players, looks what they cost, and sends to them. Look is called while they are connected and nothing is sent.
func measureCrowd(ctx context.Context, orders fleetOrders, look func() error, sendAll func() (began time.Time, err error)) (figures crowdFigures, err error) {
	before := settledMemory()
	starting := time.Now()
	players, connected, err := startFleet(ctx, orders)
	if err != nil {
		return figures, err
	}
	defer func() { err = errors.Join(err, players.close()) }()
	figures.connected = time.Duration(connected.Last - starting.UnixNano())
	with := settledMemory()
	figures.inUse, figures.resident = with.heap+with.stacks-before.heap-before.stacks, with.resident-before.resident
	if err := look(); err != nil {
		return figures, err
	}
	for range crowdRounds {
		began, err := sendAll()
		if err != nil {
			return figures, err
		}
		news, err := players.next(ctx)
		if err != nil {
			return figures, err
		}
		figures.began, figures.rounds = append(figures.began, began), append(figures.rounds, news)
	}
	return figures, nil
}

// heapProfile writes what is in the heap while the players are connected.
func (b *bench) heapProfile() error {
	if b.profiles == "" {
		return nil
	}
	return b.profile("players", "heap", func(out io.Writer) error { return pprof.Lookup("heap").WriteTo(out, 0) })
}

// enrol makes a device at each of so many locations, from one on, and gives their tokens.
func (s *benchSystem) enrol(ctx context.Context, first, locations int) ([]string, error) {
	tokens := make([]string, locations)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(benchCallers)
	for i := range tokens {
		group.Go(func() error {
			enrolled, err := s.commands.EnrolDevice.Handle(ctx, commands.EnrolDevice{Caller: s.caller, ExternalID: benchLocation(first + i)})
			tokens[i] = enrolled.Token
			return err
		})
	}
	return tokens, group.Wait()
}

// bareStreams serves event streams and does nothing else: no player is known, and what is sent to them comes from memory.
type bareStreams struct {
	mu   sync.Mutex
	open []chan []byte
}

func (b *bareStreams) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	events := make(chan []byte, 1)
	b.mu.Lock()
	b.open = append(b.open, events)
	b.mu.Unlock()
	w.Header().Set("Content-Type", "text/event-stream")
	control := http.NewResponseController(w)
	if _, err := w.Write([]byte("retry: 2000\n\n")); err != nil || control.Flush() != nil {
		return
	}
	for {
		select {
		case event := <-events:
			if _, err := w.Write(event); err != nil || control.Flush() != nil {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}

func (b *bareStreams) sendAll() {
	event := slices.Concat([]byte("data: "), bytes.Repeat([]byte{'x'}, bareEventBytes), []byte("\n\n"))
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, events := range b.open {
		events <- event
	}
}

// bareCrowd measures the bare server.
func (b *bench) bareCrowd(ctx context.Context) (figures crowdFigures, err error) {
	streams := &bareStreams{}
	var running errgroup.Group
	server, address, err := listen(ctx, "127.0.0.1:0", streams, &running)
	if err != nil {
		return figures, err
	}
	defer func() { err = errors.Join(err, server.Close(), running.Wait()) }()
	return measureCrowd(ctx, fleetOrders{address, "/", make([]string, b.players)}, func() error { return nil }, func() (time.Time, error) {
		began := time.Now()
		streams.sendAll()
		return began, nil
	})
}
