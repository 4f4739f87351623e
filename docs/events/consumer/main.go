// Command consumer is an example of a program that reads public events: it prints what was played at live locations, each delivery once.
//
//	go run ./docs/events/consumer 127.0.0.1:9092
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// played is what this program needs of the data; what it does not know it leaves alone.
type played struct {
	ExternalID string    `json:"externalId"`
	At         time.Time `json:"at"`
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: consumer host:port")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := consume(ctx, os.Args[1])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func consume(ctx context.Context, broker string) error {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(broker), kgo.ConsumeTopics("musique.deliveries.v1"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	)
	if err != nil {
		return err
	}
	defer client.Close()
	seen := map[string]bool{} // of events that came; a program that goes on for long has a table with a unique key
	for {
		fetched := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err := fetched.Err(); err != nil {
			fmt.Fprintln(os.Stderr, err) // the client tries again
		}
		for _, record := range fetched.Records() {
			attributes := map[string]string{}
			for _, h := range record.Headers {
				attributes[h.Key] = string(h.Value)
			}
			if attributes["ce_type"] != "AudioPlayed" || attributes["ce_environment"] != "live" || seen[attributes["ce_id"]] {
				continue
			}
			seen[attributes["ce_id"]] = true
			var event played
			if err := json.Unmarshal(record.Value, &event); err != nil {
				return fmt.Errorf("event %s: %w", attributes["ce_id"], err)
			}
			fmt.Println(attributes["ce_companyid"], event.ExternalID, event.At.Format(time.RFC3339))
		}
	}
}
