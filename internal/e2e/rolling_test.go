package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/client"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/wire"
)

var (
	rollClients = flag.Int("roll.clients", 200, "clients of TestRollingReplacement")
	rollRate    = flag.Int("roll.rate", 100, "events a second of TestRollingReplacement")
	rollTopics  = flag.Int("roll.topics", 64, "topics of TestRollingReplacement; each client follows one")
	rollDrain   = flag.Duration("roll.drain", 2*time.Second, "--drain of the broadcasters of TestRollingReplacement")
)

// crowd is many clients of package client behind one address, each of which follows one topic, and a writer. Each client must
// surface every event of its topic once, in order, without reading its snapshot again.
type crowd struct {
	t      *testing.T
	pool   *pgxpool.Pool
	topics []string
	epoch  string
	began  time.Time

	cancel, mute context.CancelFunc
	done, writes sync.WaitGroup

	mu      sync.Mutex
	written []int64 // of each topic
	heads   []int64 // of each client
	up      []bool
	backs   []time.Time // connections but the first of each client
	samples []sample
	wrong   []string
}

// startCrowd connects the clients, waits until all are live, and begins to write.
func startCrowd(t *testing.T, database, url string, clients, topics, rate int) *crowd {
	t.Helper()
	c := &crowd{t: t, pool: connectPool(t, database), heads: make([]int64, clients), up: make([]bool, clients), written: make([]int64, topics)}
	for i := range topics {
		c.topics = append(c.topics, fmt.Sprint("crowd:", i))
	}
	if err := c.pool.QueryRow(t.Context(), `SELECT name FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1`).Scan(&c.epoch); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	quiet, mute := context.WithCancel(ctx)
	c.cancel, c.mute = cancel, mute
	t.Cleanup(func() { cancel(); c.done.Wait(); c.writes.Wait() })
	live := make(chan struct{}, clients)
	for i := range clients {
		c.follow(ctx, i, url, live)
	}
	for range clients {
		select {
		case <-live:
		case <-time.After(time.Minute):
			t.Fatalf("not all of %d clients are live: %v", clients, c.wrong)
		}
	}
	c.began = time.Now()
	c.writes.Go(func() { c.write(quiet, rate) })
	return c
}

// follow runs a client until ctx ends.
func (c *crowd) follow(ctx context.Context, i int, url string, live chan<- struct{}) {
	first := true
	cl, err := client.New(url, client.Config{OnConnection: func(up bool) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.up[i] = up; up && !first {
			c.backs = append(c.backs, time.Now())
		}
		first = first && !up
	}})
	if err != nil {
		c.t.Fatal(err)
	}
	c.done.Go(func() { // both end with ctx
		if err := cl.Run(ctx); !errors.Is(err, context.Canceled) {
			c.fault("client %d: %v", i, err)
		}
	})
	c.done.Go(func() {
		snapshots, current := 0, false
		topic := client.Topic[int64]{
			Snapshot: func(context.Context) (client.Held[int64], error) {
				if snapshots++; snapshots > 1 {
					c.fault("client %d reads its snapshot again", i)
				}
				return client.Held[int64]{Token: client.Token{Cursor: wire.Cursor{Epoch: c.epoch}, Epoch: c.epoch}}, nil
			},
			Apply: func(state int64, e *wire.Event) (int64, error) {
				ns, _ := strconv.ParseInt(string(e.Data), 10, 64)
				at := time.Unix(0, ns)
				c.mu.Lock()
				defer c.mu.Unlock()
				if e.Offset != state+1 {
					c.wrong = append(c.wrong, fmt.Sprintf("client %d: offset %d after %d", i, e.Offset, state))
				}
				c.heads[i] = e.Offset
				c.samples = append(c.samples, sample{at, time.Since(at)})
				return e.Offset, nil
			},
		}
		for change, err := range client.Follow(ctx, cl, c.topics[i%len(c.topics)], topic) {
			if err != nil {
				return // ctx has ended, or Run has told
			}
			if change.Current && !current {
				current = true
				live <- struct{}{}
			}
		}
	})
}

func (c *crowd) fault(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrong = append(c.wrong, fmt.Sprintf(format, args...))
}

// write appends so many events a second, to each topic in turn, from crowdWriters sessions.
func (c *crowd) write(ctx context.Context, rate int) {
	due := make(chan int) // topics
	for range crowdWriters {
		c.writes.Go(func() { // ends with due
			for i := range due {
				now := strconv.FormatInt(time.Now().UnixNano(), 10)
				if _, err := c.pool.Exec(context.Background(), `SELECT commitcast.append($1, 'roll', $2::text::json)`, c.topics[i], now); err != nil {
					c.fault("append: %v", err)
					continue
				}
				c.mu.Lock()
				c.written[i]++
				c.mu.Unlock()
			}
		})
	}
	defer close(due)
	ticker := time.NewTicker(time.Second / time.Duration(rate))
	defer ticker.Stop()
	began, n := time.Now(), 0
	for ctx.Err() == nil {
		<-ticker.C
		for ; n < int(time.Since(began).Seconds()*float64(rate)) && ctx.Err() == nil; n++ { // a ticker drops what it is late with
			due <- n % len(c.topics)
		}
	}
}

// crowdWriters is how many sessions write: one commits a few hundred times a second.
const crowdWriters = 4

