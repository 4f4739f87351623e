package commands_test

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/send"
)

func TestASendToOneUnknownLocationGoesNowhere(t *testing.T) {
	t.Parallel()
	p, stranger := world.Partner(t), world.Partner(t)
	p.Locations(t, "a", "b", "removed")
	stranger.Locations(t, "theirs")
	p.Register(t, p.Sandbox(), "tested")
	require.NoError(t, p.Commands.RemoveLocation.Handle(t.Context(), commands.RemoveLocation{Caller: p.Caller(), ExternalID: "removed"}))
	_, err := p.Commands.IssueToken.Handle(t.Context(), commands.IssueToken{CompanyToken: p.CompanyToken, ExternalID: "only_a_user"})
	require.NoError(t, err)
	id := p.Upload(t, p.Caller())

	unknown := append([]string{"theirs", "removed", "tested", "only_a_user", "no such\x00name"}, names("never", 30)...)
	cmd := commands.SendAudio{Caller: p.Keyed("unknown"), AudioID: id, Request: send.Request{Targets: send.Targets{ExternalIDs: slices.Concat([]string{"a"}, unknown, unknown, []string{"b"})}}}
	_, err = p.Commands.SendAudio.Handle(t.Context(), cmd)
	told := refused(t, err, fault.NotFound)
	require.Equal(t, "externalIds", told.Param)
	require.Equal(t, unknown, told.Details["externalIds"], "each of them is told, once")
	sendID, _, err := p.Commands.SendAudio.Identity(cmd)
	require.NoError(t, err)
	require.Empty(t, p.History(t, send.Stream(sendID)))

	for _, targets := range []send.Targets{{ExternalIDs: []string{"theirs"}}, {Tags: []string{"none"}}} {
		_, err = p.Commands.SendAudio.Handle(t.Context(), commands.SendAudio{Caller: p.Caller(), AudioID: id, Request: send.Request{Targets: targets}})
		refused(t, err, fault.NotFound)
	}
	for _, c := range []commands.Caller{p.Sandbox(), stranger.Caller()} {
		_, err = p.Commands.SendAudio.Handle(t.Context(), commands.SendAudio{Caller: c, AudioID: id, Request: send.Request{Targets: send.Targets{All: true}}})
		refused(t, err, fault.NotFound)
	}
	_, err = p.Commands.SendAudio.Handle(t.Context(), commands.SendAudio{Caller: p.Caller(), AudioID: id, Request: send.Request{Priority: "loud", Repeat: new(0), Volume: new(101)}})
	require.Len(t, refused(t, err, fault.MissingField).Fields, 4, "all that is wrong is told at once")
}

func TestASendIsOneAppendWithEachLocationOnce(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	p.Locations(t, "b", "a", "c")
	_, err := p.Commands.ChangeLocation.Handle(t.Context(), commands.ChangeLocation{Caller: p.Caller(), ExternalID: "c", Tags: &[]string{"north"}})
	require.NoError(t, err)
	_, err = p.Commands.ChangeLocation.Handle(t.Context(), commands.ChangeLocation{Caller: p.Caller(), ExternalID: "a", Tags: &[]string{"north", "new"}})
	require.NoError(t, err)
	id := p.Upload(t, p.Caller())
	for _, c := range []struct {
		targets send.Targets
		to      []string
	}{
		{send.Targets{ExternalIDs: []string{"b", "a", "b", "b", "a"}}, []string{"a", "b"}},
		{send.Targets{ExternalIDs: []string{"b", "b"}}, []string{"b"}},
		{send.Targets{All: true}, []string{"a", "b", "c"}},
		{send.Targets{Tags: []string{"north", "new"}}, []string{"a", "c"}},
	} {
		sent := p.SendAs(t, p.Caller(), id, send.Request{Targets: c.targets, Priority: "high", Repeat: new(3), Volume: new(0), ExpiresIn: new(int64(60))})
		require.Equal(t, len(c.to), sent.Total)
		require.Equal(t, send.Terms{AudioID: id, Priority: "high", Repeat: 3, Volume: 0, ExpiresIn: 60, Single: len(c.to) == 1}, sent.Terms)
		history := p.History(t, send.Stream(sent.ID))
		require.Len(t, history, len(c.to), "nothing but what goes out")
		state, err := send.Load(history)
		require.NoError(t, err)
		require.Equal(t, text(t, sent), text(t, state), "what is answered is what is recorded")
		for i, s := range state.Sent {
			require.Equal(t, c.to[i], s.ExternalID)
			require.Equal(t, delivery.ID(sent.ID, s.UserID), s.DeliveryID)
			require.False(t, s.Unsealed)
			require.Equal(t, state.AcceptedAt.Add(time.Minute), s.ExpiresAt)
			known, found, err := p.Reads.Delivery(t.Context(), p.CompanyID, event.Live, s.DeliveryID)
			require.NoError(t, err)
			require.True(t, found)
			require.Equal(t, delivery.Ref{DeliveryID: s.DeliveryID, SendID: sent.ID, AudioID: id, ExternalID: c.to[i], UserID: s.UserID}, known.Ref)
			require.WithinDuration(t, state.AcceptedAt, known.SentAt, time.Microsecond)
		}
	}
}

