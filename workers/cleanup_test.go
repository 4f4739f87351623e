package workers_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/domain/usage"
	"github.com/musique/musique/projections/usagelogs"
	"github.com/musique/musique/workers"
)

// The process that deleted audio died before it removed the bytes, and the one that sent it before it saw the deletion.
func TestDeletedAudioLosesItsBytesAndSends(t *testing.T) {
	t.Parallel()
	w := shared
	p := w.Partner(t)
	p.Locations(t, "hall")
	id := p.Upload(t, p.Caller())
	stays := p.Upload(t, p.Caller())
	kept := p.Send(t, stays, "hall")
	a, err := audio.Load(p.History(t, audio.Stream(id)))
	require.NoError(t, err)
	meta := event.Metadata{CompanyID: p.CompanyID, Environment: event.Live, Time: w.now()}
	w.append(t, meta, audio.Stream(id), audio.DeletionStarted{AudioID: id})
	sendID := newSendID()
	sentMeta, payloads := crowd(p, sendID, id, 3)
	w.append(t, sentMeta, send.Stream(sendID), payloads...)
	w.append(t, meta, audio.Stream(id), audio.Deleted{AudioID: id, BlobKey: a.BlobKey})
	w.Settle(t)
	eventually(t, func() bool { return len(p.BlobKeys(t)) == 1 })
	eventually(t, func() bool {
		for _, status := range w.statuses(t, p, event.Live, sendID) {
			if status != "cancelled" {
				return false
			}
		}
		return true
	})
	require.Equal(t, "queued", w.statuses(t, p, event.Live, kept.ID)["hall"])
}

func TestBroadcastsWhoseWriterDiedAreAbandoned(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	id := p.Upload(t, p.Caller())
	w.start(t, schedule)
	open := func(sealed bool) string {
		t.Helper()
		sendID := newSendID()
		meta, payloads := crowd(p, sendID, id, 10)
		meta.Time = w.now()
		send.Unseal(payloads)
		if sealed {
			payloads = append(payloads, send.BroadcastSealed{SendID: sendID, Total: len(payloads)})
		}
		w.append(t, meta, send.Stream(sendID), payloads...)
		return sendID
	}
	died := open(false)
	done := open(true)
	w.set(w.now().Add(time.Hour))
	young := open(false)
	w.passed(t, "schedule", w.append(t, event.Metadata{}, "end", send.Cancelled{SendID: "none"}))
	require.Equal(t, 2, w.rows(t, "open_broadcast"))
	w.clean(t)
	require.Len(t, p.History(t, send.Stream(died)), 11)
	require.Equal(t, send.BroadcastAbandoned{}.EventType(), p.Types(t, send.Stream(died))[10])
	require.Len(t, p.History(t, send.Stream(done)), 11)
	require.Len(t, p.History(t, send.Stream(young)), 10)
}

// clean does what a cleanup does every half minute.
func (w *world) clean(t *testing.T) {
	t.Helper()
	require.NoError(t, workers.CleanOnce(t.Context(), w.deps))
}

// What the inbox remembers of ended deliveries goes in time, and not before.
func TestOldRowsGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	p.Locations(t, "hall")
	id := p.Upload(t, p.Caller())
	stop := w.start(t, dispatch, delivering, closer, cancellation)
	played, cancelled, open := p.Send(t, id, "hall").Sent[0], p.Send(t, id, "hall").Sent[0], p.Send(t, id, "hall").Sent[0]
	eventually(t, func() bool { return len(w.inboxOf(t, p)) == 3 })
	report(t, p, played, delivery.StatusPlayed)
	cancel(t, p, cancelled.SendID)
	eventually(t, func() bool { return w.rows(t, "inbox_closed") == 2 && len(w.inboxOf(t, p)) == 2 })
	stop()
	clean := func(ahead time.Duration) {
		t.Helper()
		w.set(time.Now().Add(ahead))
		w.clean(t)
	}
	clean(workers.KeepClosed - time.Hour)
	require.Equal(t, 2, w.rows(t, "inbox_closed"))
	clean(workers.KeepClosed + time.Hour)
	require.Equal(t, 0, w.rows(t, "inbox_closed"))
	require.Len(t, w.inboxOf(t, p), 2, "a player that is away is still to learn of the cancellation")
	clean((send.MaxExpiresIn + 3600) * time.Second)
	require.Equal(t, []string{open.DeliveryID}, []string{w.inboxOf(t, p)[0].DeliveryID})
	require.Len(t, w.inboxOf(t, p), 1)
}

