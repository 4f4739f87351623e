package kafka

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/IBM/sarama"
	wkafka "github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
)

// Retries of one message inside the client, before Publish reports the error.
const (
	publishRetries = 5
	publishBackoff = 100 * time.Millisecond
)

// connectPause is how long Publish answers with the last failure to connect before it tries again, so that callers do not queue for an absent broker.
const connectPause = 250 * time.Millisecond

// errClosed is what a closed publisher or subscriber answers.
var errClosed = errors.New("kafka: closed")

// Publisher is a message.Publisher. It is safe for concurrent use.
type Publisher struct {
	brokers []string
	config  *sarama.Config
	marshal wkafka.Marshaler
	log     *slog.Logger

	mu       sync.Mutex
	producer *producer // nil: made by the next Publish
	closed   bool
	failure  error // of the last attempt to make a producer, if it failed
	failedAt time.Time
}

// producer counts its users, so that one that failed can be closed when the last of them is done.
type producer struct {
	sarama.SyncProducer
	users  int
	broken bool
}

// NewPublisher returns a publisher to brokers. A message's key is its metadata entry KeyMetadata.
func NewPublisher(brokers []string, log *slog.Logger) (*Publisher, error) {
	if len(brokers) == 0 {
		return nil, errors.New("kafka: no brokers")
	}
	config := clientConfig()
	config.Producer.RequiredAcks = sarama.WaitForAll
	config.Producer.Idempotent = true // a retry inside the client makes no duplicate and keeps the order
	config.Net.MaxOpenRequests = 1    // what the client's idempotence needs
	config.Producer.Timeout = produceTimeout
	config.Producer.Retry.Max = publishRetries
	config.Producer.Retry.Backoff = publishBackoff
	config.Producer.MaxMessageBytes = MaxMessageBytes
	config.Producer.Compression = sarama.CompressionSnappy
	config.Producer.Return.Successes = true
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("kafka: %w", err)
	}
	return &Publisher{brokers: brokers, config: config, marshal: marshaler{}, log: log}, nil
}

// Publish returns when the brokers have all messages durably, or with an error, after which any of them may or may not be there. Publishing
// them again is the caller's choice. The messages of one call travel together, so that one call with many is far faster than many with one.
func (p *Publisher) Publish(topic string, messages ...*message.Message) error {
	if len(messages) == 0 {
		return nil
	}
	out := make([]*sarama.ProducerMessage, 0, len(messages))
	for _, m := range messages {
		encoded, err := p.marshal.Marshal(topic, m)
		if err != nil {
			return fmt.Errorf("publish to %s: message %s: %w", topic, m.UUID, err)
		}
		out = append(out, encoded)
	}
	producer, err := p.acquire()
	if err != nil {
		return fmt.Errorf("publish to %s: %w", topic, err)
	}
	err = producer.SendMessages(out)
	p.release(producer, lasting(err))
	if err != nil {
		return fmt.Errorf("publish %d messages to %s: %w", len(messages), topic, explain(err))
	}
	return nil
}

// Close refuses further messages. Calls under way still finish.
func (p *Publisher) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	if p.producer != nil {
		p.retire(p.producer)
	}
	return nil
}

func (p *Publisher) acquire() (*producer, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errClosed
	}
	if p.producer == nil {
		if p.failure != nil && time.Since(p.failedAt) < connectPause {
			return nil, p.failure
		}
		made, err := sarama.NewSyncProducer(p.brokers, p.config)
		if err != nil {
			p.failure, p.failedAt = fmt.Errorf("%w: %w", ErrUnavailable, err), time.Now()
			return nil, p.failure
		}
		p.failure = nil
		p.producer = &producer{SyncProducer: made}
	}
	p.producer.users++
	return p.producer, nil
}

// release gives a producer back. One that failed is replaced: a client whose broker came back without what it remembers of the client's
// sequence numbers refuses everything from then on.
func (p *Publisher) release(used *producer, failed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	used.users--
	if failed || used.broken || p.closed {
		p.retire(used)
	}
}

// retire closes a producer when nobody uses it any more. p.mu is held.
func (p *Publisher) retire(old *producer) {
	old.broken = true
	if p.producer == old {
		p.producer = nil
	}
	if old.users > 0 {
		return
	}
	if err := old.Close(); err != nil {
		p.log.Debug("kafka: close a producer", "error", err)
	}
}

// lasting reports whether err may come from the state of the producer, as against the message that was sent.
func lasting(err error) bool {
	return err != nil && !errors.Is(explain(err), sarama.ErrMessageSizeTooLarge)
}

// explain takes the first of the errors that the client reports for each message of a batch.
func explain(err error) error {
	if all, ok := errors.AsType[sarama.ProducerErrors](err); ok && len(all) > 0 {
		err = all[0].Err
	}
	if _, answered := errors.AsType[sarama.KError](err); answered {
		return err
	}
	if _, refused := errors.AsType[sarama.ConfigurationError](err); refused {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// marshaler is Watermill's, with the key.
type marshaler struct{ wkafka.DefaultMarshaler }

func (m marshaler) Marshal(topic string, msg *message.Message) (*sarama.ProducerMessage, error) {
	out, err := m.DefaultMarshaler.Marshal(topic, msg)
	if err != nil {
		return nil, err
	}
	if key := msg.Metadata.Get(KeyMetadata); key != "" {
		out.Key = sarama.StringEncoder(key)
	}
	return out, nil
}
