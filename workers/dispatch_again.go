package workers

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/kafka"
)

// surelyRemembered is how old a send can be and its deliveries' ends still be known to the inboxes, with a day for the message to get there.
const surelyRemembered = keepClosed - 24*time.Hour

// askedAtOnce bounds the deliveries that the store is asked about at the same time.
const askedAtOnce = 16

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
	newest, err := w.Store.Head(ctx)
	if err != nil {
		return err
	}
	const note = "INSERT INTO workers.dispatch_topic (topic_id, doubt_through) VALUES ($1, $2) ON CONFLICT DO NOTHING"
	const start = `
WITH another AS (UPDATE workers.dispatch_topic SET topic_id = $1, doubt_through = $2 WHERE topic_id <> $1 RETURNING one)
UPDATE workers.checkpoint SET commit_position = 0, prepare_position = 0 WHERE follower = 'dispatch' AND EXISTS (SELECT FROM another)`
	batch := &pgx.Batch{}
	batch.Queue(note, id, int64(newest.Commit))
	batch.Queue(start, id, int64(newest.Commit))
	batch.Queue("SELECT doubt_through FROM workers.dispatch_topic")
	results := w.Pool.SendBatch(ctx, batch)
	defer results.Close()
	if _, err := results.Exec(); err != nil {
		return err
	}
	moved, err := results.Exec()
	if err != nil {
		return err
	}
	if err := results.QueryRow().Scan(&w.doubtThrough); err != nil {
		return err
	}
	if moved.RowsAffected() > 0 {
		w.Log.Warn("the dispatch topic is another one than before: everything that has not ended is dispatched again", "topic", DispatchTopic)
	}
	return results.Close()
}

// notEnded leaves out the deliveries that have ended without the inboxes knowing for sure: a player would be told again. They do not know what ended long ago; and
// with another database, or another topic and a database that was put back, what had ended by then is known only once the closer has read it again, which it does
// at its own pace. The store is asked, and only of what is dispatched long after it was sent, or stood there when database or topic were first seen.
func (w *Dispatch) notEnded(ctx context.Context, e event.Recorded, sent []send.AudioSent) ([]send.AudioSent, error) {
	if w.Now().Sub(e.Metadata.Time) < surelyRemembered && int64(e.Position.Commit) > w.doubtThrough {
		return sent, nil
	}
	ended := make([]bool, len(sent))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(askedAtOnce)
	for i, one := range sent {
		group.Go(func() error {
			history, err := w.Store.Load(ctx, delivery.Stream(one.SendID, one.UserID))
			ended[i] = err == nil && delivery.Load(history).Status().Ended()
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var open []send.AudioSent
	for i, one := range sent {
		if !ended[i] {
			open = append(open, one)
		}
	}
	return open, nil
}
