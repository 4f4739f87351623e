package eventstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"regexp"
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
	// maxPageBytes bounds the data of one page.
	maxPageBytes = 8 << 20
	// A page that was refused is given out again after a pause that doubles from retryMin to retryMax.
	retryMin = 50 * time.Millisecond
	retryMax = 5 * time.Second
	// searchWindow is after how many events that a filter leaves out the server says how far it looked.
	searchWindow = 256
)

// Page is what one Watermill message carries: the events that arrived while the page before was handled, in order.
type Page struct {
	// Events may be empty: then only the position moved, past events that the filter leaves out.
	Events []event.Recorded
	// Through is the position that the subscriber has seen everything up to, this page included.
	Through event.Position
}

type pageKey struct{}

// PageOf gives the page that a message of a Subscriber carries.
func PageOf(msg *message.Message) Page {
	page, _ := msg.Context().Value(pageKey{}).(Page)
	return page
}

// SubscriberConfig says what a Subscriber gives out.
type SubscriberConfig struct {
	// Types are the event types to give out, versions included; empty is all but the store's own.
	Types []string
	// Checkpoint tells the position that everything up to was handled; the zero position is the start. It is asked at the start, after a
	// broken connection and after a page that was refused.
	Checkpoint func(context.Context) (event.Position, error)
	// MaxPage bounds the events of one page; 0 is 2,000.
	MaxPage int
	// OnCaughtUp is called each time that everything up to the newest event was handled and the subscription went live. May be nil.
	OnCaughtUp func()
	Log        *slog.Logger
}

// Subscriber is a Watermill message.Subscriber over `$all`. A message is a page; acknowledging it asks for the next, refusing it asks for
// the same again after a pause. A page in hand is the only one out, so order holds whatever the handler does. A subscription that breaks is
// opened again from the checkpoint.
type Subscriber struct {
	store  *Store
	config SubscriberConfig
	ctx    context.Context
	cancel context.CancelFunc
	wait   sync.WaitGroup
}

// NewSubscriber makes a subscriber; Subscribe starts it.
func NewSubscriber(store *Store, config SubscriberConfig) *Subscriber {
	if config.MaxPage <= 0 {
		config.MaxPage = defaultMaxPage
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Subscriber{store: store, config: config, ctx: ctx, cancel: cancel}
}

// Subscribe implements message.Subscriber. The topic names the subscription in logs; which events it gives out is in the config.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	if s.ctx.Err() != nil {
		return nil, errors.New("the subscriber is closed")
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	out := make(chan *message.Message)
	s.wait.Add(1)
	go func() {
		defer s.wait.Done()
		defer close(out)
		defer cancel()
		defer stop()
		s.run(ctx, out, s.config.Log.With("subscription", topic))
	}()
	return out, nil
}

// Close implements message.Subscriber: it ends all subscriptions and waits for them.
func (s *Subscriber) Close() error {
	s.cancel()
	s.wait.Wait()
	return nil
}

// run keeps a subscription open until ctx ends.
func (s *Subscriber) run(ctx context.Context, out chan<- *message.Message, log *slog.Logger) {
	for failures := 0; ctx.Err() == nil; {
		progressed, err := s.follow(ctx, out)
		if progressed {
			failures = 0
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			log.Warn("the subscription broke; opening it again", "error", err)
			pause(ctx, failures)
			failures++
		}
	}
}

// arrival is one thing that the subscription's connection brought.
type arrival struct {
	event    *event.Recorded
	through  event.Position
	caughtUp bool
	err      error
}

// follow subscribes from the checkpoint and gives out pages until something breaks, or the checkpoint turns out to be elsewhere.
func (s *Subscriber) follow(ctx context.Context, out chan<- *message.Message) (progressed bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done, err := s.config.Checkpoint(ctx)
	if err != nil {
		return false, fmt.Errorf("checkpoint: %w", err)
	}
	arrived := make(chan arrival, 2*s.config.MaxPage)
	received := make(chan struct{})
	go func() {
		defer close(received)
		s.receive(ctx, done, arrived)
	}()
	defer func() { cancel(); <-received }()

	for {
		page, caughtUp, broken := s.gather(ctx, arrived)
		if len(page.Events) > 0 || done.Before(page.Through) {
			again, err := s.deliver(ctx, out, page, done)
			if again || err != nil {
				return progressed, err
			}
			done, progressed = page.Through, true
		}
		if broken != nil {
			return progressed, broken
		}
		if caughtUp && s.config.OnCaughtUp != nil {
			s.config.OnCaughtUp()
		}
	}
}

