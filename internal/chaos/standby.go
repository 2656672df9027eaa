package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"github.com/commitcast/commitcast/internal/services"
	"github.com/commitcast/commitcast/wire"
)

// failover is a round in which the primary is lost together with commits that it had acknowledged and the standby
// never got. The standby is promoted, the proxies lead to it, and writers go on with the same topics.
func (g *generation) failover(seed uint64, from []kind) (result, error) {
	r := rand.New(rand.NewPCG(seed, 1))
	res := result{Seed: seed, Faults: []string{failover}}
	w := g.w
	var err error
	g.forked = true // from now on, what was seen may turn out not to be
	ctx, stop := context.WithCancel(w.ctx)
	defer stop()
	var writing sync.WaitGroup
	writing.Go(func() { g.writers.run(ctx, seed, writerPause) })
	pause := func(least, most time.Duration) {
		time.Sleep(least + time.Duration(r.Int64N(int64(most-least)))) // part of the schedule
	}
	pause(300*time.Millisecond, 700*time.Millisecond)
	stopWorkers := func() {
		for _, p := range w.of("worker") {
			p.signal(syscall.SIGSTOP)
		}
		w.log.add("FAULT", "SIGSTOP of all workers")
	}
	cutClients := func() {
		for _, p := range w.of("broadcaster") {
			p.clients.Cut()
		}
	}
	// In every third one, all that is lost has never been sequenced.
	unsequenced := rand.New(rand.NewPCG(seed, 2)).IntN(3) == 0
	if unsequenced {
		stopWorkers()
	}
	// In every third of the others, a worker publishes what was lost when the next history has long begun.
	late := !unsequenced && rand.New(rand.NewPCG(seed, 3)).IntN(3) == 0
	var zombie *process
	release, epochs := func() {}, 0.0

	// The standby has what was acknowledged up to here, and gets nothing any more.
	g.writers.lossy.Store(true)
	var lsn string
	if err := w.db().QueryRow(w.ctx, "SELECT pg_current_wal_flush_lsn()::text").Scan(&lsn); err != nil {
		return res, err
	}
	if err := w.eventually(20*time.Second, func() error {
		var has bool
		err := w.db().QueryRow(w.ctx, "SELECT coalesce(bool_and(flush_lsn >= $1::pg_lsn), false) FROM pg_stat_replication", lsn).Scan(&has)
		if err == nil && !has {
			err = fmt.Errorf("the standby has not got to %s", lsn)
		}
		return err
	}); err != nil {
		return res, err
	}
	for _, sql := range []string{"ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()"} {
		if err := execOn(w.ctx, w.replica, sql); err != nil {
			return res, err
		}
	}
	if err := w.eventually(20*time.Second, func() error {
		var n int
		if err := w.db().QueryRow(w.ctx, "SELECT count(*) FROM pg_stat_replication").Scan(&n); err != nil || n > 0 {
			return fmt.Errorf("%d standbys still follow: %v", n, err)
		}
		return nil
	}); err != nil {
		return res, err
	}
	w.log.add("FAULT", "the standby is cut off")

	// What will be lost: events, sometimes an epoch, sometimes events that were never sequenced but are in snapshots.
	if r.IntN(2) == 0 && !unsequenced {
		var name string
		if err := w.db().QueryRow(w.ctx, "SELECT commitcast.begin_epoch(NULL, 'to be lost')").Scan(&name); err != nil {
			return res, err
		}
		w.log.add("FAULT", "epoch %s begins, and will be lost", name)
	}
	pause(100*time.Millisecond, 400*time.Millisecond)
	stopped := (r.IntN(2) == 0 || unsequenced) && !late
	switch {
	case late:
		if zombie, release, err = g.holdPublishing(r.IntN(workers)); err != nil {
			return res, err
		}
		defer release()
		epochs, _ = w.metric("commitcast_broadcaster_epochs_total")
	case unsequenced:
		if err := g.pendEverywhere(cutClients); err != nil {
			return res, err
		}
	case stopped:
		stopWorkers()
		pause(200*time.Millisecond, 500*time.Millisecond)
		cutClients() // some come back by snapshots that hold what is pending now
		pause(200*time.Millisecond, 500*time.Millisecond)
	}

	lost := time.Now()
	w.log.add("FAULT", "the primary is lost")
	w.postgres.Kill()
	if err := w.replica.Promote(w.ctx); err != nil {
		return res, err
	}
	old := w.postgres
	w.postgres = w.replica
	w.replica = nil
	w.sequenced = [wire.Partitions]int64{}
	if err := w.connectDirect(); err != nil {
		return res, err
	}
	if err := w.db().QueryRow(w.ctx, "SELECT count(*) FROM commitcast.epoch").Scan(&g.shared); err != nil {
		return res, err
	}
	g.writers.lossy.Store(false)
	for _, p := range w.processes {
		p.postgres.SetTarget(w.postgres.Addr())
		p.postgres.Cut()
	}
	w.reading.SetTarget(w.postgres.Addr())
	w.reading.Cut()
	// Writers go on at once, sometimes before any worker has noticed.
	w.writing.SetTarget(w.postgres.Addr())
	w.writing.Cut()
	w.log.add("FAULT", "the standby is the primary")
	if late {
		release()
		err := w.eventually(10*time.Second, func() error {
			n, err := w.metric("commitcast_broadcaster_epochs_total")
			if err == nil && n < epochs+broadcasters {
				err = fmt.Errorf("%v broadcasters are in the next epoch", n-epochs)
			}
			return err
		})
		w.log.add("FAULT", "what the stopped worker publishes arrives, after an epoch has begun (%v)", err)
		zombie.redis.Resume()
		pause(50*time.Millisecond, 150*time.Millisecond)
		zombie.signal(syscall.SIGCONT)
		w.log.add("FAULT", "SIGCONT of %s", zombie.name)
	}
	if stopped {
		pause(100*time.Millisecond, 700*time.Millisecond)
		for _, p := range w.of("worker") {
			p.signal(syscall.SIGCONT)
		}
		w.log.add("FAULT", "SIGCONT of all workers")
	}
	faults := schedule(w, seed, from, g.topics, 0)
	g.faults = nil
	var breaking sync.WaitGroup
	if r.IntN(3) == 0 && len(faults) > 0 {
		g.faults = faults[:1]
		breaking.Go(faults[0].run)
	}
	pause(700*time.Millisecond, 1200*time.Millisecond)
	breaking.Wait()
	stop()
	writing.Wait()
	wrote := time.Now()
	old.Close()

	g.calm.Store(true)
	err = g.settle()
	res.Settle = time.Since(wrote)
	if err == nil {
		g.stored()
		if err = g.writers.each(); err == nil {
			err = g.settle()
		}
	}
	if err != nil {
		w.violate("stalled", "%v after the failover of round %d: %v", settleWithin, seed, err)
	}
	ev, err := g.gather()
	if err != nil {
		return res, err
	}
	g.verify(ev)
	first, last := g.waits(ev, lost, wrote)
	res.First, res.Last, res.Held = quantile(first, 1), quantile(last, 1), time.Millisecond
	res.Again, res.AllAgain = g.recovery(ev, lost, wrote)
	for _, f := range g.faults {
		if f.err == nil {
			res.Faults = append(res.Faults, f.kind.name)
		}
	}
	res.Lost, res.Astray, res.Resets = g.lost, g.astray, g.resets
	if g.lost == 0 || g.astray == 0 {
		w.log.add("round", "nothing was lost, or nobody saw it: the round proves little")
	}
	for _, rows := range ev.rows {
		res.Events += len(rows)
	}
	w.replica, err = w.postgres.Replica(w.ctx)
	return res, err
}

