package workers

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/domain/usage"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/kafka"
	"github.com/musique/musique/infra/telemetry"
	"github.com/musique/musique/workers/cloudevents"
)

const (
	// PublisherTopic is where the publisher keeps how far it has come.
	PublisherTopic = "musique.publisher.position"
	// publisherKey is the key of all messages there: compaction leaves the newest.
	publisherKey = "publisher"
	// publishedAtOnce bounds the events of one page: each page waits for the brokers' disks.
	publishedAtOnce = 10_000
	// positionEvery is how often at most the position is written as long as nothing is published.
	positionEvery = 5 * time.Second
)

// PublisherConfig says how the topics are made.
type PublisherConfig struct {
	// Partitions is how many each topic has: at least 1.
	Partitions int32
	// Retention is how long what was published stays.
	Retention time.Duration
}

// Publisher puts the public events on their topics, in the order of the store. After a crash it begins again where the topic of its position says, which it
// writes when the brokers have all before it: so each is there at least once, and what came twice has the ID that it had.
type Publisher struct {
	Deps
	config PublisherConfig
	// written is when the position was written last.
	written time.Time
}

// NewPublisher makes the worker.
func NewPublisher(d Deps, config PublisherConfig) *Publisher {
	return &Publisher{Deps: d, config: config}
}

// Run publishes until ctx ends. Whatever fails has it begin again with what Kafka knows, so topics that were lost are made and filled anew.
func (w *Publisher) Run(ctx context.Context) error { return w.lead(ctx, "publisher", w.publish) }

// topics are those that the publisher writes.
func (w *Publisher) topics() []kafka.Topic {
	all := []kafka.Topic{{Name: PublisherTopic, Partitions: 1, Compacted: true}}
	for _, name := range cloudevents.Topics {
		all = append(all, kafka.Topic{Name: name, Partitions: w.config.Partitions, Retention: w.config.Retention})
	}
	return all
}

// publishedTypes are the events that the publisher asks the store for: the public ones, and what says that the parts of a large send are.
func publishedTypes() []string {
	types := []string{send.BroadcastSealed{}.EventType()}
	for _, kind := range cloudevents.Kinds() {
		types = append(types, kind.Type)
	}
	return types
}

func (w *Publisher) publish(ctx context.Context) error {
	if err := kafka.EnsureTopics(ctx, w.Brokers, w.topics()...); err != nil {
		return err
	}
	at, err := publisherPosition(ctx, w.Brokers)
	if err != nil {
		return err
	}
	publisher, err := kafka.NewPublisher(w.Brokers, w.Log)
	if err != nil {
		return err
	}
	defer publisher.Close()
	subscriber := eventstore.NewSubscriber(w.Store, eventstore.SubscriberConfig{
		Types: publishedTypes(), Checkpoint: func(context.Context) (event.Position, error) { return at, nil }, Log: w.Log,
		MaxPage: publishedAtOnce,
		// Nobody waits for a note of a request: many are worth one sync of the brokers.
		Hold: func(e event.Recorded) bool {
			return send.IsUnsealed(e) || e.Type == usage.ApiRequestServed{}.EventType()
		},
	})
	defer subscriber.Close()
	pages, err := subscriber.Subscribe(ctx, "publisher")
	if err != nil {
		return err
	}
	for msg := range pages {
		if err := w.publishPage(ctx, publisher, eventstore.PageOf(msg)); err != nil {
			msg.Nack()
			return err
		}
		msg.Ack()
	}
	return ctx.Err()
}

// publishPage returns when the brokers have what is public of a page, and that it was published.
func (w *Publisher) publishPage(ctx context.Context, publisher message.Publisher, page eventstore.Page) (err error) {
	ctx, traced := telemetry.OnEvents(ctx, "publish", page.Events)
	defer func() { traced.End(err) }()
	messages, err := w.messages(ctx, page.Events)
	if err != nil {
		return err
	}
	if len(messages) == 0 && time.Since(w.written) < positionEvery {
		return nil
	}
	var topics errgroup.Group
	for topic, all := range messages {
		topics.Go(func() error {
			err := publisher.Publish(topic, all...)
			w.Metrics.tookEvents(topic, len(all), err)
			return err
		})
	}
	if err := topics.Wait(); err != nil {
		return err
	}
	if ctx.Err() != nil { // another instance may be at work; what this one did it does again
		return ctx.Err()
	}
	value, err := json.Marshal(publishedThrough{page.Through.Commit, page.Through.Prepare})
	if err != nil {
		return err
	}
	position := message.NewMessage(fmt.Sprintf("%d/%d", page.Through.Commit, page.Through.Prepare), value)
	position.Metadata.Set(kafka.KeyMetadata, publisherKey)
	if err := publisher.Publish(PublisherTopic, position); err != nil {
		return err
	}
	w.written = time.Now()
	return nil
}

