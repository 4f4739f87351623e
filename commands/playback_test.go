package commands_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/projections/sends"
)

// played is a send to one location, and what its player reports of it.
type played struct {
	commandstest.Partner
	send.AudioSent
}

func (p played) report(t *testing.T, status string) (delivery.Status, error) {
	return p.Commands.ReportPlayback.Handle(lasting(t.Context()), commands.ReportPlayback{
		Caller: p.Caller(), UserID: p.UserID, DeliveryID: p.DeliveryID, Status: status,
	})
}

func (p played) stream() string { return delivery.Stream(p.SendID, p.UserID) }

func playing(t *testing.T, p commandstest.Partner) played {
	t.Helper()
	return played{p, p.Send(t, p.Upload(t, p.Caller()), "hall").Sent[0]}
}

func TestReportsAreTakenOnceAndNeverMoveBack(t *testing.T) {
	t.Parallel()
	partner := world.Partner(t)
	partner.Locations(t, "hall")
	p := playing(t, partner)
	types := []string{}
	for i, status := range []string{"delivered", "playing", "played"} {
		types = append(types, []string{delivery.Delivered{}.EventType(), delivery.PlaybackStarted{}.EventType(), delivery.Played{}.EventType()}[i])
		for _, late := range append([]string{status, status}, []string{"delivered", "playing", "played"}[:i]...) {
			now, err := p.report(t, late)
			require.NoError(t, err, "a late or repeated report is no mistake")
			require.EqualValues(t, status, now)
			require.Equal(t, types, p.Types(t, p.stream()))
			_, shown, found, err := sends.FindDelivery(t.Context(), p.Pool, p.CompanyID, event.Live, p.DeliveryID)
			require.NoError(t, err)
			require.True(t, found)
			require.Equal(t, status, shown.Status, "the answer waits for the read model")
		}
	}
	now, err := p.report(t, "failed")
	require.NoError(t, err)
	require.Equal(t, delivery.StatusPlayed, now, "its end is its end")
}

// However reports come at once, each delivery goes forwards and ends once.
func TestReportsAtOnceEndADeliveryOnce(t *testing.T) {
	t.Parallel()
	partner := world.Partner(t)
	partner.Locations(t, "hall")
	for range 20 {
		p := playing(t, partner)
		statuses := []string{"delivered", "playing", "played", "failed"}
		ends := map[delivery.Status]bool{}
		for i, a := range atOnce(16, func(i int) (delivery.Status, error) {
			if i == 15 {
				return "", p.Commands.CancelDelivery.Handle(lasting(t.Context()), commands.CancelDelivery{Caller: p.Caller(), Ref: delivery.Ref{
					DeliveryID: p.DeliveryID, SendID: p.SendID, AudioID: p.AudioID, ExternalID: p.ExternalID, UserID: p.UserID,
				}})
			}
			return p.report(t, statuses[i%4])
		}) {
			require.NoError(t, a.err)
			if i != 15 && a.result.Ended() {
				ends[a.result] = true
			}
		}
		require.LessOrEqual(t, len(ends), 1, "all who are told an end are told the same")
		end := delivery.Load(p.History(t, p.stream())).Status()
		ended, before := 0, -1
		for _, e := range p.History(t, p.stream()) {
			status, ok := delivery.StatusAfter(e.Type)
			require.True(t, ok)
			rank := map[delivery.Status]int{delivery.StatusDelivered: 1, delivery.StatusPlaying: 2}[status]
			if status.Ended() {
				ended++
				rank = 3
			}
			require.Greater(t, rank, before)
			before = rank
		}
		require.Equal(t, 1, ended)
		require.True(t, end.Ended())
	}
}

