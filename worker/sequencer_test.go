package worker

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/commitcast/commitcast/internal/journal"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/stream"
)

// All drains of a process share one session, which holds the lock of each.
func TestOneSessionForAllPartitions(t *testing.T) {
	b := newBench(t)
	b.run(Config{Linger: 30 * time.Second})
	for p := range 32 {
		b.append(topicIn(p, 0), `1`)
	}
	b.published(10 * time.Second)
	locks := scalar[int](b, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid BETWEEN $1::bigint AND $1::bigint + 31
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`, int64(lockClass))
	sessions := scalar[int](b, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'commitcast drain'`)
	if locks != 32 || sessions != 1 {
		t.Errorf("%d locks held by %d sessions", locks, sessions)
	}
}

// A partition whose row somebody else has locked delays no other, and is sequenced once the row is free.
func TestLockedPartitionDelaysNobody(t *testing.T) {
	b := newBench(t)
	b.run(Config{})
	held, free := topicIn(5, 0), topicIn(6, 0)
	sub := b.subscribe(b.stream, b.epoch(), held, free)
	for _, topic := range []string{held, free} {
		b.append(topic, `1`)
	}
	b.published(5 * time.Second)
	tx, err := b.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	// Partition 7 has no drain yet: neither does one that begins hold up the others.
	if _, err := tx.Exec(t.Context(), `SELECT FROM commitcast.partition WHERE id IN (5, 7) FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	b.append(topicIn(7, 0), `1`)
	start := time.Now()
	for i := range 20 {
		b.append(held, `2`)
		b.append(free, `2`)
		testkit.Eventually(t, 5*time.Second, func() bool { return sub.reached(free) == int64(i+2) }, "the neighbour")
	}
	// Twenty in a row would each wait for statementTimeout.
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("20 events of the neighbour took %v", took)
	}
	if n := sub.reached(held); n != 1 {
		t.Fatalf("the locked partition is at %d", n)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 5*time.Second, func() bool { return sub.reached(held) == 21 }, "the locked partition")
	sub.noHoles(t)
}

// A partition that Postgres cannot sequence fails alone, and goes on when it can.
func TestFailingPartitionFailsAlone(t *testing.T) {
	b := newBench(t)
	bad, good := topicIn(5, 0), topicIn(6, 0)
	b.exec(fmt.Sprintf(`ALTER TABLE commitcast.journal ADD CONSTRAINT test CHECK (NOT (topic = '%s' AND "offset" > 1))`, bad))
	b.run(Config{})
	sub := b.subscribe(b.stream, b.epoch(), bad, good)
	b.append(bad, `1`)
	b.append(good, `1`)
	b.published(5 * time.Second)
	for i := range 50 {
		// In one transaction, so that one look finds both.
		b.exec(`WITH a AS (SELECT commitcast.append($1, 'e', '2')) SELECT commitcast.append($2, 'e', '2') FROM a`, bad, good)
		testkit.Eventually(t, 5*time.Second, func() bool { return sub.reached(good) == int64(i+2) }, "the neighbour")
	}
	if n := sub.reached(bad); n != 1 {
		t.Fatalf("the failing partition is at %d", n)
	}
	b.exec(`ALTER TABLE commitcast.journal DROP CONSTRAINT test`)
	testkit.Eventually(t, 40*time.Second, func() bool { return sub.reached(bad) == 51 }, "the failing partition")
	sub.noHoles(t)
}

// What fails for one partition of a round does not fail for the others in it.
func TestFailingTurnFailsAlone(t *testing.T) {
	b := newBench(t)
	bad, good := topicIn(5, 0), topicIn(6, 0)
	b.exec(fmt.Sprintf(`ALTER TABLE commitcast.journal ADD CONSTRAINT test CHECK (topic <> '%s')`, bad))
	b.append(bad, `1`)
	b.append(good, `1`)
	w, err := New(b.least, b.stream, Config{})
	if err != nil {
		t.Fatal(err)
	}
	s := newSequencer(w)
	var turns [2]*turn
	for i := range turns {
		turns[i] = &turn{partition: int16(5 + i), term: 1, begin: true, batch: 10, read: true, limit: 10,
			since: journal.MinusInfinity, answered: make(chan struct{}, 1)}
		s.in <- turns[i] // before it runs, so that both go together
	}
	ctx, cancel := context.WithCancel(t.Context())
	go s.run(ctx) // ends with ctx
	defer func() { cancel(); <-s.gone }()
	for _, turn := range turns {
		<-turn.answered
	}
	if err := turns[0].err; !turns[0].began || !errors.As(err, new(*pgconn.PgError)) {
		t.Errorf("the bad one: began %t, %v", turns[0].began, err)
	}
	if g := turns[1]; !g.began || g.err != nil || g.at.sequenced != 1 || len(g.rows.frames) != 1 {
		t.Errorf("the good one: began %t, %v, %d sequenced, %d read", g.began, g.err, g.at.sequenced, len(g.rows.frames))
	}
}

// Who gives up a lock takes nothing from those who go in the same round; and a lock whose drain does not ask any more is
// given up although its neighbours keep the session busy.
func TestEndBesideWork(t *testing.T) {
	b := newBench(t)
	b.append(topicIn(6, 0), `1`)
	w, err := New(b.least, b.stream, Config{})
	if err != nil {
		t.Fatal(err)
	}
	s := newSequencer(w)
	defer s.drop()
	gone := &turn{partition: 5, term: 1, begin: true, batch: 10}
	stuck := &turn{partition: 7, term: 1, begin: true, batch: 10}
	s.serve(t.Context(), []*turn{gone, stuck})
	if !gone.began || !stuck.began {
		t.Fatal(gone.err, stuck.err)
	}
	s.held[lock{7, 1}] = time.Now().Add(-ownerIdle - time.Second)
	work := &turn{partition: 6, term: 1, begin: true, batch: 10}
	s.serve(t.Context(), []*turn{{partition: 5, term: 1, end: true}, work})
	if work.err != nil || work.at.sequenced != 1 {
		t.Errorf("beside an end, %d events were sequenced (%v)", work.at.sequenced, work.err)
	}
	if n := scalar[int](b, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid BETWEEN $1::bigint AND $1::bigint + 31
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`, int64(lockClass)); n != 1 {
		t.Errorf("%d locks are left, want the working drain's", n)
	}
	stuck.begin = false
	if s.serve(t.Context(), []*turn{stuck}); stuck.err != errLockLost {
		t.Errorf("who comes back was not told: %v", stuck.err)
	}
}

