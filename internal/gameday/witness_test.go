package gameday

import (
	"context"
	"fmt"
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

// topic is that of the events that are written and watched.
const topic = "orders:7"

// writer writes a row and its event, 1, 2, 3 …, ten a second. When an answer is lost it looks whether the row is there.
type writer struct {
	pool *pgxpool.Pool
	hold sync.Mutex // held while it may not write
	stop func()     // for good; returns when nothing is on its way

	mu   sync.Mutex
	last int64 // that is known to be committed
}

func startWriter(t *testing.T, database string) *writer {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `CREATE TABLE orders (n bigint PRIMARY KEY)`); err != nil {
		t.Fatal(err)
	}
	w := &writer{pool: pool}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // owned by the test: its cleanup waits for it
		defer close(done)
		for tick := time.NewTicker(100 * time.Millisecond); ; {
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
				w.write(context.WithoutCancel(ctx)) // so that what became of it is known
			}
		}
	}()
	w.stop = func() { cancel(); <-done }
	t.Cleanup(func() { w.stop(); pool.Close() })
	return w
}

func (w *writer) write(ctx context.Context) {
	w.hold.Lock()
	defer w.hold.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	n := w.committed() + 1
	err := outbox.Tx(ctx, w.pool, func(tx *outbox.Transaction) error {
		if _, err := tx.Exec(ctx, `INSERT INTO orders VALUES ($1)`, n); err != nil {
			return err
		}
		return tx.Publish(outbox.Event{Topic: topic, Type: "ordered", Key: strconv.FormatInt(n, 10), Data: n})
	})
	if err != nil { // the database is away, or has done it: the row says so
		var there bool
		if w.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM orders WHERE n = $1)`, n).Scan(&there) != nil || !there {
			return
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = n
}

func (w *writer) committed() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

// witness follows the topic through one broadcaster, as a page would, and notes what a page must never see.
type witness struct {
	name string

	mu        sync.Mutex
	seen      int64 // the state: 1 … seen
	snapshots int
	wrong     []string
}

func startWitness(t *testing.T, name, url string, config client.Config, pool *pgxpool.Pool) *witness {
	t.Helper()
	w := &witness{name: name}
	c, err := client.New(url+"/v1/ws", config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var both sync.WaitGroup
	both.Go(func() { c.Run(ctx) }) // owned by the test: its cleanup waits for both
	both.Go(func() {
		for change, err := range client.Follow(ctx, c, topic, client.Topic[int64]{
			Snapshot: func(ctx context.Context) (client.Held[int64], error) { return snapshot(ctx, pool) },
			Apply:    w.apply,
		}) {
			w.mu.Lock()
			if err != nil && ctx.Err() == nil {
				w.wrong = append(w.wrong, err.Error())
			}
			w.seen = change.State
			if change.Snapshot {
				w.snapshots++
			}
			w.mu.Unlock()
		}
	})
	t.Cleanup(func() { cancel(); both.Wait() })
	testkit.Eventually(t, 20*time.Second, func() bool { return w.has() > 0 }, "%s delivers", name)
	return w
}

func (w *witness) has() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen
}

func (w *witness) apply(state int64, e *wire.Event) (int64, error) {
	n, err := strconv.ParseInt(e.Key, 10, 64)
	if err != nil || n != state+1 {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.wrong = append(w.wrong, fmt.Sprintf("event %q came after %d", e.Key, state))
	}
	return n, nil
}

// snapshot reads the rows and where they stand, at one moment.
func snapshot(ctx context.Context, pool *pgxpool.Pool) (held client.Held[int64], err error) {
	positions, err := outbox.Snapshot(ctx, pool, []string{topic}, func(tx pgx.Tx) error {
		var rows int64
		if err := tx.QueryRow(ctx, `SELECT coalesce(max(n), 0), count(*) FROM orders`).Scan(&held.State, &rows); err != nil {
			return err
		}
		if rows != held.State {
			return fmt.Errorf("%d rows up to %d", rows, held.State)
		}
		return nil
	})
	if err != nil {
		return held, err
	}
	cursor, err := wire.ParseCursor(positions[0].Cursor)
	held.Token = client.Token{Cursor: cursor, Pending: positions[0].Pending, Epoch: positions[0].Epoch}
	return held, err
}
