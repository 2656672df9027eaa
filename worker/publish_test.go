package worker

import (
	"errors"
	"testing"
	"time"

	"github.com/commitcast/commitcast/stream"
)

func TestDecide(t *testing.T) {
	offer := func(first int64, n int, restart bool) stream.Offer {
		return stream.Offer{Run: stream.Run{First: first, Frames: make([][]byte, n)}, Restart: restart}
	}
	far := int64(maxRefill) + 100
	for name, c := range map[string]struct {
		offer   stream.Offer
		answer  stream.Answer
		verdict verdict
		from    int64
	}{
		"appended":              {offer(5, 3, false), stream.Answer{Outcome: stream.Appended, Next: 8}, confirmed, 0},
		"appended, no next":     {offer(5, 3, false), stream.Answer{Outcome: stream.Appended}, confirmed, 0},
		"appended a part":       {offer(5, 3, false), stream.Answer{Outcome: stream.Appended, Next: 7}, refill, 7},
		"duplicate":             {offer(5, 3, false), stream.Answer{Outcome: stream.Duplicate, Next: 20}, confirmed, 0},
		"gap":                   {offer(5, 3, false), stream.Answer{Outcome: stream.Gap, Next: 2}, refill, 2},
		"gap as wide as it may": {offer(far, 3, false), stream.Answer{Outcome: stream.Gap, Next: 100}, refill, 100},
		"gap too wide":          {offer(far, 3, false), stream.Answer{Outcome: stream.Gap, Next: 99}, restart, 0},
		"gap without next":      {offer(5, 3, false), stream.Answer{Outcome: stream.Gap}, restart, 0},
		"gap that is none":      {offer(5, 3, false), stream.Answer{Outcome: stream.Gap, Next: 5}, restart, 0},
		"gap after restart":     {offer(5, 3, true), stream.Answer{Outcome: stream.Gap}, refused, 0},
		"refused":               {offer(5, 3, false), stream.Answer{Err: errors.New("NOPERM")}, refused, 0},
		"refused but appended":  {offer(5, 3, false), stream.Answer{Outcome: stream.Appended, Next: 8, Err: errors.New("SPUBLISH")}, refused, 0},
		"nothing":               {offer(5, 3, false), stream.Answer{}, refused, 0},
	} {
		if v, from := decide(c.offer, c.answer); v != c.verdict || from != c.from {
			t.Errorf("%s: verdict %d from %d, want %d from %d", name, v, from, c.verdict, c.from)
		}
	}
}

func TestLaggardWaits(t *testing.T) {
	now := time.Unix(1000, 0)
	var l laggard
	l.failed(now)
	if l.due.After(now) {
		t.Error("the first hole is not filled at once")
	}
	for i := range 30 {
		l.failed(now)
		if wait := l.due.Sub(now); wait < retryLeast/2 || wait > retryMost*3/2 {
			t.Fatalf("attempt %d waits %v", i, wait)
		}
	}
	if l.due.Sub(now) < retryMost/2 {
		t.Errorf("after 30 attempts it waits only %v", l.due.Sub(now))
	}
}
