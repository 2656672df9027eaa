package ops_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/ops"
	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
	"github.com/commitcast/commitcast/worker"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// asked keeps the statements of a pool.
type asked struct {
	mu   sync.Mutex
	list []pgx.TraceQueryStartData
}

func (a *asked) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.list = append(a.list, q)
	return ctx
}

func (a *asked) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// desk is a deployment without broadcasters, and a console that looks at it.
type desk struct {
	t       *testing.T
	url     string
	pool    *pgxpool.Pool
	redis   *stream.Redis
	console *ops.Console
	asked   *asked
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	d := &desk{t: t, url: testkit.Database(t), asked: &asked{}}
	d.pool = d.connect("", d.asked)
	var err error
	if d.redis, err = stream.NewRedis(t.Context(), testkit.RedisURL(t), stream.RedisConfig{Logger: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.redis.Close() })
	d.console = d.as("alice", d.pool)
	return d
}

// connect makes a pool for a role of the database; "" is the owner.
func (d *desk) connect(role string, tracer pgx.QueryTracer) *pgxpool.Pool {
	d.t.Helper()
	config, err := pgxpool.ParseConfig(d.url)
	if err != nil {
		d.t.Fatal(err)
	}
	ops.Session(config.ConnConfig)
	if role != "" {
		config.ConnConfig.RuntimeParams["role"] = role
	}
	config.ConnConfig.Tracer = tracer
	pool, err := pgxpool.NewWithConfig(d.t.Context(), config)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(pool.Close)
	return pool
}

func (d *desk) as(who string, pool *pgxpool.Pool) *ops.Console {
	c := ops.New(pool, d.redis, ops.Config{Who: who})
	d.t.Cleanup(c.Close)
	return c
}

func (d *desk) exec(sql string, args ...any) {
	d.t.Helper()
	if _, err := d.pool.Exec(d.t.Context(), sql, args...); err != nil {
		d.t.Fatalf("%.60s: %v", sql, err)
	}
}

func (d *desk) holds(sql string, args ...any) bool {
	d.t.Helper()
	var v bool
	if err := d.pool.QueryRow(d.t.Context(), sql, args...).Scan(&v); err != nil {
		d.t.Fatalf("%.60s: %v", sql, err)
	}
	return v
}

func (d *desk) append(topic string, n int) {
	d.t.Helper()
	d.exec(`SELECT commitcast.append($1, 'test', '1') FROM generate_series(1, $2::int)`, topic, n)
}

// work runs a worker until the test's end.
func (d *desk) work() {
	d.t.Helper()
	w, err := worker.New(d.pool, d.redis, worker.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }() // owned by the cleanup
	d.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			d.t.Error(err)
		}
	})
	testkit.Eventually(d.t, 30*time.Second, func() error { return w.Ready() }, "worker ready")
}

// settled waits until everything that was appended is published, or its topic set aside.
func (d *desk) settled() {
	d.t.Helper()
	testkit.Eventually(d.t, 30*time.Second, func() bool {
		return d.holds(`SELECT NOT EXISTS (SELECT FROM commitcast.outbox) AND bool_and(seq = published) FROM commitcast.partition`)
	}, "everything published")
}

func (d *desk) held(topic string) stream.Held {
	d.t.Helper()
	var epoch string
	if err := d.pool.QueryRow(d.t.Context(), `SELECT name FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1`).Scan(&epoch); err != nil {
		d.t.Fatal(err)
	}
	h, err := d.redis.Inspect(d.t.Context(), stream.Channel{Epoch: epoch, Partition: wire.Partition(topic), Topic: topic})
	if err != nil {
		d.t.Fatal(err)
	}
	return h
}

// last is the newest record.
func (d *desk) last() string {
	d.t.Helper()
	list, err := d.console.Audit(d.t.Context(), 0, 1)
	if err != nil || len(list) != 1 {
		d.t.Fatalf("the record: %v, %v", list, err)
	}
	return strings.Join([]string{list[0].Who, list[0].Action, list[0].Target, list[0].Result}, " | ")
}
