package simulation

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/domain/send"
	reference "github.com/musique/musique/player"
)

// speaker notes when a reference player begins to play.
type speaker struct {
	reference.Backend
	began chan<- time.Time
}

func (s speaker) Play(ctx context.Context, sound reference.Sound) error {
	s.began <- time.Now()
	return s.Backend.Play(ctx, sound)
}

// Reference players of several companies are to play at the same moment. None begins before it, and all do then; how far apart they are is told, and is a
// matter of how busy the machine is.
func TestReferencePlayersBeginTogether(t *testing.T) {
	const (
		players = 12
		// ahead is when they are due. The API takes nothing that is due so soon, so its clock is behind while it is asked.
		ahead  = 5 * time.Second
		behind = send.MinAhead - ahead + time.Second
		// tolerance is for a machine whose clock is set meanwhile.
		tolerance = 100 * time.Millisecond
	)
	r := newRun(t, scale{seed: newSeed(), players: players})
	silent, err := reference.Find(reference.Simulated)
	require.NoError(t, err)
	began := make(chan time.Time, players)
	ctx, stop := context.WithCancel(context.Background())
	var playing errgroup.Group
	t.Cleanup(func() {
		stop()
		require.NoError(t, playing.Wait())
	})
	for n, p := range r.players {
		options := reference.Options{
			Server: r.addressOf(n), DeviceToken: p.token, StateDir: t.TempDir(), Backend: speaker{silent, began}, Output: io.Discard, Log: slog.New(slog.DiscardHandler),
		}
		playing.Go(func() error { return reference.Run(ctx, options) })
	}
	r.await("players do not connect", func() []string {
		return r.strings("SELECT 'some' FROM presence.stream HAVING count(*) < 12")
	})

	require.NoError(t, r.jump(-behind))
	due := time.Now().Add(ahead)
	for _, p := range r.partners {
		got, err := p.ask(t.Context(), http.MethodPost, "/audio/"+p.audio[0]+"/send", "", object{"all": true, "scheduleAt": due.UTC().Format(time.RFC3339Nano)})
		require.NoError(t, err)
		require.Equal(t, http.StatusAccepted, got.status, "%s", got.body)
	}
	require.NoError(t, r.jump(behind))
	var times []time.Duration
	for range players {
		select {
		case at := <-began:
			times = append(times, at.Sub(due))
		case <-time.After(patience):
			t.Fatalf("%d players of %d have begun", len(times), players)
		}
	}
	slices.Sort(times)
	require.GreaterOrEqual(t, times[0], -tolerance)
	t.Logf("%d players began %v to %v after they were due: %v apart", players, times[0], times[players-1], times[players-1]-times[0])
}
