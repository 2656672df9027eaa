package testkit

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"
)

// Balancer is a load balancer before broadcasters: TCP, fewest connections first, and none to a node whose readiness it
// has not seen lately. Nodes may come and go.
type Balancer struct {
	// Addr is where it listens, host:port.
	Addr string

	listener net.Listener
	cancel   context.CancelFunc
	done     sync.WaitGroup

	mu    sync.Mutex
	nodes map[string]*balanced // by address
	conns map[net.Conn]struct{}
	ended bool
}

type balanced struct {
	health string
	up     bool
	open   int
}

// balancerLook is how often each node is asked whether it is ready.
const balancerLook = 50 * time.Millisecond

// NewBalancer starts one that ends with the test. It has no nodes.
func NewBalancer(t testing.TB) *Balancer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b := &Balancer{Addr: l.Addr().String(), listener: l, cancel: cancel, nodes: map[string]*balanced{}, conns: map[net.Conn]struct{}{}}
	b.done.Go(b.accept) // both owned by the balancer: Close waits for them
	b.done.Go(func() { b.look(ctx) })
	t.Cleanup(b.Close)
	return b
}

// Add sends clients to a node, host:port, from when the URL of its readiness answers 200, and as long as it does.
func (b *Balancer) Add(addr, health string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.nodes[addr] = &balanced{health: health}
}

// Ready is how many nodes get clients.
func (b *Balancer) Ready() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, node := range b.nodes {
		if node.up {
			n++
		}
	}
	return n
}

// Remove sends nobody to a node any more. Connections stay.
func (b *Balancer) Remove(addr string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.nodes, addr)
}

// Open is how many connections go to a node.
func (b *Balancer) Open(addr string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := b.nodes[addr]; n != nil {
		return n.open
	}
	return 0
}

// Close ends it, and every connection.
func (b *Balancer) Close() {
	b.cancel()
	b.listener.Close()
	b.mu.Lock()
	b.ended = true
	for c := range b.conns {
		c.Close()
	}
	b.mu.Unlock()
	b.done.Wait()
}

// look keeps what is known of nodes' readiness until ctx ends.
func (b *Balancer) look(ctx context.Context) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second}
	ticker := time.NewTicker(balancerLook)
	defer ticker.Stop()
	for {
		b.mu.Lock()
		asked := make([]*balanced, 0, len(b.nodes))
		for _, n := range b.nodes {
			asked = append(asked, n)
		}
		b.mu.Unlock()
		for _, n := range asked {
			up := false
			if req, err := http.NewRequestWithContext(ctx, "GET", n.health, nil); err == nil {
				if resp, err := client.Do(req); err == nil {
					resp.Body.Close()
					up = resp.StatusCode == http.StatusOK
				}
			}
			b.mu.Lock()
			n.up = up
			b.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (b *Balancer) accept() {
	for {
		conn, err := b.listener.Accept()
		if err != nil {
			return
		}
		if b.hold(conn) {
			b.done.Go(func() { b.serve(conn) }) // ends with the connection
		}
	}
}

// hold has Close end a connection. False: it has ended all already.
func (b *Balancer) hold(c net.Conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		c.Close()
		return false
	}
	b.conns[c] = struct{}{}
	return true
}

func (b *Balancer) drop(c net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.conns, c)
	c.Close()
}

func (b *Balancer) serve(client net.Conn) {
	defer b.drop(client)
	addr, node := b.choose()
	if node == nil {
		return
	}
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		node.open--
	}()
	server, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		b.mu.Lock()
		node.up = false
		b.mu.Unlock()
		return
	}
	if !b.hold(server) {
		return
	}
	defer b.drop(server)
	var both sync.WaitGroup
	pass := func(to, from net.Conn) {
		io.Copy(to, from)
		to.(*net.TCPConn).CloseWrite()
	}
	both.Go(func() { pass(server, client) })
	both.Go(func() { pass(client, server) })
	both.Wait()
}

// choose takes a place at the node with the fewest connections.
func (b *Balancer) choose() (addr string, least *balanced) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for at, n := range b.nodes {
		if n.up && (least == nil || n.open < least.open) {
			addr, least = at, n
		}
	}
	if least != nil {
		least.open++
	}
	return addr, least
}
