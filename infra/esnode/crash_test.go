package esnode_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/infra/esnode"
)

// childDir names the folder of the node that this test binary is to run instead of tests, so that a test has a process to kill.
const childDir = "ESNODE_TEST_CHILD_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		os.Exit(runChild(dir))
	}
	os.Exit(m.Run())
}

// runChild serves a node, says where on standard output, and goes down with its parent at the latest.
func runChild(dir string) int {
	node, err := esnode.Start(esnode.Options{Dir: dir, Listen: "127.0.0.1:0", Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(node.ConnectionString())
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// child is a node in a process of its own.
type child struct {
	command *exec.Cmd
	stdin   io.Closer
	stdout  *bufio.Reader
	stderr  lockedBuffer
}

// lockedBuffer can be read while a process still writes to it.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func startChild(t *testing.T, dir string) *child {
	t.Helper()
	c := &child{command: exec.Command(os.Args[0])} // it is killed by the test, and ends when its standard input does
	c.command.Env = append(os.Environ(), childDir+"="+dir)
	c.command.Stderr = &c.stderr
	stdin, err := c.command.StdinPipe()
	require.NoError(t, err)
	stdout, err := c.command.StdoutPipe()
	require.NoError(t, err)
	c.stdin, c.stdout = stdin, bufio.NewReader(stdout)
	require.NoError(t, c.command.Start())
	t.Cleanup(func() { c.kill() })
	return c
}

func (c *child) url(t *testing.T) string {
	t.Helper()
	line, err := c.stdout.ReadString('\n')
	require.NoError(t, err, "the node did not start: %s", c.stderr.String())
	return strings.TrimSpace(line)
}

func (c *child) kill() {
	_ = c.command.Process.Kill() // fails only if it is gone already
	_ = c.command.Wait()         // says that it was killed
	c.stdin.Close()
}

// author appends batches to a stream of its own and remembers what was acknowledged. Every event tells which batch it is of, so that a
// reader can see a torn one, and its ID is a hash of what it holds.
type author struct {
	stream  string
	random  *rand.Rand
	pending []esdb.EventData // a batch whose answer is not there yet; sent again as it is, until there is one

	mu    sync.Mutex
	acked []uuid.UUID
	batch int
}

// page is what an event of an author says.
type page struct {
	Batch, Index, Of int
	Text             string
}

const maxBatch = 5

func newAuthors(n int, seed uint64) []*author {
	authors := make([]*author, n)
	for i := range authors {
		authors[i] = &author{stream: fmt.Sprintf("author-%d", i), random: rand.New(rand.NewPCG(seed, uint64(i)))}
	}
	return authors
}

func hashOf(stream string, data []byte) uuid.UUID {
	return uuid.NewSHA1(uuid.NameSpaceOID, append([]byte(stream), data...))
}

// write appends one batch at the revision where it belongs. An error leaves the batch pending.
func (a *author) write(ctx context.Context, client *esdb.Client) error {
	if a.pending == nil {
		of := 1 + a.random.IntN(maxBatch)
		for i := range of {
			data, err := json.Marshal(page{a.batch, i, of, strings.Repeat("x", a.random.IntN(6<<10))})
			if err != nil {
				return err
			}
			a.pending = append(a.pending, esdb.EventData{EventID: hashOf(a.stream, data), EventType: "Page", ContentType: esdb.ContentTypeJson, Data: data})
		}
	}
	var expected esdb.ExpectedRevision = esdb.NoStream{}
	if n := len(a.acked); n > 0 {
		expected = esdb.Revision(uint64(n - 1))
	}
	if _, err := client.AppendToStream(ctx, a.stream, esdb.AppendToStreamOptions{ExpectedRevision: expected}, a.pending...); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.pending {
		a.acked = append(a.acked, e.EventID)
	}
	a.batch++
	a.pending = nil
	return nil
}

func (a *author) acknowledged() []uuid.UUID {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]uuid.UUID{}, a.acked...)
}

