package broadcaster

import (
	"context"
	"sync"
	"time"

	"github.com/commitcast/commitcast/stream"
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
// does not tell of. It is also the one place that decides in which epoch this node is.
type heads struct {
	b      *Broadcaster
	kicked chan struct{}

	mu       sync.Mutex
	seqs     [wire.Partitions]int64 // as of the last poll
	asked    map[*topic]struct{}    // to be checked whether their partition moved or not
	suspects map[*topic]struct{}    // behind their head; healed if they still are after headGrace
	grace    bool                   // a timer for suspects runs
	polled   chan struct{}          // closed at the end of the poll that is next or under way
}

func (h *heads) kick() {
	select {
	case h.kicked <- struct{}{}:
	default:
	}
}

// check asks for one topic's head at once.
func (h *heads) check(t *topic) {
	h.mu.Lock()
	h.asked[t] = struct{}{}
	h.mu.Unlock()
	h.kick()
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
	for {
		interval := h.b.cfg.HeadPoll
		if !h.b.pushUp.Load() {
			interval = h.b.cfg.DegradedPoll
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
		h.b.tryPush(ctx)
		err := h.poll(ctx)
		if ctx.Err() != nil {
			return
		}
		h.b.sawDatabase(err)
		h.mu.Lock()
		close(h.polled)
		h.polled = make(chan struct{})
		h.mu.Unlock()
	}
}

func (h *heads) poll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, headTimeout)
	defer cancel()
	epoch, seqs, err := h.b.journal.Seqs(ctx)
	if err != nil {
		return err
	}
	if epoch != h.b.Epoch() {
		h.b.enterEpoch(epoch)
	}
	h.mu.Lock()
	moved := func(p int) bool { return h.seqs[p] != seqs[p] }
	asked := h.asked
	h.asked = make(map[*topic]struct{})
	var topics []*topic
	h.b.mu.RLock()
	for _, t := range h.b.topics {
		if _, ok := asked[t]; ok || moved(t.partition) {
			topics = append(topics, t)
		}
	}
	h.b.mu.RUnlock()
	h.mu.Unlock()

	for rest := topics; len(rest) > 0; {
		batch := rest[:min(len(rest), headBatch)]
		rest = rest[len(batch):]
		if err := h.compare(ctx, epoch, batch); err != nil {
			h.mu.Lock()
			for t := range asked {
				h.asked[t] = struct{}{}
			}
			h.mu.Unlock()
			return err
		}
	}
	h.mu.Lock()
	h.seqs = seqs
	h.mu.Unlock()
	return nil
}

// compare reads the heads of a batch of topics and looks for logs that are behind, or ahead.
func (h *heads) compare(ctx context.Context, epoch string, topics []*topic) error {
	questions := make([]wire.Question, len(topics))
	delivered := make([]int64, len(topics)) // captured before the read: later events are no evidence
	for i, t := range topics {
		questions[i].Topic = t.name
		if e, last := t.log.position(); e == epoch {
			delivered[i] = last
		}
	}
	now, positions, err := h.b.journal.Positions(ctx, questions)
	if err != nil {
		return err
	}
	if now != epoch {
		h.kick()
		return errEpoch
	}
	for i, t := range topics {
		if positions[i].Head < delivered[i] {
			h.b.log.Error("the database went back behind what was delivered", "topic", t.name,
				"head", positions[i].Head, "delivered", delivered[i], "epoch", epoch)
			h.b.rejoin(t, epoch, positions[i].Head)
			continue
		}
		t.observe(epoch, positions[i].Head)
		if t.lags() {
			h.suspect(t)
		}
	}
	return nil
}

// suspect heals a log that is behind: at once while events are not pushed, otherwise if it still is after headGrace.
func (h *heads) suspect(t *topic) {
	if !h.b.pushUp.Load() || !t.isConfirmed() {
		h.b.heal(t)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.suspects[t] = struct{}{}
	if h.grace {
		return
	}
	h.grace = true
	h.b.after(headGrace, func() {
		h.mu.Lock()
		suspects := h.suspects
		h.suspects, h.grace = make(map[*topic]struct{}), false
		h.mu.Unlock()
		for t := range suspects {
			if t.lags() {
				h.b.heal(t)
			}
		}
	})
}

// enterEpoch moves the node to another epoch: every topic begins a new log on a new channel, and every cursor is
// checked against the new history before it goes on.
func (b *Broadcaster) enterEpoch(epoch string) {
	if from := b.Epoch(); from != "" {
		b.log.Warn("the database is in a new epoch", "from", from, "to", epoch)
		b.metrics.epochs.Inc()
	}
	b.mu.Lock()
	b.epoch.Store(&epoch)
	topics := make([]*topic, 0, len(b.topics))
	var drop, add []stream.Channel
	for _, t := range b.topics {
		t.mu.Lock()
		drop = append(drop, t.channel)
		t.channel.Epoch = epoch
		add = append(add, t.channel)
		t.confirmed = false
		t.want.Store(0)
		t.log.reset("", 0)
		t.mu.Unlock()
		topics = append(topics, t)
	}
	b.mu.Unlock()
	b.subscription.Remove(drop...)
	b.subscription.Add(add...)
	for _, t := range topics {
		b.recheck(t)
	}
}

// rejoin begins a topic's log anew at head and checks all its cursors: the database went back within an epoch.
func (b *Broadcaster) rejoin(t *topic, epoch string, head int64) {
	t.mu.Lock()
	if t.channel.Epoch == epoch {
		t.want.Store(head)
		t.log.reset(epoch, head+1)
	}
	t.mu.Unlock()
	b.recheck(t)
}

// recheck takes a topic's live subscriptions back to joining.
func (b *Broadcaster) recheck(t *topic) {
	t.mu.Lock()
	var again []*subscription
	for _, sub := range t.subs {
		sub.s.mu.Lock()
		if sub.state == subLive {
			sub.state, sub.chunk = subJoining, nil
			again = append(again, sub)
		}
		sub.s.mu.Unlock()
	}
	t.mu.Unlock()
	b.joiner.add(again...)
}
