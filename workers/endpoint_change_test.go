package workers_test

import (
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/workers/inbox"
)

// channelOf changes how a location gets its audio; an empty URL is a player.
func channelOf(t *testing.T, p commandstest.Partner, externalID, url string) {
	t.Helper()
	channel := location.Channel{Type: location.ChannelPlayer}
	if url != "" {
		channel = location.Channel{Type: location.ChannelHTTP, URL: url}
	}
	_, err := p.Commands.ChangeLocation.Handle(t.Context(), commands.ChangeLocation{Caller: p.Caller(), ExternalID: externalID, Channel: &channel})
	require.NoError(t, err)
}

func TestWhatAnEndpointIsToldNoPlayerIs(t *testing.T) {
	t.Parallel()
	w := shared
	p := w.Partner(t)
	var taking atomic.Bool
	taking.Store(true)
	r := newRadio(t, func(_ int, answer http.ResponseWriter, _ posted) {
		if taking.Load() {
			answer.WriteHeader(http.StatusAccepted)
			return
		}
		answer.WriteHeader(http.StatusServiceUnavailable)
	})
	r.at(p, "hall")
	audioID := p.Upload(t, p.Caller())
	took := sendWith(t, p, audioID, "", "hall")
	w.becomes(t, p, took, "delivered")
	taking.Store(false)
	waits, called := sendWith(t, p, audioID, "", "hall"), sendWith(t, p, audioID, "", "hall")
	eventually(t, func() bool { return len(w.inboxOf(t, p)) == 3 })
	player := at(p, event.Live, took.UserID)
	require.Empty(t, w.open(t, player), "a device of the location does not play what its endpoint does")

	// A player that is connected hears what is called off, so it is behind what waits when the location is a player's again.
	cancel(t, p, called.SendID)
	var after int64
	eventually(t, func() bool {
		items, err := w.inbox.After(t.Context(), player, 1, 10)
		require.NoError(t, err)
		if len(items) == 0 {
			return false
		}
		after = items[0].Seq
		return len(items) == 1 && items[0].Kind == inbox.Cancel
	})
	next := sendWith(t, p, audioID, "", "hall")
	eventually(t, func() bool { return len(w.inboxOf(t, p)) == 4 })
	channelOf(t, p, "hall", "")
	eventually(t, func() bool {
		items, err := w.inbox.After(t.Context(), player, after, 10)
		require.NoError(t, err)
		var ids []string
		for _, i := range items {
			ids = append(ids, i.Delivery.DeliveryID)
		}
		return slices.Equal(ids, []string{waits.DeliveryID, next.DeliveryID})
	}, "in their order, without what the endpoint took")
	report(t, p, took, delivery.StatusPlayed)
	w.becomes(t, p, took, "played")
}

func TestWhatAPlayerHasNoEndpointIsTold(t *testing.T) {
	t.Parallel()
	w := shared
	p := w.Partner(t)
	p.Locations(t, "hall")
	audioID := p.Upload(t, p.Caller())
	var has []send.AudioSent
	for _, status := range []delivery.Status{delivery.StatusDelivered, delivery.StatusPlaying} {
		s := sendWith(t, p, audioID, "", "hall")
		report(t, p, s, status)
		w.becomes(t, p, s, string(status))
		has = append(has, s)
	}
	waits := sendWith(t, p, audioID, "", "hall")
	r := newRadio(t, status(http.StatusOK))
	channelOf(t, p, "hall", r.URL)
	w.becomes(t, p, waits, "played")
	last := sendWith(t, p, audioID, "low", "hall")
	w.becomes(t, p, last, "played")
	told := r.all()
	require.Equal(t, []string{waits.DeliveryID, last.DeliveryID}, []string{told[0].ID, told[len(told)-1].ID})
	require.Len(t, told, 2)
	report(t, p, has[1], delivery.StatusPlayed)
	w.becomes(t, p, has[1], "played")
}

// An endpoint that reports has what it did not answer to in time, and is not sent it again.
func TestAnEndpointThatReportsBeforeItAnswers(t *testing.T) {
	t.Parallel()
	w := lasting(t)
	w.start(t, endpoints)
	p := w.Partner(t)
	r := newRadio(t, func(_ int, answer http.ResponseWriter, _ posted) {
		conn, _, err := http.NewResponseController(answer).Hijack()
		if err == nil {
			_ = conn.Close()
		}
	})
	r.at(p, "hall")
	s := sendWith(t, p, p.Upload(t, p.Caller()), "", "hall")
	eventually(t, func() bool { return len(r.all()) > 0 })
	report(t, p, s, delivery.StatusPlaying)
	w.becomes(t, p, s, "playing")
	asked := len(r.all())
	w.set(w.now().Add(time.Minute))
	channelOf(t, p, "hall", r.URL+"/elsewhere") // it is looked at again
	require.Never(t, func() bool { return len(r.all()) > asked }, time.Second, 50*time.Millisecond)
}

