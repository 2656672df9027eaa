package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/wire"
)

// maker makes an empty stream that keeps about maxLen events a topic (0: the default) and whose subscriptions queue
// little, so that a stuck handler is soon too slow.
type maker func(t testing.TB, maxLen int) Stream

// The conformance suite: what both streams must do.
var suite = []struct {
	name string
	test func(t *testing.T, open maker)
}{
	{"Append", testAppend},
	{"Overlap", testOverlap},
	{"Duplicate", testDuplicate},
	{"Gap", testGap},
	{"Restart", testRestart},
	{"Announce", testAnnounce},
	{"RangeEdges", testRangeEdges},
	{"RangeBytes", testRangeBytes},
	{"Trimmed", testTrimmed},
	{"ManyRuns", testManyRuns},
	{"LongRun", testLongRun},
	{"Epochs", testEpochs},
	{"Refused", testRefused},
	{"LargestOffsets", testLargestOffsets},
	{"OddTopics", testOddTopics},
	{"LargestFrames", testLargestFrames},
	{"Unavailable", testUnavailable},
	{"ConfirmedThenDelivered", testConfirmedThenDelivered},
	{"RemoveAndAdd", testRemoveAndAdd},
	{"RunTwice", testRunTwice},
	{"Thousands", testThousands},
	{"Churn", testChurn},
	{"Order", testOrder},
	{"SlowHandler", testSlowHandler},
	{"TwoSubscriptions", testTwoSubscriptions},
}

func TestMemory(t *testing.T) {
	conform(t, func(t testing.TB, maxLen int) Stream {
		m := NewMemory(MemoryConfig{MaxLen: maxLen, MaxQueueRuns: 2_000, Logger: quiet})
		t.Cleanup(func() {
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		})
		return m
	})
}

func TestRedis(t *testing.T) {
	conform(t, func(t testing.TB, maxLen int) Stream {
		return newRedisStream(t, testkit.RedisURL(t), RedisConfig{MaxLen: maxLen, ProbeTimeout: time.Minute})
	})
}

func conform(t *testing.T, open maker) {
	for _, c := range suite {
		t.Run(c.name, func(t *testing.T) { c.test(t, open) })
	}
}

func testAppend(t *testing.T, open maker) {
	s, ch := open(t, 0), channel(newEpoch(), "market:42")
	offer(t, s, Offer{Run: run(ch, 1, 1)}, Appended, 2)
	offer(t, s, Offer{Run: run(ch, 2, 5)}, Appended, 6)
	wantRange(t, s, ch, 0, 5)
	// An empty stream takes any base: what is older is in the journal.
	other := channel(ch.Epoch, "market:43")
	offer(t, s, Offer{Run: run(other, 1001, 1003)}, Appended, 1004)
	wantRange(t, s, other, 1000, 1003)
}

func testOverlap(t *testing.T, open maker) {
	s, ch := open(t, 0), channel(newEpoch(), "t")
	h := newRecorder()
	sub, _ := subscribe(t, s, h)
	sub.Add(ch)
	h.waitConfirmed(t, ch)
	offer(t, s, Offer{Run: run(ch, 1, 5)}, Appended, 6)
	offer(t, s, Offer{Run: run(ch, 4, 7)}, Appended, 8)
	offer(t, s, Offer{Run: run(ch, 1, 8)}, Appended, 9)
	wantRange(t, s, ch, 0, 8)
	h.waitLast(t, ch, 8)
	runs := h.heard(ch)
	if len(runs) != 3 {
		t.Fatalf("%d runs delivered, want 3", len(runs))
	}
	wantRun(t, runs[1], ch, 6, 7) // only the suffix
	wantRun(t, runs[2], ch, 8, 8)
}

