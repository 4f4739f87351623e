package workers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/kafka"
	"github.com/musique/musique/infra/postgres"
	"github.com/musique/musique/infra/telemetry"
	"github.com/musique/musique/workers/inbox"
)

// deliveryGroup is the consumer group of the delivery workers.
const deliveryGroup = "musique-delivery"

// deliveryTimeout bounds the transaction of the messages that are delivered together.
const deliveryTimeout = 30 * time.Second

// Delivery takes the dispatch topic's messages into the inboxes: all that wait, each of another partition, in one transaction. A message that
// cannot be taken is refused and comes again, and one that never can be is set aside; the other partitions go on.
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
	// A partition gives its next message when the one before is acknowledged, so no more than one of each of ours waits.
	waiting := make(chan *message.Message, DispatchPartitions)
	go func() {
		defer close(waiting)
		for msg := range messages {
			waiting <- msg
		}
	}()
	for first := range waiting {
		group := []*message.Message{first}
		for len(waiting) > 0 {
			group = append(group, <-waiting)
		}
		w.take(ctx, group)
	}
	return subscriber.Close()
}

// take delivers messages together, or each alone if that fails, so that one that cannot be delivered holds up no other.
func (w *Delivery) take(ctx context.Context, group []*message.Message) {
	// What is in hand is finished even when the worker is told to end.
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), deliveryTimeout)
	defer cancel()
	err := w.deliver(work, group)
	if err != nil && len(group) > 1 && !postgres.IsUnavailable(err) {
		for i := range group {
			w.take(ctx, group[i:i+1])
		}
		return
	}
	for _, msg := range group {
		if err != nil {
			if neverDelivered(err) {
				failed := w.setAside(work, msg, err)
				if failed == nil {
					w.Metrics.setAsideMessage()
					w.Log.Error("a message of the dispatch topic can never be delivered; it is set aside", "message", msg.UUID, "topic", DeadLetterTopic, "error", err)
					msg.Ack()
					continue
				}
				err = errors.Join(err, failed)
			}
			w.Metrics.refusedMessage()
			w.Log.Error("a message of the dispatch topic cannot be delivered; it comes again", "message", msg.UUID, "error", err)
			msg.Nack()
			continue
		}
		msg.Ack()
	}
}

func (w *Delivery) deliver(ctx context.Context, group []*message.Message) (err error) {
	var sends []DispatchSend
	var origins []string
	for _, msg := range group {
		var dispatched Dispatched
		if err := json.Unmarshal(msg.Payload, &dispatched); err != nil {
			return fmt.Errorf("%w: %w", errUnreadable, err)
		}
		for _, s := range dispatched.Sends {
			sends, origins = append(sends, s), append(origins, s.TraceParent)
		}
	}
	ctx, traced := telemetry.Together(ctx, "deliver", origins...)
	defer func() { traced.End(err) }()
	var entries []inbox.Entry
	for _, s := range sends {
		traceParent := telemetry.Followed(telemetry.Next(ctx, s.TraceParent), s.Total)
		for _, to := range s.To {
			entries = append(entries, inbox.Entry{
				Location:   inbox.Location{CompanyID: s.CompanyID, Environment: s.Environment, UserID: to.UserID},
				ExternalID: to.ExternalID,
				Delivery: inbox.Delivery{
					DeliveryID: to.DeliveryID, SendID: s.SendID, AudioID: s.Audio.AudioID, BlobKey: s.Audio.BlobKey, Name: s.Audio.Name,
					SHA256: s.Audio.SHA256, Format: s.Audio.Format, DurationMs: s.Audio.DurationMs, Size: s.Audio.Size,
					Priority: s.Priority, Repeat: s.Repeat, Volume: s.Volume, PlayAt: to.PlayAt, ExpiresAt: to.ExpiresAt, TraceParent: traceParent, RequestID: s.RequestID,
				},
			})
		}
	}
	put, wake := &pgx.Batch{}, &pgx.Batch{}
	if err := inbox.Put(put, entries); err != nil {
		return err
	}
	wakeEndpoints(put, entries, w.Now())
	if err := w.Pool.SendBatch(ctx, put).Close(); err != nil {
		return err
	}
	w.Metrics.tookDeliveries(len(entries))
	wake.Queue(unsynced)
	inbox.Wake(wake, entries)
	return w.Pool.SendBatch(ctx, wake).Close()
}

// Closer follows the ends of deliveries: those leave the inboxes, and players are told of the cancelled ones.
type Closer struct{ Deps }

// NewCloser makes the worker.
func NewCloser(d Deps) *Closer { return &Closer{d} }

// Run closes deliveries until ctx ends.
func (w *Closer) Run(ctx context.Context) error {
	return follower{
		Deps: w.Deps, name: "closer", types: followedTypes["closer"],
		handle: w.handle,
	}.run(ctx)
}

func (w *Closer) handle(_ context.Context, batch *pgx.Batch, events []event.Recorded) error {
	var all, cancels []inbox.Entry
	var times []time.Time
	for _, e := range events {
		var ended struct {
			delivery.Ref
		}
		if err := json.Unmarshal(e.Data, &ended); err != nil {
			return fmt.Errorf("read %s %d@%s: %w", e.Type, e.Revision, e.Stream, err)
		}
		entry := inbox.Entry{
			Location:   inbox.Location{CompanyID: e.Metadata.CompanyID, Environment: e.Metadata.Environment, UserID: ended.UserID},
			ExternalID: ended.ExternalID,
			Delivery: inbox.Delivery{
				DeliveryID: ended.DeliveryID, SendID: ended.SendID, ExpiresAt: e.Metadata.Time.Add(send.MaxExpiresIn * time.Second),
			},
		}
		all, times = append(all, entry), append(times, e.Metadata.Time)
		if e.Type == (delivery.Cancelled{}).EventType() {
			cancels = append(cancels, entry)
		}
	}
	inbox.Close(batch, all, times)
	closeAtEndpoints(batch, all, cancels, w.Now())
	if len(cancels) == 0 {
		return nil
	}
	inbox.Wake(batch, cancels)
	return inbox.PutCancels(batch, cancels)
}
