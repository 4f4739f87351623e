package workers_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/kafka"
	"github.com/musique/musique/workers"
	"github.com/musique/musique/workers/inbox"
)

func names(prefix string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("%s_%05d", prefix, i)
	}
	return all
}

func TestASendReachesTheInboxesOfItsLocations(t *testing.T) {
	t.Parallel()
	w := shared
	p := w.Partner(t)
	p.Locations(t, "hall", "yard", "attic")
	id := p.Upload(t, p.Caller())
	sent := p.SendAs(t, p.Caller(), id, send.Request{Targets: send.Targets{ExternalIDs: []string{"hall", "yard"}}, Priority: "urgent", Repeat: new(2), Volume: new(0)})
	for _, s := range sent.Sent {
		eventually(t, func() bool { return len(w.open(t, at(p, event.Live, s.UserID))) == 1 })
		items, err := w.inbox.After(t.Context(), at(p, event.Live, s.UserID), 0, 10)
		require.NoError(t, err)
		d := items[0].Delivery
		require.Equal(t, inbox.Deliver, items[0].Kind)
		require.Equal(t, []any{s.DeliveryID, sent.ID, id, "urgent", 2, 0, "Opening", "wav", int64(200)}, []any{d.DeliveryID, d.SendID, d.AudioID, d.Priority, d.Repeat, d.Volume, d.Name, d.Format, d.DurationMs})
		require.Contains(t, p.BlobKeys(t), d.BlobKey)
		require.Nil(t, d.PlayAt)
		require.True(t, d.ExpiresAt.Equal(s.ExpiresAt))
	}
	require.Len(t, w.inboxOf(t, p), 2)
}

// order is in which order the event store has the deliveries of each location.
func (w *world) order(t testing.TB, p commandstest.Partner) map[string][]string {
	t.Helper()
	order := map[string][]string{}
	for after, done := (event.Position{}), false; !done; {
		events, through, end, err := w.Store.ReadAll(context.Background(), after, 1000)
		require.NoError(t, err)
		for _, e := range events {
			if e.Type != (send.AudioSent{}).EventType() || e.Metadata.CompanyID != p.CompanyID {
				continue
			}
			var s send.AudioSent
			require.NoError(t, json.Unmarshal(e.Data, &s))
			order[s.ExternalID] = append(order[s.ExternalID], s.DeliveryID)
		}
		after, done = through, end
	}
	return order
}

// arrived is in which order the inboxes have the deliveries of each location.
func (w *world) arrived(t testing.TB, p commandstest.Partner) map[string][]string {
	t.Helper()
	order := map[string][]string{}
	for _, i := range w.inboxOf(t, p) {
		if i.Kind == inbox.Deliver {
			order[i.ExternalID] = append(order[i.ExternalID], i.DeliveryID)
		}
	}
	return order
}

