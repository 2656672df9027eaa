package broadcaster_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/internal/journal"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/wire"
)

// newShardedRig starts a broadcaster on two databases: orders has the topics orders:*, and r the others.
func newShardedRig(t *testing.T, config broadcaster.Config) (r, orders *rig) {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), testkit.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	orders = &rig{t: t, pool: pool, sent: make(map[string]int64)}
	orders.journal = &hookJournal{Journal: journal.New(pool)}
	config.Shards = []broadcaster.Shard{{Topics: []string{"orders:*"}, Journal: orders.journal}}
	r = newRig(t, nil, config)
	t.Cleanup(func() { orders.journal.clear() })
	orders.stream, orders.b, orders.URL = r.stream, r.b, r.URL
	if r.epoch() == orders.epoch() {
		t.Fatal("two databases have the same epoch")
	}
	return r, orders
}

// heartbeat is the next one that knows of a topic.
func heartbeat(t *testing.T, c *testkit.Client, topic string) wire.Message {
	t.Helper()
	for range 100 {
		if m := c.Expect("heartbeat"); m.Heads[topic] > 0 {
			return m
		}
	}
	t.Fatalf("no heartbeat names %s", topic)
	return wire.Message{}
}

// One connection follows topics of two databases: each is in the history of its own, and what is lost on the way is found there.
func TestShards(t *testing.T) {
	r, orders := newShardedRig(t, broadcaster.Config{Heartbeat: 50 * time.Millisecond, LogEvents: 8})
	r.commit("market:1", 3)
	orders.commit("orders:1", 20) // more than the log holds
	c := testkit.Dial(t, r.URL)
	c.Subscribe(1, "market:1", r.cursor(0))
	if m := c.Expect("subscribed"); m.Epoch != r.epoch() || m.Head != 3 {
		t.Fatalf("%+v", m)
	}
	c.ExpectEvents("market:1", 1, 3)
	c.Subscribe(2, "orders:1", orders.cursor(0))
	if m := c.Expect("subscribed"); m.Epoch != orders.epoch() || m.Head != 20 {
		t.Fatalf("not joined in its own history: %+v", m)
	}
	for _, e := range c.ExpectEvents("orders:1", 1, 20) {
		if e.Epoch != orders.epoch() {
			t.Fatalf("%+v", e)
		}
	}
	for _, of := range []struct {
		in    *rig
		topic string
		last  int64
	}{{r, "market:1", 3}, {orders, "orders:1", 20}} {
		of.in.commit(of.topic, 2)
		c.ExpectEvents(of.topic, of.last+1, of.last+2)
		of.in.lose(of.topic, 2) // the last message, and nothing comes after it
		c.ExpectEvents(of.topic, of.last+3, of.last+4)
		of.in.sequence(of.topic, 1) // nor does the stream have it
		c.ExpectEvents(of.topic, of.last+5, of.last+5)
	}
	// A cursor is of one history.
	c.Subscribe(3, "orders:2", r.cursor(0))
	if m := c.Expect("reset"); m.Reason != wire.ReasonEpoch || m.Epoch != orders.epoch() {
		t.Errorf("%+v", m)
	}
	m := heartbeat(t, c, "orders:1")
	if m.Epoch != r.epoch() || m.EpochOf("market:1") != r.epoch() || m.EpochOf("orders:1") != orders.epoch() || len(m.Epochs) != 1 ||
		m.Heads["market:1"] != 8 || m.Heads["orders:1"] != 25 {
		t.Errorf("a heartbeat says of two databases: %+v", m)
	}
	if s, ok := r.b.Topic("orders:1"); !ok || s.Epoch != orders.epoch() || s.Head != 25 {
		t.Errorf("%+v", s)
	}
	if s := r.b.State(); s.Epoch != r.epoch() || len(s.Shards) != 2 || s.Shards[0] != (broadcaster.ShardState{Topics: "**", Epoch: r.epoch(), Up: true}) ||
		s.Shards[1] != (broadcaster.ShardState{Topics: "orders:*", Epoch: orders.epoch(), Up: true}) {
		t.Errorf("%+v", s)
	}
}

