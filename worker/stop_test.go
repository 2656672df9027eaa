package worker

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

// A worker that stops publishes what it has sequenced, says so in the partition, and leaves no lock and no running job.
func TestStopPublishesWhatIsSequenced(t *testing.T) {
	b := newBench(t)
	topic := topicIn(8, 0)
	s := &breakable{Stream: b.stream}
	s.set(func(ctx context.Context, offers []stream.Offer) ([]stream.Answer, error) {
		sleep(ctx, 100*time.Millisecond) // a slow stream
		return b.stream.Publish(ctx, offers)
	})
	_, stop := b.runOn(s, Config{Batch: 100})
	b.exec(`INSERT INTO commitcast.outbox (partition, topic, type, data) SELECT 8, $1, 'e', to_json(i) FROM generate_series(1, 5000) i`, topic)
	testkit.Eventually(t, 5*time.Second, func() bool {
		return scalar[int64](b, `SELECT seq - published FROM commitcast.partition WHERE id = 8`) > 500
	}, "publishing lags behind")
	stop()
	seq := scalar[int64](b, `SELECT seq FROM commitcast.partition WHERE id = 8`)
	published := scalar[int64](b, `SELECT published FROM commitcast.partition WHERE id = 8`)
	if published != seq || seq == 0 {
		t.Errorf("stopped with %d sequenced, %d published", seq, published)
	}
	b.checkStream(b.journal(), fromStart)
	if n := scalar[int](b, `SELECT count(*) FROM commitcast.river_job WHERE state = 'running'`); n != 0 {
		t.Errorf("%d jobs are running", n)
	}
	testkit.Eventually(t, 5*time.Second, func() bool {
		return scalar[int](b, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
			AND application_name IN ('commitcast drain', 'commitcast listener', 'commitcast worker')`) == 0
	}, "connections closed")
}

// A run that was stored but neither announced nor answered is announced in the end, by this drain or the next: storing
// and announcing may fail apart.
func TestUnansweredOfferIsAnnounced(t *testing.T) {
	for name, fail := range map[string]func() error{
		"the drain goes on": func() error { return fmt.Errorf("%w: the answer is lost", stream.ErrUnavailable) },
		"the drain is lost": func() error { panic("as a test") },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			topic := topicIn(8, 0)
			sub := b.subscribe(b.stream, b.epoch(), topic)
			redis := b.redisClient()
			s := &breakable{Stream: b.stream}
			b.runOn(s, Config{})
			b.append(topic, `1`)
			b.published(5 * time.Second)
			var once sync.Once
			s.set(func(ctx context.Context, offers []stream.Offer) (_ []stream.Answer, err error) {
				once.Do(func() {
					for i, f := range offers[0].Frames {
						id := fmt.Sprintf("%d-0", offers[0].First+int64(i))
						key := fmt.Sprintf("cc:{p8}:%s:%s", offers[0].Epoch, topic)
						if err := redis.Do(ctx, "XADD", key, id, "f", f).Err(); err != nil {
							t.Error(err)
						}
					}
					err = fail()
				})
				if err != nil {
					return nil, err
				}
				return b.stream.Publish(ctx, offers)
			})
			b.append(topic, `2`)
			b.published(5 * time.Second)
			testkit.Eventually(t, 5*time.Second, func() bool { return sub.reached(topic) == 2 }, "announced")
			b.checkStream(b.journal(), fromStart)
		})
	}
}

// A drain that fails whatever one does is not ordered again and again.
func TestFailingDrainsArePaced(t *testing.T) {
	b := newBench(t)
	s := &breakable{Stream: b.stream}
	s.set(func(context.Context, []stream.Offer) ([]stream.Answer, error) { panic("as a test") })
	b.runOn(s, Config{})
	b.append("p", `1`)
	testkit.Eventually(t, 20*time.Second, func() bool {
		return scalar[int](b, `SELECT count(*) FROM commitcast.river_job WHERE errors IS NOT NULL`) >= 2
	}, "two failures")
	start := time.Now()
	testkit.Eventually(t, 30*time.Second, func() bool {
		return scalar[int](b, `SELECT count(*) FROM commitcast.river_job WHERE errors IS NOT NULL`) >= 4
	}, "two more")
	// The third waits for 500 ms and the fourth for 1 s, at least half of that by jitter.
	if took := time.Since(start); took < 600*time.Millisecond {
		t.Errorf("two more failures within %v", took)
	}
	s.set(nil)
	b.published(60 * time.Second)
}

// Notifications reach the partitions they name.
func TestListener(t *testing.T) {
	b := newBench(t)
	w, err := New(b.least, b.stream, Config{Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { w.listen(ctx) })
	defer wg.Wait()
	defer cancel()
	heard := func(want uint32) {
		t.Helper()
		var got uint32
		testkit.Eventually(t, 5*time.Second, func() bool {
			got |= w.hub.hinted.Swap(0)
			return got == want
		}, "partitions %032b", want)
	}
	all := ^uint32(0)
	heard(all) // at the beginning, for what was missed
	for payload, want := range map[string]uint32{"3,17": 1<<3 | 1<<17, "0": 1, "31": 1 << 31, "": all, "32": all, "x": all} {
		b.exec(`SELECT pg_notify('commitcast_outbox', $1)`, payload)
		heard(want)
	}
	b.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'commitcast listener'`)
	heard(all) // reconnected
}

func TestConfig(t *testing.T) {
	b := newBench(t)
	for name, cfg := range map[string]Config{
		"Node": {Node: string(make([]byte, 61))}, "Slots": {Slots: -1}, "Batch": {Batch: 10_001},
		"Linger": {Linger: time.Millisecond}, "MaxAge": {MaxAge: time.Millisecond}, "StopTimeout": {StopTimeout: -1},
	} {
		if _, err := New(b.least, b.stream, cfg); err == nil {
			t.Errorf("a bad %s was taken", name)
		}
	}
}

// A database without the schema is refused in one line.
func TestNoSchema(t *testing.T) {
	b := benchOn(t, testkit.EmptyDatabase(t), testkit.RedisURL(t))
	w, err := New(b.least, b.stream, Config{Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := w.Run(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("Run returned %v", err)
	}
	if w.Run(ctx) == nil {
		t.Error("Run ran twice")
	}
}

func TestCollector(t *testing.T) {
	var c collector
	be := func(n int64) []byte {
		b := make([]byte, 8)
		for i := range b {
			b[i] = byte(uint64(n) >> (56 - 8*i))
		}
		return b
	}
	seq := int64(100)
	add := func(topic string, offset int64) {
		t.Helper()
		seq++
		if err := c.add([][]byte{[]byte(topic), be(offset), []byte("1-abcd"), be(seq), be(seq), []byte("e"), nil,
			[]byte(strconv.Itoa(int(seq))), nil, be(seq), be(seq)}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // it is reused
		c.reset()
		seq = 100
		add("a", 5)
		add("b", 1)
		add("a", 6)
		add("a", 9) // a hole: past retention
		add("b", 2)
		runs := c.finish()
		var got string
		for _, r := range runs {
			got += fmt.Sprintf("%s %d..%d seq %d; ", r.topic, r.first, r.last(), r.seq)
			for i, f := range r.frames {
				m, err := wire.ParseMessage(f)
				if err != nil || m.Topic != r.topic || m.Offset != r.first+int64(i) {
					t.Errorf("frame %s: %v", f, err)
				}
			}
		}
		if want := "a 5..6 seq 101; b 1..2 seq 102; a 9..9 seq 104; "; got != want {
			t.Errorf("runs %s\nwant %s", got, want)
		}
		if c.lastSeq != 105 || int64(c.lastAt) != 105 {
			t.Errorf("last seq %d at %d", c.lastSeq, c.lastAt)
		}
	}
}

// A worker that stops orders what follows its drains: who takes them need not find out that it is gone, which only a look at
// the right moment tells.
func TestStopHandsOver(t *testing.T) {
	b := newBench(t)
	w, stop := b.run(Config{Linger: time.Minute, MaxAge: 2 * time.Minute})
	topics := []string{topicIn(3, 0), topicIn(8, 0), topicIn(30, 0)}
	for _, topic := range topics {
		b.append(topic, `1`)
	}
	b.published(5 * time.Second)
	held := w.hub.held()
	if len(held) != len(topics) {
		t.Fatalf("%d drains, want %d", len(held), len(topics))
	}
	stop()
	for _, o := range held {
		if n := scalar[int](b, `SELECT count(*) FROM commitcast.river_job WHERE kind = 'outbox_drain' AND state = 'available'
			AND (args->>'partition')::int = $1 AND (args->>'term')::bigint = $2`, o.partition, o.term); n != 1 {
			t.Errorf("%d jobs wait that follow the drain of partition %d, want 1", n, o.partition)
		}
	}
	// Somebody takes them although nothing happens in these partitions, and nothing is ordered twice.
	next, _ := b.run(Config{Linger: time.Minute, MaxAge: 2 * time.Minute})
	testkit.Eventually(t, 10*time.Second, func() bool { return len(next.hub.held()) == len(topics) }, "the next worker drains all of them")
	for i, o := range next.hub.held() {
		if o.partition != held[i].partition || o.term != held[i].term+1 {
			t.Errorf("partition %d is at term %d, want %d", o.partition, o.term-1, held[i].term)
		}
	}
}
