package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/musique/musique/domain/event"
)

const (
	// maxWait bounds WaitFor where its context does not.
	maxWait = 5 * time.Second
	// resyncEvery is how often the positions are read anew, so that a connection that died in silence is found.
	resyncEvery = 10 * time.Second
	// connectTimeout bounds the opening of a connection of our own and what is asked on it before it is used.
	connectTimeout = 5 * time.Second
	// A connection that broke is opened again after a pause that doubles from reconnectMin to reconnectMax.
	reconnectMin = 50 * time.Millisecond
	reconnectMax = 2 * time.Second
)

// ErrBehind says that a projection did not pass a position in time.
var ErrBehind = errors.New("the read model is behind")

// Positions knows, in any process, how far each projection is. It listens on a connection of its own.
type Positions struct {
	pool *pgxpool.Pool
	log  *slog.Logger

	mu    sync.Mutex
	known map[string]*following
}

// following is one projection's position and those who wait for it.
type following struct {
	position event.Position // zero while it is not known
	waiters  map[*waiter]struct{}
}

type waiter struct {
	position event.Position
	passed   chan struct{}
}

// NewPositions makes positions that know nothing until Run is called.
func NewPositions(pool *pgxpool.Pool, log *slog.Logger) *Positions {
	return &Positions{pool: pool, log: log, known: map[string]*following{}}
}

// Run listens until ctx ends, and connects again whenever the connection breaks. It returns the cause of ctx's end.
func (p *Positions) Run(ctx context.Context) error {
	for failures := 0; ; failures++ {
		began := time.Now()
		err := p.listen(ctx)
		p.forget()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if time.Since(began) > resyncEvery {
			failures = 0
		}
		p.log.Warn("the projections' positions cannot be listened to; connecting again", "error", err)
		pause(ctx, failures)
	}
}

// pause waits before another try, longer after each failure, or until ctx ends. The jitter keeps processes that failed together apart.
func pause(ctx context.Context, failures int) {
	wait := min(reconnectMin<<min(failures, 16), reconnectMax)
	select {
	case <-time.After(wait/2 + rand.N(wait/2)): //nolint:gosec // no secret
	case <-ctx.Done():
	}
}

func (p *Positions) listen(ctx context.Context) error {
	conn, err := connect(ctx, p.pool, nil)
	if err != nil {
		return err
	}
	defer disconnect(conn)
	// Listening begins before the positions are read, so that no move falls between the two.
	if _, err := conn.Exec(ctx, "LISTEN projection"); err != nil {
		return err
	}
	for {
		if err := p.read(ctx, conn); err != nil {
			return err
		}
		if err := p.follow(ctx, conn); err != nil {
			return err
		}
	}
}

// follow takes notifications for resyncEvery.
func (p *Positions) follow(ctx context.Context, conn *pgx.Conn) error {
	quiet, cancel := context.WithTimeout(ctx, resyncEvery)
	defer cancel()
	for {
		got, err := conn.WaitForNotification(quiet)
		if err != nil {
			if quiet.Err() != nil && ctx.Err() == nil && !conn.IsClosed() {
				return nil
			}
			return err
		}
		var name string
		var position event.Position
		if _, err := fmt.Sscanf(got.Payload, "%s %d %d", &name, &position.Commit, &position.Prepare); err != nil {
			return fmt.Errorf("notification %q: %w", got.Payload, err)
		}
		p.moved(name, position)
	}
}

func (p *Positions) read(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	rows, err := conn.Query(ctx, "SELECT projection, commit_position, prepare_position FROM projections.checkpoint")
	if err != nil {
		return err
	}
	var name string
	var position event.Position
	_, err = pgx.ForEachRow(rows, []any{&name, &position.Commit, &position.Prepare}, func() error {
		p.moved(name, position)
		return nil
	})
	return err
}

// moved notes a position and wakes those whom it was waited for by. It may go back: a server that crashed can lose its newest pages, which are then
// applied again.
func (p *Positions) moved(name string, position event.Position) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.of(name)
	f.position = position
	for w := range f.waiters {
		if !position.Before(w.position) {
			close(w.passed)
			delete(f.waiters, w)
		}
	}
}

// forget makes all positions unknown; who waits goes on waiting.
func (p *Positions) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.known {
		f.position = event.Position{}
	}
}

func (p *Positions) of(name string) *following {
	f, ok := p.known[name]
	if !ok {
		f = &following{waiters: map[*waiter]struct{}{}}
		p.known[name] = f
	}
	return f
}

// WaitFor returns when each of the projections has passed the position: then every process reads what was written there. It waits until ctx ends, but
// at most 5 s. Errors: ErrBehind.
//
// A projection passes events that it does not follow too, some 100 ms later.
func (p *Positions) WaitFor(ctx context.Context, position event.Position, projections ...string) error {
	ctx, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	for _, name := range projections {
		if err := p.waitFor(ctx, position, name); err != nil {
			return err
		}
	}
	return nil
}

func (p *Positions) waitFor(ctx context.Context, position event.Position, name string) error {
	p.mu.Lock()
	f := p.of(name)
	if !f.position.Before(position) {
		p.mu.Unlock()
		return nil
	}
	w := &waiter{position, make(chan struct{})}
	f.waiters[w] = struct{}{}
	p.mu.Unlock()
	select {
	case <-w.passed:
		return nil
	case <-ctx.Done():
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(f.waiters, w)
		return fmt.Errorf("%s has not passed %d: %w (%w)", name, position.Commit, ErrBehind, context.Cause(ctx))
	}
}

// connect opens a connection of our own, outside the pool, with settings of its own.
func connect(ctx context.Context, pool *pgxpool.Pool, settings map[string]string) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	config := pool.Config().ConnConfig
	for name, value := range settings {
		config.RuntimeParams[name] = value
	}
	return pgx.ConnectConfig(ctx, config)
}

// disconnect closes a connection, politely if it can be done at once.
func disconnect(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // it is given up either way
}
