package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/musique/musique/infra/blobs"
	"github.com/musique/musique/infra/eventstore/storetest"
	"github.com/musique/musique/infra/kafka/kafkatest"
	"github.com/musique/musique/infra/postgres/postgrestest"
)

// part is one of the parts that a server depends on, in a process of its own, which is started again whenever it ends, as a supervisor would do, unless it is held down.
type part struct {
	t       *testing.T
	what    string
	address string

	mu      sync.Mutex
	process *os.Process
	input   io.Closer
	held    bool
	over    bool
	changed chan struct{} // closed when held or over has changed
	wait    sync.WaitGroup
}

func startPart(t *testing.T, name string) *part {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	port := listener.Addr().(*net.TCPAddr).Port
	require.NoError(t, listener.Close())
	p := &part{t: t, what: fmt.Sprintf("%s %s %d", name, filepath.Join(t.TempDir(), name), port), changed: make(chan struct{})}
	first := make(chan string, 1)
	p.wait.Go(func() { p.supervise(first) })
	t.Cleanup(p.end)
	select {
	case p.address = <-first:
	case <-time.After(patience):
		t.Fatalf("%s does not start", name)
	}
	return p
}

// supervise runs the part, again and again; first gets the address where it was the first time.
func (p *part) supervise(first chan<- string) {
	for {
		p.mu.Lock()
		held, over, changed := p.held, p.over, p.changed
		p.mu.Unlock()
		if over {
			return
		}
		if held {
			<-changed
			continue
		}
		if err := p.once(first); err != nil {
			p.t.Logf("%s: %v", p.what, err)
		}
		select {
		case <-time.After(retryPause):
		case <-changed:
		}
	}
}

func (p *part) once(first chan<- string) error {
	cmd := exec.Command(executable(p.t))
	cmd.Env = environment(asPart + "=" + p.what)
	var said bytes.Buffer
	cmd.Stderr = &said
	input, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	p.mu.Lock()
	p.process, p.input = cmd.Process, input
	over := p.over
	p.mu.Unlock()
	if over {
		_ = input.Close() // whoever ended it did not see this one
	}
	lines := bufio.NewScanner(output)
	for lines.Scan() {
		select {
		case first <- lines.Text():
		default:
		}
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%w: %s", err, tail(said.String()))
	}
	return nil
}

func (p *part) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	close(p.changed)
	p.changed = make(chan struct{})
}

// end ends the part in order.
func (p *part) end() {
	p.set(func() {
		p.over = true
		if p.input != nil {
			_ = p.input.Close()
		}
	})
	p.wait.Wait()
}

// each does something to the process and to all that it started.
func (p *part) each(do func(pid int)) {
	p.mu.Lock()
	root := p.process.Pid
	p.mu.Unlock()
	for pids := []int{root}; len(pids) > 0; pids = pids[1:] {
		do(pids[0])
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pids[0])) // proc_pid_children(5); any of them may be gone by now
		for _, task := range tasks {
			children, _ := os.ReadFile(task)
			for _, field := range strings.Fields(string(children)) {
				if pid, err := strconv.Atoi(field); err == nil {
					pids = append(pids, pid)
				}
			}
		}
	}
}

func (p *part) signal(s syscall.Signal) { p.each(func(pid int) { _ = syscall.Kill(pid, s) }) }

// The ways in which a part fails, and comes back.
var failures = []struct {
	name string
	// fail has the part fail, and gives what brings it back.
	fail func(p *part) (back func())
	// lasts is for how long.
	lasts time.Duration
}{
	{"killed", func(p *part) func() {
		p.set(func() { p.held = true })
		p.signal(syscall.SIGKILL)
		return func() { p.set(func() { p.held = false }) }
	}, 2 * time.Second},
	{"paused", func(p *part) func() {
		p.signal(syscall.SIGSTOP)
		return func() { p.signal(syscall.SIGCONT) }
	}, 8 * time.Second}, // longer than a request waits
	{"slow", func(p *part) func() {
		end := make(chan struct{})
		var slowing sync.WaitGroup
		slowing.Go(func() {
			for {
				p.signal(syscall.SIGSTOP)
				<-time.After(90 * time.Millisecond)
				p.signal(syscall.SIGCONT)
				select {
				case <-time.After(10 * time.Millisecond):
				case <-end:
					return
				}
			}
		})
		return func() { close(end); slowing.Wait() }
	}, 4 * time.Second},
	// A limit of the size of files that nothing can be within: each write is refused, as on a full disk.
	{"its disk full", func(p *part) func() {
		limit := func(size uint64) {
			p.each(func(pid int) {
				var old unix.Rlimit
				if unix.Prlimit(pid, unix.RLIMIT_FSIZE, nil, &old) == nil {
					_ = unix.Prlimit(pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: size, Max: old.Max}, nil)
				}
			})
		}
		limit(0)
		return func() { limit(unix.RLIM_INFINITY) }
	}, 3 * time.Second},
}