func testDuplicate(t *testing.T, open maker) {
	s, ch := open(t, 0), channel(newEpoch(), "t")
	h := newRecorder()
	sub, _ := subscribe(t, s, h)
	sub.Add(ch)
	h.waitConfirmed(t, ch)
	offer(t, s, Offer{Run: run(ch, 1, 5)}, Appended, 6)
	offer(t, s, Offer{Run: run(ch, 1, 5)}, Duplicate, 6)
	offer(t, s, Offer{Run: run(ch, 5, 5)}, Duplicate, 6)
	offer(t, s, Offer{Run: run(ch, 2, 3)}, Duplicate, 6)
	offer(t, s, Offer{Run: run(ch, 6, 6)}, Appended, 7)
	h.waitLast(t, ch, 6)
	if n := len(h.heard(ch)); n != 2 {
		t.Fatalf("%d runs delivered, want 2: a duplicate is not announced", n)
	}
	wantRange(t, s, ch, 0, 6)
}

func testGap(t *testing.T, open maker) {
	s, ch := open(t, 0), channel(newEpoch(), "t")
	h := newRecorder()
	sub, _ := subscribe(t, s, h)
	sub.Add(ch)
	h.waitConfirmed(t, ch)
	offer(t, s, Offer{Run: run(ch, 1, 2)}, Appended, 3)
	offer(t, s, Offer{Run: run(ch, 4, 4)}, Gap, 3)
	offer(t, s, Offer{Run: run(ch, 4, 4), Announce: true}, Gap, 3)
	wantRange(t, s, ch, 0, 2)
	offer(t, s, Offer{Run: run(ch, 3, 4)}, Appended, 5)
	h.waitLast(t, ch, 4)
	if n := len(h.heard(ch)); n != 2 {
		t.Fatalf("%d runs delivered, want 2: a gap is not announced", n)
	}
}

func testRestart(t *testing.T, open maker) {
	s, ch := open(t, 0), channel(newEpoch(), "t")
	offer(t, s, Offer{Run: run(ch, 1, 9)}, Appended, 10)
	offer(t, s, Offer{Run: run(ch, 1000, 1002), Restart: true}, Appended, 1003)
	wantRange(t, s, ch, 999, 1002)
	wantRange(t, s, ch, 0, 0)
	offer(t, s, Offer{Run: run(ch, 5, 6), Restart: true}, Appended, 7) // lower than before
	wantRange(t, s, ch, 4, 6)
}

func testAnnounce(t *testing.T, open maker) {
	s, ch := open(t, 0), channel(newEpoch(), "t")
	h := newRecorder()
	sub, _ := subscribe(t, s, h)
	sub.Add(ch)
	h.waitConfirmed(t, ch)
	offer(t, s, Offer{Run: run(ch, 1, 3)}, Appended, 4)
	offer(t, s, Offer{Run: run(ch, 1, 3), Announce: true}, Duplicate, 4)
	offer(t, s, Offer{Run: run(ch, 2, 5), Announce: true}, Appended, 6) // 2 and 3 may not have been heard
	h.waitLast(t, ch, 5)
	runs := h.heard(ch)
	if len(runs) != 3 {
		t.Fatalf("%d runs delivered, want 3", len(runs))
	}
	wantRun(t, runs[1], ch, 1, 3)
	wantRun(t, runs[2], ch, 2, 5)
	wantRange(t, s, ch, 0, 5)
}

func testRangeEdges(t *testing.T, open maker) {
	s, ch := open(t, 0), channel(newEpoch(), "t")
	wantRange(t, s, ch, 0, 0) // nothing there
	offer(t, s, Offer{Run: run(ch, 11, 20)}, Appended, 21)
	for _, c := range []struct{ after, last int64 }{
		{10, 20}, {11, 20}, {19, 20}, // inside
		{20, 20}, {21, 21}, {1 << 40, 1 << 40}, {wire.MaxInteger, wire.MaxInteger}, // at and after the end
		{9, 9}, {0, 0}, {-1, -1}, {-5, -5}, // before the first
	} {
		wantRange(t, s, ch, c.after, c.last)
	}
	offer(t, s, Offer{Run: run(ch, 21, 20+MaxRangeFrames)}, Appended, 21+MaxRangeFrames)
	wantRange(t, s, ch, 10, 10+MaxRangeFrames) // the most frames at once
	wantRange(t, s, ch, 10+MaxRangeFrames, 20+MaxRangeFrames)
	wantRange(t, s, channel(ch.Epoch, "T"), 10, 10)
}