// A call to the stream that hangs for ever holds up its own partition for a while, also when the others keep the session busy.
func TestHangingPublishIsPassed(t *testing.T) {
	b := newBench(t)
	hung, busy := topicIn(5, 0), topicIn(6, 0)
	sub := b.subscribe(b.stream, b.epoch(), hung, busy)
	s := &breakable{Stream: b.stream}
	free := make(chan struct{})
	var hanging atomic.Bool
	s.set(func(ctx context.Context, offers []stream.Offer) ([]stream.Answer, error) {
		if offers[0].Topic == hung && !hanging.Swap(true) {
			<-free // it does not heed ctx
		}
		return b.stream.Publish(ctx, offers)
	})
	b.runOn(s, Config{})
	defer close(free)
	b.append(hung, `1`)
	for i, start := int64(1), time.Now(); sub.reached(hung) == 0; i++ {
		b.append(busy, `1`)
		testkit.Eventually(t, 5*time.Second, func() bool { return sub.reached(busy) >= i }, "the neighbour")
		if time.Since(start) > 30*time.Second {
			t.Fatal("the hung partition is not taken over")
		}
	}
}

// A backlog in one partition does not make the others wait until it is gone.
func TestBacklogDelaysNobody(t *testing.T) {
	b := newBench(t)
	b.run(Config{})
	full, quiet := topicIn(5, 0), topicIn(6, 0)
	sub := b.subscribe(b.stream, b.epoch(), full, quiet)
	b.append(quiet, `1`)
	b.published(5 * time.Second)
	const backlog = 50_000
	b.exec(`INSERT INTO commitcast.outbox (partition, topic, type, data) SELECT 5, $1, 'e', to_json(i) FROM generate_series(1, $2) i`, full, backlog)
	var passed int64 // of the backlog, when the neighbour's events were all there
	for i := range 5 {
		b.append(quiet, `2`)
		testkit.Eventually(t, 10*time.Second, func() bool { return sub.reached(quiet) == int64(i+2) }, "the neighbour")
		passed = sub.reached(full)
	}
	if passed == backlog {
		t.Error("the neighbour waited for the whole backlog")
	}
	b.published(60 * time.Second)
	if n := sub.reached(full); n != backlog {
		t.Errorf("%d of the backlog arrived", n)
	}
	sub.noHoles(t)
}

