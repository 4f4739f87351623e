package workers_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/domain/usage"
	"github.com/musique/musique/workers"
	"github.com/musique/musique/workers/inbox"
)

func cancel(t *testing.T, p commandstest.Partner, sendID string) {
	t.Helper()
	require.NoError(t, p.Commands.CancelSend.Handle(t.Context(), commands.CancelSend{Caller: p.Caller(), SendID: sendID}))
}

func TestWhatHasEndedLeavesTheInbox(t *testing.T) {
	t.Parallel()
	w := shared
	p := w.Partner(t)
	p.Locations(t, "hall")
	id := p.Upload(t, p.Caller())
	var sent []send.AudioSent
	for range 5 {
		sent = append(sent, p.Send(t, id, "hall").Sent[0])
	}
	hall := at(p, event.Live, sent[0].UserID)
	eventually(t, func() bool { return len(w.open(t, hall)) == len(sent) })
	items, err := w.inbox.After(t.Context(), hall, 0, 10)
	require.NoError(t, err)
	report(t, p, sent[0], delivery.StatusPlayed)
	report(t, p, sent[1], delivery.StatusFailed)
	report(t, p, sent[2], delivery.StatusPlaying)
	cancel(t, p, sent[3].SendID)
	eventually(t, func() bool { return slices.Equal([]string{sent[2].DeliveryID, sent[4].DeliveryID}, w.open(t, hall)) })

	// A player that was told of it is told that it is called off; one that comes anew is not.
	var told []inbox.Item
	eventually(t, func() bool {
		told, err = w.inbox.After(t.Context(), hall, items[4].Seq, 10)
		require.NoError(t, err)
		return len(told) > 0
	})
	require.Len(t, told, 1)
	require.Equal(t, inbox.Cancel, told[0].Kind)
	require.Equal(t, inbox.Delivery{DeliveryID: sent[3].DeliveryID, SendID: sent[3].SendID, ExpiresAt: told[0].Delivery.ExpiresAt}, told[0].Delivery)
}

func TestACancelledSendEndsWhereItWasNotPlayed(t *testing.T) {
	t.Parallel()
	w := shared
	p := w.Partner(t)
	ids := names("store", 20)
	p.Import(t, ids...)
	sent := p.Send(t, p.Upload(t, p.Caller()), ids...)
	eventually(t, func() bool { return len(w.inboxOf(t, p)) == len(ids) })
	want := map[string]string{}
	for i, s := range sent.Sent {
		status := []delivery.Status{delivery.StatusQueued, delivery.StatusDelivered, delivery.StatusPlaying, delivery.StatusPlayed, delivery.StatusFailed}[i%5]
		if status != delivery.StatusQueued {
			report(t, p, s, status)
		}
		want[s.ExternalID] = string(status)
		if !status.Ended() {
			want[s.ExternalID] = "cancelled"
		}
	}
	cancel(t, p, sent.ID)
	eventually(t, func() bool {
		got := w.statuses(t, p, event.Live, sent.ID)
		for id, status := range want {
			if got[id] != status {
				return false
			}
		}
		return len(got) == len(want)
	})
	eventually(t, func() bool {
		return !slices.ContainsFunc(w.inboxOf(t, p), func(i item) bool { return i.Kind == inbox.Deliver })
	})
	for _, s := range sent.Sent { // once each
		ends := 0
		for _, e := range p.History(t, delivery.Stream(sent.ID, s.UserID)) {
			if status, _ := delivery.StatusAfter(e.Type); status.Ended() {
				ends++
			}
		}
		require.Equal(t, 1, ends)
	}
}

func TestARemovedLocationEndsWhatIsQueuedThere(t *testing.T) {
	t.Parallel()
	w := shared
	p := w.Partner(t)
	p.Locations(t, "stays", "goes")
	id := p.Upload(t, p.Caller())
	queued := p.Send(t, id, "stays", "goes")
	done := p.Send(t, id, "goes")
	report(t, p, done.Sent[0], delivery.StatusPlayed)
	scheduled := p.SendAs(t, p.Caller(), id, send.Request{Targets: send.Targets{All: true}, ScheduleAt: new(time.Now().Add(time.Hour))})
	require.NoError(t, p.Commands.RemoveLocation.Handle(t.Context(), commands.RemoveLocation{Caller: p.Caller(), ExternalID: "goes"}))
	eventually(t, func() bool {
		return w.statuses(t, p, event.Live, queued.ID)["goes"] == "cancelled" && w.statuses(t, p, event.Live, scheduled.ID)["goes"] == "cancelled"
	})
	require.Equal(t, "queued", w.statuses(t, p, event.Live, queued.ID)["stays"])
	require.Equal(t, "scheduled", w.statuses(t, p, event.Live, scheduled.ID)["stays"])
	require.Equal(t, "played", w.statuses(t, p, event.Live, done.ID)["goes"])
}

