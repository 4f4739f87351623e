package workers_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/postgres"
	"github.com/musique/musique/workers"
)

// process is a scheduler with connections and commands of its own, as in a process of its own.
type process struct {
	name string
	stop func()
}

func (w *world) process(t *testing.T, name string) process {
	address, err := url.Parse(w.Pool.Config().ConnString())
	require.NoError(t, err)
	query := address.Query()
	query.Set("application_name", name)
	address.RawQuery = query.Encode()
	pool, err := postgres.Connect(context.Background(), address.String())
	require.NoError(t, err)
	deps := w.deps
	deps.Pool, deps.Commands = pool, commands.New(w.Deps)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, work := range []func(context.Context) error{workers.NewScheduler(deps).Follow, workers.NewScheduler(deps).Run} {
		running.Go(func() { _ = work(ctx) }) // it ends by being killed
	}
	return process{name, func() {
		cancel()
		running.Wait()
		pool.Close()
	}}
}

// cutOff ends the process's database connections, the ones that hold its locks too.
func (w *world) cutOff(t *testing.T, p process) {
	_, err := w.Pool.Exec(context.Background(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1", p.name)
	require.NoError(t, err)
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// Hundreds of sends come due while schedulers die: they are stopped amid their work or lose their connections, and do not know for a while that others have taken
// over. Each location gets each send once all the same.
func TestAScheduleFiresOnceWhateverDies(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	p.Import(t, names("store", 3)...)
	id := p.Upload(t, p.Caller())
	const total, apart = 240, 20 * time.Millisecond
	begin := time.Now().Add(time.Hour)
	made := make([]string, total)
	var making sync.WaitGroup
	for part := range 8 {
		making.Go(func() {
			for i := part; i < total; i += 8 {
				sent, err := p.Commands.SendAudio.Handle(t.Context(), commands.SendAudio{Caller: p.Caller(), AudioID: id, Request: send.Request{
					Targets: send.Targets{All: true}, ScheduleAt: new(begin.Add(time.Duration(i) * apart)),
				}})
				if err == nil {
					made[i] = sent.ID
				}
			}
		})
	}
	making.Wait()
	require.NotContains(t, made, "")
	stop := w.start(t, schedule)
	eventually(t, func() bool { return w.rows(t, "schedule") == total })
	stop()

	w.set(begin.Add(-send.Lead))
	ctx, done := context.WithCancel(t.Context())
	var deaths atomic.Int64
	var killing sync.WaitGroup
	for i := range 4 {
		dice := rand.New(rand.NewPCG(1, uint64(i)))
		killing.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				one := w.process(t, fmt.Sprintf("scheduler-%d-%d", i, n))
				for alive := true; alive && ctx.Err() == nil; {
					// It lives until some sends have gone out since, and then for as long as chance has it: amid the work on another.
					for left := max(w.rows(t, "schedule")-1-dice.IntN(24), 0); w.rows(t, "schedule") > left && ctx.Err() == nil; {
						pause(ctx, 10*time.Millisecond)
					}
					pause(ctx, time.Duration(dice.IntN(50))*time.Millisecond)
					if alive = dice.IntN(2) == 0; alive {
						w.cutOff(t, one)
					}
					deaths.Add(1)
				}
				one.stop()
			}
		})
	}
	require.Eventually(t, func() bool { return w.rows(t, "schedule") == 0 }, 5*commandstest.Patience, 50*time.Millisecond)
	done()
	killing.Wait()
	require.Greater(t, deaths.Load(), int64(20))
	for _, sendID := range made {
		state, err := send.Load(p.History(t, send.Stream(sendID)))
		require.NoError(t, err)
		got := map[int64]int{}
		for _, sent := range state.Sent {
			got[sent.UserID]++
		}
		require.Len(t, got, 3, sendID)
		require.Len(t, state.Sent, 3, sendID)
	}
}

// A send that is changed is due when it was changed to, earlier or later, and the schedule follows.
func TestAChangedSendStartsWhenItIsDue(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	p.Locations(t, "hall")
	id := p.Upload(t, p.Caller())
	w.start(t, schedule, scheduler)
	hours := func(n int) time.Time { return time.Now().Add(time.Duration(n) * time.Hour) }
	at := func(n int) send.Request {
		return send.Request{Targets: send.Targets{All: true}, ScheduleAt: new(hours(n))}
	}
	sooner, later, fixed := p.SendAs(t, p.Caller(), id, at(10)), p.SendAs(t, p.Caller(), id, at(2)), p.SendAs(t, p.Caller(), id, at(5))
	eventually(t, func() bool { return w.rows(t, "schedule") == 3 })
	for sendID, n := range map[string]int{sooner.ID: 3, later.ID: 9} {
		require.NoError(t, p.Commands.ChangeSend.Handle(t.Context(), commands.ChangeSend{Caller: p.Caller(), SendID: sendID, Change: send.Change{ScheduleAt: new(hours(n)), Volume: new(n)}}))
	}
	started := func(s send.Send) bool {
		state, err := send.Load(p.History(t, send.Stream(s.ID)))
		require.NoError(t, err)
		return len(state.Sent) > 0
	}
	w.set(hours(3))
	eventually(t, func() bool { return started(sooner) })
	require.False(t, started(later), "its first time is over")
	require.False(t, started(fixed))
	w.set(hours(5))
	eventually(t, func() bool { return started(fixed) })
	require.False(t, started(later))
	w.set(hours(9))
	eventually(t, func() bool { return started(later) && w.rows(t, "schedule") == 0 })
	state, err := send.Load(p.History(t, send.Stream(later.ID)))
	require.NoError(t, err)
	require.Equal(t, 9, state.Sent[0].Volume)
}