// publishedThrough is a message of PublisherTopic: the position in the store that everything up to was published.
type publishedThrough struct {
	Commit  uint64 `json:"commit"`
	Prepare uint64 `json:"prepare"`
}

// publisherPosition is where the publisher is, at the start if Kafka knows of no position.
func publisherPosition(ctx context.Context, brokers []string) (event.Position, error) {
	value, found, err := kafka.Newest(ctx, brokers, PublisherTopic)
	if err != nil || !found {
		return event.Position{}, err
	}
	var at publishedThrough
	if err := json.Unmarshal(value, &at); err != nil {
		return event.Position{}, fmt.Errorf("read the position on %s: %w", PublisherTopic, err)
	}
	return event.Position{Commit: at.Commit, Prepare: at.Prepare}, nil
}

// messages are what is public of events, by topic. Of a large send there is nothing before it is closed, and then all of it.
func (w *Publisher) messages(ctx context.Context, events []event.Recorded) (map[string][]*message.Message, error) {
	messages := map[string][]*message.Message{}
	for _, e := range events {
		open, err := isPart(e)
		if err != nil {
			return nil, err
		}
		ready := []event.Recorded{e}
		if open {
			continue
		}
		if e.Type == (send.BroadcastSealed{}).EventType() {
			if ready, err = w.parts(ctx, e); err != nil {
				return nil, err
			}
		}
		for _, one := range ready {
			public, ok, err := cloudevents.Of(one)
			if err != nil {
				return nil, err
			}
			if !ok {
				continue
			}
			msg := message.NewMessage(public.ID, public.Data)
			for name, value := range public.Headers {
				msg.Metadata.Set(name, value)
			}
			msg.Metadata.Set(kafka.KeyMetadata, public.Key)
			if traceParent := telemetry.Next(ctx, one.Metadata.TraceParent); traceParent != "" {
				msg.Metadata.Set(traceParentHeader, traceParent)
			}
			messages[public.Topic] = append(messages[public.Topic], msg)
		}
	}
	return messages, nil
}

// isPart tells a part of a large send, which counts for nothing before the event that closes it.
func isPart(e event.Recorded) (bool, error) {
	if e.Type != (send.AudioSent{}).EventType() && e.Type != (send.Scheduled{}).EventType() || !bytes.Contains(e.Data, []byte(`"unsealed"`)) {
		return false, nil
	}
	var part struct {
		Unsealed bool `json:"unsealed"`
	}
	if err := json.Unmarshal(e.Data, &part); err != nil {
		return false, fmt.Errorf("read %s %d@%s: %w", e.Type, e.Revision, e.Stream, err)
	}
	return part.Unsealed, nil
}

// parts reads what an event closes: the parts that stand before it, behind an abandonment if there was one. Each has a location or more of its own.
func (w *Publisher) parts(ctx context.Context, closing event.Recorded) ([]event.Recorded, error) {
	var sealed send.BroadcastSealed
	if err := json.Unmarshal(closing.Data, &sealed); err != nil {
		return nil, fmt.Errorf("read %s %d@%s: %w", closing.Type, closing.Revision, closing.Stream, err)
	}
	most := min(closing.Revision, uint64(max(0, sealed.Total)))
	before, err := w.Store.Page(ctx, closing.Stream, closing.Revision-most, int(most))
	if err != nil {
		return nil, err
	}
	begin := len(before)
	for begin > 0 {
		open, err := isPart(before[begin-1])
		if err != nil {
			return nil, err
		}
		if !open {
			break
		}
		begin--
	}
	return before[begin:], nil
}