// The worker may be late, and the location there again by then: what was sent to the new one stays.
func TestALocationThatIsMadeAgainKeepsWhatIsSentToIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	p.Locations(t, "hall")
	id := p.Upload(t, p.Caller())
	remove := func() {
		t.Helper()
		require.NoError(t, p.Commands.RemoveLocation.Handle(t.Context(), commands.RemoveLocation{Caller: p.Caller(), ExternalID: "hall"}))
	}
	before := p.Send(t, id, "hall")
	remove()
	p.Locations(t, "hall")
	between := p.Send(t, id, "hall")
	remove()
	p.Locations(t, "hall")
	after := p.Send(t, id, "hall")
	w.start(t, cancellation)
	for _, s := range []send.Send{before, between} {
		eventually(t, func() bool { return w.statuses(t, p, event.Live, s.ID)["hall"] == "cancelled" })
	}
	for range 4 { // each look at what was removed
		w.set(w.now().Add(workers.LastLook()))
		last := p.Send(t, id, "hall")
		cancel(t, p, last.ID) // what stands behind it
		eventually(t, func() bool { return w.statuses(t, p, event.Live, last.ID)["hall"] == "cancelled" })
	}
	eventually(t, func() bool { return w.rows(t, "removed_location") == 0 })
	require.Equal(t, "queued", w.statuses(t, p, event.Live, after.ID)["hall"])
}

func (w *world) rows(t testing.TB, table string) (n int) {
	t.Helper()
	require.NoError(t, w.Pool.QueryRow(t.Context(), "SELECT count(*) FROM workers."+table).Scan(&n))
	return n
}

// A send finds its locations before it is recorded, and one of them may be removed in between.
func TestASendThatWasRecordedAfterARemovalEndsToo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	p.Locations(t, "hall")
	id := p.Upload(t, p.Caller())
	w.start(t, cancellation)
	sendID := newSendID()
	meta, payloads := crowd(p, sendID, id, 1)
	planned := payloads[0].(send.AudioSent) //nolint:forcetypeassert // a test
	hall := p.Send(t, id, "hall").Sent[0]
	planned.Destination = hall.Destination
	planned.DeliveryID = delivery.ID(sendID, hall.UserID)
	require.NoError(t, p.Commands.RemoveLocation.Handle(t.Context(), commands.RemoveLocation{Caller: p.Caller(), ExternalID: "hall"}))
	eventually(t, func() bool { return w.statuses(t, p, event.Live, hall.SendID)["hall"] == "cancelled" })
	eventually(t, func() bool { return w.rows(t, "removed_location") == 1 })
	w.append(t, meta, send.Stream(sendID), planned)
	w.Settle(t)
	eventually(t, func() bool { return w.statuses(t, p, event.Live, sendID)["hall"] == "cancelled" })
	w.set(w.now().Add(workers.LastLook()))
	eventually(t, func() bool { return w.rows(t, "removed_location") == 0 })
}

// Usage is recorded all the time, and the read models pass it only now and then: the looks at what was removed do not wait for that.
func TestARemovedLocationIsLookedAtAgainWhileRequestsCome(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	p.Locations(t, "hall", "other")
	w.start(t, cancellation)
	require.NoError(t, p.Commands.RemoveLocation.Handle(t.Context(), commands.RemoveLocation{Caller: p.Caller(), ExternalID: "hall"}))
	eventually(t, func() bool { return w.rows(t, "removed_location") == 1 })
	served := func() error {
		c := p.Caller()
		request := usage.ApiRequestServed{RequestID: c.RequestID, Timestamp: time.Now(), Method: "GET", Status: 200}
		return w.Commands.RecordUsage.Handle(context.Background(), commands.RecordUsage{Requests: []commands.ServedRequest{{ID: uuid.New(), Caller: c, Served: request}}})
	}
	require.NoError(t, served())
	commandstest.Run(t, func(ctx context.Context) error { // a partner polls
		for tick := time.NewTicker(100 * time.Millisecond); ctx.Err() == nil; <-tick.C {
			if err := served(); err != nil {
				return err
			}
		}
		return nil
	})
	w.set(w.now().Add(workers.LastLook()))
	eventually(t, func() bool { return w.rows(t, "removed_location") == 0 })
}

