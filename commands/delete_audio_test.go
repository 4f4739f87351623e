package commands_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/projections/audiolibrary"
	"github.com/musique/musique/projections/sends"
)

func TestDeletedAudioIsGoneWithItsBytes(t *testing.T) {
	t.Parallel()
	p, stranger := world.Partner(t), world.Partner(t)
	id := p.Upload(t, p.Caller())
	require.Len(t, p.BlobKeys(t), 1)
	for _, c := range []commands.Caller{stranger.Caller(), p.Sandbox()} {
		refused(t, p.Commands.DeleteAudio.Handle(t.Context(), commands.DeleteAudio{Caller: c, AudioID: id}), fault.NotFound)
	}
	require.NoError(t, p.Commands.DeleteAudio.Handle(t.Context(), commands.DeleteAudio{Caller: p.Caller(), AudioID: id}))
	require.Empty(t, p.BlobKeys(t))
	require.Equal(t, []string{audio.Uploaded{}.EventType(), audio.DeletionStarted{}.EventType(), audio.Deleted{}.EventType()}, p.Types(t, audio.Stream(id)))
	_, err := audiolibrary.Get(t.Context(), p.Pool, p.CompanyID, event.Live, id)
	refused(t, err, fault.NotFound)
	refused(t, p.Commands.DeleteAudio.Handle(t.Context(), commands.DeleteAudio{Caller: p.Caller(), AudioID: id}), fault.NotFound)
}

func TestAudioWithPendingSendsStays(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	p.Locations(t, "hall")
	id := p.Upload(t, p.Caller())
	queued := p.Send(t, id, "hall")
	scheduled := p.SendAs(t, p.Caller(), id, send.Request{Targets: send.Targets{All: true}, ScheduleAt: new(time.Now().Add(time.Hour))})
	remove := func() error {
		return p.Commands.DeleteAudio.Handle(t.Context(), commands.DeleteAudio{Caller: p.Caller(), AudioID: id})
	}
	require.Equal(t, []string{queued.ID, scheduled.ID}, refused(t, remove(), fault.Conflict).Details["sendIds"])
	require.Len(t, p.BlobKeys(t), 1)
	again := p.Send(t, id, "hall") // a deletion that was refused is over
	for _, s := range []send.Send{queued, scheduled, again} {
		refused(t, remove(), fault.Conflict)
		require.NoError(t, p.Commands.CancelSend.Handle(t.Context(), commands.CancelSend{Caller: p.Caller(), SendID: s.ID}))
	}
	require.NoError(t, remove())
	require.Empty(t, p.BlobKeys(t))
}

// Of a deletion and a send at the same moment one is done and the other is refused, and the bytes are there exactly as long as they may be played.
func TestADeletionAndASendAtOnceHaveOneWinner(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	p.Locations(t, "hall")
	const rounds = 80
	wins := map[bool]int{}
	for round := range rounds {
		id := p.Upload(t, p.Caller())
		cmd := commands.SendAudio{Caller: p.Keyed(id), AudioID: id, Request: send.Request{Targets: send.Targets{ExternalIDs: []string{"hall"}}}}
		sendID, _, err := p.Commands.SendAudio.Identity(cmd)
		require.NoError(t, err)
		// One of them begins later, by less and less of what it takes.
		both := atOnce(2, func(i int) (send.Send, error) {
			if late := time.Duration(round/2%20) * 100 * time.Microsecond; i == round%2 {
				<-time.After(late)
			}
			if i == 0 {
				return send.Send{}, p.Commands.DeleteAudio.Handle(lasting(t.Context()), commands.DeleteAudio{Caller: p.Caller(), AudioID: id})
			}
			sent, err := p.Commands.SendAudio.Handle(lasting(t.Context()), cmd)
			return sent.Send, err
		})
		deletion, sending := both[0].err, both[1].err
		if fault.CodeOf(deletion) == fault.ServiceUnavailable {
			continue // a machine that is so slow that the read models were not there in time decides nothing
		}
		state, err := send.Load(p.History(t, send.Stream(sendID)))
		require.NoError(t, err)
		again, errAgain := p.Commands.SendAudio.Handle(t.Context(), cmd)
		if deletion == nil {
			require.Error(t, sending)
			require.Contains(t, []fault.Code{fault.NotFound, fault.Conflict}, fault.CodeOf(sending), sending)
			require.True(t, !state.Exists() || state.Refused, "nothing plays what is gone")
			require.Error(t, errAgain, "the repeat of a refused send is refused")
			require.NotContains(t, p.BlobKeys(t), blobKey(t, p, id))
		} else {
			require.Equal(t, []string{sendID}, refused(t, deletion, fault.Conflict).Details["sendIds"])
			require.NoError(t, sending)
			require.False(t, state.Cancelled)
			require.NoError(t, errAgain)
			require.True(t, again.Replayed)
			require.Contains(t, p.BlobKeys(t), blobKey(t, p, id))
		}
		wins[deletion == nil]++
	}
	require.Len(t, wins, 2, "the race has both ends: %v", wins)
}

