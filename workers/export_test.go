package workers

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/translog"
)

// These are for the tests to reckon with.
const (
	PlayingGrace       = playingGrace
	KeepClosed         = keepClosed
	OrphanAge          = orphanAge
	MaxDispatchedBytes = maxDispatchedBytes
)

// LastLook is when a removed location is looked at for the last time.
func LastLook() time.Duration { return looks[len(looks)-1] }

// Follow runs a follower of the test's own.
func Follow(ctx context.Context, d Deps, name string, types []string, handle func(context.Context, *pgx.Batch, []event.Recorded) error) error {
	return follower{Deps: d, name: name, types: types, handle: handle}.run(ctx)
}

// Lead runs work in one instance at a time.
func Lead(ctx context.Context, d Deps, name string, work func(context.Context) error) error {
	return d.lead(ctx, name, work)
}

// Share splits a bucket's sends into messages.
func Share(bucket int, sends []DispatchSend) ([]*message.Message, error) {
	return shareOf(context.Background(), bucket, sends)
}

// Backoff and RetryAfter are how long an endpoint is left alone.
var (
	Backoff    = backoff
	RetryAfter = retryAfter
)

// MaxRetry bounds both.
const MaxRetry = maxRetry

// CleanOnce is one round of a cleanup.
func CleanOnce(ctx context.Context, d Deps) error {
	_, err := NewCleanup(d).clean(ctx)
	return err
}

// SweepOnce is one look through the blob storage.
func SweepOnce(ctx context.Context, d Deps) error {
	_, err := NewCleanup(d).sweep(ctx)
	return err
}

// Cover takes in what is new in the store, again and again: each time from where it came to.
func Cover(d Deps, log *translog.Log) func(context.Context, *eventstore.Store) error {
	var at newest
	return func(ctx context.Context, store *eventstore.Store) (err error) {
		d.Store = store
		at, err = NewHistory(d, HistoryConfig{}).cover(ctx, log, at)
		return err
	}
}
