package eventstore

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/event"
)

func at(position uint64) event.Recorded {
	return event.Recorded{Position: event.Position{Commit: position, Prepare: position}, Data: []byte("{}")}
}

// taken gives the positions of the events of the next page.
func taken(t *testing.T, in *intake, tick <-chan time.Time) (positions []uint64, got gathered) {
	got, err := in.take(t.Context(), tick)
	require.NoError(t, err)
	for _, e := range got.page.Events {
		positions = append(positions, e.Position.Commit)
	}
	return positions, got
}

func TestPageIsWhatArrivedMeanwhile(t *testing.T) {
	t.Parallel()
	in := newIntake(3, nil)
	for position := range uint64(3) {
		require.NoError(t, in.event(t.Context(), at(position+1)))
	}
	positions, got := taken(t, in, nil)
	require.Equal(t, []uint64{1, 2, 3}, positions)
	require.Equal(t, at(3).Position, got.page.Through)

	require.NoError(t, in.event(t.Context(), at(4)))
	in.moved(at(9).Position)
	positions, got = taken(t, in, nil)
	require.Equal(t, []uint64{4}, positions)
	require.Equal(t, at(9).Position, got.page.Through)
}

func TestIntakeHoldsOnePage(t *testing.T) {
	t.Parallel()
	full := map[string]func() *intake{
		"by events": func() *intake {
			in := newIntake(1, nil)
			require.NoError(t, in.event(t.Context(), at(1)))
			return in
		},
		"by bytes": func() *intake {
			in := newIntake(100, nil)
			large := at(1)
			large.Data = make([]byte, maxPageBytes)
			require.NoError(t, in.event(t.Context(), large))
			return in
		},
	}
	for name, fill := range full {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in := fill()
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			require.ErrorIs(t, in.event(ctx, at(2)), context.Canceled, "there is no room")

			added := make(chan error, 1)
			go func() { added <- in.event(t.Context(), at(2)) }()
			positions, _ := taken(t, in, nil)
			require.Equal(t, []uint64{1}, positions)
			require.NoError(t, <-added)
			positions, _ = taken(t, in, nil)
			require.Equal(t, []uint64{2}, positions)
		})
	}
}

func TestMovedPositionWaitsForTheTick(t *testing.T) {
	t.Parallel()
	in := newIntake(10, nil)
	in.moved(at(5).Position)
	in.moved(at(6).Position)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := in.take(ctx, nil)
	require.ErrorIs(t, err, context.Canceled, "a position alone is no page")

	tick := make(chan time.Time, 1)
	tick <- time.Time{}
	positions, got := taken(t, in, tick)
	require.Empty(t, positions)
	require.Equal(t, at(6).Position, got.page.Through)

	in.moved(at(7).Position)
	in.wentLive()
	_, got = taken(t, in, nil)
	require.True(t, got.caughtUp)
	require.Equal(t, at(7).Position, got.page.Through)

	require.NoError(t, in.event(t.Context(), at(8)))
	in.end(context.DeadlineExceeded)
	positions, got = taken(t, in, nil)
	require.Equal(t, []uint64{8}, positions, "what came before the end is given with it")
	require.ErrorIs(t, got.err, context.DeadlineExceeded)
}

// Events that are to be held wait for more, until the page is full, something else comes or the time is over.
func TestHeldEventsGather(t *testing.T) {
	t.Parallel()
	hold := func(e event.Recorded) bool { return e.Position.Commit < 10 }
	put := func(in *intake, positions ...uint64) {
		for _, p := range positions {
			require.NoError(t, in.event(t.Context(), at(p)))
		}
	}
	for name, c := range map[string]struct {
		put   []uint64
		then  func(*intake)
		waits bool
	}{
		"alone":                        {put: []uint64{1, 2}, waits: true},
		"before one that is not":       {put: []uint64{1, 2, 10}},
		"behind one that is not":       {put: []uint64{10, 1}},
		"a full page":                  {put: []uint64{1, 2, 3, 4}},
		"that are the newest":          {put: []uint64{1}, then: (*intake).wentLive},
		"of a connection that is over": {put: []uint64{1}, then: func(in *intake) { in.end(context.Canceled) }},
		"while the position moves":     {put: []uint64{1}, then: func(in *intake) { in.moved(at(5).Position) }, waits: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in := newIntake(4, hold)
			for range 2 { // each page by itself
				began := time.Now()
				put(in, c.put...)
				if c.then != nil {
					c.then(in)
				}
				positions, _ := taken(t, in, nil)
				require.Equal(t, c.put, positions)
				if c.waits {
					require.GreaterOrEqual(t, time.Since(began), gatherFor)
				} else {
					in.mu.Lock()
					require.Zero(t, in.held)
					in.mu.Unlock()
				}
			}
		})
	}
}