func blobKey(t *testing.T, p commandstest.Partner, audioID string) string {
	t.Helper()
	a, err := audio.Load(p.History(t, audio.Stream(audioID)))
	require.NoError(t, err)
	return a.BlobKey
}

// Many of both at once: sends that were accepted go on whatever the deletions say, and a deletion that is done left none of them.
func TestManySendsAndDeletionsAtOnce(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	p.Locations(t, "hall")
	for range 10 {
		id := p.Upload(t, p.Caller())
		deleted, accepted := 0, []string{}
		for i, a := range atOnce(16, func(i int) (send.Send, error) {
			if i%4 == 0 {
				return send.Send{}, p.Commands.DeleteAudio.Handle(lasting(t.Context()), commands.DeleteAudio{Caller: p.Caller(), AudioID: id})
			}
			sent, err := p.Commands.SendAudio.Handle(lasting(t.Context()), commands.SendAudio{Caller: p.Caller(), AudioID: id, Request: send.Request{Targets: send.Targets{All: true}}})
			return sent.Send, err
		}) {
			switch {
			case a.err != nil:
				require.Contains(t, []fault.Code{fault.NotFound, fault.Conflict}, fault.CodeOf(a.err), a.err)
			case i%4 == 0:
				deleted++
			default:
				accepted = append(accepted, a.result.ID)
			}
		}
		require.LessOrEqual(t, deleted, 1)
		if deleted == 1 {
			require.Empty(t, accepted)
		}
		listed, _, err := sends.List(t.Context(), p.Pool, p.CompanyID, event.Live, sends.Filter{AudioID: id}, "", 100)
		require.NoError(t, err)
		live := []string{}
		for _, s := range listed {
			if s.Status != "cancelled" {
				live = append(live, s.SendID)
			}
		}
		require.ElementsMatch(t, accepted, live)
	}
}

