package commands_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/projections"
	"github.com/musique/musique/projections/sends"
)

// crowd is a partner with some locations, and its audio. A broadcast to them has no room in one append, since it has a request ID of a length that no
// request has; so it costs a test less than one to a thousand locations.
type crowd struct {
	commandstest.Partner
	audioID string
}

const crowdSize = 120

// broadcast is one to the crowd.
func (c crowd) broadcast(key string) commands.SendAudio {
	caller := c.Keyed(key)
	caller.RequestID = strings.Repeat("r", 4_000)
	return commands.SendAudio{Caller: caller, AudioID: c.audioID, Request: send.Request{Targets: send.Targets{All: true}}}
}

// TestLargeBroadcasts are of more than one append.
func TestLargeBroadcasts(t *testing.T) {
	t.Parallel()
	all := crowd{Partner: commandstest.New(t, commandstest.Store(t)).Partner(t)}
	all.Import(t, names("store", crowdSize)...)
	all.audioID = all.Upload(t, all.Caller())
	for _, test := range []struct {
		name string
		run  func(*testing.T, crowd)
	}{
		{"it is appended in parts and sealed", inPartsAndSealed},
		{"nothing reacts to an open one", openBroadcast},
		{"one whose writer died is abandoned in time and begun anew", deadWriter},
		{"many repeats of one that died agree", deadWriterManyRepeats},
		{"a repeat waits for it to be closed", repeatWaits},
		{"a repeat outlives the first request", repeatOutlives},
		{"a large schedule is closed too", largeSchedule},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, all) })
	}
}

func inPartsAndSealed(t *testing.T, p crowd) {
	cmd := p.broadcast("sealed")
	sent, err := p.Commands.SendAudio.Handle(t.Context(), cmd)
	require.NoError(t, err)
	require.Equal(t, crowdSize, sent.Total)
	history := p.History(t, send.Stream(sent.ID))
	require.Equal(t, crowdSize+1, len(history))
	require.Equal(t, send.BroadcastSealed{}.EventType(), history[crowdSize].Type)
	require.JSONEq(t, text(t, send.BroadcastSealed{SendID: sent.ID, Total: crowdSize}), string(history[crowdSize].Data))
	state, err := send.Load(history)
	require.NoError(t, err)
	require.False(t, state.Open)
	size := 0
	for _, s := range state.Sent {
		require.True(t, s.Unsealed)
	}
	for _, e := range history {
		size += len(e.Data) + len(text(t, e.Metadata))
	}
	require.Greater(t, size, eventstore.MaxAppendBytes, "it does not fit one append")
	listed, err := sends.Get(t.Context(), p.Pool, p.CompanyID, event.Live, sent.ID)
	require.NoError(t, err)
	require.Equal(t, crowdSize, listed.Counts.Queued)

	again, err := p.Commands.SendAudio.Handle(t.Context(), cmd)
	require.NoError(t, err)
	require.True(t, again.Replayed)
	require.Equal(t, crowdSize, again.Total)
	require.Equal(t, crowdSize+1, len(p.History(t, send.Stream(sent.ID))))
}

// died records the first part of a broadcast as a process does that dies before it has recorded the rest, at a time. It gives the rest, and where it goes.
func died(t *testing.T, p crowd, cmd commands.SendAudio, at time.Time) (sendID string, next eventstore.Expected, rest [][]event.Proposed) {
	t.Helper()
	sendID, meta, err := p.Commands.SendAudio.Identity(cmd)
	require.NoError(t, err)
	meta.Time = at
	payloads := planned(t, p.Partner, sendID, cmd)
	send.Unseal(payloads)
	all := commands.Parts(meta, payloads)
	require.Greater(t, len(all), 1)
	_, err = p.Store.Append(t.Context(), send.Stream(sendID), eventstore.NoStream, all[0]...)
	require.NoError(t, err)
	return sendID, commands.After(eventstore.NoStream, len(all[0])), all[1:]
}

