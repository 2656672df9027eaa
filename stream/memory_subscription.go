package stream

import (
	"context"
	"errors"
	"fmt"
)

// NewSubscription implements [Stream]. Publishers put runs into a bounded queue; Run takes them out and calls the
// handler. When the queue is full, what it holds is dropped, the handler is told Down, and every channel is confirmed
// again: publishers never wait, and memory stays bounded.
func (m *Memory) NewSubscription(h Handler) Subscription {
	return &memorySubscription{m: m, h: h, wanted: make(map[Channel]uint64), wake: make(chan struct{}, 1)}
}

// memorySubscription is a Subscription of a Memory. Its fields are guarded by the Memory's mutex, so that a channel is
// confirmed at an exact place between two runs.
type memorySubscription struct {
	m    *Memory
	h    Handler
	wake chan struct{}

	running bool
	wanted  map[Channel]uint64 // the number of the Add
	adds    uint64
	queue   []memoryItem
	runs    int  // runs in the queue
	bytes   int  // of these runs
	lost    bool // the queue overflowed, and the handler was not told yet
}

// memoryItem is a run, or, without frames, the word that its channel is live.
type memoryItem struct {
	run Run
	add uint64 // the item is void if the channel was removed since this Add
}

// Add implements [Subscription].
func (s *memorySubscription) Add(chs ...Channel) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	for _, ch := range chs {
		if s.wanted[ch] == 0 {
			s.listen(ch)
		}
	}
}

// Remove implements [Subscription].
func (s *memorySubscription) Remove(chs ...Channel) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	for _, ch := range chs {
		if s.wanted[ch] != 0 {
			delete(s.wanted, ch)
			s.ignore(ch)
		}
	}
}

// listen has runs of ch queued from now on, after the word that it is live.
func (s *memorySubscription) listen(ch Channel) {
	s.adds++
	s.wanted[ch] = s.adds
	if !s.running || s.lost {
		return // Run does it for all
	}
	if s.m.listeners[ch] == nil {
		s.m.listeners[ch] = make(map[*memorySubscription]struct{})
	}
	s.m.listeners[ch][s] = struct{}{}
	s.put(memoryItem{run: Run{Channel: ch}, add: s.adds})
}

// ignore ends that.
func (s *memorySubscription) ignore(ch Channel) {
	delete(s.m.listeners[ch], s)
	if len(s.m.listeners[ch]) == 0 {
		delete(s.m.listeners, ch)
	}
}

// push queues a run. The Memory calls it with its mutex held.
func (s *memorySubscription) push(r Run) {
	if s.lost {
		return
	}
	size := r.size()
	if s.runs >= s.m.cfg.MaxQueueRuns || s.runs > 0 && s.bytes+size > s.m.cfg.MaxQueueBytes {
		s.overflow()
		return
	}
	s.runs++
	s.bytes += size
	s.put(memoryItem{run: r, add: s.wanted[r.Channel]})
}

// put appends an item. Confirmations count by themselves: one for each wanted channel is no burden, but channels that
// are added and removed again and again while the handler is stuck leave void ones behind.
func (s *memorySubscription) put(item memoryItem) {
	if len(s.queue)-s.runs > 2*len(s.wanted)+s.m.cfg.MaxQueueRuns {
		s.overflow()
		return
	}
	s.queue = append(s.queue, item)
	s.wakeRun()
}

func (s *memorySubscription) wakeRun() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// overflow drops the queue.
func (s *memorySubscription) overflow() {
	s.lost = true
	s.clear()
	s.wakeRun()
}

func (s *memorySubscription) clear() { s.queue, s.runs, s.bytes = nil, 0, 0 }

// Run implements [Subscription].
func (s *memorySubscription) Run(ctx context.Context) error {
	if err := s.start(); err != nil {
		return err
	}
	defer s.end()
	s.m.metrics.up.Inc()
	defer s.m.metrics.up.Dec()
	for {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		item, ok, lost := s.pop()
		switch {
		case lost:
			s.m.metrics.rebuilds.WithLabelValues(reasonSlow).Inc()
			s.m.log.Warn("subscription fell behind; confirming its channels again", "reason", reasonSlow)
			s.h.Down(AllPartitions, fmt.Errorf("subscription: %w: %w", ErrUnavailable, errSlow))
			s.begin()
		case !ok:
			select {
			case <-ctx.Done():
			case <-s.wake:
			}
		case len(item.run.Frames) == 0:
			s.h.Confirmed(item.run.Channel)
		default:
			s.m.metrics.messages.Inc()
			s.m.metrics.bytes.Add(float64(item.run.size()))
			s.h.Deliver(item.run)
		}
	}
}

// pop takes the next item that is not void, or says that the queue was lost.
func (s *memorySubscription) pop() (item memoryItem, ok, lost bool) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	for !s.lost && len(s.queue) > 0 {
		item = s.queue[0]
		s.queue[0] = memoryItem{}
		s.queue = s.queue[1:]
		if len(item.run.Frames) > 0 {
			s.runs--
			s.bytes -= item.run.size()
		}
		if s.wanted[item.run.Channel] == item.add {
			return item, true, false
		}
	}
	return memoryItem{}, false, s.lost
}

func (s *memorySubscription) start() error {
	s.m.mu.Lock()
	if s.running {
		s.m.mu.Unlock()
		return errors.New("stream: the subscription runs already")
	}
	s.running = true
	s.m.mu.Unlock()
	s.begin()
	return nil
}

// begin listens to everything wanted, anew.
func (s *memorySubscription) begin() {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.lost = false
	s.clear()
	for ch := range s.wanted {
		s.ignore(ch)
		s.listen(ch)
	}
}

func (s *memorySubscription) end() {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.running, s.lost = false, false
	s.clear()
	for ch := range s.wanted {
		s.ignore(ch)
	}
}
