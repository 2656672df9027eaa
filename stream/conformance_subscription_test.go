package stream

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/commitcast/commitcast/internal/testkit"
)

func testConfirmedThenDelivered(t *testing.T, open maker) {
	s, epoch := open(t, 0), newEpoch()
	before, after := channel(epoch, "before"), channel(epoch, "after")
	h := newRecorder()
	sub := s.NewSubscription(h)
	sub.Add(before, before) // before Run, and twice
	sub.Add(before)
	ctx, cancel := context.WithCancel(context.Background())
	done := background(func() { sub.Run(ctx) })
	defer func() { cancel(); <-done; h.check(t) }()
	h.waitConfirmed(t, before)
	sub.Add(after)
	h.waitConfirmed(t, after)
	// Live means live: what is published from now on arrives.
	offer(t, s, Offer{Run: run(before, 1, 2)}, Appended, 3)
	offer(t, s, Offer{Run: run(after, 1, 1)}, Appended, 2)
	h.waitLast(t, before, 2)
	h.waitLast(t, after, 1)
	if n := h.times(before); n != 1 {
		t.Errorf("confirmed %d times, want once: adding twice has no effect", n)
	}
	if len(h.heard(before)) != 1 || h.downCount() != 0 {
		t.Errorf("%d runs, %d downs", len(h.heard(before)), h.downCount())
	}
}

// background runs f in a goroutine that the caller owns, and closes the channel when it returns.
func background(f func()) <-chan struct{} {
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	return done
}

func testRemoveAndAdd(t *testing.T, open maker) {
	s, epoch := open(t, 0), newEpoch()
	ch, sentinel := channel(epoch, "t"), channel(epoch, "sentinel")
	h := newRecorder()
	sub, _ := subscribe(t, s, h)
	sub.Add(ch, sentinel)
	sub.Remove(channel(epoch, "never added"))
	h.waitConfirmed(t, ch, sentinel)
	offer(t, s, Offer{Run: run(ch, 1, 1)}, Appended, 2)
	h.waitLast(t, ch, 1)

	sub.Remove(ch)
	offer(t, s, Offer{Run: run(ch, 2, 2)}, Appended, 3)
	offer(t, s, Offer{Run: run(sentinel, 1, 1)}, Appended, 2)
	h.waitLast(t, sentinel, 1)
	if n := len(h.heard(ch)); n != 1 {
		t.Errorf("%d runs of a removed channel delivered", n-1)
	}

	confirmed := h.times(ch)
	for range 10 { // each Add is confirmed, also if the connection never stopped listening
		sub.Add(ch)
		testkit.Eventually(t, patience, func() bool { return h.times(ch) > confirmed }, "confirmed again")
		confirmed = h.times(ch)
		sub.Remove(ch)
	}
	sub.Add(ch)
	testkit.Eventually(t, patience, func() bool { return h.times(ch) > confirmed }, "confirmed again")
	offer(t, s, Offer{Run: run(ch, 3, 3)}, Appended, 4)
	h.waitLast(t, ch, 3)
	if n := len(h.heard(ch)); n != 2 {
		t.Errorf("%d runs delivered, want 2", n)
	}
}

func testRunTwice(t *testing.T, open maker) {
	s, ch := open(t, 0), channel(newEpoch(), "t")
	h := newRecorder()
	sub, stop := subscribe(t, s, h)
	sub.Add(ch)
	h.waitConfirmed(t, ch)
	if err := sub.Run(t.Context()); err == nil {
		t.Error("a second Run at the same time was accepted")
	}
	stop()
	offer(t, s, Offer{Run: run(ch, 1, 1)}, Appended, 2) // nobody listens
	ctx, cancel := context.WithCancel(context.Background())
	confirmed := h.times(ch)
	done := background(func() { sub.Run(ctx) })
	defer func() { cancel(); <-done; h.check(t) }()
	testkit.Eventually(t, patience, func() bool { return h.times(ch) > confirmed }, "confirmed again")
	offer(t, s, Offer{Run: run(ch, 2, 2)}, Appended, 3)
	h.waitLast(t, ch, 2)
	if n := len(h.heard(ch)); n != 1 {
		t.Errorf("%d runs delivered, want 1", n)
	}
}

