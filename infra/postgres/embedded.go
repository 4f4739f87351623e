package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// startTimeout bounds one start, recovery after a crash included.
	startTimeout = 60 * time.Second
	// stopTimeout bounds an orderly stop; then the server is ended at once, and recovers at its next start.
	stopTimeout = 15 * time.Second
	// startAttempts is how often a start is tried: another program may take the free port first, and the processes of a server that was killed
	// may still hold its memory.
	startAttempts = 5
	// The pause before the next attempt, and before a server that died is started again, doubles from restartMin to restartMax.
	restartMin = 100 * time.Millisecond
	restartMax = 5 * time.Second
	// lockPatience is how long the lock of a folder is waited for.
	lockPatience = time.Second

	embeddedUser = "musique"
)

// EmbeddedOptions say how to run an embedded server.
type EmbeddedOptions struct {
	// Dir is the server's folder; it is made if it is not there. One program at a time can use it.
	Dir string
	// Port is the TCP port on 127.0.0.1; 0 takes a free one.
	Port int
	// Disposable leaves out every sync to the disk, and removes Dir when the server is stopped or this program ends: for tests.
	Disposable bool
	// Log gets what an operator should know. Default: nothing.
	Log *slog.Logger
}

// Embedded is a PostgreSQL server that runs as a child of this program, goes down with it (even if it is killed), and is started again on the same
// port if it dies alone. It listens on 127.0.0.1 only, and asks for a password that only this program's user can read.
type Embedded struct {
	options  EmbeddedOptions
	programs string // the folder of PostgreSQL's programs
	account  account
	password string
	port     int
	lock     *os.File
	cluster  *os.File // the folder with the data, for the server to inherit
	stranger int      // the process that has the number of a server that is gone, or 0

	ctx    context.Context // ends when Stop is called
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	current *server
}

// StartEmbedded starts a server on the data in o.Dir, made first if there is none. It uses the machine's own PostgreSQL programs where there
// are some, and fetches them otherwise. Started by root, the server runs under an unprivileged user, since PostgreSQL refuses root.
// It returns when the server answers; ctx bounds the start only.
func StartEmbedded(ctx context.Context, o EmbeddedOptions) (_ *Embedded, err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, fmt.Errorf("embedded PostgreSQL: %w", err)
	}
	e := &Embedded{options: o, port: o.Port, done: make(chan struct{})}
	defer func() {
		if err != nil {
			e.release()
		}
	}()
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("embedded PostgreSQL: %w", err)
	}
	if e.lock, err = lockDir(ctx, o.Dir); err != nil {
		return nil, err
	}
	if e.account, err = accountFor(e.clusterDir()); err != nil {
		return nil, err
	}
	if e.programs, err = findPrograms(ctx, e.dataDir(), o.Log); err != nil {
		return nil, err
	}
	if err := e.openCluster(); err != nil {
		return nil, err
	}
	if err := e.initialise(ctx); err != nil {
		return nil, err
	}
	if err := e.endLeftover(ctx); err != nil {
		return nil, err
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	if e.current, err = e.firstStart(ctx); err != nil {
		e.cancel()
		return nil, err
	}
	go e.supervise() //nolint:gosec // it outlives the start, which ctx bounds
	return e, nil
}

// URL is what clients connect with. It stays the same until Stop.
func (e *Embedded) URL() string {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(embeddedUser, e.password), Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(e.port)),
		Path: "/postgres", RawQuery: "sslmode=disable",
	}
	return u.String()
}

// Done is closed when the server has been stopped for good. A server that dies does not end it: it is started again.
func (e *Embedded) Done() <-chan struct{} { return e.done }

// Stop ends the server: in an orderly way, or at once when ctx ends or the server takes longer than 15 seconds. No data is lost either way.
func (e *Embedded) Stop(ctx context.Context) error {
	e.cancel()
	e.mu.Lock()
	current := e.current
	e.mu.Unlock()
	err := current.stop(ctx)
	select {
	case <-e.done:
		return err
	case <-ctx.Done():
		return errors.Join(err, ctx.Err())
	}
}

// firstStart tries a few times, each time on another port if any is right.
func (e *Embedded) firstStart(ctx context.Context) (*server, error) {
	pause := restartMin
	for attempt := 1; ; attempt++ {
		if e.options.Port == 0 {
			port, err := freePort(ctx)
			if err != nil {
				return nil, fmt.Errorf("embedded PostgreSQL: %w", err)
			}
			e.port = port
		}
		started, err := e.start(ctx)
		if err == nil || attempt == startAttempts {
			return started, err
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, restartMax)
		case <-ctx.Done():
			return nil, err
		}
	}
}

// supervise starts the server again whenever it died without being asked to, for as long as it takes: what keeps it from starting may end
// by itself (a full disk) or by an operator's hand.
func (e *Embedded) supervise() {
	defer close(e.done)
	defer e.release()
	for {
		<-e.current.ended
		if e.ctx.Err() != nil {
			return
		}
		e.options.Log.Error("the embedded PostgreSQL died; starting it again", "error", e.current.err, "output", e.current.output.String())
		next := e.restart()
		if next == nil {
			return
		}
		e.mu.Lock()
		e.current = next
		e.mu.Unlock()
		if e.ctx.Err() != nil { // Stop may have asked the one before
			if err := next.stop(context.Background()); err != nil {
				e.options.Log.Error("stop the embedded PostgreSQL", "error", err)
			}
			return
		}
		e.options.Log.Info("the embedded PostgreSQL runs again")
	}
}

// restart tries until the server runs, or answers nil when Stop was called.
func (e *Embedded) restart() *server {
	pause := restartMin
	for {
		select {
		case <-time.After(pause):
		case <-e.ctx.Done():
			return nil
		}
		err := e.endLeftover(e.ctx)
		if err == nil {
			var started *server
			if started, err = e.start(e.ctx); err == nil {
				return started
			}
		}
		if e.ctx.Err() != nil {
			return nil
		}
		pause = min(2*pause, restartMax)
		e.options.Log.Error("the embedded PostgreSQL does not start; trying again", "error", err, "in", pause)
	}
}

// release gives up the folder. The server has ended.
func (e *Embedded) release() {
	if e.cluster != nil {
		e.cluster.Close()
	}
	if e.lock == nil {
		return
	}
	if e.options.Disposable {
		if err := os.RemoveAll(e.options.Dir); err != nil {
			e.options.Log.Warn("remove the embedded PostgreSQL's folder", "error", err)
		}
	}
	e.lock.Close()
}

// answers asks the server for a connection, which is the proof that it is ready.
func (e *Embedded) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, e.URL())
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// lockDir makes sure that one program at a time uses the folder. The lock goes with the process, however it ends: a moment later where it was killed while it
// started a program of PostgreSQL, which has the lock until it has become that program. So it is asked for again for a while.
func lockDir(ctx context.Context, dir string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("embedded PostgreSQL: %w", err)
	}
	giveUp := time.After(lockPatience)
	for syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		select {
		case <-time.After(lockPatience / 50):
			continue
		case <-giveUp:
		case <-ctx.Done():
		}
		lock.Close()
		return nil, fmt.Errorf("another program runs PostgreSQL on %s; stop it or choose another data folder", dir)
	}
	return lock, nil
}

func freePort(ctx context.Context) (int, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port, nil
}
