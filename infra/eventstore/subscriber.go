package eventstore

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/musique/musique/domain/event"
)

const (
	// defaultMaxPage bounds the events of one page.
	defaultMaxPage = 2000
	// maxPageBytes bounds the data of one page; the event that passes it is still in the page.
	maxPageBytes = 8 << 20
	// A page that was refused is given out again after a pause that doubles from backoffMin to retryMax; so is a broken subscription opened.
	backoffMin = 50 * time.Millisecond
	retryMax   = 5 * time.Second
	// searchWindow is after how many events that a filter leaves out the server says how far it looked.
	searchWindow = 256
	// emptyPageEvery is how often at most a page without events is given out while the store is busy with other events.
	emptyPageEvery = 100 * time.Millisecond
	// gatherFor is how long events that are to be held wait for more.
	gatherFor = 100 * time.Millisecond
	// checkpointTimeout bounds one call of SubscriberConfig.Checkpoint.
	checkpointTimeout = 5 * time.Second
)

// Page is what one Watermill message carries: the events that arrived while the page before was handled, in order.
type Page struct {
	// Events may be empty: then only the position moved, past events that the filter leaves out.
	Events []event.Recorded
	// Through is the position that the subscriber has seen everything up to, this page included. It is what to store as the checkpoint, best
	// in one transaction with what the page did.
	Through event.Position
}

// after is the page without what stands at or before a position.
func (p Page) after(done event.Position) Page {
	for len(p.Events) > 0 && !done.Before(p.Events[0].Position) {
		p.Events = p.Events[1:]
	}
	return p
}

type pageKey struct{}

// PageOf gives the page that a message of a Subscriber carries.
func PageOf(msg *message.Message) Page {
	page, _ := msg.Context().Value(pageKey{}).(Page)
	return page
}

// SubscriberConfig says what a Subscriber gives out.
type SubscriberConfig struct {
	// Types are the event types to give out, versions included, by their exact names; empty is all but the store's own.
	Types []string
	// FilterHere has the server send all events, and leaves out here those of other types. A server that leaves them out says how far it looked only now
	// and then; so the position is never more than 100 ms behind, at the price of the bytes.
	FilterHere bool
	// SkipStreams leaves out the streams whose names begin so; empty is none. The server leaves them out, and the position passes them only now and then,
	// unless it leaves out by Types already: it takes one filter, so this one is here then.
	SkipStreams string
	// Checkpoint tells the position that everything up to was handled; the zero position is the start, and so is a nil func. It is asked at the
	// start, and again when a page was refused: what it says was handled by then (by a transaction whose answer was lost, or by another
	// process) is not given out again.
	Checkpoint func(context.Context) (event.Position, error)
	// MaxPage bounds the events of one page; 0 is 2,000.
	MaxPage int
	// Hold tells of an event that nobody waits for, because more will come that belong to it. As long as there are only such events they gather for up to
	// 100 ms, so that a page is worth its transaction. May be nil.
	Hold func(event.Recorded) bool
	// OnCaughtUp is called each time that everything up to the newest event was handled and the subscription went live. May be nil.
	OnCaughtUp func()
	// Log gets what an operator should know; nil is the Store's.
	Log *slog.Logger
}

// Subscriber is a Watermill message.Subscriber over `$all`. A message is a page; acknowledging it asks for the next, refusing it asks for
// the same again after a pause. A page in hand is the only one out, so order holds whatever the handler does. A subscription that breaks is
// opened again after the last acknowledged page, however long the store was away.
//
// A message's context ends with its acknowledgement, its refusal or the subscription. It holds at most one page in hand and one that gathers.
type Subscriber struct {
	store  *Store
	config SubscriberConfig
	ctx    context.Context
	cancel context.CancelFunc

	mu   sync.Mutex // orders Subscribe before or after Close
	wait sync.WaitGroup
}

// NewSubscriber makes a subscriber; Subscribe starts it.
func NewSubscriber(store *Store, config SubscriberConfig) *Subscriber {
	if config.MaxPage <= 0 {
		config.MaxPage = defaultMaxPage
	}
	if config.Checkpoint == nil {
		config.Checkpoint = func(context.Context) (event.Position, error) { return event.Position{}, nil }
	}
	if config.Log == nil {
		config.Log = store.log
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Subscriber{store: store, config: config, ctx: ctx, cancel: cancel}
}

// Subscribe implements message.Subscriber. The topic names the subscription in logs; which events it gives out is in the config. The channel is
// closed when ctx ends or the Subscriber is closed.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return nil, errors.New("the subscriber is closed")
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	out := make(chan *message.Message)
	s.wait.Go(func() {
		defer close(out)
		defer cancel()
		defer stop()
		(&subscription{store: s.store, config: s.config, out: out, log: s.config.Log.With("subscription", topic)}).run(ctx)
	})
	return out, nil
}

