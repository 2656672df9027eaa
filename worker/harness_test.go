package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/internal/journal"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		child()
		return
	}
	testkit.Main(m)
}

// bench is a database, a Redis that the test may break, and whatever runs on them.
type bench struct {
	t      testing.TB
	url    string
	redis  string
	pool   *pgxpool.Pool // may do everything: the test's own
	least  *pgxpool.Pool // may do what a worker may
	stream *stream.Redis
}

func newBench(t testing.TB) *bench {
	return benchOn(t, testkit.Database(t), testkit.RedisURL(t))
}

func benchOn(t testing.TB, database, redis string) *bench {
	t.Helper()
	b := &bench{t: t, url: database, redis: redis}
	b.pool, b.least = openPool(t, database), openPool(t, testkit.As(t, database, "worker"))
	b.stream = openStream(t, redis)
	return b
}

func openPool(t testing.TB, database string) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(database)
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = 40
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func openStream(t testing.TB, url string) *stream.Redis {
	t.Helper()
	s, err := stream.NewRedis(t.Context(), url, stream.RedisConfig{MaxLen: 1 << 20, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// run starts a worker in this process. stop ends it as a signal would and waits; it is called at the test's end, too.
func (b *bench) run(cfg Config) (w *Worker, stop func()) {
	b.t.Helper()
	return b.runOn(b.stream, cfg)
}

func (b *bench) runOn(s stream.Stream, cfg Config) (w *Worker, stop func()) {
	b.t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = testLogger(b.t)
	}
	if cfg.Node == "" {
		cfg.Node = fmt.Sprintf("w%d", time.Now().UnixNano())
	}
	w, err := New(b.least, s, cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }() // owned by stop
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				b.t.Errorf("Run: %v", err)
			}
		case <-time.After(30 * time.Second):
			b.t.Error("Run did not return")
		}
	})
	b.t.Cleanup(stop)
	testkit.Eventually(b.t, 20*time.Second, func() error { return w.Ready() }, "worker ready")
	return w, stop
}

type logWriter struct {
	t testing.TB
}

func (w logWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", strings.TrimSpace(string(p)))
	return len(p), nil
}

