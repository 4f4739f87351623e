package httpapi

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/usage"
	"github.com/musique/musique/infra/eventstore"
)

const (
	// maxUsageWaiting bounds the requests that wait to be recorded; beyond it, with the event store away, new ones are counted as lost.
	maxUsageWaiting = 20_000
	// maxUsageBatch bounds the requests of one append, maxUsageAppends the appends that are under way at once, and usageGathering is how long requests are
	// gathered.
	maxUsageBatch   = 500
	maxUsageAppends = 16
	usageGathering  = 100 * time.Millisecond
	// usageRetry is the wait after an attempt that failed.
	usageRetry = 500 * time.Millisecond
	// usageAttempt bounds one attempt.
	usageAttempt = 10 * time.Second
	// maxUsageRefusals is how often a batch may be refused by an event store that is there. Then its requests are lost: they would hold up all others.
	maxUsageRefusals = 20
	// maxUserAgent, maxLoggedPath and maxMethod bound what is recorded of a caller's words, in bytes.
	maxUserAgent  = 256
	maxLoggedPath = 512
	maxMethod     = 32
)

// usageRecorder records the requests of partners beside the answers to them: an answer waits for no record. It holds what the event store does not
// take yet, and Close records the rest.
type usageRecorder struct {
	record func(context.Context, commands.RecordUsage) error
	lost   func(int)
	warn   func(error)

	mu      sync.Mutex
	waiting []commands.ServedRequest
	inHand  int // those that are being recorded
	closed  bool

	ctx    context.Context // ends when even the end has no more time
	giveUp context.CancelFunc

	wake chan struct{} // one request or more are waiting
	stop chan struct{} // closed by close
	done chan struct{} // closed when nothing more is recorded
}

func newUsageRecorder(record func(context.Context, commands.RecordUsage) error, lost func(int), warn func(error)) *usageRecorder {
	u := &usageRecorder{record: record, lost: lost, warn: warn, wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
	u.ctx, u.giveUp = context.WithCancel(context.Background())
	go u.run()
	return u
}

// add takes a request to be recorded.
func (u *usageRecorder) add(r commands.ServedRequest) {
	u.mu.Lock()
	if u.closed || len(u.waiting)+u.inHand >= maxUsageWaiting {
		u.mu.Unlock()
		u.lost(1)
		return
	}
	u.waiting = append(u.waiting, r)
	u.mu.Unlock()
	select {
	case u.wake <- struct{}{}:
	default: // it is awake
	}
}

func (u *usageRecorder) run() {
	defer close(u.done)
	defer u.giveUp()
	for {
		select {
		case <-u.wake:
		case <-u.stop:
		}
		u.pause(usageGathering)
		for batches := u.take(); len(batches) > 0; batches = u.take() {
			var recording errgroup.Group
			recording.SetLimit(maxUsageAppends)
			for _, batch := range batches {
				recording.Go(func() error {
					u.keep(batch)
					return nil
				})
			}
			_ = recording.Wait() // nothing of it fails
		}
		if u.stopped() {
			return
		}
	}
}

// take gives the next requests in batches, each of a stream of its own, so that they can be recorded beside each other: all or none of a batch, and
// each stream in order.
func (u *usageRecorder) take() [][]commands.ServedRequest {
	u.mu.Lock()
	defer u.mu.Unlock()
	var batches [][]commands.ServedRequest
	var rest []commands.ServedRequest
	at := map[string]int{}
	for _, r := range u.waiting {
		stream := streamOf(r)
		i, known := at[stream]
		if !known {
			i = len(batches)
			at[stream], batches = i, append(batches, nil)
		}
		if len(batches[i]) < maxUsageBatch {
			batches[i] = append(batches[i], r)
		} else {
			rest = append(rest, r)
		}
	}
	u.inHand = len(u.waiting) - len(rest)
	u.waiting = rest
	return batches
}

func streamOf(r commands.ServedRequest) string {
	return usage.Stream(r.Caller.CompanyID, r.Caller.Environment, r.Served.Timestamp)
}

// keep records a batch, however long the event store is away, until the end has come and the time for the end is over too.
func (u *usageRecorder) keep(batch []commands.ServedRequest) {
	for refusals := 0; ; {
		ctx, cancel := context.WithTimeout(u.ctx, usageAttempt)
		err := u.record(ctx, commands.RecordUsage{Requests: batch})
		cancel()
		if !errors.Is(err, eventstore.ErrUnavailable) {
			refusals++
		}
		switch {
		case err == nil:
			return
		case errors.Is(err, eventstore.ErrTooLarge) && len(batch) > 1:
			u.keep(batch[:len(batch)/2])
			u.keep(batch[len(batch)/2:])
			return
		case errors.Is(err, eventstore.ErrTooLarge), u.ctx.Err() != nil, refusals == maxUsageRefusals:
			u.warn(err)
			u.lost(len(batch))
			return
		}
		u.warn(err)
		select {
		case <-time.After(usageRetry):
		case <-u.ctx.Done():
		}
	}
}

// close records what is waiting and takes no more. It ends when all is recorded or ctx is over; what is not recorded then is lost.
func (u *usageRecorder) close(ctx context.Context) error {
	u.mu.Lock()
	if !u.closed {
		u.closed = true
		close(u.stop)
	}
	u.mu.Unlock()
	select {
	case <-u.done:
		return nil
	case <-ctx.Done():
		u.giveUp()
		<-u.done
		return fmt.Errorf("requests were not recorded in the usage logs: %w", context.Cause(ctx))
	}
}

// stopped reports whether close was called and nothing is waiting any more.
func (u *usageRecorder) stopped() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.closed && len(u.waiting) == 0
}

// pause waits, unless the end has come.
func (u *usageRecorder) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-u.stop:
	}
}

// recordUsage notes a request of a known company.
func (s *Server) recordUsage(c *call, took time.Duration) {
	if c.caller.TokenID == "" {
		return // a stranger, a player or an operator
	}
	s.usage.add(commands.ServedRequest{ID: uuid.New(), Caller: c.commandCaller(), Served: usage.ApiRequestServed{
		RequestID: c.id, Timestamp: c.begun.UTC().Truncate(time.Microsecond), Method: recordable(c.r.Method, maxMethod), Path: recordable(c.r.URL.Path, maxLoggedPath),
		Endpoint: c.endpoint(), Status: c.w.status, DurationMs: took.Milliseconds(), ExternalID: c.caller.ExternalID, TokenID: c.caller.TokenID,
		IP: c.from.String(), UserAgent: recordable(c.r.UserAgent(), maxUserAgent), ErrorCode: string(c.code),
	}})
}

// tokenShape is what every token of ours looks like: a prefix and 43 digits of base 62.
var tokenShape = regexp.MustCompile(`_[0-9A-Za-z]{43,}`)

// withoutTokens hides what looks like a token, which some callers put where it does not belong.
func withoutTokens(text string) string { return tokenShape.ReplaceAllString(text, "_…") }

// recordable is what is kept of a caller's words: no token, nor what is left of one that was cut, and a number of bytes at most.
func recordable(words string, most int) string { return clip(withoutTokens(words), most) }

// clip cuts a text to a number of bytes, and makes it UTF-8.
func clip(text string, most int) string {
	return strings.ToValidUTF8(text[:min(len(text), most)], "\uFFFD")
}
