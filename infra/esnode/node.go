// Package esnode is an event store node for one machine that speaks EventStoreDB's gRPC protocol: the same client, the same semantics and the
// same errors, durable on the local disk, so that a bare machine needs no server. It never pretends to be a cluster.
//
// What it keeps of EventStoreDB: revisions and expected revisions, idempotent appends, soft deletion, tombstones, `$tb`, `$maxCount` and
// `$maxAge`, reads and subscriptions of streams and of `$all`, server-side filters with checkpoints, the limit of one append. What it leaves out:
// users and access control, links, projections, persistent subscriptions and scavenging.
package esnode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/protos/gossip"
	"github.com/EventStore/EventStore-Client-Go/v4/protos/serverfeatures"
	"github.com/EventStore/EventStore-Client-Go/v4/protos/shared"
	"github.com/EventStore/EventStore-Client-Go/v4/protos/streams"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

const (
	// serverVersion is the EventStoreDB version whose protocol the node speaks.
	serverVersion = "24.10.0"
	// maxMessageBytes bounds one gRPC message; it is the client's own bound for what it receives.
	maxMessageBytes = 17 << 20
	// minClientPing is how often a client may ping; the official one does every 10 s, and gRPC's default would cut it off.
	minClientPing = time.Second
	// pingAfter is how long a connection may be silent before the node asks whether the client is still there, and how long it waits for the answer:
	// a client whose machine is gone must not keep its subscriptions. Both are EventStoreDB's defaults.
	pingAfter = 10 * time.Second
)

// Options say where a node keeps its events and where it listens.
type Options struct {
	// Dir is the folder for the events; it is made if it is not there. One node at a time can have it open.
	Dir string
	// Listen is the TCP address, host:port; port 0 takes a free one.
	Listen string
	// Log gets what an operator should know.
	Log *slog.Logger
	// FS is the file system under Dir; nil is the machine's own.
	FS vfs.FS
}

// Node is a running event store.
type Node struct {
	store    *store
	writer   *writer
	server   *grpc.Server
	listener net.Listener
	log      *slog.Logger
	served   chan struct{}
	once     sync.Once
	closeErr error
}

// Start opens the events in o.Dir, recovering from whatever ended the process before, and serves them until Close.
func Start(o Options) (*Node, error) {
	fs := o.FS
	if fs == nil {
		fs = vfs.Default
	}
	if err := fs.MkdirAll(o.Dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("event store folder: %w", err)
	}
	store, err := openStore(o.Dir, fs, o.Log)
	if err != nil {
		return nil, err
	}
	var config net.ListenConfig
	listener, err := config.Listen(context.Background(), "tcp", o.Listen)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("event store address: %w", err), store.close())
	}
	n := &Node{
		store:    store,
		writer:   newWriter(store, time.Now),
		listener: listener,
		log:      o.Log,
		served:   make(chan struct{}),
		server: grpc.NewServer(
			grpc.MaxRecvMsgSize(maxMessageBytes),
			grpc.MaxSendMsgSize(maxMessageBytes),
			grpc.WaitForHandlers(true),
			grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minClientPing, PermitWithoutStream: true}),
			grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingAfter, Timeout: pingAfter}),
		),
	}
	streams.RegisterStreamsServer(n.server, &streamsServer{store: store, writer: n.writer, now: time.Now})
	serverfeatures.RegisterServerFeaturesServer(n.server, featuresServer{})
	gossip.RegisterGossipServer(n.server, gossipServer{id: uuid.New(), address: listener.Addr().(*net.TCPAddr)})
	go func() {
		defer close(n.served)
		if err := n.server.Serve(listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			n.log.Error("event store stops serving", "error", err)
		}
	}()
	return n, nil
}

// Addr is the host:port that the node listens on.
func (n *Node) Addr() string { return n.listener.Addr().String() }

// ConnectionString is what the official client connects with.
func (n *Node) ConnectionString() string { return "esdb://" + n.Addr() + "?tls=false" }

// Failed is closed when the disk refused a write or a sync. The node answers nothing any more then, and the folder can be opened again only by
// another process.
func (n *Node) Failed() <-chan struct{} { return n.store.failed }

// Close ends all calls and subscriptions and closes the files. What was acknowledged is durable already.
func (n *Node) Close() error {
	n.once.Do(func() {
		n.server.Stop()
		<-n.served
		n.writer.close()
		n.closeErr = n.store.close()
	})
	return n.closeErr
}

// featuresServer answers the one question that the client asks when it connects.
type featuresServer struct {
	serverfeatures.UnimplementedServerFeaturesServer
}

func (featuresServer) GetSupportedMethods(context.Context, *shared.Empty) (*serverfeatures.SupportedMethods, error) {
	method := func(name string) *serverfeatures.SupportedMethod {
		return &serverfeatures.SupportedMethod{ServiceName: "event_store.client.streams.streams", MethodName: name}
	}
	return &serverfeatures.SupportedMethods{
		EventStoreServerVersion: serverVersion,
		Methods:                 []*serverfeatures.SupportedMethod{method("append"), method("read"), method("delete"), method("tombstone")},
	}, nil
}

// gossipServer tells of a cluster of one, for clients that look for a leader.
type gossipServer struct {
	gossip.UnimplementedGossipServer
	id      uuid.UUID
	address *net.TCPAddr
}

func (g gossipServer) Read(context.Context, *shared.Empty) (*gossip.ClusterInfo, error) {
	return &gossip.ClusterInfo{Members: []*gossip.MemberInfo{{
		InstanceId:   structured(g.id),
		TimeStamp:    time.Now().UnixNano() / 100,
		State:        gossip.MemberInfo_Leader,
		IsAlive:      true,
		HttpEndPoint: &gossip.EndPoint{Address: g.address.IP.String(), Port: uint32(g.address.Port)},
	}}}, nil
}
