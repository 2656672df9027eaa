package broadcaster

import (
	"context"
	"sync"
	"time"

	"github.com/commitcast/commitcast/wire"
)

const (
	// joinWait is how long a subscription waits for its channel to be confirmed. A stream that takes longer is
	// treated as down: the subscription goes live on the journal's word, and events come by polling.
	joinWait = time.Second
	// joinBatch is how many cursors are checked in one read.
	joinBatch = 500
	// joinTimeout bounds that read.
	joinTimeout = 5 * time.Second
	// joinRest is how many times as long as a read took there is none, and joinRestMost how long at most: so those who subscribe without end
	// take a quarter of a session's time from the database, in larger batches, and not all of it.
	joinRest, joinRestMost = 3, 20 * time.Millisecond
)

// joiner takes subscriptions from registered to live: once their channel is confirmed it reads heads and checks
// cursors, many in one read. It also checks again the cursors of subscriptions whose epoch ended.
type joiner struct {
	shard  *shard
	kicked chan struct{}

	mu      sync.Mutex
	waiting []joining
}

type joining struct {
	sub      *subscription
	since    time.Time
	admitted admission
}

func (j *joiner) add(subs ...*subscription) {
	now := time.Now()
	j.mu.Lock()
	for _, sub := range subs {
		j.waiting = append(j.waiting, joining{sub: sub, since: now})
	}
	j.mu.Unlock()
	j.kick()
}

func (j *joiner) kick() {
	select {
	case j.kicked <- struct{}{}:
	default:
	}
}

// run works until ctx ends.
func (j *joiner) run(ctx context.Context) {
	for {
		ready, again := j.take(time.Now())
		if len(ready) > 0 {
			began := time.Now()
			j.join(ctx, ready)
			select {
			case <-ctx.Done():
				return
			case <-time.After(min(joinRest*time.Since(began), joinRestMost)):
			}
			continue
		}
		var wait <-chan time.Time
		if again > 0 {
			wait = time.After(again)
		}
		select {
		case <-ctx.Done():
			return
		case <-j.kicked:
		case <-wait:
		}
	}
}

// take removes up to joinBatch subscriptions that can be decided now, and says when the next one can be anyway.
func (j *joiner) take(now time.Time) (ready []joining, again time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	kept := j.waiting[:0]
	for _, w := range j.waiting {
		left := joinWait - now.Sub(w.since)
		if len(ready) < joinBatch && w.admit(left <= 0 || j.shard.b.polling()) {
			ready = append(ready, w)
			continue
		}
		if again == 0 || left < again {
			again = max(left, time.Millisecond)
		}
		kept = append(kept, w)
	}
	clear(j.waiting[len(kept):])
	j.waiting = kept
	return ready, again
}

func (w *joining) admit(polled bool) (ok bool) {
	t := w.sub.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if w.admitted, ok = t.feed.admit(polled); ok {
		w.sub.s.mu.Lock()
		w.sub.admitted()
		w.sub.s.mu.Unlock()
	}
	return ok
}

// join reads the positions of a batch and makes each subscription live, or ends it with a reset.
func (j *joiner) join(ctx context.Context, batch []joining) {
	questions := make([]wire.Question, len(batch))
	for i, w := range batch {
		w.sub.s.mu.Lock()
		questions[i] = wire.Question{Topic: w.sub.t.name, Cursor: w.sub.question(), Subject: w.sub.subject}
		w.sub.s.mu.Unlock()
	}
	readCtx, cancel := context.WithTimeout(ctx, joinTimeout)
	epoch, positions, err := j.shard.journal.Positions(readCtx, questions)
	cancel()
	if err != nil {
		j.failed(ctx, batch, err)
		return
	}
	if epoch != j.shard.Epoch() {
		j.shard.heads.kick() // it decides about epochs
		j.shard.heads.waitPoll(ctx)
	}
	var again []*subscription
	for i, w := range batch {
		if !j.decide(w, epoch, positions[i]) {
			again = append(again, w.sub)
		}
	}
	switch {
	case len(again) == 0:
	case epoch == j.shard.Epoch():
		j.add(again...)
	default:
		j.shard.b.after(100*time.Millisecond, func() { j.add(again...) })
	}
}

// decide makes a subscription live, or ends it; false: it is to join again. It holds the topic's mu throughout, so that
// a change of epoch comes wholly before it or wholly after it.
func (j *joiner) decide(w joining, epoch string, p wire.Position) bool {
	sub, t, s := w.sub, w.sub.t, w.sub.s
	t.mu.Lock()
	s.mu.Lock()
	outcome := sub.join(&t.feed, w.admitted, epoch, p)
	switch outcome {
	case joinAnswered:
		s.sendLocked(func(b []byte) []byte {
			return wire.AppendSubscribed(b, sub.id, t.name, epoch, sub.cursor, p.Head)
		})
		s.wakeLocked(sub)
	case joinResumed:
		s.wakeLocked(sub)
	case joinReset:
		sub.resetLocked(epoch, p)
	case joinRevoked:
		sub.fencedLocked()
	}
	s.mu.Unlock()
	t.mu.Unlock()
	if outcome == joinReset || outcome == joinRevoked {
		j.shard.b.detach(sub)
	} else if t.behind() {
		j.shard.heads.suspect(t)
	}
	return outcome != joinAgain
}

// resetLocked tells the client why its subscription has ended.
func (sub *subscription) resetLocked(epoch string, p wire.Position) {
	b := sub.s.b
	b.metrics.resets.WithLabelValues(p.Reason).Inc()
	sub.endLocked()
	inMS := jitter(b.cfg.ResetSpread).Milliseconds()
	sub.s.sendLocked(func(buf []byte) []byte {
		return wire.AppendReset(buf, sub.t.name, epoch, p.Head, p.Reason, inMS)
	})
}

// failed answers new subscriptions with an error and lets the others wait: their clients have what they have.
func (j *joiner) failed(ctx context.Context, batch []joining, err error) {
	if ctx.Err() != nil {
		return
	}
	j.shard.log.Warn("cursors cannot be checked", "subscriptions", len(batch), "error", err)
	var again []*subscription
	for _, w := range batch {
		sub, s := w.sub, w.sub.s
		s.mu.Lock()
		ended := sub.state == subEnded
		switch {
		case sub.unasked():
			again = append(again, sub)
			s.mu.Unlock()
			continue
		case !ended:
			sub.endLocked()
			s.sendLocked(func(p []byte) []byte {
				return wire.AppendError(p, sub.id, &wire.Error{Code: wire.CodeUnavailable,
					Message: "the database cannot be asked now; subscribe again in a moment"})
			})
		}
		s.mu.Unlock()
		j.shard.b.detach(sub)
	}
	if len(again) > 0 {
		j.shard.b.after(500*time.Millisecond, func() { j.add(again...) })
	}
}