// stop ends writing, waits until every client has every event of its topic, and fails the test for what was wrong.
func (c *crowd) stop() {
	c.t.Helper()
	c.mute()
	c.writes.Wait()
	events, want := int64(0), 0
	for _, n := range c.written {
		events += n
	}
	for i := range c.heads {
		want += int(c.written[i%len(c.topics)])
	}
	testkit.Eventually(c.t, 30*time.Second, func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		for i, head := range c.heads {
			if n := c.written[i%len(c.topics)]; head < n {
				return fmt.Errorf("client %d has %d of %d events", i, head, n)
			}
		}
		return nil
	}, "every client has every event")
	c.cancel()
	c.done.Wait()
	for _, w := range c.wrong[:min(5, len(c.wrong))] {
		c.t.Error(w)
	}
	if len(c.samples) != want {
		c.t.Errorf("%d events surfaced, of %d", len(c.samples), want)
	}
	c.t.Logf("%d events, %.0f a second, %d clients, %d deliveries: each once and in order", events, float64(events)/time.Since(c.began).Seconds(), len(c.heads), want)
}

// between is how long the events took that were written in a span of time.
func (c *crowd) between(from, to time.Time) (p50, p99, most time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return percentiles(c.samples, from, to)
}

// returned are the connections made again in a span, since its beginning.
func (c *crowd) returned(from, to time.Time) []time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	var after []time.Duration
	for _, at := range c.backs {
		if at.After(from) && !at.After(to) {
			after = append(after, at.Sub(from))
		}
	}
	return after
}

// allUp waits until no client is without a connection.
func (c *crowd) allUp() {
	c.t.Helper()
	testkit.Eventually(c.t, 30*time.Second, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return !slices.Contains(c.up, false)
	}, "every client is connected")
}

// terminate sends SIGTERM and waits for the end.
func terminate(t *testing.T, n *node) {
	t.Helper()
	if err := n.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-n.Done:
	case <-time.After(time.Minute):
		t.Fatal("it did not end within a minute of SIGTERM")
	}
}

// A release under load: two workers and three broadcasters behind a balancer are replaced one by one, each by a new process that is
// ready before the old one gets SIGTERM. No client loses an event or surfaces one twice or reads its snapshot again, the clients of
// a broadcaster come back spread over its drain, and events go on coming within a second.
func TestRollingReplacement(t *testing.T) {
	database, redis := testkit.Database(t), testkit.RedisURL(t)
	balancer := testkit.NewBalancer(t)
	broadcaster := func() *node {
		n := start(t, database, redis, "broadcaster", "--drain="+rollDrain.String())
		balancer.Add(hostOf(n.URL), n.Ops+"/readyz")
		return n
	}
	workers := []*node{start(t, database, redis, "worker"), start(t, database, redis, "worker")}
	broadcasters := []*node{broadcaster(), broadcaster(), broadcaster()}
	testkit.Eventually(t, 10*time.Second, func() bool { return balancer.Ready() == len(broadcasters) }, "all broadcasters get clients")
	c := startCrowd(t, database, "ws://"+balancer.Addr+"/v1/ws", *rollClients, *rollTopics, *rollRate)
	passes(t, time.Second)
	began := time.Now()

	for i, old := range workers {
		workers[i] = start(t, database, redis, "worker")
		told := time.Now()
		terminate(t, old)
		ended := time.Now()
		passes(t, 500*time.Millisecond)
		p50, p99, most := c.between(told, time.Now())
		t.Logf("worker %d: ended after %v; p50 %v, p99 %v, at most %v", i, ended.Sub(told).Round(time.Millisecond), p50, p99, most)
		if p99 > time.Second {
			t.Errorf("99 of 100 events took up to %v while worker %d was replaced", p99, i)
		}
	}
	for i, old := range broadcasters {
		broadcasters[i] = broadcaster()
		clients := balancer.Open(hostOf(old.URL))
		told := time.Now()
		terminate(t, old)
		ended := time.Now()
		balancer.Remove(hostOf(old.URL))
		c.allUp()
		passes(t, 500*time.Millisecond)
		after := c.returned(told, time.Now())
		p50, p99, most := c.between(told, time.Now())
		t.Logf("broadcaster %d: %d clients, ended after %v; came back by eighths of the drain: %v; p50 %v, p99 %v, at most %v", i, clients, ended.Sub(told).Round(time.Millisecond), parts(after, *rollDrain, 8), p50, p99, most)
		if p99 > time.Second {
			t.Errorf("99 of 100 events took up to %v while broadcaster %d was replaced", p99, i)
		}
		if clients < *rollClients/6 || len(after) < clients {
			t.Errorf("%d clients of %d were on broadcaster %d, and %d came back: the test proves nothing", clients, *rollClients, i, len(after))
		}
		for q, n := range parts(after, *rollDrain, 4)[:4] {
			if share := float64(n) / float64(len(after)); share < 0.10 || share > 0.45 {
				t.Errorf("%.0f%% of the clients of broadcaster %d came back in quarter %d of its drain", 100*share, i, q+1)
			}
		}
	}
	p50, p99, most := c.between(began, time.Now())
	c.stop()
	t.Logf("throughout: p50 %v, p99 %v, at most %v", p50, p99, most)
}

func hostOf(url string) string { _, at, _ := strings.Cut(url, "://"); return at }

// parts counts durations by which n-th of a whole they fall into; those beyond come last.
func parts(of []time.Duration, whole time.Duration, n int) []int {
	counts := make([]int, n+1)
	for _, d := range of {
		counts[min(n, int(int64(d)*int64(n)/int64(whole)))]++
	}
	return counts
}
