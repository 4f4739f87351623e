package workers_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/domain/usage"
	"github.com/musique/musique/infra/kafka"
	"github.com/musique/musique/infra/kafka/kafkatest"
	"github.com/musique/musique/workers"
	"github.com/musique/musique/workers/cloudevents"
	"github.com/musique/musique/workers/cloudevents/cloudeventstest"
)

// published is how the tests' topics are made.
var published = workers.PublisherConfig{Partitions: 3, Retention: time.Hour}

// audience has all that came on the topics of public events.
type audience struct {
	mu      sync.Mutex
	records []*kgo.Record
}

// hear listens to the topics, which a publisher may make later, from their beginning.
func hear(t *testing.T, brokers []string) *audience {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(cloudevents.Topics...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.UnknownTopicRetries(-1), kgo.MetadataMinAge(50*time.Millisecond), kgo.MetadataMaxAge(time.Second))
	require.NoError(t, err)
	a := &audience{}
	commandstest.Run(t, func(ctx context.Context) error {
		defer client.Close()
		for ctx.Err() == nil {
			fetched := client.PollFetches(ctx)
			a.mu.Lock()
			a.records = append(a.records, fetched.Records()...)
			a.mu.Unlock()
		}
		return nil
	})
	return a
}

func (a *audience) all() []*kgo.Record {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.records)
}

func headers(r *kgo.Record) map[string]string {
	all := map[string]string{}
	for _, h := range r.Headers {
		all[h.Key] = string(h.Value)
	}
	return all
}

// byKey is which events came, by topic and key, in the order that they came first.
func (a *audience) byKey() map[string][]string {
	seen, all := map[string]bool{}, map[string][]string{}
	for _, r := range a.all() {
		id := headers(r)["ce_id"]
		if !seen[id] {
			seen[id] = true
			at := r.Topic + " " + string(r.Key)
			all[at] = append(all[at], id)
		}
	}
	return all
}

// count is how many of a type came about a subject.
func (a *audience) count(eventType, subject string) (n int) {
	for _, r := range a.all() {
		if h := headers(r); h["ce_type"] == eventType && h["ce_subject"] == subject {
			n++
		}
	}
	return n
}

// everyEvent is all that stands in the store.
func (w *world) everyEvent(t testing.TB) (all []event.Recorded) {
	t.Helper()
	for after, done := (event.Position{}), false; !done; {
		events, through, end, err := w.Store.ReadAll(context.Background(), after, 1000)
		require.NoError(t, err)
		all, after, done = append(all, events...), through, end
	}
	return all
}

// toPublish is what should be on the topics, by topic and key: of large sends what was closed.
func (w *world) toPublish(t testing.TB) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	add := func(e event.Recorded) {
		public, ok, err := cloudevents.Of(e)
		require.NoError(t, err)
		if ok {
			at := public.Topic + " " + public.Key
			all[at] = append(all[at], public.ID)
		}
	}
	open := map[string][]event.Recorded{}
	for _, e := range w.everyEvent(t) {
		switch {
		case send.IsUnsealed(e):
			open[e.Stream] = append(open[e.Stream], e)
		case e.Type == send.BroadcastAbandoned{}.EventType():
			delete(open, e.Stream)
		case e.Type == send.BroadcastSealed{}.EventType():
			for _, part := range open[e.Stream] {
				add(part)
			}
			delete(open, e.Stream)
		default:
			add(e)
		}
	}
	return all
}

// hears waits until all that is public came, and requires that of each key it came in order, and nothing else.
func (w *world) hears(t testing.TB, a *audience) {
	t.Helper()
	want := w.toPublish(t)
	eventually(t, func() bool { return len(flat(a.byKey())) >= len(flat(want)) }, "something public is not on its topic")
	require.Equal(t, want, a.byKey())
}

// once requires that nothing came twice.
func (a *audience) once(t testing.TB) {
	t.Helper()
	a.times(t, len(flat(a.byKey())))
}

// times requires that so many came. What is promised is at least once: a server of its own may be so slow on a busy machine that a publisher gives it up and repeats.
func (a *audience) times(t testing.TB, n int) {
	t.Helper()
	if kafkatest.Apache() {
		require.GreaterOrEqual(t, len(a.all()), n)
		return
	}
	require.Len(t, a.all(), n)
}

// rawPayload is an event as it lies in a file.
type rawPayload struct {
	eventType string
	data      json.RawMessage
}

