package commands_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/projections/sends"
)

// zoned registers locations in time zones.
func zoned(t *testing.T, p commandstest.Partner, zones map[string]string) {
	t.Helper()
	for id, zone := range zones {
		_, err := p.Commands.RegisterLocation.Handle(t.Context(), commands.RegisterLocation{Caller: p.Caller(), ExternalID: id, Details: location.Details{Name: id, Timezone: zone}})
		require.NoError(t, err)
	}
	p.Settle(t)
}

func TestAScheduledSendIsChanged(t *testing.T) {
	t.Parallel()
	p, stranger := world.Partner(t), world.Partner(t)
	zones := map[string]string{"a": "Pacific/Auckland", "b": "Europe/Berlin", "c": "America/Lima"}
	zoned(t, p, zones)
	due := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	asked := commands.SendAudio{Caller: p.Keyed("change"), AudioID: p.Upload(t, p.Caller()), Request: send.Request{Targets: send.Targets{All: true}, ScheduleAt: &due, Priority: "low"}}
	accepted, err := p.Commands.SendAudio.Handle(t.Context(), asked)
	require.NoError(t, err)
	change := func(c commands.Caller, change send.Change) error {
		return p.Commands.ChangeSend.Handle(t.Context(), commands.ChangeSend{Caller: c, SendID: accepted.ID, Change: change})
	}
	local := time.Now().UTC().AddDate(0, 0, 3).Format(time.DateOnly) + "T12:00"
	for range 2 { // the second time it is so already
		require.NoError(t, change(p.Caller(), send.Change{LocalTime: local, Priority: "urgent", Repeat: new(3), Volume: new(0), ExpiresIn: new(int64(60))}))
		require.Equal(t, []string{send.Scheduled{}.EventType(), send.Rescheduled{}.EventType()}, p.Types(t, send.Stream(accepted.ID)))
	}
	shown, err := sends.Get(t.Context(), p.Pool, p.CompanyID, event.Live, accepted.ID)
	require.NoError(t, err)
	require.Equal(t, send.Terms{AudioID: asked.AudioID, Priority: "urgent", Repeat: 3, Volume: 0, ExpiresIn: 60}, shown.Terms)
	require.Equal(t, local, shown.LocalTime)
	deliveries, _, err := sends.Deliveries(t.Context(), p.Pool, p.CompanyID, event.Live, accepted.ID, "", "", 10)
	require.NoError(t, err)
	require.Len(t, deliveries, 3)
	for _, d := range deliveries {
		zone, err := time.LoadLocation(zones[d.ExternalID])
		require.NoError(t, err)
		require.Equal(t, local, d.PlayAt.In(zone).Format("2006-01-02T15:04"))
		require.False(t, d.PlayAt.Before(*shown.ScheduleAt))
	}
	again, err := p.Commands.SendAudio.Handle(t.Context(), asked)
	require.NoError(t, err)
	require.True(t, again.Replayed)
	require.Equal(t, text(t, accepted.Send), text(t, again.Send), "a request that is repeated gets the answer of the first")

	for _, c := range []commands.Caller{stranger.Caller(), p.Sandbox()} {
		refused(t, change(c, send.Change{Volume: new(101)}), fault.NotFound)
	}
	refused(t, p.Commands.ChangeSend.Handle(t.Context(), commands.ChangeSend{Caller: p.Caller(), SendID: "snd_none"}), fault.NotFound)
	require.Len(t, refused(t, change(p.Caller(), send.Change{Volume: new(101), Repeat: new(0)}), fault.OutOfRange).Fields, 2)
	require.NoError(t, p.Commands.CancelSend.Handle(t.Context(), commands.CancelSend{Caller: p.Caller(), SendID: accepted.ID}))
	refused(t, change(p.Caller(), send.Change{Volume: new(1)}), fault.Conflict)
	require.Len(t, p.History(t, send.Stream(accepted.ID)), 3)
}

// A send that is still being written is not there; one of which every location is gone has ended.
func TestWhatCannotBeChanged(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	p.Locations(t, "a", "b")
	id := p.Upload(t, p.Caller())
	due := time.Now().Add(time.Hour)
	cmd := commands.SendAudio{Caller: p.Caller(), AudioID: id, Request: send.Request{Targets: send.Targets{All: true}, ScheduleAt: &due}}
	const open = "snd_0000000000000000000042"
	payloads := planned(t, p, open, cmd)
	send.Unseal(payloads)
	_, err := p.Store.Append(t.Context(), send.Stream(open), eventstore.NoStream, propose(p, time.Now(), payloads...)...)
	require.NoError(t, err)
	change := commands.ChangeSend{Caller: p.Caller(), SendID: open, Change: send.Change{Volume: new(1)}}
	refused(t, p.Commands.ChangeSend.Handle(t.Context(), change), fault.NotFound)
	_, err = p.Store.Append(t.Context(), send.Stream(open), eventstore.Exact(0), propose(p, time.Now(), send.BroadcastSealed{SendID: open, Total: 1})...)
	require.NoError(t, err)
	require.NoError(t, p.Commands.ChangeSend.Handle(t.Context(), change))

	now := p.Send(t, id, "a")
	change.SendID = now.ID
	refused(t, p.Commands.ChangeSend.Handle(t.Context(), change), fault.Conflict)
}

