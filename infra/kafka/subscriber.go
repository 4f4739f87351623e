package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/IBM/sarama"
	wkafka "github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
)

// A consumer that was killed holds its partitions until its session has run out, so the session is what a restart waits for.
const (
	sessionTimeout    = 6 * time.Second // the shortest that a Kafka broker allows unless told otherwise
	heartbeatInterval = time.Second
	rebalanceTimeout  = 10 * time.Second // for the other consumers of the group to finish the message in hand
	commitInterval    = 500 * time.Millisecond

	nackResendWait = 200 * time.Millisecond // until a message that was refused (Nack) comes again
	reconnectWait  = 500 * time.Millisecond

	maxFetchWait      = 500 * time.Millisecond
	maxProcessingTime = 2 * time.Second // a message in hand for longer frees the connection for the other partitions
)

// Subscriber is a message.Subscriber: one of the consumers of a group.
type Subscriber struct {
	inner *wkafka.Subscriber
	log   *slog.Logger

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	subs   sync.WaitGroup
	mu     sync.Mutex // orders Subscribe and Close
	closed bool
	// opening is held for reading while the subscriber inside subscribes: it must not be closed meanwhile (sync.WaitGroup, Add beside Wait).
	opening sync.RWMutex
}

// NewSubscriber returns a consumer of group. A group that is new begins with the oldest message of a topic. Each of the group's consumers
// gets some of the partitions, one message of a partition at a time, the next one after Ack; after Nack the same one comes again.
func NewSubscriber(brokers []string, group string, log *slog.Logger) (*Subscriber, error) {
	if group == "" {
		return nil, errors.New("kafka: no consumer group")
	}
	config := clientConfig()
	config.Consumer.Return.Errors = true
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	config.Consumer.Offsets.AutoCommit.Interval = commitInterval
	config.Consumer.Group.Session.Timeout = sessionTimeout
	config.Consumer.Group.Heartbeat.Interval = heartbeatInterval
	config.Consumer.Group.Rebalance.Timeout = rebalanceTimeout
	config.Consumer.Group.Rebalance.Retry.Backoff = reconnectWait
	config.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{sarama.NewBalanceStrategySticky()}
	config.Consumer.Retry.Backoff = reconnectWait
	config.Consumer.MaxWaitTime = maxFetchWait
	config.Consumer.MaxProcessingTime = maxProcessingTime
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("kafka: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	inner, err := wkafka.NewSubscriber(wkafka.SubscriberConfig{
		Brokers:               brokers,
		Unmarshaler:           wkafka.DefaultMarshaler{},
		OverwriteSaramaConfig: config,
		ConsumerGroup:         group,
		NackResendSleep:       nackResendWait,
		ReconnectRetrySleep:   reconnectWait,
		Tracer:                &pacer{ctx: ctx},
	}, clientLog(log))
	if err != nil {
		cancel()
		return nil, fmt.Errorf("kafka: %w", err)
	}
	return &Subscriber{inner: inner, log: log, ctx: ctx, cancel: cancel}, nil
}

// Subscribe returns the messages of topic until ctx ends or the subscriber is closed, which closes the channel. While no broker can be
// reached, none come.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errClosed
	}
	out := make(chan *message.Message)
	s.subs.Add(1)
	go func() {
		defer s.subs.Done()
		defer close(out)
		s.consume(ctx, topic, out)
	}()
	return out, nil
}

// consume subscribes, again and again until a broker is there (the subscriber inside reconnects by itself, but only after a first success),
// and passes the messages on.
func (s *Subscriber) consume(ctx context.Context, topic string, out chan<- *message.Message) {
	for {
		in, err := s.open(ctx, topic)
		if err == nil {
			for m := range in {
				select {
				case out <- m:
				case <-ctx.Done():
				case <-s.ctx.Done():
				}
			}
			return
		}
		if s.ctx.Err() == nil {
			s.log.Warn("kafka: cannot subscribe yet", "topic", topic, "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-s.ctx.Done():
			return
		case <-time.After(reconnectWait):
		}
	}
}

func (s *Subscriber) open(ctx context.Context, topic string) (<-chan *message.Message, error) {
	s.opening.RLock()
	defer s.opening.RUnlock()
	if s.ctx.Err() != nil {
		return nil, errClosed
	}
	return s.inner.Subscribe(ctx, topic)
}

// Close ends all subscriptions: the messages in hand that nobody has acknowledged will come again, to this group's other consumers.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.opening.Lock()
	err := s.inner.Close()
	s.opening.Unlock()
	s.subs.Wait()
	if err != nil {
		return fmt.Errorf("kafka: close subscriber: %w", err)
	}
	return nil
}

// pacer keeps a consumer whose every connection fails at once, such as to a topic that is not there, from connecting hundreds of times a second:
// Watermill's subscriber pauses only when it finds no broker. Its hook for tracing is called once for each connection.
type pacer struct {
	ctx  context.Context // the subscriber's
	mu   sync.Mutex
	last time.Time
}

// WrapConsumerGroupHandler waits until reconnectWait has passed since the connection before.
func (p *pacer) WrapConsumerGroupHandler(handler sarama.ConsumerGroupHandler) sarama.ConsumerGroupHandler {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-time.After(reconnectWait - time.Since(p.last)):
	case <-p.ctx.Done():
	}
	p.last = time.Now()
	return handler
}

// WrapConsumer, WrapPartitionConsumer and WrapSyncProducer change nothing.
func (p *pacer) WrapConsumer(c sarama.Consumer) sarama.Consumer { return c }

func (p *pacer) WrapPartitionConsumer(c sarama.PartitionConsumer) sarama.PartitionConsumer { return c }

func (p *pacer) WrapSyncProducer(_ *sarama.Config, s sarama.SyncProducer) sarama.SyncProducer {
	return s
}
