package workers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/kafka"
)

const (
	// DeadLetterTopic keeps the messages of the dispatch topic that nobody can deliver, as they came.
	DeadLetterTopic = "musique.dispatch.dead"
	// deadLetterRetention is how long they stay: as long as what is in them could wait for its player.
	deadLetterRetention = send.MaxExpiresIn * time.Second
	// reasonMetadata is why such a message could not be delivered.
	reasonMetadata = "musique_reason"
	// dataExceptions is the class of PostgreSQL's errors that say that a value is none of its type (such as a text with a zero byte): it never will be.
	dataExceptions = "22"
)

// errUnreadable is what is wrong with a message that is not as messages are.
var errUnreadable = errors.New("unreadable message")

// neverDelivered is whether a message that failed so fails each time. Everything else passes, or needs an operator: the message waits.
func neverDelivered(err error) bool {
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok {
		return strings.HasPrefix(refused.Code, dataExceptions)
	}
	return errors.Is(err, errUnreadable)
}

// setAside puts a message on the topic of the dead, from where it can be looked at, so that what stands behind it in its partition is delivered.
func (w *Delivery) setAside(ctx context.Context, msg *message.Message, why error) error {
	if err := kafka.EnsureTopics(ctx, w.Brokers, kafka.Topic{Name: DeadLetterTopic, Partitions: 1, Retention: deadLetterRetention}); err != nil {
		return err
	}
	publisher, err := kafka.NewPublisher(w.Brokers, w.Log)
	if err != nil {
		return err
	}
	defer publisher.Close()
	dead := message.NewMessage(msg.UUID, msg.Payload)
	for name, value := range msg.Metadata {
		dead.Metadata.Set(name, value)
	}
	dead.Metadata.Set(reasonMetadata, why.Error())
	if err := publisher.Publish(DeadLetterTopic, dead); err != nil {
		return fmt.Errorf("set a message aside: %w", err)
	}
	return nil
}
