package worker

import (
	"math/rand/v2"
	"testing"
)

func TestWatermarkHoldsAtTheFirstUnconfirmed(t *testing.T) {
	var w watermark
	w.reset("1-aaaa", 10)
	want := func(seq int64) {
		t.Helper()
		if got := w.published(); got != seq {
			t.Fatalf("published %d, want %d", got, seq)
		}
	}
	want(10)
	w.offer("a", 11) // 11, 13
	w.offer("b", 12) // 12, 15
	w.offer("c", 14) // 14
	w.take(15)
	want(10)
	w.settle("c") // the last of the three is answered first
	want(10)
	w.settle("a")
	want(11)
	w.confirm("b", 13) // 12 is published, 15 is not
	want(12)
	w.offer("a", 16)
	w.take(16)
	want(12)
	w.settle("a")
	want(12)
	w.settle("b")
	want(16)
	w.settle("b")
	want(16)
}

func TestWatermarkOfAnotherEpochIsForgotten(t *testing.T) {
	var w watermark
	w.reset("1-aaaa", 0)
	w.offer("a", 1)
	w.take(5)
	w.reset("2-bbbb", 3)
	if w.published() != 3 || w.epoch != "2-bbbb" {
		t.Errorf("published %d in %s", w.published(), w.epoch)
	}
	w.settle("a") // an answer to what was offered in the other epoch
	if w.published() != 3 {
		t.Errorf("published %d", w.published())
	}
}

func TestWatermarkNeverFallsAndConfirmNeverGoesBack(t *testing.T) {
	var w watermark
	w.reset("1-aaaa", 0)
	w.offer("a", 5)
	w.offer("a", 9) // a later run of the same topic
	w.take(9)
	w.confirm("a", 7)
	w.confirm("a", 2)
	w.take(3)
	if w.published() != 6 {
		t.Errorf("published %d, want 6", w.published())
	}
}

// Against the definition: the highest s such that every seq up to s is confirmed.
func TestWatermarkAgainstModel(t *testing.T) {
	topics := []string{"a", "b", "c", "d"}
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var w watermark
		w.reset("e", 0)
		confirmed := map[int64]bool{}
		pending := map[string][]int64{}
		seq := int64(0)
		for range 60 {
			if rng.IntN(2) == 0 {
				first := map[string]bool{}
				for range 1 + rng.IntN(6) {
					seq++
					topic := topics[rng.IntN(len(topics))]
					if !first[topic] {
						w.offer(topic, seq)
						first[topic] = true
					}
					pending[topic] = append(pending[topic], seq)
				}
				w.take(seq)
			} else {
				topic := topics[rng.IntN(len(topics))]
				n := len(pending[topic])
				if n == 0 {
					continue
				}
				k := 1 + rng.IntN(n)
				for _, s := range pending[topic][:k] {
					confirmed[s] = true
				}
				pending[topic] = pending[topic][k:]
				if k == n {
					w.settle(topic)
				} else {
					w.confirm(topic, pending[topic][0])
				}
			}
			want := int64(0)
			for confirmed[want+1] {
				want++
			}
			if got := w.published(); got != want {
				t.Fatalf("seed %d: published %d, want %d", seed, got, want)
			}
		}
	}
}
