package workers

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/kafka"
	"github.com/musique/musique/workers/inbox"
)

// deliveryGroup is the consumer group of the delivery workers.
const deliveryGroup = "musique-delivery"

// deliveryTimeout bounds the transaction of one message.
const deliveryTimeout = 30 * time.Second

// Delivery takes the dispatch topic's messages into the players' inboxes, each message in one transaction. A message that cannot be taken is refused
// and comes again; the other partitions go on.
type Delivery struct{ Deps }

// NewDelivery makes the worker.
func NewDelivery(d Deps) *Delivery { return &Delivery{d} }

// Run delivers until ctx ends.
func (w *Delivery) Run(ctx context.Context) error {
	subscriber, err := kafka.NewSubscriber(w.Brokers, deliveryGroup, w.Log)
	if err != nil {
		return err
	}
	messages, err := subscriber.Subscribe(ctx, DispatchTopic)
	if err != nil {
		return err
	}
	// One partition gives one message at a time, so this is at most one goroutine for each of ours.
	var busy sync.WaitGroup
	for msg := range messages {
		busy.Go(func() { w.take(ctx, msg) })
	}
	busy.Wait()
	return subscriber.Close()
}

func (w *Delivery) take(ctx context.Context, msg *message.Message) {
	// A message in hand is finished even when the worker is told to end.
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), deliveryTimeout)
	defer cancel()
	if err := w.deliver(work, msg.Payload); err != nil {
		w.Log.Error("a message of the dispatch topic cannot be delivered; it comes again", "message", msg.UUID, "error", err)
		msg.Nack()
		return
	}
	msg.Ack()
}

func (w *Delivery) deliver(ctx context.Context, payload []byte) error {
	var dispatched Dispatched
	if err := json.Unmarshal(payload, &dispatched); err != nil {
		return fmt.Errorf("read message: %w", err)
	}
	var entries []inbox.Entry
	for _, s := range dispatched.Sends {
		for _, to := range s.To {
			entries = append(entries, inbox.Entry{
				Location:   inbox.Location{CompanyID: s.CompanyID, Environment: s.Environment, UserID: to.UserID},
				ExternalID: to.ExternalID,
				Delivery: inbox.Delivery{
					DeliveryID: to.DeliveryID, SendID: s.SendID, AudioID: s.Audio.AudioID, BlobKey: s.Audio.BlobKey, Name: s.Audio.Name,
					SHA256: s.Audio.SHA256, Format: s.Audio.Format, DurationMs: s.Audio.DurationMs, Size: s.Audio.Size,
					Priority: s.Priority, Repeat: s.Repeat, Volume: s.Volume, PlayAt: to.PlayAt, ExpiresAt: to.ExpiresAt,
				},
			})
		}
	}
	return pgx.BeginFunc(ctx, w.Pool, func(tx pgx.Tx) error { return inbox.Put(ctx, tx, entries) })
}

// Closer follows the ends of deliveries: those leave the inboxes, and players are told of the cancelled ones.
type Closer struct{ Deps }

// NewCloser makes the worker.
func NewCloser(d Deps) *Closer { return &Closer{d} }

// Run closes deliveries until ctx ends.
func (w *Closer) Run(ctx context.Context) error {
	return follower{
		Deps: w.Deps, name: "closer",
		types: []string{
			delivery.Played{}.EventType(), delivery.Failed{}.EventType(), delivery.Expired{}.EventType(), delivery.Cancelled{}.EventType(),
		},
		handle: w.handle,
	}.run(ctx)
}

func (w *Closer) handle(ctx context.Context, tx pgx.Tx, events []event.Recorded) error {
	var ids []string
	var times []time.Time
	var cancels []inbox.Entry
	for _, e := range events {
		var ended struct {
			delivery.Ref
		}
		if err := json.Unmarshal(e.Data, &ended); err != nil {
			return fmt.Errorf("read %s %d@%s: %w", e.Type, e.Revision, e.Stream, err)
		}
		ids, times = append(ids, ended.DeliveryID), append(times, e.Metadata.Time)
		if e.Type == (delivery.Cancelled{}).EventType() {
			cancels = append(cancels, inbox.Entry{
				Location:   inbox.Location{CompanyID: e.Metadata.CompanyID, Environment: e.Metadata.Environment, UserID: ended.UserID},
				ExternalID: ended.ExternalID,
				Delivery: inbox.Delivery{
					DeliveryID: ended.DeliveryID, SendID: ended.SendID, ExpiresAt: e.Metadata.Time.Add(send.MaxExpiresIn * time.Second),
				},
			})
		}
	}
	if err := inbox.Close(ctx, tx, ids, times); err != nil {
		return err
	}
	if len(cancels) == 0 {
		return nil
	}
	return inbox.PutCancels(ctx, tx, cancels)
}
