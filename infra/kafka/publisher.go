package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	wkafka "github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// silenceTimeout is how long Publish waits for the next of its messages to be acknowledged; it is longer than produceTimeout.
const silenceTimeout = 5 * time.Second

// maxBuffered bounds the messages that wait in a producer; more wait in their callers.
const maxBuffered = 10_000

// errClosed is what a closed publisher or subscriber answers.
var errClosed = errors.New("kafka: closed")

// Publisher is a message.Publisher. It is safe for concurrent use.
type Publisher struct {
	brokers []string
	log     *slog.Logger

	mu       sync.Mutex
	producer *producer // nil: made by the next Publish
	closed   bool
}

// producer counts its users, so that it is closed when the last of them is done.
type producer struct {
	*kgo.Client
	users   int
	retired bool
	once    sync.Once
}

func (p *producer) close() { p.once.Do(p.Close) }

// NewPublisher returns a publisher to brokers. A message's key is its metadata entry KeyMetadata.
func NewPublisher(brokers []string, log *slog.Logger) (*Publisher, error) {
	p := &Publisher{brokers: brokers, log: log}
	client, err := p.connect()
	if err != nil {
		return nil, err
	}
	p.producer = &producer{Client: client}
	return p, nil
}

// connect makes a client, which connects when it is first used. It retries by itself, without making a duplicate, and whatever fails, no message
// goes through when one before it in its partition does not (kgo.RecordDeliveryTimeout). The subscriber's client would let it.
func (p *Publisher) connect() (*kgo.Client, error) {
	if len(p.brokers) == 0 {
		return nil, errors.New("kafka: no brokers")
	}
	return newClient(p.brokers,
		kgo.ProduceRequestTimeout(produceTimeout), kgo.RequestTimeoutOverhead(requestTimeout),
		kgo.ProducerBatchMaxBytes(MaxMessageBytes), kgo.MaxBufferedRecords(maxBuffered), kgo.ProducerLinger(0),
		kgo.ProducerBatchCompression(kgo.SnappyCompression()),
	)
}

// Publish returns when the brokers have all messages durably, or with an error: then any of them may be there, but none without those of its key
// before it. So a consumer sees each key's messages in order, leaving out those that it has seen, if a failed call is repeated as it is before the
// next. The messages of one call travel together, so that one call with many is far faster than many with one.
func (p *Publisher) Publish(topic string, messages ...*message.Message) error {
	records := make([]*kgo.Record, 0, len(messages))
	for _, m := range messages {
		record, err := recordOf(topic, m)
		if err != nil {
			return fmt.Errorf("publish to %s: message %s: %w", topic, m.UUID, err)
		}
		records = append(records, record)
	}
	if len(records) == 0 {
		return nil
	}
	used, err := p.acquire()
	if err != nil {
		return fmt.Errorf("publish to %s: %w", topic, err)
	}
	defer p.release(used)
	if err := p.produce(used, records); err != nil {
		return fmt.Errorf("publish %d messages to %s: %w", len(messages), topic, explain(err))
	}
	return nil
}

// produce waits for all records. When the brokers are silent it closes the client, which ends the wait: messages that may be under way are
// waited for otherwise, however long that takes.
func (p *Publisher) produce(used *producer, records []*kgo.Record) error {
	acknowledged := make(chan error, len(records))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // it waits while maxBuffered others do
		for _, r := range records {
			used.Produce(ctx, r, func(_ *kgo.Record, err error) { acknowledged <- err })
		}
	}()
	silence := time.NewTimer(silenceTimeout)
	defer silence.Stop()
	var first error
	for range records {
		select {
		case err := <-acknowledged:
			if first == nil {
				first = err
			}
			silence.Reset(silenceTimeout)
			continue
		case <-silence.C:
		}
		p.log.Warn("kafka: the brokers acknowledge nothing; connecting anew", "after", silenceTimeout.String())
		cancel()
		p.retire(used)
		used.close()
		return fmt.Errorf("nothing was acknowledged for %v", silenceTimeout)
	}
	return first
}

// Close refuses further messages. Calls under way still finish.
func (p *Publisher) Close() error {
	p.mu.Lock()
	current := p.producer
	p.closed = true
	p.mu.Unlock()
	if current != nil {
		p.retire(current)
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
		client, err := p.connect()
		if err != nil {
			return nil, err
		}
		p.producer = &producer{Client: client}
	}
	p.producer.users++
	return p.producer, nil
}

func (p *Publisher) release(used *producer) {
	p.mu.Lock()
	used.users--
	last := used.retired && used.users == 0
	p.mu.Unlock()
	if last {
		used.close()
	}
}

// retire takes a producer out of use; the last of its users closes it.
func (p *Publisher) retire(old *producer) {
	p.mu.Lock()
	old.retired = true
	if p.producer == old {
		p.producer = nil
	}
	last := old.users == 0
	p.mu.Unlock()
	if last {
		old.close()
	}
}

// explain tells what the brokers answered from not having reached them.
func explain(err error) error {
	if _, answered := errors.AsType[*kerr.Error](err); answered {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// recordOf encodes a message as Watermill does, with the key.
func recordOf(topic string, msg *message.Message) (*kgo.Record, error) {
	if msg.Metadata.Get(wkafka.UUIDHeaderKey) != "" {
		return nil, fmt.Errorf("the metadata entry %s is Watermill's own", wkafka.UUIDHeaderKey)
	}
	record := &kgo.Record{Topic: topic, Value: msg.Payload, Headers: []kgo.RecordHeader{{Key: wkafka.UUIDHeaderKey, Value: []byte(msg.UUID)}}}
	if key := msg.Metadata.Get(KeyMetadata); key != "" {
		record.Key = []byte(key)
	}
	size := len(record.Key) + len(record.Value) + len(msg.UUID)
	for name, value := range msg.Metadata {
		record.Headers = append(record.Headers, kgo.RecordHeader{Key: name, Value: []byte(value)})
		size += len(name) + len(value)
	}
	if size >= MaxMessageBytes {
		return nil, fmt.Errorf("%d bytes: %w", size, kerr.MessageTooLarge)
	}
	return record, nil
}
