package broadcaster

import (
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"

	"github.com/commitcast/commitcast/auth"
	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

// Shard is a further database, and the topics that it holds.
type Shard struct {
	// Topics are patterns, written like those of tokens ([auth.Pattern]) but without claims. A topic belongs to the first shard that
	// has a pattern for it, and otherwise to the Journal that New was given.
	Topics []string
	// Journal is the database's. Its epochs must have a random part of their own: by that, histories on one stream are kept apart.
	Journal Journal
}

// restName is what the topics are called that no pattern of a shard holds.
const restName = "**"

// shard is one database, as this node knows it. The history of a topic, its head and the check of every cursor belong to the
// database that holds the topic; sessions, limits and the way from the stream are common to all.
type shard struct {
	b        *Broadcaster
	name     string         // for people: its patterns
	topics   []auth.Pattern // that it holds; of the first: none, it has the rest
	log      *slog.Logger
	journal  Journal
	joiner   *joiner
	heads    *heads
	replayer *replayer

	epoch atomic.Pointer[string] // "" until the database was asked; written under b.mu
	up    atomic.Bool            // the last look at the heads worked
}

// newShards are a broadcaster's: the journal that every broadcaster has, and others.
func newShards(b *Broadcaster, j Journal, others []Shard) ([]*shard, error) {
	shards := []*shard{newShard(b, restName, j, 1+len(others))}
	var before []auth.Pattern
	for i, other := range others {
		if other.Journal == nil || len(other.Topics) == 0 {
			return nil, fmt.Errorf("broadcaster: Config.Shards[%d] needs topics and a journal", i)
		}
		sh := newShard(b, strings.Join(other.Topics, ","), other.Journal, 1+len(others))
		for _, text := range other.Topics {
			p, err := auth.ParsePattern(text)
			if err != nil {
				return nil, fmt.Errorf("broadcaster: Config.Shards[%d]: %w", i, err)
			}
			if !p.Covers(p) {
				return nil, fmt.Errorf("broadcaster: Config.Shards[%d]: pattern %q has a claim, and there is no token to fill it from", i, text)
			}
			for _, q := range before {
				if q.Covers(p) {
					return nil, fmt.Errorf("broadcaster: Config.Shards[%d]: %q is never looked at, since every topic of it is one of %q before it; put the narrower pattern first", i, text, q)
				}
			}
			before = append(before, p)
			sh.topics = append(sh.topics, p)
		}
		shards = append(shards, sh)
	}
	return shards, nil
}

// newShard makes one of several; of is how many.
func newShard(b *Broadcaster, name string, j Journal, of int) *shard {
	sh := &shard{b: b, name: name, log: b.log, journal: j}
	if of > 1 {
		sh.log = b.log.With("shard", name)
	}
	sh.epoch.Store(new(string))
	sh.joiner = &joiner{shard: sh, kicked: make(chan struct{}, 1)}
	sh.heads = &heads{shard: sh, kicked: make(chan struct{}, 1), polled: make(chan struct{}), suspects: make(map[*topic]struct{})}
	sh.replayer = newReplayer(sh, keepBytes/of)
	return sh
}

// Epoch is the epoch that the shard is in; "" until its database was asked.
func (sh *shard) Epoch() string { return *sh.epoch.Load() }

// saw notes whether the last look at the heads worked.
func (sh *shard) saw(err error) {
	if err == nil {
		if !sh.up.Swap(true) {
			sh.log.Info("database answers", "epoch", sh.Epoch())
		}
		sh.b.readyOnce.Do(func() { close(sh.b.ready) })
		return
	}
	if sh.up.Swap(false) || sh.Epoch() == "" {
		sh.log.Warn("database does not answer", "error", err)
	}
}

// enter moves the shard to another epoch: every topic of it begins a new log on a new channel, and every cursor is checked
// against the new history before it goes on.
func (sh *shard) enter(epoch string) {
	b := sh.b
	if from := sh.Epoch(); from != "" {
		sh.log.Warn("the database is in a new epoch", "from", from, "to", epoch)
		b.metrics.epochs.Inc()
	}
	b.mu.Lock()
	sh.epoch.Store(&epoch)
	var topics []*topic
	var drop, add []stream.Channel
	for _, t := range b.topics {
		if t.shard != sh {
			continue
		}
		t.mu.Lock()
		drop = append(drop, t.channel)
		t.enter(epoch)
		add = append(add, t.channel)
		t.mu.Unlock()
		topics = append(topics, t)
	}
	b.subscription.Remove(drop...)
	b.subscription.Add(add...)
	b.mu.Unlock() // not before: a topic that is forgotten meanwhile would leave its channel behind
	for _, t := range topics {
		t.recheck()
	}
}

// shardOf is the shard that holds a topic.
func (b *Broadcaster) shardOf(topic string) *shard {
	for _, sh := range b.shards[1:] {
		for _, p := range sh.topics {
			if p.Match(topic) {
				return sh
			}
		}
	}
	return b.shards[0]
}

// unknown refuses a topic of a database that has not answered since this node began: there is no history to follow yet.
func (b *Broadcaster) unknown(topic string) *wire.Error {
	if b.shardOf(topic).Epoch() != "" {
		return nil
	}
	return &wire.Error{Code: wire.CodeUnavailable, Message: "the database of this topic has not answered yet; subscribe again in a moment"}
}

// down are the names of the shards whose databases did not answer when they were last asked.
func (b *Broadcaster) down() (names []string) {
	for _, sh := range b.shards {
		if !sh.up.Load() {
			names = append(names, sh.name)
		}
	}
	return names
}
