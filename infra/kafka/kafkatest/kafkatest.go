// Package kafkatest gives tests a real Kafka broker: one embedded in the test process; the one at MUSIQUE_KAFKA_BROKERS; or, where MUSIQUE_KAFKA_SERVER names
// the program that runs Apache Kafka (.ci/kafka), servers that it starts. `.ci/kafka run go test …` sets both.
package kafkatest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/musique/musique/infra/kafka"
)

// Brokers returns the addresses of a broker that all tests of the process share, so use topics and groups of your own. It lives as long as
// the process.
func Brokers(t testing.TB) []string {
	t.Helper()
	if given := os.Getenv("MUSIQUE_KAFKA_BROKERS"); given != "" {
		return strings.Split(given, ",")
	}
	broker, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return broker.Brokers()
}

// OwnBrokers returns the addresses of a broker that nobody else uses, for a test in which topics and groups have the names that they have in production.
func OwnBrokers(t testing.TB) []string {
	t.Helper()
	if Apache() {
		return []string{servers.take(t).Address}
	}
	broker, err := kafka.StartEmbedded(kafka.EmbeddedOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = broker.Close() })
	return broker.Brokers()
}

// shared starts the broker once, in memory.
var shared = sync.OnceValues(func() (*kafka.Embedded, error) {
	return kafka.StartEmbedded(kafka.EmbeddedOptions{})
})

// Apache is whether tests can have servers of Apache Kafka of their own.
func Apache() bool { return program() != "" }

func program() string { return os.Getenv("MUSIQUE_KAFKA_SERVER") }

// pool is the servers of Apache Kafka of this process that were used and are free: one without topics and groups is as good as a new one, and there at once. They are
// there while a test has one.
type pool struct {
	mu    sync.Mutex
	users int
	idle  []*Server
}

var servers pool

// take gives a test a server until it ends.
func (p *pool) take(t testing.TB) (s *Server) {
	t.Helper()
	p.mu.Lock()
	p.users++
	if n := len(p.idle); n > 0 {
		s, p.idle = p.idle[n-1], p.idle[:n-1]
	}
	p.mu.Unlock()
	t.Cleanup(func() { p.giveBack(s) })
	if s == nil {
		dir, err := os.MkdirTemp("", "musique-kafka-") // not the test's own folder: the server may outlive the test
		require.NoError(t, err)
		s = start(t, dir, "")
	}
	return s
}

func (p *pool) giveBack(s *Server) {
	clean := s != nil && empty(s.Address) == nil
	p.mu.Lock()
	defer p.mu.Unlock()
	over := p.idle
	if p.users--; p.users > 0 {
		over = nil
	} else {
		p.idle = nil
	}
	switch {
	case clean && p.users > 0:
		p.idle = append(p.idle, s)
	case s != nil:
		over = append(over, s)
	}
	for _, s := range over {
		s.Kill()
		_ = os.RemoveAll(s.dir) // a folder left behind harms no test
	}
}

// empty takes all topics and groups from a server.
func empty(address string) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(address))
	if err != nil {
		return err
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	groups, err := admin.ListGroups(ctx)
	if err != nil {
		return err
	}
	topics, err := admin.ListTopics(ctx)
	if err != nil {
		return err
	}
	if names := groups.Groups(); len(names) > 0 {
		deleted, err := admin.DeleteGroups(ctx, names...)
		if err := errors.Join(err, deleted.Error()); err != nil {
			return err
		}
	}
	if names := topics.Names(); len(names) > 0 {
		deleted, err := admin.DeleteTopics(ctx, names...)
		return errors.Join(err, deleted.Error())
	}
	return nil
}

// Limits of a server of Apache Kafka.
const (
	startTimeout = 2 * time.Minute // with everything else that a test run does meanwhile
	stopTimeout  = 30 * time.Second
)

// Server is a server of Apache Kafka.
type Server struct {
	Address string

	dir   string
	cmd   *exec.Cmd
	ended chan error
	once  sync.Once
}

// Start runs a server of Apache Kafka on a folder, at an address of this machine or, where that is empty, at a free one. The test ends it.
func Start(t testing.TB, dir, address string) *Server {
	t.Helper()
	s := start(t, dir, address)
	t.Cleanup(s.Kill)
	return s
}

func start(t testing.TB, dir, address string) *Server {
	t.Helper()
	if address == "" {
		address = freeAddress(t)
	}
	s := &Server{Address: address, dir: dir, cmd: exec.Command(program(), "serve", dir, address), ended: make(chan error, 1)} //nolint:gosec,noctx // who runs the tests names it; it may outlive the test that starts it
	var said strings.Builder
	s.cmd.Stderr = &said
	require.NoError(t, s.cmd.Start())
	go func() { s.ended <- s.cmd.Wait() }()
	deadline := time.After(startTimeout)
	for kafka.Ping(t.Context(), []string{address}) != nil {
		select {
		case err := <-s.ended:
			s.ended <- err
			require.NoError(t, err, "the server ended: %s", &said)
		case <-deadline:
			require.FailNow(t, "the server does not answer")
		case <-time.After(50 * time.Millisecond):
		}
	}
	return s
}

// Kill is kill -9.
func (s *Server) Kill() { _ = s.end(syscall.SIGKILL) } // it was killed

// Stop has the server end as it does when it is told to.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	const terminated = 128 + int(syscall.SIGTERM) // how Java ends on it once it has shut down
	ended, isExit := errors.AsType[*exec.ExitError](s.end(syscall.SIGTERM))
	require.True(t, isExit)
	require.Equal(t, terminated, ended.ExitCode())
}

func (s *Server) end(signal syscall.Signal) (err error) {
	s.once.Do(func() {
		_ = s.cmd.Process.Signal(signal) // it may have ended
		select {
		case err = <-s.ended:
		case <-time.After(stopTimeout):
			_ = s.cmd.Process.Kill() // it may have ended
			err = fmt.Errorf("it did not end: %w", <-s.ended)
		}
	})
	return err
}

// freeAddress is one that nothing listens on.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}
