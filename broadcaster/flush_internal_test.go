package broadcaster

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

// fan is a broadcaster whose topic hears what a test says, with real WebSockets.
type fan struct {
	t      *testing.T
	b      *Broadcaster
	topic  *topic
	server *httptest.Server
}

func newFan(t *testing.T, flushers int) *fan {
	b := unstarted(t, Config{})
	close(b.ready)
	b.due.most = flushers
	heard := &topic{name: "t"}
	heard.log.maxEvents, heard.log.maxBytes, heard.log.maxMessage = 1<<20, 1<<30, maxMessage
	heard.channel = stream.Channel{Epoch: "1-aaaa", Topic: "t"}
	heard.log.start("1-aaaa", 1)
	f := &fan{t, b, heard, httptest.NewServer(b.Handler())}
	t.Cleanup(func() {
		b.cancel()
		b.stopMu.Lock()
		b.stopped = true
		b.stopMu.Unlock()
		b.wg.Wait()
		f.server.Close()
	})
	return f
}

// hear takes the next event, of a size, without waking anybody.
func (f *fan) hear(size int) {
	f.topic.mu.Lock()
	defer f.topic.mu.Unlock()
	f.topic.hear(stream.Run{Channel: f.topic.channel, First: f.topic.log.next, Frames: [][]byte{bytes.Repeat([]byte("x"), size)}})
}

// subscribe gives a session a live subscription of the topic.
func (f *fan) subscribe(s *session) *subscription {
	sub := &subscription{s: s, t: f.topic}
	sub.state, sub.epoch = subLive, "1-aaaa"
	f.topic.mu.Lock()
	f.topic.subs = append(f.topic.subs, sub)
	f.topic.mu.Unlock()
	return sub
}

// rawClient is a client that sees frames, and reads when the test does.
type rawClient struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

// dial connects a client that takes little before its session is stuck, and reads hello.
func (f *fan) dial() (*rawClient, *session) {
	f.t.Helper()
	before := f.sessions()
	conn, err := net.Dial("tcp", f.server.Listener.Addr().String())
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { conn.Close() })
	conn.(*net.TCPConn).SetReadBuffer(32 << 10) // with less than a segment of loopback, reading takes a fifth of a second for each
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	fmt.Fprintf(conn, "GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: %s\r\n\r\n", wire.Protocol)
	c := &rawClient{f.t, conn, bufio.NewReader(conn)}
	if response, err := http.ReadResponse(c.r, nil); err != nil || response.StatusCode != http.StatusSwitchingProtocols {
		f.t.Fatal(response, err)
	}
	if op, hello := c.read(); op != 1 || !bytes.Contains(hello, []byte(`"hello"`)) {
		f.t.Fatalf("instead of hello: %d %s", op, hello)
	}
	for s := range f.sessions() {
		if _, old := before[s]; !old {
			testkit.Eventually(f.t, 10*time.Second, func() bool { return !flushing(s) }, "hello has left")
			return c, s
		}
	}
	f.t.Fatal("no session")
	return nil, nil
}

func (f *fan) sessions() map[*session]struct{} {
	f.b.mu.Lock()
	defer f.b.mu.Unlock()
	all := make(map[*session]struct{})
	for s := range f.b.sessions {
		all[s] = struct{}{}
	}
	return all
}

func flushing(s *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flushing
}

// ping sends a ping with the mask 0.
func (c *rawClient) ping(payload string) {
	c.t.Helper()
	if _, err := c.conn.Write(append([]byte{0x89, 0x80 | byte(len(payload)), 0, 0, 0, 0}, payload...)); err != nil {
		c.t.Fatal("ping: ", err)
	}
}

