package simulation

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/company"
	httpapi "github.com/musique/musique/http"
	"github.com/musique/musique/infra/blobs"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/kafka"
	"github.com/musique/musique/infra/keys"
	"github.com/musique/musique/infra/postgres"
	"github.com/musique/musique/projections"
	"github.com/musique/musique/workers"
	"github.com/musique/musique/workers/inbox"
)

// parts says where the parts are that server processes work with. The processes have nothing else in common.
type parts struct {
	Database, EventStore, Blobs, Secret string
	Brokers                             []string
	// Ahead is how far the simulated time is ahead of the real one at the start of the process.
	Ahead time.Duration
}

// clock is the simulated time. It passes as the real one does, and jumps ahead now and then.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) set(ahead time.Duration) { c.ahead.Store(int64(ahead)) }

// server is a running server process, in this process or in one of its own.
type server interface {
	// addresses are those of the partners and players, and of the operators.
	addresses() (partner, ops string)
	// jump moves its clock.
	jump(ahead time.Duration)
	// kill ends it at once, amid whatever it does. It returns when nobody can reach it any more.
	kill()
	// stop ends it in an orderly way.
	stop() error
}

// process is a server process in this one: all roles, wired as the program wires them.
type process struct {
	clock   clock
	pool    *pgxpool.Pool
	store   *eventstore.Store
	blobs   *blobs.Store
	api     *httpapi.Server
	servers []*http.Server
	urls    []string
	end     context.CancelFunc
	running errgroup.Group
	serving sync.WaitGroup
	after   sync.WaitGroup // what is still to be closed of one that was killed
}

func startProcess(p parts, log *slog.Logger) (_ *process, err error) {
	s := &process{}
	s.clock.set(p.Ahead)
	ctx, end := context.WithCancel(context.Background())
	s.end = end
	defer func() {
		if err != nil {
			s.kill()
		}
	}()
	if s.store, err = eventstore.Open(p.EventStore, log); err != nil {
		return nil, err
	}
	if s.pool, err = postgres.Connect(ctx, p.Database); err != nil {
		return nil, err
	}
	if s.blobs, err = blobs.Open(ctx, p.Blobs); err != nil {
		return nil, err
	}
	ring, err := keys.Open("", p.Secret)
	if err != nil {
		return nil, err
	}
	registry, plans := prometheus.NewRegistry(), company.DefaultPlans()
	positions, hub := projections.NewPositions(s.pool, log), inbox.NewHub(s.pool, log)
	reads := projections.NewReads(s.pool, positions)
	handlers := commands.New(commands.Deps{Store: s.store, Blobs: s.blobs, Keys: ring, Reads: reads, Plans: plans, Now: s.clock.now, Log: log})
	s.api, err = httpapi.New(httpapi.Config{
		Commands: handlers, Reads: reads, Pool: s.pool, Store: s.store, Blobs: s.blobs, Inbox: hub, Keys: ring, Plans: plans,
		Checks: httpapi.Checks{
			Database: s.pool.Ping, Storage: s.blobs.Ping, EventStore: s.store.Ping,
			Messaging: func(ctx context.Context) error { return kafka.Ping(ctx, p.Brokers) },
		},
		Version: "simulation", Registry: registry, Log: log, Now: s.clock.now,
	})
	if err != nil {
		return nil, err
	}
	deps := workers.Deps{Store: s.store, Pool: s.pool, Brokers: p.Brokers, Commands: handlers, Reads: reads, Blobs: s.blobs, Hub: hub, Now: s.clock.now, Log: log}
	scheduler, cleanup := workers.NewScheduler(deps), workers.NewCleanup(deps)
	for _, work := range []func(context.Context) error{
		positions.Run, hub.Run, projections.NewRunner(projections.RunnerConfig{Store: s.store, Pool: s.pool, Registry: registry, Log: log}).Run,
		workers.NewDispatch(deps).Run, workers.NewDelivery(deps).Run, workers.NewCloser(deps).Run, workers.NewCancellation(deps).Run, workers.NewSimulator(deps).Run,
		scheduler.Follow, scheduler.Run, workers.NewExpiry(deps).Run, cleanup.Follow, cleanup.Run,
	} {
		s.running.Go(func() error { return work(ctx) })
	}
	for _, handler := range []http.Handler{s.api.Partner(), s.api.Ops()} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		server := &http.Server{ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", s.clock.now().UTC().Format(http.TimeFormat)) // net/http would tell the real time
			handler.ServeHTTP(w, r)
		})}
		s.servers, s.urls = append(s.servers, server), append(s.urls, "http://"+listener.Addr().String())
		s.serving.Go(func() { _ = server.Serve(listener) }) // until it is closed
	}
	return s, nil
}

