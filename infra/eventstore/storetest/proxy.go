package storetest

import (
	"context"
	"net"
	"strings"
	"sync"

	"github.com/stretchr/testify/require"
)

// Proxy stands between a store and its node, to break what a network breaks.
type Proxy struct {
	listener net.Listener
	wait     sync.WaitGroup

	mu     sync.Mutex
	target string
	conns  map[net.Conn]struct{}
	// mute drops what the node answers, while what it is told goes through; away takes no connection.
	mute, away bool
}

// NewProxy listens in front of the node of a connection string, until Close.
func NewProxy(t require.TestingT, nodeURL string) *Proxy {
	var config net.ListenConfig
	listener, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &Proxy{listener: listener, target: addressOf(nodeURL), conns: map[net.Conn]struct{}{}}
	p.wait.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			away, target := p.away, p.target
			p.mu.Unlock()
			if away {
				_ = client.Close()
				continue
			}
			var dialer net.Dialer
			node, err := dialer.DialContext(context.Background(), "tcp", target)
			if err != nil {
				_ = client.Close()
				continue
			}
			p.mu.Lock()
			p.conns[client], p.conns[node] = struct{}{}, struct{}{}
			p.mu.Unlock()
			p.wait.Go(func() { p.pass(node, client, false) })
			p.wait.Go(func() { p.pass(client, node, true) })
		}
	})
	return p
}

func addressOf(nodeURL string) string {
	return strings.TrimSuffix(strings.TrimPrefix(nodeURL, "esdb://"), "?tls=false")
}

// Lead breaks all connections; new ones go to another node.
func (p *Proxy) Lead(nodeURL string) {
	p.mu.Lock()
	p.target = addressOf(nodeURL)
	p.mu.Unlock()
	p.Cut()
}

// pass copies one direction of a connection, and ends both with it.
func (p *Proxy) pass(to, from net.Conn, answers bool) {
	defer p.drop(to)
	defer p.drop(from)
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		p.mu.Lock()
		mute := p.mute && answers
		p.mu.Unlock()
		if n > 0 && !mute {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (p *Proxy) drop(conn net.Conn) {
	_ = conn.Close()
	p.mu.Lock()
	delete(p.conns, conn)
	p.mu.Unlock()
}

// Cut breaks all connections; new ones go through.
func (p *Proxy) Cut() { p.cut(false) }

// Leave breaks all connections; new ones go through after Cut.
func (p *Proxy) Leave() { p.cut(true) }

func (p *Proxy) cut(away bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mute, p.away = false, away
	for conn := range p.conns {
		_ = conn.Close()
	}
}

// Silence lets the node hear everything and be heard no more, until Cut.
func (p *Proxy) Silence() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mute = true
}

// URL is the connection string of the node as it is reached through the proxy.
func (p *Proxy) URL() string { return "esdb://" + p.listener.Addr().String() + "?tls=false" }

// Close breaks all connections and takes no more.
func (p *Proxy) Close() {
	_ = p.listener.Close()
	p.Cut()
	p.wait.Wait()
}
