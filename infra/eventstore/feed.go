package eventstore

import (
	"context"
	"sort"
	"sync"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"

	"github.com/musique/musique/domain/event"
)

const (
	// feedBytes bounds what a feed keeps.
	feedBytes = 32 << 20
	// feedShare is how many events a subscription copies out of the feed at once.
	feedShare = 512
	// recordedBytes is about what an event takes beside its data. Events of one append have their metadata together.
	recordedBytes = 256
)

// feed is the one subscription to the end of `$all` that the subscriptions of a Store share: an event comes over the connection, and is decoded, once for
// all of them. It keeps the newest events. A subscription that is not as far as these, or falls behind them, reads on its own until it is.
type feed struct {
	store    *Store
	maxBytes int
	cancel   context.CancelFunc
	over     chan struct{} // closed when it has ended
	begun    chan struct{} // closed when it is known where the feed begins

	followers int // guarded by Store.mu

	mu      sync.Mutex
	after   event.Position // all that stands after it, up to through, is in events, but for the store's own
	through event.Position
	events  []event.Recorded
	bytes   int
	live    bool          // nothing was left when the server last told
	changed chan struct{} // closed when one of these has changed
}

// joinFeed gives the feed of the Store, and begins one for the first who joins.
func (s *Store) joinFeed() *feed {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.feed == nil {
		ctx, cancel := context.WithCancel(context.Background())
		s.feed = &feed{
			store: s, maxBytes: s.feedBytes, cancel: cancel,
			over: make(chan struct{}), begun: make(chan struct{}), changed: make(chan struct{}),
		}
		go s.feed.run(ctx)
	}
	s.feed.followers++
	return s.feed
}

// leave ends the feed with the last who leaves.
func (f *feed) leave() {
	f.store.mu.Lock()
	f.followers--
	last := f.followers == 0
	if last {
		f.store.feed = nil
	}
	f.store.mu.Unlock()
	if last {
		f.cancel()
		<-f.over
	}
}

// run keeps the feed's subscription open until ctx ends or the Store is closed.
func (f *feed) run(ctx context.Context) {
	defer close(f.over)
	_ = f.store.keepOpen(ctx, f.store.log.With("subscription", "newest events"), f.reached, f.follow) // it ends with ctx, or with the Store
}

// wait waits until the feed has begun.
func (f *feed) wait(ctx context.Context) error {
	select {
	case <-f.begun:
		return nil
	case <-f.over:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// begin finds the end of the store, the first time.
func (f *feed) begin(ctx context.Context) error {
	select {
	case <-f.begun:
		return nil
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, silenceTimeout)
	defer cancel()
	end, err := call(ctx, f.store.link, newest)
	if err != nil {
		return err
	}
	f.after, f.through = end, end
	close(f.begun)
	return nil
}

// follow takes what the connection brings until it breaks.
func (f *feed) follow(ctx context.Context) error {
	if err := f.begin(ctx); err != nil {
		return err
	}
	defer f.note(func() { f.live = false })
	options := SubscriberConfig{}.options(f.reached())
	_, err := call(ctx, f.store.link, func(ctx context.Context, client *esdb.Client) (struct{}, error) {
		all, err := client.SubscribeToAll(ctx, options)
		if err != nil {
			return struct{}{}, err
		}
		defer func() { _ = all.Close() }() // it always returns nil
		var decoder decoder
		for {
			switch got := all.Recv(); {
			case got.SubscriptionDropped != nil:
				return struct{}{}, got.SubscriptionDropped.Error
			case got.EventAppeared != nil:
				e := decoder.recorded(got.EventAppeared.OriginalEvent())
				f.note(func() { f.add(e) })
			case got.CheckPointReached != nil:
				through := positionOf(*got.CheckPointReached)
				f.note(func() { f.through = later(f.through, through) })
			case got.CaughtUp != nil:
				f.note(func() { f.live = true })
			case got.FellBehind != nil:
				f.note(func() { f.live = false })
			}
		}
	})
	return err
}

func (f *feed) note(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	close(f.changed)
	f.changed = make(chan struct{})
}

// add keeps an event, and as many of those before it as there is room for. f.mu is held.
func (f *feed) add(e event.Recorded) {
	f.events = append(f.events, e)
	f.through = e.Position
	f.bytes += len(e.Data) + recordedBytes
	for f.bytes > f.maxBytes {
		oldest := f.events[0]
		f.after = oldest.Position
		f.bytes -= len(oldest.Data) + recordedBytes
		f.events[0] = event.Recorded{} // its memory goes before the slice moves
		f.events = f.events[1:]
	}
}

// reached is how far the feed is.
func (f *feed) reached() event.Position {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.through
}

// has tells whether all that comes after a position is in the feed, or will be.
func (f *feed) has(at event.Position) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !at.Before(f.after)
}

// share is what a subscription takes out of a feed.
type share struct {
	events  []event.Recorded
	through event.Position
	live    bool            // there is no more, in the feed and in the store
	changed <-chan struct{} // closed when there may be more
}

// next gives what comes after a position; ok is false where the feed does not have all of that any more. It uses the room of the share before.
func (f *feed) next(at event.Position, before share) (next share, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if at.Before(f.after) {
		return before, false
	}
	first := sort.Search(len(f.events), func(i int) bool { return at.Before(f.events[i].Position) })
	end := min(len(f.events), first+feedShare)
	next = share{events: append(before.events[:0], f.events[first:end]...), through: f.through, changed: f.changed}
	if end < len(f.events) {
		next.through = f.events[end-1].Position
	}
	next.live = f.live && end == len(f.events)
	return next, true
}

// fromFeed puts what the feed brings after a position into the intake, in the way that the server would send it, until the feed does not have what comes
// next. It gives the position that it came to.
func (s *subscription) fromFeed(ctx context.Context, f *feed, in *intake, at event.Position) (event.Position, error) {
	told, unsent := false, 0
	for from := (share{}); ; {
		var ok bool
		if from, ok = f.next(at, from); !ok {
			return at, nil
		}
		for _, e := range from.events {
			switch {
			case s.config.wanted(e.Type, e.Stream):
				if err := in.event(ctx, e); err != nil {
					return at, err
				}
				unsent = 0
			case s.config.sent(e.Type, e.Stream):
				in.moved(e.Position)
				unsent = 0
			default:
				if unsent++; unsent == searchWindow {
					in.moved(e.Position)
					unsent = 0
				}
			}
			at = e.Position
		}
		if at.Before(from.through) { // the feed's own connection told how far it looked
			in.moved(from.through)
			at = from.through
		}
		if from.live && !told {
			in.wentLive()
			told = true
		}
		if len(from.events) == feedShare {
			continue
		}
		clear(from.events[:cap(from.events)]) // a copy that is kept for its room keeps no event
		select {
		case <-from.changed:
		case <-f.over:
			return at, errClosed
		case <-ctx.Done():
			return at, ctx.Err()
		}
	}
}

func later(a, b event.Position) event.Position {
	if a.Before(b) {
		return b
	}
	return a
}
