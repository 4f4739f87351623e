package eventstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"
)

const (
	// connectPatience is how long a call waits for a store that is away.
	connectPatience = 2 * time.Second
	// probeTimeout bounds one try to reach the store.
	probeTimeout = 2 * time.Second
	// The pause between two tries doubles from reconnectMin to reconnectMax.
	reconnectMin = 50 * time.Millisecond
	reconnectMax = time.Second
)

// link holds a client that has answered, and replaces it when it stops answering. The official client gives up for good when it could not find
// a node (every later call answers "connection closed"), and calls that were on their way then can hang; so a client is dropped at its first
// "unavailable", and a new one takes its place as soon as the store answers it.
type link struct {
	config *esdb.Configuration
	log    *slog.Logger
	stop   chan struct{}

	mu      sync.Mutex
	current *connection
	up      chan struct{} // closed once current is there
	closed  bool
}

// connection is one client and the calls that use it. It is closed when the last of them is over: closing it earlier would make them panic.
type connection struct {
	client  *esdb.Client
	calls   int
	retired bool
}

func newLink(config *esdb.Configuration, log *slog.Logger) *link {
	config.MaxDiscoverAttempts = 1 // link repeats, with pauses, and notices Close
	l := &link{config: config, log: log, stop: make(chan struct{}), up: make(chan struct{})}
	go l.connect()
	return l
}

// do runs one call on a client that has answered before. It returns when the call or ctx is over, whichever is first.
func (l *link) do(ctx context.Context, call func(context.Context, *esdb.Client) error) error {
	c, err := l.acquire(ctx)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		err := call(ctx, c.client)
		l.release(c, err)
		done <- err
	}()
	select {
	case err := <-done:
		return classify(err)
	case <-ctx.Done():
		// The client does not heed ctx while it looks for a node.
		select {
		case err := <-done:
			return classify(err)
		default:
			return fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
		}
	}
}

// classify maps the client's errors to the package's.
func classify(err error) error {
	var known *esdb.Error
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &known):
		// The client reports a connection that broke amid sending as a bare error.
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	switch known.Code() {
	case esdb.ErrorCodeWrongExpectedVersion:
		return fmt.Errorf("%w: %w", ErrConflict, err)
	case esdb.ErrorUnavailable, esdb.ErrorCodeConnectionClosed, esdb.ErrorCodeDeadlineExceeded, esdb.ErrorAborted, esdb.ErrorCodeNotLeader, esdb.ErrorCodeUnknown:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	default:
		return err
	}
}

func (l *link) acquire(ctx context.Context) (*connection, error) {
	patience := time.NewTimer(connectPatience)
	defer patience.Stop()
	for {
		l.mu.Lock()
		if l.closed {
			l.mu.Unlock()
			return nil, fmt.Errorf("%w: closed", ErrUnavailable)
		}
		if c := l.current; c != nil {
			c.calls++
			l.mu.Unlock()
			return c, nil
		}
		up := l.up
		l.mu.Unlock()
		select {
		case <-up:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
		case <-patience.C:
			return nil, fmt.Errorf("%w: no answer in %v", ErrUnavailable, connectPatience)
		case <-l.stop:
		}
	}
}

// release ends a call. A client that said "unavailable" is retired, and a search for a new one begins.
func (l *link) release(c *connection, err error) {
	var known *esdb.Error
	gone := errors.As(err, &known) && (known.Code() == esdb.ErrorUnavailable || known.Code() == esdb.ErrorCodeConnectionClosed)
	l.mu.Lock()
	c.calls--
	if gone && l.current == c && !l.closed {
		l.current, c.retired = nil, true
		l.up = make(chan struct{})
		go l.connect()
	}
	over := c.retired && c.calls == 0
	l.mu.Unlock()
	if over {
		_ = c.client.Close() // it always returns nil
	}
}

// connect tries until the store answers a new client.
func (l *link) connect() {
	pause := reconnectMin
	for warned := false; ; {
		client, err := l.try()
		if err == nil {
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.closed {
				_ = client.Close()
				return
			}
			l.current = &connection{client: client}
			close(l.up)
			if warned {
				l.log.Info("the event store is back")
			}
			return
		}
		if !warned {
			l.log.Warn("the event store is away; trying until it is back", "error", err)
			warned = true
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, reconnectMax)
		case <-l.stop:
			return
		}
	}
}

func (l *link) try() (*esdb.Client, error) {
	config := *l.config
	client, err := esdb.NewClient(&config)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- probe(ctx, client) }()
	select {
	case err = <-done:
		if err == nil {
			return client, nil
		}
		_ = client.Close()
	case <-ctx.Done():
		err = ctx.Err()
		go func() { <-done; _ = client.Close() }()
	case <-l.stop:
		err = errors.New("closed")
		go func() { <-done; _ = client.Close() }()
	}
	return nil, err
}

func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.closed = true
	close(l.stop)
	if c := l.current; c != nil {
		l.current, c.retired = nil, true
		if c.calls == 0 {
			_ = c.client.Close()
		}
	}
}
