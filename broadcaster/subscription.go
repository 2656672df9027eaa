package broadcaster

import (
	"context"
	"fmt"
	"time"

	"github.com/commitcast/commitcast/auth"
	"github.com/commitcast/commitcast/wire"
)

// subscription is one session's reader of one topic. All fields are guarded by the session's mu, but index, which is
// the topic's.
type subscription struct {
	reader
	s     *session
	t     *topic
	id    int64     // of the subscribe request
	dirty bool      // is in s.dirty
	index int       // in t.subs
	began time.Time // when it got its place among the replays, for its window

	granted *auth.Identity // the last token that was found to allow the topic; nil: authentication is off
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
	if refusal := b.unknown(req.Topic); refusal != nil {
		return refusal
	}
	s.mu.Lock()
	if _, dup := s.subs[req.Topic]; dup {
		s.mu.Unlock()
		return &wire.Error{Code: wire.CodeAlreadySubscribed, Message: fmt.Sprintf("this connection is subscribed to %q already", req.Topic)}
	}
	if len(s.subs) >= b.cfg.MaxSubscriptions {
		s.mu.Unlock()
		return b.tooMany()
	}
	sub := &subscription{s: s, id: req.ID, granted: s.who, reader: reader{asked: asked, conflate: req.Conflate}}
	if s.who != nil {
		sub.subject = s.who.Subject // a newer token is of the same one
	}
	s.subs[req.Topic] = sub
	s.mu.Unlock()
	b.attach(req.Topic, sub)    // register …
	sub.t.shard.joiner.add(sub) // … confirm, read the head, replay, splice
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
	sub.end()
	delete(sub.s.subs, sub.t.name)
	sub.s.advance()
}

// collect appends what follows the cursor to a message. more: the budget ended it. Called with the session's mu held.
func (sub *subscription) collect(p []byte, budget int) (_ []byte, more bool) {
	before, leftOut := sub.cursor, sub.leftOut
	p, more, then := sub.reader.collect(p, &sub.t.log, budget)
	if n := sub.cursor - before; n > 0 {
		leftOut = sub.leftOut - leftOut
		sub.s.b.metrics.delivered.Add(float64(n - leftOut))
		sub.s.b.metrics.conflated.Add(float64(leftOut))
	}
	switch then {
	case nextReplay:
		sub.s.startReplay(sub)
	case nextCheck:
		sub.s.b.after(jitter(100*time.Millisecond), func() { sub.t.shard.joiner.add(sub) })
		sub.s.advance()
	case nextEnd:
		sub.fencedLocked()
		sub.s.b.spawn(func(context.Context) { sub.s.b.detach(sub) }) // a topic's lock comes before a session's
	default:
		if len(sub.s.line) > 0 {
			sub.s.advance()
		}
	}
	return p, more
}

// fencedLocked takes a subscription that has ended at a fence out of its session, and says so to the client. The caller
// detaches it from its topic after releasing mu.
func (sub *subscription) fencedLocked() {
	sub.endLocked()
	sub.s.b.metrics.refused.WithLabelValues(wire.CodeForbidden).Inc()
	sub.s.sendLocked(func(p []byte) []byte { return wire.AppendError(p, sub.id, revoked(sub.t.name)) })
}
