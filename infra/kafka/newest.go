package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// newestTimeout bounds Newest.
const newestTimeout = 15 * time.Second

// Newest reads the newest message of a topic with one partition; found is false where it has none. A compacted topic keeps it, so it is what somebody wrote
// there last.
func Newest(ctx context.Context, brokers []string, topic string) (value []byte, found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, newestTimeout)
	defer cancel()
	client, err := newClient(brokers, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().AtEnd().Relative(-1)}}))
	if err != nil {
		return nil, false, err
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	bound := func(list func(context.Context, ...string) (kadm.ListedOffsets, error)) (int64, error) {
		listed, err := list(ctx, topic)
		if err == nil {
			err = listed.Error()
		}
		offset, ok := listed.Lookup(topic, 0)
		if err == nil && !ok {
			err = kerr.UnknownTopicOrPartition
		}
		return offset.Offset, err
	}
	start, err1 := bound(admin.ListStartOffsets)
	end, err2 := bound(admin.ListEndOffsets)
	if err := errors.Join(err1, err2); err != nil {
		return nil, false, fmt.Errorf("newest of %s: %w", topic, explain(err))
	}
	if start == end {
		return nil, false, nil
	}
	for {
		fetched := client.PollFetches(ctx)
		if err := fetched.Err(); err != nil {
			return nil, false, fmt.Errorf("newest of %s: %w", topic, explain(err))
		}
		for at := fetched.RecordIter(); !at.Done(); {
			value, found = at.Next().Value, true
		}
		if found {
			return value, true, nil
		}
	}
}
