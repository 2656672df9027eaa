package worker

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

// everyPartition is one topic in each partition.
func everyPartition() []string {
	topics := make([]string, wire.Partitions)
	for p := range topics {
		topics[p] = topicIn(p, 0)
	}
	return topics
}

// A worker that is killed while it owns every partition is replaced within two seconds, by sweeps alone, and nothing is
// lost, doubled or out of order.
func TestKilledWorkerIsReplaced(t *testing.T) {
	const topics = 40
	b := newBench(t)
	sub := b.subscribe(b.stream, b.epoch(), append(loadTopics(topics), everyPartition()...)...)
	a := b.spawn()
	b.run(Config{})
	l := b.load(4, topics, 0.3, time.Millisecond)
	l.after(t, 500)
	a.signal(syscall.SIGKILL)
	start := time.Now()
	for _, topic := range everyPartition() {
		b.append(topic, `"after the kill"`)
	}
	for _, topic := range everyPartition() {
		testkit.Eventually(t, 10*time.Second, func() bool { return sub.reached(topic) == 1 }, "%s after the kill", topic)
	}
	took := time.Since(start)
	t.Logf("every partition was taken over within %v", took)
	if took > 2*time.Second {
		t.Errorf("takeover took %v", took)
	}
	l.after(t, 300)
	l.stop()
	b.published(20 * time.Second)
	l.committed.Add(wire.Partitions)
	b.verify(l, sub)
}

// owned waits until a child owns a partition, and returns the process id of its session in Postgres.
func (b *bench) owned(partition int) (pid int) {
	b.t.Helper()
	testkit.Eventually(b.t, 10*time.Second, func() error {
		return b.pool.QueryRow(context.Background(), `SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = $1::bigint
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`, int64(lockClass+partition)).Scan(&pid)
	}, "an owner of partition %d", partition)
	return pid
}

// A worker that is stopped while it receives 40 MB keeps its session, its lock and a full socket. Its partition is held
// up for less than 5 s, and nothing changes when it goes on.
func TestStoppedWorkerIsPassed(t *testing.T) {
	b := newBench(t)
	topic := topicIn(4, 0)
	sub := b.subscribe(b.stream, b.epoch(), topic)
	a := b.spawn()
	b.append(topic, `"first"`)

	stopped, pid := false, 0
	var n int64 = 1
	for range 20 {
		b.published(20 * time.Second)
		b.exec(`INSERT INTO commitcast.outbox (partition, topic, type, data) SELECT 4, $1, 'big',
			to_json((SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 6400) WHERE i > 0)) FROM generate_series(1, 200) i`, topic)
		n += 200
		testkit.Eventually(t, 20*time.Second, func() bool {
			return scalar[bool](b, `SELECT seq > published FROM commitcast.partition WHERE id = 4`)
		}, "the batch sequenced")
		if pid = b.owned(4); b.stopWhileReceiving(a, pid) {
			stopped = true
			break
		}
	}
	if !stopped {
		t.Fatal("the child could not be stopped while it received")
	}
	start := time.Now()
	b.run(Config{})
	b.append(topic, `"after the stop"`)
	n++
	testkit.Eventually(t, 20*time.Second, func() bool { return sub.reached(topic) == n }, "the event after the stop")
	took := time.Since(start)
	t.Logf("held up for %v", took)
	if took > heldUpLimit {
		t.Errorf("the partition was held up for %v", took)
	}
	b.published(10 * time.Second)
	before := b.journal()

	a.signal(syscall.SIGCONT)
	testkit.Eventually(t, 20*time.Second, func() bool {
		return scalar[int](b, `SELECT count(*) FROM pg_locks WHERE pid = $1`, pid) == 0
	}, "the stopped worker gives up its lock")
	b.append(topic, `"after it went on"`)
	n++
	b.published(10 * time.Second)
	after := b.journal()
	if len(after[topic]) != int(n) || count(after) != count(before)+1 {
		t.Errorf("%d events in the journal, not %d", len(after[topic]), n)
	}
	b.checkStream(after, fromStart)
	testkit.Eventually(t, 5*time.Second, func() bool { return sub.reached(topic) == n }, "the last event")
	sub.noHoles(t)
}