func testRangeBytes(t *testing.T, open maker) {
	s, ch := open(t, 0), channel(newEpoch(), "t")
	r := Run{Channel: ch, First: 1}
	big := bytes.Repeat([]byte("x"), MaxRangeBytes/4)
	for range 6 {
		r.Frames = append(r.Frames, big)
	}
	offer(t, s, Offer{Run: r}, Appended, 7)
	got, err := s.Range(t.Context(), ch, 0, MaxRangeFrames)
	if err != nil || got.Last() != 4 {
		t.Fatalf("range ends at %d, %v; want 4, which makes %d bytes", got.Last(), err, MaxRangeBytes)
	}
	if got, err = s.Range(t.Context(), ch, 4, MaxRangeFrames); err != nil || got.Last() != 6 {
		t.Fatalf("range ends at %d, %v; want 6", got.Last(), err)
	}
	for limit, last := range map[int]int64{0: 2, 1: 2, 2: 3, 3: 4, 2 * MaxRangeFrames: 5} {
		if got, err = s.Range(t.Context(), ch, 1, limit); err != nil || got.First != 2 || got.Last() != last {
			t.Fatalf("range of %d: %d to %d, %v; want 2 to %d", limit, got.First, got.Last(), err, last)
		}
	}
}

func testTrimmed(t *testing.T, open maker) {
	s, ch := open(t, 100), channel(newEpoch(), "t")
	for first := int64(1); first < 2000; first += 100 {
		offer(t, s, Offer{Run: run(ch, first, first+99)}, Appended, first+100)
	}
	wantRange(t, s, ch, 0, 0)       // trimmed: nothing, not the rest
	wantRange(t, s, ch, 1000, 1000) // trimmed
	wantRange(t, s, ch, 1900, 2000) // kept: 100 at least
	offer(t, s, Offer{Run: run(ch, 1, 5)}, Duplicate, 2001)
}

func testManyRuns(t *testing.T, open maker) {
	s, epoch := open(t, 0), newEpoch()
	var offers []Offer
	for i := range 50 {
		ch := channel(epoch, fmt.Sprintf("t%d", i))
		for j := range int64(10) { // ten runs of one topic in one call, in order
			offers = append(offers, Offer{Run: run(ch, 1+2*j, 2+2*j)})
		}
	}
	bad := Offer{Run: Run{Channel: channel(epoch, "t0"), First: 21, Frames: [][]byte{[]byte("a\nb")}}}
	gap := Offer{Run: run(channel(epoch, "t1"), 50, 50)}
	offers = append(offers, bad, gap, Offer{Run: run(channel(epoch, "t2"), 1, 20)})
	answers, err := s.Publish(t.Context(), offers)
	if err != nil || len(answers) != len(offers) {
		t.Fatalf("%d answers, %v", len(answers), err)
	}
	for i, a := range answers[:500] {
		if a.Outcome != Appended || a.Next != offers[i].Last()+1 || a.Err != nil {
			t.Fatalf("offer %d: %+v", i, a)
		}
	}
	if a := answers[500]; a.Err == nil || a.Outcome != 0 {
		t.Errorf("a frame with a newline: %+v", a)
	}
	if a := answers[501]; a.Outcome != Gap || a.Next != 21 {
		t.Errorf("a gap: %+v", a)
	}
	if a := answers[502]; a.Outcome != Duplicate || a.Next != 21 {
		t.Errorf("a duplicate: %+v", a)
	}
	for i := range 50 {
		wantRange(t, s, channel(epoch, fmt.Sprintf("t%d", i)), 0, 20)
	}
	if answers, err := s.Publish(t.Context(), nil); err != nil || len(answers) != 0 {
		t.Errorf("no offers: %v, %v", answers, err)
	}
}

