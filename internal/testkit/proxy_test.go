package testkit

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// silence is how long nothing must come through a proxy that holds back; too short can only miss a fault.
const silence = 100 * time.Millisecond

// echo is a server that answers what it hears, and keeps it.
type echo struct {
	addr  string
	mu    sync.Mutex
	heard bytes.Buffer
}

func newEcho(t *testing.T) *echo {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := &echo{addr: l.Addr().String()}
	var done sync.WaitGroup
	done.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			done.Go(func() {
				defer conn.Close()
				io.Copy(io.MultiWriter(conn, e), conn)
			})
		}
	})
	t.Cleanup(func() { l.Close(); done.Wait() })
	return e
}

func (e *echo) Write(b []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.heard.Write(b)
}

func (e *echo) String() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.heard.String()
}

func dial(t *testing.T, p *Proxy) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", p.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func say(t *testing.T, conn net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(conn, s); err != nil {
		t.Fatal(err)
	}
}

func hear(t *testing.T, conn net.Conn, want string) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Fatalf("heard %q, %v; want %q", got, err, want)
	}
}

func hearNothing(t *testing.T, conn net.Conn) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(silence))
	if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("heard %d bytes, %v; want silence", n, err)
	}
}

func hearReset(t *testing.T, conn net.Conn) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err := conn.Read(make([]byte, 1))
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("want a reset, got %v", err)
	}
}

func TestProxyForwardsAndPassesTheEndOn(t *testing.T) {
	e := newEcho(t)
	p := NewProxy(t, "redis://"+e.addr+"/0")
	conn := dial(t, p)
	big := strings.Repeat("x", 1<<20)
	go func() { // ends with the write, which the reader below waits for
		io.WriteString(conn, big)
		conn.(*net.TCPConn).CloseWrite()
	}()
	conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != big {
		t.Errorf("heard %d bytes, %v", len(got), err)
	}
	Eventually(t, 10*time.Second, func() bool { return p.Open() == 0 }, "the connection to be forgotten")
	if want := "postgres://u:p@" + p.Addr + "/db?x=y"; p.URL("postgres://u:p@h:1/db?x=y") != want {
		t.Errorf("URL is %s, want %s", p.URL("postgres://u:p@h:1/db?x=y"), want)
	}
}

func TestProxyCuts(t *testing.T) {
	p := NewProxy(t, newEcho(t).addr)
	conn := dial(t, p)
	say(t, conn, "a")
	hear(t, conn, "a")
	p.Cut()
	hearReset(t, conn)
	conn = dial(t, p)
	say(t, conn, "b")
	hear(t, conn, "b")
}

func TestProxyBlackholes(t *testing.T) {
	e := newEcho(t)
	p := NewProxy(t, e.addr)
	conn := dial(t, p)
	say(t, conn, "a")
	hear(t, conn, "a")

	p.Blackhole()
	say(t, conn, "b")
	hearNothing(t, conn)
	late := dial(t, p)
	say(t, late, "c")
	hearNothing(t, late)
	if got := e.String(); got != "a" {
		t.Errorf("the target heard %q through a black hole", got)
	}

	p.Resume()
	hear(t, conn, "b")
	hear(t, late, "c")

	p.Blackhole()
	p.Cut()
	hearReset(t, conn)
}

func TestProxyHoldsReplies(t *testing.T) {
	e := newEcho(t)
	p := NewProxy(t, e.addr)
	conn := dial(t, p)
	say(t, conn, "a")
	hear(t, conn, "a")
	p.HoldReplies()
	say(t, conn, "b")
	Eventually(t, 10*time.Second, func() bool { return e.String() == "ab" }, "the target to hear")
	hearNothing(t, conn)
	p.Cut()
	hearReset(t, conn)
}

func TestProxyRefuses(t *testing.T) {
	p := NewProxy(t, newEcho(t).addr)
	conn := dial(t, p)
	say(t, conn, "a")
	hear(t, conn, "a")
	p.Refuse()
	hearReset(t, conn)
	before := p.Accepted()
	if late, err := net.Dial("tcp", p.Addr); err == nil {
		hearReset(t, late)
		late.Close()
	}
	Eventually(t, 10*time.Second, func() bool { return p.Accepted() > before }, "the attempt to be counted")
	p.Resume()
	conn = dial(t, p)
	say(t, conn, "b")
	hear(t, conn, "b")
}

func TestProxyPassesOnThatTheTargetIsGone(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	conn, err := net.Dial("tcp", NewProxy(t, l.Addr().String()).Addr)
	if err != nil {
		return // told at once
	}
	defer conn.Close()
	hearReset(t, conn)
}

func TestProxyGoesToAnotherTarget(t *testing.T) {
	first, second := newEcho(t), newEcho(t)
	p, err := StartProxy("")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, e := range []*echo{first, second} {
		p.SetTarget(e.addr)
		conn, err := net.Dial("tcp", p.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "x"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	for i, e := range []*echo{first, second} {
		e.mu.Lock()
		if got := e.heard.String(); got != "x" {
			t.Errorf("target %d heard %q", i, got)
		}
		e.mu.Unlock()
	}
}

func TestProxyBreaksInTheMidst(t *testing.T) {
	const answer = "0123456789"
	for _, c := range []struct {
		part float64
		want string
	}{{0, "0"}, {0.5, "01234"}, {1, "012345678"}} {
		e := newEcho(t)
		p := NewProxy(t, e.addr)
		conn := dial(t, p)
		say(t, conn, "hello")
		hear(t, conn, "hello") // what came before is whole
		p.Break(c.part)
		say(t, conn, answer)
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		got, err := io.ReadAll(conn)
		if string(got) != c.want || err != nil {
			t.Errorf("part %v: %q, %v; want %q and the end", c.part, got, err, c.want)
		}
		next := dial(t, p)
		say(t, next, answer)
		hear(t, next, answer)
	}
}
