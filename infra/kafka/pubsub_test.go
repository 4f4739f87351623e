package kafka_test

import (
	"log/slog"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/infra/kafka"
	"github.com/musique/musique/infra/kafka/kafkatest"
)

func TestOne(t *testing.T) {
	brokers := kafkatest.Brokers(t)
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	require.NoError(t, kafka.EnsureTopics(t.Context(), brokers, kafka.Topic{Name: "one", Partitions: 4}))
	publisher, err := kafka.NewPublisher(brokers, log)
	require.NoError(t, err)
	require.NoError(t, publisher.Publish("one", message.NewMessage("1", []byte("x"))))
	subscriber, err := kafka.NewSubscriber(brokers, "g", log)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, subscriber.Close()) })
	in, err := subscriber.Subscribe(t.Context(), "one")
	require.NoError(t, err)
	select {
	case m := <-in:
		m.Ack()
	case <-time.After(5 * time.Second):
		t.Error("nothing")
	}
}
