package outbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/outbox"
)

// modes are the ways in which pgx can talk to Postgres; a pooler in between may demand any of them.
var modes = []pgx.QueryExecMode{
	pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec,
	pgx.QueryExecModeSimpleProtocol,
}

func TestTxCommitsWorkAndEvents(t *testing.T) {
	url := testkit.Database(t)
	exec(t, open(t, url), `CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL); INSERT INTO account VALUES (1, 0)`)
	for _, mode := range modes {
		t.Run(mode.String(), func(t *testing.T) {
			ctx := t.Context()
			pool := open(t, url, withMode(mode), func(c *pgxpool.Config) { c.MaxConns = 1 })
			for range 2 { // with and without a cached statement
				exec(t, pool, `DELETE FROM commitcast.outbox`)
				before := balance(t, pool)
				var first, third int64
				err := outbox.Tx(ctx, pool, func(tx *outbox.Transaction) error {
					e := outbox.Event{
						Topic: "account:1", Type: "it's", Key: `k"\,{}`, Data: json.RawMessage(`{"s": "\\'\"{},;$1 é"}`),
						Headers: map[string]string{"trace": `a"b`},
					}
					if err := tx.PublishReturning(e, &first); err != nil {
						return err
					}
					if err := tx.Publish(event("account:2")); err != nil {
						return err
					}
					if err := deposit(ctx, tx); err != nil {
						return err
					}
					return tx.PublishReturning(event("account:1"), &third)
				})
				if err != nil {
					t.Fatal(err)
				}
				if got := balance(t, pool); got != before+1 {
					t.Errorf("balance %d after %d", got, before)
				}
				rows, _ := pool.Query(ctx, `SELECT format('%s|%s|%s|%s|%s|%s', partition = commitcast.partition_of(topic), topic, type, key, data, headers) FROM commitcast.outbox ORDER BY id`)
				got, err := pgx.CollectRows(rows, pgx.RowTo[string])
				if err != nil {
					t.Fatal(err)
				}
				want := []string{
					`t|account:1|it's|k"\,{}|{"s": "\\'\"{},;$1 é"}|{"trace":"a\"b"}`,
					`t|account:2|deposit||{"by":1}|`,
					`t|account:1|deposit||{"by":1}|`,
				}
				if fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("outbox:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
				ids := one[[]int64](t, pool, `SELECT array_agg(id ORDER BY id) FROM commitcast.outbox`)
				if first != ids[0] || third != ids[2] {
					t.Errorf("ids %d and %d, want %d and %d", first, third, ids[0], ids[2])
				}
			}
		})
	}
}

// Whatever goes wrong, there is neither work nor event, and the connection is fit for the next transaction.
func TestTxLeavesNothingBehindOnFailure(t *testing.T) {
	pool := fresh(t, func(c *pgxpool.Config) { c.MaxConns = 1 })
	exec(t, pool, `CREATE TABLE deferred (id int REFERENCES account DEFERRABLE INITIALLY DEFERRED)`)
	boom := errors.New("boom")
	ctx := t.Context()
	work := func(ctx context.Context, tx *outbox.Transaction) error {
		return errors.Join(deposit(ctx, tx), tx.Publish(event("account:1")))
	}
	cancelled, cancel := context.WithCancel(ctx)
	for _, c := range []struct {
		name string
		ctx  context.Context
		fn   func(tx *outbox.Transaction) error
		want func(error) bool
	}{
		{"error", ctx, func(tx *outbox.Transaction) error { return errors.Join(work(ctx, tx), boom) },
			func(err error) bool { return errors.Is(err, boom) }},
		{"failed statement, error returned", ctx, func(tx *outbox.Transaction) error {
			work(ctx, tx)
			_, err := tx.Exec(ctx, `SELECT 1/0`)
			return err
		}, func(err error) bool { var pg *pgconn.PgError; return errors.As(err, &pg) && pg.Code == "22012" }},
		{"failed statement, error swallowed", ctx, func(tx *outbox.Transaction) error {
			work(ctx, tx)
			tx.Exec(ctx, `SELECT 1/0`)
			return nil
		}, func(err error) bool { return errors.Is(err, pgx.ErrTxCommitRollback) }},
		{"deferred constraint", ctx, func(tx *outbox.Transaction) error {
			_, err := tx.Exec(ctx, `INSERT INTO deferred VALUES (99)`)
			return errors.Join(err, work(ctx, tx))
		}, func(err error) bool { var pg *pgconn.PgError; return errors.As(err, &pg) && pg.Code == "23503" }},
		{"rolled back in SQL", ctx, func(tx *outbox.Transaction) error {
			work(ctx, tx)
			_, err := tx.Exec(ctx, `ROLLBACK`)
			return err
		}, func(err error) bool { return errors.Is(err, outbox.ErrTxControl) }},
		{"commit refused inside", ctx, func(tx *outbox.Transaction) error { return errors.Join(work(ctx, tx), tx.Commit(ctx)) },
			func(err error) bool { return errors.Is(err, outbox.ErrTxControl) }},
		{"rollback refused inside", ctx, func(tx *outbox.Transaction) error { return errors.Join(work(ctx, tx), tx.Rollback(ctx)) },
			func(err error) bool { return errors.Is(err, outbox.ErrTxControl) }},
		{"rows left open", ctx, func(tx *outbox.Transaction) error {
			work(ctx, tx)
			_, err := tx.Query(ctx, `SELECT generate_series(1, 100000)`)
			return err
		}, func(err error) bool { return err != nil && !errors.Is(err, outbox.ErrCommitUnknown) }},
		{"context ended before commit", cancelled, func(tx *outbox.Transaction) error { work(ctx, tx); cancel(); return nil },
			func(err error) bool {
				return errors.Is(err, context.Canceled) && !errors.Is(err, outbox.ErrCommitUnknown)
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var id int64
			err := outbox.Tx(c.ctx, pool, func(tx *outbox.Transaction) error {
				if err := tx.PublishReturning(event("account:2"), &id); err != nil {
					t.Fatal(err)
				}
				return c.fn(tx)
			})
			if err == nil || !c.want(err) {
				t.Errorf("error %v", err)
			}
			if b, n := balance(t, pool), events(t, pool); b != 0 || n != 0 || id != 0 {
				t.Errorf("balance %d, %d events, id %d", b, n, id)
			}
		})
	}

	t.Run("panic", func(t *testing.T) {
		defer func() {
			if r := recover(); r != boom {
				t.Errorf("recovered %v", r)
			}
			if b, n := balance(t, pool), events(t, pool); b != 0 || n != 0 {
				t.Errorf("balance %d, %d events", b, n)
			}
		}()
		outbox.Tx(ctx, pool, func(tx *outbox.Transaction) error { work(ctx, tx); panic(boom) })
	})
	t.Run("goroutine exits", func(t *testing.T) {
		done := make(chan struct{})
		go func() { // ends in Tx
			defer close(done)
			outbox.Tx(ctx, pool, func(tx *outbox.Transaction) error { work(ctx, tx); runtime.Goexit(); return nil })
		}()
		<-done
		if b, n := balance(t, pool), events(t, pool); b != 0 || n != 0 {
			t.Errorf("balance %d, %d events", b, n)
		}
	})
	t.Run("insert refused", func(t *testing.T) {
		exec(t, pool, `ALTER TABLE commitcast.outbox ADD CONSTRAINT refuse CHECK (type <> 'deposit')`)
		err := outbox.Tx(ctx, pool, func(tx *outbox.Transaction) error { return work(ctx, tx) })
		if pg := (*pgconn.PgError)(nil); !errors.As(err, &pg) || pg.ConstraintName != "refuse" {
			t.Errorf("error %v", err)
		}
		if b, n := balance(t, pool), events(t, pool); b != 0 || n != 0 {
			t.Errorf("balance %d, %d events", b, n)
		}
	})
	t.Run("used after its function", func(t *testing.T) {
		var kept *outbox.Transaction
		if err := outbox.Tx(ctx, pool, func(tx *outbox.Transaction) error { kept = tx; return nil }); err != nil {
			t.Fatal(err)
		}
		_, err := kept.Exec(ctx, `UPDATE account SET balance = 99`)
		var n int
		scanErr := kept.QueryRow(ctx, `SELECT 1`).Scan(&n)
		rows, _ := kept.Query(ctx, `SELECT 1`)
		_, rowsErr := pgx.CollectRows(rows, pgx.RowTo[int])
		_, beginErr := kept.Begin(ctx)
		for _, err := range []error{err, scanErr, rowsErr, beginErr, kept.SendBatch(ctx, &pgx.Batch{}).Close()} {
			if !errors.Is(err, pgx.ErrTxClosed) {
				t.Errorf("error %v, want ErrTxClosed", err)
			}
		}
	})
}

func TestPublishRefusesTooMuch(t *testing.T) {
	pool := fresh(t)
	big := outbox.Event{Topic: "a", Type: "t", Data: json.RawMessage(`"` + strings.Repeat("x", outbox.MaxData-2) + `"`)}
	err := outbox.Tx(t.Context(), pool, func(tx *outbox.Transaction) error {
		for range outbox.MaxEventBytes / outbox.MaxData {
			if err := tx.Publish(big); err != nil {
				return err
			}
		}
		if err := tx.Publish(event("a")); !errors.Is(err, outbox.ErrInvalidEvent) {
			t.Errorf("more than MaxEventBytes: %v", err)
		}
		return nil
	})
	if err != nil || events(t, pool) != outbox.MaxEventBytes/outbox.MaxData {
		t.Errorf("%v, %d events", err, events(t, pool))
	}
	err = outbox.Tx(t.Context(), pool, func(tx *outbox.Transaction) error {
		for range outbox.MaxEvents {
			if err := tx.Publish(event("b")); err != nil {
				return err
			}
		}
		return tx.Publish(event("b"))
	})
	if !errors.Is(err, outbox.ErrInvalidEvent) {
		t.Errorf("more than MaxEvents: %v", err)
	}
	// The most that is allowed, in order.
	err = outbox.Tx(t.Context(), pool, func(tx *outbox.Transaction) error {
		for i := range outbox.MaxEvents {
			if err := tx.Publish(outbox.Event{Topic: fmt.Sprint("c:", i%7), Type: "t", Data: i}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !one[bool](t, pool, `SELECT array_agg(data::text::int ORDER BY id) = (SELECT array_agg(i) FROM generate_series(0, $1) i) FROM commitcast.outbox WHERE topic LIKE 'c:%'`, outbox.MaxEvents-1) {
		t.Error("ids do not follow the order of Publish")
	}
}

func TestSavepointsTakeTheirEventsBack(t *testing.T) {
	pool := fresh(t)
	ctx := t.Context()
	publish := func(tx *outbox.Transaction, n int) {
		if err := tx.Publish(outbox.Event{Topic: "a", Type: "t", Data: n}); err != nil {
			t.Fatal(err)
		}
	}
	var dropped, kept int64
	err := outbox.Tx(ctx, pool, func(tx *outbox.Transaction) error {
		publish(tx, 1)
		boom := errors.New("boom")
		if err := pgx.BeginFunc(ctx, tx, func(sp pgx.Tx) error {
			publish(tx, 2)
			if err := pgx.BeginFunc(ctx, sp, func(pgx.Tx) error { publish(tx, 3); return nil }); err != nil {
				return err
			}
			if err := tx.PublishReturning(outbox.Event{Topic: "a", Type: "t", Data: 4}, &dropped); err != nil {
				return err
			}
			return errors.Join(deposit(ctx, sp), boom)
		}); !errors.Is(err, boom) {
			return err
		}
		if err := pgx.BeginFunc(ctx, tx, func(sp pgx.Tx) error {
			publish(tx, 5)
			if err := pgx.BeginFunc(ctx, sp, func(pgx.Tx) error { publish(tx, 6); return boom }); err != boom {
				return err
			}
			return deposit(ctx, sp)
		}); err != nil {
			return err
		}
		return tx.PublishReturning(outbox.Event{Topic: "a", Type: "t", Data: 7}, &kept)
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := one[string](t, pool, `SELECT string_agg(data::text, ' ' ORDER BY id) FROM commitcast.outbox`); got != "1 5 7" {
		t.Errorf("events %s, want 1 5 7", got)
	}
	if last := one[int64](t, pool, `SELECT max(id) FROM commitcast.outbox`); kept != last || dropped != 0 {
		t.Errorf("ids %d and %d, want %d and 0", kept, dropped, last)
	}
	if b := balance(t, pool); b != 1 {
		t.Errorf("balance %d, want 1", b)
	}
}

// The isolation level that order depends on is that of Tx, whatever the database's default.
func TestTxUnderOddDefaults(t *testing.T) {
	url := testkit.Database(t)
	setup := open(t, url)
	exec(t, setup, `CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL); INSERT INTO account VALUES (1, 0)`)
	db := one[string](t, setup, `SELECT current_database()`)
	for _, set := range []string{"default_transaction_isolation = 'repeatable read'", "default_transaction_read_only = on", "synchronous_commit = off"} {
		exec(t, setup, `ALTER DATABASE `+db+` SET `+set)
	}
	pool := open(t, url, func(c *pgxpool.Config) { c.MaxConns = 8 })
	ctx := t.Context()
	errs := make(chan error)
	for range 8 {
		go func() { // ends after its transactions; the test waits for the answer
			for range 20 {
				if err := outbox.Tx(ctx, pool, func(tx *outbox.Transaction) error {
					if level := one[string](t, tx, `SHOW transaction_isolation`); level != "read committed" {
						t.Errorf("isolation level %s", level)
					}
					return errors.Join(deposit(ctx, tx), tx.Publish(event("a")))
				}); err != nil {
					errs <- err // under REPEATABLE READ: could not serialize access
					return
				}
			}
			errs <- nil
		}()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if b, n := balance(t, pool), events(t, pool); b != 160 || n != 160 {
		t.Errorf("balance %d, %d events", b, n)
	}
}

// Two transactions on one row: the one that wrote it first has the lower offset, whenever it called Publish. With
// Append, the order is that of the calls.
func TestOrderFollowsTheRowLock(t *testing.T) {
	for _, c := range []struct {
		name string
		add  func(ctx context.Context, tx *outbox.Transaction, e outbox.Event) error
		want string
	}{
		{"Publish", func(_ context.Context, tx *outbox.Transaction, e outbox.Event) error { return tx.Publish(e) }, `"first" "second"`},
		{"Append", func(ctx context.Context, tx *outbox.Transaction, e outbox.Event) error {
			_, err := outbox.Append(ctx, tx, e)
			return err
		}, `"second" "first"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			pool := fresh(t)
			ctx := t.Context()
			added, locked, done := make(chan struct{}), make(chan struct{}), make(chan error)
			go func() { // ends with its transaction; the test waits for the answer
				done <- outbox.Tx(ctx, pool, func(tx *outbox.Transaction) error {
					err := c.add(ctx, tx, outbox.Event{Topic: "a", Type: "t", Data: "second"})
					close(added) // an event first, and only then the row
					<-locked
					return errors.Join(err, deposit(ctx, tx))
				})
			}()
			<-added
			err := outbox.Tx(ctx, pool, func(tx *outbox.Transaction) error {
				if err := deposit(ctx, tx); err != nil {
					return err
				}
				close(locked)
				testkit.Eventually(t, 10*time.Second, func() bool {
					return one[bool](t, pool, `SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)`)
				}, "the second writer waits for the row")
				return c.add(ctx, tx, outbox.Event{Topic: "a", Type: "t", Data: "first"})
			})
			if err := errors.Join(err, <-done); err != nil {
				t.Fatal(err)
			}
			p := one[int](t, pool, `SELECT commitcast.partition_of('a')`)
			exec(t, pool, `SELECT commitcast.sequence($1::int::smallint, 1, 10, NULL, NULL)`, p)
			if got := one[string](t, pool, `SELECT string_agg(data::text, ' ' ORDER BY "offset") FROM commitcast.journal`); got != c.want {
				t.Errorf("order %s, want %s", got, c.want)
			}
		})
	}
}

func TestAppend(t *testing.T) {
	pool := fresh(t)
	ctx := t.Context()
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if ids, err := outbox.Append(ctx, tx); ids != nil || err != nil {
		t.Errorf("Append of nothing: %v, %v", ids, err)
	}
	if _, err := outbox.Append(ctx, tx, event("a"), event("not a topic")); !errors.Is(err, outbox.ErrInvalidEvent) {
		t.Errorf("invalid event: %v", err)
	}
	ids, err := outbox.Append(ctx, tx, event("a"), event("b"), event("a"))
	if err != nil || len(ids) != 3 || !(ids[0] < ids[1] && ids[1] < ids[2]) {
		t.Fatalf("ids %v, %v", ids, err)
	}
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if got := one[[]int64](t, pool, `SELECT array_agg(id ORDER BY id) FROM commitcast.outbox`); fmt.Sprint(got) != fmt.Sprint(ids) {
		t.Errorf("outbox has %v, want %v", got, ids)
	}
}

// A pool of one connection serves writers, and the wake-ups take nothing from it.
func TestTxOnAPoolOfOne(t *testing.T) {
	pool := fresh(t, func(c *pgxpool.Config) { c.MaxConns = 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	errs := make(chan error)
	for range 4 {
		go func() { // ends after its transactions; the test waits for the answer
			var err error
			for range 50 {
				err = errors.Join(err, outbox.Tx(ctx, pool, func(tx *outbox.Transaction) error {
					return errors.Join(deposit(ctx, tx), tx.Publish(event("a")))
				}))
			}
			errs <- err
		}()
	}
	for range 4 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if b, n := balance(t, pool), events(t, pool); b != 200 || n != 200 {
		t.Errorf("balance %d, %d events", b, n)
	}
	if s := pool.Stat(); s.NewConnsCount() != 1 {
		t.Errorf("the pool opened %d connections, want 1", s.NewConnsCount())
	}
}

func TestStaleErrorGoesThroughTx(t *testing.T) {
	pool := fresh(t)
	ctx := t.Context()
	err := outbox.Tx(ctx, pool, func(tx *outbox.Transaction) error {
		if err := errors.Join(deposit(ctx, tx), tx.Publish(event("account:1"))); err != nil {
			return err
		}
		return outbox.Check("account:1", int64(7), balance(t, tx))
	})
	var stale *outbox.StaleError
	if !errors.As(err, &stale) || stale.Topic != "account:1" || stale.Observed != int64(7) || stale.Current != int64(1) {
		t.Errorf("error %v", err)
	}
	if b, n := balance(t, pool), events(t, pool); b != 0 || n != 0 {
		t.Errorf("balance %d, %d events", b, n)
	}
	near := func(a, b float64) bool { return a-b < 0.01 && b-a < 0.01 }
	if err := outbox.CheckFunc("m", 0.53, 0.535, near); err != nil {
		t.Error(err)
	}
	if err := outbox.CheckFunc("m", 0.53, 0.55, near); !errors.As(err, &stale) {
		t.Errorf("error %v", err)
	}
	if err := outbox.Check("m", "v1", "v1"); err != nil {
		t.Error(err)
	}
}