// sendMany sends audio many times, from several callers at once, each time to some of the locations.
func sendMany(t *testing.T, p commandstest.Partner, audioID string, ids []string, callers, each int) {
	t.Helper()
	var wait sync.WaitGroup
	for caller := range callers {
		wait.Go(func() {
			r := rand.New(rand.NewPCG(uint64(caller), 7))
			for range each {
				some := slices.Clone(ids)
				r.Shuffle(len(some), func(i, j int) { some[i], some[j] = some[j], some[i] })
				_, err := p.Commands.SendAudio.Handle(context.WithoutCancel(t.Context()), commands.SendAudio{Caller: p.Caller(), AudioID: audioID, Request: send.Request{
					Targets: send.Targets{ExternalIDs: some[:1+r.IntN(len(some))]},
				}})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
}

func TestEachLocationKeepsTheOrderOfTheEvents(t *testing.T) {
	t.Parallel()
	w := shared
	p := w.Partner(t)
	ids := names("store", 12)
	p.Import(t, ids...)
	sendMany(t, p, p.Upload(t, p.Caller()), ids, 6, 8)
	want := w.order(t, p)
	require.Len(t, want, len(ids))
	eventually(t, func() bool { return len(flat(w.arrived(t, p))) == len(flat(want)) })
	require.Equal(t, want, w.arrived(t, p))
}

func flat(lists map[string][]string) (all []string) {
	for _, list := range lists {
		all = append(all, list...)
	}
	return all
}

// topic gathers what is on the dispatch topic.
type topic struct {
	mu       sync.Mutex
	messages []workers.Dispatched
}

func (w *world) listen(t *testing.T) *topic {
	t.Helper()
	subscriber, err := kafka.NewSubscriber(w.deps.Brokers, "test-"+uuid.NewString(), commandstest.Quiet)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, subscriber.Close()) })
	messages, err := subscriber.Subscribe(t.Context(), workers.DispatchTopic)
	require.NoError(t, err)
	heard := &topic{}
	go func() {
		for msg := range messages {
			var d workers.Dispatched
			if err := json.Unmarshal(msg.Payload, &d); err != nil {
				t.Error(err)
			}
			if len(msg.Payload) > kafka.MaxMessageBytes {
				t.Error("a message is too large")
			}
			heard.mu.Lock()
			heard.messages = append(heard.messages, d)
			heard.mu.Unlock()
			msg.Ack()
		}
	}()
	return heard
}

// of gives the messages with deliveries of a send, and how many deliveries they have.
func (h *topic) of(sendID string) (messages []workers.Dispatched, to int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.messages {
		mine := false
		for _, s := range m.Sends {
			if s.SendID == sendID {
				mine = true
				to += len(s.To)
			}
		}
		if mine {
			messages = append(messages, m)
		}
	}
	return messages, to
}

// append puts events into the store, in parts, and gives the position of the last.
func (w *world) append(t *testing.T, meta event.Metadata, stream string, payloads ...event.Payload) (position event.Position) {
	t.Helper()
	for chunk := range slices.Chunk(payloads, 500) {
		events := make([]event.Proposed, len(chunk))
		for i, payload := range chunk {
			events[i] = event.Proposed{ID: uuid.New(), Payload: payload, Metadata: meta}
		}
		var err error
		position, err = w.Store.Append(t.Context(), stream, eventstore.Any, events...)
		require.NoError(t, err)
	}
	return position
}

// crowd is a plan for a send to locations that nobody registered: to workers they are as good as others.
func crowd(p commandstest.Partner, sendID, audioID string, n int) (event.Metadata, []event.Payload) {
	to := make([]send.Location, n)
	for i, id := range names("crowd", n) {
		to[i] = send.Location{ExternalID: id, UserID: location.UserIDCandidate(p.CompanyID, id, 0), Timezone: "UTC"}
	}
	meta := event.Metadata{CompanyID: p.CompanyID, Environment: event.Live, Time: time.Now().UTC()}
	payloads, err := send.Plan(sendID, send.Request{}.Terms(audioID), send.Request{}, to, meta.Time)
	if err != nil {
		panic(err) // there are locations, and not too many
	}
	return meta, payloads
}

func newSendID() string { return "snd_" + strings.ReplaceAll(uuid.NewString(), "-", "") }

func TestALargeBroadcastIsOneMessageForEachBucketOnceItIsSealed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	id := p.Upload(t, p.Caller())
	heard := w.listen(t)
	w.start(t, dispatch)
	const size = 1_200
	sendID := newSendID()
	meta, payloads := crowd(p, sendID, id, size)
	send.Unseal(payloads)
	stream := send.Stream(sendID)

	// A writer that dies, one that begins again and dies later, and one that is done.
	w.append(t, meta, stream, payloads[:700]...)
	w.append(t, meta, stream, send.BroadcastAbandoned{SendID: sendID})
	w.append(t, meta, stream, payloads...)
	w.append(t, meta, stream, send.BroadcastAbandoned{SendID: sendID})
	w.passed(t, "dispatch", w.append(t, meta, stream, payloads...))
	beside := newSendID()
	otherMeta, other := crowd(p, beside, id, 1)
	w.append(t, otherMeta, send.Stream(beside), other...)
	eventually(t, func() bool { _, to := heard.of(beside); return to == 1 })
	_, to := heard.of(sendID)
	require.Zero(t, to, "nothing of it goes out before it is sealed")

	sealed := w.append(t, meta, stream, send.BroadcastSealed{SendID: sendID, Total: size})
	w.append(t, meta, stream, send.Cancelled{SendID: sendID})
	w.passed(t, "dispatch", sealed)
	eventually(t, func() bool { _, to := heard.of(sendID); return to >= size })
	messages, to := heard.of(sendID)
	require.Equal(t, size, to, "each of its locations gets it once")
	buckets := map[int]bool{}
	for _, s := range payloads {
		buckets[location.Bucket(p.CompanyID, s.(send.AudioSent).UserID)] = true //nolint:forcetypeassert // a test
	}
	require.Len(t, messages, len(buckets))
	require.Greater(t, len(buckets), 200)
	for _, m := range messages {
		require.Len(t, m.Sends, 1)
		for _, d := range m.Sends[0].To {
			require.Equal(t, m.Bucket, location.Bucket(p.CompanyID, d.UserID))
		}
		delete(buckets, m.Bucket)
	}
	require.Empty(t, buckets)
}

