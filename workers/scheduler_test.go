package workers_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/eventstore"
)

// Two schedulers are at work; the clock goes from one due time to the next.
func TestScheduledSendsGoOutWhenTheyAreDue(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	for id, zone := range map[string]string{"auckland": "Pacific/Auckland", "lima": "America/Lima", "utc": "UTC"} {
		_, err := p.Commands.RegisterLocation.Handle(t.Context(), commands.RegisterLocation{Caller: p.Caller(), ExternalID: id, Details: location.Details{Name: id, Timezone: zone}})
		require.NoError(t, err)
	}
	w.start(t, dispatch, delivering, closer, cancellation, schedule, scheduler)
	w.start(t, dispatch, delivering, closer, cancellation, schedule, scheduler)
	id := p.Upload(t, p.Caller())
	day := time.Now().UTC().AddDate(0, 0, 3)
	local := p.SendAs(t, p.Caller(), id, send.Request{Targets: send.Targets{All: true}, LocalTime: day.Format(time.DateOnly) + "T12:00"})
	fixed := p.SendAs(t, p.Caller(), id, send.Request{Targets: send.Targets{ExternalIDs: []string{"utc"}}, ScheduleAt: new(day.Add(30 * 24 * time.Hour))})
	off := p.SendAs(t, p.Caller(), id, send.Request{Targets: send.Targets{All: true}, ScheduleAt: new(day)})
	eventually(t, func() bool { return w.rows(t, "schedule") == 3 })
	cancel(t, p, off.ID)
	eventually(t, func() bool { return w.rows(t, "schedule") == 2 })
	require.Empty(t, w.inboxOf(t, p))

	for i, d := range slices.SortedFunc(slices.Values(local.Planned), func(a, b send.ScheduledDestination) int { return a.PlayAt.Compare(b.PlayAt) }) {
		require.Equal(t, []string{"auckland", "utc", "lima"}[i], d.ExternalID)
		w.set(d.PlayAt.Add(-send.Lead))
		eventually(t, func() bool { return len(w.inboxOf(t, p)) == i+1 })
		items, err := w.inbox.After(t.Context(), at(p, event.Live, d.UserID), 0, 10)
		require.NoError(t, err)
		require.Len(t, items, 1)
		require.True(t, items[0].Delivery.PlayAt.Equal(d.PlayAt))
	}
	eventually(t, func() bool { return w.rows(t, "schedule") == 1 })
	require.Len(t, p.History(t, send.Stream(local.ID)), 4)
	w.set(fixed.ScheduleAt)
	eventually(t, func() bool { return w.rows(t, "schedule") == 0 && len(w.inboxOf(t, p)) == 4 })
	require.Len(t, p.History(t, send.Stream(fixed.ID)), 2)
	require.Equal(t, []string{send.Scheduled{}.EventType(), send.Cancelled{}.EventType()}, p.Types(t, send.Stream(off.ID)))
}

// A schedule that is closed late starts late, one that is never closed does not start, and one that a dead scheduler began is finished.
func TestAScheduleStartsWhenItIsClosed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	p.Locations(t, "hall")
	id := p.Upload(t, p.Caller())
	w.start(t, schedule, scheduler)
	due := w.now().Add(time.Hour)
	open := func() (string, event.Metadata) {
		t.Helper()
		sendID := newSendID()
		meta := event.Metadata{CompanyID: p.CompanyID, Environment: event.Live, Time: w.now()}
		payloads, err := send.Plan(sendID, send.Request{}.Terms(id), send.Request{ScheduleAt: &due}, []send.Location{{ExternalID: "a", UserID: 1}, {ExternalID: "b", UserID: 2}}, w.now())
		require.NoError(t, err)
		send.Unseal(payloads)
		w.append(t, meta, send.Stream(sendID), payloads...)
		return sendID, meta
	}
	never, _ := open()
	given, meta := open()
	w.append(t, meta, send.Stream(given), send.BroadcastAbandoned{SendID: given})
	late, meta := open()
	w.set(due)
	began := p.SendAs(t, p.Caller(), id, send.Request{Targets: send.Targets{All: true}, ScheduleAt: new(w.now().Add(time.Hour))})
	w.set(w.now().Add(time.Hour))
	eventually(t, func() bool { return len(p.History(t, send.Stream(began.ID))) == 2 })
	require.Len(t, p.History(t, send.Stream(late)), 1)
	w.append(t, meta, send.Stream(late), send.BroadcastSealed{SendID: late, Total: 2})
	eventually(t, func() bool { return len(p.History(t, send.Stream(late))) == 4 })
	require.Len(t, p.History(t, send.Stream(never)), 1)
	require.Len(t, p.History(t, send.Stream(given)), 2)
	eventually(t, func() bool { return w.rows(t, "schedule") == 1 })
	require.Equal(t, 1, w.rows(t, "open_broadcast"))
}

// The schedule is lost, and made again from the events.
func TestALostScheduleIsMadeAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	p.Locations(t, "hall")
	id := p.Upload(t, p.Caller())
	stop := w.start(t, schedule)
	done := p.SendAs(t, p.Caller(), id, send.Request{Targets: send.Targets{All: true}, ScheduleAt: new(w.now().Add(time.Hour))})
	later := p.SendAs(t, p.Caller(), id, send.Request{Targets: send.Targets{All: true}, ScheduleAt: new(w.now().Add(2 * time.Hour))})
	state, err := send.Load(p.History(t, send.Stream(done.ID)))
	require.NoError(t, err)
	for _, payload := range state.Start(done.ScheduleAt) {
		_, err := w.Store.Append(t.Context(), send.Stream(done.ID), eventstore.Exact(0), event.Proposed{ID: uuid.New(), Payload: payload, Metadata: event.Metadata{CompanyID: p.CompanyID, Environment: event.Live, Time: w.now()}})
		require.NoError(t, err)
	}
	eventually(t, func() bool { return w.rows(t, "schedule") == 2 })
	stop()
	_, err = w.Pool.Exec(t.Context(), "DELETE FROM workers.schedule")
	require.NoError(t, err)
	w.again(t, "schedule")
	w.set(w.now().Add(2 * time.Hour))
	w.start(t, schedule, scheduler)
	eventually(t, func() bool { return len(p.History(t, send.Stream(later.ID))) == 2 && w.rows(t, "schedule") == 0 })
	require.Len(t, p.History(t, send.Stream(done.ID)), 2, "what went out does not go out again")
}
