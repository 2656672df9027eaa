package worker

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/internal/journal"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

// G1, G3: every committed event and no other, each topic numbered without a hole in the order of ids, in the stream as
// in the journal, and heard by a subscriber without a hole.
func TestEveryCommitInOrder(t *testing.T) {
	const topics = 40
	b := newBench(t)
	sub := b.subscribe(b.stream, b.epoch(), loadTopics(topics)...)
	b.run(Config{})
	l := b.load(8, topics, 0.3, 0)
	l.after(t, 3000)
	l.stop()
	b.published(20 * time.Second)
	b.verify(l, sub)
}

// verify compares what was committed, the journal, the stream and what a subscriber heard.
func (b *bench) verify(l *load, sub *listener) {
	b.t.Helper()
	journal := b.journal()
	if got, want := count(journal), l.committed.Load(); got != want {
		b.t.Errorf("%d events committed, %d in the journal", want, got)
	}
	b.checkStream(journal, fromStart)
	for topic, rows := range journal {
		testkit.Eventually(b.t, 5*time.Second, func() bool { return sub.reached(topic) == int64(len(rows)) }, "the last event of %s", topic)
	}
	sub.noHoles(b.t)
}

// The in-process stream, as one process that does it all uses it.
func TestInProcessStream(t *testing.T) {
	const topics = 10
	b := newBench(t)
	m := stream.NewMemory(stream.MemoryConfig{})
	defer m.Close()
	sub := b.subscribe(m, b.epoch(), loadTopics(topics)...)
	_, stop := b.runOn(m, Config{})
	l := b.load(4, topics, 0.3, 0)
	l.after(t, 500)
	l.stop()
	b.published(10 * time.Second)
	for topic, rows := range b.journal() {
		testkit.Eventually(t, 5*time.Second, func() bool { return sub.reached(topic) == int64(len(rows)) }, "the last event of %s", topic)
	}
	sub.noHoles(t)
	sub.cancel()
	stop()
}

func TestTwoWorkers(t *testing.T) {
	const topics = 40
	b := newBench(t)
	sub := b.subscribe(b.stream, b.epoch(), loadTopics(topics)...)
	b.run(Config{Slots: 16})
	_, stop := b.runOn(openStream(t, b.redis), Config{Slots: 16})
	l := b.load(6, topics, 0.3, time.Millisecond)
	l.after(t, 1500)
	stop() // one leaves, in order
	l.after(t, 500)
	l.stop()
	b.published(20 * time.Second)
	b.verify(l, sub)
}

// Two drains of one partition at once are harmless: a new term begins every few milliseconds, wherever the last one is.
func TestDrainsOfOnePartitionAtOnce(t *testing.T) {
	b := newBench(t)
	topic := topicIn(5, 0)
	sub := b.subscribe(b.stream, b.epoch(), topic)
	w, _ := b.run(Config{})
	var n int64
	for range 60 {
		for range 10 {
			b.append(topic, `{"a":1}`)
			n++
		}
		term := scalar[int64](b, `SELECT term FROM commitcast.partition WHERE id = 5`)
		for ahead := range int64(3) {
			if err := w.handOver(t.Context(), 5, term+1+ahead); err != nil {
				t.Fatal(err)
			}
		}
	}
	b.published(20 * time.Second)
	journal := b.journal()
	if count(journal) != n {
		t.Errorf("%d events in the journal, not %d", count(journal), n)
	}
	b.checkStream(journal, fromStart)
	testkit.Eventually(t, 5*time.Second, func() bool { return sub.reached(topic) == n }, "the last event")
	sub.noHoles(t)
	if term := scalar[int64](b, `SELECT term FROM commitcast.partition WHERE id = 5`); term < 60 {
		t.Errorf("only %d terms: the test did not test", term)
	}
}

