package workers_test

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/kafka"
	"github.com/musique/musique/workers"
	"github.com/musique/musique/workers/inbox"
)

// report is a player's word.
func report(t testing.TB, p commandstest.Partner, s send.AudioSent, status delivery.Status) {
	t.Helper()
	_, err := p.Commands.ReportPlayback.Handle(context.Background(), commands.ReportPlayback{
		Caller: p.Caller(), UserID: s.UserID, DeliveryID: s.DeliveryID, Status: string(status), Reason: "no speaker",
	})
	require.NoError(t, err)
}

// again has a follower do everything again, as one does whose checkpoint was lost.
func (w *world) again(t *testing.T, follower string) {
	t.Helper()
	_, err := w.Pool.Exec(t.Context(), "UPDATE workers.checkpoint SET commit_position = 0, prepare_position = 0 WHERE follower = $1", follower)
	require.NoError(t, err)
}

func TestWhatIsDispatchedAgainShowsOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	ids := names("store", 10)
	p.Import(t, ids...)
	audioID := p.Upload(t, p.Caller())
	heard := w.listen(t)
	stop := w.start(t, dispatch, delivering, closer)
	eventually(t, func() bool { return w.rows(t, "dispatch_topic") == 1 }) // of what comes from now on, the inboxes know the end
	ended := p.Send(t, audioID, ids...)
	lasting := p.Send(t, audioID, ids...)
	eventually(t, func() bool { return len(w.inboxOf(t, p)) == 20 })
	for i, s := range ended.Sent {
		report(t, p, s, []delivery.Status{delivery.StatusPlayed, delivery.StatusFailed}[i%2])
	}
	eventually(t, func() bool { return len(w.inboxOf(t, p)) == 10 })
	before := w.inboxOf(t, p)
	stop()
	w.again(t, "dispatch")
	w.again(t, "closer")
	_, to := heard.of(ended.ID)
	require.Equal(t, 10, to)
	w.start(t, dispatch, delivering, closer)
	eventually(t, func() bool { _, to := heard.of(ended.ID); return to == 20 })
	mark := p.Send(t, audioID, ids...) // what stands behind the repeats on each partition
	eventually(t, func() bool { return len(w.inboxOf(t, p)) == 20 })
	require.Equal(t, before, w.inboxOf(t, p)[:10], "what was there stays where it was")
	for i, s := range lasting.Sent {
		require.Equal(t, []string{s.DeliveryID, mark.Sent[i].DeliveryID}, w.open(t, at(p, event.Live, s.UserID)))
	}
}

// A delivery can end before its message comes: its player heard of it another way, or the send was cancelled at once.
func TestAMessageAfterTheEndOpensNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	p.Locations(t, "hall", "yard")
	id := p.Upload(t, p.Caller())
	w.start(t, closer, cancellation)
	early := p.Send(t, id, "hall", "yard")
	cancelled := p.Send(t, id, "hall")
	report(t, p, early.Sent[0], delivery.StatusPlayed)
	require.NoError(t, p.Commands.CancelSend.Handle(t.Context(), commands.CancelSend{Caller: p.Caller(), SendID: cancelled.ID}))
	eventually(t, func() bool {
		return w.statuses(t, p, event.Live, cancelled.ID)["hall"] == "cancelled" && len(w.inboxOf(t, p)) == 1
	})
	last := p.Send(t, id, "hall", "yard")
	w.start(t, dispatch, delivering)
	eventually(t, func() bool { return len(w.open(t, at(p, event.Live, early.Sent[1].UserID))) == 2 })
	hall := at(p, event.Live, early.Sent[0].UserID)
	eventually(t, func() bool { return slices.Equal([]string{last.Sent[0].DeliveryID}, w.open(t, hall)) })
	for _, i := range w.inboxOf(t, p) {
		require.NotEqual(t, early.Sent[0].DeliveryID, i.DeliveryID)
		require.False(t, i.Kind == inbox.Deliver && i.DeliveryID == cancelled.Sent[0].DeliveryID)
	}
}