func TestAPlayerReportsItsOwnDeliveriesOnly(t *testing.T) {
	t.Parallel()
	partner, stranger := world.Partner(t), world.Partner(t)
	partner.Locations(t, "hall")
	other := partner.Register(t, partner.Caller(), "other")
	p := playing(t, partner)
	own := commands.ReportPlayback{Caller: p.Caller(), UserID: p.UserID, DeliveryID: p.DeliveryID, Status: "played"}
	for name, change := range map[string]func(*commands.ReportPlayback){
		"another location": func(c *commands.ReportPlayback) { c.UserID = other.UserID },
		"one that it was not for": func(c *commands.ReportPlayback) {
			c.UserID, c.DeliveryID = other.UserID, delivery.ID(p.SendID, other.UserID)
		},
		"another company":           func(c *commands.ReportPlayback) { c.Caller = stranger.Caller() },
		"the sandbox":               func(c *commands.ReportPlayback) { c.Caller = p.Sandbox() },
		"a send that there is not":  func(c *commands.ReportPlayback) { c.DeliveryID = delivery.ID("snd_none", p.UserID) },
		"what is no delivery":       func(c *commands.ReportPlayback) { c.DeliveryID = "nonsense" },
		"another spelling of an ID": func(c *commands.ReportPlayback) { c.DeliveryID = strings.Replace(p.DeliveryID, "_", "_0", 2) },
	} {
		cmd := own
		change(&cmd)
		_, err := p.Commands.ReportPlayback.Handle(t.Context(), cmd)
		refused(t, err, fault.NotFound)
		require.Empty(t, p.History(t, p.stream()), name)
	}
	for status, code := range map[string]fault.Code{"": fault.MissingField, "paused": fault.InvalidFormat, "cancelled": fault.InvalidFormat} {
		cmd := own
		cmd.Status = status
		_, err := p.Commands.ReportPlayback.Handle(t.Context(), cmd)
		require.Equal(t, "status", refused(t, err, code).Param)
	}
	cmd := own
	cmd.Reason = strings.Repeat("x", 501)
	_, err := p.Commands.ReportPlayback.Handle(t.Context(), cmd)
	require.Equal(t, "reason", refused(t, err, fault.OutOfRange).Param)
	_, err = p.Commands.ReportPlayback.Handle(t.Context(), own)
	require.NoError(t, err)
}

func TestAPlayersClockIsBelievedBetweenTheSendAndNow(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	p.Locations(t, "hall")
	sent := playing(t, p)
	at := func(status string, at time.Time) time.Time {
		t.Helper()
		_, err := p.Commands.ReportPlayback.Handle(t.Context(), commands.ReportPlayback{Caller: p.Caller(), UserID: sent.UserID, DeliveryID: sent.DeliveryID, Status: status, At: &at})
		require.NoError(t, err)
		history := p.History(t, sent.stream())
		var told struct{ At time.Time }
		require.NoError(t, json.Unmarshal(history[len(history)-1].Data, &told))
		return told.At
	}
	sentAt := sent.ExpiresAt.Add(-send.DefaultExpiresIn * time.Second)
	require.WithinDuration(t, sentAt, at("delivered", time.Now().AddDate(0, -3, 0)), time.Microsecond, "before it was sent there was nothing to deliver")
	between := time.Now()
	require.WithinDuration(t, between, at("playing", between), 0)
	require.WithinDuration(t, time.Now(), at("played", time.Now().Add(time.Hour)), commandstest.Patience)
}

// A player that is faster than the read model is believed all the same.
func TestAPlayerCanBeFasterThanTheReadModel(t *testing.T) {
	t.Parallel()
	w := commandstest.Still(t, commandstest.Store(t))
	stop := w.Project(t)
	p := w.Partner(t)
	p.Locations(t, "hall", "other")
	id := p.Upload(t, p.Caller())
	stop()
	sent := p.Send(t, id, "hall", "other")
	_, found, err := p.Reads.Delivery(t.Context(), p.CompanyID, event.Live, sent.Sent[0].DeliveryID)
	require.NoError(t, err)
	require.False(t, found)
	for _, s := range sent.Sent {
		now, err := played{p, s}.report(t, "played")
		require.NoError(t, err)
		require.Equal(t, delivery.StatusPlayed, now)
		require.Len(t, p.History(t, delivery.Stream(sent.ID, s.UserID)), 1)
		require.Equal(t, sent.AcceptedAt, sent.SentAt(s))
	}
	cmd := commands.ReportPlayback{Caller: p.Sandbox(), UserID: sent.Sent[0].UserID, DeliveryID: sent.Sent[0].DeliveryID, Status: "played"}
	_, err = p.Commands.ReportPlayback.Handle(t.Context(), cmd)
	refused(t, err, fault.NotFound)
	w.Project(t)
	w.Settle(t)
	shown, err := sends.Get(t.Context(), p.Pool, p.CompanyID, event.Live, sent.ID)
	require.NoError(t, err)
	require.Equal(t, "sent", shown.Status)
}

