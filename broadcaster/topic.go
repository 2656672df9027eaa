package broadcaster

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

// topicLinger is how long a topic without subscribers keeps its log and channel: a page reload must not cost a
// subscription.
const topicLinger = 30 * time.Second

// topic is one topic with local subscribers.
//
// Locks, in order: Broadcaster.mu, topic.mu, session.mu, then sharedLog.mu or due.mu. A flusher holds only its session's and then
// the log's.
type topic struct {
	name      string
	shard     *shard // whose database holds it
	partition int

	mu sync.Mutex
	feed
	subs    []*subscription
	emptyAt time.Time // when the last subscriber left; zero while there are any
}

// head is the newest offset known to exist.
func (t *topic) head() int64 { return t.want.Load() }

// behind reports whether subscribers miss events that are known to exist.
func (t *topic) behind() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.subs) > 0 && t.lags()
}

// wakeLocked tells every subscriber that the log has grown or moved.
func (t *topic) wakeLocked() {
	for _, sub := range t.subs {
		sub.s.wake(sub)
	}
}

// attach registers a subscription with its topic, which begins to listen if it is new.
func (b *Broadcaster) attach(name string, sub *subscription) {
	b.mu.Lock()
	t := b.topics[name]
	if t == nil {
		t = &topic{name: name, shard: b.shardOf(name), partition: wire.Partition(name)}
		t.log.maxEvents, t.log.maxBytes, t.log.maxMessage, t.log.room = b.cfg.LogEvents, b.cfg.LogBytes, maxMessage, &b.room
		t.log.windows = &b.windows
		t.channel = stream.Channel{Epoch: t.shard.Epoch(), Partition: t.partition, Topic: name}
		b.topics[name] = t
		b.pushUp.use(t.partition)
		b.subscription.Add(t.channel)
		b.metrics.topics.Inc()
	}
	t.mu.Lock()
	b.mu.Unlock()
	sub.t, sub.index = t, len(t.subs)
	t.subs = append(t.subs, sub)
	t.emptyAt = time.Time{}
	t.mu.Unlock()
	b.metrics.subscriptions.Inc()
}

// detach removes an ended subscription from its topic. Safe to call twice.
func (b *Broadcaster) detach(sub *subscription) {
	t := sub.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if sub.index >= len(t.subs) || t.subs[sub.index] != sub {
		return
	}
	last := len(t.subs) - 1
	t.subs[sub.index] = t.subs[last]
	t.subs[sub.index].index = sub.index
	t.subs[last] = nil
	t.subs = t.subs[:last]
	if last == 0 {
		t.subs = nil
		t.emptyAt = time.Now()
	}
	b.metrics.subscriptions.Dec()
}

// sweepTopics forgets topics that nobody has been subscribed to for a while.
func (b *Broadcaster) sweepTopics(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for name, t := range b.topics {
		t.mu.Lock()
		if len(t.subs) == 0 && !t.emptyAt.IsZero() && now.Sub(t.emptyAt) > topicLinger {
			delete(b.topics, name)
			t.log.leave()
			b.subscription.Remove(t.channel)
			b.metrics.topics.Dec()
		}
		t.mu.Unlock()
	}
}

// relieveLogs drops the older half of every log when they are about to be too much together. What a client still wants of it is
// replayed.
func (b *Broadcaster) relieveLogs() {
	if !b.room.full(int(b.room.most / 8)) {
		return
	}
	b.hit(limitLogs)
	b.mu.RLock()
	defer b.mu.RUnlock()
	for _, t := range b.topics {
		t.log.relieve()
	}
}

func (b *Broadcaster) topic(name string) *topic {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.topics[name]
}

// hears adapts Broadcaster to stream.Handler without exporting its methods.
type hears struct{ *Broadcaster }

// Confirmed implements stream.Handler: from here on every published run arrives, so whoever reads the head now and
// replays up to it has everything.
func (b hears) Confirmed(ch stream.Channel) {
	b.pushUp.confirmed(ch.Partition)
	t := b.topic(ch.Topic)
	if t == nil {
		return
	}
	t.mu.Lock()
	live := t.confirm(ch)
	t.mu.Unlock()
	if live {
		t.shard.joiner.kick()
		t.shard.heads.kick()
	}
}

