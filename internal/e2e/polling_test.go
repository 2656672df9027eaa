package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/internal/journal"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/wire"
)

// follower is a client that follows many topics and notes when each event came.
type follower struct {
	c       *testkit.Client
	mu      sync.Mutex
	came    map[int]time.Time // by the number in the event's data
	wrong   error
	offsets map[string]int64
}

// follow subscribes to topics "many:0" … and reads until the connection ends.
func follow(t *testing.T, url string, topics int) *follower {
	t.Helper()
	f := &follower{c: testkit.Dial(t, url), came: make(map[int]time.Time), offsets: make(map[string]int64)}
	const batch = 50 // requests in one message of at most 8 KiB
	for at := 0; at < topics; at += batch {
		var message strings.Builder
		for i := at; i < min(topics, at+batch); i++ {
			fmt.Fprintf(&message, `{"op":"subscribe","id":%d,"topic":"many:%d"}`+"\n", i+1, i)
		}
		f.c.Send(message.String())
	}
	for range topics {
		m := f.c.Expect("subscribed")
		f.offsets[m.Topic] = m.After
	}
	go func() { // ends with the connection
		for {
			m, err := f.c.Read(time.Minute)
			if err != nil {
				return
			}
			now := time.Now()
			f.mu.Lock()
			switch m.Op {
			case "event":
				if m.Offset != f.offsets[m.Topic]+1 {
					f.wrong = fmt.Errorf("%s: %d after %d", m.Topic, m.Offset, f.offsets[m.Topic])
				}
				f.offsets[m.Topic] = m.Offset
				n, _ := strconv.Atoi(string(m.Data))
				f.came[n] = now
			case "heartbeat":
			default:
				f.wrong = fmt.Errorf("%+v", m)
			}
			f.mu.Unlock()
		}
	}()
	return f
}

// lateness is how long after their commits events first to last came, sorted.
func lateness(t *testing.T, followers []*follower, committed []time.Time, first, last int) []time.Duration {
	t.Helper()
	testkit.Eventually(t, 30*time.Second, func() error {
		for _, f := range followers {
			f.mu.Lock()
			wrong, missing := f.wrong, 0
			for n := first; n < last; n++ {
				if f.came[n].IsZero() {
					missing++
				}
			}
			f.mu.Unlock()
			if wrong != nil || missing > 0 {
				return fmt.Errorf("%d events have not come; %v", missing, wrong)
			}
		}
		return nil
	}, "events %d to %d are everywhere", first, last)
	var late []time.Duration
	for _, f := range followers {
		f.mu.Lock()
		for n := first; n < last; n++ {
			late = append(late, f.came[n].Sub(committed[n]))
		}
		f.mu.Unlock()
	}
	slices.Sort(late)
	return late
}

