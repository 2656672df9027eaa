package worker

import (
	"fmt"
	"time"

	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

// batch is what a drain hands to its publisher: events of consecutive seqs, grouped into runs.
type batch struct {
	gen      uint64 // a new generation begins again at base; what belongs to an older one is dropped
	epoch    string
	base     int64
	last     int64 // the last seq in it
	runs     []run
	announce bool // may have been offered before, with an answer that did not arrive
	oldest   time.Time
}

// run is a contiguous run of one topic's events.
type run struct {
	topic   string
	first   int64 // offset
	seq     int64 // of the first event
	frames  [][]byte
	sampled []wire.Span // of its sampled events, that of their being sequenced
}

func (r run) last() int64 { return r.first + int64(len(r.frames)) - 1 }

// verdict is what follows from the answer to one offer.
type verdict uint8

const (
	confirmed verdict = iota + 1 // the stream has all of it
	refill                       // offer again from an offset on, out of the journal
	restart                      // drop what the stream has and begin at the offer
	refused                      // this run was refused: set its topic aside, and let others pass
)

// maxRefill is how many events a hole in the stream may have to be worth filling: the stream keeps about as many.
const maxRefill = stream.DefaultMaxLen

// decide says what follows from the answer to an offer: the verdict and, for refill, the offset to go on from.
func decide(o stream.Offer, a stream.Answer) (v verdict, from int64) {
	switch {
	case a.Err != nil:
		return refused, 0
	case a.Outcome == stream.Appended || a.Outcome == stream.Duplicate:
		if a.Next > 0 && a.Next <= o.Last() {
			return refill, max(a.Next, o.First) // only a part was taken
		}
		return confirmed, 0
	case a.Outcome == stream.Gap && a.Next >= 1 && a.Next < o.First && o.First-a.Next <= maxRefill:
		return refill, a.Next
	case a.Outcome == stream.Gap && !o.Restart:
		return restart, 0
	}
	return refused, 0 // not an answer
}

// reason is the error of an answer that decide calls refused.
func reason(a stream.Answer) error {
	if a.Err != nil {
		return a.Err
	}
	return fmt.Errorf("the stream answered with outcome %d and offset %d", a.Outcome, a.Next)
}

// laggard is a topic with a hole in the stream. What is missing is not kept but read from the journal again, so a
// laggard costs the same however wide the hole is.
type laggard struct {
	next     int64       // offset to offer next
	last     int64       // newest offset known
	restart  bool        // the next offer restarts the stream
	attempts int         // in a row without progress
	due      time.Time   // of the next attempt
	sampled  []wire.Span // of events that were never confirmed
}

const (
	// retryLeast and retryMost are the waits between attempts to fill a hole that comes back.
	retryLeast = 250 * time.Millisecond
	retryMost  = 30 * time.Second
	// maxLaggards bounds the topics of one partition that lag at once. With more, no further events are taken over:
	// the stream is then in trouble as a whole.
	maxLaggards = 10_000
)

// failed puts off the next attempt. A hole is filled at once; one that comes back waits.
func (l *laggard) failed(now time.Time) {
	l.due = now
	if l.attempts > 0 {
		l.due = now.Add(jitter(backoff(l.attempts, retryLeast, retryMost)))
	}
	l.attempts++
}