// read reads one frame, whose header has to be one that a server sends.
func (c *rawClient) read() (op byte, payload []byte) {
	c.t.Helper()
	var h [10]byte
	if _, err := io.ReadFull(c.r, h[:2]); err != nil {
		c.t.Fatal(err)
	}
	n := uint64(h[1])
	more := map[uint64]int{126: 2, 127: 8}[n]
	if _, err := io.ReadFull(c.r, h[2:2+more]); err != nil {
		c.t.Fatal(err)
	}
	switch more {
	case 2:
		n = uint64(binary.BigEndian.Uint16(h[2:]))
	case 8:
		n = binary.BigEndian.Uint64(h[2:])
	}
	if h[0]&0xf0 != 0x80 || n > 64<<20 {
		c.t.Fatalf("no header of a frame: %x", h)
	}
	payload = make([]byte, n)
	if _, err := io.ReadFull(c.r, payload); err != nil {
		c.t.Fatal(err)
	}
	return h[0] & 0xf, payload
}

// A client that takes nothing and pings has its pong wait, in the library: whoever writes to it then waits, too. That is not a shared
// flusher: the others get what they are sent.
func TestPongOfStalledClientHoldsUpNobody(t *testing.T) {
	f := newFan(t, 1)
	stalled, stalledSession := f.dial()
	quick, quickSession := f.dial()
	sock := stalledSession.sink.(*socket)
	with := &newFlusher(f.b).attempt
	testkit.Eventually(t, 20*time.Second, func() bool {
		if !sock.meter.writing.TryLock() {
			return true
		}
		for with.do(sock.raw, make([]byte, 8<<10)) > 0 {
		}
		sock.meter.writing.Unlock()
		stalled.ping("anybody?")
		return false
	}, "a pong waits for its client")

	f.hear(100)
	stalledSession.wake(f.subscribe(stalledSession)) // the first in line
	quickSession.wake(f.subscribe(quickSession))
	if op, event := quick.read(); op != 1 || len(event) != 100 {
		t.Errorf("frame %d %s", op, event)
	}
	if sock.meter.writing.TryLock() {
		t.Error("the event came only when the pong had given up")
	}
}

// Part of a frame is written, the client stalls, and a pong is due: it comes after the frame, not into it.
func TestPongWaitsForTheRestOfAFrame(t *testing.T) {
	const size = 512 << 10
	f := newFan(t, 1)
	c, s := f.dial()
	sock := s.sink.(*socket)
	p := append(make([]byte, headerRoom), bytes.Repeat([]byte("x"), size)...)
	rest, held := sock.tryText(p, &newFlusher(f.b).attempt)
	if len(rest) == 0 || len(rest) >= size {
		t.Fatalf("%d of %d bytes are left", len(rest), size)
	}
	c.ping("anybody?")
	testkit.Eventually(t, 4*time.Second, func() bool { // the library gives up after 5
		stacks := make([]byte, 1<<20)
		return strings.Contains(string(stacks[:runtime.Stack(stacks, true)]), "websocket.(*Conn).writeControl")
	}, "the pong waits")
	finished := make(chan error, 1)
	go func() { finished <- sock.finish(rest, held, 20*time.Second) }() // ends when the client has read
	if op, text := c.read(); op != 1 || len(text) != size || len(bytes.Trim(text, "x")) != 0 {
		t.Errorf("frame %d of %d bytes, with %q in it", op, len(text), bytes.Trim(text, "x"))
	}
	if op, pong := c.read(); op != 10 || string(pong) != "anybody?" {
		t.Errorf("frame %d %q instead of the pong", op, pong)
	}
	if err := <-finished; err != nil {
		t.Error(err)
	}
}