// A send that was recorded while a deletion was under way, by a process that died before it looked: its repeat finds that out.
func TestASendThatDiedDuringADeletionIsTakenBackByItsRepeat(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	p.Locations(t, "hall")
	id := p.Upload(t, p.Caller())
	now := time.Now()
	mark := func(payload event.Payload) {
		t.Helper()
		history := p.History(t, audio.Stream(id))
		_, err := p.Store.Append(t.Context(), audio.Stream(id), eventstore.ExpectedAfter(history), propose(p, now, payload)...)
		require.NoError(t, err)
	}
	died := func(key string) commands.SendAudio {
		t.Helper()
		cmd := commands.SendAudio{Caller: p.Keyed(key), AudioID: id, Request: send.Request{Targets: send.Targets{ExternalIDs: []string{"hall"}}}}
		sendID, meta, err := p.Commands.SendAudio.Identity(cmd)
		require.NoError(t, err)
		_, err = p.Store.Append(t.Context(), send.Stream(sendID), eventstore.NoStream, commands.Parts(meta, planned(t, p, sendID, cmd))[0]...)
		require.NoError(t, err)
		return cmd
	}
	before := died("before")
	mark(audio.DeletionStarted{AudioID: id})
	during := died("during")
	_, err := p.Commands.SendAudio.Handle(t.Context(), before)
	require.NoError(t, err, "the deletion sees it, and gives way")
	_, err = p.Commands.SendAudio.Handle(t.Context(), during)
	refused(t, err, fault.Conflict)
	_, err = p.Commands.SendAudio.Handle(t.Context(), during)
	refused(t, err, fault.Conflict)
	mark(audio.DeletionAbandoned{AudioID: id})
	_, err = p.Commands.SendAudio.Handle(t.Context(), during)
	refused(t, err, fault.Conflict) // it is taken back for good
	after := died("after")
	_, err = p.Commands.SendAudio.Handle(t.Context(), after)
	require.NoError(t, err)
	mark(audio.DeletionStarted{AudioID: id})
	lost := died("lost")
	mark(audio.Deleted{AudioID: id, BlobKey: "none"})
	_, err = p.Commands.SendAudio.Handle(t.Context(), lost)
	refused(t, err, fault.NotFound)
	_, err = p.Commands.SendAudio.Handle(t.Context(), after)
	require.NoError(t, err, "it was accepted, and its repeat is told so")
}

// A deletion whose process died keeps sends away for a while, and nobody for good.
func TestADeletionThatDiedIsOverInTime(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	p.Locations(t, "hall")
	id := p.Upload(t, p.Caller())
	began := time.Now()
	_, err := p.Store.Append(t.Context(), audio.Stream(id), eventstore.Exact(0), propose(p, began, audio.DeletionStarted{AudioID: id})...)
	require.NoError(t, err)
	cmd := commands.SendAudio{Caller: p.Caller(), AudioID: id, Request: send.Request{Targets: send.Targets{ExternalIDs: []string{"hall"}}}}
	soon := p.At(func() time.Time { return began.Add(audio.DeletionPatience - time.Second) })
	_, err = soon.SendAudio.Handle(t.Context(), cmd)
	refused(t, err, fault.Conflict)
	refused(t, soon.DeleteAudio.Handle(t.Context(), commands.DeleteAudio{Caller: p.Caller(), AudioID: id}), fault.Conflict)
	later := p.At(func() time.Time { return began.Add(audio.DeletionPatience) })
	sent, err := later.SendAudio.Handle(t.Context(), cmd)
	require.NoError(t, err)
	require.NoError(t, p.Commands.CancelSend.Handle(t.Context(), commands.CancelSend{Caller: p.Caller(), SendID: sent.ID}))
	require.NoError(t, later.DeleteAudio.Handle(t.Context(), commands.DeleteAudio{Caller: p.Caller(), AudioID: id}))
}

// A deletion that cannot ask whether sends are pending lets go of the audio.
func TestADeletionThatCannotBeDecidedIsAbandoned(t *testing.T) {
	t.Parallel()
	w := commandstest.Still(t, commandstest.Store(t))
	stop := w.Project(t)
	p := w.Partner(t)
	p.Locations(t, "hall")
	id := p.Upload(t, p.Caller())
	stop()
	refused(t, w.Commands.DeleteAudio.Handle(t.Context(), commands.DeleteAudio{Caller: p.Caller(), AudioID: id}), fault.ServiceUnavailable)
	a, err := audio.Load(p.History(t, audio.Stream(id)))
	require.NoError(t, err)
	require.NoError(t, a.Sendable(p.CompanyID, event.Live, time.Now()))
	require.Len(t, p.BlobKeys(t), 1)
}