// holdPublishing has one worker, the only one, sequence some events of every topic and stops it when it has just begun to
// publish them: the network holds that back. The returned function lets the other workers live again.
func (g *generation) holdPublishing(nth int) (zombie *process, release func(), err error) {
	w := g.w
	zombie = w.of("worker")[nth]
	var releases []func()
	release = sync.OnceFunc(func() {
		for _, f := range releases {
			f()
		}
	})
	for _, p := range w.of("worker") {
		if p != zombie {
			releases = append(releases, p.kill())
		}
	}
	zombie.signal(syscall.SIGSTOP)
	w.log.add("FAULT", "kill -9 of the other workers, SIGSTOP of %s", zombie.name)
	for range 15 {
		if err := g.writers.each(); err != nil {
			return zombie, release, err
		}
	}
	zombie.redis.Blackhole()
	zombie.signal(syscall.SIGCONT)
	var newest int64
	if err := w.db().QueryRow(w.ctx, "SELECT coalesce(max(id), 0) FROM commitcast.outbox").Scan(&newest); err != nil {
		return zombie, release, err
	}
	err = w.eventually(20*time.Second, func() error {
		var waiting int
		err := w.db().QueryRow(w.ctx, "SELECT count(*) FROM commitcast.outbox WHERE id <= $1", newest).Scan(&waiting)
		if err == nil && waiting > 0 {
			err = fmt.Errorf("%d events are not sequenced", waiting)
		}
		return err
	})
	time.Sleep(50 * time.Millisecond) // part of the schedule: what was sequenced is on its way to Redis
	zombie.signal(syscall.SIGSTOP)
	w.log.add("FAULT", "SIGSTOP of %s, which publishes what will be lost", zombie.name)
	return zombie, release, err
}

// pendEverywhere has every client hold, in every topic, ids of events that have no offset and will be lost. They are more
// than the 32 that a sequence is logged ahead, so that the promoted standby gives the same ids again.
func (g *generation) pendEverywhere(cutClients func()) error {
	for range 12 {
		if err := g.writers.each(); err != nil {
			return err
		}
	}
	began := time.Now()
	g.anew.Store(true)
	defer g.anew.Store(false)
	cutClients()
	return g.w.eventually(20*time.Second, func() error {
		for _, c := range g.clients {
			c.mu.Lock()
			held := 0
			for _, r := range c.state {
				if r.began.After(began) && len(r.left) > 0 {
					held++
				}
			}
			c.mu.Unlock()
			if held < len(g.topics) {
				return fmt.Errorf("%s holds pending ids of %d topics", c.name, held)
			}
		}
		return nil
	})
}

// execOn runs a statement on a server.
func execOn(ctx context.Context, pg *services.Postgres, sql string) error {
	pool, err := newPool(pg.URL("postgres"))
	if err != nil {
		return err
	}
	defer pool.Close()
	_, err = pool.Exec(ctx, sql)
	return err
}
