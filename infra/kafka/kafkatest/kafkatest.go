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
		return []string{Start(t, t.TempDir(), "").Address}
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

// Limits of a server of Apache Kafka.
const (
	startTimeout = 2 * time.Minute // with everything else that a test run does meanwhile
	stopTimeout  = 30 * time.Second
)

// Server is a server of Apache Kafka.
type Server struct {
	Address string

	cmd   *exec.Cmd
	ended chan error
	once  sync.Once
}

// Start runs a server of Apache Kafka on a folder, at an address of this machine or, where that is empty, at a free one. The test ends it.
func Start(t testing.TB, dir, address string) *Server {
	t.Helper()
	if address == "" {
		address = freeAddress(t)
	}
	s := &Server{Address: address, cmd: exec.Command(program(), "serve", dir, address), ended: make(chan error, 1)} //nolint:gosec // who runs the tests names it
	var said strings.Builder
	s.cmd.Stderr = &said
	require.NoError(t, s.cmd.Start())
	go func() { s.ended <- s.cmd.Wait() }()
	t.Cleanup(s.Kill)
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
