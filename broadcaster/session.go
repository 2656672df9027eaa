package broadcaster

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/time/rate"

	"github.com/commitcast/commitcast/auth"
	"github.com/commitcast/commitcast/wire"
)

const (
	// maxMessage is the size at which a message to a client is closed and the next begun, in bytes; one larger
	// frame still goes out alone. Bursts coalesce up to here.
	maxMessage = 64 << 10
	// maxControl is how many bytes of answers may wait for a client before its requests are no longer read.
	maxControl = 64 << 10
	// maxErrors is how many refused requests a connection may make before it is closed.
	maxErrors = 100
)

// sink is the way to a client: a WebSocket, or the response to a request for Server-Sent Events.
type sink interface {
	// writeText sends p[headerRoom:], frames one a line, and may use the room before them. It waits as long as the
	// client takes bytes at all: only a whole timeout without progress is an error (errStalled). One call at a time.
	writeText(p []byte, timeout time.Duration) error
	// close says goodbye and closes; closeNow closes. Both may be called at any time, from any goroutine.
	close(c wire.CloseCode)
	closeNow()
}

// session is one client connection. Its reader is one goroutine. What it has to send is written by the node's shared flushers, or, while
// the client takes less than it is sent, by a flusher of its own.
type session struct {
	b    *Broadcaster
	id   string
	sink sink
	came time.Time

	mu       sync.Mutex
	drained  sync.Cond                // on mu: control was taken, or the session closed
	subs     map[string]*subscription // by topic
	control  []byte                   // finished lines, behind headerRoom: answers, resets, heartbeats
	dirty    []*subscription          // may have something to send
	flushing bool                     // waits for a flusher, or has one
	flusher  func()                   // flush, made once: a go statement with a receiver would allocate each time
	nextDue  *session                 // of Broadcaster.due; guarded by its mu
	closed   bool
	nextBeat time.Time
	writes   uint32    // messages that were begun
	written  uint32    // as slow saw it last
	stuck    time.Time // since when that is the same
	errors   int       // requests that were refused; of the reader
	most     int       // subscriptions there ever were; of the reader

	unwelcome atomic.Bool // has earned a strike by what it did
	excused   bool        // that it has not said who it is, is not its fault; of the reader
	checking  atomic.Bool // the token that it has brought is being checked

	who       *auth.Identity // nil before the client has said who it is, and while authentication is off
	from      netip.Prefix   // the client's address; not valid: not counted
	user      string         // whose connection this counts as, if counted; guarded by b.mu
	counted   bool
	account   *user           // the same, once counted; of the reader
	renewed   *rate.Limiter   // of newer tokens; nil: none has come. Of the reader
	reviewing bool            // subscriptions are being held to a newer token
	rests     *time.Timer     // after which the review goes on, if it rests
	holding   []*subscription // that have read pages which are not written yet
	replays   int             // that are under way
	line      []queued        // those that wait for one of them to end
	until     time.Time       // when the session ends unless something comes before; zero: never
	overdue   wire.CloseCode  // with which it ends then
}

func newSession(b *Broadcaster, to sink, from netip.Prefix) *session {
	s := &session{b: b, id: newID(), sink: to, came: time.Now(), from: from, subs: make(map[string]*subscription)}
	s.drained.L = &s.mu
	s.flusher = s.flush
	return s
}

// hello sends the first frame.
func (s *session) hello() {
	s.send(func(p []byte) []byte {
		return wire.AppendHello(p, s.b.cfg.Node, s.id, s.b.Epoch(), s.b.cfg.Heartbeat.Milliseconds())
	})
}

// greet sends the first frame. What comes after it is read when the client's user, if it has one, has paid for the connection: with so
// many places of a user, it bounds how many it opens. The error is an ended: ctx has ended. Called by the reader.
func (s *session) greet(ctx context.Context) error {
	s.hello()
	if s.account != nil && s.account.pace.wait(ctx, connectionCost) != nil {
		return ended{wire.CloseShutdown}
	}
	return nil
}

// serve reads the requests of a WebSocket client until the connection ends. who is nil if the client has yet to say who it
// is: then nothing is said to it before.
func (s *session) serve(ctx context.Context, sock *socket, who *auth.Identity) {
	defer s.end()
	switch {
	case who != nil:
		if err := s.admit(who); err != nil {
			s.finish(err)
			return
		}
		if s.greet(ctx) != nil {
			return
		}
	case s.b.cfg.Verifier == nil:
		s.hello()
	}
	pace := s.b.newPace()
	for {
		typ, message, err := sock.ws.Read(ctx)
		switch {
		case errors.Is(err, websocket.ErrMessageTooBig):
			s.b.hit(limitMessage) // coder/websocket has answered with 1009 itself
			return
		case err != nil && sock.meter.exceeded():
			s.b.hit(limitFrames)
			s.unwelcome.Store(true)
			s.goodbye(because(wire.CloseTooManyErrors, errFrames).code)
			return
		case err != nil:
			return
		}
		sock.meter.message()
		if typ != websocket.MessageText {
			s.goodbye(wire.CloseBinary)
			return
		}
		lines := 0
		for line := range wire.Lines(message) {
			lines++
			req, err := wire.ParseRequest(line)
			if s.wait(ctx, pace, req, err) != nil {
				return
			}
			before := s.errors
			if !s.handle(ctx, req, err) || s.errors > before && s.mistook(ctx, pace) != nil {
				return
			}
		}
		if lines == 0 && pace.wait(ctx, 1) != nil { // a message without a request costs one, too
			return
		}
	}
}

