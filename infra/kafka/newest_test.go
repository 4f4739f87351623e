package kafka_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/infra/kafka"
	"github.com/musique/musique/infra/kafka/kafkatest"
)

// What was written to a topic last is read, also by who comes when the broker was started anew.
func TestTheNewestMessage(t *testing.T) {
	t.Parallel()
	brokers := kafkatest.Brokers(t)
	_, _, err := kafka.Newest(t.Context(), brokers, "newest")
	require.Error(t, err, "there is no such topic")
	require.NotErrorIs(t, err, kafka.ErrUnavailable)
	require.NoError(t, kafka.EnsureTopics(t.Context(), brokers, kafka.Topic{Name: "newest", Partitions: 1, Compacted: true}))
	_, found, err := kafka.Newest(t.Context(), brokers, "newest")
	require.NoError(t, err)
	require.False(t, found)
	publisher := newPublisher(t, brokers)
	for _, text := range []string{"one", "two", "three"} {
		require.NoError(t, send(publisher, "newest", "key", text))
		value, found, err := kafka.Newest(t.Context(), brokers, "newest")
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, text, string(value))
	}

	_, _, err = kafka.Newest(t.Context(), []string{freeAddress(t)}, "newest")
	require.ErrorIs(t, err, kafka.ErrUnavailable)
}

// A topic is made with the retention that it is given, and kept by keys if it is to be.
func TestTopicsAreMadeWithTheirSettings(t *testing.T) {
	t.Parallel()
	brokers := kafkatest.Brokers(t)
	require.NoError(t, kafka.EnsureTopics(t.Context(), brokers, kafka.Topic{Name: "hourly", Partitions: 2, Retention: time.Hour}, kafka.Topic{Name: "by-key", Partitions: 1, Compacted: true}))
	configs, err := admin(t, brokers).DescribeTopicConfigs(t.Context(), "hourly", "by-key")
	require.NoError(t, err)
	settings := map[string]string{}
	for _, topic := range configs {
		for _, c := range topic.Configs {
			settings[topic.Name+" "+c.Key] = c.MaybeValue()
		}
	}
	require.Equal(t, "3600000", settings["hourly retention.ms"])
	require.Equal(t, "compact", settings["by-key cleanup.policy"])
}

// A topic that was made anew under its name is another one.
func TestATopicsID(t *testing.T) {
	t.Parallel()
	brokers := kafkatest.Brokers(t)
	_, err := kafka.TopicID(t.Context(), brokers, "identified")
	require.Error(t, err, "there is no such topic")
	topic := kafka.Topic{Name: "identified", Partitions: 1}
	require.NoError(t, kafka.EnsureTopics(t.Context(), brokers, topic))
	first, err := kafka.TopicID(t.Context(), brokers, "identified")
	require.NoError(t, err)
	require.NoError(t, kafka.EnsureTopics(t.Context(), brokers, topic))
	again, err := kafka.TopicID(t.Context(), brokers, "identified")
	require.NoError(t, err)
	require.Equal(t, first, again)
	deleted, err := admin(t, brokers).DeleteTopics(t.Context(), "identified")
	require.NoError(t, errors.Join(err, deleted.Error()))
	require.Eventually(t, func() bool {
		require.NoError(t, kafka.EnsureTopics(t.Context(), brokers, topic))
		another, err := kafka.TopicID(t.Context(), brokers, "identified")
		return err == nil && another != first
	}, patience, 50*time.Millisecond)
	_, err = kafka.TopicID(t.Context(), []string{freeAddress(t)}, "identified")
	require.ErrorIs(t, err, kafka.ErrUnavailable)
}