// Close implements message.Subscriber: it ends all subscriptions and waits for them.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.cancel()
	s.mu.Unlock()
	s.wait.Wait()
	return nil
}

// subscription is one call of Subscribe.
type subscription struct {
	store  *Store
	config SubscriberConfig
	out    chan<- *message.Message
	log    *slog.Logger
	done   event.Position // everything up to here was handled
}

// run keeps the subscription open until ctx ends.
func (s *subscription) run(ctx context.Context) {
	for failures := 0; ; failures++ {
		var err error
		if s.done, err = s.checkpoint(ctx); err == nil {
			break
		}
		if ctx.Err() != nil {
			return
		}
		s.log.Warn("the checkpoint cannot be read; trying again", "error", err)
		backoff(ctx, failures, retryMax)
	}
	_ = s.store.keepOpen(ctx, s.log, func() event.Position { return s.done }, s.follow) // it ends with ctx, or with the Store
}

func (s *subscription) checkpoint(ctx context.Context) (event.Position, error) {
	ctx, cancel := context.WithTimeout(ctx, checkpointTimeout)
	defer cancel()
	return s.config.Checkpoint(ctx)
}

// follow subscribes after s.done and gives out pages until the connection breaks.
func (s *subscription) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	in := newIntake(s.config.MaxPage, s.config.Hold)
	var receiver sync.WaitGroup
	receiver.Go(func() { in.end(s.receive(ctx, in)) })
	defer receiver.Wait()
	defer cancel()
	tick := time.NewTicker(emptyPageEvery)
	defer tick.Stop()
	for {
		got, err := in.take(ctx, tick.C)
		if err != nil {
			return err
		}
		if page := got.page.after(s.done); s.done.Before(page.Through) {
			if err := s.deliver(ctx, page); err != nil {
				return err
			}
		}
		if got.caughtUp && s.config.OnCaughtUp != nil {
			s.config.OnCaughtUp()
		}
		if got.err != nil {
			return got.err
		}
	}
}

// deliver gives out a page until it is acknowledged, or turns out to be handled already.
func (s *subscription) deliver(ctx context.Context, page Page) error {
	for failures := 0; ; failures++ {
		acked, err := s.offer(ctx, page)
		if err != nil {
			return err
		}
		if acked {
			s.done = page.Through
			return nil
		}
		backoff(ctx, failures, retryMax)
		done, err := s.checkpoint(ctx)
		if err != nil {
			s.log.Warn("the checkpoint cannot be read; giving out the same page", "error", err)
			continue
		}
		if s.done.Before(done) {
			s.done, page = done, page.after(done)
		}
		if !s.done.Before(page.Through) {
			return nil
		}
	}
}

