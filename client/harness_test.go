package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/commitcast/commitcast/wire"
)

const epochE = "3-7d0a41c2"

// bench is a client that runs, and a server that says what the test says, in a bubble in which time passes at once. The
// WebSocket and HTTP between them are real, over pipes.
type bench struct {
	t      *testing.T
	mux    *http.ServeMux // for snapshots
	http   *http.Client   // reaches the server under any name
	client *Client
	ctx    context.Context
	ran    chan error // what Run returned
	peers  chan *peer

	mu   sync.Mutex
	errs []*Error
}

// peer is the server's end of a connection.
type peer struct {
	b        *bench
	ws       *websocket.Conn
	requests chan string // lines, as they came; closed at the end
}

// patience is in the time of the bubble: longer than everything that a client waits for.
const patience = 10 * time.Minute

func inBubble(t *testing.T, cfg Config, f func(b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		listener := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		transport := &http.Transport{DialContext: listener.dial}
		b := &bench{
			t: t, mux: http.NewServeMux(), http: &http.Client{Transport: transport}, ran: make(chan error, 1), peers: make(chan *peer, 16),
		}
		b.mux.HandleFunc("/v1/ws", b.serve)
		server := &http.Server{Handler: b.mux}
		go server.Serve(listener) // ends with Close
		var cancel context.CancelFunc
		b.ctx, cancel = context.WithCancel(t.Context())
		cfg.HTTPClient = b.http
		cfg.OnError = func(err *Error) {
			b.mu.Lock()
			b.errs = append(b.errs, err)
			b.mu.Unlock()
		}
		var err error
		if b.client, err = New("ws://example.org/v1/ws", cfg); err != nil {
			t.Fatal(err)
		}
		defer func() {
			cancel()
			server.Close()
			transport.CloseIdleConnections()
		}()
		f(b)
	})
}

// run begins to connect.
func (b *bench) run() { go func() { b.ran <- b.client.Run(b.ctx) }() } // ends with the bench

func (b *bench) serve(w http.ResponseWriter, r *http.Request) {
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{wire.Protocol}})
	if err != nil {
		return
	}
	p := &peer{b, ws, make(chan string, 64)}
	b.peers <- p
	defer ws.CloseNow()
	defer close(p.requests)
	for {
		_, message, err := ws.Read(b.ctx)
		if err != nil {
			return
		}
		for line := range wire.Lines(message) {
			p.requests <- string(line)
		}
	}
}

// receive takes what comes next, or fails the test.
func receive[T any](b *bench, what string, from <-chan T) T {
	b.t.Helper()
	select {
	case v, ok := <-from:
		if ok {
			return v
		}
		b.t.Fatalf("waiting for %s: the end", what)
	case <-time.After(patience):
		b.t.Fatalf("waiting for %s: nothing came; errors: %v", what, b.errors())
	}
	panic("not reached")
}

func (b *bench) accept() *peer { b.t.Helper(); return receive(b, "a connection", b.peers) }

// errors are those reported so far, after everybody has done what there was to do.
func (b *bench) errors() []*Error {
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.errs
}

// kinds fails the test unless the errors so far are of these kinds.
func (b *bench) kinds(want ...Kind) {
	b.t.Helper()
	got := []Kind{}
	for _, err := range b.errors() {
		got = append(got, err.Kind)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		b.t.Errorf("errors %v, want %v", b.errs, want)
	}
}

// send sends frames as one message.
func (p *peer) send(lines ...string) {
	p.b.t.Helper()
	if err := p.ws.Write(p.b.ctx, websocket.MessageText, []byte(strings.Join(lines, "\n"))); err != nil {
		p.b.t.Fatalf("send: %v", err)
	}
}

func (p *peer) hello() {
	p.b.t.Helper()
	p.send(string(wire.AppendHello(nil, "b1", "s", epochE, 15_000)))
}

// request takes the next request, which must have the op.
func (p *peer) request(op string) wire.Request {
	p.b.t.Helper()
	line := receive(p.b, op, p.requests)
	r, err := wire.ParseRequest([]byte(line))
	if err != nil || r.Op != op {
		p.b.t.Fatalf("waiting for %s: %s (%v)", op, line, err)
	}
	return r
}

// subscribed answers a subscribe with a head, or, without one, with the cursor that it came with.
func (p *peer) subscribed(head ...int64) wire.Request {
	p.b.t.Helper()
	r := p.request(wire.OpSubscribe)
	after, err := wire.ParseCursor(r.After)
	if err != nil {
		p.b.t.Fatal(err)
	}
	p.send(string(wire.AppendSubscribed(nil, r.ID, r.Topic, after.Epoch, after.Offset, append(head, after.Offset)[0])))
	return r
}

// eventLine is an event whose data is its offset.
func eventLine(topic, epoch string, offset int64) string {
	line, err := wire.AppendEvent(nil, &wire.Event{
		Topic: topic, Epoch: epoch, Offset: offset, ID: 1000 + offset, Type: "x", Data: json.RawMessage(fmt.Sprint(offset)),
	})
	if err != nil {
		panic(err)
	}
	return string(line)
}

// followed is a Follow whose state is what it has seen, as text.
type followed struct {
	b       *bench
	changes chan Change[string]
	err     chan error // how it ended
	leave   chan struct{}
}

// appended is a topic whose state grows by each event's data.
func appended(resume *Held[string]) Topic[string] {
	return Topic[string]{
		Resume: resume,
		Snapshot: func(context.Context) (Held[string], error) {
			return Held[string]{"-", Token{Cursor: wire.Cursor{Epoch: epochE, Offset: 0}, Epoch: epochE}}, nil
		},
		Apply: func(s string, e *wire.Event) (string, error) { return s + string(e.Data), nil },
	}
}

func at(epoch string, offset int64, pending ...int64) *Held[string] {
	return &Held[string]{"-", Token{wire.Cursor{Epoch: epoch, Offset: offset}, pending, epoch}}
}

func (b *bench) follow(name string, topic Topic[string]) *followed {
	f := &followed{b, make(chan Change[string], 256), make(chan error, 1), make(chan struct{}, 1)}
	go func() { // ends with the bench
		for change, err := range Follow(b.ctx, b.client, name, topic) {
			if err != nil {
				f.err <- err
				return
			}
			select {
			case <-f.leave:
				f.err <- nil
				return
			default:
				f.changes <- change
			}
		}
	}()
	return f
}

// until takes changes until one is as wanted.
func (f *followed) until(what string, ok func(Change[string]) bool) Change[string] {
	f.b.t.Helper()
	for {
		if change := receive(f.b, what, f.changes); ok(change) {
			return change
		}
	}
}

// state takes changes until the state is current, and fails unless it is as wanted then.
func (f *followed) state(want string, offset int64) {
	f.b.t.Helper()
	last := f.until(fmt.Sprintf("%q at %d", want, offset), func(c Change[string]) bool { return c.Current && c.Token.Cursor.Offset == offset })
	if last.State != want {
		f.b.t.Fatalf("the state is %q, want %q", last.State, want)
	}
}

// live is a Follow of topic "t" that is current at a position.
func (b *bench) live(resume *Held[string]) (*followed, *peer) {
	b.t.Helper()
	f := b.follow("t", appended(resume))
	b.run()
	p := b.accept()
	p.hello()
	p.subscribed()
	f.state("-", resume.Token.Cursor.Offset)
	return f, p
}

// pipes is a listener whose connections are pipes.
type pipes struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipes) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func (l *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
