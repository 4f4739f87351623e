package eventstore_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/eventstore/storetest"
)

// Watermill's own suite for Pub/Subs, on pages of one event each. Left out by features, because the Subscriber makes no such promise:
//   - consumer groups: whoever subscribes gets everything; who goes on where is the checkpoint's business, and so is a standby;
//   - exactly once: a page whose acknowledgement was lost comes again, and its transaction with the checkpoint makes that harmless;
//   - the publisher's context: events travel between processes;
//   - TestReconnect: it restarts the server by a command; TestRestartUnderLoad does that to a node of its own.
func TestWatermillConformance(t *testing.T) {
	t.Parallel()
	features := tests.Features{
		GuaranteedOrder:                  true,
		Persistent:                       true,
		NewSubscriberReceivesOldMessages: true,
		ForceShort:                       true,
	}
	tests.TestPubSub(t, features, func(t *testing.T) (message.Publisher, message.Subscriber) {
		store := storetest.Open(t)
		subscriber := &topics{store: store}
		t.Cleanup(func() { require.NoError(t, subscriber.Close()) }) // the suite leaves some open
		return publisher{store}, subscriber
	}, nil)
}

// published is a Watermill message as an event of the type that its topic is called.
type published struct {
	Topic    string           `json:"-"`
	Payload  []byte           `json:"payload"`
	Metadata message.Metadata `json:"metadata"`
}

func (p published) EventType() string { return p.Topic }

// publisher appends messages as events.
type publisher struct{ store *eventstore.Store }

func (p publisher) Publish(topic string, messages ...*message.Message) error {
	for _, msg := range messages {
		id, err := uuid.Parse(msg.UUID)
		if err != nil {
			return err
		}
		e := event.Proposed{ID: id, Payload: published{topic, msg.Payload, msg.Metadata}, Metadata: event.Metadata{Time: time.Now()}}
		if _, err := p.store.Append(context.Background(), "topic-"+topic, eventstore.Any, e); err != nil {
			return err
		}
	}
	return nil
}

func (publisher) Close() error { return nil }

// topics gives out the events of one type as messages, one page of one event each.
type topics struct {
	store *eventstore.Store
	mu    sync.Mutex
	open  []*eventstore.Subscriber
	wait  sync.WaitGroup
}

func (s *topics) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	subscriber := eventstore.NewSubscriber(s.store, eventstore.SubscriberConfig{Types: []string{topic}, MaxPage: 1, Log: slog.New(slog.DiscardHandler)})
	pages, err := subscriber.Subscribe(ctx, topic)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.open = append(s.open, subscriber)
	s.mu.Unlock()
	out := make(chan *message.Message)
	s.wait.Go(func() {
		defer close(out)
		for page := range pages {
			s.forward(page, out)
		}
	})
	return out, nil
}

func (s *topics) forward(page *message.Message, out chan<- *message.Message) {
	events := eventstore.PageOf(page).Events
	if len(events) == 0 { // only the position moved
		page.Ack()
		return
	}
	var p published
	if err := json.Unmarshal(events[0].Data, &p); err != nil {
		panic(err)
	}
	msg := message.NewMessage(events[0].ID.String(), p.Payload)
	msg.Metadata = p.Metadata
	msg.SetContext(page.Context())
	select {
	case out <- msg:
	case <-page.Context().Done():
		return
	}
	select {
	case <-msg.Acked():
		page.Ack()
		<-page.Context().Done()
	case <-msg.Nacked():
		page.Nack()
	case <-page.Context().Done():
	}
}

func (s *topics) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, subscriber := range s.open {
		if err := subscriber.Close(); err != nil {
			return err
		}
	}
	s.wait.Wait()
	return nil
}
