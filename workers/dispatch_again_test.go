package workers_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/kafka"
	"github.com/musique/musique/workers"
)

// secondOfTwo has two sends delivered to the same locations and the first of them played, and gives the other, which is open.
func (w *world) secondOfTwo(t *testing.T, p commandstest.Partner, audioID string, ids []string) send.Send {
	t.Helper()
	stop := w.start(t, dispatch, delivering, closer)
	defer stop()
	ended, open := p.Send(t, audioID, ids...), p.Send(t, audioID, ids...)
	eventually(t, func() bool { return len(w.inboxOf(t, p)) == 2*len(ids) })
	for _, s := range ended.Sent {
		report(t, p, s, delivery.StatusPlayed)
	}
	eventually(t, func() bool { return len(w.inboxOf(t, p)) == len(ids) })
	return open
}

func (w *world) loseDispatchTopic(t *testing.T) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(w.deps.Brokers...))
	require.NoError(t, err)
	defer client.Close()
	deleted, err := kadm.NewClient(client).DeleteTopics(t.Context(), workers.DispatchTopic)
	require.NoError(t, errors.Join(err, deleted.Error()))
}

// What was dispatched and is in no inbox yet is lost with Kafka, though the database knows that it was dispatched: it is dispatched again.
func TestALostDispatchTopicIsFilledAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	ids := names("store", 5)
	p.Import(t, ids...)
	audioID := p.Upload(t, p.Caller())
	open := w.secondOfTwo(t, p, audioID, ids)
	stop := w.start(t, dispatch)
	heard := w.listen(t)
	lost := p.Send(t, audioID, ids...)
	eventually(t, func() bool { _, to := heard.of(lost.ID); return to == 5 })
	w.passed(t, "dispatch", w.everyEvent(t)[len(w.everyEvent(t))-1].Position)
	stop()

	w.loseDispatchTopic(t)
	require.NoError(t, kafka.EnsureTopics(t.Context(), w.deps.Brokers, kafka.Topic{Name: workers.DispatchTopic, Partitions: partitions}))
	w.start(t, dispatch, delivering, closer)
	for i, s := range lost.Sent {
		there := at(p, event.Live, s.UserID)
		eventually(t, func() bool { return len(w.open(t, there)) == 2 })
		require.Equal(t, []string{open.Sent[i].DeliveryID, s.DeliveryID}, w.open(t, there), "what was played is not told again")
	}
}

// The topic can be lost while it is written to and read.
func TestADispatchTopicThatIsLostAtWork(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	ids := names("store", 5)
	p.Import(t, ids...)
	audioID := p.Upload(t, p.Caller())
	w.start(t, dispatch)
	heard := w.listen(t)
	first := p.Send(t, audioID, ids...)
	eventually(t, func() bool { _, to := heard.of(first.ID); return to == 5 })
	w.loseDispatchTopic(t)
	second := p.Send(t, audioID, ids...)
	w.start(t, delivering)
	for i, s := range first.Sent {
		there := at(p, event.Live, s.UserID)
		eventually(t, func() bool { return len(w.open(t, there)) == 2 })
		require.Equal(t, []string{s.DeliveryID, second.Sent[i].DeliveryID}, w.open(t, there))
	}
}

// When everything is dispatched again, what ended so long ago that the inboxes forgot it is not: its player would play it again.
func TestWhatEndedLongAgoIsNotDispatchedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	p.Locations(t, "hall")
	audioID := p.Upload(t, p.Caller())
	stop := w.start(t, dispatch, delivering, closer)
	lasting := send.Request{Targets: send.Targets{ExternalIDs: []string{"hall"}}, ExpiresIn: new(int64(send.MaxExpiresIn))}
	played, open := p.SendAs(t, p.Caller(), audioID, lasting).Sent[0], p.SendAs(t, p.Caller(), audioID, lasting).Sent[0]
	eventually(t, func() bool { return len(w.inboxOf(t, p)) == 2 })
	report(t, p, played, delivery.StatusPlayed)
	eventually(t, func() bool { return w.rows(t, "inbox_closed") == 1 })
	stop()
	w.set(time.Now().Add(workers.KeepClosed + time.Hour))
	w.clean(t)
	require.Zero(t, w.rows(t, "inbox_closed"))

	_, err := w.Pool.Exec(t.Context(), "TRUNCATE workers.inbox")
	require.NoError(t, err)
	w.again(t, "dispatch")
	w.start(t, dispatch, delivering)
	last := p.Send(t, audioID, "hall").Sent[0]
	eventually(t, func() bool { return len(w.inboxOf(t, p)) == 2 })
	require.Equal(t, []string{open.DeliveryID, last.DeliveryID}, []string{w.inboxOf(t, p)[0].DeliveryID, w.inboxOf(t, p)[1].DeliveryID})
}

// With a database that was lost the inboxes know of no end until the closer has read it again: what had ended is not dispatched, however recent it is.
func TestWhatHadEndedIsNotDispatchedIntoANewDatabase(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	ids := names("store", 5)
	p.Import(t, ids...)
	audioID := p.Upload(t, p.Caller())
	open := w.secondOfTwo(t, p, audioID, ids)
	_, err := w.Pool.Exec(t.Context(), "TRUNCATE workers.inbox, workers.inbox_closed, workers.checkpoint, workers.dispatch_topic")
	require.NoError(t, err)
	stop := w.start(t, dispatch, delivering) // and no closer yet
	last := p.Send(t, audioID, ids...)
	for i, s := range last.Sent {
		there := at(p, event.Live, s.UserID)
		eventually(t, func() bool { return slices.Contains(w.open(t, there), s.DeliveryID) })
		require.Equal(t, []string{open.Sent[i].DeliveryID, s.DeliveryID}, w.open(t, there))
	}
	stop()
	report(t, p, open.Sent[0], delivery.StatusPlayed)
	w.again(t, "dispatch") // as by a process that died amid this: what it doubted is still doubted
	_, err = w.Pool.Exec(t.Context(), "DELETE FROM workers.inbox")
	require.NoError(t, err)
	w.start(t, dispatch, delivering)
	eventually(t, func() bool { return len(w.inboxOf(t, p)) == 9 })
}
