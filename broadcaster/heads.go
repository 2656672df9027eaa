package broadcaster

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/commitcast/commitcast/wire"
)

const (
	// headGrace is how long a message that is on its way may take before a log behind its head is healed from
	// storage.
	headGrace = 150 * time.Millisecond
	// headBatch is how many topics one read of heads asks for.
	headBatch = 2000
	// headTimeout bounds one read.
	headTimeout = 5 * time.Second
)

// heads compares what was delivered with what the database says exists: the answer to every loss that the stream
// does not tell of. It is also the one place that decides in which epoch the shard is.
type heads struct {
	shard  *shard
	kicked chan struct{}

	seqs [wire.Partitions]int64 // as of the last poll; of run alone

	mu       sync.Mutex
	suspects map[*topic]struct{} // behind their head; healed if they still are after headGrace
	grace    bool                // a timer for suspects runs
	polled   chan struct{}       // closed at the end of the poll that is next or under way
}

func (h *heads) kick() {
	select {
	case h.kicked <- struct{}{}:
	default:
	}
}

// waitPoll waits until a poll has ended.
func (h *heads) waitPoll(ctx context.Context) {
	h.mu.Lock()
	polled := h.polled
	h.mu.Unlock()
	select {
	case <-polled:
	case <-ctx.Done():
	}
}

// run polls until ctx ends: about every HeadPoll while events are pushed, every DegradedPoll while they are not.
func (h *heads) run(ctx context.Context) {
	b := h.shard.b
	for {
		interval := b.cfg.HeadPoll
		if !b.pushUp.Load() {
			interval = b.cfg.DegradedPoll
		}
		timer := time.NewTimer(interval*3/4 + jitter(interval/2))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-h.kicked:
			timer.Stop()
		case <-timer.C:
		}
		b.tryPush(ctx)
		err := h.poll(ctx)
		if ctx.Err() != nil {
			return
		}
		h.shard.saw(err)
		h.mu.Lock()
		close(h.polled)
		h.polled = make(chan struct{})
		h.mu.Unlock()
	}
}

func (h *heads) poll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, headTimeout)
	defer cancel()
	epoch, seqs, err := h.shard.journal.Seqs(ctx)
	if err != nil {
		return err
	}
	if epoch != h.shard.Epoch() {
		h.shard.enter(epoch)
	}
	var topics []*topic
	b := h.shard.b
	b.mu.RLock()
	for _, t := range b.topics {
		if t.shard != h.shard {
			continue
		}
		t.mu.Lock()
		if h.seqs[t.partition] != seqs[t.partition] || t.unsure(len(t.subs) > 0) {
			topics = append(topics, t)
		}
		t.mu.Unlock()
	}
	b.mu.RUnlock()
	for batch := range slices.Chunk(topics, headBatch) {
		if err := h.compare(ctx, epoch, batch); err != nil {
			return err // all are read again, since seqs stay as they are
		}
	}
	h.seqs = seqs
	return nil
}

// compare reads the heads of a batch of topics and looks for logs that are behind, or ahead.
func (h *heads) compare(ctx context.Context, epoch string, topics []*topic) error {
	questions := make([]wire.Question, len(topics))
	looks := make([]look, len(topics))
	for i, t := range topics {
		questions[i].Topic = t.name
		t.mu.Lock()
		looks[i] = t.look()
		t.mu.Unlock()
	}
	now, positions, err := h.shard.journal.Positions(ctx, questions)
	if err != nil {
		return err
	}
	if now != epoch {
		h.kick()
		return errEpoch
	}
	b := h.shard.b
	polled := !b.pushUp.Load()
	var lagging []*topic
	for i, t := range topics {
		t.mu.Lock()
		back := t.saw(looks[i], epoch, positions[i].Head)
		t.mu.Unlock()
		if back {
			h.shard.log.Error("the database went back behind what was known to exist", "topic", t.name,
				"head", positions[i].Head, "known", looks[i].want, "epoch", epoch)
			t.recheck()
		} else if t.behind() && polled {
			lagging = append(lagging, t)
		} else if t.behind() {
			h.suspect(t)
		}
	}
	for batch := range slices.Chunk(lagging, healBatch) {
		b.spawn(func(ctx context.Context) { h.shard.healTogether(ctx, batch) }) // ends when these are whole, or cannot be made so now
	}
	return nil
}

// suspect heals a log that is behind: at once while events are not pushed, otherwise if it still is after headGrace.
func (h *heads) suspect(t *topic) {
	t.mu.Lock()
	pushed := t.confirmed
	t.mu.Unlock()
	if !pushed {
		h.shard.b.heal(t)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.suspects[t] = struct{}{}
	if h.grace {
		return
	}
	h.grace = true
	h.shard.b.after(headGrace, func() {
		h.mu.Lock()
		suspects := h.suspects
		h.suspects, h.grace = make(map[*topic]struct{}), false
		h.mu.Unlock()
		for t := range suspects {
			h.shard.b.heal(t)
		}
	})
}

// recheck takes a topic's live subscriptions back to joining.
func (t *topic) recheck() {
	t.mu.Lock()
	var again []*subscription
	for _, sub := range t.subs {
		sub.s.mu.Lock()
		if sub.recheck() {
			again = append(again, sub)
			sub.s.advance() // what it had read is dropped
		}
		sub.s.mu.Unlock()
	}
	t.mu.Unlock()
	t.shard.joiner.add(again...)
}
