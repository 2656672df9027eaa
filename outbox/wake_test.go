package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/outbox"
)

// listener hears the wake-ups of a database.
type listener struct{ conn *pgx.Conn }

func listen(t testing.TB, pool *pgxpool.Pool) *listener {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), pool.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	if _, err := conn.Exec(t.Context(), `LISTEN `+outbox.NotifyChannel); err != nil {
		t.Fatal(err)
	}
	return &listener{conn}
}

// next returns the next payload.
func (l *listener) next(t testing.TB) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	n, err := l.conn.WaitForNotification(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return n.Payload
}

// until returns all payloads up to one that the test itself sends now.
func (l *listener) until(t testing.TB, pool *pgxpool.Pool) (payloads []string) {
	t.Helper()
	exec(t, pool, `SELECT pg_notify('commitcast_outbox', 'end')`)
	for {
		p := l.next(t)
		if p == "end" {
			return payloads
		}
		payloads = append(payloads, p)
	}
}

func TestWakeUpAfterCommit(t *testing.T) {
	pool := fresh(t)
	ctx := t.Context()
	l := listen(t, pool)
	a, b := one[int](t, pool, `SELECT commitcast.partition_of('a')`), one[int](t, pool, `SELECT commitcast.partition_of('b')`)
	both := fmt.Sprint(min(a, b), ",", max(a, b))

	boom := errors.New("boom")
	if err := outbox.Tx(ctx, pool, func(tx *outbox.Transaction) error { return errors.Join(tx.Publish(event("a")), boom) }); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if err := outbox.Tx(ctx, pool, func(tx *outbox.Transaction) error { return deposit(ctx, tx) }); err != nil {
		t.Fatal(err)
	}
	if err := outbox.Flush(ctx, pool); err != nil {
		t.Fatal(err)
	}
	if got := l.until(t, pool); len(got) != 0 {
		t.Errorf("woken by %q without an event", got)
	}

	if err := outbox.Tx(ctx, pool, func(tx *outbox.Transaction) error {
		return errors.Join(tx.Publish(event("b")), tx.Publish(event("a")), tx.Publish(event("b")))
	}); err != nil {
		t.Fatal(err)
	}
	if got := strings.ReplaceAll(l.next(t), ",", " , "); strings.ReplaceAll(got, " ", "") != strings.ReplaceAll(both, " ", "") {
		t.Errorf("payload %q, want %q", got, both)
	}
	outbox.Wake(pool, "b")
	if got := l.next(t); got != fmt.Sprint(b) {
		t.Errorf("Wake sent %q, want %d", got, b)
	}
	outbox.Wake(pool)
	outbox.Flush(ctx, pool)
	if got := l.until(t, pool); len(got) != 0 {
		t.Errorf("Wake of nothing sent %q", got)
	}
}

// Bursts are announced together, and nothing that was published is left out.
func TestWakeUpsCoalesce(t *testing.T) {
	pool := fresh(t, func(c *pgxpool.Config) { c.MaxConns = 8 })
	l := listen(t, pool)
	const writers, each = 8, 250
	start := time.Now()
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if err := outbox.Tx(t.Context(), pool, func(tx *outbox.Transaction) error {
					return tx.Publish(event(fmt.Sprint("t", w, ":", i)))
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	if err := outbox.Flush(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	heard := map[string]bool{}
	payloads := l.until(t, pool)
	for _, p := range payloads {
		for _, part := range strings.Split(p, ",") {
			heard[part] = true
		}
	}
	if want := one[int](t, pool, `SELECT count(DISTINCT partition) FROM commitcast.outbox`); len(heard) != want {
		t.Errorf("heard of %d partitions, want %d", len(heard), want)
	}
	if n := len(payloads); n == 0 || n > writers*each/2 || n > int(took/time.Millisecond)+2 {
		t.Errorf("%d wake-ups for %d commits in %v", n, writers*each, took)
	}
	t.Logf("%d wake-ups for %d commits in %v", len(payloads), writers*each, took)
}

// A wake-up that cannot be sent costs the writer nothing.
func TestWakeUpNeverHoldsUpAWriter(t *testing.T) {
	direct := fresh(t)
	target := direct.Config().ConnString()
	proxy := testkit.NewProxy(t, target)
	// The pool reaches the database; the connection for wake-ups, which is made later, does not.
	pool := open(t, target, func(c *pgxpool.Config) {
		c.MaxConns = 1
		var conns atomic.Int32
		c.BeforeConnect = func(_ context.Context, cfg *pgx.ConnConfig) error {
			if conns.Add(1) > 1 {
				via, err := pgx.ParseConfig(proxy.URL(target))
				cfg.Host, cfg.Port, cfg.Fallbacks = via.Host, via.Port, nil
				return err
			}
			return nil
		}
	})
	proxy.Blackhole()
	start := time.Now()
	for range 100 {
		if err := outbox.Tx(t.Context(), pool, func(tx *outbox.Transaction) error { return tx.Publish(event("a")) }); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("100 commits took %v beside a black hole", took)
	}
	testkit.Eventually(t, 10*time.Second, func() bool { return proxy.Accepted() > 0 }, "a wake-up is tried")
	if err := outbox.Flush(t.Context(), pool); err != nil { // waits for the wake-up's own timeout
		t.Fatal(err)
	}
	// After the network heals, wake-ups go on.
	l := listen(t, direct)
	proxy.Resume()
	testkit.Eventually(t, 10*time.Second, func() bool {
		outbox.Wake(pool, "a")
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err := l.conn.WaitForNotification(ctx)
		if l.conn.IsClosed() {
			l = listen(t, direct) // pgx closes a connection whose context ends while it reads
		}
		return err == nil
	}, "a wake-up gets through")
}

// A connection that the server has closed meanwhile is replaced at once.
func TestWakeUpReconnects(t *testing.T) {
	pool := fresh(t)
	l := listen(t, pool)
	outbox.Wake(pool, "a")
	l.next(t)
	const wakers = `FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'commitcast wake-up'`
	if n := one[int](t, pool, `SELECT count(pg_terminate_backend(pid)) `+wakers); n != 1 {
		t.Fatalf("%d connections for wake-ups, want 1", n)
	}
	testkit.Eventually(t, 10*time.Second, func() bool { return one[int](t, pool, `SELECT count(*) `+wakers) == 0 }, "it is gone")
	outbox.Wake(pool, "a")
	l.next(t)
}

// Without events there is neither a goroutine nor, soon, a connection.
func TestWakeUpsWindDown(t *testing.T) {
	pool := fresh(t)
	l := listen(t, pool)
	before := runtime.NumGoroutine()
	outbox.Wake(pool, "a")
	l.next(t)
	testkit.Eventually(t, 10*time.Second, func() bool { return runtime.NumGoroutine() <= before }, "no goroutine is left")
	const wakers = `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'commitcast wake-up'`
	if n := one[int](t, pool, wakers); n != 1 {
		t.Errorf("%d connections for wake-ups, want 1", n)
	}
	testkit.Eventually(t, outbox.WakeIdle+10*time.Second, func() bool { return one[int](t, pool, wakers) == 0 }, "the connection is closed")
	outbox.Wake(pool, "a")
	l.next(t)
	if err := outbox.Flush(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 10*time.Second, func() bool { return one[int](t, pool, wakers) == 0 }, "Flush has closed the connection")
	if err := outbox.Flush(t.Context(), pool); err != nil {
		t.Errorf("Flush of nothing: %v", err)
	}
	outbox.Wake(pool, "a") // and it can be used again
	l.next(t)
}
