package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/ops"
	"github.com/commitcast/commitcast/outbox"
)

// Services go through PgBouncer in transaction mode, in each way of pgx that works with one which keeps no prepared statements: what they
// write arrives, and what they read is exact.
func TestServicesBehindAPooler(t *testing.T) {
	t.Parallel()
	database, redis := testkit.Database(t), testkit.RedisURL(t)
	exec1(t, database, `CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL)`)
	exec1(t, database, `INSERT INTO account VALUES (1, 0), (2, 0)`)
	pooled := testkit.Pooler(t, database, "default_pool_size = 4")
	start(t, database, redis, "worker")
	c := testkit.Dial(t, start(t, database, redis, "broadcaster").URL)
	for i, mode := range []string{"exec", "simple_protocol"} {
		topic := "pooled:" + mode
		pool := connectPool(t, pooled+"&default_query_exec_mode="+mode)
		deposit := func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), `UPDATE account SET balance = balance + 1 WHERE id = $1`, i+1)
			return err
		}
		c.Subscribe(i+1, topic, "")
		c.Expect("subscribed")

		// Tx with one event and with several, Append, and an operation that takes effect once; many at once, since that is when
		// a session comes out of the pooler somewhere else each time.
		errs := make(chan error, 32)
		for n := range cap(errs) {
			go func() { // ends with the transaction
				errs <- outbox.Tx(t.Context(), pool, func(tx *outbox.Transaction) error {
					if err := deposit(tx); err != nil {
						return err
					}
					for range 1 + n%2 {
						if err := tx.Publish(outbox.Event{Topic: topic, Type: "deposit", Key: "1", Data: map[string]int{"by": 1}, Headers: map[string]string{"n": fmt.Sprint(n)}}); err != nil {
							return err
						}
					}
					return nil
				})
			}()
		}
		for range cap(errs) {
			if err := <-errs; err != nil {
				t.Fatalf("%s: Tx: %v", mode, err)
			}
		}
		if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			if err := deposit(tx); err != nil {
				return err
			}
			_, err := outbox.Append(t.Context(), tx, outbox.Event{Topic: topic, Type: "deposit", Data: 1}, outbox.Event{Topic: topic, Type: "deposit", Data: 2})
			return err
		}); err != nil {
			t.Fatalf("%s: Append: %v", mode, err)
		}
		outbox.Wake(pool, topic)
		c.ExpectEvents(topic, 1, 50)

		// A version that a service has read is held against what is there.
		var balance int64
		positions, err := outbox.Snapshot(t.Context(), pool, []string{topic}, func(tx pgx.Tx) error {
			return tx.QueryRow(t.Context(), `SELECT balance FROM account WHERE id = $1`, i+1).Scan(&balance)
		})
		if err != nil || balance != 33 || !strings.HasSuffix(positions[0].Cursor, ":50") || len(positions[0].Pending) != 0 {
			t.Errorf("%s: Snapshot: %+v, balance %d, %v", mode, positions, balance, err)
		}
		guard := outbox.Guard{Topic: topic, Saw: outbox.Saw{Cursor: positions[0].Cursor}}
		act := func(key string) (outbox.Outcome[int], error) {
			return outbox.Once(t.Context(), pool, outbox.Operation{Scope: mode, Key: key}, func(tx *outbox.Transaction) (int, error) {
				if err := guard.Cursor(t.Context(), tx); err != nil {
					return 0, err
				}
				return 7, errors.Join(deposit(tx), tx.Publish(outbox.Event{Topic: topic, Type: "deposit", Data: 3}))
			})
		}
		if out, err := act("a"); err != nil || out.Result != 7 || out.Repeated {
			t.Errorf("%s: Once: %+v, %v", mode, out, err)
		}
		if out, err := act("a"); err != nil || out.Result != 7 || !out.Repeated {
			t.Errorf("%s: Once again: %+v, %v", mode, out, err)
		}
		c.ExpectEvents(topic, 51, 51)
		if _, err := act("b"); !errors.As(err, new(*outbox.StaleError)) {
			t.Errorf("%s: an action on what is no longer so: %v", mode, err)
		}
		if err := outbox.Flush(context.Background(), pool); err != nil {
			t.Error(err)
		}
	}

	// With pgx's own default the first statement that is asked for again is not there: documented, and no half-done thing.
	pool := connectPool(t, pooled)
	for range 50 {
		if err := outbox.Tx(t.Context(), pool, func(tx *outbox.Transaction) error {
			return tx.Publish(outbox.Event{Topic: "pooled:default", Type: "deposit", Data: 1})
		}); err != nil {
			if !strings.Contains(err.Error(), "prepared statement") {
				t.Errorf("with prepared statements: %v", err)
			}
			break
		}
	}
	_ = outbox.Flush(context.Background(), pool)
}

// What needs sessions of its own refuses a pooler that shares them, and says what to change; whether the pooler passes such settings over or not.
func TestNodesRefuseAPooler(t *testing.T) {
	t.Parallel()
	database, redis := testkit.Database(t), testkit.RedisURL(t)
	const ignored = "application_name, default_transaction_isolation, default_transaction_read_only, default_transaction_deferrable, idle_session_timeout, " +
		"statement_timeout, lock_timeout, jit, idle_in_transaction_session_timeout, tcp_user_timeout, tcp_keepalives_idle, tcp_keepalives_interval, tcp_keepalives_count, commitcast.direct"
	for name, settings := range map[string]string{"strict": "", "lenient": "default_pool_size = 1\nignore_startup_parameters = " + ignored,
		"lenient, session mode": "pool_mode = session\nignore_startup_parameters = " + ignored} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pooled := testkit.Pooler(t, database, settings)
			env := []string{"DATABASE_URL=" + pooled, "REDIS_URL=" + redis}
			for _, args := range [][]string{{"worker"}, {"broadcaster", "--auth=off", "--listen=127.0.0.1:0"}, {"all", "--auth=off", "--listen=127.0.0.1:0"}, {"migrate", "up"}} {
				if args[0] != "migrate" {
					args = append(args, "--ops-listen=")
				}
				_, stderr, code := command(t, env, args...)
				if code != 1 || !strings.Contains(stderr, "a pooler is in the way") || !strings.Contains(stderr, "give --database-url the address of Postgres itself") {
					t.Errorf("%v: code %d, %s", args, code, stderr)
				}
			}
			d, code := look[ops.Diagnosis](t, pooled, redis, "doctor", "--no-event")
			check := checkOf(d, "database", "direct")
			if code != 4 || check.Level != ops.Problem || !strings.Contains(check.Fix, "the address of Postgres itself") {
				t.Errorf("doctor: code %d, %+v", code, d.Checks)
			}
		})
	}
}

// checkOf is what the doctor says of one thing.
func checkOf(d ops.Diagnosis, area, name string) (found ops.Check) {
	for _, c := range d.Checks {
		if c.Area == area && c.Name == name {
			found = c
		}
	}
	return found
}