func TestTheEndpointsOfASuspendedCompany(t *testing.T) {
	t.Parallel()
	w := shared
	p := w.Partner(t)
	r := newRadio(t, func(_ int, answer http.ResponseWriter, told posted) {
		if told.Priority == "low" {
			answer.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		answer.WriteHeader(http.StatusAccepted)
	})
	r.at(p, "hall")
	audioID := p.Upload(t, p.Caller())
	has, waits := sendWith(t, p, audioID, "", "hall"), sendWith(t, p, audioID, "low", "hall")
	w.becomes(t, p, has, "delivered")
	eventually(t, func() bool { return len(r.all()) >= 2 })
	require.NoError(t, p.Commands.SuspendCompany.Handle(t.Context(), commands.SuspendCompany{Caller: commands.Caller{CompanyID: p.CompanyID, Actor: "operator"}, CompanyID: p.CompanyID}))
	p.Settle(t)
	eventually(t, func() bool {
		var rests bool
		require.NoError(t, w.Pool.QueryRow(t.Context(), "SELECT due_at IS NULL FROM workers.endpoint WHERE company_id = $1", p.CompanyID).Scan(&rests))
		return rests
	}, "none of its players is told anything either")
	require.NotEmpty(t, waits.DeliveryID)
	cancel(t, p, has.SendID)
	eventually(t, func() bool { told := r.all(); return told[len(told)-1].Type == inbox.Cancel }, "what it has is called off")
}

// A company whose endpoints take all the time that they are given leaves others their turn.
func TestEndpointsThatHangHoldUpNoOtherCompany(t *testing.T) {
	t.Parallel()
	w := lasting(t)
	hangs, other := w.Partner(t), w.Partner(t)
	end := make(chan struct{})
	black := newRadio(t, func(int, http.ResponseWriter, posted) { <-end })
	t.Cleanup(func() { close(end) })
	ids := names("store", 300)
	black.at(hangs, ids...)
	r := newRadio(t, status(http.StatusOK))
	r.at(other, "hall")
	hangs.Send(t, hangs.Upload(t, hangs.Caller()), ids...)
	eventually(t, func() bool { return len(w.inboxOf(t, hangs)) == len(ids) })
	audioID := other.Upload(t, other.Caller())
	w.start(t, endpoints)
	eventually(t, func() bool { return len(black.all()) > 0 })
	began := time.Now()
	w.becomes(t, other, sendWith(t, other, audioID, "", "hall"), "played")
	require.Less(t, time.Since(began), 5*time.Second)
}

// A delivery is called off at the moment in which it is written down what its endpoint answered.
func TestAnAnswerAtTheMomentOfACancellation(t *testing.T) {
	t.Parallel()
	w := lasting(t)
	w.start(t, endpoints)
	p := w.Partner(t)
	goOn := make(chan struct{})
	r := newRadio(t, func(int, http.ResponseWriter, posted) { <-goOn })
	r.at(p, "hall")
	s := sendWith(t, p, p.Upload(t, p.Caller()), "", "hall")
	eventually(t, func() bool { return len(r.all()) == 1 })
	answered, err := w.Pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = answered.Exec(t.Context(), "UPDATE workers.endpoint_attempt SET state = 'played', asked = false WHERE delivery_id = $1", s.DeliveryID)
	require.NoError(t, err)
	cancel(t, p, s.SendID)
	eventually(t, func() bool {
		var waits bool
		require.NoError(t, w.Pool.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND locktype = 'transactionid' AND transactionid = $1::text::xid)",
			transactionOf(t, answered)).Scan(&waits))
		return waits
	})
	require.NoError(t, answered.Commit(t.Context()))
	close(goOn)
	eventually(t, func() bool { return w.rowsOf(t, p, "endpoint_attempt") == 0 }, "nothing of it stays")
	require.Len(t, r.all(), 1)
}

func transactionOf(t *testing.T, tx pgx.Tx) (id string) {
	t.Helper()
	require.NoError(t, tx.QueryRow(t.Context(), "SELECT pg_current_xact_id()::text").Scan(&id))
	return id
}
