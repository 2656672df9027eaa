package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/client"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/outbox"
	"github.com/commitcast/commitcast/wire"
)

// The Go client, over connections that are cut all the time: a sum of deltas, which no event may enter twice, ends as
// the table has it; and goes on from what it kept, without a snapshot.
func TestGoClientFollows(t *testing.T) {
	const writers, writes, cuts = 4, 60, 20
	database, redis := testkit.Database(t), testkit.RedisURL(t)
	exec1(t, database, `CREATE TABLE tally (n bigint NOT NULL)`)
	exec1(t, database, `INSERT INTO tally VALUES (0)`)
	start(t, database, redis, "worker")
	b := start(t, database, redis, "broadcaster")
	proxy := testkit.NewProxy(t, b.URL[len("ws://"):])
	pool, err := pgxpool.New(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()

	snapshots := 0
	topic := client.Topic[int64]{
		Snapshot: func(ctx context.Context) (held client.Held[int64], err error) {
			snapshots++
			p, err := outbox.Snapshot(ctx, pool, []string{"tally"}, func(tx pgx.Tx) error {
				return tx.QueryRow(ctx, `SELECT n FROM tally`).Scan(&held.State)
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
		Apply: func(n int64, e *wire.Event) (int64, error) {
			d, err := strconv.ParseInt(string(e.Data), 10, 64)
			return n + d, err
		},
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	c, err := client.New("ws://"+proxy.Addr+"/v1/ws", client.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() { ran <- c.Run(ctx) }() // ends with ctx

	var load sync.WaitGroup
	failed := make(chan error, writers)
	begin := sync.OnceFunc(func() {
		for range writers {
			load.Go(func() { // ends with its writes
				for i := range writes {
					if err := outbox.Tx(ctx, pool, func(tx *outbox.Transaction) error {
						_, err := tx.Exec(ctx, `UPDATE tally SET n = n + $1`, i)
						return errors.Join(err, tx.Publish(outbox.Event{Topic: "tally", Type: "delta", Data: i}))
					}); err != nil {
						failed <- err
						return
					}
				}
			})
		}
	})
	const total, events = writers * writes * (writes - 1) / 2, writers * writes
	follow := func(topic client.Topic[int64], want, offset int64, each func(n int)) (kept client.Held[int64]) {
		t.Helper()
		n := 0
		for change, err := range client.Follow(ctx, c, "tally", topic) {
			if err != nil {
				t.Fatalf("after %d changes, at %+v: %v", n, kept, err)
			}
			kept = change.Held
			begin() // the first change is the snapshot: everything comes after it
			if change.Event != nil {
				n++
				each(n)
			}
			if change.Current && kept.Token.Cursor.Offset == offset {
				break
			}
		}
		if kept.State != want {
			t.Errorf("the sum at %v is %d, not %d", kept.Token.Cursor, kept.State, want)
		}
		return kept
	}
	cut := 0
	kept := follow(topic, total, events, func(int) {
		if cut < cuts {
			cut++
			proxy.Cut()
		}
	})
	load.Wait()
	select {
	case err := <-failed:
		t.Fatal(err)
	default:
	}
	if cut < cuts {
		t.Errorf("cut %d times only", cut)
	}
	exec1(t, database, `SELECT commitcast.append('tally', 'delta', '7')`)
	read := snapshots
	topic.Resume = &kept
	follow(topic, total+7, events+1, func(int) {})
	if snapshots != read {
		t.Error("what was kept was not enough: the snapshot was read again")
	}
	cancel()
	if err := <-ran; !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
}
