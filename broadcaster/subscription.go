package broadcaster

import (
	"fmt"

	"github.com/commitcast/commitcast/wire"
)

type subState uint8

const (
	subJoining subState = iota // waits for its stream channel to be live and its cursor to be checked
	subLive                    // follows the log
	subEnded                   // unsubscribed or reset
)

// subscription is one session's cursor in one topic. All fields are guarded by the session's mu, but index, which is
// the topic's.
type subscription struct {
	s  *session
	t  *topic
	id int64 // of the subscribe request

	state    subState
	answered bool        // "subscribed" was sent: a second joining is a check after a change of epoch or a failed replay
	asked    wire.Cursor // the cursor that the client gave; zero: from the head
	epoch    string      // the epoch in which cursor is valid; that of the log it may read
	cursor   int64       // the last offset given to the socket
	dirty    bool        // is in s.dirty

	replaying  bool     // a replay from stream or journal is under way
	chunk      [][]byte // what it brought: offsets from chunkFirst
	chunkFirst int64

	index int // in t.subs
}

// subscribe begins a subscription. The answer comes when it is live.
func (b *Broadcaster) subscribe(s *session, req wire.Request) error {
	var asked wire.Cursor
	if req.After != "" {
		var err error
		if asked, err = wire.ParseCursor(req.After); err != nil {
			return err
		}
	}
	s.mu.Lock()
	if _, dup := s.subs[req.Topic]; dup {
		s.mu.Unlock()
		return &wire.Error{Code: wire.CodeAlreadySubscribed, Message: fmt.Sprintf("this connection is subscribed to %q already", req.Topic)}
	}
	if len(s.subs) >= b.cfg.MaxSubscriptions {
		s.mu.Unlock()
		return &wire.Error{Code: wire.CodeTooMany, Message: fmt.Sprintf("a connection may have %d subscriptions", b.cfg.MaxSubscriptions)}
	}
	sub := &subscription{s: s, id: req.ID, asked: asked}
	s.subs[req.Topic] = sub
	s.mu.Unlock()
	b.attach(req.Topic, sub) // register …
	b.joiner.add(sub)        // … confirm, read the head, replay, splice
	return nil
}

func (b *Broadcaster) unsubscribe(s *session, req wire.Request) error {
	s.mu.Lock()
	sub := s.subs[req.Topic]
	if sub == nil {
		s.mu.Unlock()
		return &wire.Error{Code: wire.CodeNotSubscribed, Message: fmt.Sprintf("this connection is not subscribed to %q", req.Topic)}
	}
	sub.endLocked()
	s.sendLocked(func(p []byte) []byte { return wire.AppendUnsubscribed(p, req.ID, req.Topic) })
	s.mu.Unlock()
	b.detach(sub)
	return nil
}

// endLocked takes the subscription out of its session. The caller detaches it from its topic after releasing mu.
func (sub *subscription) endLocked() {
	sub.state = subEnded
	sub.chunk = nil
	delete(sub.s.subs, sub.t.name)
}

// collect appends what follows the cursor to a message. more: the budget ended it. Called with the session's mu held.
func (sub *subscription) collect(p []byte, budget int) (_ []byte, more bool) {
	if sub.state != subLive {
		return p, false
	}
	start := len(p)
	for len(sub.chunk) > 0 {
		switch f := sub.chunk[0]; {
		case sub.chunkFirst > sub.cursor+1: // never spliced with a hole
			sub.chunk = nil
			continue
		case sub.chunkFirst == sub.cursor+1:
			if len(p) > start && len(p)-start+len(f) > budget {
				return p, true
			}
			p = appendLine(p, f)
			sub.cursor++
		}
		sub.chunk = sub.chunk[1:]
		sub.chunkFirst++
	}
	sub.chunk = nil
	before := sub.cursor
	var state readState
	p, sub.cursor, state = sub.t.log.read(p, sub.epoch, sub.cursor, budget-(len(p)-start))
	sub.s.b.metrics.delivered.Add(float64(sub.cursor - before))
	switch state {
	case readMore:
		return p, true
	case readBehind:
		if !sub.replaying {
			sub.replaying = true
			sub.s.b.replay(sub)
		}
	}
	return p, false
}

// resetLocked ends the subscription with a reason.
func (sub *subscription) resetLocked(epoch string, head int64, reason string) {
	if sub.state == subEnded {
		return
	}
	b := sub.s.b
	b.metrics.resets.WithLabelValues(reason).Inc()
	sub.endLocked()
	inMS := jitter(b.cfg.ResetSpread).Milliseconds()
	sub.s.sendLocked(func(p []byte) []byte {
		return wire.AppendReset(p, sub.t.name, epoch, head, reason, inMS)
	})
}
