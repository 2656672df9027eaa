package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/wire"
)

// load is a writer that appends so many events a second, to a topic of each partition in turn, and clients that follow all
// of them. Every client must get every event, once and in order, and no reset.
type load struct {
	t      *testing.T
	pool   *pgxpool.Pool
	topics []string

	cancel  context.CancelFunc
	done    sync.WaitGroup
	written []int64 // of each topic; of the writer until it has stopped

	mu      sync.Mutex
	samples []sample
	heads   []map[string]int64 // of each client
	wrong   []string
}

// sample is one event at one client.
type sample struct {
	at   time.Time // before its commit
	took time.Duration
}

// topicsOfAll is a topic in each partition.
func topicsOfAll() []string {
	topics := make([]string, wire.Partitions)
	for i, found := 0, 0; found < len(topics); i++ {
		name := fmt.Sprint("load:", i)
		if p := wire.Partition(name); topics[p] == "" {
			topics[p] = name
			found++
		}
	}
	return topics
}

// startLoad connects the clients, spread over the urls, and begins to write.
func startLoad(t *testing.T, database string, urls []string, clients, rate int) *load {
	t.Helper()
	l := &load{t: t, topics: topicsOfAll()}
	var err error
	if l.pool, err = pgxpool.New(t.Context(), database); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.pool.Close)
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	t.Cleanup(func() { cancel(); l.done.Wait() })
	for i := range clients {
		c := testkit.Dial(t, urls[i%len(urls)])
		for j, topic := range l.topics {
			c.Subscribe(j+1, topic, "")
		}
		for range l.topics {
			c.Expect("subscribed")
		}
		heads := map[string]int64{}
		l.heads = append(l.heads, heads)
		go l.follow(c, i, heads) // ends with the connection, at the test's end
	}
	l.written = make([]int64, len(l.topics))
	l.done.Go(func() { l.write(ctx, rate) })
	return l
}

func (l *load) write(ctx context.Context, rate int) {
	ticker := time.NewTicker(time.Second / time.Duration(rate))
	defer ticker.Stop()
	for i := 0; ; i = (i + 1) % len(l.topics) {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := strconv.FormatInt(time.Now().UnixNano(), 10)
		if _, err := l.pool.Exec(context.Background(), `SELECT commitcast.append($1, 'load', $2::text::json)`, l.topics[i], now); err != nil {
			l.fault("append: %v", err)
			return
		}
		l.written[i]++
	}
}

func (l *load) follow(c *testkit.Client, id int, heads map[string]int64) {
	for {
		m, err := c.Read(time.Minute)
		if err != nil {
			return // stop tells what is missing
		}
		l.mu.Lock()
		switch {
		case m.Op == "heartbeat":
		case m.Op != "event":
			l.wrong = append(l.wrong, fmt.Sprintf("client %d was sent %+v", id, m))
		case m.Offset != heads[m.Topic]+1:
			l.wrong = append(l.wrong, fmt.Sprintf("client %d: %s offset %d after %d", id, m.Topic, m.Offset, heads[m.Topic]))
		default:
			heads[m.Topic] = m.Offset
			ns, _ := strconv.ParseInt(string(m.Data), 10, 64)
			at := time.Unix(0, ns)
			l.samples = append(l.samples, sample{at, time.Since(at)})
		}
		l.mu.Unlock()
	}
}

func (l *load) fault(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wrong = append(l.wrong, fmt.Sprintf(format, args...))
}

// stop ends writing, waits until everybody has everything, and fails the test otherwise.
func (l *load) stop() {
	l.t.Helper()
	l.cancel()
	l.done.Wait()
	events := int64(0)
	for _, n := range l.written {
		events += n
	}
	testkit.Eventually(l.t, 30*time.Second, func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		for i, heads := range l.heads {
			for j, topic := range l.topics {
				if heads[topic] < l.written[j] {
					return fmt.Errorf("client %d is at %d of %s, of %d", i, heads[topic], topic, l.written[j])
				}
			}
		}
		return nil
	}, "every client has every event")
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.wrong[:min(5, len(l.wrong))] {
		l.t.Error(w)
	}
	if n := len(l.samples); int64(n) != events*int64(len(l.heads)) {
		l.t.Errorf("%d events came to %d clients, of %d", n, len(l.heads), events)
	}
	l.t.Logf("%d events, %d clients, each all of them, once and in order", events, len(l.heads))
}

// between is how long the events took that were committed in a span of time.
func (l *load) between(from, to time.Time) (p50, p99, most time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return percentiles(l.samples, from, to)
}

// percentiles are those of the samples of a span of time; zero if there are none.
func percentiles(samples []sample, from, to time.Time) (p50, p99, most time.Duration) {
	var took []time.Duration
	for _, s := range samples {
		if !s.at.Before(from) && s.at.Before(to) {
			took = append(took, s.took)
		}
	}
	if len(took) == 0 {
		return 0, 0, 0
	}
	slices.Sort(took)
	return took[len(took)/2], took[len(took)*99/100], took[len(took)-1]
}

// passes waits until so much time has gone by while the load goes on.
func passes(t *testing.T, d time.Duration) {
	t.Helper()
	began := time.Now()
	testkit.Eventually(t, d+time.Minute, func() bool { return time.Since(began) >= d }, "time passes")
}

// pushed waits until a broadcaster pushes events of all partitions.
func pushed(t *testing.T, n *node) {
	t.Helper()
	testkit.Eventually(t, 30*time.Second, func() error {
		resp, err := http.Get(n.Ops + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err == nil && !strings.Contains(string(text), `"broadcaster":"ready"`) {
			err = fmt.Errorf("readyz says %s", text)
		}
		return err
	}, "events are pushed again")
}