// A location that the read model does not know yet is no reason to refuse a send to it.
func TestASendWaitsForALocationThatTheReadModelDoesNotKnowYet(t *testing.T) {
	t.Parallel()
	w := commandstest.New(t, commandstest.Store(t))
	p := w.Partner(t)
	cmd := commands.SendAudio{Caller: p.Caller(), AudioID: p.Upload(t, p.Caller()), Request: send.Request{Targets: send.Targets{ExternalIDs: []string{"new"}}}}
	release := w.Hold(t)
	p.Register(t, p.Caller(), "new")
	_, err := w.Commands.SendAudio.Handle(t.Context(), cmd)
	require.Equal(t, []string{"new"}, refused(t, err, fault.NotFound).Details["externalIds"], "it waits, and not for ever")
	sent := make(chan error, 1)
	go func() {
		_, err := w.Commands.SendAudio.Handle(lasting(t.Context()), cmd)
		sent <- err
	}()
	<-time.After(commands.WaitLimit / 10)
	release()
	require.NoError(t, <-sent)
}

func TestQuotasOfSendsHold(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	p.Locations(t, "a", "b")
	id := p.Upload(t, p.Caller())
	c := p.Caller()
	c.Plan.MonthlySends = 2
	all := send.Request{Targets: send.Targets{All: true}}
	p.SendAs(t, c, id, all)
	cmd := commands.SendAudio{Caller: c, AudioID: id, Request: all}
	cmd.Caller.IdempotencyKey = "second"
	_, err := p.Commands.SendAudio.Handle(t.Context(), cmd)
	require.NoError(t, err)
	again, err := p.Commands.SendAudio.Handle(t.Context(), cmd)
	require.NoError(t, err, "a repeat uses nothing up")
	require.True(t, again.Replayed)
	_, err = p.Commands.SendAudio.Handle(t.Context(), commands.SendAudio{Caller: c, AudioID: id, Request: all})
	told := refused(t, err, fault.QuotaExceeded)
	require.Equal(t, "sends", told.Details["quota"])
	require.EqualValues(t, 2, told.Details["used"])
	require.EqualValues(t, 2, told.Details["limit"])
	reset := told.Details["resetAt"].(time.Time) //nolint:forcetypeassert // a test
	require.True(t, reset.After(time.Now()) && reset.Day() == 1 && reset.Equal(reset.Truncate(24*time.Hour)))
	_, err = p.At(func() time.Time { return reset }).SendAudio.Handle(t.Context(), commands.SendAudio{Caller: c, AudioID: id, Request: all})
	require.NoError(t, err, "another month has room")
	sandbox := p.Sandbox()
	sandbox.Plan.MonthlySends = 1
	p.Register(t, sandbox, "a")
	p.SendAs(t, sandbox, p.Upload(t, sandbox), all)
}

func TestScheduledSendsAreDueWhereTheyPlay(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	for id, zone := range map[string]string{"berlin": "Europe/Berlin", "tokyo": "Asia/Tokyo"} {
		_, err := p.Commands.RegisterLocation.Handle(t.Context(), commands.RegisterLocation{Caller: p.Caller(), ExternalID: id, Details: location.Details{Name: id, Timezone: zone}})
		require.NoError(t, err)
	}
	id := p.Upload(t, p.Caller())
	day := time.Now().UTC().AddDate(0, 0, 3).Format(time.DateOnly)
	sent := p.SendAs(t, p.Caller(), id, send.Request{Targets: send.Targets{All: true}, LocalTime: day + "T09:00"})
	require.Empty(t, sent.Sent)
	require.Len(t, sent.Planned, 2)
	for i, zone := range []string{"Europe/Berlin", "Asia/Tokyo"} {
		there, err := time.LoadLocation(zone)
		require.NoError(t, err)
		require.Equal(t, day+" 09:00:00", sent.Planned[i].PlayAt.In(there).Format(time.DateTime))
	}
	require.Equal(t, sent.Planned[1].PlayAt, sent.ScheduleAt, "it begins where it is due first")
	for _, at := range []time.Time{time.Now().Add(59 * time.Second), time.Now().Add(367 * 24 * time.Hour)} {
		_, err := p.Commands.SendAudio.Handle(t.Context(), commands.SendAudio{Caller: p.Caller(), AudioID: id, Request: send.Request{Targets: send.Targets{All: true}, ScheduleAt: &at}})
		require.Equal(t, "scheduleAt", refused(t, err, fault.OutOfRange).Param)
	}
}

// A repeat of a scheduled send is what the first was, though the time that it names has come too near to be asked for.
func TestARepeatOfAScheduledSendIsNoNewSchedule(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	p.Locations(t, "hall")
	due := time.Now().Add(2 * time.Minute)
	cmd := commands.SendAudio{Caller: p.Keyed("due"), AudioID: p.Upload(t, p.Caller()), Request: send.Request{Targets: send.Targets{All: true}, ScheduleAt: &due}}
	first, err := p.Commands.SendAudio.Handle(t.Context(), cmd)
	require.NoError(t, err)
	again, err := p.At(func() time.Time { return due.Add(time.Hour) }).SendAudio.Handle(t.Context(), cmd)
	require.NoError(t, err)
	require.True(t, again.Replayed)
	require.Equal(t, text(t, first.Send), text(t, again.Send))
}