// stopWhileReceiving stops the child at a moment when Postgres waits for it to take an answer. It reports whether that
// came about; if not, the child goes on.
func (b *bench) stopWhileReceiving(a *process, pid int) bool {
	for range 200 {
		a.signal(syscall.SIGSTOP)
		for range 5 {
			var event *string
			err := b.pool.QueryRow(context.Background(), `SELECT wait_event FROM pg_stat_activity WHERE pid = $1`, pid).Scan(&event)
			if err != nil {
				b.t.Fatalf("the child's session is gone: %v", err)
			}
			if event != nil && *event == "ClientWrite" {
				return true
			}
		}
		a.signal(syscall.SIGCONT)
		if b.pending() == nil {
			return false
		}
	}
	return false
}

// A worker that is stopped while it waits for events loses its session.
func TestStoppedIdleWorkerIsPassed(t *testing.T) {
	b := newBench(t)
	topic := topicIn(4, 0)
	a := b.spawn()
	b.append(topic, `"first"`)
	b.owned(4)
	b.run(Config{})
	a.signal(syscall.SIGSTOP)
	start := time.Now()
	b.append(topic, `"after the stop"`)
	b.published(10 * time.Second)
	took := time.Since(start)
	t.Logf("held up for %v", took)
	if took > heldUpLimit {
		t.Errorf("the partition was held up for %v", took)
	}
	a.signal(syscall.SIGCONT)
	b.checkStream(b.journal(), fromStart)
}

// Redis goes and comes back, empty: events are sequenced meanwhile, without a storm of takeovers, and published after.
func TestRedisDownAndUp(t *testing.T) {
	const topics = 20
	r := testkit.Redis(t)
	b := benchOn(t, testkit.Database(t), r.URL())
	b.run(Config{})
	b.runOn(openStream(t, b.redis), Config{}) // another process's view: it must not take over
	l := b.load(3, topics, 0, 2*time.Millisecond)
	l.after(t, 300)
	r.Kill()
	testkit.Eventually(t, 10*time.Second, func() bool {
		return scalar[int64](b, `SELECT sum(seq - published)::bigint FROM commitcast.partition`) > 300
	}, "events sequenced but not published")
	jobs := scalar[int](b, `SELECT count(*) FROM commitcast.river_job WHERE kind = 'outbox_drain'`)
	down := time.Now()
	for time.Since(down) < 4*time.Second { // longer than stallAfter: the time is what is tested
		l.after(t, 50)
		waiting := scalar[int](b, `SELECT count(*) FROM commitcast.outbox WHERE created_at < clock_timestamp() - interval '500 ms'`)
		if waiting > 0 {
			t.Fatalf("%d events wait to be sequenced while Redis is down", waiting)
		}
	}
	if more := scalar[int](b, `SELECT count(*) FROM commitcast.river_job WHERE kind = 'outbox_drain'`) - jobs; more > 5 {
		t.Errorf("%d further drains while Redis was down", more)
	}
	l.stop()
	published := b.publishedOffsets()
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	b.published(20 * time.Second)
	t.Logf("published %v after Redis was back", time.Since(start))
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("publishing took %v after Redis was back", took)
	}
	journal := b.journal()
	if count(journal) != l.committed.Load() {
		t.Errorf("%d events in the journal, %d committed", count(journal), l.committed.Load())
	}
	// A confirmation that had not been recorded when Redis went is known to the drain all the same: the empty stream
	// may begin a little after what the database calls published.
	b.checkStream(journal, func(topic string) int64 {
		ch := stream.Channel{Epoch: b.epoch(), Partition: wire.Partition(topic), Topic: topic}
		for after := published[topic]; ; after++ {
			run, err := b.stream.Range(t.Context(), ch, after, stream.MaxRangeFrames)
			if err != nil {
				t.Fatal(err)
			}
			if len(run.Frames) > 0 || after >= published[topic]+maxUnrecorded || after >= int64(len(journal[topic])) {
				return after
			}
		}
	})
}

