package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

// BenchmarkBacklog measures one worker against an outbox full of events: events/s from its start until everything is
// published.
func BenchmarkBacklog(b *testing.B) {
	const events, topics = 200_000, 1000
	for b.Loop() {
		b.StopTimer()
		bb := newBench(b)
		bb.exec(`INSERT INTO commitcast.outbox (partition, topic, type, key, data)
			SELECT commitcast.partition_of('m:' || i % $2), 'm:' || i % $2, 'trade', (i % $2)::text,
				format('{"price": %s, "size": %s, "side": "buy", "account": "a-%s"}', i % 977, i % 31, i)::json
			FROM generate_series(1, $1::int) i`, events, topics)
		bb.exec(`VACUUM ANALYZE commitcast.outbox`)
		start := time.Now()
		b.StartTimer()
		_, stop := bb.run(Config{})
		testkit.Eventually(b, 2*time.Minute, bb.pending, "backlog published")
		b.ReportMetric(events/time.Since(start).Seconds(), "events/s")
		b.StopTimer()
		stop()
		b.StartTimer()
	}
}

// BenchmarkCommitToStream measures from a writer's commit to the event's arrival at a subscriber of the stream, at up to
// 200 events/s on one topic. BenchmarkBareHops measures what none can do without.
func BenchmarkCommitToStream(b *testing.B) {
	bb := newBench(b)
	topic := topicIn(3, 0)
	sub := bb.subscribe(bb.stream, bb.epoch(), topic)
	bb.run(Config{})
	partition := wire.Partition(topic)
	conn, err := bb.pool.Acquire(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Release()
	var took []time.Duration
	var n int64
	b.ResetTimer()
	for b.Loop() {
		n++
		if _, err := conn.Exec(context.Background(), appendSQL, topic, `{"a":1}`); err != nil {
			b.Fatal(err)
		}
		committed := time.Now()
		if _, err := conn.Exec(context.Background(), `SELECT pg_notify('commitcast_outbox', $1)`, fmt.Sprint(partition)); err != nil {
			b.Fatal(err)
		}
		testkit.Eventually(b, 10*time.Second, func() bool { return sub.reached(topic) >= n }, "event %d", n)
		sub.mu.Lock()
		took = append(took, sub.at[topic].Sub(committed))
		sub.mu.Unlock()
		time.Sleep(5 * time.Millisecond) // the rate that is measured, not synchronisation
	}
	b.StopTimer()
	slices.Sort(took)
	at := func(q float64) float64 { return float64(took[int(q*float64(len(took)-1))].Microseconds()) / 1000 }
	b.ReportMetric(at(.5), "p50-ms")
	b.ReportMetric(at(.99), "p99-ms")
	b.ReportMetric(at(1), "max-ms")
}

// BenchmarkBareHops measures the hops of BenchmarkCommitToStream one after the other in one goroutine: a notification, a
// round trip that sequences and reads, a round trip to the stream, and its message.
func BenchmarkBareHops(b *testing.B) {
	bb := newBench(b)
	ctx := context.Background()
	topic := topicIn(3, 0)
	epoch := bb.epoch()
	sub := bb.subscribe(bb.stream, epoch, topic)
	w, err := New(bb.least, bb.stream, Config{})
	if err != nil {
		b.Fatal(err)
	}
	tickCtx, stopTicks := context.WithCancel(ctx)
	var ticks sync.WaitGroup
	ticks.Go(func() { w.tick(tickCtx) }) // or the subscription takes itself for dead
	defer ticks.Wait()
	defer stopTicks()
	own, err := w.connectOwner(ctx)
	if err != nil {
		b.Fatal(err)
	}
	defer own.close()
	listening, err := pgx.Connect(ctx, bb.url)
	if err != nil {
		b.Fatal(err)
	}
	defer listening.Close(ctx)
	if _, err := listening.Exec(ctx, "LISTEN "+notifyChannel); err != nil {
		b.Fatal(err)
	}
	var took []time.Duration
	var n int64
	turns := []*turn{{partition: 3, tell: true, epoch: epoch, limit: 1000}}
	for b.Loop() {
		n++
		bb.append(topic, `{"a":1}`)
		committed := time.Now()
		bb.exec(`SELECT pg_notify('commitcast_outbox', '3')`)
		if _, err := listening.WaitForNotification(ctx); err != nil {
			b.Fatal(err)
		}
		t := turns[0]
		t.done, t.cursor, t.since = n-1, n-1, t.rows.lastAt
		t.rows.reset()
		p := own.conn.StartPipeline(ctx)
		own.sendSequence(p, turns, 1000, epoch, 0)
		own.sendRead(p, turns, readBytes)
		if err := errors.Join(p.Flush(), nextResult(p, func(v [][]byte) error { return t.at.scan(v[1:]) }),
			nextResult(p, func(v [][]byte) error { return t.rows.add(v[1:]) }), p.Close()); err != nil {
			b.Fatal(err)
		}
		if _, err := bb.stream.Publish(ctx, []stream.Offer{{Run: stream.Run{
			Channel: stream.Channel{Epoch: epoch, Partition: 3, Topic: topic}, First: n, Frames: t.rows.finish()[0].frames}}}); err != nil {
			b.Fatal(err)
		}
		testkit.Eventually(b, 10*time.Second, func() bool { return sub.reached(topic) >= n }, "event %d", n)
		sub.mu.Lock()
		took = append(took, sub.at[topic].Sub(committed))
		sub.mu.Unlock()
		time.Sleep(5 * time.Millisecond)
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}

// BenchmarkColdStart measures the same for a partition without a drain: notification, sweep, River job, connection.
func BenchmarkColdStart(b *testing.B) {
	bb := newBench(b)
	bb.run(Config{Linger: 10 * time.Millisecond})
	var took []time.Duration
	topic := topicIn(3, 0)
	sub := bb.subscribe(bb.stream, bb.epoch(), topic)
	n := int64(0)
	for b.Loop() {
		n++
		bb.append(topic, `1`)
		committed := time.Now()
		bb.exec(`SELECT pg_notify('commitcast_outbox', '3')`)
		testkit.Eventually(b, 10*time.Second, func() bool { return sub.reached(topic) >= n }, "event %d", n)
		sub.mu.Lock()
		took = append(took, sub.at[topic].Sub(committed))
		sub.mu.Unlock()
		testkit.Eventually(b, 10*time.Second, func() bool {
			return scalar[int](bb, `SELECT count(*) FROM commitcast.river_job WHERE kind = 'outbox_drain' AND state = 'running'`) == 0
		}, "the drain has ended")
		time.Sleep(2 * time.Second) // its connection is gone, too
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)-1].Microseconds())/1000, "max-ms")
}
