package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/commitcast/commitcast/outbox"
)

// unsequenced is what the outbox holds of a topic: types, with the subject of a change of access.
func unsequenced(t *testing.T, db querier, topic string) string {
	t.Helper()
	return one[string](t, db, `SELECT coalesce(string_agg(type || coalesce(' ' || (data->>'subject'), ''), ', ' ORDER BY id), '')
		FROM commitcast.outbox WHERE topic = $1`, topic)
}

// state is what is kept of a subject's access; it must name the newest event that changed it.
func state(t *testing.T, db querier, subject, topic string) string {
	t.Helper()
	return one[string](t, db, `SELECT coalesce((SELECT (CASE WHEN revoked THEN 'revoked' ELSE 'restored' END)
			|| CASE WHEN event_id = (SELECT max(id) FROM commitcast.outbox o WHERE o.topic = r.topic AND o.data->>'subject' = r.subject) THEN '' ELSE ' by another event' END
		FROM commitcast.revocation r WHERE topic = $2 AND subject = $1), 'nothing')`, subject, topic)
}

// Revocations take their place among the events, in the order of the calls, and go with the transaction.
func TestRevokeInATransaction(t *testing.T) {
	pool := fresh(t)
	ctx := t.Context()
	err := outbox.Tx(ctx, pool, func(tx *outbox.Transaction) error {
		return errors.Join(tx.Publish(event("a")), tx.Revoke("ann", "a", "b"), tx.Publish(event("a")), tx.Revoke("bob", "a"), tx.Restore("bob", "a"))
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := unsequenced(t, pool, "a"), "deposit, commitcast.revoke ann, deposit, commitcast.revoke bob, commitcast.restore bob"; got != want {
		t.Errorf("a: %s", got)
	}
	if got := state(t, pool, "ann", "a") + ", " + state(t, pool, "ann", "b") + ", " + state(t, pool, "bob", "a"); got != "revoked, revoked, restored" {
		t.Error(got)
	}

	// What is rolled back, wholly or to a savepoint, leaves nothing; what is refused, neither.
	err = outbox.Tx(ctx, pool, func(tx *outbox.Transaction) error {
		sp, err := tx.Begin(ctx)
		if err != nil {
			return err
		}
		if err := errors.Join(tx.Revoke("cid", "c"), sp.Rollback(ctx)); err != nil {
			return err
		}
		for _, err := range []error{tx.Revoke("", "c"), tx.Revoke(strings.Repeat("x", 256), "c"), tx.Revoke("\xff", "c"), tx.Revoke("cid", "c", "?"),
			tx.Publish(outbox.Event{Topic: "c", Type: "commitcast.revoke", Data: map[string]string{"subject": "cid"}})} {
			if !errors.Is(err, outbox.ErrInvalidEvent) {
				t.Errorf("not refused as invalid: %v", err)
			}
		}
		return tx.Publish(event("c"))
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := unsequenced(t, pool, "c") + ", " + state(t, pool, "cid", "c"); got != "deposit, nothing" {
		t.Error(got)
	}

	// With an operation's record, and with a caller's own transaction.
	out, err := outbox.Once(ctx, pool, outbox.Operation{Scope: "s", Key: "k"}, func(tx *outbox.Transaction) (int, error) {
		return 1, errors.Join(tx.Publish(event("d")), tx.Revoke("dan", "d"))
	})
	if err != nil || len(out.Events) != 2 || state(t, pool, "dan", "d") != "revoked" {
		t.Errorf("Once: %+v %v", out, err)
	}
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	ids, err := outbox.Revoke(ctx, tx, "eve", "e", "f")
	again, err2 := outbox.Restore(ctx, tx, "eve", "f")
	if err := errors.Join(err, err2, tx.Commit(ctx)); err != nil || len(ids) != 2 || len(again) != 1 || again[0] <= ids[1] {
		t.Fatal(ids, again, err)
	}
	if got := state(t, pool, "eve", "e") + ", " + state(t, pool, "eve", "f"); got != "revoked, restored" {
		t.Error(got)
	}
}

// Writers in any language say it in SQL, with the same messages; nobody appends what looks like it.
func TestRevokeInSQL(t *testing.T) {
	pool := fresh(t)
	id := one[int64](t, pool, `SELECT commitcast.revoke('ann', 'a')`)
	if next := one[int64](t, pool, `SELECT commitcast.revoke(subject => 'ann', topic => 'a')`); next <= id || state(t, pool, "ann", "a") != "revoked" {
		t.Error("again:", id, next)
	}
	if !one[bool](t, pool, `SELECT commitcast.revoked('ann', 'a')`) || one[bool](t, pool, `SELECT commitcast.revoked('bob', 'a')`) {
		t.Error("revoked does not tell")
	}
	one[int64](t, pool, `SELECT commitcast.restore('ann', 'a')`)
	if one[bool](t, pool, `SELECT commitcast.revoked('ann', 'a')`) || state(t, pool, "ann", "a") != "restored" {
		t.Error("restored, and revoked")
	}
	for _, c := range []struct{ subject, topic string }{{"", "a"}, {strings.Repeat("é", 128), "a"}, {"ann", "?"}, {"", ""}} {
		err := outbox.Tx(t.Context(), pool, func(tx *outbox.Transaction) error { return tx.Revoke(c.subject, c.topic) })
		_, sqlErr := pool.Exec(t.Context(), `SELECT commitcast.revoke($1, $2)`, c.subject, c.topic)
		var pg *pgconn.PgError
		if !errors.As(sqlErr, &pg) || err == nil || pg.Code != "22023" || pg.Message != err.Error() {
			t.Errorf("%q %q: Go says %v, SQL %v", c.subject, c.topic, err, sqlErr)
		}
	}
	for _, row := range []string{`'commitcast.revoke', '{}'`, `'commitcast.revoke', '{"subject":1}'`, `'commitcast.other', '{"subject":"ann"}'`, `'commitcast.', '1'`} {
		_, err := pool.Exec(t.Context(), `INSERT INTO commitcast.outbox (partition, topic, type, data) VALUES (commitcast.partition_of('a'), 'a', `+row+`)`)
		if err == nil || !strings.Contains(err.Error(), "are the system's own") {
			t.Errorf("%s: %v", row, err)
		}
	}
}

// Many at once change the same subjects' access to the same topics, in any order: none waits in a circle, and what is kept is
// what the newest event says.
func TestRevokersAtOnce(t *testing.T) {
	pool := fresh(t)
	topics := []string{"a", "b", "c"}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() { // waited for below
			for k := range 15 {
				mine := slices.Clone(topics)
				for n := range mine {
					j := (n*7 + i + k) % len(mine)
					mine[n], mine[j] = mine[j], mine[n]
				}
				err := outbox.Tx(context.Background(), pool, func(tx *outbox.Transaction) error {
					if (i+k)%2 == 0 {
						return tx.Revoke(fmt.Sprint("s", k%2), mine...)
					}
					return tx.Restore(fmt.Sprint("s", k%2), mine...)
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := events(t, pool); n != 8*15*3 {
		t.Errorf("%d events", n)
	}
	rows, _ := pool.Query(t.Context(), `SELECT r.topic || ' ' || r.subject FROM commitcast.revocation r WHERE NOT EXISTS (
		SELECT FROM commitcast.outbox o WHERE o.id = r.event_id AND o.topic = r.topic AND o.type = CASE WHEN r.revoked THEN 'commitcast.revoke' ELSE 'commitcast.restore' END
			AND o.id = (SELECT max(id) FROM commitcast.outbox n WHERE n.topic = r.topic AND n.data->>'subject' = r.subject))`)
	if wrong, err := pgx.CollectRows(rows, pgx.RowTo[string]); err != nil || len(wrong) > 0 {
		t.Error(wrong, err)
	}
	if n := one[int](t, pool, `SELECT count(*) FROM commitcast.revocation`); n != 6 {
		t.Errorf("%d rows", n)
	}
}