// Deliver implements stream.Handler.
func (b hears) Deliver(r stream.Run) {
	t := b.topic(r.Topic)
	if t == nil {
		return
	}
	b.metrics.runs.Inc()
	start := time.Now()
	b.metrics.heard(r.Frames, start)
	t.mu.Lock()
	after, subscribers := t.has(r.Epoch), len(t.subs)
	if r.Epoch == t.channel.Epoch {
		t.fenceLocked(r) // before anybody can read what comes after
	}
	grew, gap := t.hear(r)
	if grew {
		t.wakeLocked()
	}
	t.mu.Unlock()
	if grew {
		b.traced(r, after, start, subscribers)
	}
	if gap {
		b.metrics.gaps.Inc()
		b.heal(t)
	}
}

// Down implements stream.Handler: runs may be missed from here on, so the journal is polled until the channels are
// confirmed again.
func (b hears) Down(of stream.Partitions, err error) {
	b.pushTried.Store(true)
	if b.pushUp.lost(of) {
		b.log.Warn("push is down, polling the journal", "error", err)
	}
	b.mu.RLock()
	for _, t := range b.topics {
		if of.Has(t.partition) {
			t.mu.Lock()
			t.down()
			t.mu.Unlock()
		}
	}
	b.mu.RUnlock()
	for _, sh := range b.shards {
		sh.joiner.kick()
		sh.heads.kick()
	}
}

// heal brings the log up to the newest offset known, from stream or journal. One at a time for a topic.
func (b *Broadcaster) heal(t *topic) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.subs) == 0 || !t.startHeal() {
		return
	}
	b.spawn(func(ctx context.Context) { // ends when the log is whole, or cannot be made so now
		for b.healOnce(ctx, t) {
		}
	})
}

// healOnce reads one range. It reports whether to go on at once.
func (b *Broadcaster) healOnce(ctx context.Context, t *topic) bool {
	h, ok := t.nextHole()
	if !ok {
		return false
	}
	run, err := t.shard.replayer.fetch(ctx, h)
	return b.healed(t, h, run, err)
}

// healTogether is heal for many topics while events come by polling: one read for all of them.
func (sh *shard) healTogether(ctx context.Context, topics []*topic) {
	topics = slices.DeleteFunc(topics, func(t *topic) bool {
		t.mu.Lock()
		defer t.mu.Unlock()
		return len(t.subs) == 0 || !t.startHeal()
	})
	for len(topics) > 0 {
		var holes []hole
		topics = slices.DeleteFunc(topics, func(t *topic) bool {
			h, ok := t.nextHole()
			if ok {
				holes = append(holes, h)
			}
			return !ok
		})
		if len(holes) == 0 {
			return
		}
		runs, errs := sh.replayer.fetchTogether(ctx, holes)
		again := topics[:0]
		for i, t := range topics {
			if sh.b.healed(t, holes[i], runs[i], errs[i]) {
				again = append(again, t)
			}
		}
		topics = again
	}
}

// nextHole is what to read next for a topic that is being healed; false: nothing more.
func (t *topic) nextHole() (h hole, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h, ok, moved := t.hole()
	if moved {
		t.wakeLocked()
	}
	return h, ok
}

// healed takes what was read for a hole. It reports whether to go on at once.
func (b *Broadcaster) healed(t *topic, h hole, run stream.Run, err error) bool {
	start := time.Now()
	t.mu.Lock()
	if err == nil && h.history == t.history {
		t.fenceLocked(run)
	}
	after, subscribers := t.has(run.Epoch), len(t.subs)
	moved, again := t.feed.heal(h, run, err)
	if moved {
		b.metrics.healed.Add(float64(len(run.Frames)))
		t.wakeLocked()
	}
	t.mu.Unlock()
	if moved {
		b.traced(run, after, start, subscribers)
	}
	return again
}
