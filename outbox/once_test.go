package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

var intent = outbox.Operation{Scope: "ann", Key: "k1", Fingerprint: []byte("buy 3")}

// depositOnce is an operation: one deposit, one event, and the new balance as its result.
func depositOnce(ctx context.Context, pool *pgxpool.Pool, op outbox.Operation, inside func(*outbox.Transaction)) (outbox.Outcome[int64], error) {
	return outbox.Once(ctx, pool, op, func(tx *outbox.Transaction) (balance int64, err error) {
		if err := tx.QueryRow(ctx, `UPDATE account SET balance = balance + 1 WHERE id = 1 RETURNING balance`).Scan(&balance); err != nil {
			return 0, err
		}
		if inside != nil {
			inside(tx)
		}
		return balance, tx.Publish(event("account:1"))
	})
}

func TestOnceTakesEffectOnce(t *testing.T) {
	pool := fresh(t)
	ctx := t.Context()
	first, err := depositOnce(ctx, pool, intent, nil)
	if err != nil || first.Repeated || first.Result != 1 || len(first.Events) != 1 {
		t.Fatalf("%+v, %v", first, err)
	}
	if id := one[int64](t, pool, `SELECT id FROM commitcast.outbox`); id != first.Events[0] {
		t.Errorf("event %d, want %d", first.Events[0], id)
	}
	again, err := depositOnce(ctx, pool, intent, nil)
	if err != nil || !again.Repeated || again.Result != 1 || !slices.Equal(again.Events, first.Events) {
		t.Errorf("repeated: %+v, %v", again, err)
	}
	other := intent
	other.Fingerprint = []byte("sell 3")
	if _, err := depositOnce(ctx, pool, other, nil); !errors.Is(err, outbox.ErrOperationReused) {
		t.Errorf("another request with the same key: %v", err)
	}
	// Another scope, or another key, is another operation.
	for _, op := range []outbox.Operation{{Scope: "bob", Key: "k1"}, {Scope: "ann", Key: "k2"}} {
		if out, err := depositOnce(ctx, pool, op, nil); err != nil || out.Repeated {
			t.Errorf("%+v: %+v, %v", op, out, err)
		}
	}
	if b, n := balance(t, pool), events(t, pool); b != 3 || n != 3 {
		t.Errorf("balance %d, %d events, want 3", b, n)
	}
}

// What failed leaves no record; the next attempt is the first.
func TestOnceForgetsFailures(t *testing.T) {
	pool := fresh(t)
	ctx := t.Context()
	boom := errors.New("boom")
	_, err := outbox.Once(ctx, pool, intent, func(tx *outbox.Transaction) (int, error) {
		return 0, errors.Join(deposit(ctx, tx), tx.Publish(event("account:1")), boom)
	})
	if !errors.Is(err, boom) {
		t.Fatalf("error %v", err)
	}
	_, err = outbox.Once(ctx, pool, intent, func(tx *outbox.Transaction) (int, error) {
		_, _ = tx.Exec(ctx, `SELECT 1/0`)
		return 0, nil
	})
	if !errors.Is(err, pgx.ErrTxCommitRollback) {
		t.Errorf("a swallowed error: %v", err)
	}
	_, err = outbox.Once(ctx, pool, intent, func(tx *outbox.Transaction) (string, error) {
		return strings.Repeat("x", outbox.MaxAnswer), deposit(ctx, tx)
	})
	if err == nil || !strings.Contains(err.Error(), "more than the limit") {
		t.Errorf("a result that is too large: %v", err)
	}
	if b, n := balance(t, pool), one[int](t, pool, `SELECT count(*) FROM commitcast.operation`); b != 0 || n != 0 {
		t.Errorf("balance %d, %d operations", b, n)
	}
	if out, err := depositOnce(ctx, pool, intent, nil); err != nil || out.Repeated {
		t.Errorf("%+v, %v", out, err)
	}
	for _, op := range []outbox.Operation{
		{}, {Scope: "a"}, {Key: "k"}, {Scope: "a\x00", Key: "k"}, {Scope: "a", Key: strings.Repeat("k", outbox.MaxOperationKey+1)},
		{Scope: "a", Key: "k", Fingerprint: make([]byte, 129)},
	} {
		if _, err := depositOnce(ctx, pool, op, nil); !errors.Is(err, outbox.ErrInvalidEvent) {
			t.Errorf("%+v: %v", op, err)
		}
	}
}

