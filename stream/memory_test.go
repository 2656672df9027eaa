package stream

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func TestMemoryBounds(t *testing.T) {
	const frameSize = 1_000
	m := NewMemory(MemoryConfig{MaxTopicBytes: 20_000, MaxTotalBytes: 100_000, Logger: quiet})
	epoch := newEpoch()
	for n := int64(1); n <= 100; n++ {
		for topic := range 10 {
			r := Run{Channel: channel(epoch, fmt.Sprintf("t%d", topic)), First: n, Frames: [][]byte{bytes.Repeat([]byte{'x'}, frameSize)}}
			publish(t, m, Offer{Run: r})
			if m.bytes > 100_000 {
				t.Fatalf("%d bytes are kept", m.bytes)
			}
		}
	}
	sum, frames := 0, 0
	for _, topic := range m.topics {
		if topic.bytes > 20_000 {
			t.Errorf("%d bytes are kept of %s", topic.bytes, topic.ch.Topic)
		}
		if topic.next() != 101 {
			t.Errorf("%s ends before %d, want 101", topic.ch.Topic, topic.next())
		}
		sum += topic.bytes
		frames += len(topic.frames)
	}
	if sum != m.bytes || frames*frameSize < 50_000 || m.recent.Len() != len(m.topics) {
		t.Errorf("%d bytes counted, %d kept, in %d frames", m.bytes, sum, frames)
	}
	// The topics that were quiet the longest went first.
	last := channel(epoch, "t9")
	if r, err := m.Range(t.Context(), last, 99, MaxRangeFrames); err != nil || r.Last() != 100 {
		t.Errorf("the newest event: %v, %v", r.Last(), err)
	}
	// One that exceeds its bound alone is kept, or its topic would stand still.
	big := Run{Channel: last, First: 101, Frames: [][]byte{bytes.Repeat([]byte{'x'}, 30_000)}}
	offer(t, m, Offer{Run: big}, Appended, 102)
	if r, err := m.Range(t.Context(), last, 100, MaxRangeFrames); err != nil || r.Last() != 101 {
		t.Errorf("a large event: %v, %v", r.Last(), err)
	}
	m.Close()
}

func TestMemoryAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory(MemoryConfig{MaxAge: time.Hour, Logger: quiet})
		epoch := newEpoch()
		quietTopic, busy := channel(epoch, "quiet"), channel(epoch, "busy")
		offer(t, m, Offer{Run: run(quietTopic, 1, 3)}, Appended, 4)
		offer(t, m, Offer{Run: run(busy, 1, 1)}, Appended, 2)
		time.Sleep(time.Hour)
		wantRange(t, m, quietTopic, 0, 3)
		offer(t, m, Offer{Run: run(busy, 2, 2)}, Appended, 3)
		time.Sleep(time.Second)
		wantRange(t, m, quietTopic, 0, 0)
		wantRange(t, m, busy, 0, 2)
		offer(t, m, Offer{Run: run(quietTopic, 9, 9)}, Appended, 10) // anew
	})
}

// TestMemoryQueue: what waits for a handler is bounded by runs, by bytes, and by changes of what is wanted.
func TestMemoryQueue(t *testing.T) {
	ch := channel(newEpoch(), "t")
	for name, flood := range map[string]func(t *testing.T, m *Memory, sub Subscription){
		"runs": func(t *testing.T, m *Memory, _ Subscription) {
			for n := int64(2); n < 100; n++ {
				offer(t, m, Offer{Run: run(ch, n, n)}, Appended, n+1)
			}
		},
		"bytes": func(t *testing.T, m *Memory, _ Subscription) {
			for n := int64(2); n < 6; n++ {
				offer(t, m, Offer{Run: Run{Channel: ch, First: n, Frames: [][]byte{make([]byte, 40_000)}}}, Appended, n+1)
			}
		},
		"changes": func(t *testing.T, m *Memory, sub Subscription) {
			for range 1_000 {
				sub.Remove(ch)
				sub.Add(ch)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := NewMemory(MemoryConfig{MaxQueueRuns: 50, MaxQueueBytes: 100_000, Logger: quiet})
			defer m.Close()
			h := newRecorder()
			h.block = make(chan struct{})
			sub, stop := subscribe(t, m, h)
			defer stop()
			sub.Add(ch)
			h.waitConfirmed(t, ch)
			offer(t, m, Offer{Run: run(ch, 1, 1)}, Appended, 2)
			h.waitLast(t, ch, 1)
			flood(t, m, sub)
			inner := sub.(*memorySubscription)
			m.mu.Lock()
			waiting, lost := len(inner.queue), inner.lost
			m.mu.Unlock()
			if waiting > 60 || !lost {
				t.Errorf("%d items wait, lost is %v", waiting, lost)
			}
			close(h.block)
			h.waitDown(t, 1)
			h.waitConfirmed(t, ch)
			next := publish(t, m, Offer{Run: run(ch, 1, 1)})[0].Next
			offer(t, m, Offer{Run: run(ch, next, next)}, Appended, next+1)
			h.waitLast(t, ch, next)
			if h.downCount() != 1 {
				t.Errorf("down %d times", h.downCount())
			}
		})
	}
}

// TestMemoryCloses: a stream that is still listened to says so, and its subscription ends all the same.
func TestMemoryCloses(t *testing.T) {
	m := NewMemory(MemoryConfig{Logger: quiet})
	h := newRecorder()
	sub, stop := subscribe(t, m, h)
	ch := channel(newEpoch(), "t")
	sub.Add(ch)
	h.waitConfirmed(t, ch)
	if err := m.Close(); err == nil {
		t.Error("closed without a word")
	}
	stop()
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if _, err := m.Publish(context.Background(), nil); err != nil {
		t.Error(err) // nothing was asked
	}
}