// verify reads the author's stream: all of acked is there, in order and unchanged, and no batch is there by half.
func (a *author) verify(t *testing.T, client *esdb.Client, acked []uuid.UUID) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	reading, err := client.ReadStream(ctx, a.stream, esdb.ReadStreamOptions{From: esdb.Start{}}, 1<<20)
	require.NoError(t, err)
	got, err := drain(reading)
	if len(acked) == 0 && err != nil {
		requireCode(t, esdb.ErrorCodeResourceNotFound, err)
		return
	}
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(got), len(acked), "%s lost acknowledged events", a.stream)
	require.Equal(t, acked, ids(got)[:len(acked)])
	batch, index := 0, 0
	var p page
	for i, e := range got {
		require.Equal(t, uint64(i), e.EventNumber)
		require.Equal(t, hashOf(a.stream, e.Data), e.EventID, "the event holds something else than was sent")
		require.NoError(t, json.Unmarshal(e.Data, &p))
		require.Equal(t, [2]int{batch, index}, [2]int{p.Batch, p.Index})
		if index++; index == p.Of {
			batch, index = batch+1, 0
		}
	}
	require.Zero(t, index, "%s holds half of batch %d", a.stream, batch)
}

// verifyAll reads `$all`: the positions rise, and the events are those of the streams.
func verifyAll(t *testing.T, client *esdb.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	reading, err := client.ReadAll(ctx, esdb.ReadAllOptions{From: esdb.Start{}}, 1<<20)
	require.NoError(t, err)
	got, err := drain(reading)
	require.NoError(t, err)
	next := map[string]uint64{}
	var last uint64
	for _, e := range got {
		require.Greater(t, e.Position.Commit, last)
		last = e.Position.Commit
		require.Equal(t, next[e.StreamID], e.EventNumber)
		next[e.StreamID]++
	}
}

// writeUntilFailure lets all authors write until their node is gone; reached is closed after so many acknowledged batches. Each has a client of
// its own: one that gave up finding its node blocks for ever whoever else still waits in it.
func writeUntilFailure(t *testing.T, url string, authors []*author, batches int64) (reached <-chan struct{}, wait func() []error) {
	t.Helper()
	signal := make(chan struct{})
	var acked atomic.Int64
	var all sync.WaitGroup
	errs := make([]error, len(authors))
	for i, a := range authors {
		client := connect(t, url)
		all.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			for errs[i] == nil {
				if errs[i] = a.write(ctx, client); errs[i] == nil && acked.Add(1) == batches {
					close(signal)
				}
			}
		})
	}
	return signal, func() []error {
		all.Wait()
		return errs
	}
}

// The process is killed again and again amid appends, and now and then while it recovers from the kill before.
func TestKilledNodeLosesNothingAcknowledged(t *testing.T) {
	t.Parallel()
	const rounds, writers, maxBatchesPerRound = 24, 8, 150
	dir := t.TempDir()
	random := rand.New(rand.NewPCG(1, 2))
	authors := newAuthors(writers, 3)
	for round := range rounds {
		if round%4 == 3 {
			c := startChild(t, dir)
			<-time.After(time.Duration(random.IntN(60)) * time.Millisecond) // anywhere in its start
			c.kill()
		}
		c := startChild(t, dir)
		url := c.url(t)
		client := connect(t, url)
		for _, a := range authors {
			a.verify(t, client, a.acknowledged())
		}
		reached, wait := writeUntilFailure(t, url, authors, 1+random.Int64N(maxBatchesPerRound))
		select {
		case <-reached:
		case <-time.After(patience):
			t.Fatalf("round %d makes no progress: %s", round, c.stderr.String())
		}
		c.kill()
		for _, err := range wait() {
			requireNotRefused(t, err)
		}
	}
	client := connect(t, startChild(t, dir).url(t))
	total := 0
	for _, a := range authors {
		a.verify(t, client, a.acknowledged())
		total += len(a.acked)
	}
	verifyAll(t, client)
	t.Logf("%d kills, %d acknowledged events, none lost", rounds+rounds/4, total)
}

// requireNotRefused: a node that went away may leave an append unanswered, but never says that its stream is elsewhere.
func requireNotRefused(t *testing.T, err error) {
	t.Helper()
	var failure *esdb.Error
	require.ErrorAs(t, err, &failure)
	require.NotEqual(t, esdb.ErrorCodeWrongExpectedVersion, failure.Code(), "%v", err)
}

func startOn(t *testing.T, fs vfs.FS) *esnode.Node {
	t.Helper()
	node, err := esnode.Start(esnode.Options{Dir: "events", Listen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler), FS: fs})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, node.Close()) })
	return node
}

