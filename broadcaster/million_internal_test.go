package broadcaster

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/internal/journal"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

var (
	million       = flag.Int("million", 2000, "virtual subscribers of TestMillion")
	millionNodes  = flag.Int("million.nodes", 4, "broadcasters that they are spread over")
	millionTopics = flag.Int("million.topics", 10, "topics that they are spread over")
	millionEvents = flag.Int("million.events", 20, "events, one after the other")
	millionEvery  = flag.Duration("million.every", 20*time.Millisecond, "time between two events")
)

// virtual is a client without a socket: it looks at what it would be sent.
type virtual struct {
	all    *virtuals
	last   int64 // the offset that it has; written by one flusher at a time
	events int32
}

// virtuals is what all of them have in common.
type virtuals struct {
	started  time.Time
	appended []atomic.Int64 // in ns since then, by the number that is in the event's data
	got      []atomic.Int64
	latest   []atomic.Int64 // when the last of them had it, in ns since appended
	wrong    atomic.Int64
}

func (v *virtual) writeText(p []byte, _ time.Duration) error {
	for frame := range bytes.Lines(p[headerRoom:]) {
		_, digits, ok := eventCursor(frame)
		if !ok {
			continue
		}
		offset, _ := strconv.ParseInt(string(digits), 10, 64)
		if v.last != 0 && offset != v.last+1 {
			v.all.wrong.Add(1)
		}
		v.last = offset
		v.events++
		_, text, _ := bytes.Cut(frame, []byte(`"n":`))
		n, _ := strconv.Atoi(string(text[:max(0, bytes.IndexByte(text, '}'))]))
		v.all.got[n].Add(1)
		for took := int64(time.Since(v.all.started)) - v.all.appended[n].Load(); ; {
			before := v.all.latest[n].Load()
			if took <= before || v.all.latest[n].CompareAndSwap(before, took) {
				break
			}
		}
	}
	return nil
}

func (*virtual) close(wire.CloseCode) {}
func (*virtual) closeNow()            {}

// TestMillion has many subscribers without sockets, over many broadcasters in one process, on a real worker, Redis and Postgres: everything
// but the sockets is as it is in production, and each subscriber sees every event of its topic, in order. What it is for is to be run
// with more:
//
//	go test ./broadcaster -run TestMillion -v -timeout 20m -million 1000000 -million.nodes 40 -million.topics 1 -million.events 10 -million.every 3s
func TestMillion(t *testing.T) {
	quiet := slog.New(slog.DiscardHandler)
	database, redisURL := testkit.Database(t), testkit.RedisURL(t)
	testkit.Start(t, database, redisURL, "worker")
	config, err := pgxpool.ParseConfig(database)
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = int32(2 * *millionNodes) // as many as they have when each is a process
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	nodes := make([]*Broadcaster, *millionNodes)
	for i := range nodes {
		s, err := stream.NewRedis(t.Context(), redisURL, stream.RedisConfig{Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if nodes[i], err = New(journal.New(pool), s, Config{Node: fmt.Sprint("b", i), Drain: time.Millisecond, Logger: quiet}); err != nil {
			t.Fatal(err)
		}
		running.Go(func() { nodes[i].Run(ctx) })
	}
	for _, b := range nodes {
		testkit.Eventually(t, time.Minute, func() bool { return b.Ready() == nil }, "a broadcaster is ready")
	}
	all := &virtuals{started: time.Now(), appended: make([]atomic.Int64, *millionEvents), got: make([]atomic.Int64, *millionEvents), latest: make([]atomic.Int64, *millionEvents)}
	topicOf := func(i int) string { return fmt.Sprint("crowd:", i%*millionTopics) }

	before := heap()
	began := time.Now()
	sessions := make([]*session, *million)
	for i := range sessions {
		b := nodes[i / *millionTopics % len(nodes)]
		sessions[i] = newSession(b, &virtual{all: all}, netip.Prefix{})
		if _, why := b.addSession(sessions[i]); why != "" {
			t.Fatal(why)
		}
		sessions[i].answer(ctx, wire.Request{Op: "subscribe", ID: 1, Topic: topicOf(i)}, nil)
	}
	defer func() {
		for _, s := range sessions {
			s.end()
		}
	}()
	live := func(s *session) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, sub := range s.subs {
			return sub.state == subLive
		}
		return false
	}
	for _, s := range sessions {
		testkit.Eventually(t, 2*time.Minute, func() bool { return live(s) }, "every subscription is live")
	}
	t.Logf("%d subscribers of %d topics on %d broadcasters are live after %v, %d bytes of heap each", *million, *millionTopics, len(nodes),
		time.Since(began).Round(time.Millisecond), (heap()-before)/int64(*million))

	of := make([]int, *millionTopics)
	for i := range sessions {
		of[i%*millionTopics]++
	}
	start := time.Now()
	for n := range *millionEvents {
		time.Sleep(time.Until(start.Add(time.Duration(n) * *millionEvery))) // the pace of the load
		all.appended[n].Store(int64(time.Since(all.started)))
		if _, err := pool.Exec(ctx, `SELECT commitcast.append($1, 'test', json_build_object('n', $2::int))`, topicOf(n), n); err != nil {
			t.Fatal(err)
		}
	}
	var deliveries int64
	var latest []time.Duration
	for n := range *millionEvents {
		want := int64(of[n%*millionTopics])
		testkit.Eventually(t, 2*time.Minute, func() bool { return all.got[n].Load() == want }, "event %d is with its %d subscribers", n, want)
		deliveries += want
		latest = append(latest, time.Duration(all.latest[n].Load()))
	}
	if n := all.wrong.Load(); n > 0 {
		t.Errorf("%d times an event did not follow the one before", n)
	}
	slices.Sort(latest)
	took := time.Since(start)
	t.Logf("%d deliveries in %v; from append to the last subscriber: median %v, slowest %v", deliveries, took.Round(time.Millisecond),
		latest[len(latest)/2].Round(100*time.Microsecond), latest[len(latest)-1].Round(100*time.Microsecond))
}

// heap is what is in use after a collection.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
