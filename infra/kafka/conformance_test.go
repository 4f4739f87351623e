package kafka_test

import (
	"context"
	"log/slog"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/infra/kafka"
	"github.com/musique/musique/infra/kafka/kafkatest"
)

// suitePublisher gives messages a key: the suite's test of order expects messages of one payload in their order.
type suitePublisher struct{ *kafka.Publisher }

func (p suitePublisher) Publish(topic string, messages ...*message.Message) error {
	for _, m := range messages {
		m.Metadata.Set(kafka.KeyMetadata, string(m.Payload))
	}
	return p.Publisher.Publish(topic, messages...)
}

// suiteSubscriber makes the suite's topics.
type suiteSubscriber struct {
	*kafka.Subscriber
	brokers []string
}

func (s suiteSubscriber) SubscribeInitialize(topic string) error {
	return kafka.EnsureTopics(context.Background(), s.brokers, kafka.Topic{Name: topic, Partitions: 8})
}

func newPubSub(t *testing.T, group string) (message.Publisher, message.Subscriber) {
	t.Helper()
	brokers := kafkatest.Brokers(t)
	log := slog.New(slog.DiscardHandler)
	publisher, err := kafka.NewPublisher(brokers, log)
	require.NoError(t, err)
	subscriber, err := kafka.NewSubscriber(brokers, group, log)
	require.NoError(t, err)
	return suitePublisher{publisher}, suiteSubscriber{subscriber, brokers}
}

// TestConformance is Watermill's suite for every Pub/Sub.
func TestConformance(t *testing.T) {
	tests.TestPubSub(t,
		tests.Features{
			ConsumerGroups:  true,
			GuaranteedOrder: true,
			Persistent:      true,
			ForceShort:      true, // the long form adds numbers, not cases
		},
		func(t *testing.T) (message.Publisher, message.Subscriber) { return newPubSub(t, t.Name()) }, // a group for each test
		newPubSub,
	)
}