// maxUnrecorded is how many events of a topic the test's load can have confirmed between two reports.
const maxUnrecorded = 20

// publishedOffsets is, for each topic, the newest offset that is confirmed.
func (b *bench) publishedOffsets() map[string]int64 {
	b.t.Helper()
	rows, err := b.pool.Query(context.Background(), `SELECT j.topic, max(j."offset") FROM commitcast.journal j
		JOIN commitcast.partition p ON p.id = j.partition WHERE j.seq <= p.published GROUP BY 1`)
	if err != nil {
		b.t.Fatal(err)
	}
	offsets := make(map[string]int64)
	var topic string
	var offset int64
	if _, err := pgx.ForEachRow(rows, []any{&topic, &offset}, func() error {
		offsets[topic] = offset
		return nil
	}); err != nil {
		b.t.Fatal(err)
	}
	return offsets
}

func (b *bench) redisClient() *redis.Client {
	b.t.Helper()
	opts, err := redis.ParseURL(b.redis)
	if err != nil {
		b.t.Fatal(err)
	}
	c := redis.NewClient(opts)
	b.t.Cleanup(func() { c.Close() })
	return c
}

// FLUSHALL under load: what comes after is in the stream, contiguous and equal to the journal.
func TestFlushAllUnderLoad(t *testing.T) {
	const topics = 10
	r := testkit.Redis(t)
	b := benchOn(t, testkit.Database(t), r.URL())
	b.run(Config{})
	c := b.redisClient()
	l := b.load(3, topics, 0, 0)
	for range 10 {
		l.after(t, 100)
		if err := c.FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
	}
	l.stop()
	b.published(10 * time.Second)
	journal := b.journal()
	epoch := b.epoch()
	// Each topic's stream may begin anywhere, as long as it runs from there to the head.
	for topic, rows := range journal {
		keys, err := c.Keys(t.Context(), "*"+epoch+":"+topic).Result()
		if err != nil {
			t.Fatal(err)
		}
		if len(keys) == 0 {
			continue // flushed after its last event
		}
		entries, err := c.XRangeN(t.Context(), keys[0], "-", "+", 1).Result()
		if err != nil || len(entries) == 0 {
			t.Fatalf("%s: %v, %v", keys[0], entries, err)
		}
		var first int64
		fmt.Sscanf(entries[0].ID, "%d-0", &first)
		b.checkStream(map[string][]row{topic: rows}, func(string) int64 { return first - 1 })
	}
}

// Redis goes back to an earlier state: the hole is filled from the journal if it is narrow, and the stream begins anew
// if it is wide.
func TestRedisRolledBack(t *testing.T) {
	for _, c := range []struct {
		name   string
		events int
		base   int64
	}{
		{"narrow", 2500, 0},
		{"wide", maxRefill + 2000, maxRefill + 2000 + 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			topic := topicIn(6, 0)
			neighbour := topicIn(6, 1)
			b.run(Config{})
			client := b.redisClient()
			for range 10 {
				b.append(topic, `"old"`)
			}
			b.published(5 * time.Second)
			key := fmt.Sprintf("cc:{p6}:%s:%s", b.epoch(), topic)
			dump, err := client.Dump(t.Context(), key).Result()
			if err != nil {
				t.Fatalf("%s: %v", key, err)
			}
			b.exec(`INSERT INTO commitcast.outbox (partition, topic, type, data) SELECT 6, $1, 'e', to_json(i) FROM generate_series(1, $2) i`, topic, c.events)
			b.published(20 * time.Second)
			if err := client.RestoreReplace(t.Context(), key, 0, dump).Err(); err != nil {
				t.Fatal(err)
			}
			b.append(topic, `"new"`)
			b.append(neighbour, `"new"`)
			b.published(20 * time.Second)
			b.checkStream(b.journal(), func(name string) int64 {
				if name == topic {
					return c.base
				}
				return 0
			})
		})
	}
}