// A session that does not answer any more is left behind, also by the only worker there is.
func TestHangingSessionIsLeftBehind(t *testing.T) {
	b := newBench(t)
	b.run(Config{})
	topic := topicIn(5, 0)
	sub := b.subscribe(b.stream, b.epoch(), topic)
	b.append(topic, `1`)
	b.published(5 * time.Second)
	backend := b.owned(5)
	if err := syscall.Kill(backend, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resume := func() { _ = syscall.Kill(backend, syscall.SIGCONT) }
	defer resume()
	start := time.Now()
	b.append(topic, `2`)
	testkit.Eventually(t, 30*time.Second, func() bool { return sub.reached(topic) == 2 }, "the event")
	took := time.Since(start)
	t.Logf("held up for %v", took)
	if took > roundTimeout {
		t.Errorf("held up for %v: until the session was given up", took)
	}
	b.append(topic, `3`)
	resume()
	testkit.Eventually(t, 5*time.Second, func() bool { return sub.reached(topic) == 3 }, "another event")
	b.published(20 * time.Second)
	b.checkStream(b.journal(), fromStart)
	sub.noHoles(t)
}

// The parts of a group that a turn belongs to: one for each partition, and those whose session is gone get told.
func TestLostSessionIsTold(t *testing.T) {
	b := newBench(t)
	w, err := New(b.least, b.stream, Config{})
	if err != nil {
		t.Fatal(err)
	}
	s := newSequencer(w)
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { s.run(ctx); close(done) }() // ends with the test
	defer func() { cancel(); <-done }()
	newTurn := func(p int16) *turn {
		return &turn{partition: p, term: 1, begin: true, batch: 10, limit: 10, answered: make(chan struct{}, 1)}
	}
	a := newTurn(3)
	if err := s.ask(ctx, a); err != nil || !a.began {
		t.Fatal(err, a.began)
	}
	b.exec(`SELECT pg_terminate_backend($1)`, b.owned(3))
	a.begin = false
	if err := s.ask(ctx, a); err == nil {
		t.Error("asked on a session that was ended, and got an answer")
	}
	c := newTurn(4)
	if err := s.ask(ctx, c); err != nil || !c.began {
		t.Fatal(err, c.began)
	}
	if err := s.ask(ctx, a); err != errLockLost {
		t.Errorf("on the next session the lock was not missed: %v", err)
	}
	// The same term again, elsewhere, is refused while the lock is held, and taken when it is given up.
	other := newSequencer(w)
	go other.run(ctx) // ends with ctx
	d := newTurn(4)
	if err := other.ask(ctx, d); err != nil || d.began {
		t.Errorf("two sessions began the same term (%v)", err)
	}
	end := &turn{partition: 4, term: 1, end: true, answered: make(chan struct{}, 1)}
	if err := s.ask(ctx, end); err != nil {
		t.Fatal(err)
	}
	if n := scalar[int](b, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = $1::bigint`, int64(lockClass+4)); n != 0 {
		t.Errorf("%d locks are left", n)
	}
	cancel()
	<-other.gone
}
