package worker

import "time"

const (
	// restAbove is the number of events a second, sequenced by this process, from which on its sequencer rests after a round. A
	// round costs nearly the same for one event and for ten, so few large ones leave writers the processors; but the rest is what
	// an event waits longer, which a moderate rate must not pay.
	restAbove = 500
	// restTimes is how many times as long as a round a rest is, so a sequencer works for a sixth of the time at most. With
	// processors to spare, a round takes a millisecond and a rest five; where all compete for them, it soon is restMost.
	restTimes = 5
	restMost  = 20 * time.Millisecond
	// restLeast is how many events a rest must bring together, or there is none: with processors to spare, rounds are so short that it
	// would only be waited for.
	restLeast = 8
	// restEnough is how many events of each partition a rest brings together at most: a hot partition's rounds are large without.
	restEnough = 16
	// paceWindow is for how long rounds are looked at before it is decided anew. So many windows in a row must be above restAbove
	// before there are rests, so that no chance of a lower rate looks like it; one that is not ends them.
	paceWindow  = 100 * time.Millisecond
	paceWindows = 3

	// sweepLeast, sweepBusy and sweepIdle are the times between two looks at the outbox: while looks find events of which nobody
	// has told this process, while there is work, and otherwise. They bound what a lost wake-up costs.
	sweepLeast = 2500 * time.Microsecond
	sweepBusy  = 5 * time.Millisecond
	sweepIdle  = 50 * time.Millisecond
	// sweepPatience is which part of the time since then may pass until the next look: an event a second that somebody announces is
	// not worth two hundred looks.
	sweepPatience = 16
	// untoldFor is for how long after a look has found such events the next ones are expected, and the wait is sweepBusy at most.
	untoldFor = time.Second
)

// pace decides how long a sequencer rests between rounds. Pure: it decides from what it is told.
type pace struct {
	since      time.Time // of what follows, about rounds that had events
	events     int
	partitions int // that had events, in each round
	rounds     int
	took       time.Duration

	busy int           // windows above restAbove, in a row
	rest time.Duration // by the window before
}

// after takes note of a round that has sequenced so many events of so many partitions, and says how long to rest after it.
func (p *pace) after(events, partitions int, began, ended time.Time) time.Duration {
	if events > 0 {
		p.events += events
		p.partitions += partitions
		p.rounds++
		p.took += ended.Sub(began)
	}
	window := ended.Sub(p.since)
	if window < paceWindow {
		return p.rest
	}
	next := pace{since: ended}
	// Who rests goes on as long as it brings enough together: of two workers, one may have a part of the load that is near the bound.
	if float64(p.events) > restAbove*window.Seconds() || p.rest > 0 && p.events > 0 {
		rounds, events := time.Duration(p.rounds), time.Duration(p.events)
		rest := min(restTimes*p.took/rounds, restMost)
		rest = min(rest, window*restEnough*time.Duration(p.partitions)/rounds/events)
		if events*(rest+p.took/rounds) >= restLeast*window {
			next.busy = p.busy + 1
		}
		if next.busy >= paceWindows {
			next.rest = rest
		}
	}
	*p = next
	return p.rest
}

// full: the turn has a whole batch to do, and gains nothing from a rest; or a drain begins or ends with it.
func (t *turn) full() bool {
	return t.begin || t.end || t.at.more || t.read && t.at.seq-t.cursor >= int64(t.limit)
}

// sweepWait is the time until the next look at the outbox, given how long ago there was work, how long ago a look found events
// that nobody had told of, and how long the sequencer rests: a look sooner than its next round is for nothing.
func sweepWait(sinceWork, sinceOverlooked, rest time.Duration) time.Duration {
	wait := max(sweepBusy, sinceWork/sweepPatience)
	if sinceOverlooked < untoldFor {
		wait = min(sweepBusy, max(sweepLeast, sinceOverlooked/sweepPatience))
	}
	return min(max(wait, rest), sweepIdle)
}