// handle answers one request. False ends the connection.
func (s *session) handle(ctx context.Context, req wire.Request, err error) bool {
	if !s.answer(ctx, req, err) {
		return false
	}
	// A client that asks without reading the answers waits here, in its own read loop.
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.control) > maxControl && !s.closed {
		s.drained.Wait()
	}
	return !s.closed
}

// answer does what a request asks for, or refuses it. False ends the connection.
func (s *session) answer(ctx context.Context, req wire.Request, err error) bool {
	if err != nil && s.unknown() {
		err = authFirst // garbage is not worth an answer, nor a place among those that may still say who they are
	}
	if err == nil {
		err = s.do(ctx, req)
	}
	if errors.As(err, new(ended)) {
		s.finish(err)
		return false
	}
	if err != nil {
		var refusal *wire.Error
		if !errors.As(err, &refusal) {
			refusal = &wire.Error{Code: wire.CodeUnavailable, Message: err.Error()}
		}
		s.b.metrics.refused.WithLabelValues(refusal.Code).Inc()
		s.send(func(p []byte) []byte { return wire.AppendError(p, req.ID, refusal) })
		if refusal.Code == wire.CodeUnavailable {
			return true // not the client's fault
		}
		if s.errors++; s.errors >= maxErrors {
			s.b.hit(limitRefusals)
			s.unwelcome.Store(true)
			s.goodbye(wire.CloseTooManyErrors)
			return false
		}
	}
	return true
}

// authFirst ends a connection that asks for something, or for nothing that can be understood, before it has said who it is.
var authFirst = because(wire.CloseUnauthorized, errors.New("auth comes first"))

// unknown reports whether the client has yet to say who it is.
func (s *session) unknown() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.who == nil && s.b.cfg.Verifier != nil
}

// finish closes the connection for a reason that is an ended. One that is not wanted now is told when to come back.
func (s *session) finish(err error) {
	var end ended
	errors.As(err, &end)
	if end.code.Code == wire.CloseOverload.Code {
		s.excused = true
		in := (comeBack + jitter(comeBack)).Milliseconds()
		s.send(func(p []byte) []byte { return wire.AppendReconnect(p, in) })
		s.settle(time.Second)
	}
	s.goodbye(end.code)
}

// goodbye closes the connection with a code, after which nothing is written any more.
func (s *session) goodbye(code wire.CloseCode) {
	s.close()
	s.sink.close(code)
}

// flooded cuts off a client that sends control frames without end.
func (s *session) flooded() {
	s.unwelcome.Store(true)
	s.b.spawn(func(context.Context) { s.goodbye(because(wire.CloseTooManyErrors, errors.New("pings")).code) }) // ends within the WebSocket's closing timeout
}

func (s *session) do(ctx context.Context, req wire.Request) error {
	s.mu.Lock()
	who := s.who
	s.mu.Unlock()
	if req.Op != wire.OpAuth && s.unknown() {
		return authFirst
	}
	switch req.Op {
	case wire.OpAuth:
		return s.authenticate(ctx, req.Token)
	case wire.OpSubscribe:
		if refusal := s.b.allowed(ctx, who, req.Topic); refusal != nil {
			return refusal
		}
		return s.b.subscribe(s, req)
	case wire.OpUnsubscribe:
		return s.b.unsubscribe(s, req)
	}
	return nil
}

// send adds one control frame and sees to it that it is written.
func (s *session) send(frame func(p []byte) []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sendLocked(frame)
}

func (s *session) sendLocked(frame func(p []byte) []byte) {
	if s.closed {
		return
	}
	if len(s.control) > 0 {
		s.control = append(s.control, '\n')
	}
	s.control = frame(s.control)
	s.flushLocked()
}

// wake tells the session that sub may have something to send.
func (s *session) wake(sub *subscription) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wakeLocked(sub)
}

func (s *session) wakeLocked(sub *subscription) {
	if s.closed || sub.dirty {
		return
	}
	sub.dirty = true
	s.dirty = append(s.dirty, sub)
	s.flushLocked()
}

// beat ends a session whose time is up, or sends a heartbeat with the heads of all live subscriptions, unless the client is not taking what it has.
// It reports whether the client is slow.
func (s *session) beat(now time.Time) (slow bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	slow = s.slow(now)
	if s.expire(now) || s.who == nil && s.b.cfg.Verifier != nil || now.Before(s.nextBeat) {
		return slow
	}
	s.nextBeat = now.Add(s.b.cfg.Heartbeat)
	if len(s.control) > 0 {
		return slow
	}
	epoch := s.b.Epoch()
	heads := make([]wire.Head, 0, len(s.subs))
	for _, sub := range s.subs {
		if sub.state == subLive && sub.epoch == sub.t.shard.Epoch() {
			heads = append(heads, wire.Head{Topic: sub.t.name, Offset: max(sub.t.head(), sub.cursor), Epoch: sub.epoch})
		}
	}
	s.sendLocked(func(p []byte) []byte { return wire.AppendHeartbeat(p, epoch, heads) })
	return slow
}

// close marks the session closed: nothing more is written, and a waiting reader goes on.
func (s *session) close() {
	s.mu.Lock()
	s.closed = true
	s.drained.Broadcast()
	s.mu.Unlock()
}

// end removes the session. Called once, by its reader.
func (s *session) end() {
	s.close()
	s.sink.closeNow()
	s.b.removeSession(s)
}
