package worker

import (
	"context"
	"testing"
	"time"

	"github.com/commitcast/commitcast/internal/journal"
)

// Rests begin where much happens and rounds take long, and end with it: at moderate rates, and where there are processors to spare, an event
// never waits for one.
func TestRestByRate(t *testing.T) {
	const quick, slow = 750 * time.Microsecond, 8 * time.Millisecond
	for _, c := range []struct {
		perSecond  int
		partitions int // that have events
		took, want time.Duration
	}{
		{1, 1, slow, 0}, {200, 1, quick, 0}, {200, 32, slow, 0}, {400, 32, quick, 0}, {400, 32, slow, 0}, {restAbove - 10, 32, slow, 0},
		{800, 32, quick, 0}, {1500, 32, quick, 0}, // processors to spare
		{4000, 32, quick, restTimes * quick}, {800, 32, slow, restMost}, {20_000, 32, slow, restMost},
		{8000, 1, slow, time.Second * restEnough / 8000}, // a hot topic
	} {
		var p pace
		var rest time.Duration
		now, waiting := time.Now(), 0.0
		for end := now.Add(3 * time.Second); now.Before(end); {
			pause := max(rest+c.took, time.Second/time.Duration(c.perSecond))
			now, waiting = now.Add(pause), waiting+pause.Seconds()*float64(c.perSecond)
			n := int(waiting)
			waiting -= float64(n)
			rest = p.after(n, min(n, c.partitions), now.Add(-c.took), now)
			if c.want == 0 && rest != 0 {
				break
			}
		}
		if (rest-c.want).Abs() > time.Millisecond/4 || c.want == 0 && rest != 0 {
			t.Errorf("%d events/s of %d partitions, rounds of %v: a rest of %v, want %v", c.perSecond, c.partitions, c.took, rest, c.want)
		}
		for range 2 { // of which the first ends with the load's last events
			now = now.Add(2 * paceWindow)
			rest = p.after(1, 1, now.Add(-c.took), now)
		}
		if rest != 0 {
			t.Errorf("after %d events/s had ended: a rest of %v", c.perSecond, rest)
		}
	}
}

// Who rests goes on at a somewhat lower rate, and not at any.
func TestRestGoesOn(t *testing.T) {
	var p pace
	now := time.Now()
	for _, c := range []struct {
		perSecond int
		rests     bool
	}{{restAbove - 50, false}, {2 * restAbove, true}, {restAbove - 50, true}, {restAbove / 2, false}, {restAbove - 50, false}} {
		for range 2 * paceWindows {
			now = now.Add(paceWindow)
			for range 4 { // rounds
				p.after(c.perSecond/40, 8, now.Add(-8*time.Millisecond), now)
			}
		}
		if rests := p.rest > 0; rests != c.rests {
			t.Errorf("at %d events/s it rests: %t", c.perSecond, rests)
		}
	}
}

// A burst is no load: only some busy windows in a row make rests.
func TestBurstDoesNotRest(t *testing.T) {
	var p pace
	now := time.Now()
	p.after(1, 1, now, now)
	for i := range 20 {
		now = now.Add(paceWindow)
		n := restAbove
		if i%paceWindows == 0 {
			n = 1
		}
		if rest := p.after(n, 32, now.Add(-8*time.Millisecond), now); rest != 0 {
			t.Fatalf("a rest of %v in window %d", rest, i)
		}
	}
}

// What the pace says is when the next round may begin.
func TestSequencerRests(t *testing.T) {
	b := newBench(t)
	b.append(topicIn(5, 0), `1`)
	w, err := New(b.least, b.stream, Config{})
	if err != nil {
		t.Fatal(err)
	}
	s := newSequencer(w)
	defer s.drop()
	only := &turn{partition: 5, term: 1, begin: true, batch: 10}
	s.serve(t.Context(), []*turn{only})
	if only.err != nil || only.at.sequenced != 1 {
		t.Fatal(only.err, only.at.sequenced)
	}
	if s.resting() != 0 || s.next.After(time.Now()) {
		t.Errorf("after one event it rests for %v", s.resting())
	}
	only.begin = false
	s.pace = pace{since: time.Now().Add(time.Hour), rest: restMost} // no window ends here
	before := time.Now()
	s.serve(t.Context(), []*turn{only})
	if s.resting() != restMost || s.next.Before(before.Add(restMost)) {
		t.Errorf("under load it rests for %v, until %v after the round began", s.resting(), s.next.Sub(before))
	}
}

