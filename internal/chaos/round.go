package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	topicCount = 10
	// activeFor is how long writers write in a round, at least; longer if a fault lasts longer.
	activeFor = 1100 * time.Millisecond
	// activeAfter is how long they write after the last fault, so that there is something to recover with.
	activeAfter = 250 * time.Millisecond
	// settleWithin is how long everything may take to be whole again once the faults are over: more than the longest
	// backoff of any part, on a busy machine.
	settleWithin = 45 * time.Second
)

// generation is a set of topics with their writers and clients: what is verified as a whole.
type generation struct {
	w       *world
	topics  []string
	writers *writers
	clients []*client
	firstOp int64
	calm    atomic.Bool
	anew    atomic.Bool      // clients that connect begin by snapshots
	forked  bool             // the database has lost what was acknowledged
	shared  int              // so many epochs the database had when it forked; later ones are of the present history alone
	lowest  map[string]int64 // the first offset of a Stream at the end of the last round
	faults  []*fault         // of the present round
	masters string           // of Redis, when it began

	// Counted by verify.
	lost   int // ops that were acknowledged and went with the old primary
	astray int // passages that hold events of a history that is gone
	resets int

	stop context.CancelFunc
	done sync.WaitGroup
}

var generations int

// newGeneration makes topics and lets clients follow them.
func newGeneration(w *world, clients int, seed uint64) (*generation, error) {
	generations++
	g := &generation{w: w, firstOp: opIDs.Load() + 1, lowest: make(map[string]int64)}
	for i := range topicCount {
		g.topics = append(g.topics, fmt.Sprintf("g%d/t%d", generations, i))
	}
	err := w.exec(`INSERT INTO chaos.entity (topic, entity) SELECT t, e FROM unnest($1::text[]) t, unnest($2::text[]) e
		ON CONFLICT DO NOTHING RETURNING topic`, g.topics, entities[:])
	if err != nil {
		return nil, err
	}
	g.writers = &writers{w: w, topics: g.topics}
	ctx, cancel := context.WithCancel(w.ctx)
	g.stop = cancel
	for i := range clients {
		c := newClient(w, i, g.topics, seed, &g.calm, &g.anew)
		g.clients = append(g.clients, c)
		g.done.Go(func() { c.run(ctx) }) // ends with close
	}
	return g, nil
}

func (g *generation) close() {
	g.stop()
	g.done.Wait()
}

// result is what became of a round.
type result struct {
	Seed   uint64        `json:"seed"`
	Faults []string      `json:"faults"`
	Settle time.Duration `json:"settle"`
	Events int           `json:"events"`
	// First is, for a round with one fault, the longest that a commit acknowledged after the fault began waited until
	// the first client had it, Last until all steady clients had; Held is how long the fault held.
	First time.Duration `json:"first"`
	Last  time.Duration `json:"last"`
	Held  time.Duration `json:"held"`
	// Again and AllAgain are how long after that fault's end, or after a kill itself, the first client, and all steady
	// ones, had an event of a commit that began later.
	Again    time.Duration `json:"again"`
	AllAgain time.Duration `json:"all_again"`
	// Lost is how many acknowledged transactions a failover lost, Astray how many passages of clients held their
	// events, Resets how many of these were ended by a reset.
	Lost   int `json:"lost"`
	Astray int `json:"astray"`
	Resets int `json:"resets"`
	// TookOver says that in the end another server of Redis was a master than in the beginning.
	TookOver bool `json:"took_over"`
	// PushP50 and PushP99 are for a round without faults, from the acknowledged commit to each steady client.
	PushP50 time.Duration `json:"push_p50"`
	PushP99 time.Duration `json:"push_p99"`
}

// round runs one: writes, faults, settling, verification.
func (g *generation) round(seed uint64, faults []*fault) result {
	res := result{Seed: seed}
	g.calm.Store(false)
	g.faults = faults
	if g.w.replicated != nil {
		g.masters = g.w.replicated.masters(g.w.ctx)
	}
	quiet := len(faults) == 0
	var healed, delivered float64
	if quiet {
		// Long ago faults may still be felt: a subscription tries again after up to two seconds.
		g.calm.Store(true)
		if err := g.w.eventually(settleWithin, g.w.pushing); err != nil {
			g.w.violate("push-stays-down", "nothing has been wrong for %v: %v", settleWithin, err)
		}
		if err := g.settle(); err != nil {
			g.w.violate("stalled", "before a round without faults: %v", err)
		}
		g.calm.Store(false)
		healed, delivered = g.counters()
	}
	began := time.Now()
	g.w.log.add("round", "seed %d begins", seed)
	ctx, stop := context.WithCancel(g.w.ctx)
	var writing, breaking sync.WaitGroup
	writing.Go(func() { g.writers.run(ctx, seed, writerPause) })
	for _, f := range faults {
		breaking.Go(f.run)
	}
	select {
	case <-time.After(activeFor):
	case <-g.w.ctx.Done():
	}
	breaking.Wait()
	for _, f := range faults {
		time.Sleep(time.Until(f.ended.Add(activeAfter))) // part of the schedule
	}
	stop()
	writing.Wait()
	wrote := time.Now()

	g.calm.Store(true)
	err := g.settle()
	res.Settle = time.Since(wrote)
	if err == nil {
		g.stored()
		g.w.log.add("round", "settled after %v; one event to every topic follows", res.Settle)
		if err = g.writers.each(); err == nil {
			err = g.settle()
		}
	}
	if g.w.ctx.Err() != nil {
		return res
	}
	if err != nil {
		g.w.violate("stalled", "%v after the last fault of round %d: %v", settleWithin, seed, err)
	}
	ev, err := g.gather()
	if err != nil {
		g.w.violate("database", "it cannot be read: %v", err)
		return res
	}
	g.verify(ev)
	res.TookOver = g.tookOver()
	g.measure(ev, &res, began, wrote, healed, delivered)
	g.w.log.add("round", "seed %d is over", seed)
	return res
}

