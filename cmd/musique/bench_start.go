package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/player"
)

const (
	// maxStarters is how many reference players start at the same moment; with fewer --players it is those.
	maxStarters = 50
	// startRounds is how many scheduled sends they start.
	startRounds = 3
	// startAhead is when a send is due after its request: time enough for all to fetch it.
	startAhead = 5 * time.Second
	// endedPoll is how often it is looked whether a send has ended.
	endedPoll = 50 * time.Millisecond
)

// starts measures how far apart reference players begin with what is due at one moment.
func (b *bench) starts(ctx context.Context, s *benchSystem) (figures []benchFigure, err error) {
	starters := min(maxStarters, b.players)
	names := make([]string, starters)
	for i := range names {
		names[i] = benchLocation(benchLocations + i)
	}
	if err := s.populate(ctx, benchLocations, starters); err != nil {
		return nil, err
	}
	tokens, err := s.enrol(ctx, benchLocations, starters)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	playing, ctx := errgroup.WithContext(ctx)
	defer func() {
		cancel()
		err = errors.Join(err, playing.Wait())
	}()
	begun := make(chan time.Time, starters)
	for i, token := range tokens {
		backend, err := player.Find(player.Simulated)
		if err != nil {
			return nil, err
		}
		playing.Go(func() error {
			return player.Run(ctx, player.Options{
				Server: s.url, DeviceToken: token, StateDir: filepath.Join(b.dir, "players", names[i]), Backend: startNoting{backend, begun}, Output: io.Discard,
				Log: slog.New(slog.DiscardHandler),
			})
		})
	}
	// The commands of a clock that is late by what a send has to be ahead: nobody waits for a minute, and all that follows is as ever.
	late := commands.New(commands.Deps{
		Store: s.parts.store, Blobs: s.parts.blobs, Keys: s.parts.keys, Reads: s.reads, Plans: s.config.plans, Log: s.log,
		Now: func() time.Time { return time.Now().Add(-send.MinAhead) },
	})
	var worst, bareWorst startTimes
	for range startRounds {
		due := time.Now().Add(startAhead)
		sent, err := late.SendAudio.Handle(ctx, commands.SendAudio{
			Caller: s.caller, AudioID: path.Base(path.Dir(s.sendPath)), Request: send.Request{Targets: send.Targets{ExternalIDs: names}, ScheduleAt: &due},
		})
		if err != nil {
			return nil, err
		}
		of, err := collectStarts(ctx, begun, starters, due)
		if err != nil {
			return nil, err
		}
		if err := s.ended(ctx, sent.ID); err != nil {
			return nil, err
		}
		bare, err := bareStarts(ctx, starters)
		if err != nil {
			return nil, err
		}
		worst, bareWorst = worst.or(of), bareWorst.or(bare)
	}
	name := func(what string) string {
		return fmt.Sprintf("%d reference players at playAt, %s, worst of %d", starters, what, startRounds)
	}
	const baselineIs = "as many timers of this process, due at one moment"
	return []benchFigure{
		newFigure(name("first to last start"), "ms", milliseconds(worst.spread), milliseconds(bareWorst.spread), baselineIs),
		newFigure(name("last start after it"), "ms", milliseconds(worst.last), milliseconds(bareWorst.last), baselineIs),
	}, nil
}

// ended waits until all players have played a send and said so, so that it is in the way of nothing that is measured next.
func (s *benchSystem) ended(ctx context.Context, sendID string) error {
	ctx, cancel := context.WithTimeout(ctx, benchPatience)
	defer cancel()
	for {
		ended, err := s.reads.SendEnded(ctx, sendID)
		if err != nil || ended {
			return err
		}
		if err := sleepUntil(ctx, time.Now().Add(endedPoll)); err != nil {
			return err
		}
	}
}

// startNoting is a backend that notes when it begins.
type startNoting struct {
	player.Backend
	begun chan<- time.Time
}

func (b startNoting) Play(ctx context.Context, s player.Sound) error {
	b.begun <- time.Now()
	return b.Backend.Play(ctx, s)
}

// startTimes is how far apart things began, and how long after their moment the last of them.
type startTimes struct{ spread, last time.Duration }

func (t startTimes) or(other startTimes) startTimes {
	return startTimes{max(t.spread, other.spread), max(t.last, other.last)}
}

// collectStarts waits until so many have begun with what was due.
func collectStarts(ctx context.Context, begun <-chan time.Time, n int, due time.Time) (startTimes, error) {
	patience := time.NewTimer(benchPatience)
	defer patience.Stop()
	times := make([]time.Time, n)
	for i := range times {
		select {
		case times[i] = <-begun:
		case <-patience.C:
			return startTimes{}, fmt.Errorf("%d of %d began within %v", i, n, benchPatience)
		case <-ctx.Done():
			return startTimes{}, ctx.Err()
		}
	}
	first, last := slices.MinFunc(times, time.Time.Compare), slices.MaxFunc(times, time.Time.Compare)
	return startTimes{last.Sub(first), last.Sub(due)}, nil
}

// bareStarts has as many goroutines wait for one moment.
func bareStarts(ctx context.Context, n int) (startTimes, error) {
	begun := make(chan time.Time, n)
	due := time.Now().Add(time.Second)
	var waiting sync.WaitGroup
	defer waiting.Wait()
	for range n {
		waiting.Go(func() {
			if sleepUntil(ctx, due) == nil {
				begun <- time.Now()
			}
		})
	}
	return collectStarts(ctx, begun, n, due)
}