// The same operation from many sides at once: one does it, the others wait and are told.
func TestOnceFromManySidesAtOnce(t *testing.T) {
	pool := fresh(t, func(c *pgxpool.Config) { c.MaxConns = 12 })
	ctx := t.Context()
	var did atomic.Int32
	var all sync.WaitGroup
	for range 24 {
		all.Go(func() {
			for n := range 5 {
				op := outbox.Operation{Scope: "ann", Key: fmt.Sprint("k", n)}
				out, err := depositOnce(ctx, pool, op, nil)
				if err != nil {
					t.Error(err)
				} else if !out.Repeated {
					did.Add(1)
				}
			}
		})
	}
	all.Wait()
	if b, n := balance(t, pool), events(t, pool); b != 5 || n != 5 || did.Load() != 5 {
		t.Errorf("balance %d, %d events, done %d times, want 5", b, n, did.Load())
	}
}

// A wait for an operation that is under way has an end, and nothing was done then.
func TestOnceThatWaitsTooLong(t *testing.T) {
	pool := fresh(t)
	ctx := t.Context()
	_, err := depositOnce(ctx, pool, intent, func(*outbox.Transaction) {
		start := time.Now()
		if _, err := depositOnce(ctx, pool, intent, nil); !errors.Is(err, outbox.ErrOperationBusy) {
			t.Errorf("error %v after %v, want ErrOperationBusy", err, time.Since(start))
		}
	})
	if err != nil || balance(t, pool) != 1 {
		t.Errorf("balance %d, %v", balance(t, pool), err)
	}
}

// commitTracer calls a function when COMMIT is about to be sent.
type commitTracer struct{ at atomic.Pointer[func()] }

func (c *commitTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	if f := c.at.Load(); q.SQL == "commit" && f != nil {
		c.at.Store(nil)
		(*f)()
	}
	return ctx
}
func (c *commitTracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// However a connection ends, before, during or after COMMIT, the operation takes effect once, and its author learns what
// it came to by asking again.
func TestOnceThroughFaults(t *testing.T) {
	faults := map[string]func(*testkit.Proxy){
		"FIN":  (*testkit.Proxy).Finish,
		"RST":  (*testkit.Proxy).Cut,
		"hang": (*testkit.Proxy).Blackhole,
	}
	for how, fault := range faults {
		for _, when := range []string{"before", "during", "after"} {
			t.Run(how+" "+when, func(t *testing.T) {
				t.Parallel()
				direct := fresh(t)
				target := direct.Config().ConnString()
				proxy := testkit.NewProxy(t, target)
				tracer := &commitTracer{}
				pool := open(t, proxy.URL(target), func(c *pgxpool.Config) { c.ConnConfig.Tracer = tracer })
				if err := pool.Ping(t.Context()); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				// What breaks: the connections, or (hang) the patience of the caller.
				strike := func() {
					fault(proxy)
					if how == "hang" {
						cancel()
					}
				}
				type answer struct {
					out outbox.Outcome[int64]
					err error
				}
				result := make(chan answer, 1)
				first := func(inside func(*outbox.Transaction)) {
					go func() { // ends with its fault or its outcome; the test waits for it
						out, err := depositOnce(ctx, pool, intent, inside)
						result <- answer{out, err}
					}()
				}
				open := func() {}
				switch when {
				case "before":
					first(func(*outbox.Transaction) { strike() })
				case "during":
					open = gate(t, direct)
					first(nil)
					testkit.Eventually(t, 20*time.Second, func() bool {
						return one[bool](t, direct, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query = 'commit' AND wait_event_type = 'Lock' AND datname = current_database())`)
					}, "COMMIT waits at the gate")
					strike()
				case "after":
					hold := func() { proxy.HoldReplies() }
					tracer.at.Store(&hold)
					first(nil)
					testkit.Eventually(t, 20*time.Second, func() bool { return balance(t, direct) == 1 }, "the commit is durable")
					strike()
					if how != "hang" {
						proxy.Resume()
					}
				}
				second := make(chan answer, 1)
				if when == "during" {
					// Asked while COMMIT is under way: it waits for the outcome.
					go func() { // ends after the gate is open
						out, err := depositOnce(t.Context(), direct, intent, nil)
						second <- answer{out, err}
					}()
					testkit.Eventually(t, 20*time.Second, func() bool {
						return one[bool](t, direct, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '%begin_operation%' AND wait_event_type = 'Lock' AND datname = current_database())`)
					}, "the second attempt waits for the first")
				}
				open()
				got := <-result
				t.Logf("first: %+v, %v", got.out, got.err)
				switch {
				case when == "before":
					if got.err == nil || errors.Is(got.err, outbox.ErrCommitUnknown) {
						t.Errorf("before COMMIT: %v, want a plain failure", got.err)
					}
				case how == "hang":
					if !errors.Is(got.err, outbox.ErrCommitUnknown) {
						t.Errorf("error %v, want ErrCommitUnknown", got.err)
					}
				case got.err != nil || got.out.Result != 1 || when == "after" && !got.out.Repeated:
					t.Errorf("%+v, %v, want the outcome, looked up", got.out, got.err)
				}
				proxy.Cut() // what hung ends
				proxy.Resume()
				if when == "during" {
					// pgx cancels what it has lost, which may reach the COMMIT at the gate: then the second did it.
					if got := <-second; got.err != nil || got.out.Result != 1 {
						t.Errorf("second: %+v, %v", got.out, got.err)
					}
				}
				out, err := depositOnce(t.Context(), direct, intent, nil)
				if err != nil || out.Result != 1 || out.Repeated != (when != "before") || len(out.Events) != 1 {
					t.Errorf("asked again: %+v, %v", out, err)
				}
				if b, n := balance(t, direct), events(t, direct); b != 1 || n != 1 {
					t.Errorf("balance %d, %d events, want 1", b, n)
				}
			})
		}
	}
}

