package workers

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/kafka"
)

// surelyRemembered is how old a send can be and its deliveries' ends still be known to the inboxes, with a day for the message to get there.
const surelyRemembered = keepClosed - 24*time.Hour

// begin is what comes before the checkpoint is read. If the topic is another one than the checkpoint speaks of, Kafka was lost with all that was in no inbox
// yet: everything is dispatched again, of which those that have it already take nothing. Whatever Kafka does not take has this come again, so a topic that is lost
// while an instance runs is made and filled, too.
func (w *Dispatch) begin(ctx context.Context) error {
	w.ahead.stream, w.ahead.revision = "", 0
	clear(w.open)
	w.gathered = 0
	if err := kafka.EnsureTopics(ctx, w.Brokers, kafka.Topic{Name: DispatchTopic, Partitions: DispatchPartitions}); err != nil {
		return err
	}
	id, err := kafka.TopicID(ctx, w.Brokers, DispatchTopic)
	if err != nil {
		return err
	}
	const note = "INSERT INTO workers.dispatch_topic (topic_id) VALUES ($1) ON CONFLICT DO NOTHING"
	const start = `
WITH another AS (UPDATE workers.dispatch_topic SET topic_id = $1 WHERE topic_id <> $1 RETURNING one)
UPDATE workers.checkpoint SET commit_position = 0, prepare_position = 0 WHERE follower = 'dispatch' AND EXISTS (SELECT FROM another)`
	batch := &pgx.Batch{}
	batch.Queue(note, id)
	batch.Queue(start, id)
	results := w.Pool.SendBatch(ctx, batch)
	defer results.Close()
	if _, err := results.Exec(); err != nil {
		return err
	}
	moved, err := results.Exec()
	if err != nil {
		return err
	}
	if moved.RowsAffected() > 0 {
		w.Log.Warn("the dispatch topic is another one than before: everything that has not ended is dispatched again", "topic", DispatchTopic)
	}
	return results.Close()
}

// endedLongAgo is whether a delivery has ended so long ago that no inbox may know it any more: a player would be told again. It asks the store, and only
// of what is dispatched long after it was sent, as when Kafka or the database was lost.
func (w *Dispatch) endedLongAgo(ctx context.Context, e event.Recorded, sent send.AudioSent) (bool, error) {
	if w.Now().Sub(e.Metadata.Time) < surelyRemembered {
		return false, nil
	}
	history, err := w.Store.Load(ctx, delivery.Stream(sent.SendID, sent.UserID))
	if err != nil {
		return false, err
	}
	return delivery.Load(history).Status().Ended(), nil
}
