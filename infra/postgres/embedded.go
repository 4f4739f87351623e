package postgres

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
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
	// leftoverTimeout bounds the wait for a server that outlived its program.
	leftoverTimeout = 10 * time.Second
	// pollEvery is how often a start asks whether the server answers yet.
	pollEvery = 10 * time.Millisecond
	// The pause before a server that died is started again doubles from restartMin to restartMax.
	restartMin = 100 * time.Millisecond
	restartMax = 5 * time.Second
	// startAttempts is how often a free port is tried: another program may take it first.
	startAttempts = 3
	// keptOutput is how much of the server's last output an error shows.
	keptOutput = 4 << 10

	embeddedUser = "musique"
)

// watchdog runs the server and ends it when this program ends, however that happens: file descriptor 3 is a pipe that only this program can
// write to. A line on it asks for an orderly stop, its end for an immediate one. The shell is the smallest thing that every machine has, works
// for test binaries too, and runs under the server's own user.
const watchdog = `"$@" 3<&- & server=$!
{ if read -r word <&3; then kill -INT $server; cat <&3 >/dev/null; fi; kill -QUIT $server; } 2>/dev/null & watch=$!
wait $server; status=$?
kill $watch 2>/dev/null
exit $status`

// EmbeddedOptions say where an embedded server keeps its data.
type EmbeddedOptions struct {
	// Dir is the server's folder; it is made if it is not there. One program at a time can use it.
	Dir string
	// Port is the TCP port on 127.0.0.1; 0 takes a free one.
	Port int
	// Disposable leaves out every sync to the disk: for tests, whose data nobody needs after a crash.
	Disposable bool
	// Log gets what an operator should know.
	Log *slog.Logger
}

// Embedded is a PostgreSQL server that runs as a child of this program, goes down with it, and is started again if it dies alone.
type Embedded struct {
	options  EmbeddedOptions
	binaries string
	account  account
	password string
	port     int
	lock     *os.File

	mu       sync.Mutex
	current  *server
	stopping bool
	done     chan struct{}
	ctx      context.Context
	cancel   context.CancelFunc
}

// StartEmbedded starts a server on the data in o.Dir, made first if there is none. It uses the machine's own PostgreSQL programs where there
// are some, and fetches them otherwise. Started by root, the server runs under an unprivileged user, since PostgreSQL refuses root.
func StartEmbedded(ctx context.Context, o EmbeddedOptions) (_ *Embedded, err error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	o.Dir = dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("embedded PostgreSQL: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	binaries, err := findBinaries(ctx, o.Log)
	if err != nil {
		return nil, err
	}
	account, err := accountFor(dir)
	if err != nil {
		return nil, err
	}
	e := &Embedded{options: o, binaries: binaries, account: account, lock: lock, port: o.Port, done: make(chan struct{})}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	if err := e.initialise(ctx); err != nil {
		return nil, err
	}
	if err := endLeftover(ctx, e.data(), o.Log); err != nil {
		return nil, err
	}
	for range startAttempts {
		if o.Port == 0 {
			if e.port, err = freePort(ctx); err != nil {
				return nil, err
			}
		}
		if e.current, err = e.start(ctx); err == nil {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	go e.supervise()
	return e, nil
}

// URL is what clients connect with.
func (e *Embedded) URL() string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword(embeddedUser, e.password), Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(e.port)), Path: "/postgres", RawQuery: "sslmode=disable"}
	return u.String()
}

// PID is the process of the server's watchdog, for tests and operators.
func (e *Embedded) PID() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.current.cmd.Process.Pid
}

// Stop ends the server in an orderly way.
func (e *Embedded) Stop() error {
	e.mu.Lock()
	if e.stopping {
		e.mu.Unlock()
		<-e.done
		return nil
	}
	e.stopping = true
	current := e.current
	e.mu.Unlock()
	e.cancel()
	err := current.stop()
	<-e.done
	return errors.Join(err, e.lock.Close())
}

// supervise starts the server again whenever it died without being asked to.
func (e *Embedded) supervise() {
	defer close(e.done)
	pause := restartMin
	for {
		<-e.current.ended
		e.mu.Lock()
		stopping := e.stopping
		e.mu.Unlock()
		if stopping {
			return
		}
		e.options.Log.Error("the embedded PostgreSQL died; starting it again", "output", e.current.output.String())
		for {
			select {
			case <-time.After(pause):
			case <-e.ctx.Done():
				return
			}
			next, err := e.start(e.ctx)
			if err == nil {
				e.mu.Lock()
				e.current = next
				stopping = e.stopping
				e.mu.Unlock()
				pause = restartMin
				if stopping {
					_ = next.stop() // Stop gave its own server's error already
					return
				}
				break
			}
			if e.ctx.Err() != nil {
				return
			}
			pause = min(2*pause, restartMax)
			e.options.Log.Error("the embedded PostgreSQL does not start", "error", err)
		}
	}
}

func (e *Embedded) data() string { return filepath.Join(e.options.Dir, "data") }