func TestASendAndARemovalAtOnceLeaveNothingQueued(t *testing.T) {
	t.Parallel()
	w := shared
	p := w.Partner(t)
	id := p.Upload(t, p.Caller())
	for round := range 15 {
		p.Locations(t, "hall")
		var sent commands.AudioSent
		var sending, removing error
		done := make(chan struct{})
		go func() {
			defer close(done)
			<-time.After(time.Duration(round) * 500 * time.Microsecond)
			removing = p.Commands.RemoveLocation.Handle(t.Context(), commands.RemoveLocation{Caller: p.Caller(), ExternalID: "hall"})
		}()
		sent, sending = p.Commands.SendAudio.Handle(t.Context(), commands.SendAudio{Caller: p.Caller(), AudioID: id, Request: send.Request{Targets: send.Targets{ExternalIDs: []string{"hall"}}}})
		<-done
		require.NoError(t, removing)
		if sending == nil {
			eventually(t, func() bool { return w.statuses(t, p, event.Live, sent.ID)["hall"] == "cancelled" })
		}
	}
}

func TestWhatIsNotPlayedInTimeExpires(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	p.Locations(t, "a", "b", "c", "d")
	id := p.Upload(t, p.Caller())
	w.start(t, dispatch, delivering, closer, expiry)
	short := p.SendAs(t, p.Caller(), id, send.Request{Targets: send.Targets{All: true}, ExpiresIn: new(int64(600))})
	long := p.Send(t, id, "a")
	eventually(t, func() bool { return len(w.inboxOf(t, p)) == 5 })
	report(t, p, short.Sent[1], delivery.StatusDelivered)
	report(t, p, short.Sent[2], delivery.StatusPlaying)
	report(t, p, short.Sent[3], delivery.StatusPlayed)
	w.set(short.Sent[0].ExpiresAt.Add(time.Second))
	is := func(want map[string]string) func() bool {
		return func() bool {
			got := w.statuses(t, p, event.Live, short.ID)
			for id, status := range want {
				if got[id] != status {
					return false
				}
			}
			return true
		}
	}
	eventually(t, is(map[string]string{"a": "expired", "b": "expired", "c": "playing", "d": "played"}))
	eventually(t, func() bool { return len(w.inboxOf(t, p)) == 2 })
	require.Empty(t, w.open(t, at(p, event.Live, short.Sent[2].UserID)), "nobody begins it any more")
	require.Equal(t, "queued", w.statuses(t, p, event.Live, long.ID)["a"])

	w.set(short.Sent[0].ExpiresAt.Add(workers.PlayingGrace + time.Minute))
	eventually(t, is(map[string]string{"a": "expired", "b": "expired", "c": "failed", "d": "played"}), "a player that died amid the playback ends it too")
	eventually(t, func() bool { return len(w.inboxOf(t, p)) == 1 })
	for _, s := range short.Sent[:2] {
		types := p.Types(t, delivery.Stream(s.SendID, s.UserID))
		require.Equal(t, delivery.Expired{}.EventType(), types[len(types)-1])
	}
}

// A playback that ends after its expiry has ended well.
func TestAPlaybackMayEndAfterItsExpiry(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	p.Locations(t, "hall")
	sent := p.Send(t, p.Upload(t, p.Caller()), "hall").Sent[0]
	w.start(t, dispatch, delivering, closer, expiry)
	eventually(t, func() bool { return len(w.inboxOf(t, p)) == 1 })
	report(t, p, sent, delivery.StatusPlaying)
	w.set(sent.ExpiresAt.Add(time.Minute))
	eventually(t, func() bool { return len(w.open(t, at(p, event.Live, sent.UserID))) == 0 })
	report(t, p, sent, delivery.StatusPlayed)
	eventually(t, func() bool { return len(w.inboxOf(t, p)) == 0 })
	require.Equal(t, "played", w.statuses(t, p, event.Live, sent.SendID)["hall"])
}
