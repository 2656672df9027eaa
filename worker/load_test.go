package worker

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/internal/testkit"
)

// load is a number of writers that append to topics, one transaction each of one to four events, some rolled back.
type load struct {
	committed atomic.Int64
	cancel    context.CancelFunc
	writers   sync.WaitGroup
}

func (b *bench) load(writers, topics int, aborts float64, pause time.Duration) *load {
	b.t.Helper()
	l := &load{}
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	for n := range writers {
		l.writers.Go(func() { // owned by stop
			rng := rand.New(rand.NewPCG(uint64(n), 7))
			conn, err := pgx.Connect(ctx, b.url)
			if err != nil {
				if ctx.Err() == nil {
					b.t.Errorf("writer: %v", err)
				}
				return
			}
			defer conn.Close(context.Background())
			for i := 0; ctx.Err() == nil; i++ {
				// Not ctx: a commit that was cut off is neither committed nor not.
				if err := l.write(context.Background(), conn, rng, n, i, topics, aborts); err != nil {
					b.t.Errorf("writer: %v", err)
					return
				}
				if pause > 0 {
					sleep(ctx, pause) // the rate of writing, not synchronisation
				}
			}
		})
	}
	b.t.Cleanup(l.stop)
	return l
}

func (l *load) write(ctx context.Context, conn *pgx.Conn, rng *rand.Rand, n, i, topics int, aborts float64) error {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	events := 1 + rng.IntN(4)
	for e := range events {
		topic := fmt.Sprintf("load:%d", rng.IntN(topics))
		if _, err := tx.Exec(ctx, appendSQL, topic, fmt.Sprintf(`{"w":%d,"i":%d,"e":%d}`, n, i, e)); err != nil {
			return err
		}
	}
	if rng.Float64() < aborts {
		return tx.Rollback(ctx)
	}
	if err := tx.Commit(ctx); err != nil {
		return err
	}
	l.committed.Add(int64(events))
	return nil
}

// stop ends the writers and waits for them.
func (l *load) stop() {
	l.cancel()
	l.writers.Wait()
}

// after waits until n more events are committed.
func (l *load) after(t testing.TB, n int64) {
	t.Helper()
	target := l.committed.Load() + n
	testkit.Eventually(t, 30*time.Second, func() bool { return l.committed.Load() >= target }, "%d more commits", n)
}

func loadTopics(n int) []string {
	topics := make([]string, n)
	for i := range topics {
		topics[i] = fmt.Sprintf("load:%d", i)
	}
	return topics
}

// count is the number of events in all topics.
func count(topics map[string][]row) (n int64) {
	for _, rows := range topics {
		n += int64(len(rows))
	}
	return n
}