func (p rawPayload) EventType() string            { return p.eventType }
func (p rawPayload) MarshalJSON() ([]byte, error) { return p.data, nil }

// An event of each public type comes on its topic, once, as its schema says.
func TestEachPublicTypeComesOnItsTopic(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := hear(t, w.deps.Brokers)
	w.start(t, publisher)
	files, err := filepath.Glob("../domain/event/testdata/*.json")
	require.NoError(t, err)
	for i, path := range files {
		raw, err := os.ReadFile(path)
		require.NoError(t, err)
		var file struct {
			Type     string
			Metadata event.Metadata
			Data     map[string]any
		}
		require.NoError(t, json.Unmarshal(raw, &file))
		delete(file.Data, "unsealed")
		data, err := json.Marshal(file.Data)
		require.NoError(t, err)
		w.append(t, file.Metadata, "test-"+string(rune('a'+i)), rawPayload{file.Type, data})
	}
	w.hears(t, a)
	a.once(t)
	schemas := cloudeventstest.Schemas(t)
	byID := map[string]event.Recorded{}
	for _, e := range w.everyEvent(t) {
		byID[e.ID.String()] = e
	}
	types := map[string]bool{}
	for _, r := range a.all() {
		h := headers(r)
		types[h["ce_type"]] = true
		schemas.Check(t, h["ce_type"], r.Value)
		want, ok, err := cloudevents.Of(byID[h["ce_id"]])
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, want.Topic, r.Topic)
		require.Equal(t, want.Key, string(r.Key))
		require.JSONEq(t, string(want.Data), string(r.Value))
		for name, value := range want.Headers {
			require.Equal(t, value, h[name], name)
		}
	}
	require.Len(t, types, len(cloudevents.Kinds()))

	// The topics are made as they should be.
	client, err := kgo.NewClient(kgo.SeedBrokers(w.deps.Brokers...))
	require.NoError(t, err)
	defer client.Close()
	admin := kadm.NewClient(client)
	configs, err := admin.DescribeTopicConfigs(t.Context(), append([]string{workers.PublisherTopic}, cloudevents.Topics...)...)
	require.NoError(t, err)
	topics, err := admin.ListTopics(t.Context())
	require.NoError(t, err)
	for _, c := range configs {
		values := map[string]string{}
		for _, v := range c.Configs {
			values[v.Key] = v.MaybeValue()
		}
		if c.Name == workers.PublisherTopic {
			require.Equal(t, "compact", values["cleanup.policy"])
			require.Len(t, topics[c.Name].Partitions, 1)
			continue
		}
		require.Equal(t, "3600000", values["retention.ms"], c.Name)
		require.Len(t, topics[c.Name].Partitions, int(published.Partitions))
	}
}

// secretsIn gathers from JSON what stands under names that no topic has.
func secretsIn(v any, found map[string]bool) {
	hidden := []string{"hash", "tokenHash", "secret", "blobKey", "sha256", "url", "ip", "userAgent", "path", "fingerprint", "idempotency"}
	switch v := v.(type) {
	case map[string]any:
		for name, member := range v {
			if text, ok := member.(string); ok && text != "" && slices.Contains(hidden, name) {
				found[text] = true
			}
			secretsIn(member, found)
		}
	case []any:
		for _, item := range v {
			secretsIn(item, found)
		}
	}
}