// initialise makes the database cluster where there is none. It is made beside its place and renamed, so a crash leaves nothing half done.
func (e *Embedded) initialise(ctx context.Context) error {
	passwordFile := filepath.Join(e.options.Dir, "password")
	raw, err := os.ReadFile(passwordFile)
	if errors.Is(err, os.ErrNotExist) {
		raw = []byte(hex.EncodeToString(randomBytes(24)))
		if err = os.WriteFile(passwordFile, raw, 0o600); err == nil {
			err = e.account.own(passwordFile)
		}
	}
	if err != nil {
		return fmt.Errorf("embedded PostgreSQL: %w", err)
	}
	e.password = string(raw)
	if _, err := os.Stat(filepath.Join(e.data(), "PG_VERSION")); err == nil {
		return nil
	}
	if half, err := filepath.Glob(filepath.Join(e.options.Dir, "making-*")); err == nil {
		for _, dir := range half {
			if err := os.RemoveAll(dir); err != nil {
				return fmt.Errorf("embedded PostgreSQL: %w", err)
			}
		}
	}
	making, err := os.MkdirTemp(e.options.Dir, "making-")
	if err != nil {
		return fmt.Errorf("embedded PostgreSQL: %w", err)
	}
	if err := e.account.own(making); err != nil {
		return err
	}
	args := []string{"-D", making, "-U", embeddedUser, "--pwfile", passwordFile, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"}
	if e.options.Disposable {
		args = append(args, "--no-sync")
	}
	cmd := exec.CommandContext(ctx, filepath.Join(e.binaries, "initdb"), args...) //nolint:gosec // the program is PostgreSQL's own
	cmd.Dir, cmd.SysProcAttr = "/", e.account.attributes() // the account may have no way to where this program is
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("embedded PostgreSQL: initdb: %w: %s", err, lastOf(out))
	}
	if err := os.Rename(making, e.data()); err != nil {
		return fmt.Errorf("embedded PostgreSQL: %w", err)
	}
	return nil
}

// server is one run of the PostgreSQL server.
type server struct {
	cmd    *exec.Cmd
	pipe   *os.File
	output *tail
	ended  chan struct{}
	err    error
}

func (e *Embedded) start(ctx context.Context) (*server, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer read.Close()
	s := &server{pipe: write, output: &tail{}, ended: make(chan struct{})}
	settings := []string{
		"listen_addresses=127.0.0.1",
		"port=" + strconv.Itoa(e.port),
		"unix_socket_directories=", // none: everything connects over loopback with the password
		"max_connections=100",
		"wal_level=minimal",
		"max_wal_senders=0",
		"max_wal_size=512MB",
		"log_min_messages=warning",
	}
	if e.options.Disposable {
		settings = append(settings, "fsync=off", "full_page_writes=off", "synchronous_commit=off")
	}
	args := []string{"-c", watchdog, "musique-postgres", filepath.Join(e.binaries, "postgres"), "-D", e.data()}
	for _, setting := range settings {
		args = append(args, "-c", setting)
	}
	// Not CommandContext: the server outlives the call that starts it.
	s.cmd = exec.Command("/bin/sh", args...) //nolint:gosec,noctx // see above; the arguments are our own
	s.cmd.ExtraFiles = []*os.File{read}
	s.cmd.Stdout, s.cmd.Stderr = s.output, s.output
	s.cmd.Dir, s.cmd.SysProcAttr = "/", e.account.attributes()
	if err := s.cmd.Start(); err != nil {
		write.Close()
		return nil, fmt.Errorf("embedded PostgreSQL: %w", err)
	}
	go func() {
		s.err = s.cmd.Wait()
		write.Close()
		close(s.ended)
	}()
	for {
		if err = e.answers(ctx); err == nil {
			return s, nil
		}
		select {
		case <-s.ended:
			return nil, fmt.Errorf("embedded PostgreSQL ended: %w: %s", s.err, s.output)
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("embedded PostgreSQL does not answer: %w", err), s.stop())
		case <-time.After(pollEvery):
		}
	}
}

func (e *Embedded) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, e.URL())
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

func (s *server) stop() error {
	if _, err := io.WriteString(s.pipe, "stop\n"); err != nil && !errors.Is(err, os.ErrClosed) && !errors.Is(err, syscall.EPIPE) {
		return fmt.Errorf("stop PostgreSQL: %w", err)
	}
	select {
	case <-s.ended:
		return nil
	case <-time.After(stopTimeout):
	}
	s.pipe.Close() // the watchdog ends it at once
	select {
	case <-s.ended:
		return nil
	case <-time.After(stopTimeout):
		return errors.New("PostgreSQL does not end")
	}
}

// lockDir makes sure that one program at a time uses the folder. The lock goes with the process, however it ends.
func lockDir(dir string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("embedded PostgreSQL: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("another program runs PostgreSQL on %s; stop it or choose another data folder", dir)
	}
	return lock, nil
}

// endLeftover waits for a server whose program was killed, and ends it if it does not end by itself. The caller has the folder's lock, so no
// living program of ours owns that server.
func endLeftover(ctx context.Context, data string, log *slog.Logger) error {
	raw, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if err != nil {
		return nil //nolint:nilerr // without the file there is no server
	}
	line, _, _ := strings.Cut(string(raw), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || pid <= 1 || !runsPostgres(pid) {
		return nil //nolint:nilerr // PostgreSQL itself clears away a stale file
	}
	log.Info("a PostgreSQL server of an earlier run is still there; waiting for its end", "pid", pid)
	deadline := time.NewTimer(leftoverTimeout)
	defer deadline.Stop()
	asked := time.NewTimer(time.Second)
	defer asked.Stop()
	for runsPostgres(pid) {
		select {
		case <-asked.C:
			_ = syscall.Kill(pid, syscall.SIGQUIT) // it may have just ended
		case <-deadline.C:
			return fmt.Errorf("PostgreSQL (process %d) of an earlier run does not end", pid)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollEvery):
		}
	}
	return nil
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

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // documented never to fail
	return b
}

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if len(t.buf) > keptOutput {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-keptOutput:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return lastOf(t.buf)
}

func lastOf(out []byte) string {
	out = bytes.TrimSpace(out)
	if len(out) > keptOutput {
		out = out[len(out)-keptOutput:]
	}
	return string(out)
}