// Clients that read little at a time, and ping, see whole frames and every event in order, by whichever flushers these come.
func TestFramesStayWhole(t *testing.T) {
	const clients, events = 8, 200
	f := newFan(t, 2)
	var subs sync.WaitGroup
	errs := make(chan error, 2*clients)
	for range clients {
		before := f.sessions()
		transport := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
			if err == nil {
				conn.(*net.TCPConn).SetReadBuffer(32 << 10)
			}
			return conn, err
		}}
		ws, _, err := websocket.Dial(t.Context(), f.server.URL+"/v1/ws", &websocket.DialOptions{Subprotocols: []string{wire.Protocol},
			HTTPClient: &http.Client{Transport: transport}})
		if err != nil {
			t.Fatal(err)
		}
		defer ws.CloseNow()
		ws.SetReadLimit(1 << 20)
		if _, _, err := ws.Read(t.Context()); err != nil { // hello
			t.Fatal(err)
		}
		for s := range f.sessions() {
			if _, old := before[s]; !old {
				f.subscribe(s)
			}
		}
		ctx, read := context.WithTimeout(t.Context(), 60*time.Second)
		defer read()
		subs.Go(func() { // ends with the last event
			defer read()
			for want := int64(1); want <= events; {
				_, message, err := ws.Read(ctx)
				if err != nil {
					errs <- fmt.Errorf("before %d: %w", want, err)
					return
				}
				for line := range bytes.Lines(message) {
					var n int64
					if fmt.Sscanf(string(line[:min(len(line), 20)]), "%d:", &n); n != want {
						errs <- fmt.Errorf("%.20q instead of %d", line, want)
						return
					}
					want++
				}
			}
		})
		subs.Go(func() { // ends with the reading
			for ctx.Err() == nil {
				if err := ws.Ping(ctx); err != nil && ctx.Err() == nil {
					errs <- err
				}
			}
		})
	}
	for n := int64(1); n <= events; n++ {
		frame := fmt.Appendf(nil, "%d:%s", n, bytes.Repeat([]byte("x"), int(n*7919%20_000)))
		f.topic.mu.Lock()
		f.topic.hear(stream.Run{Channel: f.topic.channel, First: n, Frames: [][]byte{frame}})
		f.topic.wakeLocked()
		f.topic.mu.Unlock()
	}
	subs.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	f.b.due.mu.Lock()
	defer f.b.due.mu.Unlock()
	if made := len(f.b.due.idle) + f.b.due.running; made < 1 || made > 2 {
		t.Errorf("%d shared flushers, want 1 or 2", made)
	}
}

// A session with more than one message to send lets the others go first after each. One that has ended is not written to.
func TestSharedFlusherTakesTurns(t *testing.T) {
	f := newFan(t, 1)
	_, much := f.dial()
	_, little := f.dial()
	_, ended := f.dial()
	for range 2 {
		f.hear(maxMessage / 2) // too large for one message, by the line's end
	}
	f.hear(100)
	with := newFlusher(f.b)
	testkit.Eventually(t, 10*time.Second, func() bool {
		f.b.due.mu.Lock()
		defer f.b.due.mu.Unlock()
		if f.b.due.running > 0 {
			return false
		}
		f.b.due.running = 1 // which is that one
		return true
	}, "those that have sent hello have ended")
	muchSub, littleSub, endedSub := f.subscribe(much), f.subscribe(little), f.subscribe(ended)
	littleSub.cursor, endedSub.cursor = 2, 2
	before := ended.writes
	much.wake(muchSub)
	ended.wake(endedSub)
	little.wake(littleSub)
	ended.close()
	buffer := buffers.Get().(*[]byte)
	for i, want := range []*session{much, ended, little, much} {
		s := f.b.due.next(with)
		if s != want {
			t.Fatalf("turn %d is another session's", i)
		}
		buffer = with.flush(s, buffer)
	}
	if s := f.b.due.next(with); s != nil {
		t.Error("a session has a turn and nothing to send")
	}
	for _, s := range []*session{much, ended, little} {
		if flushing(s) {
			t.Error("a session waits for a flusher, and nobody comes")
		}
	}
	if ended.writes != before {
		t.Error("a session that has ended was written to")
	}
}

// A TCP connection can be written to without waiting. What is below TLS, or below whatever else changes bytes, must not be written to.
func TestRawBelow(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if rawBelow(conn) == nil && canWriteOnce {
		t.Error("a TCP connection is only written to by waiting")
	}
	if rawBelow(tls.Client(conn, &tls.Config{})) != nil {
		t.Error("TLS is gone around")
	}
	if rawBelow(struct{ net.Conn }{conn}) != nil {
		t.Error("a connection that says nothing about what is below it is gone around")
	}
}
