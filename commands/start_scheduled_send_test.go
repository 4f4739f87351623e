package commands_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/projections/sends"
)

// However many processes start what is due, at whatever moment, each location gets its audio once.
func TestAScheduledSendStartsOnceAtEachLocation(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	ids := names("store", 30)
	p.Import(t, ids...)
	id := p.Upload(t, p.Caller())
	for range 5 {
		due := time.Now().Add(time.Hour)
		sent := p.SendAs(t, p.Caller(), id, send.Request{Targets: send.Targets{All: true}, ScheduleAt: &due})
		at := func(now time.Time) *commands.Handlers { return p.At(func() time.Time { return now }) }
		next, more, err := at(due.Add(-send.Lead-time.Second)).StartScheduledSend.Handle(t.Context(), commands.StartScheduledSend{SendID: sent.ID})
		require.NoError(t, err)
		require.True(t, more)
		require.WithinDuration(t, due.Add(-send.Lead), next, 0)
		require.Len(t, p.History(t, send.Stream(sent.ID)), 1)
		// One has died after it sent to some of them.
		some, err := send.Load(p.History(t, send.Stream(sent.ID)))
		require.NoError(t, err)
		_, err = p.Store.Append(t.Context(), send.Stream(sent.ID), eventstore.Exact(0), propose(p, due, some.Start(due)[:7]...)...)
		require.NoError(t, err)
		for _, a := range atOnce(8, func(int) (bool, error) {
			_, more, err := at(due.Add(-send.Lead)).StartScheduledSend.Handle(lasting(t.Context()), commands.StartScheduledSend{SendID: sent.ID})
			return more, err
		}) {
			require.NoError(t, a.err)
			require.False(t, a.result)
		}
		state, err := send.Load(p.History(t, send.Stream(sent.ID)))
		require.NoError(t, err)
		got := map[string]int{}
		for _, s := range state.Sent {
			got[s.ExternalID]++
			require.True(t, s.PlayAt.Equal(due))
			require.True(t, s.ExpiresAt.Equal(due.Add(24*time.Hour)))
		}
		require.Len(t, got, len(ids))
		require.Len(t, state.Sent, len(ids))
	}
}

func TestALocalTimeComesZoneByZone(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	zones := map[string]string{"a": "Pacific/Auckland", "b": "Europe/Berlin", "c": "America/Lima"}
	for id, zone := range zones {
		_, err := p.Commands.RegisterLocation.Handle(t.Context(), commands.RegisterLocation{Caller: p.Caller(), ExternalID: id, Details: location.Details{Name: id, Timezone: zone}})
		require.NoError(t, err)
	}
	day := time.Now().UTC().AddDate(0, 0, 2).Format(time.DateOnly)
	sent := p.SendAs(t, p.Caller(), p.Upload(t, p.Caller()), send.Request{Targets: send.Targets{All: true}, LocalTime: day + "T12:00"})
	now := sent.AcceptedAt
	for i, id := range []string{"a", "b", "c"} {
		h := p.At(func() time.Time { return now })
		next, more, err := h.StartScheduledSend.Handle(t.Context(), commands.StartScheduledSend{SendID: sent.ID})
		require.NoError(t, err)
		require.True(t, more)
		require.Len(t, p.History(t, send.Stream(sent.ID)), 1+i)
		zone, err := time.LoadLocation(zones[id])
		require.NoError(t, err)
		require.Equal(t, day+" 12:00:00", next.Add(send.Lead).In(zone).Format(time.DateTime))
		now = next
	}
	_, more, err := p.At(func() time.Time { return now }).StartScheduledSend.Handle(t.Context(), commands.StartScheduledSend{SendID: sent.ID})
	require.NoError(t, err)
	require.False(t, more)
	state, err := send.Load(p.History(t, send.Stream(sent.ID)))
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b", "c"}, []string{state.Sent[0].ExternalID, state.Sent[1].ExternalID, state.Sent[2].ExternalID})
}

// Of a start and a cancellation at once the cancellation is the last word: nothing goes out after it.
func TestNothingStartsAfterACancellation(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	p.Locations(t, "a", "b", "c")
	id := p.Upload(t, p.Caller())
	for range 20 {
		due := time.Now().Add(time.Hour)
		sent := p.SendAs(t, p.Caller(), id, send.Request{Targets: send.Targets{All: true}, ScheduleAt: &due})
		h := p.At(func() time.Time { return due })
		for _, a := range atOnce(4, func(i int) (struct{}, error) {
			if i == 0 {
				return struct{}{}, p.Commands.CancelSend.Handle(lasting(t.Context()), commands.CancelSend{Caller: p.Caller(), SendID: sent.ID})
			}
			_, more, err := h.StartScheduledSend.Handle(lasting(t.Context()), commands.StartScheduledSend{SendID: sent.ID})
			require.False(t, more)
			return struct{}{}, err
		}) {
			require.NoError(t, a.err)
		}
		history := p.History(t, send.Stream(sent.ID))
		require.Equal(t, send.Cancelled{}.EventType(), history[len(history)-1].Type)
		require.Contains(t, []int{2, 5}, len(history), "it went out whole or not at all")
		shown, err := sends.Get(t.Context(), p.Pool, p.CompanyID, event.Live, sent.ID)
		require.NoError(t, err)
		require.Equal(t, "cancelled", shown.Status)
	}
	_, more, err := p.Commands.StartScheduledSend.Handle(t.Context(), commands.StartScheduledSend{SendID: "snd_none"})
	require.NoError(t, err)
	require.False(t, more)
}
