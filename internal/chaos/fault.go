package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/wire"
)

// fault is one thing that goes wrong in a round: at a time after the round's beginning, for a while.
type fault struct {
	kind kind
	at   time.Duration
	hold time.Duration
	r    *rand.Rand // decides the details

	w      *world
	topics []string

	// What became of it.
	began, ended time.Time
	err          error
	silent       []string // broadcasters that said nothing of push being down, just before it healed
	failed       bool     // not all of it went as it should: what Redis holds is not what it was told
}

// kind is one way to break things.
type kind struct {
	name string
	// long: it may hold for seconds, past the time-outs of those who wait.
	long bool
	// kill: what it breaks is broken at once, and recovery need not wait for its end.
	kill bool
	// data: what Redis holds is not what it was told.
	data bool
	// alone: it moves a slot of Redis, which nothing else may be at.
	alone bool
	// apply breaks, waits for hold, and heals.
	apply func(f *fault) error
}

// kinds are all that rounds draw from. The order matters to seeds: new ones go to the end.
var kinds = []kind{
	{name: "worker-kill", kill: true, apply: func(f *fault) error { return f.kill("worker") }},
	{name: "broadcaster-kill", kill: true, apply: func(f *fault) error { return f.kill("broadcaster") }},
	{name: "worker-stop", long: true, apply: func(f *fault) error { return f.stop("worker") }},
	{name: "broadcaster-stop", long: true, apply: func(f *fault) error { return f.stop("broadcaster") }},
	{name: "redis-flush", data: true, apply: func(f *fault) error { return f.redis("FLUSHALL") }},
	{name: "redis-kill", kill: true, data: true, long: true, apply: (*fault).redisKill},
	{name: "redis-rollback", data: true, apply: (*fault).redisRollback},
	{name: "redis-pause", long: true, apply: (*fault).redisPause},
	{name: "redis-del", data: true, apply: func(f *fault) error { return f.eachKey("DEL") }},
	{name: "redis-wrongtype", data: true, apply: (*fault).redisWrongType},
	{name: "redis-xdel", data: true, apply: (*fault).redisXDel},
	{name: "redis-xtrim", data: true, apply: func(f *fault) error { return f.eachKey("XTRIM", "MAXLEN", "0") }},
	{name: "redis-refuse", apply: (*fault).redisRefuse},
	{name: "redis-scripts", apply: func(f *fault) error { return f.redis("SCRIPT", "FLUSH") }},
	{name: "redis-pubsub-kill", apply: func(f *fault) error { return f.redis("CLIENT", "KILL", "TYPE", "pubsub") }},
	{name: "hole-worker-redis", long: true, apply: func(f *fault) error { return f.hole(f.pick("worker").redis) }},
	{name: "hole-broadcaster-redis", long: true, apply: func(f *fault) error { return f.hole(f.pick("broadcaster").redis) }},
	{name: "hole-worker-postgres", long: true, apply: func(f *fault) error { return f.hole(f.pick("worker").postgres) }},
	{name: "hole-broadcaster-postgres", long: true, apply: func(f *fault) error { return f.hole(f.pick("broadcaster").postgres) }},
	{name: "clients-cut", apply: (*fault).clientsCut},
	{name: "writers-cut", apply: (*fault).writersCut},
	{name: "drains-terminate", apply: (*fault).drainsTerminate},
	{name: "postgres-crash", kill: true, apply: (*fault).postgresCrash},
	{name: "epoch-bump", apply: (*fault).epochBump},
}

// kindsOf are those of a world with hosts and a kind of Redis, or of one without.
func kindsOf(hosts bool, redis string) []kind {
	switch {
	case !hosts:
		return kinds
	case redis == redisCluster:
		return slices.Concat(networkKinds, replicatedKinds, clusterKinds)
	case redis == redisSentinel:
		return slices.Concat(networkKinds, replicatedKinds, sentinelKinds)
	}
	return networkKinds
}

func kindNamed(kinds []kind, name string) (kind, bool) {
	for _, k := range kinds {
		if k.name == name {
			return k, true
		}
	}
	return kind{}, false
}