// counter reads one number from a node's metrics.
func counter(t testing.TB, n *node, name string) float64 {
	t.Helper()
	body := get(t, n, "/metrics")
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

func get(t testing.TB, n *node, path string) string {
	t.Helper()
	resp, err := http.Get(n.Ops + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", path, resp.Status, err)
	}
	return string(body)
}

// While Redis is down, sequencing goes on and three broadcasters deliver 1,000 topics from the journal, at most about a
// second late; readiness and metrics say so; and push comes back by itself. COMMITCAST_REDIS_AWAY sets for how long it is
// down, as in 30s; 4 s otherwise.
func TestRedisAwayIsPolled(t *testing.T) {
	const topics, perSecond = 1000, 200
	away := 4 * time.Second
	if d, err := time.ParseDuration(os.Getenv("COMMITCAST_REDIS_AWAY")); err == nil {
		away = d
	}
	database, redis := testkit.Database(t), testkit.Redis(t)
	proxy := testkit.NewProxy(t, redis.URL())
	url := proxy.URL(redis.URL())
	start(t, database, url, "worker")
	var nodes []*node
	var followers []*follower
	for range 3 {
		n := start(t, database, url, "broadcaster")
		nodes = append(nodes, n)
		followers = append(followers, follow(t, n.URL, topics))
	}
	pool, err := pgxpool.New(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()

	var committed []time.Time
	write := func(events int) (first, last int) {
		first = len(committed)
		pace := time.NewTicker(time.Second / perSecond)
		defer pace.Stop()
		for range events {
			<-pace.C
			n := len(committed)
			if _, err := pool.Exec(t.Context(), "SELECT commitcast.append($1, 'test', $2::text::json)", fmt.Sprintf("many:%d", rand.IntN(topics)), strconv.Itoa(n)); err != nil {
				t.Fatal(err)
			}
			committed = append(committed, time.Now())
		}
		return first, len(committed)
	}
	// load is what Postgres has done: transactions, and seconds spent in statements.
	type load struct{ transactions, busy float64 }
	measure := func() (l load) {
		conn, err := pgx.Connect(t.Context(), database) // statistics of a session are flushed when it ends
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		if err := conn.QueryRow(t.Context(), "SELECT xact_commit, active_time / 1000 FROM pg_stat_database WHERE datname = current_database()").
			Scan(&l.transactions, &l.busy); err != nil {
			t.Fatal(err)
		}
		return l
	}
	report := func(what string, first, last int, began time.Time, before load) []time.Duration {
		late := lateness(t, followers, committed, first, last)
		took, now := time.Since(began).Seconds(), measure()
		t.Logf("%s: %d events to 3 x %d subscriptions, commit to socket p50 %v p99 %v most %v; in Postgres %.0f transactions/s, of which %d/s are the writer's, and %.0f ms of statements a second", what,
			last-first, topics, late[len(late)/2], late[len(late)*99/100], late[len(late)-1], (now.transactions-before.transactions)/took, perSecond,
			1000*(now.busy-before.busy)/took)
		return late
	}

	began, before := time.Now(), measure()
	first, last := write(perSecond * max(1, int(away.Seconds()/4)))
	report("pushed", first, last, began, before)

	proxy.Refuse()
	for _, n := range nodes {
		testkit.Eventually(t, 10*time.Second, func() error {
			if got := counter(t, n, "commitcast_stream_subscriptions_up_count"); got != 0 {
				return fmt.Errorf("%v subscriptions are up", got)
			}
			var ready map[string]string
			if err := json.Unmarshal([]byte(get(t, n, "/readyz")), &ready); err != nil || !strings.Contains(ready["broadcaster"], "polling the journal") {
				return fmt.Errorf("readiness is %v, %v", ready, err)
			}
			return nil
		}, "a broadcaster says that it polls")
	}
	began, before = time.Now(), measure()
	first, last = write(perSecond * int(away.Seconds()))
	late := report("polled", first, last, began, before)
	if p99 := late[len(late)*99/100]; p99 > time.Second {
		t.Errorf("polled: p99 is %v, more than a second", p99)
	}

	proxy.Resume()
	for _, n := range nodes {
		testkit.Eventually(t, 20*time.Second, func() error {
			if ready := get(t, n, "/readyz"); strings.Contains(ready, "polling") {
				return errors.New(ready)
			}
			return nil
		}, "a broadcaster is pushed to again")
	}
	// Once every channel is confirmed and what was missed is healed, events come by push alone.
	testkit.Eventually(t, 20*time.Second, func() error {
		var healed float64
		for _, n := range nodes {
			healed -= counter(t, n, "commitcast_broadcaster_events_healed_total")
		}
		first, last := write(perSecond / 4)
		lateness(t, followers, committed, first, last)
		for _, n := range nodes {
			healed += counter(t, n, "commitcast_broadcaster_events_healed_total")
		}
		if healed > 0 {
			return fmt.Errorf("%v events were healed", healed)
		}
		return nil
	}, "events are pushed again")
}

// A subscription whose connection has gone dead without a word is noticed, and events come by other ways meanwhile.
func TestBlackHoledSubscription(t *testing.T) {
	database, redis := testkit.Database(t), testkit.Redis(t)
	proxy := testkit.NewProxy(t, redis.URL())
	start(t, database, redis.URL(), "worker")
	n := start(t, database, proxy.URL(redis.URL()), "broadcaster")
	f := follow(t, n.URL, 10)
	send := func(i int) (late time.Duration) {
		exec1(t, database, "SELECT commitcast.append('many:3', 'test', $1::text::json)", strconv.Itoa(i))
		committed := time.Now()
		testkit.Eventually(t, 20*time.Second, func() bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.wrong != nil {
				t.Fatal(f.wrong)
			}
			late = f.came[i].Sub(committed)
			return !f.came[i].IsZero()
		}, "event %d comes", i)
		return late
	}
	send(0)
	proxy.Blackhole()
	began := time.Now()
	for i := 1; time.Since(began) < 6*time.Second; i++ { // the whole time in which it is noticed and after
		late := send(i)
		t.Logf("%v after the black hole: %v late", time.Since(began).Round(time.Millisecond), late.Round(time.Millisecond))
		if late > 4*time.Second {
			t.Errorf("an event was %v late", late)
		}
	}
	proxy.Resume()
	testkit.Eventually(t, 20*time.Second, func() bool {
		return counter(t, n, "commitcast_stream_subscriptions_up_count") == 1 && !strings.Contains(get(t, n, "/readyz"), "polling")
	}, "the subscription is up again")
	send(1000)
}

// BenchmarkPoll is what one poll of a broadcaster costs Postgres while Redis is away and 50 of its topics have one new
// event each, as at 200 events a second.
func BenchmarkPoll(b *testing.B) {
	const topics, lagging, each = 1000, 50, 20
	pool, err := pgxpool.New(b.Context(), testkit.Database(b))
	if err != nil {
		b.Fatal(err)
	}
	defer pool.Close()
	for _, sql := range []string{
		fmt.Sprintf("SELECT commitcast.append('many:' || i %% %d, 'test', '{\"yes\":0.53}') FROM generate_series(1, %d) i", topics, topics*each),
		"SELECT commitcast.sequence(p::smallint, 0, 100000, NULL, NULL) FROM generate_series(0, 31) p",
		"ANALYZE",
	} {
		if _, err := pool.Exec(b.Context(), sql); err != nil {
			b.Fatal(err)
		}
	}
	r := journal.New(pool)
	questions := make([]wire.Question, lagging)
	for b.Loop() {
		for i := range questions {
			questions[i] = wire.Question{Topic: fmt.Sprintf("many:%d", rand.IntN(topics)), Cursor: wire.Cursor{Offset: each - 1}}
		}
		_, _, err1 := r.Seqs(b.Context())
		_, _, err2 := r.Positions(b.Context(), questions)
		_, frames, err3 := r.Ranges(b.Context(), questions)
		if err := errors.Join(err1, err2, err3); err != nil || len(frames[lagging-1]) != 1 {
			b.Fatal(frames, err)
		}
	}
}
