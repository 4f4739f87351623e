package kafka

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	ensureTopicsTimeout = 15 * time.Second
	pingTimeout         = 2 * time.Second
	// listedPause is the pause before it is asked again whether a topic is listed.
	listedPause = 20 * time.Millisecond
)

// Topic is a topic as EnsureTopics makes it.
type Topic struct {
	Name       string
	Partitions int32 // at least 1; cannot be changed later without losing the order of each key
	// Retention is how long a message stays at least; 0 is the broker's own default.
	Retention time.Duration
	// Compacted has the newest message of each key stay for good, whatever the retention.
	Compacted bool
}

// EnsureTopics makes the topics that are not there, with the broker's own defaults for all that a Topic does not say. Those that are there stay as they
// are, whatever their partitions and settings: operators may have chosen others. It may be called by many processes at once. It returns when the brokers list the
// topics, which is a moment after they have made one.
func EnsureTopics(ctx context.Context, brokers []string, topics ...Topic) error {
	ctx, cancel := context.WithTimeout(ctx, ensureTopicsTimeout)
	defer cancel()
	admin, err := newAdmin(brokers)
	if err != nil {
		return err
	}
	defer admin.Close()
	for _, topic := range topics {
		if err := ensureTopic(ctx, admin, topic); err != nil {
			return fmt.Errorf("make topic %s: %w", topic.Name, err)
		}
	}
	return awaitListed(ctx, admin, topics)
}

func awaitListed(ctx context.Context, admin *kadm.Client, topics []Topic) error {
	names := make([]string, len(topics))
	for i, topic := range topics {
		names[i] = topic.Name
	}
	for {
		listed, err := admin.ListTopics(ctx, names...)
		if err == nil {
			err = listed.Error()
		}
		if err == nil {
			return nil
		}
		if !errors.Is(err, kerr.UnknownTopicOrPartition) && !errors.Is(err, kerr.LeaderNotAvailable) {
			return fmt.Errorf("list topics %v: %w", names, explain(err))
		}
		select {
		case <-time.After(listedPause):
		case <-ctx.Done():
			return fmt.Errorf("list topics %v: %w: %w", names, ErrUnavailable, err)
		}
	}
}

func ensureTopic(ctx context.Context, admin *kadm.Client, topic Topic) error {
	if topic.Name == "" || topic.Partitions < 1 {
		return fmt.Errorf("a topic needs a name and partitions, not %d", topic.Partitions)
	}
	const brokerDefault = -1
	settings := map[string]*string{}
	if topic.Retention != 0 {
		settings["retention.ms"] = new(strconv.FormatInt(topic.Retention.Milliseconds(), 10))
	}
	if topic.Compacted {
		settings["cleanup.policy"] = new("compact")
	}
	made, err := admin.CreateTopic(ctx, topic.Partitions, brokerDefault, settings, topic.Name)
	if err == nil {
		err = made.Err
	}
	if _, answered := errors.AsType[*kerr.Error](err); err != nil && !answered {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		return err
	}
	return nil
}

// TopicID is the ID that the brokers gave a topic when it was made: one that was made anew under the same name has another.
func TopicID(ctx context.Context, brokers []string, topic string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, ensureTopicsTimeout)
	defer cancel()
	admin, err := newAdmin(brokers)
	if err != nil {
		return "", err
	}
	defer admin.Close()
	topics, err := admin.ListTopics(ctx, topic)
	if err == nil {
		err = topics.Error()
	}
	if err != nil {
		return "", fmt.Errorf("ID of topic %s: %w", topic, explain(err))
	}
	return topics[topic].ID.String(), nil
}

// Ping asks the brokers for their metadata and reports ErrUnavailable if none answers within two seconds, or within ctx.
func Ping(ctx context.Context, brokers []string) error {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	admin, err := newAdmin(brokers)
	if err != nil {
		return err
	}
	defer admin.Close()
	if _, err := admin.BrokerMetadata(ctx); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}

func newAdmin(brokers []string) (*kadm.Client, error) {
	client, err := newClient(brokers)
	if err != nil {
		return nil, err
	}
	return kadm.NewClient(client), nil
}

// newClient is a client that the brokers know as ours.
func newClient(brokers []string, more ...kgo.Opt) (*kgo.Client, error) {
	client, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(brokers...), kgo.ClientID(clientID), kgo.DialTimeout(dialTimeout)}, more...)...)
	if err != nil {
		return nil, fmt.Errorf("kafka: %w", err)
	}
	return client, nil
}