// testThousands is a change of epoch under a broadcaster with many topics.
func testThousands(t *testing.T, open maker) {
	const topics = 20_000 // more than maxUnanswered
	s, epochs := open(t, 0), []string{newEpoch(), newEpoch()}
	var chs [2][]Channel
	for i := range topics {
		for e := range chs {
			chs[e] = append(chs[e], channel(epochs[e], fmt.Sprintf("topic:%d", i)))
		}
	}
	h := newRecorder()
	sub, _ := subscribe(t, s, h)
	start := time.Now()
	sub.Add(chs[0]...)
	h.waitConfirmed(t, chs[0]...)
	t.Logf("%d channels confirmed in %v", topics, time.Since(start))

	start = time.Now()
	sub.Remove(chs[0]...)
	sub.Add(chs[1]...)
	if d := time.Since(start); d > 5*time.Second { // a machine that does much else needs one for 20,000 names
		t.Errorf("Remove and Add took %v: they must not wait", d)
	}
	h.waitConfirmed(t, chs[1]...)
	t.Logf("changed to %d others in %v", topics, time.Since(start))
	for i := 0; i < topics; i += topics / 20 {
		offer(t, s, Offer{Run: run(chs[0][i], 1, 1)}, Appended, 2)
		offer(t, s, Offer{Run: run(chs[1][i], 1, 1)}, Appended, 2)
		h.waitLast(t, chs[1][i], 1)
		if len(h.heard(chs[0][i])) != 0 {
			t.Fatal("a run of a removed channel was delivered")
		}
	}
	if n := h.downCount(); n != 0 {
		t.Errorf("down %d times", n)
	}
}

// testChurn adds and removes the same channels from several goroutines while they are published to. In the end what is
// wanted is live, and what was confirmed at any time missed nothing while it was wanted.
func testChurn(t *testing.T, open maker) {
	s, epoch := open(t, 0), newEpoch()
	h := newRecorder()
	sub, _ := subscribe(t, s, h)
	var chs []Channel
	for i := range 50 {
		chs = append(chs, channel(epoch, fmt.Sprintf("t%d", i)))
	}
	var wg sync.WaitGroup
	for w := range 4 {
		rng := rand.New(rand.NewPCG(1, uint64(w)))
		wg.Go(func() {
			for range 2_000 {
				i := rng.IntN(len(chs))
				if rng.IntN(2) == 0 {
					sub.Add(chs[i])
				} else {
					sub.Remove(chs[i], chs[rng.IntN(len(chs))])
				}
			}
		})
	}
	wg.Go(func() {
		for n := int64(1); n <= 20; n++ {
			var offers []Offer
			for _, ch := range chs {
				offers = append(offers, Offer{Run: run(ch, n, n)})
			}
			publish(t, s, offers...)
		}
	})
	wg.Wait()
	for round := range int64(3) {
		sub.Remove(chs...)
		confirmed := confirmations(chs, h)
		sub.Add(chs...)
		for i, ch := range chs {
			testkit.Eventually(t, patience, func() bool { return h.times(ch) > confirmed[i] }, "%s confirmed again", ch.Topic)
		}
		n := 21 + round
		for _, ch := range chs {
			offer(t, s, Offer{Run: run(ch, n, n)}, Appended, n+1)
		}
		for _, ch := range chs {
			h.waitLast(t, ch, n)
		}
	}
}

func confirmations(chs []Channel, h *recorder) (times []int) {
	for _, ch := range chs {
		times = append(times, h.times(ch))
	}
	return times
}