func testLongRun(t *testing.T, open maker) {
	s, ch := open(t, 0), channel(newEpoch(), "t")
	h := newRecorder()
	sub, _ := subscribe(t, s, h)
	sub.Add(ch)
	h.waitConfirmed(t, ch)
	offer(t, s, Offer{Run: run(ch, 1, 100)}, Appended, 101)
	offer(t, s, Offer{Run: run(ch, 51, 3*MaxMessageFrames)}, Appended, 3*MaxMessageFrames+1) // three parts, an overlap
	offer(t, s, Offer{Run: run(ch, 1, 3*MaxMessageFrames)}, Duplicate, 3*MaxMessageFrames+1)
	offer(t, s, Offer{Run: run(ch, 4*MaxMessageFrames, 7*MaxMessageFrames)}, Gap, 3*MaxMessageFrames+1)
	h.waitLast(t, ch, 3*MaxMessageFrames)
	next := int64(1)
	for _, r := range h.heard(ch) {
		if r.First != next || len(r.Frames) > MaxMessageFrames {
			t.Fatalf("run %d..%d delivered; want one from %d, of %d frames at most", r.First, r.Last(), next, MaxMessageFrames)
		}
		wantRun(t, r, ch, r.First, r.Last())
		next = r.Last() + 1
	}
	// A restart in parts restarts once.
	offer(t, s, Offer{Run: run(ch, 5001, 5000+2*MaxMessageFrames), Restart: true}, Appended, 5001+2*MaxMessageFrames)
	wantRange(t, s, ch, 5000, 5000+MaxRangeFrames)
	wantRange(t, s, ch, 5000+MaxRangeFrames, 5000+2*MaxRangeFrames)
}

func testEpochs(t *testing.T, open maker) {
	s := open(t, 0)
	a, b := channel(newEpoch(), "t"), channel(newEpoch(), "t")
	h := newRecorder()
	sub, _ := subscribe(t, s, h)
	sub.Add(a)
	h.waitConfirmed(t, a)
	offer(t, s, Offer{Run: run(a, 1, 5)}, Appended, 6)
	offer(t, s, Offer{Run: run(b, 3, 4)}, Appended, 5)
	offer(t, s, Offer{Run: run(a, 6, 6)}, Appended, 7)
	wantRange(t, s, a, 2, 6)
	wantRange(t, s, b, 2, 4)
	h.waitLast(t, a, 6)
	if len(h.heard(b)) != 0 {
		t.Error("a run of another epoch was delivered")
	}
}

func testRefused(t *testing.T, open maker) {
	s, ch := open(t, 0), channel(newEpoch(), "t")
	with := func(ch Channel, first int64, frames ...string) Run {
		r := Run{Channel: ch, First: first}
		for _, f := range frames {
			r.Frames = append(r.Frames, []byte(f))
		}
		return r
	}
	for name, r := range map[string]Run{
		"no frames":     with(ch, 1),
		"offset 0":      with(ch, 0, "a"),
		"beyond 2^53-1": with(ch, wire.MaxInteger, "a", "b"),
		"newline":       with(ch, 1, "a", "b\n"),
		"empty frame":   with(ch, 1, "a", ""),
		"too large":     with(ch, 1, strings.Repeat("x", MaxFrameBytes+1)),
		"no epoch":      with(Channel{Topic: "t"}, 1, "a"),
		"bad topic":     with(channel(ch.Epoch, "a{b}"), 1, "a"),
		"bad partition": with(Channel{Epoch: ch.Epoch, Topic: "t", Partition: wire.Partitions}, 1, "a"),
	} {
		answers, err := s.Publish(t.Context(), []Offer{{Run: r}})
		if err != nil || answers[0].Err == nil || answers[0].Outcome != 0 {
			t.Errorf("%s: %+v, %v", name, answers, err)
		}
	}
	wantRange(t, s, ch, 0, 0)
}