// Who has a whole batch to do, begins or ends never waits for the rest, nor does who waits with him; anybody else does.
func TestFullBatchNeverWaits(t *testing.T) {
	small := func() *turn {
		return &turn{partition: 1, read: true, limit: readRows, cursor: 7, at: standing{seq: 20}}
	}
	for name, full := range map[string]*turn{
		"the outbox has more":   {partition: 2, at: standing{more: true}},
		"the journal has more":  {partition: 2, read: true, limit: readRows, at: standing{seq: readRows}, since: journal.MinusInfinity},
		"a drain begins":        {partition: 2, begin: true},
		"a lock is to be freed": {partition: 2, end: true},
	} {
		for _, late := range []bool{false, true} {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			s := &sequencer{in: make(chan *turn, 2), next: time.Now().Add(time.Hour)}
			waiting := []*turn{small()}
			if late {
				s.in <- full
			} else {
				waiting = append(waiting, full)
			}
			if got := s.gather(ctx, waiting); len(got) != 2 || ctx.Err() != nil {
				t.Fatalf("%s, late %t: it waits for the rest (%d go, %v)", name, late, len(got), ctx.Err())
			}
		}
	}

	s := &sequencer{in: make(chan *turn, 2), next: time.Now().Add(restMost)}
	s.in <- small()
	if got := s.gather(t.Context(), []*turn{small()}); len(got) != 2 || time.Now().Before(s.next) {
		t.Errorf("%d went %v before the rest was over", len(got), time.Until(s.next))
	}
}

func TestSweepWait(t *testing.T) {
	const long = time.Hour
	ms := func(n float64) time.Duration { return time.Duration(n * float64(time.Millisecond)) }
	for _, c := range []struct{ sinceWork, sinceOverlooked, rest, want time.Duration }{
		{0, long, 0, sweepBusy},
		{0, 0, 0, sweepLeast},
		{ms(80), long, 0, ms(5)},
		{ms(80), ms(80), 0, ms(5)},
		{ms(400), long, 0, ms(25)},
		{ms(400), ms(400), 0, sweepBusy},
		{0, ms(48), 0, ms(3)},
		{time.Second, time.Second, 0, sweepIdle},
		{long, long, 0, sweepIdle},
		{0, 0, restMost, restMost},
		{0, long, restMost, restMost},
		{0, 0, long, sweepIdle},
	} {
		if got := sweepWait(c.sinceWork, c.sinceOverlooked, c.rest); got != c.want {
			t.Errorf("work %v ago, overlooked events %v ago, a rest of %v: %v, want %v", c.sinceWork, c.sinceOverlooked, c.rest, got, c.want)
		}
	}
}

// Events of which a drain knows do not count as overlooked, or sweeps would be as frequent where somebody announces them.
func TestOverlooked(t *testing.T) {
	h := newHub()
	swept := time.Now()
	if h.overlooked(3, swept) {
		t.Error("of a drain that is not here")
	}
	d := &drain{partition: 3, wake: make(chan struct{}, 1)}
	h.enter(d)
	if h.overlooked(3, swept) {
		t.Error("a question is under way")
	}
	d.asked.Store(swept.Add(time.Second).UnixNano())
	if h.overlooked(3, swept) {
		t.Error("the drain has looked since")
	}
	d.asked.Store(swept.Add(-time.Second).UnixNano())
	if !h.overlooked(3, swept) || len(d.wake) != 1 {
		t.Error("the drain was not woken")
	}
	if h.overlooked(3, swept) {
		t.Error("it was woken before")
	}
}