// quietEvery: rounds whose seed is a multiple have no fault at all, and are measured.
const quietEvery = 8

// schedule is what one round does. It follows from the seed alone, and from the kinds to choose from.
// hold, if not 0, is for how long its fault holds, which is then the only one.
func schedule(w *world, seed uint64, from []kind, topics []string, hold time.Duration) []*fault {
	r := rand.New(rand.NewPCG(seed, 0))
	if seed%quietEvery == 0 || len(from) == 0 {
		return nil
	}
	n := 1
	switch x := r.Float64(); {
	case x < 0.25:
		n = 3
	case x < 0.6:
		n = 2
	}
	if hold > 0 {
		n = 1
	}
	var all []*fault
	for range n {
		f := &fault{kind: from[r.IntN(len(from))], w: w, topics: topics, r: rand.New(rand.NewPCG(seed, r.Uint64()))}
		f.at = 100*time.Millisecond + time.Duration(r.Int64N(int64(500*time.Millisecond)))
		switch x := r.Float64(); {
		case x < 0.12 && f.kind.long:
			f.hold = 3200*time.Millisecond + time.Duration(r.Int64N(int64(1300*time.Millisecond)))
		case x < 0.3:
			f.hold = 700*time.Millisecond + time.Duration(r.Int64N(int64(800*time.Millisecond)))
		default:
			f.hold = 100*time.Millisecond + time.Duration(r.Int64N(int64(500*time.Millisecond)))
		}
		if hold > 0 {
			f.hold = hold
		}
		all = append(all, f)
	}
	return all
}

// run waits for its time, and then breaks and heals.
func (f *fault) run() {
	time.Sleep(f.at)
	f.began = time.Now()
	f.w.log.add("FAULT", "%s for %v", f.kind.name, f.hold.Round(time.Millisecond))
	f.err = f.apply()
	f.ended = time.Now()
	if f.err != nil {
		f.w.log.add("FAULT", "%s was not possible: %v", f.kind.name, f.err)
	} else {
		f.w.log.add("FAULT", "%s healed", f.kind.name)
	}
}

// apply breaks and heals. Nothing may have another server of Redis become master while a slot moves: what is moved to whom would be left open, and
// no Redis Cluster mends that by itself.
func (f *fault) apply() error {
	if f.kind.mayFailOver() {
		if !f.w.moving.TryRLock() {
			return errors.New("a slot moves now")
		}
		defer f.w.moving.RUnlock()
	}
	return f.kind.apply(f)
}

// mayFailOver says that the fault may have another server of Redis become master.
func (k kind) mayFailOver() bool { return k.data || strings.Contains(k.name, "redis") && !k.alone }

// over is the moment from which recovery counts.
func (f *fault) over() time.Time {
	if f.kind.kill {
		return f.began
	}
	return f.ended
}

func (f *fault) wait() { time.Sleep(f.hold) }

func (f *fault) pick(role string) *process {
	all := f.w.of(role)
	return all[f.r.IntN(len(all))]
}

func (f *fault) kill(role string) error {
	p := f.pick(role)
	f.w.log.add("FAULT", "kill -9 %s", p.name)
	release := p.kill()
	f.wait()
	release()
	return nil
}

func (f *fault) stop(role string) error {
	p := f.pick(role)
	f.w.log.add("FAULT", "SIGSTOP %s", p.name)
	if err := p.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	f.wait()
	return p.signal(syscall.SIGCONT)
}

// command bounds a command to Redis, which may be frozen by another fault.
func (f *fault) command() (context.Context, context.CancelFunc) {
	return context.WithTimeout(f.w.ctx, 500*time.Millisecond)
}

func (f *fault) redis(args ...any) error {
	ctx, cancel := f.command()
	defer cancel()
	return f.w.cache.Do(ctx, args...).Err()
}

// keys are the streams of this generation's topics, whatever the epoch.
func (f *fault) keys() ([]string, error) {
	ctx, cancel := f.command()
	defer cancel()
	generation, _, _ := strings.Cut(f.topics[0], "/")
	return f.w.cache.Keys(ctx, "cc:{p*}:*:"+generation+"/*").Result()
}