// The power fails at many moments: the disk keeps what was synced, and of the rest a part, as disks do.
func TestPowerFailureLosesNothingAcknowledged(t *testing.T) {
	t.Parallel()
	const failures, writers, batchesBetween = 24, 6, 40
	fs := vfs.NewCrashableMem()
	node := startOn(t, fs)
	authors := newAuthors(writers, 4)
	random := rand.New(rand.NewPCG(5, 6))
	for failure := range failures {
		reached, wait := writeUntilFailure(t, node.ConnectionString(), authors, batchesBetween)
		<-reached
		acked := make([][]uuid.UUID, writers)
		for i, a := range authors {
			acked[i] = a.acknowledged()
		}
		after := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 20, 50, 100}[failure%4], RNG: random})
		require.NoError(t, node.Close()) // ends the authors of this round, so that they write no more than it takes
		wait()

		again := startOn(t, after)
		reader := connect(t, again.ConnectionString())
		for i, a := range authors {
			a.verify(t, reader, acked[i])
		}
		verifyAll(t, reader)
		require.NoError(t, again.Close())
		node = startOn(t, fs)
	}
	client := connect(t, node.ConnectionString())
	for _, a := range authors {
		a.verify(t, client, a.acknowledged())
	}
}

// A disk that refuses one write or sync stops the node: nobody is told of a success after it, everything answers unavailable, and what was
// acknowledged before is there when the node is started again.
func TestRefusedWriteStopsTheNode(t *testing.T) {
	t.Parallel()
	kinds := map[string][]errorfs.OpKind{
		"sync":   {errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo},
		"write":  {errorfs.OpFileWrite},
		"create": {errorfs.OpCreate, errorfs.OpReuseForWrite},
	}
	for name, kinds := range kinds {
		for _, after := range []int64{0, 1, 2, 17, 120} {
			if name == "create" && after > 2 {
				continue // files are made at the rotation of logs and at flushes only
			}
			t.Run(fmt.Sprintf("%s after %d", name, after), func(t *testing.T) {
				t.Parallel()
				testRefusedWrite(t, kinds, after)
			})
		}
	}
}

func testRefusedWrite(t *testing.T, kinds []errorfs.OpKind, after int64) {
	memory := vfs.NewCrashableMem()
	var armed atomic.Bool
	var left, injected atomic.Int64
	left.Store(after)
	fs := errorfs.Wrap(memory, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if !armed.Load() {
			return nil
		}
		for _, kind := range kinds {
			if op.Kind == kind && left.Add(-1) < 0 {
				injected.Add(1)
				return errorfs.ErrInjected
			}
		}
		return nil
	}))
	node := startOn(t, fs)
	client := connect(t, node.ConnectionString())
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	subscription, err := client.SubscribeToAll(ctx, esdb.SubscribeToAllOptions{From: esdb.End{}})
	require.NoError(t, err)
	require.NotNil(t, subscription.Recv().CaughtUp)

	authors := newAuthors(4, uint64(after))
	armed.Store(true)
	_, wait := writeUntilFailure(t, node.ConnectionString(), authors, -1)
	for _, err := range wait() {
		requireCode(t, esdb.ErrorUnavailable, err)
	}
	require.Positive(t, injected.Load())
	select {
	case <-node.Failed():
	case <-ctx.Done():
		t.Fatal("the node does not say that it failed")
	}

	for dropped := false; !dropped; {
		dropped = subscription.Recv().SubscriptionDropped != nil
	}
	require.NoError(t, ctx.Err(), "the subscription ends by itself")
	other := connect(t, node.ConnectionString())
	reading, err := other.ReadStream(ctx, authors[0].stream, esdb.ReadStreamOptions{From: esdb.Start{}}, 1)
	require.NoError(t, err)
	_, err = drain(reading)
	requireCode(t, esdb.ErrorUnavailable, err)
	require.NoError(t, node.Close())

	client = connect(t, startOn(t, memory.CrashClone(vfs.CrashCloneCfg{})).ConnectionString())
	for _, a := range authors {
		a.verify(t, client, a.acknowledged())
		require.NoError(t, a.write(ctx, client), "what was left unanswered can be sent again")
		a.verify(t, client, a.acknowledged())
	}
}
