package workers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/event"
)

const (
	cleanupPause = 30 * time.Second
	// openTooLong is how old an open broadcast is when it is looked at; the command decides by the stream.
	openTooLong = time.Minute
	// keepClosed is how long it is remembered that a delivery ended, for messages that come late.
	keepClosed = 7 * 24 * time.Hour
	// cleanupBatch bounds the rows of one statement.
	cleanupBatch = 5_000
)

// Cleanup removes what nobody needs any more: the bytes of deleted audio, large broadcasts whose writer died, old rows of the inbox.
type Cleanup struct{ Deps }

// NewCleanup makes the worker.
func NewCleanup(d Deps) *Cleanup { return &Cleanup{d} }

// Follow removes the bytes of deleted audio until ctx ends. The deletion did so itself, unless its process died first.
func (w *Cleanup) Follow(ctx context.Context) error {
	return follower{Deps: w.Deps, name: "deleted-audio", types: []string{audio.Deleted{}.EventType()}, handle: w.removeBytes}.run(ctx)
}

// Run cleans up until ctx ends.
func (w *Cleanup) Run(ctx context.Context) error { return w.every(ctx, "cleanup", w.clean) }

func (w *Cleanup) removeBytes(ctx context.Context, _ *pgx.Batch, events []event.Recorded) error {
	for _, e := range events {
		var deleted audio.Deleted
		if err := json.Unmarshal(e.Data, &deleted); err != nil {
			return fmt.Errorf("read %s %d@%s: %w", e.Type, e.Revision, e.Stream, err)
		}
		if err := w.Blobs.Delete(ctx, deleted.BlobKey); err != nil {
			return err
		}
	}
	return nil
}

func (w *Cleanup) clean(ctx context.Context) (time.Duration, error) {
	now := w.Now()
	rows, err := w.Pool.Query(ctx, `SELECT send_id FROM workers.open_broadcast WHERE since < $1 LIMIT $2`, now.Add(-openTooLong), cleanupBatch)
	if err != nil {
		return 0, err
	}
	open, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return 0, err
	}
	var failed error
	for _, sendID := range open {
		_, err := w.Commands.AbandonBroadcast.Handle(ctx, commands.AbandonBroadcast{SendID: sendID})
		failed = errors.Join(failed, err)
	}
	closed, err := w.Pool.Exec(ctx, `DELETE FROM workers.inbox_closed WHERE delivery_id IN
		(SELECT delivery_id FROM workers.inbox_closed WHERE closed_at < $1 LIMIT $2)`, now.Add(-keepClosed), cleanupBatch)
	failed = errors.Join(failed, err)
	cancels, err := w.Pool.Exec(ctx, `DELETE FROM workers.inbox WHERE seq IN
		(SELECT seq FROM workers.inbox WHERE kind = 'cancel' AND expires_at < $1 LIMIT $2)`, now, cleanupBatch)
	failed = errors.Join(failed, err)
	if closed.RowsAffected() == cleanupBatch || cancels.RowsAffected() == cleanupBatch {
		return 0, failed
	}
	return cleanupPause, failed
}