// settle waits until everything committed is sequenced, published and with every client.
func (g *generation) settle() error {
	var heads map[string]int64
	if g.w.replicated != nil {
		if err := g.w.eventually(settleWithin, func() error { return g.w.replicated.settled(g.w.ctx) }); err != nil {
			return err
		}
		g.w.cache.Close() // it may still ask a server that is no master any more
		g.w.cache = g.w.replicated.client()
	}
	return g.w.eventually(settleWithin, func() error {
		type sums struct{ Waiting, Unpublished, SetAside int64 }
		s, err := query(g.w, pgx.RowToStructByPos[sums], `SELECT (SELECT count(*) FROM commitcast.outbox),
			(SELECT coalesce(sum(seq - published), 0)::bigint FROM commitcast.partition), (SELECT count(*) FROM commitcast.parked)`)
		if err != nil {
			return err
		}
		if s[0] != (sums{}) {
			return fmt.Errorf("%d events wait in the outbox, %d to be published, %d topics are set aside", s[0].Waiting, s[0].Unpublished, s[0].SetAside)
		}
		type head struct {
			Topic string
			Head  int64
		}
		all, err := query(g.w, pgx.RowToStructByPos[head], "SELECT topic, head FROM commitcast.topic WHERE topic = ANY ($1)", g.topics)
		if err != nil {
			return err
		}
		heads = make(map[string]int64)
		for _, h := range all {
			heads[h.Topic] = h.Head
		}
		for _, c := range g.clients {
			if what := c.behind(heads); what != "" {
				return fmt.Errorf("%s", what)
			}
		}
		return nil
	})
}

func (g *generation) counters() (healed, delivered float64) {
	healed, err1 := g.w.metric("commitcast_broadcaster_events_healed_total")
	delivered, err2 := g.w.metric("commitcast_broadcaster_events_delivered_total")
	if err1 != nil || err2 != nil {
		g.w.violate("metrics", "%v %v", err1, err2)
	}
	return healed, delivered
}

const (
	// A round without faults must live by push: these are far above what push takes and below what a log takes to
	// notice by the heads that it lags, about a second.
	pushP50 = 200 * time.Millisecond
	pushP99 = 700 * time.Millisecond
	// healedShare of the events may be healed all the same: a message may be later than the grace for it.
	healedShare = 0.03
	// awayP90 bounds, while Redis is away, what a commit waits: polls come every quarter of a second then, and every
	// second otherwise.
	awayP90 = 800 * time.Millisecond
	// awayAfter is when polling has surely begun, awayLeast how long Redis must be away to tell.
	awayAfter = 300 * time.Millisecond
	awayLeast = 1200 * time.Millisecond
)

// measure takes times, and judges those that tell whether push works and whether polling does while it cannot.
func (g *generation) measure(ev *evidence, res *result, began, wrote time.Time, healed, delivered float64) {
	for _, f := range g.faults {
		if f.err == nil {
			res.Faults = append(res.Faults, f.kind.name)
		}
	}
	for _, rows := range ev.rows {
		res.Events += len(rows)
	}
	w := g.w
	switch {
	case len(g.faults) == 0:
		all := g.pushes(ev, began, wrote)
		res.PushP50, res.PushP99 = quantile(all, 0.5), quantile(all, 0.99)
		h, d := g.counters()
		h, d = h-healed, d-delivered
		w.log.add("round", "push p50 %v p99 %v of %d; %v of %v deliveries were healed", res.PushP50, res.PushP99, len(all), h, d)
		w.judge(res.PushP50 < pushP50 && res.PushP99 < pushP99, "push-slow",
			"without any fault, commits took p50 %v, p99 %v to clients: that is healing, not push", res.PushP50, res.PushP99)
		// Healed events count once a node; deliveries once a client.
		w.judge(h <= 3 || h <= healedShare*d, "push-by-healing", "without any fault, %v events were healed, of %v delivered", h, d)
		for _, c := range g.clients {
			c.mu.Lock()
			nets := c.nets
			c.nets = 0
			c.mu.Unlock()
			w.judge(nets == 0, "net-needed", "without any fault, %s learned of a loss by a heartbeat only", c.name)
		}
	case len(g.faults) == 1:
		f := g.faults[0]
		if f.err != nil {
			break
		}
		first, last := g.waits(ev, f.began, wrote)
		res.First, res.Last, res.Held = quantile(first, 1), quantile(last, 1), f.ended.Sub(f.began)
		res.Again, res.AllAgain = g.recovery(ev, f.over(), wrote)
		if f.kind.name == "redis-kill" && res.Held > awayLeast {
			// Until all have it: each node polls at its own time, and the first of them is early in any case.
			_, away := g.waits(ev, f.began.Add(awayAfter), f.ended)
			p90 := quantile(away, 0.9)
			w.log.add("round", "while Redis was away, commits waited p90 %v", p90)
			w.judge(len(f.silent) == 0, "outage-unsaid", "Redis had been away for %v, and %v did not say so", res.Held, f.silent)
			w.judge(p90 < awayP90, "polling-slow", "while Redis was away for %v, commits waited p90 %v: they must come by polling", res.Held, p90)
		}
	}
}