// offer gives out a page once.
func (s *subscription) offer(ctx context.Context, page Page) (acked bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	msg := message.NewMessage(watermill.NewUUID(), nil)
	msg.SetContext(context.WithValue(ctx, pageKey{}, page))
	select {
	case s.out <- msg:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	select {
	case <-msg.Acked():
		return true, nil
	case <-msg.Nacked():
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// receive puts what comes after s.done into the intake: what the feed has from there, and what it does not have from a connection of its own. It ends with
// the latter, or with ctx.
func (s *subscription) receive(ctx context.Context, in *intake) error {
	f := s.store.joinFeed()
	defer f.leave()
	if err := f.wait(ctx); err != nil {
		return err
	}
	for at := s.done; ; {
		var err error
		if at, err = s.fromFeed(ctx, f, in, at); err != nil {
			return err
		}
		if at, err = s.catchUp(ctx, f, in, at); err != nil {
			return err
		}
	}
}

// catchUp puts what a connection of its own brings after a position into the intake, until the feed has what comes next. A connection that dies in silence
// is found by the client's keepalive (10 s + 10 s, unless the connection string says otherwise).
func (s *subscription) catchUp(ctx context.Context, f *feed, in *intake, at event.Position) (event.Position, error) {
	// Where the end is now, and not where the feed began: that may have been on another node of a cluster, which was further.
	type end struct {
		of *esdb.Client
		at event.Position
	}
	there, err := call(ctx, s.store.link, func(ctx context.Context, client *esdb.Client) (end, error) {
		at, err := newest(ctx, client)
		return end{client, at}, err
	})
	if err != nil {
		return at, err
	}
	return call(ctx, s.store.link, func(ctx context.Context, client *esdb.Client) (event.Position, error) {
		at := at // whoever called is gone when ctx ends
		all, err := client.SubscribeToAll(ctx, s.config.options(at))
		if err != nil {
			return at, err
		}
		defer func() { _ = all.Close() }() // it always returns nil
		var decoder decoder
		for !f.has(at) {
			switch got := all.Recv(); {
			case got.SubscriptionDropped != nil:
				return at, got.SubscriptionDropped.Error
			case got.EventAppeared != nil:
				e := got.EventAppeared.OriginalEvent()
				at = positionOf(e.Position)
				if s.config.wanted(e.EventType, e.StreamID) {
					err = in.event(ctx, decoder.recorded(e))
				} else {
					in.moved(at)
				}
			case got.CheckPointReached != nil:
				at = positionOf(*got.CheckPointReached)
				in.moved(at)
			case got.CaughtUp != nil: // with all that there was when it began
				if client == there.of && at.Before(there.at) {
					at = there.at
					in.moved(at)
				}
				if !f.has(at) {
					in.wentLive()
				}
			}
			if err != nil {
				return at, err
			}
		}
		return at, nil
	})
}

// typesThere says that the server leaves out by type, and not by stream.
func (c SubscriberConfig) typesThere() bool { return len(c.Types) > 0 && !c.FilterHere }

// sent tells whether the server sends an event, that is not its own, to such a subscriber.
func (c SubscriberConfig) sent(kind, stream string) bool {
	if c.typesThere() {
		return slices.Contains(c.Types, kind)
	}
	return c.SkipStreams == "" || !strings.HasPrefix(stream, "$") && !strings.HasPrefix(stream, c.SkipStreams)
}

// wanted tells whether an event that the server sent is given out. A filter by stream lets events of the store's own through, such as the end of a stream.
func (c SubscriberConfig) wanted(kind, stream string) bool {
	return !ofTheStore(kind) && (len(c.Types) == 0 || slices.Contains(c.Types, kind)) && (c.SkipStreams == "" || !strings.HasPrefix(stream, c.SkipStreams))
}

// options are those of a subscription to what comes after a position.
func (c SubscriberConfig) options(after event.Position) esdb.SubscribeToAllOptions {
	filter := esdb.ExcludeSystemEventsFilter()
	switch {
	case c.typesThere():
		names := make([]string, len(c.Types))
		for i, t := range c.Types {
			names[i] = regexp.QuoteMeta(t)
		}
		filter = &esdb.SubscriptionFilter{Type: esdb.EventFilterType, Regex: "^(?:" + strings.Join(names, "|") + ")$"}
	case c.SkipStreams != "":
		filter = &esdb.SubscriptionFilter{Type: esdb.StreamFilterType, Regex: notBeginning(c.SkipStreams)}
	}
	return esdb.SubscribeToAllOptions{From: allFrom(after), Filter: filter, MaxSearchWindow: searchWindow, CheckpointInterval: 1}
}

// notBeginning is a pattern for the streams that are neither the store's own, whose names begin with a dollar, nor begin with prefix. The server's patterns
// and ours have no negation in common, so it says where a name may differ from the prefix first.
func notBeginning(prefix string) string {
	differs := []string{`[^$]`}
	for i, r := range prefix {
		switch character := regexp.QuoteMeta(string(r)); {
		case i > 0:
			differs = append(differs, regexp.QuoteMeta(prefix[:i])+`(?:$|[^`+character+`])`)
		case r == '$':
			return "^" + differs[0] // none that it may begin with is left
		default:
			differs[0] = `[^$` + character + `]`
		}
	}
	return "^(?:" + strings.Join(differs, "|") + ")"
}

// keepOpen opens a subscription whenever the store is there, again and again, after a pause that is short again once it came further, until ctx ends or the Store is
// closed. It gives the cause of that.
func (s *Store) keepOpen(ctx context.Context, log *slog.Logger, reached func() event.Position, open func(context.Context) error) error {
	for failures := 0; ; failures++ {
		if err := s.link.connected(ctx); err != nil {
			return cmp.Or(context.Cause(ctx), err)
		}
		before := reached()
		err := open(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if before.Before(reached()) {
			failures = 0
		}
		log.Warn("the subscription broke; opening it again", "error", err)
		backoff(ctx, failures, retryMax)
	}
}

// backoff waits before try number failures+2, or until ctx ends. The jitter keeps those who failed together from coming back together.
func backoff(ctx context.Context, failures int, longest time.Duration) {
	wait := min(backoffMin<<min(failures, 16), longest)
	timer := time.NewTimer(wait/2 + rand.N(wait/2)) //nolint:gosec // jitter is no secret
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