// some of the keys: one, or half of them.
func (f *fault) some() ([]string, error) {
	keys, err := f.keys()
	if err != nil || len(keys) == 0 {
		return nil, err
	}
	slices.Sort(keys)
	f.r.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	if f.r.IntN(2) == 0 {
		return keys[:1], nil
	}
	return keys[:(len(keys)+1)/2], nil
}

func (f *fault) eachKey(command string, args ...any) error {
	keys, err := f.some()
	for _, k := range keys {
		if err == nil {
			err = f.redis(append([]any{command, k}, args...)...)
		}
	}
	return err
}

func (f *fault) redisKill() error {
	f.w.redis.Kill()
	f.wait()
	f.silent = f.w.silentOnPush()
	os.Remove(filepath.Join(f.w.redis.Dir(), "dump.rdb"))
	return f.w.redis.Start(f.w.ctx)
}

// redisRollback: what was stored while it held is gone, what was there before is there.
func (f *fault) redisRollback() error {
	if err := f.redis("SAVE"); err != nil {
		return err
	}
	f.wait()
	f.w.redis.Kill()
	err := f.w.redis.Start(f.w.ctx)
	os.Remove(filepath.Join(f.w.redis.Dir(), "dump.rdb"))
	return err
}

func (f *fault) redisPause() error {
	if err := f.w.redis.Pause(); err != nil {
		return err
	}
	since, pid, resumed := time.Now().Add(30*time.Millisecond), f.w.redis.PID(), f.w.resumed.Load()
	f.wait()
	// Redis has answered nothing since. A topic that was set aside before is passed without it.
	ctx, cancel := f.command()
	defer cancel()
	var topic string
	var seq, published int64
	err := f.w.db().QueryRow(ctx, `SELECT j.topic, j.seq, p.published FROM commitcast.partition p JOIN commitcast.journal j ON j.partition = p.id
		WHERE j.seq <= p.published AND j.sequenced_at > $1 AND NOT EXISTS (SELECT FROM commitcast.parked k WHERE k.topic = j.topic)
		ORDER BY j.seq LIMIT 1`, since).Scan(&topic, &seq, &published)
	if err == nil && f.w.redis.PID() == pid && f.w.resumed.Load() == resumed { // no other fault has let it go on meanwhile
		f.w.violate("published-unconfirmed", "%s: seq %d counts as published, up to %d, while Redis stands still", topic, seq, published)
	}
	f.w.resumed.Add(1)
	return f.w.redis.Resume()
}

func (f *fault) redisWrongType() error {
	keys, err := f.some()
	for _, k := range keys {
		if err == nil {
			err = f.redis("SET", k, "a string")
		}
	}
	return err
}

// redisXDel removes the newest entry of a stream, or one from its middle.
func (f *fault) redisXDel() error {
	keys, err := f.some()
	for _, k := range keys {
		if err != nil {
			break
		}
		ctx, cancel := f.command()
		entries, rerr := f.w.cache.XRevRangeN(ctx, k, "+", "-", 5).Result()
		cancel()
		if err = rerr; err == nil && len(entries) > 0 {
			nth := 0
			if f.r.IntN(2) == 0 {
				nth = len(entries) - 1
			}
			err = f.redis("XDEL", k, entries[nth].ID)
		}
	}
	return err
}

