package workers_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/workers"
)

// Two simulators are at work, and still each delivery is played once.
func TestTheSandboxPlaysByItself(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	for range 2 {
		w.start(t, dispatch, delivering, closer, cancellation, schedule, scheduler, simulator)
	}
	sandbox := p.Sandbox()
	ids := append(names("store", 5), workers.SimulatedOffline, workers.SimulatedFailure, workers.SimulatedSlow)
	for _, id := range ids {
		p.Register(t, sandbox, id)
		p.Register(t, p.Caller(), id)
	}
	w.Settle(t)
	began := time.Now()
	tested := p.SendAs(t, sandbox, p.Upload(t, sandbox), send.Request{Targets: send.Targets{ExternalIDs: ids}})
	live := p.Send(t, p.Upload(t, p.Caller()), ids...)
	is := func(id, status string) func() bool {
		return func() bool { return w.statuses(t, p, event.Test, tested.ID)[id] == status }
	}
	for _, id := range ids[:5] {
		eventually(t, is(id, "played"), id)
	}
	eventually(t, is(workers.SimulatedFailure, "failed"))
	require.True(t, is(workers.SimulatedSlow, "queued")() || is(workers.SimulatedSlow, "delivered")() || is(workers.SimulatedSlow, "playing")() || time.Since(began) > 6*time.Second)
	eventually(t, is(workers.SimulatedSlow, "played"))
	require.GreaterOrEqual(t, time.Since(began), 6*time.Second, "two seconds for each report")
	require.True(t, is(workers.SimulatedOffline, "queued")(), "it never comes")
	for _, s := range tested.Sent {
		types := p.Types(t, delivery.Stream(tested.ID, s.UserID))
		switch s.ExternalID {
		case workers.SimulatedOffline:
			require.Empty(t, types)
		case workers.SimulatedFailure:
			require.Equal(t, []string{delivery.Delivered{}.EventType(), delivery.Failed{}.EventType()}, types)
		default:
			require.Equal(t, []string{delivery.Delivered{}.EventType(), delivery.PlaybackStarted{}.EventType(), delivery.Played{}.EventType()}, types)
		}
	}
	for id, status := range w.statuses(t, p, event.Live, live.ID) {
		require.Equal(t, "queued", status, "live %s has a player of its own", id)
	}

	due := w.now().Add(time.Hour)
	later := p.SendAs(t, sandbox, tested.Terms.AudioID, send.Request{Targets: send.Targets{ExternalIDs: ids[:1]}, ScheduleAt: &due})
	w.set(due.Add(-send.Lead))
	eventually(t, func() bool { return w.statuses(t, p, event.Test, later.ID)[ids[0]] == "queued" })
	require.Empty(t, p.Types(t, delivery.Stream(later.ID, later.Planned[0].UserID)), "it is there, and not due yet")
	w.set(due.Add(time.Second))
	eventually(t, func() bool { return w.statuses(t, p, event.Test, later.ID)[ids[0]] == "played" })
}
