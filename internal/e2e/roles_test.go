package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/commitcast/commitcast/client"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/outbox"
	"github.com/commitcast/commitcast/wire"
	"github.com/commitcast/commitcast/worker"
)

// From commit to client with the least rights of each: a service that may only write, a worker, a broadcaster that may only read,
// an operator; and a user of Redis for each side. With them, a topic is refused, given up, redriven and complete again.
func TestLeastRights(t *testing.T) {
	database := testkit.Database(t)
	exec1(t, database, `CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL, updated_at timestamptz NOT NULL DEFAULT now())`)
	exec1(t, database, `INSERT INTO account VALUES (1, 0); GRANT SELECT, UPDATE ON account TO commitcast_writer`)
	users, err := os.ReadFile("../../ops/deploy/redis/users.acl")
	if err != nil {
		t.Fatal(err)
	}
	cache := testkit.Redis(t, strings.Replace(string(users), "user default off\n", "", 1))
	login := func(name string) string {
		u, err := url.Parse(cache.URL())
		if err != nil {
			t.Fatal(err)
		}
		u.User = url.UserPassword("commitcast-"+name, "CHANGE-ME-"+name)
		return u.String()
	}
	admin := redis.NewClient(cache.Options())
	defer admin.Close()
	allow := func(rules ...any) {
		t.Helper()
		if err := admin.Do(t.Context(), append([]any{"ACL", "SETUSER", "commitcast-worker", "resetkeys"}, rules...)...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	pool := func(role string) *pgxpool.Pool {
		p, err := pgxpool.New(t.Context(), testkit.As(t, database, role))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		return p
	}
	service, operator := pool("writer"), pool("operator")
	start(t, database, login("worker"), "worker", "--republish-attempts=1")
	b := start(t, database, login("broadcaster"), "broadcaster")
	const topic = "account:1"
	seen := make(chan int64, 1000) // offsets
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c, err := client.New(b.URL+"/v1/ws", client.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ran, followed := make(chan error, 1), make(chan error, 1)
	go func() { ran <- c.Run(ctx) }() // ends with ctx; the test waits for it
	go func() {                       // owned by the test, which waits for it
		for _, err := range client.Follow(ctx, c, topic, client.Topic[int]{
			Snapshot: func(ctx context.Context) (held client.Held[int], err error) {
				p, err := outbox.Snapshot(ctx, service, []string{topic}, func(tx pgx.Tx) error {
					return tx.QueryRow(ctx, `SELECT balance FROM account WHERE id = 1`).Scan(&held.State)
				})
				if err != nil {
					return held, err
				}
				text, err := json.Marshal(p[0])
				if err != nil {
					return held, err
				}
				return held, json.Unmarshal(text, &held.Token)
			},
			Apply: func(n int, e *wire.Event) (int, error) { seen <- e.Offset; return n, nil },
		}) {
			if err != nil && ctx.Err() == nil {
				followed <- err
				return
			}
		}
		followed <- nil
	}()
	reached := func(n int64) {
		t.Helper()
		for timeout := time.After(60 * time.Second); ; {
			select {
			case at := <-seen:
				if at >= n {
					return
				}
			case err := <-followed:
				t.Fatalf("the client ended: %v", err)
			case <-timeout:
				t.Fatalf("offset %d does not arrive", n)
			}
		}
	}
	position := func() outbox.Position {
		t.Helper()
		d, err := outbox.ReadDigest(ctx, service, topic, outbox.DigestQuery{SQL: `SELECT count(*), max(updated_at), commitcast.hash_rows(id || ' ' || balance) FROM account`})
		if err != nil || d.Rows != 1 || d.Hash == "" {
			t.Fatalf("digest: %+v, %v", d, err)
		}
		return d.Position
	}
	deposit := func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE account SET balance = balance + 1, updated_at = now() WHERE id = 1`)
		return err
	}
	event := outbox.Event{Topic: topic, Type: "deposit", Data: json.RawMessage(`1`)}

	// Every form of writing.
	testkit.Eventually(t, soon, func() error { // until the client listens
		if err := outbox.Tx(ctx, service, func(tx *outbox.Transaction) error { return errors.Join(deposit(tx), tx.Publish(event)) }); err != nil {
			return err
		}
		select {
		case at := <-seen:
			seen <- at
			return nil
		case <-time.After(100 * time.Millisecond):
			return errors.New("nothing arrives")
		}
	}, "the first event")
	for range 2 { // twice, with one effect
		if _, err := outbox.Once(ctx, service, outbox.Operation{Scope: "ann", Key: "k"}, func(tx *outbox.Transaction) (int, error) {
			return 1, errors.Join(deposit(tx), tx.Publish(event), tx.Publish(event))
		}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := outbox.ForgetOperations(ctx, service, 10); err != nil {
		t.Fatal(err)
	}
	if _, err := service.Exec(ctx, `SELECT commitcast.append($1, 'deposit', '1')`, topic); err != nil {
		t.Fatal(err)
	}
	if err := pgx.BeginFunc(ctx, service, func(tx pgx.Tx) error {
		_, err := outbox.Append(ctx, tx, event, event)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	outbox.Wake(service, topic)
	if err := outbox.Flush(ctx, service); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, soon, func() bool { return len(position().Pending) == 0 }, "all is sequenced")
	at := position()
	cursor := at.Cursor
	head, err := wire.ParseCursor(cursor)
	if err != nil {
		t.Fatal(err)
	}
	reached(head.Offset)
	guard := outbox.Guard{Topic: topic, Saw: outbox.Saw{Cursor: cursor}}
	if err := pgx.BeginFunc(ctx, service, func(tx pgx.Tx) error { return errors.Join(deposit(tx), guard.Cursor(ctx, tx)) }); err != nil {
		t.Fatal(err)
	}

	// The worker's user may not write this topic any more: it is set aside, and given up.
	allow("~cc:*:canary", "~cc:*:other")
	for range 3 {
		if err := outbox.Tx(ctx, service, func(tx *outbox.Transaction) error { return tx.Publish(event) }); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Eventually(t, 60*time.Second, func() error {
		var why string
		err := operator.QueryRow(ctx, `SELECT p.error FROM commitcast.parked p JOIN commitcast.dead_letter d USING (topic) WHERE topic = $1 AND p.died_at IS NOT NULL`, topic).Scan(&why)
		if err == nil && !strings.Contains(why, "NOPERM") {
			t.Errorf("the error is %q", why)
		}
		return err
	}, "given up")
	allow("~cc:*")
	if taken, err := worker.Redrive(ctx, operator, topic); err != nil || len(taken) != 1 {
		t.Fatalf("redrive: %v, %v", taken, err)
	}
	testkit.Eventually(t, 60*time.Second, func() error {
		var left int
		err := operator.QueryRow(ctx, `SELECT count(*) FROM commitcast.parked`).Scan(&left)
		if err == nil && left > 0 {
			err = errors.New("still set aside")
		}
		return err
	}, "redriven")
	reached(head.Offset + 3)
	cancel()
	<-ran
	if err := <-followed; err != nil {
		t.Error(err)
	}
}