// A database that goes back takes its own topics with it, and nobody else's.
func TestShardGoesBack(t *testing.T) {
	r, orders := newShardedRig(t, broadcaster.Config{Heartbeat: 50 * time.Millisecond})
	r.commit("market:1", 3)
	orders.commit("orders:kept", 3)
	orders.commit("orders:lost", 3)
	c := testkit.Dial(t, r.URL)
	follow := func(id int, in *rig, topic string) {
		c.Subscribe(id, topic, in.cursor(0))
		c.Expect("subscribed")
		c.ExpectEvents(topic, 1, 3)
	}
	follow(1, r, "market:1")
	follow(2, orders, "orders:kept")
	follow(3, orders, "orders:lost")
	before := r.epoch()
	orders.exec(`DELETE FROM commitcast.journal WHERE topic = 'orders:lost' AND "offset" > 1;
		UPDATE commitcast.topic SET head = 1 WHERE topic = 'orders:lost';
		SELECT commitcast.begin_epoch(NULL, 'test')`)
	if m := c.Expect("reset"); m.Topic != "orders:lost" || m.Reason != wire.ReasonAhead || m.Epoch != orders.epoch() {
		t.Fatalf("%+v", m)
	}
	r.commit("market:1", 2)
	if e := c.ExpectEvents("market:1", 4, 5)[1]; e.Epoch != before {
		t.Errorf("an event of the other database: %+v", e)
	}
	orders.sent["orders:kept"] = 3 // the channel of the new epoch begins empty
	orders.commit("orders:kept", 2)
	if e := c.ExpectEvents("orders:kept", 4, 5)[1]; e.Epoch != orders.epoch() {
		t.Errorf("%+v", e)
	}
	if m := heartbeat(t, c, "orders:kept"); m.EpochOf("orders:kept") != orders.epoch() || m.EpochOf("market:1") != before {
		t.Errorf("%+v", m)
	}
}

// A database that is away, or answers nobody, is said to be; the topics of the other are served as ever, old and new, and what a
// message did not bring is healed. What comes of its own by push is delivered still.
func TestShardDown(t *testing.T) {
	for _, away := range []string{"refuses", "hangs"} {
		t.Run(away, func(t *testing.T) {
			r, orders := newShardedRig(t, broadcaster.Config{LogEvents: 8})
			c := testkit.Dial(t, r.URL)
			c.Subscribe(1, "market:1", "")
			c.Expect("subscribed")
			c.Subscribe(2, "orders:1", "")
			c.Expect("subscribed")
			back := func() { orders.journal.fail(nil) }
			if away == "refuses" {
				orders.journal.fail(errors.New("away"))
			} else {
				back = orders.journal.hang()
			}
			defer back()
			testkit.Eventually(t, 20*time.Second, func() bool { return errors.Is(r.b.Ready(), broadcaster.ErrPartly) }, "readiness says so")
			if why := r.b.Ready().Error(); !strings.Contains(why, "orders:*") {
				t.Errorf("it does not say which: %s", why)
			}
			if s := r.b.State(); s.Shards[1].Up || !s.Shards[0].Up {
				t.Errorf("%+v", s.Shards)
			}
			began := time.Now()
			r.commit("market:1", 1)
			c.ExpectEvents("market:1", 1, 1)
			r.lose("market:1", 2)
			c.ExpectEvents("market:1", 2, 3)
			r.commit("market:2", 20)
			c.Subscribe(3, "market:2", r.cursor(0))
			c.Expect("subscribed")
			c.ExpectEvents("market:2", 1, 20)
			if took := time.Since(began); took > 4*time.Second { // a read that is waited for takes five
				t.Errorf("topics of the other database took %v", took)
			}
			orders.commit("orders:1", 1)
			c.ExpectEvents("orders:1", 1, 1)
			c.Subscribe(4, "orders:2", "")
			if away == "refuses" {
				if m := c.Expect("error"); m.Code != wire.CodeUnavailable || m.ID != 4 {
					t.Errorf("%+v", m)
				}
			}
			back()
			testkit.Eventually(t, 20*time.Second, r.b.Ready, "ready again")
			c.Subscribe(5, "orders:3", "")
			testkit.Eventually(t, 20*time.Second, func() bool {
				m, err := c.Read(10 * time.Second)
				if err != nil {
					t.Fatal(err)
				}
				return m.Op == "subscribed" && m.ID == 5
			}, "a topic of it can be followed")
		})
	}
}