// testOrder publishes from several goroutines, two of them the same topic, as two drainers of one partition do at a
// takeover. Each topic arrives without hole, repetition or inversion.
func testOrder(t *testing.T, open maker) {
	const last = 400
	s, epoch := open(t, 0), newEpoch()
	h := newRecorder()
	sub, _ := subscribe(t, s, h)
	var chs []Channel
	for i := range 4 {
		chs = append(chs, channel(epoch, fmt.Sprintf("t%d", i)))
	}
	sub.Add(chs...)
	h.waitConfirmed(t, chs...)
	var wg sync.WaitGroup
	for w := range 8 {
		ch := chs[w%len(chs)]
		rng := rand.New(rand.NewPCG(2, uint64(w)))
		wg.Go(func() {
			for next := int64(1); next <= last; {
				first := max(1, next-rng.Int64N(3))
				a := publish(t, s, Offer{Run: run(ch, first, min(last, first+rng.Int64N(8)))})[0]
				next = a.Next
			}
		})
	}
	wg.Wait()
	for _, ch := range chs {
		h.waitLast(t, ch, last)
		next := int64(1)
		for _, r := range h.heard(ch) {
			wantRun(t, r, ch, next, r.Last())
			next = r.Last() + 1
		}
		wantRange(t, s, ch, 0, last)
	}
}

// testSlowHandler holds a handler up. Publishers do not notice; afterwards everything was delivered, or the handler was
// told that something may be lost.
func testSlowHandler(t *testing.T, open maker) {
	const last = 6_000 // more than the in-process queue of the test holds
	s, epoch := open(t, 0), newEpoch()
	ch, other := channel(epoch, "t"), channel(epoch, "other")
	h := newRecorder()
	h.block = make(chan struct{})
	sub, _ := subscribe(t, s, h)
	sub.Add(ch)
	h.waitConfirmed(t, ch)
	offer(t, s, Offer{Run: run(ch, 1, 1)}, Appended, 2)
	h.waitLast(t, ch, 1) // the handler is busy
	slowest := time.Duration(0)
	for n := int64(2); n <= last; n++ {
		start := time.Now()
		offer(t, s, Offer{Run: run(ch, n, n)}, Appended, n+1)
		slowest = max(slowest, time.Since(start))
	}
	sub.Add(other) // does not block either
	sub.Remove(other)
	sub.Add(other)
	if len(h.heard(ch)) > 1 {
		t.Fatal("the handler was called while it was busy")
	}
	t.Logf("slowest publish %v", slowest)
	close(h.block)
	testkit.Eventually(t, patience, func() bool {
		runs := h.heard(ch)
		return h.isConfirmed(ch, other) && (h.downCount() == 1 || runs[len(runs)-1].Last() == last)
	}, "all delivered, or down and confirmed again")
	if h.downCount() == 0 && len(h.heard(ch)) != last {
		t.Fatalf("%d runs of %d delivered, and never down", len(h.heard(ch)), last)
	}
	offer(t, s, Offer{Run: run(ch, last+1, last+1)}, Appended, last+2)
	h.waitLast(t, ch, last+1)
	if _, isMemory := s.(*Memory); isMemory && h.downCount() != 1 {
		t.Errorf("down %d times, want once: the queue is bounded", h.downCount())
	}
}

func testTwoSubscriptions(t *testing.T, open maker) {
	s, ch := open(t, 0), channel(newEpoch(), "t")
	a, b := newRecorder(), newRecorder()
	subA, _ := subscribe(t, s, a)
	subB, stopB := subscribe(t, s, b)
	subA.Add(ch)
	subB.Add(ch)
	a.waitConfirmed(t, ch)
	b.waitConfirmed(t, ch)
	offer(t, s, Offer{Run: run(ch, 1, 1)}, Appended, 2)
	a.waitLast(t, ch, 1)
	b.waitLast(t, ch, 1)
	stopB()
	offer(t, s, Offer{Run: run(ch, 2, 2)}, Appended, 3)
	a.waitLast(t, ch, 2)
	if n := len(b.heard(ch)); n != 1 {
		t.Errorf("%d runs delivered to a subscription that ended", n-1)
	}
}
