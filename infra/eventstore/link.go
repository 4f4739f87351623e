package eventstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// connectPatience is how long after the store went away calls still wait for it. Later ones are refused at once.
	connectPatience = 2 * time.Second
	// probeTimeout bounds one try to reach the store.
	probeTimeout = 2 * time.Second
	// The pause between two tries doubles from backoffMin to reconnectMax.
	reconnectMax = time.Second
	// retireGrace is how long calls that began on a client that was replaced may still take.
	retireGrace = readTimeout
	// closeGrace is how long calls may take to notice that the Store is closed.
	closeGrace = time.Second
)

var (
	// errNotSent is in the errors of calls that ended before the store could have seen them.
	errNotSent = errors.New("not sent")
	// errClosed is what ends calls when the Store is closed.
	errClosed = fmt.Errorf("%w: closed", ErrUnavailable)
	// errSilent is what ends a read when the store stopped sending.
	errSilent = fmt.Errorf("%w: silent for %v", ErrUnavailable, silenceTimeout)
)

// link holds a client that has answered, and replaces it when it stops answering. What the official client (v4.2.0) does when a node goes away
// makes that necessary: its first call that gets "unavailable" makes the next one look for a node again, and
//
//   - if it finds none in MaxDiscoverAttempts, every later call answers "connection closed", for good;
//   - calls that get "unavailable" after that wait forever to tell the client's own goroutine, which has ended;
//   - whether it finds one or not, the connection it had is not closed.
//
// So a client is retired before it looks for a node again, and a new one takes its place when the store answers it. Two things make the
// "before" hold: the client logs the error of a call, in that call, before it acts on it (logged), and until then each call has
// touched its context as soon as it was given the connection (startContext). The retired client is closed when its calls are over.
// Where that does not come (the client of a cluster can lose the leader that it was sent to), it is closed all the same after retireGrace: then
// calls that wait forever panic, and run turns that into an error.
type link struct {
	metrics
	config *esdb.Configuration
	log    *slog.Logger
	ctx    context.Context // over when the link is closed
	cancel context.CancelCauseFunc
	wait   sync.WaitGroup // calls, and the search for a client

	mu      sync.Mutex
	all     map[*connection]struct{} // that are not closed
	current *connection              // nil while the store is away
	up      chan struct{}            // closed once current is there
	away    time.Time                // since when current is nil
	reason  error                    // of the last try that failed
	lost    int                      // connections that were taken out of use
}

// connection is one client and the calls that use it.
type connection struct {
	client   *esdb.Client
	calls    int
	starting sync.WaitGroup // calls that the client has not given its gRPC connection yet
	grace    *time.Timer
	closed   atomic.Bool
}

// startContext tells when it is first asked for its deadline. The client does that in every call right after it has its gRPC connection.
type startContext struct {
	context.Context
	started func()
}

func (c startContext) Deadline() (time.Time, bool) {
	c.started()
	return c.Context.Deadline()
}

func newLink(config *esdb.Configuration, log *slog.Logger) *link {
	// link repeats with pauses of its own and notices being closed; the client does neither.
	config.MaxDiscoverAttempts = 1
	config.DiscoveryInterval = 1 // ms; the client sleeps it after its last attempt too
	config.GossipTimeout = min(config.GossipTimeout, int(probeTimeout/time.Second))
	ctx, cancel := context.WithCancelCause(context.Background())
	l := &link{metrics: newMetrics(), config: config, log: log, ctx: ctx, cancel: cancel, all: map[*connection]struct{}{}, up: make(chan struct{}), away: time.Now(), reason: errors.New("it has not answered yet")}
	l.wait.Go(l.connect)
	return l
}

// call runs f on a client that has answered before. It returns when f or ctx is over, whichever is first: the client does not heed a context
// while it looks for a node. Errors are the package's own where it has one.
func call[T any](ctx context.Context, l *link, f func(context.Context, *esdb.Client) (T, error)) (T, error) {
	var none T
	c, err := l.acquire(ctx)
	if err != nil {
		return none, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(l.ctx, func() { cancel(errClosed) })()
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		defer l.wait.Done()
		started := sync.OnceFunc(c.starting.Done)
		value, err := run(startContext{ctx, started}, c, f)
		started()
		l.release(c, err)
		done <- result{value, err}
	}()
	var r result
	select {
	case r = <-done:
	case <-ctx.Done():
		select {
		case r = <-done:
		default:
			r = result{none, ctx.Err()}
		}
	}
	if r.err != nil {
		return none, classify(ctx, r.err)
	}
	return r.value, nil
}

// run calls f and turns the panic of a client that was closed amid the call into an error.
func run[T any](ctx context.Context, c *connection, f func(context.Context, *esdb.Client) (T, error)) (value T, err error) {
	defer func() {
		if !c.closed.Load() {
			return // any other panic goes its way
		}
		if p := recover(); p != nil {
			err = fmt.Errorf("client closed amid the call: %v", p)
		}
	}()
	return f(ctx, c.client)
}

// classify maps the client's errors to the package's. ctx is the call's: what ended it says whether the store or the caller gave up.
func classify(ctx context.Context, err error) error {
	var known *esdb.Error
	if errors.As(err, &known) && known.Code() == esdb.ErrorCodeWrongExpectedVersion {
		return fmt.Errorf("%w: %w", ErrConflict, err)
	}
	if refused(err) {
		return err
	}
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, ErrUnavailable): // errClosed, errSilent
		return cause
	case cause != nil && !errors.Is(cause, context.DeadlineExceeded):
		return cause // the caller went away; it says nothing of the store
	default:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
}