// While one of the databases has not answered yet, clients come in and follow topics of the other. Its own are not to be had, whatever
// way they are asked for, until it answers.
func TestShardUnknown(t *testing.T) {
	r, orders := newShardedRig(t, broadcaster.Config{})
	for _, missing := range []string{"the first", "the other"} {
		t.Run(missing, func(t *testing.T) {
			first, other := &hookJournal{Journal: r.journal.Journal}, &hookJournal{Journal: orders.journal.Journal}
			gone, topic, here, known := other, "orders:1", "market:1", r
			if missing == "the first" {
				gone, topic, here, known = first, here, topic, orders
			}
			gone.fail(errors.New("away"))
			b, url, _, _ := start(t, first, r.stream, broadcaster.Config{Drain: time.Millisecond, HeadPoll: 50 * time.Millisecond, Heartbeat: 50 * time.Millisecond,
				Shards: []broadcaster.Shard{{Topics: []string{"orders:*"}, Journal: other}}})
			testkit.Eventually(t, 10*time.Second, func() bool { return errors.Is(b.Ready(), broadcaster.ErrPartly) }, "one has answered")
			c := testkit.Dial(t, url)
			c.Subscribe(1, topic, "")
			if m := c.Expect("error"); m.Code != wire.CodeUnavailable || m.ID != 1 {
				t.Fatalf("%+v", m)
			}
			response, err := http.Get(url + "/v1/topics/" + topic + "/events")
			if err != nil {
				t.Fatal(err)
			}
			response.Body.Close()
			if response.StatusCode != http.StatusServiceUnavailable || response.Header.Get("Retry-After") == "" {
				t.Errorf("events: %s", response.Status)
			}
			c.Subscribe(2, here, "")
			head := c.Expect("subscribed").Head
			known.commit(here, 1)
			c.ExpectEvents(here, head+1, head+1)
			if m := heartbeat(t, c, here); m.EpochOf(here) != known.epoch() {
				t.Errorf("%+v", m)
			}
			gone.fail(nil)
			testkit.Eventually(t, 10*time.Second, b.Ready, "both have answered")
			c.Subscribe(3, topic, "")
			c.Expect("subscribed")
		})
	}
}

// Shards that cannot be are refused, in words that say which and why.
func TestBadShards(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{})
	shard := func(topics ...string) broadcaster.Shard { return broadcaster.Shard{Topics: topics, Journal: r.journal} }
	for _, c := range []struct {
		shards []broadcaster.Shard
		want   string
	}{
		{[]broadcaster.Shard{{Topics: []string{"a"}}}, "Shards[0] needs topics and a journal"},
		{[]broadcaster.Shard{shard()}, "Shards[0] needs topics and a journal"},
		{[]broadcaster.Shard{shard("a"), shard("b*")}, `Shards[1]: pattern "b*"`},
		{[]broadcaster.Shard{shard("user:{sub}")}, "has a claim"},
		{[]broadcaster.Shard{shard("a:**"), shard("a:*")}, `"a:*" is never looked at`},
		{[]broadcaster.Shard{shard("a"), shard("b", "a")}, `"a" is never looked at`},
	} {
		if _, err := broadcaster.New(r.journal, r.stream, broadcaster.Config{Shards: c.shards}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %q", c.shards, err, c.want)
		}
	}
	if _, err := broadcaster.New(r.journal, r.stream, broadcaster.Config{Shards: []broadcaster.Shard{shard("a:b"), shard("a:*", "a:*/c"), shard("a:**")}}); err != nil {
		t.Error(err)
	}
}

// hang has every read wait until the function that is returned is called, or its own time is up.
func (j *hookJournal) hang() (end func()) {
	released, release := context.WithCancel(context.Background())
	j.mu.Lock()
	j.hanging = released
	j.mu.Unlock()
	return func() {
		j.mu.Lock()
		j.hanging = nil
		j.mu.Unlock()
		release()
	}
}