func TestASendIsCancelledOnceAndNotWhenItIsOver(t *testing.T) {
	t.Parallel()
	p, stranger := world.Partner(t), world.Partner(t)
	p.Locations(t, "hall", "other")
	id := p.Upload(t, p.Caller())
	sent := p.Send(t, id, "hall", "other")
	for _, c := range []commands.Caller{stranger.Caller(), p.Sandbox()} {
		refused(t, p.Commands.CancelSend.Handle(t.Context(), commands.CancelSend{Caller: c, SendID: sent.ID}), fault.NotFound)
	}
	refused(t, p.Commands.CancelSend.Handle(t.Context(), commands.CancelSend{Caller: p.Caller(), SendID: "snd_none"}), fault.NotFound)
	won := 0
	for _, a := range atOnce(10, func(int) (struct{}, error) {
		return struct{}{}, p.Commands.CancelSend.Handle(lasting(t.Context()), commands.CancelSend{Caller: p.Caller(), SendID: sent.ID})
	}) {
		if a.err == nil {
			won++
			continue
		}
		refused(t, a.err, fault.Conflict)
	}
	require.Equal(t, 1, won)
	require.Equal(t, 1, count(p.History(t, send.Stream(sent.ID)), send.Cancelled{}.EventType()))

	over := p.Send(t, id, "hall", "other")
	for i, s := range over.Sent {
		_, err := played{p, s}.report(t, "played")
		require.NoError(t, err)
		if i == 0 {
			continue
		}
		refused(t, p.Commands.CancelSend.Handle(t.Context(), commands.CancelSend{Caller: p.Caller(), SendID: over.ID}), fault.Conflict)
	}
}

// From the answer to a cancellation on its deliveries are cancelled wherever they are read, and nothing begins to play; what plays is for the player to
// end, and what played before, and is reported late, has played. No worker is at work here.
func TestACancellationIsReadAtOnce(t *testing.T) {
	t.Parallel()
	partner := world.Partner(t)
	partner.Locations(t, "delivered", "early", "idle", "playing")
	id := partner.Upload(t, partner.Caller())
	sent := map[string]played{}
	broadcast := partner.Send(t, id, "delivered", "early", "idle", "playing")
	for _, s := range broadcast.Sent {
		sent[s.ExternalID] = played{partner, s}
	}
	before := time.Now()
	_, err := sent["delivered"].report(t, "delivered")
	require.NoError(t, err)
	_, err = sent["playing"].report(t, "playing")
	require.NoError(t, err)
	require.NoError(t, partner.Commands.CancelSend.Handle(t.Context(), commands.CancelSend{Caller: partner.Caller(), SendID: broadcast.ID}))

	counts := func() sends.Counts {
		t.Helper()
		got, err := sends.Get(t.Context(), partner.Pool, partner.CompanyID, event.Live, broadcast.ID)
		require.NoError(t, err)
		require.Equal(t, "cancelled", got.Status)
		return got.Counts
	}
	require.Equal(t, sends.Counts{Cancelled: 3, Playing: 1}, counts())
	for _, at := range []string{"delivered", "idle"} {
		now, err := sent[at].report(t, "playing")
		require.NoError(t, err)
		require.Equal(t, delivery.StatusCancelled, now)
		require.NotContains(t, partner.Types(t, sent[at].stream()), delivery.PlaybackStarted{}.EventType())
	}
	now, err := sent["playing"].report(t, "played")
	require.NoError(t, err)
	require.Equal(t, delivery.StatusPlayed, now)
	early := sent["early"]
	now, err = partner.Commands.ReportPlayback.Handle(t.Context(), commands.ReportPlayback{
		Caller: partner.Caller(), UserID: early.UserID, DeliveryID: early.DeliveryID, Status: "played", At: &before,
	})
	require.NoError(t, err)
	require.Equal(t, delivery.StatusPlayed, now)
	require.Equal(t, sends.Counts{Cancelled: 2, Played: 2}, counts())
	_, shown, _, err := sends.FindDelivery(t.Context(), partner.Pool, partner.CompanyID, event.Live, early.DeliveryID)
	require.NoError(t, err)
	require.WithinDuration(t, before, *shown.EndedAt, time.Millisecond, "when it played, and not when it was cancelled")
	require.Nil(t, shown.Reason)
}
