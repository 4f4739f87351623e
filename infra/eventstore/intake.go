package eventstore

import (
	"context"
	"sync"
	"time"

	"github.com/musique/musique/domain/event"
)

// intake is where a connection puts what it brings, and where the next page gathers while the one before is handled. It holds one page at most;
// beyond that the connection waits, and with it, by gRPC's flow control, the server.
type intake struct {
	maxEvents int
	hold      func(event.Recorded) bool // SubscriberConfig.Hold; nil holds nothing
	some      chan struct{}             // holds a token when there may be something to take
	room      chan struct{}             // holds a token when something was taken

	mu    sync.Mutex
	next  gathered
	bytes int
	held  time.Time // when the first event of next came, as long as all of them are to be held
	last  int       // events of the page that was taken last: a good guess for the next
}

// gathered is what came since the last take, in this order.
type gathered struct {
	page     Page
	caughtUp bool
	err      error // the connection is over
}

func newIntake(maxEvents int, hold func(event.Recorded) bool) *intake {
	return &intake{maxEvents: maxEvents, hold: hold, some: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

// event adds an event when there is room for it.
func (in *intake) event(ctx context.Context, e event.Recorded) error {
	for {
		in.mu.Lock()
		if !in.full() {
			first := len(in.next.page.Events) == 0
			switch {
			case in.hold == nil || !in.hold(e):
				in.held = time.Time{}
			case first:
				in.held = time.Now()
			}
			if in.next.page.Events == nil {
				in.next.page.Events = make([]event.Recorded, 0, max(in.last, 1))
			}
			in.next.page.Events = append(in.next.page.Events, e)
			in.next.page.Through = e.Position
			in.bytes += len(e.Data)
			told := in.held.IsZero() || first || in.full() // another that is held changes nothing for who waits
			in.mu.Unlock()
			if told {
				signal(in.some)
			}
			return nil
		}
		in.mu.Unlock()
		select {
		case <-in.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (in *intake) full() bool {
	return len(in.next.page.Events) >= in.maxEvents || in.bytes >= maxPageBytes
}

// holding is how much longer the events that have gathered are held; nothing else has come then.
func (in *intake) holding() time.Duration {
	if in.held.IsZero() || in.full() || in.next.caughtUp || in.next.err != nil {
		return 0
	}
	return time.Until(in.held.Add(gatherFor))
}

// moved notes that everything up to a position was seen.
func (in *intake) moved(through event.Position) {
	in.note(func(g *gathered) { g.page.Through = through })
}

// wentLive notes that everything that is in the store was seen.
func (in *intake) wentLive() { in.note(func(g *gathered) { g.caughtUp = true }) }

// end notes that nothing more comes.
func (in *intake) end(err error) { in.note(func(g *gathered) { g.err = err }) }

func (in *intake) note(change func(*gathered)) {
	in.mu.Lock()
	change(&in.next)
	in.mu.Unlock()
	signal(in.some)
}

// take gives what has gathered, as soon as it is more than a moved position; that alone is given at the next tick, and events that are to be held once they
// were for gatherFor.
func (in *intake) take(ctx context.Context, tick <-chan time.Time) (gathered, error) {
	for ticked := false; ; {
		in.mu.Lock()
		got, held := in.next, in.holding()
		if held <= 0 && (len(got.page.Events) > 0 || got.caughtUp || got.err != nil || ticked && !got.page.Through.IsZero()) {
			in.next, in.bytes, in.held, in.last = gathered{}, 0, time.Time{}, len(got.page.Events)
			in.mu.Unlock()
			signal(in.room)
			return got, nil //nolint:nilerr // the error is in what it gives, behind the last page
		}
		in.mu.Unlock()
		var over <-chan time.Time
		if held > 0 {
			over = time.After(held)
		}
		select {
		case <-in.some:
		case <-over:
		case <-tick:
			ticked = true
		case <-ctx.Done():
			return gathered{}, ctx.Err()
		}
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