// Whoever dispatches when a broadcast is closed need not have seen all of it, nor only it: each location gets it once, whole and as it was written.
func TestALargeBroadcastOutlivesItsDispatcher(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	id := p.Upload(t, p.Caller())
	heard := w.listen(t)
	const size = 300
	first, second := newSendID(), newSendID()
	meta, one := crowd(p, first, id, size)
	_, other := crowd(p, second, id, size)
	send.Unseal(one)
	send.Unseal(other)
	stop := w.start(t, dispatch)
	w.append(t, meta, send.Stream(first), one[:100]...)
	w.append(t, meta, send.Stream(second), other[:200]...)
	w.append(t, meta, send.Stream(first), one[100:200]...)
	w.passed(t, "dispatch", w.append(t, meta, send.Stream(second), other[200:]...))
	stop()
	w.start(t, dispatch)
	w.append(t, meta, send.Stream(first), one[200:]...)
	w.append(t, meta, send.Stream(second), send.BroadcastSealed{SendID: second, Total: size})
	w.passed(t, "dispatch", w.append(t, meta, send.Stream(first), send.BroadcastSealed{SendID: first, Total: size}))
	for sendID, payloads := range map[string][]event.Payload{first: one, second: other} {
		eventually(t, func() bool { _, to := heard.of(sendID); return to >= size })
		messages, to := heard.of(sendID)
		require.Equal(t, size, to)
		got := map[string]bool{}
		for _, m := range messages {
			for _, s := range m.Sends {
				if s.SendID != sendID {
					continue
				}
				for _, d := range s.To {
					got[d.DeliveryID] = true
				}
			}
		}
		for _, payload := range payloads {
			require.Contains(t, got, payload.(send.AudioSent).DeliveryID) //nolint:forcetypeassert // a test
		}
	}
}

// A location that gets very much while the dispatch is away gets it in more than one message, in order.
func TestMessagesAreBoundedInBytes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	cmd := commandstest.Uploading(p.Caller(), commandstest.Sound(100*time.Millisecond))
	cmd.Details.Name = strings.Repeat("声", 200)
	made, err := p.Commands.UploadAudio.Handle(t.Context(), cmd)
	require.NoError(t, err)
	const count = 1_300 // 1.5 MB
	var all []event.Payload
	var meta event.Metadata
	for range count {
		var one []event.Payload
		meta, one = crowd(p, newSendID(), made.AudioID, 1)
		all = append(all, one...)
	}
	w.append(t, meta, "send-many", all...) // the stream is of no interest to the dispatch
	w.start(t, dispatch, delivering)
	user := all[0].(send.AudioSent).UserID //nolint:forcetypeassert // a test
	eventually(t, func() bool { return len(w.open(t, at(p, event.Live, user))) == count })
	for i, id := range w.open(t, at(p, event.Live, user)) {
		require.Equal(t, all[i].(send.AudioSent).DeliveryID, id) //nolint:forcetypeassert // a test
	}
}

func TestSharesKeepTheirOrderAndBounds(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(3, 4))
	for range 8 {
		var sends []workers.DispatchSend
		var want []string
		for range 1 + r.IntN(60) {
			s := workers.DispatchSend{SendID: newSendID(), Audio: workers.DispatchAudio{Name: strings.Repeat("<", r.IntN(20_000))}}
			for range 1 + r.IntN(400) {
				id := strconv.Itoa(len(want))
				s.To, want = append(s.To, workers.DispatchTo{DeliveryID: id, ExternalID: strings.Repeat("x", 128)}), append(want, id)
			}
			sends = append(sends, s)
		}
		messages, err := workers.Share(7, sends)
		require.NoError(t, err)
		var got []string
		for _, m := range messages {
			require.LessOrEqual(t, len(m.Payload), workers.MaxDispatchedBytes+100)
			require.Equal(t, "7", m.Metadata.Get(kafka.KeyMetadata))
			var d workers.Dispatched
			require.NoError(t, json.Unmarshal(m.Payload, &d))
			for _, s := range d.Sends {
				for _, to := range s.To {
					got = append(got, to.DeliveryID)
				}
			}
		}
		require.Equal(t, want, got)
	}
}

// However the events of a broadcast that is one append fall into pages, it is one message for each bucket.
func TestABroadcastIsOneMessageForEachBucket(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.Partner(t)
	id := p.Upload(t, p.Caller())
	heard := w.listen(t)
	w.start(t, dispatch)
	const size = 500
	var ids []string
	var last event.Position
	for i := range 10 {
		sendID := newSendID()
		meta, payloads := crowd(p, sendID, id, size)
		last = w.append(t, meta, send.Stream(sendID), payloads...)
		if i%2 == 0 { // the next one comes amid this one's pages, or after them
			w.passed(t, "dispatch", last)
		}
		ids = append(ids, sendID)
	}
	w.passed(t, "dispatch", last)
	buckets := map[int]bool{}
	for _, external := range names("crowd", size) {
		buckets[location.Bucket(p.CompanyID, location.UserIDCandidate(p.CompanyID, external, 0))] = true
	}
	for _, sendID := range ids {
		eventually(t, func() bool { _, to := heard.of(sendID); return to >= size })
		messages, to := heard.of(sendID)
		require.Equal(t, size, to)
		require.Len(t, messages, len(buckets))
	}
}