// Each part that the server depends on fails in each way, amid requests, and comes back. What was answered is there, what was not was not half done, errors
// are those of the contract, and nothing has to be done to the server.
func TestPartsFailUnderLoad(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"eventstore", "kafka", "postgres"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			failing := startPart(t, name)
			addresses := map[string]string{name: failing.address}
			for other, start := range map[string]func() string{
				"eventstore": func() string { return storetest.URL(t) },
				"kafka":      func() string { return strings.Join(kafkatest.OwnBrokers(t), ",") },
				"postgres":   func() string { return postgrestest.URL(t) },
			} {
				if other != name {
					addresses[other] = start()
				}
			}
			folder, err := blobs.FolderURL(filepath.Join(t.TempDir(), "blobs"))
			require.NoError(t, err)
			s := serveOn(t, t.TempDir(), "--eventstore", addresses["eventstore"], "--kafka", addresses["kafka"], "--database", addresses["postgres"], "--blobs", folder)
			c := &chaos{t: t, api: s.signIn(t, operator[companyMade](s, "company", "create", "--name", "Acme", "--plan", "unlimited").CompanyToken, "hq")}
			first := c.api.upload("the first", aSecond())
			c.audio = []string{first}
			var shops []*crashShop
			for _, shop := range crashShops {
				shops = append(shops, newCrashShop(t, shop, c.api.location(shop), s.url))
			}
			probe := newCrashShop(t, "probe", c.api.location("probe"), s.url)
			var probed []string

			for i, failure := range failures {
				work, stop := context.WithCancel(t.Context())
				var working sync.WaitGroup
				for caller := range callers {
					working.Go(func() { c.work(work, rand.New(rand.NewPCG(seed, uint64(1+i*callers+caller)))) })
				}
				answered := len(c.api.get("/limits").body)
				require.Positive(t, answered)
				back := failure.fail(failing)
				<-time.After(failure.lasts)
				back()
				began := time.Now()
				probed = append(probed, c.untilAccepted(first, fmt.Sprint("probe ", i)))
				accepted := time.Since(began)
				probe.awaits(probed)
				t.Logf("%s %s for %v: after it came back a send was accepted in %v, and at its player in %v", name, failure.name, failure.lasts, accepted, time.Since(began))
				stop()
				working.Wait()
				require.Eventually(t, func() bool { return c.healthy() }, patience, 50*time.Millisecond)
			}
			require.Positive(t, c.settle())
			for i, sendID := range probed {
				c.requests = append(c.requests, &crashRequest{key: fmt.Sprint("probe ", i), id: sendID, audioID: first, shops: []string{"probe"}})
			}
			all := append(shops, probe)
			c.check(all)
			plays := 0
			for _, shop := range all {
				plays += len(shop.came)
			}
			published(t, addresses["kafka"], "AudioPlayed", plays)
			s.terminate()
		})
	}
}

// untilAccepted sends to the probe, again and again.
func (c *chaos) untilAccepted(audioID, key string) (sendID string) {
	c.t.Helper()
	r := &crashRequest{key: key, audioID: audioID, shops: []string{"probe"}}
	for began := time.Now(); time.Since(began) < patience; {
		got, err := c.ask(c.t.Context(), r)
		require.NoError(c.t, err)
		if id, ok := r.made(got); ok {
			return id
		}
		got.refused(http.StatusServiceUnavailable, "service_unavailable")
		require.NotEmpty(c.t, got.header.Get("Retry-After"))
		<-time.After(retryPause)
	}
	require.FailNow(c.t, "the server does not recover")
	return ""
}

// healthy says that nothing is away any more.
func (c *chaos) healthy() bool {
	got, err := c.api.try(c.t.Context(), http.MethodGet, "/health", "", "", nil)
	var health struct{ Data struct{ Status string } }
	return err == nil && got.status == http.StatusOK && json.Unmarshal(got.body, &health) == nil && health.Data.Status == "healthy"
}