// Usage logs go by the clock, whether requests come or not.
func TestUsageLogsThatAreOverGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	began := w.now()
	served := commands.ServedRequest{ID: uuid.New(), Caller: p.Caller(), Served: usage.ApiRequestServed{RequestID: "req_1", Timestamp: began.UTC().Truncate(time.Microsecond)}}
	require.NoError(t, w.Commands.RecordUsage.Handle(t.Context(), commands.RecordUsage{Requests: []commands.ServedRequest{served}}))
	logged := func() (requests int) {
		require.NoError(t, w.Pool.QueryRow(t.Context(), "SELECT count(*) FROM usage.request").Scan(&requests))
		return requests
	}
	eventually(t, func() bool { return logged() == 1 })
	w.set(began.Add(usagelogs.Retention))
	w.clean(t)
	require.Equal(t, 1, logged())
	w.set(began.Add(usagelogs.Retention + 7*24*time.Hour))
	eventually(t, func() bool {
		w.clean(t)
		return logged() == 0
	}, "somebody may have been reading them")
}

// Bytes whose upload was never recorded go when nobody can record it any more; all others stay.
func TestBytesWithoutAnUploadAreSwept(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	p.Upload(t, p.Caller())
	deleted := p.Upload(t, p.Caller())
	require.NoError(t, p.Commands.DeleteAudio.Handle(t.Context(), commands.DeleteAudio{Caller: p.Caller(), AudioID: deleted}))
	recorded := p.BlobKeys(t)
	put := func(key string, age time.Duration) {
		t.Helper()
		require.NoError(t, w.Blobs.Put(t.Context(), key, bytes.NewReader([]byte("sound")), "audio/wav"))
		when := time.Now().Add(-age)
		require.NoError(t, os.Chtimes(filepath.Join(w.BlobDir, key), when, when))
	}
	for _, key := range recorded {
		when := time.Now().Add(-2 * workers.OrphanAge)
		require.NoError(t, os.Chtimes(filepath.Join(w.BlobDir, key), when, when))
	}
	orphan, young := commands.BlobKey(p.Caller(), "aud_orphan", "aa"), commands.BlobKey(p.Caller(), "aud_young", "bb")
	again := commands.BlobKey(p.Caller(), deleted, "cc")
	put(orphan, workers.OrphanAge+time.Hour)
	put(again, workers.OrphanAge+time.Hour)
	put(young, workers.OrphanAge-time.Hour)
	stranger := p.Caller()
	stranger.CompanyID = "co_elsewhere"
	foreign := commands.BlobKey(stranger, "aud_theirs", "dd")
	put(foreign, 2*workers.OrphanAge)
	put("audio/other", 2*workers.OrphanAge)

	stop := w.start(t, cleanup)
	eventually(t, func() bool { return len(p.BlobKeys(t)) == len(recorded)+1 })
	stop()
	require.ElementsMatch(t, append(recorded, young), p.BlobKeys(t))
	for _, key := range []string{foreign, "audio/other"} {
		there, err := w.Blobs.Exists(t.Context(), key)
		require.NoError(t, err)
		require.True(t, there, "another installation's bytes are its own")
	}
	w.set(time.Now().Add(2 * time.Hour))
	w.start(t, cleanup)
	eventually(t, func() bool { return len(p.BlobKeys(t)) == len(recorded) }, "and the rest when its time has come")
}

// Installations may share blob storage, and their operators may use the same Idempotency-Keys.
func TestAnotherInstallationsBytesAreLeftAlone(t *testing.T) {
	t.Parallel()
	production, staging := newWorld(t), newWorld(t)
	register := func(w *world) string {
		t.Helper()
		made, err := w.Commands.RegisterCompany.Handle(t.Context(), commands.RegisterCompany{Caller: commands.Caller{Actor: "operator", IdempotencyKey: "acme"}, Name: "Acme"})
		require.NoError(t, err)
		return made.CompanyID
	}
	id := register(production)
	require.Equal(t, id, register(production))
	require.NotEqual(t, id, register(staging))
	p := commandstest.Partner{World: production.World, CompanyID: id}
	caller := p.Caller()
	caller.CompanyID, caller.Environment = id, event.Live
	p.Upload(t, caller)
	keys := p.BlobKeys(t)
	when := time.Now().Add(-2 * workers.OrphanAge)
	require.NoError(t, os.Chtimes(filepath.Join(production.BlobDir, keys[0]), when, when))
	elsewhere := staging.deps
	elsewhere.Blobs = production.Blobs
	require.NoError(t, workers.SweepOnce(t.Context(), elsewhere))
	require.Equal(t, keys, p.BlobKeys(t))
}