// Of a start, a change and a cancellation at once exactly one comes first, and the others do what they can after it: a change is in front of all that goes out, or
// is refused; what goes out is as the send was then; nothing goes out after a cancellation.
func TestAChangeAndAStartAtOnce(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	p.Locations(t, "a", "b", "c")
	id := p.Upload(t, p.Caller())
	for round := range 40 {
		due := time.Now().Add(time.Hour).UTC()
		later := due.Add(time.Hour)
		sent := p.SendAs(t, p.Caller(), id, send.Request{Targets: send.Targets{All: true}, ScheduleAt: &due})
		h := p.At(func() time.Time { return due })
		calls := []func() error{
			func() error {
				return h.ChangeSend.Handle(lasting(t.Context()), commands.ChangeSend{Caller: p.Caller(), SendID: sent.ID, Change: send.Change{ScheduleAt: &later, Volume: new(7)}})
			},
		}
		for range 2 {
			calls = append(calls, func() error {
				for range round % 8 { // a change has more to ask for before it decides: so each comes first at times
					if _, err := p.Reads.SendEnded(lasting(t.Context()), sent.ID); err != nil {
						return err
					}
				}
				_, _, err := h.StartScheduledSend.Handle(lasting(t.Context()), commands.StartScheduledSend{SendID: sent.ID})
				return err
			})
		}
		if round%2 == 0 {
			calls = append(calls, func() error {
				return p.Commands.CancelSend.Handle(lasting(t.Context()), commands.CancelSend{Caller: p.Caller(), SendID: sent.ID})
			})
		}
		attempts := atOnce(len(calls), func(i int) (struct{}, error) { return struct{}{}, calls[i]() })
		for _, a := range attempts[1:] {
			require.NoError(t, a.err)
		}
		changed := attempts[0].err == nil
		if !changed {
			refused(t, attempts[0].err, fault.Conflict)
		}
		history := p.History(t, send.Stream(sent.ID))
		require.Equal(t, changed, count(history, send.Rescheduled{}.EventType()) == 1)
		if round%2 == 0 {
			require.Equal(t, send.Cancelled{}.EventType(), history[len(history)-1].Type)
		}
		if changed {
			require.Equal(t, send.Rescheduled{}.EventType(), history[1].Type)
			require.Zero(t, count(history, send.AudioSent{}.EventType()), "it is not due any more")
			if round%2 == 1 {
				next, more, err := h.StartScheduledSend.Handle(t.Context(), commands.StartScheduledSend{SendID: sent.ID})
				require.NoError(t, err)
				require.True(t, more)
				require.WithinDuration(t, later.Add(-send.Lead), next, 0)
				_, more, err = p.At(func() time.Time { return later }).StartScheduledSend.Handle(t.Context(), commands.StartScheduledSend{SendID: sent.ID})
				require.NoError(t, err)
				require.False(t, more)
				state, err := send.Load(p.History(t, send.Stream(sent.ID)))
				require.NoError(t, err)
				require.Len(t, state.Sent, 3)
				for _, s := range state.Sent {
					require.Equal(t, 7, s.Volume)
					require.True(t, s.PlayAt.Equal(later))
				}
			}
			continue
		}
		require.Contains(t, []int{0, 3}, count(history, send.AudioSent{}.EventType()))
	}
}

// Of the same change many times at once one is recorded.
func TestTheSameChangeAtOnceIsOne(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	p.Locations(t, "a")
	due, later := time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
	sent := p.SendAs(t, p.Caller(), p.Upload(t, p.Caller()), send.Request{Targets: send.Targets{All: true}, ScheduleAt: &due})
	for _, a := range atOnce(20, func(int) (struct{}, error) {
		return struct{}{}, p.Commands.ChangeSend.Handle(lasting(t.Context()), commands.ChangeSend{Caller: p.Caller(), SendID: sent.ID, Change: send.Change{ScheduleAt: &later}})
	}) {
		require.NoError(t, a.err)
	}
	require.Len(t, p.History(t, send.Stream(sent.ID)), 2)
}
