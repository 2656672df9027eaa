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
)

// joiner takes subscriptions from registered to live: once their channel is confirmed it reads heads and checks
// cursors, many in one read. It also checks again the cursors of subscriptions whose epoch ended.
type joiner struct {
	b      *Broadcaster
	kicked chan struct{}

	mu      sync.Mutex
	waiting []joining
}

type joining struct {
	sub   *subscription
	since time.Time
}

func (j *joiner) add(subs ...*subscription) {
	now := time.Now()
	j.mu.Lock()
	for _, sub := range subs {
		j.waiting = append(j.waiting, joining{sub, now})
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
			j.join(ctx, ready)
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
func (j *joiner) take(now time.Time) (ready []*subscription, again time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	kept := j.waiting[:0]
	for _, w := range j.waiting {
		left := joinWait - now.Sub(w.since)
		if len(ready) < joinBatch && (left <= 0 || !j.b.pushUp.Load() && j.b.pushTried.Load() || w.sub.t.isConfirmed()) {
			ready = append(ready, w.sub)
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

func (t *topic) isConfirmed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.confirmed
}

// join reads the positions of a batch and makes each subscription live, or ends it with a reset.
func (j *joiner) join(ctx context.Context, subs []*subscription) {
	questions := make([]wire.Question, len(subs))
	for i, sub := range subs {
		questions[i].Topic = sub.t.name
		sub.s.mu.Lock()
		if sub.answered {
			questions[i].Cursor = wire.Cursor{Epoch: sub.epoch, Offset: sub.cursor}
		} else {
			questions[i].Cursor = sub.asked
		}
		sub.s.mu.Unlock()
	}
	readCtx, cancel := context.WithTimeout(ctx, joinTimeout)
	epoch, positions, err := j.b.journal.Positions(readCtx, questions)
	cancel()
	if err != nil {
		j.failed(ctx, subs, err)
		return
	}
	if epoch != j.b.Epoch() {
		// The database is in another epoch than this node: heads.go decides, then these are decided in it.
		j.b.heads.kick()
		j.b.heads.waitPoll(ctx)
		if epoch != j.b.Epoch() {
			j.b.after(100*time.Millisecond, func() { j.add(subs...) })
			return
		}
	}
	for i, sub := range subs {
		j.decide(sub, epoch, positions[i])
	}
}

// decide makes a subscription live, or ends it. It holds the topic's mu throughout, so that a change of epoch comes
// wholly before it or wholly after it.
func (j *joiner) decide(sub *subscription, epoch string, p wire.Position) {
	t, s := sub.t, sub.s
	t.mu.Lock()
	if t.channel.Epoch != epoch {
		t.mu.Unlock()
		j.add(sub)
		return
	}
	t.log.start(epoch, p.Head+1)
	t.want.Store(max(t.want.Load(), p.Head))
	s.mu.Lock()
	live := sub.state == subJoining && !s.closed
	if live && p.Reason != "" {
		sub.resetLocked(epoch, p.Head, p.Reason)
	} else if live {
		sub.goLiveLocked(epoch, p.Head)
	}
	s.mu.Unlock()
	t.mu.Unlock()
	if p.Reason != "" {
		j.b.detach(sub)
	} else if t.lags() {
		j.b.heads.suspect(t)
	}
}

// goLiveLocked lets the subscription follow the log, and answers the request if that is still to be done.
func (sub *subscription) goLiveLocked(epoch string, head int64) {
	sub.state, sub.epoch = subLive, epoch
	if !sub.answered {
		sub.answered = true
		sub.cursor = head
		if !sub.asked.IsZero() {
			sub.cursor = sub.asked.Offset
		}
		sub.s.sendLocked(func(b []byte) []byte {
			return wire.AppendSubscribed(b, sub.id, sub.t.name, epoch, sub.cursor, head)
		})
	}
	sub.s.wakeLocked(sub)
}

// failed answers new subscriptions with an error and lets the others wait: their clients have what they have.
func (j *joiner) failed(ctx context.Context, subs []*subscription, err error) {
	if ctx.Err() != nil {
		return
	}
	j.b.log.Warn("cursors cannot be checked", "subscriptions", len(subs), "error", err)
	var again []*subscription
	for _, sub := range subs {
		s := sub.s
		s.mu.Lock()
		if sub.answered {
			again = append(again, sub)
			s.mu.Unlock()
			continue
		}
		if sub.state == subJoining {
			sub.endLocked()
			s.sendLocked(func(p []byte) []byte {
				return wire.AppendError(p, sub.id, &wire.Error{Code: wire.CodeUnavailable,
					Message: "the database cannot be asked now; subscribe again in a moment"})
			})
		}
		s.mu.Unlock()
		j.b.detach(sub)
	}
	if len(again) > 0 {
		j.b.after(500*time.Millisecond, func() { j.add(again...) })
	}
}
