package kafka

import (
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

// What the embedded broker keeps of each partition. Both bounds hold for topics that set none of their own. The disk used by a
// partition is at most its retention and one segment more.
const (
	embeddedRetention         = 7 * 24 * time.Hour
	embeddedRetentionBytes    = 64 << 20
	embeddedSegmentBytes      = 8 << 20 // room comes free a segment at a time
	embeddedStateCompactBytes = 4 << 20 // the logs of committed offsets and producers are rewritten when they have grown to this
	retentionInterval         = time.Minute
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
	stopped chan struct{}
}

// StartEmbedded starts the broker on what it finds in o.Dir. It is ready when StartEmbedded returns.
func StartEmbedded(o EmbeddedOptions) (*Embedded, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	host, port, err := net.SplitHostPort(o.Listen)
	if err != nil {
		return nil, fmt.Errorf("embedded kafka: listen address: %w", err)
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		return nil, fmt.Errorf("embedded kafka: listen address %q: clients are told this address, so it needs a host that they can dial", o.Listen)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		return nil, fmt.Errorf("embedded kafka: listen address %q: %d is no port", o.Listen, n)
	}
	options := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.ListenFn(func(network, _ string) (net.Listener, error) { return net.Listen(network, o.Listen) }),
		kfake.ClusterID("musique"),
		kfake.GroupMinSessionTimeout(minGroupSession),
		kfake.WithLogger(brokerLog{o.Log}),
		kfake.BrokerConfigs(map[string]string{
			"log.retention.ms":        strconv.FormatInt(embeddedRetention.Milliseconds(), 10),
			"log.retention.bytes":     strconv.Itoa(embeddedRetentionBytes),
			"log.segment.bytes":       strconv.Itoa(embeddedSegmentBytes),
			"state.log.compact.bytes": strconv.Itoa(embeddedStateCompactBytes),
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
	e := &Embedded{addr: cluster.ListenAddrs()[0], lock: lock, cluster: cluster, stop: make(chan struct{}), stopped: make(chan struct{})}
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

// enforceRetention drops what is over the bounds: kfake by itself does so only for topics with bounds of their own, and not after a restart.
func (e *Embedded) enforceRetention() {
	defer close(e.stopped)
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