// What commands hand out or keep as secrets is in no byte of any topic.
func TestNoSecretComesOnATopic(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := hear(t, w.deps.Brokers)
	w.start(t, append([]string{publisher}, everything...)...)
	p := w.Partner(t)
	ctx := t.Context()
	secrets := map[string]bool{p.CompanyToken: true}

	token, err := p.Commands.IssueToken.Handle(ctx, commands.IssueToken{Caller: p.Keyed("key-of-a-token"), CompanyToken: p.CompanyToken, ExternalID: "hq", Name: "Office"})
	require.NoError(t, err)
	_, err = p.Commands.RevokeToken.Handle(ctx, commands.RevokeToken{Caller: p.Caller(), TokenID: token.TokenID})
	require.NoError(t, err)
	rotated, err := p.Commands.RotateCompanyToken.Handle(ctx, commands.RotateCompanyToken{Caller: commands.Caller{Actor: "operator"}, CompanyID: p.CompanyID})
	require.NoError(t, err)
	secrets[token.Token], secrets[rotated.CompanyToken] = true, true

	hook := location.Channel{Type: "http", URL: "https://127.0.0.1:9/hook/hidden-in-the-path?token=hidden-in-the-query"}
	shop, err := p.Commands.RegisterLocation.Handle(ctx, commands.RegisterLocation{Caller: p.Caller(), ExternalID: "shop", Details: location.Details{Name: "Shop", Channel: hook}})
	require.NoError(t, err)
	changed, err := p.Commands.ChangeLocation.Handle(ctx, commands.ChangeLocation{Caller: p.Caller(), ExternalID: "shop", Channel: &hook, Secret: "whsec_aGlkZGVuLWluLXRoZS1zZWNyZXQtb2YtYS1zaG9w"})
	require.NoError(t, err)
	secrets[shop.Secret], secrets[changed.Secret] = true, true
	for _, s := range []string{"hidden-in-the-path", "hidden-in-the-query", "aGlkZGVuLWluLXRoZS1zZWNyZXQtb2YtYS1zaG9w", "hidden-in-the-secret"} {
		secrets[s] = true
	}

	p.Locations(t, "hall")
	device, err := p.Commands.EnrolDevice.Handle(ctx, commands.EnrolDevice{Caller: p.Caller(), ExternalID: "hall", Name: "Player"})
	require.NoError(t, err)
	again, err := p.Commands.RotateDeviceToken.Handle(ctx, commands.RotateDeviceToken{Caller: p.Caller(), ExternalID: "hall", DeviceID: device.DeviceID})
	require.NoError(t, err)
	secrets[device.Token], secrets[again.Token] = true, true
	p.Settle(t)

	audioID := p.Upload(t, p.Keyed("key-of-an-upload"))
	sent := p.Send(t, audioID, "hall", "shop")
	require.NoError(t, p.Commands.CancelSend.Handle(ctx, commands.CancelSend{Caller: p.Caller(), SendID: sent.ID}))
	require.NoError(t, p.Commands.RecordUsage.Handle(ctx, commands.RecordUsage{Requests: []commands.ServedRequest{{ID: uuid.New(), Caller: p.Caller(), Served: usage.ApiRequestServed{
		RequestID: "req_one", Timestamp: time.Now().UTC(), Method: "GET", Path: "/api/v1/integration/hidden", Endpoint: "/api/v1/integration/audio/{audioId}", Status: 200,
		ExternalID: "hq", TokenID: token.TokenID, IP: "203.0.113.77", UserAgent: "Hidden/1.0",
	}}}}))
	eventually(t, func() bool {
		return a.count("ApiRequestServed", "req_one") == 1 && a.count("DeliveryCancelled", sent.Sent[0].DeliveryID) == 1
	})
	w.hears(t, a)

	for _, e := range w.everyEvent(t) {
		var data, meta any
		require.NoError(t, json.Unmarshal(e.Data, &data))
		raw, err := json.Marshal(e.Metadata)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(raw, &meta))
		secretsIn(data, secrets)
		secretsIn(meta, secrets)
	}
	delete(secrets, "")
	require.Greater(t, len(secrets), 20, "there are secrets: %v", slices.Collect(maps.Keys(secrets)))
	schemas := cloudeventstest.Schemas(t)
	types := map[string]bool{}
	for _, r := range a.all() {
		h := headers(r)
		types[h["ce_type"]] = true
		schemas.Check(t, h["ce_type"], r.Value)
		require.Equal(t, "live", h["ce_environment"])
		require.Equal(t, p.CompanyID, h["ce_companyid"])
		all := string(r.Key) + "\n" + string(r.Value)
		for name, value := range h {
			all += "\n" + name + ": " + value
		}
		for secret := range secrets {
			require.NotContains(t, all, secret)
		}
	}
	require.Greater(t, len(types), 9, "%v", slices.Collect(maps.Keys(types)))
}

