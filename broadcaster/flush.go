package broadcaster

import (
	"errors"
	"runtime"
	"sync"
	"time"
)

// A session that has something to send is due. Nearly all clients are caught up and take a message at once, so that a few flushers,
// as many as there are processors, write to all of them, one message each, and never wait for a client: what one does not take at once is
// written by a flusher of its session's own, which waits. So does one for each session whose socket can only be waited for: TLS, and
// Server-Sent Events.

// due are the sessions that wait for a shared flusher, first in, first out, so that one that has much to send does not keep the others
// waiting; and the flushers, which exist only while there are any.
type due struct {
	mu          sync.Mutex
	first, last *session
	running     int
	idle        []*flusher // that do not run; kept, since a node begins one for every event
	most        int        // flushers; 0 is 1
}

// add puts a session behind the others. Called by whoever has set its flushing.
func (d *due) add(b *Broadcaster, s *session) {
	d.mu.Lock()
	if d.last == nil {
		d.first = s
	} else {
		d.last.nextDue = s
	}
	d.last = s
	if d.running > 0 && d.running >= d.most {
		d.mu.Unlock()
		return
	}
	d.running++
	var f *flusher
	if n := len(d.idle); n > 0 {
		f, d.idle = d.idle[n-1], d.idle[:n-1]
	} else {
		f = newFlusher(b)
	}
	d.mu.Unlock()
	go f.loop() // ends when no session is due
}

// next takes the first session that is due. nil: there is none, and the flusher ends.
func (d *due) next(f *flusher) *session {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.first
	if s == nil {
		d.running--
		d.idle = append(d.idle, f)
		return nil
	}
	if d.first = s.nextDue; d.first == nil {
		d.last = nil
	}
	s.nextDue = nil
	return s
}

// flusher writes to one session after the other.
type flusher struct {
	b       *Broadcaster
	loop    func() // run, made once, as session.flusher
	attempt attempt
}

func newFlusher(b *Broadcaster) *flusher {
	f := &flusher{b: b}
	f.loop, f.attempt.call = f.run, f.attempt.write
	return f
}

// yieldEvery is after how many messages a shared flusher lets other goroutines go first: what else the node does must not wait for a
// topic with thousands of subscribers.
const yieldEvery = 64

func (f *flusher) run() {
	buffer := buffers.Get().(*[]byte)
	for n := 1; ; n++ {
		s := f.b.due.next(f)
		if s == nil {
			break
		}
		buffer = f.flush(s, buffer)
		if n%yieldEvery == 0 {
			runtime.Gosched()
		}
	}
	putBuffer(buffer)
}

// flush writes one message of a session, as far as the client takes it at once. It returns the buffer to go on with.
func (f *flusher) flush(s *session, buffer *[]byte) *[]byte {
	s.mu.Lock()
	p := s.collect((*buffer)[:headerRoom])
	*buffer = p
	if len(p) == headerRoom || s.closed {
		s.flushing = false
		s.mu.Unlock()
		return buffer
	}
	s.writes++
	s.mu.Unlock()
	sock := s.sink.(*socket)
	rest, held := sock.tryText(p, &f.attempt)
	if len(rest) > 0 {
		go s.flushRest(buffer, rest, held) // owned by the session, as its flusher
		return buffers.Get().(*[]byte)
	}
	s.b.wrote(p)
	s.mu.Lock()
	more := !s.closed && (len(s.control) > 0 || len(s.dirty) > 0)
	s.flushing = more
	s.mu.Unlock()
	if more {
		f.b.due.add(f.b, s)
	}
	return buffer
}

// flushLocked sees to it that what the session has to send is written.
func (s *session) flushLocked() {
	if s.flushing {
		return
	}
	s.flushing = true
	if sock, ok := s.sink.(*socket); ok && sock.raw != nil {
		s.b.due.add(s.b, s)
		return
	}
	go s.flusher() // owned by the session: ends when there is nothing to write, or the connection is closed
}

// flush writes until the session is clean, and waits for the client: first the answers, then events of each dirty subscription.
func (s *session) flush() {
	buffer := buffers.Get().(*[]byte)
	for {
		s.mu.Lock()
		p := s.collect((*buffer)[:headerRoom])
		*buffer = p
		if len(p) == headerRoom || s.closed {
			s.flushing = false
			s.mu.Unlock()
			break
		}
		s.writes++
		s.mu.Unlock()
		if err := s.sink.writeText(p, s.b.cfg.WriteTimeout); err != nil {
			s.fail(err)
			break
		}
		s.b.wrote(p)
	}
	putBuffer(buffer)
}

// flushRest goes on with a message that a shared flusher has begun, and then as flush. held: so is the connection, since part of a frame
// is written.
func (s *session) flushRest(buffer *[]byte, rest []byte, held bool) {
	err := s.sink.(*socket).finish(rest, held, s.b.cfg.WriteTimeout)
	if err == nil {
		s.b.wrote(*buffer)
	}
	putBuffer(buffer)
	if err != nil {
		s.fail(err)
		return
	}
	s.flush()
}

// fail ends a session that cannot be written to.
func (s *session) fail(err error) {
	if errors.Is(err, errStalled) {
		s.b.metrics.stalled.Inc()
	}
	s.sink.closeNow() // the reader notices and ends the session
	s.mu.Lock()
	s.flushing = false
	s.mu.Unlock()
	s.close()
}

// wrote counts a message.
func (b *Broadcaster) wrote(p []byte) {
	b.metrics.messages.Inc()
	b.metrics.bytes.Add(float64(len(p) - headerRoom))
}

// collect assembles the next message behind p. Called with mu held.
func (s *session) collect(p []byte) []byte {
	if len(s.control) > 0 {
		p = append(p, s.control...)
		s.control = nil
		s.drained.Broadcast()
	}
	taken := 0
	for ; taken < len(s.dirty) && len(p) < maxMessage; taken++ {
		sub := s.dirty[taken]
		sub.dirty = false
		var more bool
		if p, more = sub.collect(p, max(1, maxMessage-len(p))); more {
			sub.dirty = true
			s.dirty = append(s.dirty, sub) // behind the others: they share the socket fairly
		}
	}
	rest := copy(s.dirty, s.dirty[taken:])
	clear(s.dirty[rest:])
	s.dirty = s.dirty[:rest]
	if len(p) == headerRoom && len(s.control) > 0 { // a subscription has ended without another event
		return s.collect(p)
	}
	return p
}

// slowAfter is how long a message may wait for a client before the client counts as slow: far more than a network takes, and far less
// than the write timeout.
const slowAfter = time.Second

// slow reports whether the message that is being written was so already at slowAfter before now. It is asked regularly, with mu held.
func (s *session) slow(now time.Time) bool {
	if !s.flushing || s.writes != s.written {
		s.written, s.stuck = s.writes, now
		return false
	}
	return s.isSlow(now)
}

// isSlow is slow for those who look in between. Called with mu held.
func (s *session) isSlow(now time.Time) bool {
	return s.flushing && s.writes == s.written && now.Sub(s.stuck) >= slowAfter
}
