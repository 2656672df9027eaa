package worker

import "time"

const (
	// restAbove is the number of events a second, sequenced by this process, from which on its sequencer rests after a round. A
	// round costs nearly the same for one event and for ten, so few large ones leave writers the processors; but the rest is what
	// an event waits longer, which a moderate rate must not pay.
	restAbove = 600
	// restTimes is how many times as long as a round a rest is, so a sequencer works for a sixth of the time at most. With
	// processors to spare, a round takes a millisecond and a rest five; where all compete for them, it soon is restMost.
	restTimes = 5
	restMost  = 20 * time.Millisecond
	// paceWindow is for how long rounds are looked at before it is decided anew. In four of these a second, a rate of two thirds
	// of restAbove never looks like more.
	paceWindow = 250 * time.Millisecond

	// sweepLeast, sweepBusy and sweepIdle are the times between two looks at the outbox: while looks find events of which nobody
	// has told this process, while there is work, and otherwise. They bound what a lost wake-up costs.
	sweepLeast = 2500 * time.Microsecond
	sweepBusy  = 5 * time.Millisecond
	sweepIdle  = 50 * time.Millisecond
	// sweepPatience is which part of the time since there was work may pass until the next look: an event a second is not worth
	// two hundred.
	sweepPatience = 16
)

// pace decides how long a sequencer rests between rounds. Pure: it decides from what it is told.
type pace struct {
	since  time.Time // of what follows
	events int
	rounds int
	took   time.Duration // all rounds that had events
	rest   time.Duration // by the window before
}

// after takes note of a round that has sequenced n events, and says how long to rest after it.
func (p *pace) after(n int, began, ended time.Time) time.Duration {
	if n > 0 {
		p.events += n
		p.rounds++
		p.took += ended.Sub(began)
	}
	if window := ended.Sub(p.since); window >= paceWindow {
		rest := time.Duration(0)
		if float64(p.events) > restAbove*window.Seconds() {
			rest = min(restTimes*p.took/time.Duration(p.rounds), restMost)
		}
		*p = pace{since: ended, rest: rest}
	}
	return p.rest
}

// full: the turn has a whole batch to do, and gains nothing from a rest; or a drain begins or ends with it.
func (t *turn) full() bool {
	return t.begin || t.end || t.at.more || t.read && t.at.seq-t.cursor >= int64(t.limit)
}

// sweepWait is the time until the next look at the outbox, given how long ago there was work, how long ago a look found events
// that nobody had told of, and how long the sequencer rests: a look sooner than its next round is for nothing.
func sweepWait(sinceWork, sinceOverlooked, rest time.Duration) time.Duration {
	wait := min(max(sweepBusy, sinceWork/sweepPatience), max(sweepLeast, sinceOverlooked/sweepPatience))
	return min(max(wait, rest), sweepIdle)
}