// Messages that nobody can deliver are set aside, as they came, and nothing else is lost or out of order: neither behind them in their partition nor elsewhere.
func TestAPoisonedMessageIsSetAside(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	ids := names("store", 64)
	p.Import(t, ids...)
	audioID := p.Upload(t, p.Caller())
	w.start(t, dispatch)
	first := p.Send(t, audioID, ids...)
	placed := w.partitions(t, first)
	require.Len(t, placed, len(ids))
	poisoned := placed[first.Sent[0].DeliveryID]
	client, err := kgo.NewClient(kgo.SeedBrokers(w.deps.Brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	require.NoError(t, err)
	defer client.Close()
	// The last two are refused by PostgreSQL: a name with a zero byte, and a delivery with one.
	poison := []string{
		"no message", `{"bucket": "one"}`,
		`{"bucket": 1, "sends": [{"companyId": "co_x", "environment": "live", "audio": {"name": "\u0000"}, "to": [{"deliveryId": "one", "userId": 1}]}]}`,
		`{"bucket": 1, "sends": [{"companyId": "co_x", "environment": "live", "to": [{"deliveryId": "\u0000", "userId": 1}]}]}`,
	}
	for _, value := range poison {
		require.NoError(t, client.ProduceSync(t.Context(), &kgo.Record{Topic: workers.DispatchTopic, Partition: poisoned, Value: []byte(value)}).FirstErr())
	}
	second := p.Send(t, audioID, ids...)
	w.start(t, delivering)
	third := p.Send(t, audioID, ids...)
	eventually(t, func() bool { return len(w.inboxOf(t, p)) == 3*len(ids) })
	require.Equal(t, w.order(t, p), w.arrived(t, p))
	require.Equal(t, 3*len(ids), len(first.Sent)+len(second.Sent)+len(third.Sent))

	dead, err := kgo.NewClient(kgo.SeedBrokers(w.deps.Brokers...), kgo.ConsumeTopics(workers.DeadLetterTopic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	require.NoError(t, err)
	defer dead.Close()
	ctx, cancel := context.WithTimeout(t.Context(), commandstest.Patience)
	defer cancel()
	var kept []string
	for len(kept) < len(poison) {
		fetched := dead.PollFetches(ctx)
		require.NoError(t, fetched.Err())
		fetched.EachRecord(func(r *kgo.Record) {
			kept = append(kept, string(r.Value))
			require.NotEmpty(t, headers(r)["musique_reason"])
		})
	}
	require.Equal(t, poison, kept)
}

// partitions tells which partition each delivery of a send went to.
func (w *world) partitions(t *testing.T, s send.Send) map[string]int32 {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(w.deps.Brokers...), kgo.ConsumeTopics(workers.DispatchTopic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	require.NoError(t, err)
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), commandstest.Patience)
	defer cancel()
	placed := map[string]int32{}
	for len(placed) < s.Total {
		fetched := client.PollFetches(ctx)
		require.NoError(t, fetched.Err())
		fetched.EachRecord(func(r *kgo.Record) {
			var d workers.Dispatched
			if err := json.Unmarshal(r.Value, &d); err != nil {
				t.Error(err)
			}
			for _, one := range d.Sends {
				for _, to := range one.To {
					if one.SendID == s.ID {
						placed[to.DeliveryID] = r.Partition
					}
				}
			}
		})
	}
	return placed
}

// Workers are stopped and started at any moment, their database connections are cut, two of each are at work: each delivery is in its inbox once, those
// of a location in their order, and what has ended is gone.
func TestNothingIsLostOrDoubledWhateverStops(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	ids := names("store", 20)
	p.Import(t, ids...)
	audioID := p.Upload(t, p.Caller())
	r := rand.New(rand.NewPCG(5, 6))
	var sending atomic.Bool
	sending.Store(true)
	var beside sync.WaitGroup
	beside.Go(func() {
		defer sending.Store(false)
		sendMany(t, p, audioID, ids, 3, 40)
	})
	w.start(t, dispatch, delivering, closer)
	ended := map[string]bool{}
	deadline := time.Now().Add(commandstest.Patience)
	for rounds := 0; rounds < 15 || sending.Load() || len(ended) == 0; rounds++ { // consumers that come and go hold up their group
		require.True(t, time.Now().Before(deadline), "nothing arrives")
		stop := w.start(t, []string{dispatch, delivering, closer}[r.IntN(3)], []string{dispatch, delivering, closer}[r.IntN(3)])
		if items := w.inboxOf(t, p); len(items) > 0 { // a player ends one of them
			some := items[r.IntN(len(items))]
			sendID, userID, ok := delivery.ParseID(some.DeliveryID)
			require.True(t, ok)
			report(t, p, send.AudioSent{SendID: sendID, DeliveryID: some.DeliveryID, Destination: send.Destination{UserID: userID}}, delivery.StatusPlayed)
			ended[some.DeliveryID] = true
		}
		if rounds%5 == 4 {
			w.cut(t)
		}
		<-time.After(time.Duration(r.IntN(40)) * time.Millisecond)
		stop()
	}
	beside.Wait()
	want := w.order(t, p)
	for id, order := range want {
		want[id] = slices.DeleteFunc(order, func(id string) bool { return ended[id] })
	}
	eventually(t, func() bool { return len(flat(w.arrived(t, p))) == len(flat(want)) })
	require.Equal(t, want, w.arrived(t, p))
	require.NotEmpty(t, ended)
}

// A message in hand is delivered though its worker is told to end, and one that is not acknowledged comes to the next.
func TestADeliveryWorkerFinishesWhatItHas(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	publisher, err := kafka.NewPublisher(w.deps.Brokers, commandstest.Quiet)
	require.NoError(t, err)
	defer publisher.Close()
	const each = 30
	for round := range 6 {
		var messages []*message.Message
		for i := range each {
			sendID := newSendID()
			raw, err := json.Marshal(workers.Dispatched{Bucket: i, Sends: []workers.DispatchSend{{
				CompanyID: p.CompanyID, Environment: event.Live, SendID: sendID, Priority: "normal",
				To: []workers.DispatchTo{{DeliveryID: delivery.ID(sendID, int64(i+1)), ExternalID: "hall", UserID: int64(i + 1), ExpiresAt: time.Now().Add(time.Hour)}},
			}}})
			require.NoError(t, err)
			msg := message.NewMessage(uuid.NewString(), raw)
			msg.Metadata.Set(kafka.KeyMetadata, string(rune('a'+i)))
			messages = append(messages, msg)
		}
		require.NoError(t, publisher.Publish(workers.DispatchTopic, messages...))
		stop := w.start(t, delivering)
		eventually(t, func() bool { return len(w.inboxOf(t, p)) > round*each })
		stop()
	}
	w.start(t, delivering)
	eventually(t, func() bool { return len(w.inboxOf(t, p)) == 6*each })
}
