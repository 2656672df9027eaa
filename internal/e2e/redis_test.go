package e2e

import (
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/commitcast/commitcast/internal/services"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/wire"
)

// disposable is a worker and a broadcaster on a Redis that the test may do anything to.
type disposable struct {
	t      *testing.T
	server *services.Redis
	client *redis.Client
	pool   *pgxpool.Pool
	node   *node
}

// newDisposable starts both; the worker is the user "worker" of Redis, who may do anything at first.
func newDisposable(t *testing.T) *disposable {
	t.Helper()
	d := &disposable{t: t, server: testkit.Redis(t, "user worker on >pass ~* &* +@all")} // it is there after a restart, too
	d.client = redis.NewClient(d.server.Options())
	t.Cleanup(func() { d.client.Close() })
	database := testkit.Database(t)
	var err error
	if d.pool, err = pgxpool.New(t.Context(), database); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.pool.Close)
	u, err := url.Parse(d.server.URL())
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("worker", "pass")
	start(t, database, u.String(), "worker")
	d.node = start(t, database, d.server.URL(), "broadcaster")
	return d
}

func (d *disposable) do(args ...any) any {
	d.t.Helper()
	v, err := d.client.Do(d.t.Context(), args...).Result()
	if err != nil {
		d.t.Fatalf("%v: %v", args, err)
	}
	return v
}

// allow changes the rights of the worker.
func (d *disposable) allow(rules ...any) {
	d.t.Helper()
	d.do(append([]any{"ACL", "SETUSER", "worker"}, rules...)...)
}

func (d *disposable) append(topic string, n int) {
	d.t.Helper()
	for range n {
		if _, err := d.pool.Exec(d.t.Context(), `SELECT commitcast.append($1, 'test', '1')`, topic); err != nil {
			d.t.Fatal(err)
		}
	}
}

func (d *disposable) holds(sql string, args ...any) bool {
	d.t.Helper()
	var v bool
	if err := d.pool.QueryRow(d.t.Context(), sql, args...).Scan(&v); err != nil {
		d.t.Fatal(err)
	}
	return v
}

// published waits until Redis has taken everything that it is to have.
func (d *disposable) published() {
	d.t.Helper()
	testkit.Eventually(d.t, 20*time.Second, func() bool {
		return d.holds(`SELECT (SELECT bool_and(seq = published) FROM commitcast.partition)
			AND NOT EXISTS (SELECT FROM commitcast.outbox) AND NOT EXISTS (SELECT FROM commitcast.parked)`)
	}, "everything published")
}

func (d *disposable) key(topic string) string {
	return fmt.Sprintf("cc:{p%d}:%s:%s", wire.Partition(topic), d.epoch(), topic)
}

func (d *disposable) epoch() (epoch string) {
	d.t.Helper()
	if err := d.pool.QueryRow(d.t.Context(), `SELECT name FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1`).Scan(&epoch); err != nil {
		d.t.Fatal(err)
	}
	return epoch
}

// Whatever is done to the keys of Redis, or to the right to use them: a client sees the next events and nothing else,
// and so does one that comes and asks for all of them.
func TestRedisTamperedWith(t *testing.T) {
	d := newDisposable(t)
	c := testkit.Dial(t, d.node.URL)
	c.Subscribe(1, "t", "")
	c.Expect("subscribed")
	d.append("t", 5)
	c.ExpectEvents("t", 1, 5)
	d.published()
	n, key := int64(5), d.key("t")
	nothing := func() {}
	for _, harm := range []struct {
		name      string
		do, after func()
	}{
		{"the key is deleted", func() { d.do("DEL", key) }, nothing},
		{"all keys, one by one", func() {
			for _, k := range d.do("KEYS", "*").([]any) {
				d.do("DEL", k)
			}
		}, nothing},
		{"another type in its place", func() { d.do("DEL", key); d.do("SET", key, "x") }, nothing},
		{"the tail is deleted", func() { d.do("XDEL", key, fmt.Sprintf("%d-0", n)) }, nothing},
		{"trimmed to nothing", func() { d.do("XTRIM", key, "MAXLEN", "0") }, nothing},
		{"an entry in the middle is deleted", func() { d.do("XDEL", key, fmt.Sprintf("%d-0", n-1)) }, nothing},
		{"it expires", func() { d.do("PEXPIRE", key, "1") }, nothing},
		{"no right to announce", func() { d.allow("-spublish") }, func() { d.allow("+spublish") }},
		{"no memory", func() { d.do("CONFIG", "SET", "maxmemory-policy", "noeviction", "maxmemory", "100kb") },
			func() { d.do("CONFIG", "SET", "maxmemory", "0") }},
		{"no memory, and the oldest is evicted", func() { d.do("CONFIG", "SET", "maxmemory-policy", "allkeys-lru", "maxmemory", "100kb") },
			func() { d.do("CONFIG", "SET", "maxmemory", "0") }},
	} {
		harm.do()
		for range 3 {
			d.append("t", 1)
			n++
			c.ExpectEvents("t", n, n)
		}
		late := testkit.Dial(t, d.node.URL)
		late.Subscribe(1, "t", d.epoch()+":0")
		late.Expect("subscribed")
		late.ExpectEvents("t", 1, n)
		late.WS.CloseNow()
		harm.after()
		d.append("t", 1)
		n++
		c.ExpectEvents("t", n, n)
		d.published()
		if t.Failed() {
			t.Fatalf("after: %s", harm.name)
		}
	}
	if d.holds(`SELECT EXISTS (SELECT FROM commitcast.dead_letter)`) {
		t.Error("trouble of Redis made a dead letter")
	}
}