func openBroadcast(t *testing.T, p crowd) {
	cmd := p.broadcast("open")
	sendID, next, _ := died(t, p, cmd, time.Now())
	state, err := send.Load(p.History(t, send.Stream(sendID)))
	require.NoError(t, err)
	require.True(t, state.Open)
	pending := func() []string {
		t.Helper()
		position, err := projections.Head(t.Context(), p.Store)
		require.NoError(t, err)
		require.NoError(t, p.Reads.WaitFor(t.Context(), position, commands.Sends))
		found, err := p.Reads.PendingSends(t.Context(), p.CompanyID, event.Live, cmd.AudioID, position)
		require.NoError(t, err)
		return found
	}
	require.Contains(t, pending(), sendID, "but its audio stays")
	_, err = sends.Get(t.Context(), p.Pool, p.CompanyID, event.Live, sendID)
	refused(t, err, fault.NotFound)
	refused(t, p.Commands.CancelSend.Handle(t.Context(), commands.CancelSend{Caller: p.Caller(), SendID: sendID}), fault.NotFound)
	_, err = p.Commands.ReportPlayback.Handle(t.Context(), commands.ReportPlayback{
		Caller: p.Caller(), UserID: state.Sent[0].UserID, DeliveryID: state.Sent[0].DeliveryID, Status: "played",
	})
	refused(t, err, fault.NotFound)
	_, more, err := p.Commands.StartScheduledSend.Handle(t.Context(), commands.StartScheduledSend{SendID: sendID})
	require.NoError(t, err)
	require.False(t, more)

	_, err = p.Store.Append(t.Context(), send.Stream(sendID), next, propose(p.Partner, time.Now(), send.BroadcastAbandoned{SendID: sendID})...)
	require.NoError(t, err)
	require.NotContains(t, pending(), sendID)
}

func deadWriter(t *testing.T, p crowd) {
	cmd := p.broadcast("died")
	began := time.Now()
	sendID, next, _ := died(t, p, cmd, began)
	abandon := func(at time.Time) bool {
		t.Helper()
		abandoned, err := p.At(func() time.Time { return at }).AbandonBroadcast.Handle(t.Context(), commands.AbandonBroadcast{SendID: sendID})
		require.NoError(t, err)
		return abandoned
	}
	require.False(t, abandon(began.Add(commands.AbandonAfter)), "its writer may live")
	won := 0
	for _, a := range atOnce(8, func(int) (bool, error) {
		return p.At(func() time.Time { return began.Add(commands.AbandonAfter + time.Second) }).AbandonBroadcast.Handle(lasting(t.Context()), commands.AbandonBroadcast{SendID: sendID})
	}) {
		require.NoError(t, a.err)
		if a.result {
			won++
		}
	}
	require.Equal(t, 1, won)
	require.False(t, abandon(began.Add(time.Hour)))
	_, err := p.Store.Append(t.Context(), send.Stream(sendID), next, propose(p.Partner, time.Now(), send.BroadcastSealed{SendID: sendID, Total: 1})...)
	require.ErrorIs(t, err, eventstore.ErrConflict, "a writer that lives after all cannot close it any more")

	before := len(p.History(t, send.Stream(sendID)))
	sent, err := p.Commands.SendAudio.Handle(t.Context(), cmd)
	require.NoError(t, err)
	require.False(t, sent.Replayed)
	require.Equal(t, sendID, sent.ID)
	require.Equal(t, before+crowdSize+1, len(p.History(t, send.Stream(sendID))))
	again, err := p.Commands.SendAudio.Handle(t.Context(), cmd)
	require.NoError(t, err)
	require.True(t, again.Replayed)
	require.Equal(t, text(t, sent.Send), text(t, again.Send))
	listed, err := sends.Get(t.Context(), p.Pool, p.CompanyID, event.Live, sendID)
	require.NoError(t, err)
	require.Equal(t, crowdSize, listed.Counts.Queued)
	cmd.Request.Priority = "low"
	_, err = p.Commands.SendAudio.Handle(t.Context(), cmd)
	refused(t, err, fault.Conflict)
}

// Many repeats of a request that died amid its broadcast: they agree on one that begins it anew.
func deadWriterManyRepeats(t *testing.T, p crowd) {
	cmd := p.broadcast("agree")
	sendID, _, _ := died(t, p, cmd, time.Now().Add(-commands.AbandonAfter-time.Second))
	first := 0
	for _, a := range atOnce(8, func(int) (commands.AudioSent, error) { return p.Commands.SendAudio.Handle(lasting(t.Context()), cmd) }) {
		require.NoError(t, a.err)
		require.Equal(t, sendID, a.result.ID)
		require.Equal(t, crowdSize, a.result.Total)
		require.Equal(t, crowdSize, len(a.result.Sent))
		if !a.result.Replayed {
			first++
		}
	}
	require.Equal(t, 1, first)
	history := p.History(t, send.Stream(sendID))
	require.Equal(t, 1, count(history, send.BroadcastAbandoned{}.EventType()))
	require.Equal(t, 1, count(history, send.BroadcastSealed{}.EventType()))
}