// gather waits for the first arrival and takes what else is there, up to the bounds of a page. What came before a break is good, so the page
// may hold events beside an error.
func (s *Subscriber) gather(ctx context.Context, arrived <-chan arrival) (page Page, caughtUp bool, err error) {
	bytes := 0
	take := func(a arrival) (full bool, err error) {
		if a.err != nil {
			return true, a.err
		}
		if a.caughtUp {
			caughtUp = true
			return true, nil
		}
		page.Through = a.through
		if a.event != nil {
			page.Events = append(page.Events, *a.event)
			bytes += len(a.event.Data)
		}
		return len(page.Events) >= s.config.MaxPage || bytes >= maxPageBytes, nil
	}
	select {
	case a := <-arrived:
		if full, err := take(a); full || err != nil {
			return page, caughtUp, err
		}
	case <-ctx.Done():
		return page, false, ctx.Err()
	}
	for {
		select {
		case a := <-arrived:
			if full, err := take(a); full || err != nil {
				return page, caughtUp, err
			}
		default:
			return page, caughtUp, nil
		}
	}
}

// deliver gives out a page until it is acknowledged. It gives up (again) when the checkpoint has moved by other hands.
func (s *Subscriber) deliver(ctx context.Context, out chan<- *message.Message, page Page, done event.Position) (again bool, err error) {
	for failures := 0; ; failures++ {
		msg := message.NewMessage(watermill.NewUUID(), nil)
		msg.SetContext(context.WithValue(ctx, pageKey{}, page))
		select {
		case out <- msg:
		case <-ctx.Done():
			return false, ctx.Err()
		}
		select {
		case <-msg.Acked():
			return false, nil
		case <-ctx.Done():
			return false, ctx.Err()
		case <-msg.Nacked():
		}
		pause(ctx, failures)
		now, err := s.config.Checkpoint(ctx)
		if err != nil && ctx.Err() != nil {
			return false, ctx.Err()
		}
		if err == nil && now != done {
			return true, nil
		}
	}
}

// receive puts what the connection brings into arrived, its end as the last.
func (s *Subscriber) receive(ctx context.Context, after event.Position, arrived chan<- arrival) {
	put := func(a arrival) bool {
		select {
		case arrived <- a:
			return true
		case <-ctx.Done():
			return false
		}
	}
	err := s.store.link.hold(ctx, func(client *esdb.Client) error {
		subscription, err := client.SubscribeToAll(ctx, s.options(after))
		if err != nil {
			return err
		}
		defer func() { _ = subscription.Close() }()
		for {
			switch got := subscription.Recv(); {
			case got.SubscriptionDropped != nil:
				return got.SubscriptionDropped.Error
			case got.EventAppeared != nil:
				e := recordedOf(got.EventAppeared.OriginalEvent())
				if !put(arrival{event: &e, through: e.Position}) {
					return ctx.Err()
				}
			case got.CheckPointReached != nil:
				if !put(arrival{through: event.Position{Commit: got.CheckPointReached.Commit, Prepare: got.CheckPointReached.Prepare}}) {
					return ctx.Err()
				}
			case got.CaughtUp != nil:
				if !put(arrival{caughtUp: true}) {
					return ctx.Err()
				}
			}
		}
	})
	if err == nil {
		err = errors.New("the subscription ended")
	}
	put(arrival{err: err})
}

func (s *Subscriber) options(after event.Position) esdb.SubscribeToAllOptions {
	filter := esdb.ExcludeSystemEventsFilter()
	if len(s.config.Types) > 0 {
		names := make([]string, len(s.config.Types))
		for i, t := range s.config.Types {
			names[i] = regexp.QuoteMeta(t)
		}
		filter = &esdb.SubscriptionFilter{Type: esdb.EventFilterType, Regex: "^(?:" + strings.Join(names, "|") + ")$"}
	}
	options := esdb.SubscribeToAllOptions{From: esdb.Start{}, Filter: filter, MaxSearchWindow: searchWindow, CheckpointInterval: 1}
	if !after.IsZero() {
		options.From = esdb.Position{Commit: after.Commit, Prepare: after.Prepare}
	}
	return options
}

// hold runs a subscription on a client; a client whose subscription broke is not used for others that begin later if the store is away.
func (l *link) hold(ctx context.Context, run func(*esdb.Client) error) error {
	c, err := l.acquire(ctx)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		err := run(c.client)
		l.release(c, err)
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pause waits before try number failures+2, or until ctx ends. The jitter keeps many subscribers from coming back at the same moment.
func pause(ctx context.Context, failures int) {
	wait := min(retryMin<<min(failures, 16), retryMax)
	timer := time.NewTimer(wait/2 + rand.N(wait/2))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