// Nothing of a large send comes before it is closed, or ever if it is abandoned; then all of it comes.
func TestALargeSendComesWhenItIsClosed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := hear(t, w.deps.Brokers)
	p := w.Partner(t)
	stop := w.start(t, publisher)
	id := newSendID()
	meta, parts := crowd(p, id, "aud_x", 1_200)
	send.Unseal(parts)
	stream := send.Stream(id)
	w.append(t, meta, stream, parts[:700]...)
	w.append(t, meta, stream, send.BroadcastAbandoned{SendID: id})
	w.append(t, meta, stream, parts...)
	w.append(t, meta, "audio-between", rawPayload{"AudioDeleted", []byte(`{"audioId": "between"}`)})
	eventually(t, func() bool { return a.count("AudioDeleted", "between") == 1 })
	require.Zero(t, a.count("AudioSent", id))
	stop()

	w.append(t, meta, stream, send.BroadcastSealed{SendID: id, Total: len(parts)})
	refused := newSendID()
	_, whole := crowd(p, refused, "aud_x", 2)
	w.append(t, meta, send.Stream(refused), whole...)
	w.append(t, meta, send.Stream(refused), send.Cancelled{SendID: refused, Refused: true})
	// Parts that another hand wrote with spaces are parts, too.
	odd := newSendID()
	w.append(t, meta, send.Stream(odd), rawPayload{"AudioSent", []byte(`{"sendId": "` + odd + `", "unsealed" : true}`)})
	w.start(t, publisher)
	eventually(t, func() bool { return a.count("AudioSent", id) == len(parts) && a.count("SendCancelled", refused) == 1 })
	require.Zero(t, a.count("AudioSent", odd))
	for _, r := range a.all() {
		if headers(r)["ce_subject"] == refused && headers(r)["ce_type"] == "SendCancelled" {
			require.JSONEq(t, `{"sendId": "`+refused+`", "refused": true}`, string(r.Value), "it was never accepted, which is told")
		}
	}

	// A scheduled one has few parts with many locations each.
	scheduled := newSendID()
	part := func(first bool) event.Payload {
		s := send.Scheduled{SendID: scheduled, Total: 4, Unsealed: true, Destinations: make([]send.ScheduledDestination, 2)}
		s.Single = first
		return s
	}
	w.append(t, meta, send.Stream(scheduled), part(true), part(false), send.BroadcastSealed{SendID: scheduled, Total: 4})
	eventually(t, func() bool { return a.count("SendScheduled", scheduled) == 2 })
	w.append(t, meta, send.Stream(odd), send.BroadcastSealed{SendID: odd, Total: 1})
	eventually(t, func() bool { return a.count("AudioSent", odd) == 1 })
	require.Equal(t, len(parts), a.count("AudioSent", id))
}

// touch appends public events of a few aggregates.
func (w *world) touch(t *testing.T, times int) {
	t.Helper()
	for i := range times {
		meta := event.Metadata{CompanyID: "co_x", Environment: event.Live, Time: w.now().UTC()}
		w.append(t, meta, "test-touched", location.Changed{CompanyID: "co_x", ExternalID: "hall", UserID: int64(1 + i%5), Name: uuid.NewString()})
	}
}

// Instances die at any moment and their connections are cut: nothing is left out, and of each key everything comes first in order.
func TestPublishersComeAndGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := hear(t, w.deps.Brokers)
	w.start(t, publisher)
	r := rand.New(rand.NewPCG(3, 4))
	for round := range 10 {
		stop := w.start(t, publisher, publisher)
		w.touch(t, 1+r.IntN(25))
		if round%3 == 0 {
			w.cut(t)
		}
		stop()
	}
	w.hears(t, a)
}

// Of two instances one publishes, and the other one when it is gone; so nothing comes twice.
func TestOnePublisherIsActive(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := hear(t, w.deps.Brokers)
	first := w.start(t, publisher)
	w.touch(t, 20)
	w.hears(t, a)
	w.start(t, publisher)
	w.touch(t, 20)
	w.hears(t, a)
	first()
	w.touch(t, 20)
	w.hears(t, a)
	a.once(t)
}

// A publisher that died before its position was written repeats what it had published since, under the same IDs, and goes on.
func TestAPublisherThatDiedBeforeItsPositionWasWritten(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := hear(t, w.deps.Brokers)
	stop := w.start(t, publisher)
	w.touch(t, 10)
	w.hears(t, a)
	before := w.positions(t)
	w.touch(t, 7)
	w.hears(t, a)
	stop()
	a.once(t)
	// As the topic was after the first ten.
	client, err := kgo.NewClient(kgo.SeedBrokers(w.deps.Brokers...))
	require.NoError(t, err)
	defer client.Close()
	require.NoError(t, client.ProduceSync(t.Context(), &kgo.Record{Topic: workers.PublisherTopic, Key: []byte("publisher"), Value: before}).FirstErr())
	w.start(t, publisher)
	w.touch(t, 3)
	w.hears(t, a)
	eventually(t, func() bool { return len(a.all()) >= 27 })
	a.times(t, 27) // ten and three once, seven twice
}