func testLargestOffsets(t *testing.T, open maker) {
	s, ch := open(t, 0), channel(newEpoch(), "t")
	h := newRecorder()
	sub, _ := subscribe(t, s, h)
	sub.Add(ch)
	h.waitConfirmed(t, ch)
	const last = wire.MaxInteger
	offer(t, s, Offer{Run: run(ch, last-4, last-3)}, Appended, last-2)
	offer(t, s, Offer{Run: run(ch, last-1, last)}, Gap, last-2)
	offer(t, s, Offer{Run: run(ch, last-3, last)}, Appended, last+1)
	offer(t, s, Offer{Run: run(ch, last, last)}, Duplicate, last+1)
	wantRange(t, s, ch, last-5, last)
	wantRange(t, s, ch, last-1, last)
	h.waitLast(t, ch, last)
	wantRun(t, h.heard(ch)[1], ch, last-2, last)
}

func testOddTopics(t *testing.T, open maker) {
	s, epoch := open(t, 0), newEpoch()
	topics := []string{"0", "Z", "a:b/c-d_e.f", "a::", "x//", "tick", strings.Repeat("a", wire.MaxTopicLen), "9-:/._"}
	for c := byte(1); c < 127; c++ {
		if topic := "a" + string(c); wire.ValidTopic(topic) {
			topics = append(topics, topic)
		}
	}
	h := newRecorder()
	sub, _ := subscribe(t, s, h)
	for _, topic := range topics {
		sub.Add(channel(epoch, topic))
	}
	for _, topic := range topics {
		ch := channel(epoch, topic)
		h.waitConfirmed(t, ch)
		offer(t, s, Offer{Run: run(ch, 1, 2)}, Appended, 3)
		wantRange(t, s, ch, 0, 2)
		h.waitLast(t, ch, 2)
		wantRun(t, h.heard(ch)[0], ch, 1, 2)
	}
}

func testLargestFrames(t *testing.T, open maker) {
	s, ch := open(t, 0), channel(newEpoch(), "t")
	h := newRecorder()
	sub, _ := subscribe(t, s, h)
	sub.Add(ch)
	h.waitConfirmed(t, ch)
	r := Run{Channel: ch, First: 1}
	for i := range 8 {
		f := bytes.Repeat([]byte{byte('a' + i)}, wire.MaxData)
		if i == 7 {
			f = bytes.Repeat([]byte{'z'}, MaxFrameBytes)
		}
		r.Frames = append(r.Frames, f)
	}
	offer(t, s, Offer{Run: r}, Appended, 9)
	h.waitLast(t, ch, 8)
	next := int64(1)
	for _, got := range h.heard(ch) {
		if got.First != next {
			t.Fatalf("run from %d delivered, want %d", got.First, next)
		}
		for i, f := range got.Frames {
			if !bytes.Equal(f, r.Frames[got.First-1+int64(i)]) {
				t.Fatalf("frame %d differs", got.First+int64(i))
			}
		}
		next = got.Last() + 1
	}
	for after := int64(0); after < 8; {
		got, err := s.Range(t.Context(), ch, after, MaxRangeFrames)
		if err != nil || len(got.Frames) == 0 || !bytes.Equal(got.Frames[0], r.Frames[after]) || got.size() > MaxRangeBytes {
			t.Fatalf("range after %d: %d frames, %v", after, len(got.Frames), err)
		}
		after = got.Last()
	}
}

func testUnavailable(t *testing.T, open maker) {
	s, ch := open(t, 0), channel(newEpoch(), "t")
	if err := s.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Tick(t.Context()); err != nil {
		t.Fatal(err)
	}
	check := func(ctx context.Context) {
		t.Helper()
		_, err := s.Publish(ctx, []Offer{{Run: run(ch, 1, 1)}})
		_, rangeErr := s.Range(ctx, ch, 0, MaxRangeFrames)
		for _, err := range []error{err, rangeErr, s.Ping(ctx), s.Tick(ctx)} {
			if !errors.Is(err, ErrUnavailable) {
				t.Errorf("%v is not ErrUnavailable", err)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	check(ctx)
	s.Close()
	check(t.Context())
}
