package worker

import (
	"testing"
	"time"

	"github.com/riverqueue/river/rivertype"
)

// clock drives a prospect as the dispatcher does, one sweep every sweepBusy.
type clock struct {
	now       time.Time
	p         prospect
	orders    []int64
	state     rivertype.JobState    // of the job that an order finds
	duplicate func(term int64) bool // whether it finds one
	streamUp  bool
}

func newClock() *clock {
	return &clock{now: time.Unix(1_000_000, 0), state: rivertype.JobStateAvailable, streamUp: true,
		duplicate: func(int64) bool { return false }}
}

func (c *clock) sweep(s sight, o livingOwner) (term int64, why string) {
	c.now = c.now.Add(sweepBusy)
	if !c.p.see(s, c.now) {
		return 0, ""
	}
	term, why = c.p.judge(o, c.now, func() bool { return c.streamUp })
	if term > 0 {
		c.orders = append(c.orders, term)
		c.p.ordered(term, c.now, c.duplicate(term), c.state)
	}
	return term, why
}

// sweeps sweeps for a while and returns what was ordered.
func (c *clock) sweeps(d time.Duration, s sight, o livingOwner) []int64 {
	before := len(c.orders)
	for end := c.now.Add(d); c.now.Before(end); {
		c.sweep(s, o)
	}
	return c.orders[before:]
}

func seconds(s float64) *float64 { return &s }

func TestProspectOrdersAtOnceWhereNobodyOwns(t *testing.T) {
	c := newClock()
	if term, why := c.sweep(sight{term: 7, seq: 5, published: 5, waiting: true}, livingOwner{}); term != 8 || why != "" {
		t.Errorf("term %d, %q", term, why)
	}
}

func TestProspectTakesOverWhatWasLost(t *testing.T) {
	c := newClock()
	last := int64(2 * ownerCheck / sweepBusy) // the owner was looked at, and is due to be again
	for i := range last + 1 {
		if term, _ := c.sweep(sight{term: 7, seq: 5 + i, published: i, waiting: true}, livingOwner{term: 7, silent: seconds(0)}); term != 0 {
			t.Fatalf("ordered term %d past an owner that makes progress", term)
		}
	}
	if term, why := c.sweep(sight{term: 7, seq: 5 + last, published: last, waiting: true}, livingOwner{}); term != 8 || why != "lost" {
		t.Errorf("one sweep after the loss: term %d, %q", term, why)
	}
}

func TestProspectPassesASilentOwnerAfterAWhile(t *testing.T) {
	c := newClock()
	s := sight{term: 7, seq: 5, published: 2}
	o := livingOwner{term: 7, silent: seconds(0.02)}
	if got := c.sweeps(time.Minute, s, o); len(got) != 0 {
		t.Fatalf("an owner that works but cannot publish was passed: %v", got)
	}
	c = newClock()
	start := c.now
	o.silent = seconds(10)
	for len(c.orders) == 0 && c.now.Sub(start) < 10*time.Second {
		c.sweep(s, o)
	}
	if took := c.now.Sub(start); len(c.orders) != 1 || c.orders[0] != 8 || took < stallAfter || took > stallAfter+300*time.Millisecond {
		t.Errorf("ordered %v after %v", c.orders, took)
	}
}

func TestProspectDoesNotStorm(t *testing.T) {
	c := newClock()
	// A minute without progress, by whoever has the highest term.
	s := sight{term: 7, seq: 5, published: 2}
	for end := c.now.Add(time.Minute); c.now.Before(end); {
		if term, _ := c.sweep(s, livingOwner{term: s.term, silent: seconds(10)}); term > 0 {
			s.term = term // it begins, and hangs as well
		}
	}
	if n := len(c.orders); n < 3 || n > 31 {
		t.Errorf("%d takeovers in a minute: %v", n, c.orders)
	}
}

func TestProspectAsksTheStreamWhereActivityIsUnknown(t *testing.T) {
	c := newClock()
	c.streamUp = false
	s := sight{term: 7, seq: 5, published: 2}
	if got := c.sweeps(30*time.Second, s, livingOwner{term: 7}); len(got) != 0 {
		t.Errorf("took over although nobody could publish: %v", got)
	}
	s.waiting = true
	if got := c.sweeps(3*time.Second, s, livingOwner{term: 7}); len(got) != 1 {
		t.Errorf("events wait to be sequenced, but ordered %v", got)
	}
}

func TestProspectGoesOnPastAnOrderThatDoesNotBegin(t *testing.T) {
	c := newClock()
	s := sight{term: 7, seq: 5, published: 5, waiting: true}
	c.sweep(s, livingOwner{})
	c.duplicate, c.state = func(term int64) bool { return term == 8 }, rivertype.JobStateRunning // taken up, and its process died
	start := c.now
	for c.orders[len(c.orders)-1] != 9 && c.now.Sub(start) < 10*time.Second {
		c.sweep(s, livingOwner{})
	}
	if took := c.now.Sub(start); took < beginWithin || took > 2*beginWithin {
		t.Errorf("orders %v after %v", c.orders, took)
	}
	c.duplicate = func(int64) bool { return true } // none ever begins
	c.sweeps(time.Minute, s, livingOwner{})
	if n := len(c.orders); n > 30 {
		t.Errorf("%d orders in a minute: %v", n, c.orders)
	}
}

// Two dispatchers must agree on one term: the second finds the first's order, perhaps taken up already.
func TestProspectGivesAnothersOrderItsTime(t *testing.T) {
	c := newClock()
	c.duplicate, c.state = func(int64) bool { return true }, rivertype.JobStateRunning
	s := sight{term: 7, seq: 5, published: 5, waiting: true}
	if got := c.sweeps(beginWithin-sweepBusy, s, livingOwner{}); len(got) != 1 || got[0] != 8 {
		t.Errorf("orders %v", got)
	}
}

func TestProspectWaitsForAJobThatNobodyHasFetched(t *testing.T) {
	c := newClock()
	s := sight{term: 7, seq: 5, published: 5, waiting: true}
	c.sweep(s, livingOwner{})
	c.duplicate = func(int64) bool { return true }
	c.sweeps(10*time.Second, s, livingOwner{})
	for _, term := range c.orders {
		if term != 8 {
			t.Fatalf("orders %v", c.orders)
		}
	}
}

func TestProspectIgnoresAZombiesLock(t *testing.T) {
	c := newClock()
	// The lock of term 6 is still held, but term 7 has begun and is gone.
	if term, _ := c.sweep(sight{term: 7, seq: 5, published: 2}, livingOwner{term: 6, silent: seconds(100)}); term != 8 {
		t.Errorf("term %d", term)
	}
}