// warnings counts what the publisher warns of.
type warnings struct{ atomic.Int64 }

func (w *warnings) Write(line []byte) (int, error) {
	if bytes.Contains(line, []byte("worker=publisher")) {
		w.Add(1)
	}
	return len(line), nil
}

// A topic that takes nothing stops the publisher, so that nothing is skipped there; the position stands still until it does.
func TestATopicThatTakesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	client, err := kgo.NewClient(kgo.SeedBrokers(w.deps.Brokers...))
	require.NoError(t, err)
	defer client.Close()
	admin, small := kadm.NewClient(client), "10"
	_, err = admin.CreateTopic(t.Context(), 1, 1, map[string]*string{"max.message.bytes": &small}, cloudevents.AudioTopic)
	require.NoError(t, err)
	a := hear(t, w.deps.Brokers)
	var failures warnings
	w.deps.Log = slog.New(slog.NewTextHandler(&failures, &slog.HandlerOptions{Level: slog.LevelWarn}))
	stop := w.start(t, publisher)
	meta := event.Metadata{CompanyID: "co_x", Environment: event.Live, Time: w.now().UTC()}
	w.append(t, meta, "audio-one", rawPayload{"AudioDeleted", []byte(`{"audioId": "one"}`)})
	w.touch(t, 5)
	eventually(t, func() bool { return failures.Load() > 2 }, "nobody is told")
	require.Zero(t, a.count("AudioDeleted", "one"))
	stop()
	_, found, err := kafka.Newest(t.Context(), w.deps.Brokers, workers.PublisherTopic)
	require.NoError(t, err)
	require.False(t, found, "something before the position was not published")
	altered, err := admin.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.DeleteConfig, Name: "max.message.bytes"}}, cloudevents.AudioTopic)
	require.NoError(t, err)
	for _, topic := range altered {
		require.NoError(t, topic.Err)
	}
	w.start(t, publisher)
	w.hears(t, a)
}

// positions waits for a publisher to write down that it has done all there is, and gives what it wrote.
func (w *world) positions(t *testing.T) (value []byte) {
	t.Helper()
	all := w.everyEvent(t)
	eventually(t, func() bool {
		newest, found, err := kafka.Newest(t.Context(), w.deps.Brokers, workers.PublisherTopic)
		var at event.Position
		value = newest
		return err == nil && found && json.Unmarshal(newest, &at) == nil && !at.Before(all[len(all)-1].Position)
	})
	return value
}

// Topics that are lost are made and filled anew by the publisher that is running: it knows nothing that Kafka does not. What the database forgets does not matter.
func TestWhatKafkaLosesComesAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := hear(t, w.deps.Brokers)
	w.start(t, publisher)
	w.touch(t, 10)
	w.hears(t, a)
	w.positions(t)
	client, err := kgo.NewClient(kgo.SeedBrokers(w.deps.Brokers...))
	require.NoError(t, err)
	defer client.Close()
	deleted, err := kadm.NewClient(client).DeleteTopics(t.Context(), append([]string{workers.PublisherTopic}, cloudevents.Topics...)...)
	require.NoError(t, err)
	require.NoError(t, deleted.Error())
	w.touch(t, 3)
	w.hears(t, hear(t, w.deps.Brokers))

	_, err = w.Pool.Exec(t.Context(), "TRUNCATE workers.checkpoint")
	require.NoError(t, err)
	w.touch(t, 3)
	w.hears(t, hear(t, w.deps.Brokers))
}

// Brokers that are away are waited for; when they are back all is there.
func TestAPublisherWithoutBrokers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := t.TempDir()
	broker, err := kafka.StartEmbedded(kafka.EmbeddedOptions{Dir: dir})
	require.NoError(t, err)
	address := broker.Brokers()[0]
	w.deps.Brokers = []string{address}
	w.start(t, publisher)
	a := hear(t, w.deps.Brokers)
	w.touch(t, 5)
	w.hears(t, a)
	require.NoError(t, broker.Close())
	w.touch(t, 30)
	_, err = net.Dial("tcp", address)
	require.Error(t, err)
	broker, err = kafka.StartEmbedded(kafka.EmbeddedOptions{Dir: dir, Listen: address})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, broker.Close()) })
	w.touch(t, 5)
	w.hears(t, a)
}
