package broadcaster

import (
	"context"
	"fmt"
	"math"

	"github.com/commitcast/commitcast/auth"
	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

// A fence is an event that takes a topic from a subject. It ends the subject's subscriptions at its offset, and nobody sees
// it. Three rules make that so, whatever way events come:
//
//   - Who joins is asked about in the read that tells the head (Position.Revoked): it knows of every fence up to there.
//   - A fence that comes later marks the subject's readers before the log takes it, so that none reads past it; a reader that
//     is behind the log is ended at once.
//   - A reader that is behind meets the fences of its replay itself. Those that were already known of when it joined concern
//     it no more: it would not have joined, had it not been restored since.
//
// A log that begins anew or skips may have missed fences: who is behind it then is asked about again before it reads on.

// fence is what a reader knows about the right of its subject to read. Guarded by the session's mu.
type fence struct {
	subject string // "": nobody's right can be revoked
	known   int64  // id of the newest change that was known of when the reader joined
	cleared int64  // the head at that time
	at      int64  // the offset that the subject must not be shown, nor any after it; 0: none. Joining: of the newest mark
	id      int64  // of that event
}

// mark takes note of a fence that was read in an epoch. A reader that is live in another is about to join again.
func (r *reader) mark(f *wire.Fence, epoch string) {
	if !f.Revoked || r.subject == "" || f.Subject != r.subject || f.ID <= r.known || r.state == subLive && r.epoch != epoch {
		return
	}
	switch {
	case r.at > 0 && r.state == subLive && f.Offset >= r.at: // it ends at the first one
	case r.at > 0 && r.state != subLive && f.ID <= r.id: // what counts is whether the database knew of the newest
	default:
		r.at, r.id = f.Offset, f.ID
	}
}

// admitted forgets what it was marked with: the position that is read now knows of all that, and in another history it would
// not be true.
func (r *reader) admitted() {
	if r.state == subJoining {
		r.known, r.at, r.id = 0, 0, 0
	}
}

// may takes what the database says about the subject, and reports whether it may read.
func (r *reader) may(p wire.Position) bool {
	if p.Revoked || r.id > p.Changed {
		return false
	}
	r.known, r.cleared = p.Changed, p.Head
	r.at, r.id = 0, 0
	return true
}

// meets takes a fence out of a replay, and reports whether the reader ends at it.
func (r *reader) meets(frame []byte) (end bool) {
	f, err := wire.ParseFence(frame)
	if err == nil {
		r.mark(&f, r.epoch)
	}
	return r.at > 0
}

// limit is the first offset that the reader may not be shown.
func (r *reader) limit() int64 {
	if r.at > 0 {
		return r.at
	}
	return math.MaxInt64
}

// shown is what is seen in place of a fence: a frame that fills its offset. What cannot be read, and comes from no worker, is
// passed on like anything else that somebody may publish there.
func shown(frame []byte) []byte {
	f, err := wire.ParseFence(frame)
	if err != nil {
		return frame
	}
	return f.AppendSkip(nil)
}

// fences are those among the frames of a run.
func fences(run stream.Run) (found []wire.Fence) {
	for _, frame := range run.Frames {
		if wire.IsFence(frame) {
			if f, err := wire.ParseFence(frame); err == nil {
				found = append(found, f)
			}
		}
	}
	return found
}

// fenceLocked tells the readers of a topic of the fences in a run, before the log takes it.
func (t *topic) fenceLocked(run stream.Run) {
	for _, f := range fences(run) {
		for _, sub := range t.subs {
			sub.s.mu.Lock()
			sub.mark(&f, run.Epoch)
			sub.s.mu.Unlock()
		}
	}
}

// revoked is what a client is told whose subject may not read a topic any more.
func revoked(topic string) *wire.Error {
	return &wire.Error{Code: wire.CodeForbidden, Message: fmt.Sprintf("the right to read topic %q was revoked", topic)}
}

// askFence asks whether a client's right to read a topic was revoked, where a refusal has to come before the answer of a
// joining could. If that cannot be asked now, the joining tells.
func (b *Broadcaster) askFence(ctx context.Context, who *auth.Identity, topic string) *wire.Error {
	if who == nil || who.Subject == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	_, p, err := b.shardOf(topic).journal.Positions(ctx, []wire.Question{{Topic: topic, Subject: who.Subject}})
	if err != nil || !p[0].Revoked {
		return nil
	}
	return revoked(topic)
}