// gate makes each COMMIT that has changed an account wait until the gate is opened.
func gate(t *testing.T, pool *pgxpool.Pool) (open func()) {
	t.Helper()
	exec(t, pool, `CREATE TABLE gate (id int)`)
	exec(t, pool, `CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN LOCK TABLE gate IN SHARE MODE; RETURN NEW; END'`)
	exec(t, pool, `CREATE CONSTRAINT TRIGGER gate AFTER UPDATE ON account DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait_at_gate()`)
	holder, err := pool.Begin(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := holder.Exec(context.Background(), `LOCK TABLE gate`); err != nil {
		t.Fatal(err)
	}
	open = sync.OnceFunc(func() { holder.Rollback(context.Background()) })
	t.Cleanup(open)
	return open
}

// Operations past their retention go, others stay, and what others hold is not waited for.
func TestOperationsAreForgotten(t *testing.T) {
	pool := fresh(t)
	ctx := t.Context()
	for i := range 10 {
		if _, err := depositOnce(ctx, pool, outbox.Operation{Scope: "ann", Key: fmt.Sprint(i)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	exec(t, pool, `UPDATE commitcast.operation SET began_at = began_at - interval '25 hours' WHERE key < '6'`)
	holder, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Rollback(context.Background())
	if _, err := holder.Exec(ctx, `SELECT FROM commitcast.operation WHERE key = '0' FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	for _, want := range []int64{4, 1, 0} {
		if n, err := outbox.ForgetOperations(ctx, pool, 4); err != nil || n != want {
			t.Errorf("%d forgotten, want %d: %v", n, want, err)
		}
	}
	if left := one[string](t, pool, `SELECT string_agg(key, '' ORDER BY key) FROM commitcast.operation`); left != "06789" {
		t.Errorf("left: %s", left)
	}
	// On its own, now and then: the table is bounded by what comes in.
	holder.Rollback(ctx)
	exec(t, pool, `UPDATE commitcast.operation SET began_at = began_at - interval '25 hours'`)
	for i := 0; one[bool](t, pool, `SELECT EXISTS (SELECT FROM commitcast.operation WHERE began_at < now() - interval '24 hours')`); i++ {
		if i > 3000 { // (63/64)^3000: not in the life of this universe
			t.Fatal("nothing is forgotten")
		}
		if _, err := outbox.Once(ctx, pool, outbox.Operation{Scope: "bob", Key: fmt.Sprint(i)}, func(*outbox.Transaction) (int, error) { return 0, nil }); err != nil {
			t.Fatal(err)
		}
	}
}