// Redis is restarted from a dump in which it was at offset 5 while clients were at 10, as a replica that is promoted or a
// backup is: a client sees 11, 12, 13 … and nothing else, one that comes sees all, and the stream is whole again.
func TestRedisRestoredFromAnOlderDump(t *testing.T) {
	d := newDisposable(t)
	c := testkit.Dial(t, d.node.URL)
	c.Subscribe(1, "t", "")
	c.Expect("subscribed")
	d.append("t", 5)
	c.ExpectEvents("t", 1, 5)
	d.published()
	d.do("SAVE")
	d.append("t", 5)
	c.ExpectEvents("t", 6, 10)
	d.published()

	if err := d.server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := d.client.XLen(t.Context(), d.key("t")).Val(); n != 5 {
		t.Fatalf("Redis came back with %d events, not 5: the test proves nothing", n)
	}
	early := testkit.Dial(t, d.node.URL) // before anything is published
	early.Subscribe(1, "t", d.epoch()+":3")
	early.Expect("subscribed")
	early.ExpectEvents("t", 4, 10)
	for n := int64(11); n <= 30; n++ {
		d.append("t", 1)
		c.ExpectEvents("t", n, n)
		early.ExpectEvents("t", n, n)
	}
	late := testkit.Dial(t, d.node.URL)
	late.Subscribe(1, "t", d.epoch()+":0")
	late.Expect("subscribed")
	late.ExpectEvents("t", 1, 30)
	d.published()
	entries := d.client.XRange(t.Context(), d.key("t"), "-", "+").Val()
	for i, e := range entries {
		if e.ID != fmt.Sprintf("%d-0", i+1) {
			t.Fatalf("entry %d of the stream is %s", i+1, e.ID)
		}
	}
	if len(entries) != 30 {
		t.Errorf("the stream holds %d events, not 30", len(entries))
	}
	d.append("t", 1)
	for _, client := range []*testkit.Client{c, early, late} {
		client.ExpectEvents("t", 31, 31)
	}
}

// A topic that Redis refuses is served from the journal, set aside and given up; its neighbours by push. Once the right
// is there and the topic is redriven it is pushed again.
func TestSetAsideTopicIsServedFromTheJournal(t *testing.T) {
	d := newDisposable(t)
	d.allow("resetkeys", "resetchannels", "~*:good", "~*:canary", "&*:good", "&*:canary", "&*:tick", "~*:tick")
	c := testkit.Dial(t, d.node.URL)
	c.Subscribe(1, "bad", "")
	c.Expect("subscribed")
	g := testkit.Dial(t, d.node.URL)
	g.Subscribe(1, "good", "")
	g.Expect("subscribed")
	const setAside = `SELECT EXISTS (SELECT FROM commitcast.parked WHERE topic = 'bad')`
	for n := int64(1); n <= 3; n++ {
		d.append("bad", 1)
		d.append("good", 1)
		g.ExpectEvents("good", n, n)
		c.ExpectEvents("bad", n, n)
	}
	testkit.Eventually(t, 10*time.Second, func() bool { return d.holds(setAside) }, "set aside")
	if d.client.Exists(t.Context(), d.key("bad")).Val() != 0 {
		t.Error("Redis has the topic: the test proves nothing")
	}
	late := testkit.Dial(t, d.node.URL)
	late.Subscribe(1, "bad", d.epoch()+":0")
	late.Expect("subscribed")
	late.ExpectEvents("bad", 1, 3)

	d.allow("~*", "&*")
	d.published()
	d.append("bad", 1)
	c.ExpectEvents("bad", 4, 4)
	late.ExpectEvents("bad", 4, 4)
	d.published()
	if n := d.client.XLen(t.Context(), d.key("bad")).Val(); n != 4 {
		t.Errorf("Redis has %d events of the topic, not 4", n)
	}
}