// A repeat that comes while the broadcast is being recorded gets the answer of the first request.
func repeatWaits(t *testing.T, p crowd) {
	cmd := p.broadcast("waits")
	sendID, next, rest := died(t, p, cmd, time.Now().Add(commandstest.Patience))
	waiting := make(chan attempt[commands.AudioSent], 1)
	go func() {
		sent, err := p.Commands.SendAudio.Handle(lasting(t.Context()), cmd)
		waiting <- attempt[commands.AudioSent]{sent, err}
	}()
	for _, part := range rest {
		_, err := p.Store.Append(t.Context(), send.Stream(sendID), next, part...)
		require.NoError(t, err)
		next = commands.After(next, len(part))
	}
	_, err := p.Store.Append(t.Context(), send.Stream(sendID), next, propose(p.Partner, time.Now(), send.BroadcastSealed{SendID: sendID, Total: crowdSize})...)
	require.NoError(t, err)
	closed := <-waiting
	require.NoError(t, closed.err)
	require.True(t, closed.result.Replayed)
	require.Equal(t, crowdSize, len(closed.result.Sent))
}

// A repeat that waits longer than a writer is waited for begins the broadcast anew.
func repeatOutlives(t *testing.T, p crowd) {
	cmd := p.broadcast("outlives")
	sendID, _, _ := died(t, p, cmd, time.Now())
	var mu sync.Mutex
	now := time.Now()
	hurry := p.At(func() time.Time { // each look at the clock takes a second
		mu.Lock()
		defer mu.Unlock()
		now = now.Add(time.Second)
		return now
	})
	sent, err := hurry.SendAudio.Handle(t.Context(), cmd)
	require.NoError(t, err)
	require.False(t, sent.Replayed)
	require.Equal(t, crowdSize, len(sent.Sent))
	require.Equal(t, 1, count(p.History(t, send.Stream(sendID)), send.BroadcastAbandoned{}.EventType()))

	cmd = p.broadcast("gone")
	died(t, p, cmd, time.Now())
	ctx, leave := context.WithCancel(t.Context())
	leave()
	_, err = p.Commands.SendAudio.Handle(ctx, cmd)
	require.ErrorIs(t, err, context.Canceled, "nobody waits for a caller who has gone")
}

func largeSchedule(t *testing.T, p crowd) {
	// More locations than one event names. To a send they are there as soon as the read model has them.
	const size = 2_500
	other := p.World.Partner(t)
	_, err := p.Pool.Exec(t.Context(), `
		INSERT INTO locations.location (company_id, environment, user_id, external_id, name, timezone, tags, channel_type, channel_url, created_at, position)
		SELECT $1, 'live', n, 'store_' || n, 'Store', 'UTC', '{}', 'player', '', now(), n FROM generate_series(1, $2::int) n`, other.CompanyID, size)
	require.NoError(t, err)
	cmd := commands.SendAudio{Caller: other.Keyed("schedule"), AudioID: other.Upload(t, other.Caller()), Request: send.Request{
		Targets: send.Targets{All: true}, ScheduleAt: new(time.Now().Add(time.Hour)),
	}}
	cmd.Caller.RequestID = strings.Repeat("r", 200_000)
	sent, err := p.Commands.SendAudio.Handle(t.Context(), cmd)
	require.NoError(t, err)
	require.Equal(t, size, len(sent.Planned))
	scheduled, sealed := send.Scheduled{}.EventType(), send.BroadcastSealed{}.EventType()
	require.Equal(t, []string{scheduled, scheduled, sealed}, p.Types(t, send.Stream(sent.ID)))
	again, err := p.Commands.SendAudio.Handle(t.Context(), cmd)
	require.NoError(t, err)
	require.True(t, again.Replayed)
	require.Equal(t, text(t, sent.Send), text(t, again.Send))
	require.NoError(t, p.Commands.CancelSend.Handle(t.Context(), commands.CancelSend{Caller: other.Caller(), SendID: sent.ID}))
	p.Settle(t)
	listed, err := sends.Get(t.Context(), p.Pool, other.CompanyID, event.Live, sent.ID)
	require.NoError(t, err)
	require.Equal(t, "cancelled", listed.Status)
	require.Equal(t, size, listed.Counts.Cancelled)
}
