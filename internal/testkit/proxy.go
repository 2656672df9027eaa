package testkit

import (
	"errors"
	"io"
	"math"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
)

// Proxy forwards TCP connections to one address and breaks them in the ways networks do. What is held back is neither
// lost nor closed: Resume delivers it, as TCP does when a network heals.
type Proxy struct {
	// Addr is where the proxy listens, host:port.
	Addr string

	listener net.Listener
	done     sync.WaitGroup

	mu       sync.Mutex
	target   string
	changed  *sync.Cond
	hold     [2]bool // by direction
	refuse   bool
	closed   bool
	links    map[*link]struct{}
	accepted int
}

type direction int

const (
	toTarget direction = iota
	toClient
)

// link is one forwarded connection.
type link struct {
	client, target *net.TCPConn // target is nil until dialed
	cut            bool
	part           float64 // of the next answer, that is still forwarded; 0: all of it
	budget         int     // bytes of answers before it is closed; below zero: no limit
}

// NewProxy starts a proxy for a target: host:port, or a URL whose host is meant. It ends with the test.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	if strings.Contains(target, "://") {
		u, err := url.Parse(target)
		if err != nil {
			t.Fatalf("the target of a proxy: %v", err)
		}
		target = u.Host
	}
	p, err := StartProxy(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// StartProxy is NewProxy for a program that is no test. The target is host:port, and may still be unknown: "". Close
// ends it.
func StartProxy(target string) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{Addr: l.Addr().String(), target: target, listener: l, links: map[*link]struct{}{}}
	p.changed = sync.NewCond(&p.mu)
	p.done.Add(1)
	go p.accept() // owned by the proxy: Close waits for it
	return p, nil
}

// SetTarget sends new connections to another address. Those that are open stay where they are; Cut ends them.
func (p *Proxy) SetTarget(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

// URL is the same URL, by way of the proxy.
func (p *Proxy) URL(target string) string {
	u, err := url.Parse(target)
	if err != nil {
		return target // whoever connects will say what is wrong
	}
	u.Host = p.Addr
	return u.String()
}

// Accepted is how many connections have been accepted so far, refused ones included.
func (p *Proxy) Accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

// Open is how many connections are open now.
func (p *Proxy) Open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.links)
}

// Cut resets every connection. New ones are forwarded as before.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutAll()
}

// Finish closes every connection in order, as a proxy or a pooler that shuts down does: what was forwarded arrives, what
// is held back is lost. New ones are forwarded as before.
func (p *Proxy) Finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		p.end(l, false)
	}
}

// Break closes every connection in the midst of the next answer on it: a part of it (0 to 1) is forwarded, at least one byte and
// never the last. New connections are forwarded as before.
func (p *Proxy) Break(part float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.part = max(part, math.SmallestNonzeroFloat64)
	}
}

// Refuse resets every connection, and each new one as soon as it is made, until Resume.
func (p *Proxy) Refuse() { p.set(true, [2]bool{}) }

// Blackhole forwards nothing more in either direction, and closes nothing, until Resume. New connections are accepted
// and get no answer.
func (p *Proxy) Blackhole() { p.set(false, [2]bool{true, true}) }

// HoldReplies forwards what clients say, but nothing of what the target answers, until Resume. With Cut, answers are
// lost although the target has done what it was asked.
func (p *Proxy) HoldReplies() { p.set(false, [2]bool{toClient: true}) }

// CutAfter forwards n more bytes of answers on each connection that is open, and closes it in the midst of what it says
// then. New ones are forwarded as before.
func (p *Proxy) CutAfter(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.budget = n
	}
}

// Resume forwards again, also what was held.
func (p *Proxy) Resume() { p.set(false, [2]bool{}) }

func (p *Proxy) set(refuse bool, hold [2]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse, p.hold = refuse, hold
	if refuse {
		p.cutAll()
	}
	p.changed.Broadcast()
}

// cutAll needs p.mu.
func (p *Proxy) cutAll() {
	for l := range p.links {
		p.cut(l)
	}
}

// cut resets one connection on both sides. It needs p.mu.
func (p *Proxy) cut(l *link) { p.end(l, true) }

// end ends one connection on both sides. It needs p.mu.
func (p *Proxy) end(l *link, reset bool) {
	if l.cut {
		return
	}
	l.cut = true
	delete(p.links, l)
	for _, conn := range []*net.TCPConn{l.client, l.target} {
		if conn != nil {
			if reset {
				conn.SetLinger(0) // close with RST
			}
			conn.Close()
		}
	}
	p.changed.Broadcast()
}

// Close cuts every connection and stops listening. Calling it twice is fine.
func (p *Proxy) Close() {
	p.listener.Close()
	p.mu.Lock()
	p.closed = true
	p.cutAll()
	p.mu.Unlock()
	p.done.Wait()
}

func (p *Proxy) accept() {
	defer p.done.Done()
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return
		}
		l := &link{budget: -1, client: conn.(*net.TCPConn)}
		p.mu.Lock()
		p.accepted++
		p.links[l] = struct{}{}
		if p.refuse || p.closed {
			p.cut(l)
			p.mu.Unlock()
			continue
		}
		p.done.Add(1)
		p.mu.Unlock()
		go p.serve(l) // owned by the proxy: Close waits for it
	}
}

// serve forwards one connection until both directions have ended.
func (p *Proxy) serve(l *link) {
	defer p.done.Done()
	if !p.pass(l, toTarget) {
		return
	}
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	conn, err := net.Dial("tcp", target)
	if err != nil {
		p.broken(l)
		return
	}
	p.mu.Lock()
	l.target = conn.(*net.TCPConn)
	if l.cut {
		l.target.Close()
	}
	p.mu.Unlock()

	var both sync.WaitGroup
	both.Go(func() { p.pump(l, toTarget, l.client, l.target) })
	both.Go(func() { p.pump(l, toClient, l.target, l.client) })
	both.Wait()

	p.mu.Lock()
	delete(p.links, l)
	p.mu.Unlock()
	l.client.Close() // no reset: the last bytes may still be on their way
	l.target.Close()
}

// broken passes on that one side has broken off.
func (p *Proxy) broken(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut(l)
}

// pump forwards one direction, and its end.
func (p *Proxy) pump(l *link, d direction, from, to *net.TCPConn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if !p.pass(l, d) {
			return
		}
		allowed, last := n, false
		if d == toClient {
			allowed, last = p.spend(l, n)
		}
		if allowed > 0 {
			if _, err := to.Write(buf[:allowed]); err != nil {
				p.broken(l)
				return
			}
		}
		if last {
			p.mu.Lock()
			p.end(l, false) // in order: what was forwarded arrives
			p.mu.Unlock()
			return
		}
		if errors.Is(err, io.EOF) {
			to.CloseWrite()
			return
		}
		if err != nil {
			p.broken(l)
			return
		}
	}
}

// spend says how many of n bytes of an answer may go. last: the connection ends after them, in the middle of an answer.
func (p *Proxy) spend(l *link, n int) (allowed int, last bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case l.part > 0 && n > 1:
		return min(1+int(l.part*float64(n-1)), n-1), true
	case l.budget < 0:
		return n, false
	case n > l.budget:
		return l.budget, true
	}
	l.budget -= n
	return n, false
}

// pass waits while a direction is held. False: the connection was cut.
func (p *Proxy) pass(l *link, d direction) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.hold[d] && !l.cut {
		p.changed.Wait()
	}
	return !l.cut
}
