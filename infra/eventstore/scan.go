package eventstore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"

	"github.com/musique/musique/domain/event"
)

const (
	// maxScanPage bounds the events that a scan holds.
	maxScanPage = 1000
	// scanAttempts is how often a page is asked for while the store is away.
	scanAttempts = 5
)

// Stored is an event with what is known of it beside what it says.
type Stored struct {
	event.Recorded
	// Created is when the store recorded it, by the store's clock.
	Created time.Time
	// RawMetadata is the metadata as it is stored.
	RawMetadata []byte
}

// Scan gives every event of `$all` that stands after a position, in order, up to the newest that is there when it comes to it; the store's own (`$…`) are left
// out. It holds a page of them at a time, however many there are. Visit says whether it wants more. Through is the last position that was looked at, that of
// an event which visit refused or failed at not included. Errors: ErrUnavailable, and those of visit.
func (s *Store) Scan(ctx context.Context, after event.Position, visit func(Stored) (more bool, err error)) (through event.Position, err error) {
	for {
		page, last, done, err := s.scanPage(ctx, after)
		if err != nil {
			return after, err
		}
		for _, e := range page {
			if err := ctx.Err(); err != nil {
				return after, err
			}
			if ofTheStore(e.Type) {
				continue
			}
			if more, err := visit(e); err != nil || !more {
				return after, err
			}
			after = e.Position
		}
		after = last
		if done {
			return after, nil
		}
	}
}

// scanPage reads the next events after a position. Last is where it ended; done says that nothing was left.
func (s *Store) scanPage(ctx context.Context, after event.Position) (page []Stored, last event.Position, done bool, err error) {
	var found []Raw
	for attempt := 1; ; attempt++ {
		found, done, err = s.History(ctx, after, maxScanPage+1) // with the event there, if one is there
		if err == nil {
			break
		}
		if !errors.Is(err, ErrUnavailable) || attempt == scanAttempts || ctx.Err() != nil {
			return nil, after, false, err
		}
		backoff(ctx, attempt, retryMax)
	}
	last = after
	var decoder decoder
	for _, raw := range found {
		if !after.Before(raw.Position) {
			continue
		}
		last = raw.Position
		page = append(page, Stored{
			Recorded: event.Recorded{
				ID: raw.ID, Stream: raw.Stream, Revision: raw.Revision, Position: raw.Position, Type: raw.Type, Data: raw.Data, Metadata: decoder.decoded(raw.Metadata),
			},
			Created: time.Unix(0, raw.Recorded*int64(tick)).UTC(), RawMetadata: raw.Metadata,
		})
	}
	return page, last, done, nil
}

// tick is what the protocol counts the time in.
const tick = 100 * time.Nanosecond

func (d *decoder) stored(e *esdb.RecordedEvent) Stored {
	return Stored{Recorded: d.recorded(e), Created: e.CreatedDate.UTC(), RawMetadata: bytes.Clone(e.UserMetadata)}
}

// Follow gives every event of `$all` that stands after a position, and then each as it is recorded, until ctx ends or visit fails; the store's own (`$…`) are
// left out. However long the store is away meanwhile, none is lost and none comes twice. It returns the error of visit or the cause of ctx's end.
func (s *Store) Follow(ctx context.Context, after event.Position, visit func(Stored) error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var refused error
	err := s.keepOpen(ctx, s.log.With("subscription", "reader"), func() event.Position { return after }, func(ctx context.Context) error {
		return s.follow(ctx, after, func(e Stored) error {
			if refused = visit(e); refused != nil {
				stop()
				return refused
			}
			after = e.Position
			return nil
		})
	})
	return cmp.Or(refused, err)
}

// follow is Follow until the connection breaks.
func (s *Store) follow(ctx context.Context, after event.Position, visit func(Stored) error) error {
	ctx, cancel := context.WithCancel(ctx)
	events, ended := make(chan Stored), make(chan error, 1)
	var receiver sync.WaitGroup
	defer receiver.Wait()
	defer cancel()
	receiver.Go(func() {
		_, err := call(ctx, s.link, func(ctx context.Context, client *esdb.Client) (struct{}, error) {
			return struct{}{}, receiveAll(ctx, client, after, events)
		})
		ended <- err
	})
	for {
		select {
		case e := <-events:
			if err := visit(e); err != nil {
				return err
			}
		case err := <-ended:
			return err
		}
	}
}

// receiveAll passes on what a subscription brings.
func receiveAll(ctx context.Context, client *esdb.Client, after event.Position, events chan<- Stored) error {
	all, err := client.SubscribeToAll(ctx, SubscriberConfig{}.options(after))
	if err != nil {
		return err
	}
	defer func() { _ = all.Close() }() // it always returns nil
	var decoder decoder
	for {
		switch got := all.Recv(); {
		case got.SubscriptionDropped != nil:
			return got.SubscriptionDropped.Error
		case got.EventAppeared != nil:
			select {
			case events <- decoder.stored(got.EventAppeared.OriginalEvent()):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}