// refused tells errors with which the store decided from those that leave open what it did: a call that it could not finish, a connection that
// broke (which the client reports as a bare io.EOF when it was sending), a deadline.
func refused(err error) bool {
	var known *esdb.Error
	if errors.As(err, &known) {
		switch known.Code() {
		case esdb.ErrorCodeConnectionClosed, esdb.ErrorCodeNotLeader:
			return false
		case esdb.ErrorCodeResourceNotFound, esdb.ErrorCodeStreamDeleted:
			return true
		}
	}
	answer, ok := status.FromError(err)
	if !ok {
		return false
	}
	switch answer.Code() {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Aborted, codes.Canceled, codes.Unknown, codes.Internal:
		return false
	default:
		return true
	}
}

// acquire gives the client and counts the call; release ends it.
func (l *link) acquire(ctx context.Context) (*connection, error) {
	for {
		l.mu.Lock()
		if l.ctx.Err() != nil {
			l.mu.Unlock()
			return nil, fmt.Errorf("%w: %w", errClosed, errNotSent)
		}
		if c := l.current; c != nil {
			c.calls++
			c.starting.Add(1)
			l.wait.Add(1)
			l.mu.Unlock()
			return c, nil
		}
		up, reason, patience := l.up, l.reason, time.Until(l.away.Add(connectPatience))
		l.mu.Unlock()
		if patience <= 0 {
			return nil, fmt.Errorf("%w: %w: %w", ErrUnavailable, errNotSent, reason)
		}
		timer := time.NewTimer(patience)
		select {
		case <-up:
		case <-timer.C:
		case <-l.ctx.Done():
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("%w: %w", classify(ctx, ctx.Err()), errNotSent)
		}
		timer.Stop()
	}
}

// connected waits until a client is there, however long that takes.
func (l *link) connected(ctx context.Context) error {
	for {
		l.mu.Lock()
		here, up := l.current != nil, l.up
		l.mu.Unlock()
		if here {
			return nil
		}
		select {
		case <-up:
		case <-l.ctx.Done():
			return errClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// state is what metrics tell.
func (l *link) state() (up, calls, lost float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current != nil {
		up = 1
	}
	for c := range l.all {
		calls += float64(c.calls)
	}
	return up, calls, float64(l.lost)
}

// release ends a call.
func (l *link) release(c *connection, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.calls--
	if gone(err) {
		l.retire(c, err)
	}
	if c.calls == 0 && l.current != c {
		l.closeConnection(c)
	}
}

// logged gets what the client logs. An "unavailable" that it logs as an error retires it, and keeps the call that logs it from going on until
// all others that began have their connection.
func (l *link) logged(c *connection, level esdb.LogLevel, format string, args []any) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug("event store client", "message", fmt.Sprintf(format, args...))
	}
	if level != esdb.LogError || len(args) != 1 {
		return
	}
	err, ok := args[0].(error)
	if !ok || status.Code(err) != codes.Unavailable {
		return
	}
	l.mu.Lock()
	l.retire(c, err)
	l.mu.Unlock()
	c.starting.Wait()
}

// retire takes a client out of use, and begins the search for a new one. l.mu is held.
func (l *link) retire(c *connection, reason error) {
	if l.current != c || l.ctx.Err() != nil {
		return
	}
	l.current, l.up, l.away, l.reason = nil, make(chan struct{}), time.Now(), reason
	l.lost++
	c.grace = time.AfterFunc(retireGrace, func() { l.mu.Lock(); defer l.mu.Unlock(); l.closeConnection(c) })
	l.wait.Go(l.connect)
}

func gone(err error) bool {
	var known *esdb.Error
	if errors.As(err, &known) && (known.Code() == esdb.ErrorUnavailable || known.Code() == esdb.ErrorCodeConnectionClosed) {
		return true
	}
	return status.Code(err) == codes.Unavailable // of a subscription, which reports it bare
}

// closeConnection closes a client once. l.mu is held.
func (l *link) closeConnection(c *connection) {
	if c.closed.Swap(true) {
		return
	}
	if c.grace != nil {
		c.grace.Stop()
	}
	delete(l.all, c)
	_ = c.client.Close() // it always returns nil
}

// connect tries until the store answers a new client.
func (l *link) connect() {
	for failures := 0; ; failures++ {
		err := l.try()
		if err == nil {
			if failures > 0 {
				l.log.Info("the event store answers", "failed_tries", failures)
			}
			return
		}
		if l.ctx.Err() != nil {
			return
		}
		l.mu.Lock()
		l.reason = err
		l.mu.Unlock()
		if failures == 0 {
			l.log.Warn("the event store is away; trying until it is back", "error", err)
		}
		backoff(l.ctx, failures, reconnectMax)
	}
}

// try makes a client current if the store answers it.
func (l *link) try() error {
	c := &connection{}
	config := *l.config
	config.Logger = func(level esdb.LogLevel, format string, args ...any) { l.logged(c, level, format, args) }
	var err error
	if c.client, err = esdb.NewClient(&config); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(l.ctx, probeTimeout)
	defer cancel()
	// The client's search for a node is bounded by its GossipTimeout, so this takes at most that longer than ctx.
	_, err = run(ctx, c, newest)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		err = l.ctx.Err()
	}
	if err != nil {
		l.closeConnection(c)
		return err
	}
	l.all[c], l.current = struct{}{}, c
	close(l.up)
	return nil
}

// close ends all calls, waits for them and closes the clients: each when its calls are over, or after closeGrace.
func (l *link) close() {
	l.cancel(errClosed)
	closeAll := func(atOnce bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.current = nil
		for c := range l.all {
			if atOnce || c.calls == 0 {
				l.closeConnection(c)
			}
		}
	}
	closeAll(false)
	defer time.AfterFunc(closeGrace, func() { closeAll(true) }).Stop()
	l.wait.Wait()
}
