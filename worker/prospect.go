package worker

import (
	"time"

	"github.com/riverqueue/river/rivertype"
)

const (
	// beginWithin is how long an ordered drain may take to begin before the term after it is ordered. It doubles with
	// every further term, so that drains which cannot begin (no connection left, say) do not pile up.
	beginWithin = 250 * time.Millisecond
	// stallAfter is how long a living owner may make no progress. It doubles with every takeover that changed
	// nothing: the cause is then not the owner.
	stallAfter = 2 * time.Second
	// ownerCheck is the time between two looks at an owner that lives but makes no progress.
	ownerCheck = 100 * time.Millisecond
	// silentAfter is for how long Postgres waits for an owner that works, at most: it asks something
	// every pingEvery.
	silentAfter = time.Second
	// patienceMost caps both.
	patienceMost = 30 * time.Second
)

// sight is what a sweep sees of a partition with work.
type sight struct {
	term, seq, published int64
	waiting              bool // events in the outbox
}

// prospect is what the dispatcher knows of one partition. Pure: it decides from what it is told.
//
// Terms are chosen from the partition's own term and the living owner's, so dispatchers that see the same choose the
// same, and River's unique index makes one job of it.
type prospect struct {
	seen      bool      // the last sweep found work
	last      sight     // as of the last sweep
	since     time.Time // of the last change in last
	ownerSeen time.Time // an owner lived or made progress
	takeovers int       // in a row, without progress in between

	base   int64     // the term that orders follow
	term   int64     // the term to order, or that was ordered
	due    time.Time // when the order is looked at again
	waited int64     // the term that has had its time
	tries  int       // terms ordered after base that did not begin
}

// see takes note of a sweep that found work. It reports whether to look for the owner.
func (p *prospect) see(s sight, now time.Time) (suspect bool) {
	fresh := !p.seen
	moved := p.seen && (s.seq != p.last.seq || s.published != p.last.published || s.term != p.last.term)
	if moved {
		p.ownerSeen, p.takeovers = now, 0
	}
	if moved || fresh {
		p.since = now
	}
	if moved && s.term != p.last.term {
		p.due = time.Time{} // what was ordered has begun
	}
	p.seen, p.last = true, s
	switch {
	case moved:
		return false
	case fresh:
		return now.Sub(p.ownerSeen) > trustOwner
	}
	return now.After(p.due)
}

// clear takes note of a sweep that found no work.
func (p *prospect) clear() {
	*p = prospect{ownerSeen: p.ownerSeen}
}

// judge decides about a suspect, given its living owner: the term to order, or 0.
func (p *prospect) judge(o livingOwner, now time.Time, streamUp func() bool) (term int64, why string) {
	base := p.last.term
	switch {
	case o.term >= base && o.term > 0:
		p.ownerSeen = now
		p.due = now.Add(ownerCheck)
		stalled := now.Sub(p.since)
		if stalled < backoff(p.takeovers, stallAfter, patienceMost) {
			return 0, ""
		}
		if o.silent != nil && *o.silent < silentAfter.Seconds() {
			return 0, "" // it is at work; what it waits for, another would wait for, too
		}
		if o.silent == nil && !p.last.waiting && !streamUp() {
			return 0, "" // nobody could publish now
		}
		base, why = o.term, "silent"
		p.since = now
		p.takeovers++
	case p.last.term > 0 && now.Sub(p.ownerSeen) < trustOwner:
		why = "lost"
	}
	if p.base != base || p.term <= base {
		p.base, p.term, p.waited, p.tries = base, base+1, 0, 0
	}
	return p.term, why
}

// ordered takes note of what became of an order.
func (p *prospect) ordered(term int64, now time.Time, duplicate bool, state rivertype.JobState) {
	if duplicate && claimed(state) && p.waited == term {
		p.tries++
		p.term = term + 1
		p.due = now // order it in the next sweep
		return
	}
	// Somebody else's order gets the same time as one's own: it may just have been taken up.
	p.waited = term
	p.due = now.Add(backoff(p.tries, beginWithin, patienceMost))
}
