package postgres

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// watchdog is a shell script because the shell is the smallest program that every machine has: it needs nothing of this program's own, so it works
// under test binaries too, and runs under the server's user from the first instruction.
//
//go:embed watchdog.sh
var watchdog string

const (
	// pollEvery is how often a start asks whether the server answers yet.
	pollEvery = 10 * time.Millisecond
	// leftoverTimeout bounds the wait for the end of a server that outlived its program.
	leftoverTimeout = 10 * time.Second
)

// server is one run of the PostgreSQL server.
type server struct {
	pid    int // of the watchdog
	pipe   *os.File
	output *output
	ended  chan struct{} // closed when the run is over
	err    error         // why, once ended is closed
}

// settings are those that differ from PostgreSQL's defaults.
func (e *Embedded) settings() []string {
	settings := []string{
		"listen_addresses=127.0.0.1",
		"port=" + strconv.Itoa(e.port),
		"unix_socket_directories=", // none: everything connects over loopback, with the password
		"max_connections=100",
		"shared_buffers=64MB",
		"wal_level=minimal", // no replicas and no archive, so less to write
		"max_wal_senders=0",
		"max_wal_size=256MB", // what the log may take on the disk, about
		"jit=off",            // costs more than it saves for statements of a few rows
		"timezone=UTC",
		"log_timezone=UTC",
		"log_line_prefix=",
		"log_min_messages=warning",
		"log_min_error_statement=panic", // statements can hold what does not belong in a log
	}
	if e.options.Disposable {
		settings = append(settings, "fsync=off", "full_page_writes=off", "synchronous_commit=off", "shared_buffers=16MB")
	}
	return settings
}

// start runs the server and waits until it answers.
func (e *Embedded) start(ctx context.Context) (*server, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	args := []string{"-D", filepath.Join(e.clusterPath(), "data")}
	for _, setting := range e.settings() {
		args = append(args, "-c", setting)
	}
	remove := ""
	if e.options.Disposable {
		remove = e.options.Dir
	}
	s, err := e.run("QUIT", remove, "postgres", args...)
	if err != nil {
		return nil, err
	}
	for {
		if err = e.answers(ctx); err == nil {
			return s, nil
		}
		select {
		case <-s.ended:
			return nil, fmt.Errorf("embedded PostgreSQL did not start: %w: %s", s.err, s.output)
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("embedded PostgreSQL does not answer: %w: %s", err, s.output), s.stop(context.Background()))
		case <-time.After(pollEvery):
		}
	}
}

// run starts one of PostgreSQL's programs under the watchdog and under the account.
func (e *Embedded) run(endSignal, remove, program string, args ...string) (*server, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("embedded PostgreSQL: %w", err)
	}
	defer read.Close()
	s := &server{pipe: write, output: &output{log: e.options.Log}, ended: make(chan struct{})}
	args = append([]string{"-c", watchdog, "musique-postgres", endSignal, remove, filepath.Join(e.programs, program)}, args...)
	// Not CommandContext: the server outlives the call that starts it.
	cmd := exec.Command("/bin/sh", args...) //nolint:noctx // see above
	cmd.ExtraFiles = []*os.File{read, e.cluster}
	cmd.Stdout, cmd.Stderr = s.output, s.output
	cmd.Dir = "/" // the account may have no way to where this program is
	cmd.Env = e.environment()
	cmd.SysProcAttr = e.account.attributes()
	if err := cmd.Start(); err != nil {
		write.Close()
		return nil, fmt.Errorf("embedded PostgreSQL: %w", err)
	}
	s.pid = cmd.Process.Pid
	go func() {
		s.err = cmd.Wait()
		write.Close()
		close(s.ended)
	}()
	return s, nil
}

// environment is this program's, without what would change PostgreSQL's settings or the language of its messages. PG_GRANDPARENT_PID names a
// process that is no server although the data names it (CreateLockFile in PostgreSQL's miscinit.c).
func (e *Embedded) environment() []string {
	var kept []string
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "PG") && !strings.HasPrefix(variable, "LC_") && !strings.HasPrefix(variable, "LANG") {
			kept = append(kept, variable)
		}
	}
	if e.stranger != 0 {
		kept = append(kept, "PG_GRANDPARENT_PID="+strconv.Itoa(e.stranger))
	}
	return append(kept, "LC_ALL=C")
}

// stop asks for an orderly end, and for an immediate one when ctx ends or the server takes too long. It returns when the server has ended.
func (s *server) stop(ctx context.Context) error {
	if _, err := io.WriteString(s.pipe, "stop\n"); err != nil && !errors.Is(err, os.ErrClosed) && !errors.Is(err, syscall.EPIPE) {
		return fmt.Errorf("stop PostgreSQL: %w", err)
	}
	select {
	case <-s.ended:
		return nil
	case <-ctx.Done():
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

// endLeftover ends a server whose program was killed, as its watchdog does too unless it was killed as well. The caller has the folder's lock, so
// no living program of ours owns that server. Where the data names a process that is none, PostgreSQL is told so (see environment): it would take
// any process of its account for the server.
func (e *Embedded) endLeftover(ctx context.Context) error {
	e.stranger = 0
	data := e.dataDir()
	raw, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("embedded PostgreSQL: %w", err)
	}
	line, _, _ := strings.Cut(string(raw), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || pid <= 1 {
		return nil // PostgreSQL says itself what it makes of that
	}
	if !serves(pid, data) {
		e.stranger = pid
		return nil
	}
	e.options.Log.Info("a PostgreSQL server of an earlier run is still there; ending it", "pid", pid)
	if err := syscall.Kill(pid, syscall.SIGQUIT); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("end PostgreSQL (process %d) of an earlier run: %w", pid, err)
	}
	deadline := time.NewTimer(leftoverTimeout)
	defer deadline.Stop()
	for serves(pid, data) {
		select {
		case <-deadline.C:
			return fmt.Errorf("PostgreSQL (process %d) of an earlier run does not end", pid)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollEvery):
		}
	}
	return nil
}
