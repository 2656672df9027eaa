package e2e

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/commitcast/commitcast/internal/testkit"
)

// A standby is promoted that never got the last events, while nobody writes anything: a client that has them is told, and so
// is one that comes with their cursor. Then everything goes on in the new history.
func TestPromotionWhileTopicsAreQuiet(t *testing.T) {
	t.Parallel()
	pg := testkit.Postgres(t)
	testkit.Migrate(t, pg.URL("postgres"))
	standby, err := pg.Replica(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer standby.Close()
	proxy := testkit.NewProxy(t, pg.Addr())
	database, redis := proxy.URL(pg.URL("postgres")), testkit.RedisURL(t)
	start(t, database, redis, "worker")
	n := start(t, database, redis, "broadcaster")
	primary, follower := connectPool(t, pg.URL("postgres")), connectPool(t, standby.URL("postgres"))
	add := func(db *pgxpool.Pool, events int) {
		t.Helper()
		for range events {
			if _, err := db.Exec(t.Context(), `SELECT commitcast.append('t', 'test', '1')`); err != nil {
				t.Fatal(err)
			}
		}
	}
	is := func(db *pgxpool.Pool, sql string) func() bool {
		return func() (v bool) {
			_ = db.QueryRow(t.Context(), sql).Scan(&v) // a server that is just starting: asked again
			return v
		}
	}
	c := testkit.Dial(t, n.URL)
	c.Subscribe(1, "t", "")
	c.Expect("subscribed")
	add(primary, 3)
	c.ExpectEvents("t", 1, 3)
	testkit.Eventually(t, 20*time.Second, is(follower, `SELECT head = 3 FROM commitcast.topic WHERE topic = 't'`), "the standby has three events")
	for _, sql := range []string{"ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()"} {
		if _, err := follower.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Eventually(t, 20*time.Second, is(primary, `SELECT count(*) = 0 FROM pg_stat_replication`), "the standby is cut off")
	add(primary, 2)
	seen := c.ExpectEvents("t", 4, 5)[1]

	pg.Kill()
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	proxy.SetTarget(standby.Addr())
	proxy.Cut()
	m := c.Expect("reset")
	if m.Topic != "t" || m.Reason != "ahead" || m.Head != 3 { // maybe in the epoch that nobody has ended yet: no event of it comes any more
		t.Errorf("%+v", m)
	}
	late := testkit.Dial(t, n.URL)
	late.Subscribe(1, "t", fmt.Sprintf("%s:%d", seen.Epoch, seen.Offset))
	if m := late.Expect("reset"); m.Head != 3 {
		t.Errorf("%+v", m)
	}
	c.Subscribe(2, "t", m.Epoch+":3")
	c.Expect("subscribed")
	add(follower, 1)
	if e := c.ExpectEvents("t", 4, 4)[0]; e.Epoch == seen.Epoch {
		t.Errorf("%+v", e)
	}
}

func connectPool(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// A replica of Redis that lags is promoted, and the old master does not know: the worker publishes to the one, the broadcaster
// listens to the other. Clients get every event, by the heads at first, and by push once the broadcaster has found the new
// master.
func TestTwoRedisMasters(t *testing.T) {
	t.Parallel()
	const user = "user both on >pass ~* &* +@all"
	master, replica := testkit.Redis(t, user), testkit.Redis(t, user)
	database := testkit.Database(t)
	pool := connectPool(t, database)
	add := func(n int) {
		t.Helper()
		for range n {
			if _, err := pool.Exec(t.Context(), `SELECT commitcast.append('t', 'test', '1')`); err != nil {
				t.Fatal(err)
			}
		}
	}
	old, young := redis.NewClient(master.Options()), redis.NewClient(replica.Options())
	defer old.Close()
	defer young.Close()
	follow := func(host, port string) {
		t.Helper()
		if err := young.ConfigSet(t.Context(), "masterauth", master.Password()).Err(); err != nil {
			t.Fatal(err)
		}
		if err := young.ReplicaOf(t.Context(), host, port).Err(); err != nil {
			t.Fatal(err)
		}
	}
	toWorker, toBroadcaster := testkit.NewProxy(t, master.URL()), testkit.NewProxy(t, master.URL())
	start(t, database, "redis://both:pass@"+toWorker.Addr, "worker")
	n := start(t, database, "redis://both:pass@"+toBroadcaster.Addr, "broadcaster")
	c := testkit.Dial(t, n.URL)
	c.Subscribe(1, "t", "")
	c.Expect("subscribed")
	host, port, err := net.SplitHostPort(master.Addr())
	if err != nil {
		t.Fatal(err)
	}
	follow(host, port)
	add(5)
	c.ExpectEvents("t", 1, 5)
	length := func(r *redis.Client) int64 {
		keys := r.Keys(t.Context(), "*:t").Val()
		if len(keys) != 1 {
			return -1
		}
		return r.XLen(t.Context(), keys[0]).Val()
	}
	testkit.Eventually(t, 20*time.Second, func() bool { return length(young) == 5 }, "the replica has five events")
	follow("NO", "ONE") // it lags from here on
	add(5)
	c.ExpectEvents("t", 6, 10)

	toWorker.SetTarget(replica.Addr())
	toWorker.Cut()
	for i := int64(11); i <= 20; i++ {
		add(1)
		c.ExpectEvents("t", i, i)
	}
	testkit.Eventually(t, 20*time.Second, func() bool { return length(young) == 20 }, "the new master has all, also what it lacked")
	if length(old) != 10 {
		t.Fatalf("the old master has %d events: the test proves nothing", length(old))
	}
	toBroadcaster.SetTarget(replica.Addr())
	toBroadcaster.Cut()
	testkit.Eventually(t, 20*time.Second, func() error {
		healed := counter(t, n, "commitcast_broadcaster_events_healed_total")
		add(1)
		head := int64(0)
		if err := pool.QueryRow(t.Context(), `SELECT coalesce(max(head), 0) + (SELECT count(*) FROM commitcast.outbox) FROM commitcast.topic`).Scan(&head); err != nil {
			return err
		}
		for {
			if e := c.Expect("event"); e.Offset >= head {
				break
			}
		}
		if more := counter(t, n, "commitcast_broadcaster_events_healed_total") - healed; more > 0 {
			return fmt.Errorf("%v events were healed", more)
		}
		return nil
	}, "events are pushed again")
}
