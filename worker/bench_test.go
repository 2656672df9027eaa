package worker

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/commitcast/commitcast/internal/testkit"
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

// BenchmarkCommitToStream measures from a writer's commit to the event's arrival at a subscriber of the stream, at 200
// events/s on one topic, beside the bare hops: a commit and a publish without anything in between.
func BenchmarkCommitToStream(b *testing.B) {
	bb := newBench(b)
	topic := topicIn(3, 0)
	sub := bb.subscribe(bb.stream, bb.epoch(), topic)
	w, _ := bb.run(Config{})
	partition := wire.Partition(topic)
	_ = w
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