func testLogger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(logWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (b *bench) exec(sql string, args ...any) {
	b.t.Helper()
	if _, err := b.pool.Exec(context.Background(), sql, args...); err != nil {
		b.t.Fatalf("%s: %v", sql, err)
	}
}

func scalar[T any](b *bench, sql string, args ...any) T {
	b.t.Helper()
	var v T
	if err := b.pool.QueryRow(context.Background(), sql, args...).Scan(&v); err != nil {
		b.t.Fatalf("%s: %v", sql, err)
	}
	return v
}

const appendSQL = `SELECT commitcast.append($1, 'e', $2)`

// append commits one event in a transaction of its own.
func (b *bench) append(topic, data string) {
	b.t.Helper()
	b.exec(appendSQL, topic, data)
}

// topicIn returns the nth topic name that hashes to a partition.
func topicIn(partition, nth int) string {
	for i := 0; ; i++ {
		name := fmt.Sprintf("t:%d", i)
		if wire.Partition(name) == partition {
			if nth == 0 {
				return name
			}
			nth--
		}
	}
}

// published waits until every event is sequenced and published.
func (b *bench) published(timeout time.Duration) {
	b.t.Helper()
	testkit.Eventually(b.t, timeout, b.pending, "everything published")
}

// pending says what is not published yet.
func (b *bench) pending() error {
	var outbox, lag int64
	err := b.pool.QueryRow(context.Background(), `SELECT (SELECT count(*) FROM commitcast.outbox),
		(SELECT sum(seq - published) FROM commitcast.partition)::bigint`).Scan(&outbox, &lag)
	if err == nil && (outbox > 0 || lag > 0) {
		err = fmt.Errorf("%d events unsequenced, %d unpublished", outbox, lag)
	}
	return err
}

func (b *bench) epoch() string {
	return scalar[string](b, `SELECT name FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1`)
}

// row is what the journal holds of one event.
type row struct {
	offset int64
	frame  []byte
}

// journal reads every topic, and checks that each is numbered 1, 2, 3 …, and keeps the order of each writer of load.
func (b *bench) journal() map[string][]row {
	b.t.Helper()
	rows, err := b.pool.Query(context.Background(), `SELECT `+journal.Columns+` FROM commitcast.journal ORDER BY topic, "offset"`,
		pgx.QueryResultFormats{pgx.BinaryFormatCode})
	if err != nil {
		b.t.Fatal(err)
	}
	defer rows.Close()
	topics := make(map[string][]row)
	var sc journal.Scanner
	var r journal.Row
	type source struct {
		topic string
		w     int
	}
	last := make(map[source]int)
	for rows.Next() {
		if err := sc.Scan(&r, rows.RawValues()); err != nil {
			b.t.Fatal(err)
		}
		have := topics[r.Topic]
		if r.Offset != int64(len(have))+1 {
			b.t.Fatalf("topic %s: offset %d follows %d", r.Topic, r.Offset, len(have))
		}
		var by struct{ W, I, E *int }
		if json.Unmarshal(r.Data, &by); by.W != nil {
			from, n := source{r.Topic, *by.W}, *by.I*10+*by.E+1
			if n <= last[from] {
				b.t.Fatalf("topic %s offset %d: a writer's event %d follows its %d", r.Topic, r.Offset, n, last[from])
			}
			last[from] = n
		}
		topics[r.Topic] = append(have, row{r.Offset, journal.Encode(&r.Event)})
	}
	if err := rows.Err(); err != nil {
		b.t.Fatal(err)
	}
	return topics
}

// checkStream compares the stream with the journal: from base on, every topic, byte for byte.
func (b *bench) checkStream(topics map[string][]row, base func(topic string) int64) {
	b.t.Helper()
	epoch := b.epoch()
	for topic, want := range topics {
		after := base(topic)
		for after < int64(len(want)) {
			ch := stream.Channel{Epoch: epoch, Partition: wire.Partition(topic), Topic: topic}
			got, err := b.stream.Range(context.Background(), ch, after, stream.MaxRangeFrames)
			if err != nil {
				b.t.Fatal(err)
			}
			if len(got.Frames) == 0 {
				b.t.Fatalf("topic %s: the stream has nothing after %d, the journal ends at %d", topic, after, len(want))
			}
			for i, f := range got.Frames {
				if w := want[got.First-1+int64(i)]; string(f) != string(w.frame) {
					b.t.Fatalf("topic %s offset %d: stream has\n%s\njournal has\n%s", topic, w.offset, f, w.frame)
				}
			}
			after = got.Last()
		}
	}
}

func fromStart(string) int64 { return 0 }

// listener subscribes to topics, and checks that each arrives without a hole.
type listener struct {
	mu        sync.Mutex
	last      map[string]int64
	at        map[string]time.Time // of the newest event
	holes     []string
	confirmed int
	cancel    func()
}

func (b *bench) subscribe(s stream.Stream, epoch string, topics ...string) *listener {
	b.t.Helper()
	l := &listener{last: make(map[string]int64), at: make(map[string]time.Time)}
	sub := s.NewSubscription(l)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { // owned by cancel
		if err := sub.Run(ctx); !errors.Is(err, context.Canceled) {
			b.t.Errorf("subscription: %v", err)
		}
	})
	l.cancel = sync.OnceFunc(func() { cancel(); wg.Wait() })
	b.t.Cleanup(l.cancel)
	for _, topic := range topics {
		sub.Add(stream.Channel{Epoch: epoch, Partition: wire.Partition(topic), Topic: topic})
	}
	testkit.Eventually(b.t, 10*time.Second, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.confirmed >= len(topics)
	}, "subscribed")
	return l
}

func (l *listener) Confirmed(stream.Channel) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.confirmed++
}

func (l *listener) Deliver(r stream.Run) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if last := l.last[r.Topic]; r.First > last+1 {
		l.holes = append(l.holes, fmt.Sprintf("%s: %d..%d after %d", r.Topic, r.First, r.Last(), last))
	}
	if r.Last() > l.last[r.Topic] {
		l.last[r.Topic] = r.Last()
		l.at[r.Topic] = time.Now()
	}
}

func (l *listener) Down(stream.Partitions, error) {}

// reached is the newest offset of a topic.
func (l *listener) reached(topic string) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last[topic]
}

func (l *listener) noHoles(t testing.TB) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.holes) > 0 {
		t.Errorf("%d holes, the first: %s", len(l.holes), l.holes[0])
	}
}