// G6: an open transaction, also one that has drawn an event id, in this database or another, holds nobody up.
func TestOpenTransactionsDelayNobody(t *testing.T) {
	b := newBench(t)
	topic := topicIn(7, 0)
	other, err := pgx.Connect(t.Context(), testkit.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(context.Background())
	if _, err := other.Exec(t.Context(), `BEGIN; SELECT commitcast.append('x', 'e', '1')`); err != nil {
		t.Fatal(err)
	}
	slow, err := b.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Rollback(context.Background())
	if _, err := slow.Exec(t.Context(), appendSQL, topic, `"slow"`); err != nil {
		t.Fatal(err)
	}
	reader, err := b.pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Rollback(context.Background())
	if _, err := reader.Exec(t.Context(), `SELECT count(*) FROM commitcast.outbox`); err != nil {
		t.Fatal(err)
	}
	b.run(Config{})
	for range 20 {
		b.append(topic, `"fast"`)
		start := time.Now()
		b.published(2 * time.Second)
		if took := time.Since(start); took > time.Second {
			t.Errorf("an event took %v", took)
		}
	}
	if err := slow.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.published(2 * time.Second)
	if n := scalar[int](b, `SELECT count(*) FROM commitcast.journal`); n != 21 {
		t.Errorf("%d events in the journal", n)
	}
}

// A database whose default is REPEATABLE READ, where a function that waited for a lock sees the world before it.
// Events that nobody announces, as those of commitcast.append in SQL, are found by the sweep while a drain idles.
func TestUnannouncedEventsAreFoundSoon(t *testing.T) {
	b := newBench(t)
	b.run(Config{})
	for range 20 {
		b.append(topicIn(4, 0), `1`)
		testkit.Eventually(t, 20*time.Second, func() bool {
			return scalar[int](b, `SELECT count(*) FROM commitcast.outbox`) == 0
		}, "the event sequenced")
	}
	median := scalar[float64](b, `SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM sequenced_at - created_at)) FROM commitcast.journal`)
	t.Logf("sequenced within %.1f ms (median)", 1000*median)
	if limit := (reportAfter / 2).Seconds(); median > limit { // a drain that nobody wakes looks when it reports
		t.Errorf("the median event waited %.3f s, more than %.3f", median, limit)
	}
}

func TestRepeatableReadByDefault(t *testing.T) {
	const topics = 5
	b := newBench(t)
	name := scalar[string](b, `SELECT current_database()`)
	b.exec(fmt.Sprintf(`ALTER DATABASE %s SET default_transaction_isolation = 'repeatable read'`, name))
	b.exec(fmt.Sprintf(`ALTER DATABASE %s SET synchronous_commit = off`, name))
	b.pool.Reset()
	sub := b.subscribe(b.stream, b.epoch(), loadTopics(topics)...)
	b.run(Config{})
	b.run(Config{})
	l := b.load(6, topics, 0.3, 0)
	l.after(t, 1500)
	l.stop()
	b.published(20 * time.Second)
	b.verify(l, sub)
	if n := scalar[int](b, `SELECT count(*) FROM commitcast.river_job WHERE errors IS NOT NULL`); n > 0 {
		t.Errorf("%d jobs failed: %s", n, scalar[string](b, `SELECT errors[1]::text FROM commitcast.river_job WHERE errors IS NOT NULL LIMIT 1`))
	}
}

// The settings that correctness rests on, whatever the database's defaults are.
func TestOwnerSession(t *testing.T) {
	b := newBench(t)
	name := scalar[string](b, `SELECT current_database()`)
	for setting, value := range map[string]string{
		"default_transaction_isolation": "serializable", "default_transaction_read_only": "on", "synchronous_commit": "off",
		"idle_session_timeout": "0", "statement_timeout": "0", "enable_seqscan": "on",
	} {
		b.exec(fmt.Sprintf(`ALTER DATABASE %s SET %s = '%s'`, name, setting, value))
	}
	w, err := New(b.least, b.stream, Config{})
	if err != nil {
		t.Fatal(err)
	}
	own, err := w.connectOwner(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer own.close()
	for setting, want := range map[string]string{
		"transaction_isolation": "read committed", "transaction_read_only": "off", "synchronous_commit": "on",
		"idle_session_timeout": "3s", "statement_timeout": "10s", "enable_seqscan": "off",
	} {
		result := own.conn.ExecParams(t.Context(), "SHOW "+setting, nil, nil, nil, nil).Read()
		if result.Err != nil || string(result.Rows[0][0]) != want {
			t.Errorf("%s is %s, not %s (%v)", setting, result.Rows[0][0], want, result.Err)
		}
	}
}

// A client that does not take the rows it asked for holds no lock, although it asked in one pipeline with sequencing.
func TestNoLockWhileRowsAreRead(t *testing.T) {
	b := newBench(t)
	topic := topicIn(13, 0)
	b.exec(`INSERT INTO commitcast.outbox (partition, topic, type, data) SELECT 13, $1, 'big',
		to_json((SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 6400) WHERE i > 0)) FROM generate_series(1, 200) i`, topic)
	w, err := New(b.least, b.stream, Config{})
	if err != nil {
		t.Fatal(err)
	}
	own, err := w.connectOwner(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer own.close()
	p := own.conn.StartPipeline(t.Context())
	turns := []*turn{{partition: 13, term: 1, since: journal.MinusInfinity, limit: 1000}}
	own.sendSequence(p, turns, 1000, "", 0)
	own.sendRead(p, turns, 1<<30)
	if err := p.Flush(); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 20*time.Second, func() bool {
		return scalar[bool](b, `SELECT wait_event IS NOT DISTINCT FROM 'ClientWrite' FROM pg_stat_activity WHERE pid = $1`, int64(own.conn.PID()))
	}, "Postgres waits for the client to read")
	if n := scalar[int64](b, `SELECT seq FROM commitcast.partition WHERE id = 13 FOR UPDATE NOWAIT`); n != 200 {
		t.Errorf("%d events are sequenced", n)
	}
}

// Timeouts that a database or role sets for everybody's sessions must not cut the worker's.
func TestSessionTimeoutsByDefault(t *testing.T) {
	b := newBench(t)
	name := scalar[string](b, `SELECT current_database()`)
	for _, timeout := range []string{"idle_session_timeout", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"} {
		b.exec(fmt.Sprintf(`ALTER DATABASE %s SET %s = '300ms'`, name, timeout))
	}
	b.run(Config{})
	testkit.Eventually(t, 10*time.Second, func() bool {
		return scalar[int](b, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
			AND application_name = 'commitcast listener' AND clock_timestamp() - backend_start > '1 s'`) == 1
	}, "a listener that is a second old")
	b.append("a", `1`)
	b.published(5 * time.Second)
}

// A drain that ends leaves nothing: no lock, no running job, the watermark at the end.
func TestIdleDrainsEnd(t *testing.T) {
	b := newBench(t)
	b.run(Config{Linger: 200 * time.Millisecond})
	for i := range 20 {
		b.append(fmt.Sprintf("q:%d", i), `1`)
	}
	b.published(5 * time.Second)
	testkit.Eventually(t, 5*time.Second, func() bool {
		return scalar[int](b, `SELECT count(*) FROM commitcast.river_job WHERE kind = 'outbox_drain' AND state <> 'completed'`) == 0
	}, "all drains have ended")
	if n := scalar[int](b, `SELECT count(*) FROM pg_locks l WHERE locktype = 'advisory' AND classid BETWEEN $1::bigint AND $1::bigint + 31
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`, int64(lockClass)); n > 0 {
		t.Errorf("%d locks are left", n)
	}
	b.append("q:1", `2`)
	b.published(5 * time.Second)
}

// An aged drain hands over without a pause, and its events go on in order.
func TestHandOverAtAge(t *testing.T) {
	const topics = 3
	b := newBench(t)
	sub := b.subscribe(b.stream, b.epoch(), loadTopics(topics)...)
	b.run(Config{Linger: 100 * time.Millisecond, MaxAge: 200 * time.Millisecond})
	l := b.load(3, topics, 0, 2*time.Millisecond)
	testkit.Eventually(t, 20*time.Second, func() bool {
		return scalar[int64](b, `SELECT max(term) FROM commitcast.partition`) > 10
	}, "ten handovers")
	l.stop()
	b.published(10 * time.Second)
	b.verify(l, sub)
}

// Journal leaves that are missing are made when they are needed.
func TestMissingLeaves(t *testing.T) {
	b := newBench(t)
	b.exec(`DO $$ DECLARE leaf regclass; BEGIN
		FOR leaf IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'commitcast.journal'::regclass LOOP
			EXECUTE 'DROP TABLE ' || leaf;
		END LOOP; END $$`)
	// The upkeep job makes them at the start: hold it up until the drain has met the hole.
	b.exec(`INSERT INTO commitcast.river_queue (name, created_at, updated_at, metadata, paused_at) VALUES ('upkeep', now(), now(), '{}', now())`)
	b.run(Config{})
	b.append("a", `1`)
	b.published(10 * time.Second)
}

// breakable lets a test come between the worker and the stream.
type breakable struct {
	stream.Stream
	publish atomic.Pointer[func(context.Context, []stream.Offer) ([]stream.Answer, error)]
}

func (s *breakable) Publish(ctx context.Context, offers []stream.Offer) ([]stream.Answer, error) {
	if f := s.publish.Load(); f != nil {
		return (*f)(ctx, offers)
	}
	return s.Stream.Publish(ctx, offers)
}

func (s *breakable) set(f func(context.Context, []stream.Offer) ([]stream.Answer, error)) {
	if f == nil {
		s.publish.Store(nil)
		return
	}
	s.publish.Store(&f)
}

// A panic ends the drain, with its connection and lock, and not the process; another drain goes on.
func TestPanicEndsOnlyTheDrain(t *testing.T) {
	b := newBench(t)
	s := &breakable{Stream: b.stream}
	var calls atomic.Int64
	s.set(func(ctx context.Context, offers []stream.Offer) ([]stream.Answer, error) {
		if calls.Add(1) <= 2 {
			panic("as a test")
		}
		return b.stream.Publish(ctx, offers)
	})
	b.runOn(s, Config{})
	b.append("p", `1`)
	b.published(10 * time.Second)
	if n := scalar[int](b, `SELECT count(*) FROM commitcast.river_job WHERE errors IS NOT NULL AND errors[1]::text LIKE '%as a test%'`); n != 2 {
		t.Errorf("River shows %d failed jobs, not 2", n)
	}
}

// A stream that hangs holds up publishing, not sequencing.
func TestHangingStreamDoesNotHoldUpSequencing(t *testing.T) {
	b := newBench(t)
	s := &breakable{Stream: b.stream}
	s.set(func(ctx context.Context, _ []stream.Offer) ([]stream.Answer, error) {
		<-ctx.Done()
		return nil, fmt.Errorf("%w: %w", stream.ErrUnavailable, ctx.Err())
	})
	b.runOn(s, Config{})
	topic := topicIn(11, 0)
	for range 20 {
		b.append(topic, `1`)
		start := time.Now()
		testkit.Eventually(t, 2*time.Second, func() bool { return scalar[int](b, `SELECT count(*) FROM commitcast.outbox`) == 0 }, "sequenced")
		if took := time.Since(start); took > 500*time.Millisecond {
			t.Errorf("sequencing took %v", took)
		}
	}
	s.set(nil)
	b.published(10 * time.Second)
	b.checkStream(b.journal(), fromStart)
}

// Many and large events in one partition: reads are cut by size.
func TestLargeEvents(t *testing.T) {
	b := newBench(t)
	topic := topicIn(13, 0)
	b.exec(`INSERT INTO commitcast.outbox (partition, topic, type, data) SELECT 13, $1, 'big', to_json(repeat(md5(i::text), 7500)) FROM generate_series(1, 150) i`, topic)
	s := &breakable{Stream: b.stream}
	var most atomic.Int64
	s.set(func(ctx context.Context, offers []stream.Offer) ([]stream.Answer, error) {
		var size int64
		for _, o := range offers {
			for _, f := range o.Frames {
				size += int64(len(f))
			}
		}
		most.Store(max(most.Load(), size))
		return b.stream.Publish(ctx, offers)
	})
	b.runOn(s, Config{})
	b.published(20 * time.Second)
	if m := most.Load(); m > readBytes+wire.MaxData+4096 {
		t.Errorf("%d bytes offered at once", m)
	}
	b.checkStream(b.journal(), fromStart)
}
