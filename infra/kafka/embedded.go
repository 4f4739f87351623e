package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kfake"
)

const (
	// defaultPartitionBytes is what the embedded broker keeps of each partition unless told otherwise.
	defaultPartitionBytes = 256 << 20
	// segmentsPerPartition says how finely: room comes free a segment at a time, so a partition takes an eighth more at most.
	segmentsPerPartition = 8
	retentionInterval    = time.Minute
	// stateCompactBytes is the size at which the logs of committed places and of producers are rewritten without what is outdated.
	stateCompactBytes = 4 << 20
)

// minGroupSession is the shortest session that the embedded broker lets a consumer ask for.
const minGroupSession = time.Second

// EmbeddedOptions say how to run the embedded broker.
type EmbeddedOptions struct {
	// Dir is where it keeps its data, made if it is not there. One process at a time may use it. Empty: in memory, for tests.
	Dir string
	// Listen is the address, host:port, that it listens on and tells to clients; port 0 takes a free one. Default: 127.0.0.1:0. The broker
	// asks nobody for a password, so the host should be loopback; one that clients cannot dial (0.0.0.0) is refused.
	Listen string
	// PartitionBytes bounds the disk that each partition takes: beyond it the oldest messages go, read or not. Default: 256 MiB.
	PartitionBytes int64
	// Log gets what the broker has to say. Default: nothing.
	Log *slog.Logger
}

// Embedded is a Kafka broker in this process: franz-go's kfake with its data on disk, each message synced before it is acknowledged.
// It is for one machine: there are no replicas.
type Embedded struct {
	addr string
	lock io.Closer

	mu      sync.Mutex // orders Close and the retention: the broker must not be asked for anything once it is closed
	cluster *kfake.Cluster
	closed  bool
	stop    chan struct{}
}

// StartEmbedded starts the broker on what it finds in o.Dir. It is ready when StartEmbedded returns.
func StartEmbedded(o EmbeddedOptions) (*Embedded, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	if o.PartitionBytes == 0 {
		o.PartitionBytes = defaultPartitionBytes
	}
	host, port, err := net.SplitHostPort(o.Listen)
	if err != nil {
		return nil, fmt.Errorf("embedded kafka: listen address: %w", err)
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		return nil, fmt.Errorf("embedded kafka: listen address %q: clients are told this address, so it needs a host that they can dial", o.Listen)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return nil, fmt.Errorf("embedded kafka: listen address %q: the port is no number below 65536", o.Listen)
	}
	options := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.ListenFn(func(network, _ string) (net.Listener, error) {
			return new(net.ListenConfig).Listen(context.Background(), network, o.Listen)
		}),
		kfake.ClusterID("musique"),
		kfake.GroupMinSessionTimeout(minGroupSession),
		kfake.WithLogger(brokerLog{o.Log}),
		kfake.BrokerConfigs(map[string]string{
			// Not by age: what consumers that are away have not read stays as long as there is room.
			"log.retention.ms":        "-1",
			"log.retention.bytes":     strconv.FormatInt(o.PartitionBytes, 10),
			"log.segment.bytes":       strconv.FormatInt(max(1, o.PartitionBytes/segmentsPerPartition), 10),
			"state.log.compact.bytes": strconv.Itoa(stateCompactBytes),
		}),
	}
	var lock io.Closer = io.NopCloser(nil)
	if o.Dir != "" {
		if err := os.MkdirAll(o.Dir, 0o700); err != nil {
			return nil, fmt.Errorf("embedded kafka: %w", err)
		}
		if lock, err = vfs.Default.Lock(filepath.Join(o.Dir, "LOCK")); err != nil {
			return nil, fmt.Errorf("embedded kafka: %s is in use by another process: %w", o.Dir, err)
		}
		options = append(options, kfake.DataDir(filepath.Join(o.Dir, "broker")), kfake.SyncWrites())
	}
	cluster, err := kfake.NewCluster(options...)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("embedded kafka in %q: %w", o.Dir, err), lock.Close())
	}
	e := &Embedded{addr: cluster.ListenAddrs()[0], lock: lock, cluster: cluster, stop: make(chan struct{})}
	var dead ghosts
	dead.watch(cluster)
	go dead.run(e.addr, e.stop, o.Log)
	go e.enforceRetention()
	return e, nil
}

// Brokers are the addresses for NewPublisher, NewSubscriber and the others.
func (e *Embedded) Brokers() []string { return []string{e.addr} }

// Close ends the broker and writes down what helps it to start faster. Nothing that was acknowledged depends on it.
func (e *Embedded) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	close(e.stop)
	e.cluster.Close()
	if err := e.lock.Close(); err != nil {
		return fmt.Errorf("embedded kafka: unlock: %w", err)
	}
	return nil
}

// enforceRetention drops what is over the bound: kfake by itself does so only for topics with bounds of their own.
func (e *Embedded) enforceRetention() {
	tick := time.NewTicker(retentionInterval)
	defer tick.Stop()
	for {
		select {
		case <-e.stop:
			return
		case <-tick.C:
			e.applyRetention()
		}
	}
}

func (e *Embedded) applyRetention() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.cluster.ApplyRetention()
	}
}