func (s *process) addresses() (partner, ops string) { return s.urls[0], s.urls[1] }

func (s *process) jump(ahead time.Duration) { s.clock.set(ahead) }

// kill takes from the process all that it could do something with: its connections break at once, amid requests and transactions. What goes on running
// fails at the next step that others could see.
func (s *process) kill() {
	s.end()
	for _, server := range s.servers {
		_ = server.Close() // it breaks connections, which is no failure here
	}
	background := func(do func()) { s.after.Go(do) }
	if s.store != nil {
		background(func() { _ = s.store.Close() })
	}
	if s.pool != nil {
		background(s.pool.Close)
	}
	background(func() { _ = s.running.Wait() })
	if s.api != nil {
		s.api.Drain()
		background(func() {
			dead, cancel := context.WithCancel(context.Background())
			cancel()
			_ = s.api.Close(dead)
		})
	}
}

// buried waits until nothing of a killed process runs any more.
func (s *process) buried() {
	s.after.Wait()
	s.serving.Wait()
	if s.blobs != nil {
		s.blobs.Close()
	}
}

// stopTimeout bounds an orderly end.
const stopTimeout = 30 * time.Second

func (s *process) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	s.api.Drain()
	var err error
	for _, server := range s.servers {
		err = errors.Join(err, server.Shutdown(ctx))
	}
	s.serving.Wait()
	err = errors.Join(err, s.api.Close(ctx))
	s.end()
	if ended := s.running.Wait(); ended != nil && !errors.Is(ended, context.Canceled) {
		err = errors.Join(err, ended)
	}
	s.pool.Close()
	return errors.Join(err, s.store.Close(), s.blobs.Close())
}

// asProcess makes the test binary a server process; it is where the parts are.
const asProcess = "MUSIQUE_SIMULATED_PROCESS"

// child is a server process of its own.
type child struct {
	cmd    *exec.Cmd
	orders io.WriteCloser
	stderr *transcript
	urls   []string
	ended  chan error
}

// startChild runs the test binary as a server process.
func startChild(p parts, stderr *transcript) (*child, error) {
	config, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	path, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{cmd: exec.Command(path), stderr: stderr, ended: make(chan error, 1)}
	// The race detector would let the process linger for a second.
	c.cmd.Env = append(os.Environ(), asProcess+"="+string(config), "GORACE=atexit_sleep_ms=0")
	c.cmd.Stderr = stderr
	if c.orders, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	go func() { c.ended <- c.cmd.Wait() }()
	if err == nil {
		err = json.Unmarshal([]byte(line), &c.urls)
	}
	if err != nil || len(c.urls) != 2 {
		c.kill()
		return nil, fmt.Errorf("a process did not start: %w\n%s", err, stderr)
	}
	return c, nil
}

func (c *child) addresses() (partner, ops string) { return c.urls[0], c.urls[1] }

// jump can fail: the process may just have been killed.
func (c *child) jump(ahead time.Duration) { _, _ = fmt.Fprintln(c.orders, int64(ahead)) }

func (c *child) kill() {
	_ = c.cmd.Process.Kill() // it may have ended
	c.ended <- <-c.ended
	c.orders.Close()
}

func (c *child) stop() error {
	c.orders.Close()
	select {
	case err := <-c.ended:
		return err
	case <-time.After(2 * stopTimeout):
		c.kill()
		return errors.New("a process did not end")
	}
}

// runAsProcess is the main function of a child: it serves until its standard input ends, and takes the clock's jumps from there.
func runAsProcess(config string) int {
	var p parts
	if err := json.Unmarshal([]byte(config), &p); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	s, err := startProcess(p, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	urls, err := json.Marshal(s.urls)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(string(urls))
	orders := bufio.NewScanner(os.Stdin)
	for orders.Scan() {
		var ahead int64
		if _, err := fmt.Sscan(orders.Text(), &ahead); err == nil {
			s.jump(time.Duration(ahead))
		}
	}
	if err := s.stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// transcript is what processes say.
type transcript struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (w *transcript) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(p)
}

func (w *transcript) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.TrimSpace(w.text.String())
}
