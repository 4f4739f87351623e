package kafka_test

import (
	"context"
	"log/slog"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/google/uuid"
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

// TestConformance is Watermill's suite for every Pub/Sub, on the embedded broker or the one at MUSIQUE_KAFKA_BROKERS. Left out by features, because no such promise is made
// or it is tested otherwise:
//   - exactly once: delivery is at least once, and consumers make that harmless;
//   - the publisher's context: messages travel between processes;
//   - TestReconnect: it restarts the server by a command; TestClientsGoOnAfterTheBrokersRestart and TestOrderHoldsWhateverFails do that to brokers of their own;
//   - old messages for each new subscriber: subscribers of one group share what there is; TestANewGroupBeginsWithTheOldest has groups of their own.
func TestConformance(t *testing.T) {
	tests.TestPubSub(t, features,
		func(t *testing.T) (message.Publisher, message.Subscriber) { return newPubSub(t, t.Name()) }, // a group for each test
		newPubSub,
	)
}

var features = tests.Features{
	ConsumerGroups:  true,
	GuaranteedOrder: true,
	Persistent:      true,
	ForceShort:      true, // the long form adds numbers, not cases
}

// TestANewGroupBeginsWithTheOldest is the suite's test of subscribers that come later, each in a group of its own.
func TestANewGroupBeginsWithTheOldest(t *testing.T) {
	t.Parallel()
	own := features
	own.NewSubscriberReceivesOldMessages = true
	tests.TestNewSubscriberReceivesOldMessages(t, tests.TestContext{TestID: tests.NewTestID(), Features: own}, func(t *testing.T) (message.Publisher, message.Subscriber) {
		return newPubSub(t, uuid.NewString())
	})
}