// Postgres restarts while Redis is down: a new epoch begins, and what was not published is offered in it.
func TestPostgresRestartBeginsAnEpoch(t *testing.T) {
	pg := testkit.Postgres(t)
	testkit.Migrate(t, pg.URL("postgres"))
	r := testkit.Redis(t)
	b := benchOn(t, pg.URL("postgres"), r.URL())
	w, _ := b.run(Config{})
	topic := topicIn(2, 0)
	for range 5 {
		b.append(topic, `"before"`)
	}
	b.published(5 * time.Second)
	old := b.epoch()
	r.Kill()
	for range 7 {
		b.append(topic, `"while Redis is down"`)
	}
	testkit.Eventually(t, 5*time.Second, func() bool {
		return scalar[int64](b, `SELECT seq - published FROM commitcast.partition WHERE id = 2`) == 7
	}, "sequenced")
	if err := pg.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 20*time.Second, func() error { return b.pool.Ping(context.Background()) }, "Postgres is back")
	testkit.Eventually(t, 10*time.Second, func() error { return w.Ready() }, "the worker is back")
	testkit.Eventually(t, 10*time.Second, func() bool { return b.epoch() != old }, "a new epoch")
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.published(20 * time.Second)
	b.append(topic, `"after"`)
	b.published(5 * time.Second)
	journal := b.journal()
	if len(journal[topic]) != 13 {
		t.Fatalf("%d events", len(journal[topic]))
	}
	b.checkStream(journal, func(string) int64 { return 5 })
	for i, row := range journal[topic] {
		if i < 12 != strings.Contains(string(row.frame), `"epoch":"`+old+`"`) {
			t.Errorf("offset %d has the epoch of another history: %s", row.offset, row.frame)
		}
	}
}

// An operator's bump begins an epoch under a drain that lives: what is not confirmed in the new one is offered in it.
func TestBumpedEpochUnderLoad(t *testing.T) {
	b := newBench(t)
	b.run(Config{})
	l := b.load(3, 5, 0, 0)
	for range 5 {
		l.after(t, 100)
		b.exec(`SELECT commitcast.begin_epoch(NULL, 'test')`)
	}
	l.after(t, 200)
	l.stop()
	b.published(10 * time.Second)
	journal := b.journal()
	if count(journal) != l.committed.Load() {
		t.Errorf("%d events in the journal, %d committed", count(journal), l.committed.Load())
	}
	// Whatever the newest epoch numbered must be in its stream.
	epoch := b.epoch()
	first := make(map[string]int64)
	for topic, rows := range journal {
		first[topic] = int64(len(rows)) + 1
		for _, r := range rows {
			if strings.Contains(string(r.frame), `"epoch":"`+epoch+`"`) {
				first[topic] = r.offset
				break
			}
		}
	}
	b.checkStream(journal, func(topic string) int64 { return first[topic] - 1 })
}

// Postgres goes away and comes back under load of nobody: the worker finds its way back by itself, and says so once.
func TestPostgresKilled(t *testing.T) {
	pg := testkit.Postgres(t)
	testkit.Migrate(t, pg.URL("postgres"))
	b := benchOn(t, pg.URL("postgres"), testkit.RedisURL(t))
	w, _ := b.run(Config{})
	for i := range 5 {
		b.append(fmt.Sprintf("k:%d", i), `1`)
		pg.Kill()
		testkit.Eventually(t, 10*time.Second, func() bool { return w.Ready() != nil }, "the worker notices")
		if err := pg.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, 10*time.Second, func() error { return b.pool.Ping(context.Background()) }, "Postgres is back")
		start := time.Now()
		b.published(20 * time.Second)
		t.Logf("published %v after Postgres was back", time.Since(start))
	}
}

var _ stream.Handler = (*listener)(nil)