// redisRefuse takes the right to one topic's keys away. What of it was sequenced since must not count as published, unless
// the topic is set aside.
func (f *fault) redisRefuse() error {
	if !f.w.refusing.TryLock() {
		return errors.New("another topic is refused now")
	}
	defer f.w.refusing.Unlock()
	nth := f.r.IntN(len(f.topics))
	topic := f.topics[nth]
	f.w.log.add("FAULT", "redis refuses %s", topic)
	args := []any{"ACL", "SETUSER", "default", "resetkeys", "~cc:{p0}:tick", "~cc:*:canary"}
	for _, t := range f.topics {
		if t != topic {
			args = append(args, "~cc:*:"+t)
		}
	}
	if err := f.redis(args...); err != nil {
		return err
	}
	defer func() {
		for range 20 { // another fault may hold Redis up
			if f.redis("ACL", "SETUSER", "default", "allkeys") == nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
	}()
	since := time.Now().Add(30 * time.Millisecond)
	f.hold = max(f.hold, 500*time.Millisecond)
	pid := f.w.redis.PID()
	f.wait()
	ctx, cancel := f.command()
	defer cancel()
	var published, first int64
	err := f.w.db().QueryRow(ctx, `SELECT p.published, j.seq FROM commitcast.partition p, commitcast.journal j
		WHERE p.id = $1 AND j.partition = p.id AND j.topic = $2 AND j.sequenced_at > $3
			AND NOT EXISTS (SELECT FROM commitcast.parked k WHERE k.topic = $2) ORDER BY j.seq LIMIT 1`,
		wire.Partition(topic), topic, since).Scan(&published, &first)
	if err != nil {
		return nil // nothing was written to it, or the database is away
	}
	users, err := f.w.cache.Do(ctx, "ACL", "LIST").StringSlice()
	if err != nil || f.w.redis.PID() != pid || len(users) == 0 || strings.Contains(users[0], "~*") {
		return nil // another fault has given the right back meanwhile
	}
	if published >= first {
		f.w.violate("published-unconfirmed", "%s: seq %d counts as published, up to %d, while Redis refuses the topic", topic, first, published)
	}
	return nil
}

// hole swallows what goes over a connection. Later it arrives, or is lost with the connection.
func (f *fault) hole(p *testkit.Proxy) error {
	p.Blackhole()
	f.wait()
	if f.r.IntN(2) == 0 {
		p.Cut()
	}
	p.Resume()
	return nil
}

func (f *fault) clientsCut() error {
	for _, p := range f.w.of("broadcaster") {
		p.clients.Cut()
	}
	return nil
}

// writersCut loses answers to writers, those to COMMIT included, and then the connections.
func (f *fault) writersCut() error {
	for range 3 {
		f.w.writing.HoldReplies()
		time.Sleep(min(f.hold, 30*time.Millisecond))
		f.w.writing.Cut()
		f.w.writing.Resume()
		time.Sleep(50 * time.Millisecond)
	}
	return nil
}

func (f *fault) drainsTerminate() error {
	ctx, cancel := context.WithTimeout(f.w.ctx, time.Second)
	defer cancel()
	_, err := f.w.db().Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE application_name = 'commitcast drain' AND random() < 0.7`)
	return err
}

func (f *fault) postgresCrash() error {
	f.w.postgres.Kill()
	time.Sleep(min(f.hold, 300*time.Millisecond))
	return f.w.postgres.Start(f.w.ctx)
}

func (f *fault) epochBump() error {
	ctx, cancel := context.WithTimeout(f.w.ctx, time.Second)
	defer cancel()
	var name string
	err := f.w.db().QueryRow(ctx, "SELECT commitcast.begin_epoch(NULL, 'bumped by hand')").Scan(&name)
	if err == nil {
		f.w.log.add("FAULT", "epoch %s", name)
	}
	return err
}

// names lists kinds for people.
func names(all []kind) string {
	s := make([]string, len(all))
	for i, k := range all {
		s[i] = k.name
	}
	return strings.Join(s, ", ")
}

// parseKinds reads -faults: names with commas, "all" or "none". With hosts, all are those of the network.
func parseKinds(list string, hosts bool, redis string) ([]kind, error) {
	kinds := kindsOf(hosts, redis)
	switch list {
	case "all":
		return kinds, nil
	case "none":
		return nil, nil
	}
	var chosen []kind
	for name := range strings.SplitSeq(list, ",") {
		k, ok := kindNamed(kinds, strings.TrimSpace(name))
		if !ok {
			return nil, fmt.Errorf("there is no fault %q; there are: %s", name, names(kinds))
		}
		chosen = append(chosen, k)
	}
	return chosen, nil
}
