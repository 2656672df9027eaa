package broadcaster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/commitcast/commitcast/wire"
)

const (
	// sseChunk is how many bytes of a response are written under one deadline: a client that takes fewer in a whole
	// WriteTimeout is as good as gone.
	sseChunk = 16 << 10
	// sseRetry is the pause, and its jitter, that a client is told to make when its connection breaks for no reason
	// that the server knows of.
	sseRetry, sseRetryJitter = 2 * time.Second, time.Second
	// sseGoodbye bounds the last bytes of a response.
	sseGoodbye = time.Second
)

// eventStream is the response to a request for Server-Sent Events: the sink of a session with one subscription. Frames
// come from the session as for a WebSocket, and leave as events: the cursor as id, the frame as data.
type eventStream struct {
	w     http.ResponseWriter
	rc    *http.ResponseController
	asked string // the cursor that the client came with, or ""

	done     chan struct{} // the handler is to end the session
	doneOnce sync.Once
	stopped  atomic.Bool
	writing  sync.Mutex // held while w is written to; after stop, nobody does
}

// serveEvents answers GET /v1/topics/{topic}/events. The handler's goroutine waits until the client, the session or the
// node is through.
func (b *Broadcaster) serveEvents(w http.ResponseWriter, r *http.Request) {
	if !b.allowOrigin(w, r) {
		return
	}
	req := wire.Request{Op: wire.OpSubscribe, Topic: r.PathValue("topic"), After: r.URL.Query().Get("after")}
	// A browser that reconnects sends what it saw last beside the address that it began with.
	if last := r.Header.Get("Last-Event-ID"); last != "" {
		req.After = last
	}
	switch conflate := r.URL.Query().Get("conflate"); conflate {
	case "", "false":
	case "true":
		req.Conflate = true
	default:
		problem(w, http.StatusBadRequest, wire.CodeBadRequest, "conflate is true or false")
		return
	}
	if err := checkSubscribe(req); err != nil {
		problem(w, http.StatusBadRequest, err.Code, err.Message)
		return
	}
	s := newSession(b, nil, b.client(r))
	if !b.admit(w, s) {
		return
	}
	who, ok := b.identify(w, r)
	if !ok {
		return
	}
	if who == nil && b.cfg.Verifier != nil {
		unauthorized(w, "", "a token is needed, in the header Authorization")
		return
	}
	// Said with a status here, since an EventSource comes back for ever after what is said within the stream.
	refusal := b.allowed(r.Context(), who, req.Topic)
	if refusal == nil {
		refusal = b.unknown(req.Topic)
	}
	if refusal == nil {
		refusal = b.askFence(r.Context(), who, req.Topic)
	}
	if refusal != nil {
		b.answerRefusal(w, refusal)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // nginx would hold events back
	h.Set("X-Content-Type-Options", "nosniff")
	if r.Method == http.MethodHead {
		return
	}
	e := &eventStream{w: w, rc: http.NewResponseController(w), asked: req.After, done: make(chan struct{})}
	s.sink = e
	if _, why := b.addSession(s); why != "" {
		refuse(w, why, comeBack+jitter(comeBack))
		return
	}
	defer s.end()
	defer e.stop()
	if who != nil {
		if err := s.admit(who); err != nil {
			s.excused = true
			e.stop()                                               // what a drain says meanwhile must not come into the answer
			b.turnAway(w, "", "too many connections of this user") // it came to be since identify
			return
		}
	}
	if err := e.write(fmt.Appendf(nil, "retry: %d\n\n", (sseRetry+jitter(sseRetryJitter)).Milliseconds()), b.cfg.WriteTimeout); err != nil {
		b.log.Debug("events cannot be sent", "error", err)
		return
	}
	if s.greet(r.Context()) != nil {
		return
	}
	s.answer(r.Context(), req, nil)
	select {
	case <-e.done:
	case <-r.Context().Done():
	}
}

// answerRefusal says with a status why a topic is not served.
func (b *Broadcaster) answerRefusal(w http.ResponseWriter, refusal *wire.Error) {
	if refusal.Code != wire.CodeForbidden {
		refuse(w, refusal.Message, time.Second+jitter(4*time.Second))
		return
	}
	b.metrics.refused.WithLabelValues(refusal.Code).Inc()
	problem(w, http.StatusForbidden, refusal.Code, refusal.Message)
}

// checkSubscribe refuses what cannot be subscribed to while there is still a status to refuse it with.
func checkSubscribe(req wire.Request) *wire.Error {
	var refusal *wire.Error
	err := wire.CheckTopic(req.Topic)
	if err == nil && req.After != "" {
		_, err = wire.ParseCursor(req.After)
	}
	errors.As(err, &refusal)
	return refusal
}

// writeText sends the frames of a message as events. After one that ends the subscription, the response ends.
func (e *eventStream) writeText(p []byte, timeout time.Duration) error {
	pooled := buffers.Get().(*[]byte)
	out := (*pooled)[:0]
	defer func() {
		*pooled = out
		putBuffer(pooled)
	}()
	last := false
	for line := range wire.Lines(p[headerRoom:]) {
		if out, last = appendServerSent(out, line, e.asked); last {
			break
		}
	}
	if err := e.write(out, timeout); err != nil {
		return err
	}
	if last {
		e.closeNow()
	}
	return nil
}

// write sends bytes. It waits as long as the client takes some: only a whole timeout without progress is an error
// (errStalled).
func (e *eventStream) write(p []byte, timeout time.Duration) error {
	e.writing.Lock()
	defer e.writing.Unlock()
	return e.writeLocked(p, timeout)
}

func (e *eventStream) writeLocked(p []byte, timeout time.Duration) error {
	for len(p) > 0 {
		chunk := p[:min(len(p), sseChunk)]
		p = p[len(chunk):]
		deadline := time.Now().Add(timeout)
		if err := e.setDeadline(deadline); err != nil {
			return err
		}
		if e.stopped.Load() { // looked at after the deadline was set: stop sets its own after this
			return net.ErrClosed
		}
		_, err := e.w.Write(chunk)
		if err == nil {
			err = e.rc.Flush()
		}
		if errors.Is(err, os.ErrDeadlineExceeded) || err != nil && !time.Now().Before(deadline) {
			return fmt.Errorf("%w for %v", errStalled, timeout)
		}
		if err != nil {
			return err
		}
	}
	return e.setDeadline(time.Time{}) // of HTTP/2, it would end an idle stream
}

// setDeadline goes without where a wrapped ResponseWriter has none.
func (e *eventStream) setDeadline(t time.Time) error {
	if err := e.rc.SetWriteDeadline(t); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// close and closeNow tell the handler to end. What was written has been flushed. A stream has no close codes: that the
// token is not good any more is said in a frame.
func (e *eventStream) close(c wire.CloseCode) {
	// A client that takes a little now and then could hold a write, and with it the stream, for as long as it likes.
	if c.Code == wire.CloseUnauthorized.Code && e.turn(sseGoodbye) {
		defer e.writing.Unlock()
		frame := wire.AppendError(nil, 0, &wire.Error{Code: wire.CodeForbidden, Message: c.Reason})
		out, _ := appendServerSent(nil, frame, "")
		_ = e.writeLocked(out, sseGoodbye) // the client may be gone
	}
	e.closeNow()
}

// turn takes writing, unless somebody holds it for too long.
func (e *eventStream) turn(most time.Duration) bool {
	for deadline := time.Now().Add(most); !e.writing.TryLock(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

func (e *eventStream) closeNow() { e.doneOnce.Do(func() { close(e.done) }) }

// stop makes sure that nobody writes any more. Called by the handler, before it returns.
func (e *eventStream) stop() {
	e.closeNow()
	e.stopped.Store(true)
	if !e.writing.TryLock() {
		_ = e.setDeadline(time.Now().Add(-time.Second)) // wakes a write that waits for the client
		e.writing.Lock()
	}
	_ = e.setDeadline(time.Now().Add(sseGoodbye))
	e.writing.Unlock()
}

// appendServerSent appends a frame as an event. asked is the cursor that the client came with, or "". last: nothing may follow
// it in this response.
//
// Events go by the default type, "message"; other frames by their op, but an error as "refused": EventSource has an "error" of
// its own.
func appendServerSent(dst, frame []byte, asked string) (_ []byte, last bool) {
	if epoch, offset, ok := eventCursor(frame); ok {
		// Who reconnects comes back to before what belongs together. What is no epoch may be no text of a line either.
		if !wire.HasMore(frame) && wire.ValidEpoch(string(epoch)) {
			dst = append(dst, "id: "...)
			dst = append(append(append(append(dst, epoch...), ':'), offset...), '\n')
		}
		return append(appendData(dst, frame), '\n'), false
	}
	m, err := wire.ParseMessage(frame)
	if err != nil {
		return dst, false // not a frame of ours
	}
	name := m.Op
	switch m.Op {
	case "subscribed": // so that a client which reconnects before the first event comes back to here
		if asked != "" {
			// Not with the epoch of today: a failover may lose that one, while the client's own cursor stays good.
			dst = append(append(append(dst, "id: "...), asked...), '\n')
		} else {
			dst = appendID(dst, m.Epoch, m.After)
		}
	case "reset": // a new id, or EventSource would come back with the same cursor for ever
		dst = appendRetry(appendID(dst, m.Epoch, m.Head), m.InMS)
		last = true
	case "reconnect":
		dst = appendRetry(dst, m.InMS)
		last = true
	case "error":
		name, last = "refused", true
	case "hello", "heartbeat", "unsubscribed":
	default:
		return dst, false // nor is this: what somebody else makes up is no name of an event
	}
	dst = append(append(append(dst, "event: "...), name...), '\n')
	return append(appendData(dst, frame), '\n'), last
}

// eventCursor finds the cursor in a finished frame of op event, without decoding it: the fields before it hold names that
// need no escaping, in the order in which package wire writes them. It is asked about each event of each subscriber by a goroutine
// with a small stack, so it looks no further: whether the epoch is one is for who needs to know.
func eventCursor(frame []byte) (epoch, offset []byte, ok bool) {
	if !bytes.HasPrefix(frame, []byte(`{"op":"event",`)) {
		return nil, nil, false
	}
	_, rest, ok := bytes.Cut(frame, []byte(`,"epoch":"`))
	if !ok {
		return nil, nil, false
	}
	epoch, rest, ok = bytes.Cut(rest, []byte(`","offset":`))
	digits := 0
	for digits < len(rest) && rest[digits] >= '0' && rest[digits] <= '9' {
		digits++
	}
	return epoch, rest[:digits], ok && digits > 0
}

func appendID(dst []byte, epoch string, offset int64) []byte {
	return append(append(append(dst, "id: "...), wire.Cursor{Epoch: epoch, Offset: offset}.String()...), '\n')
}

func appendRetry(dst []byte, ms int64) []byte {
	return append(strconv.AppendInt(append(dst, "retry: "...), ms, 10), '\n')
}

// appendData appends data, one field a line. A frame is one line; if it ever were not, it would still arrive whole.
func appendData(dst, data []byte) []byte {
	for {
		i := bytes.IndexAny(data, "\r\n")
		if i < 0 {
			return append(append(append(dst, "data: "...), data...), '\n')
		}
		dst = append(append(append(dst, "data: "...), data[:i]...), '\n')
		data = data[i+1:]
	}
}

// allowEvents answers the question that browsers ask before they send a header such as Last-Event-ID to another origin.
func (b *Broadcaster) allowEvents(w http.ResponseWriter, r *http.Request) {
	if !b.allowOrigin(w, r) {
		return
	}
	h := w.Header()
	h.Del("Connection") // it is about to come
	h.Set("Access-Control-Allow-Methods", "GET, HEAD")
	h.Set("Access-Control-Allow-Headers", "Authorization, Cache-Control, Last-Event-ID")
	h.Set("Access-Control-Max-Age", "3600")
	h.Set("Allow", "GET, HEAD, OPTIONS")
	w.WriteHeader(http.StatusNoContent)
}

// problem answers with an error, as RFC 9457 has it.
func problem(w http.ResponseWriter, status int, code, detail string) {
	body, _ := json.Marshal(map[string]any{"type": "urn:commitcast:problem:" + strings.ReplaceAll(code, "_", "-"),
		"title": http.StatusText(status), "status": status, "detail": detail}) // strings and a number
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may be gone
}
