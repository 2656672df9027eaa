package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/outbox"
)

// What clients have missed is read from a replica: as far as that has replayed, and from the primary beyond, exactly and at once; also
// when its replay is paused, and when it is gone. A snapshot read there is old, and its stream follows it exactly.
func TestReplayFromAReplica(t *testing.T) {
	t.Parallel()
	pg := testkit.Postgres(t)
	database := pg.URL("postgres")
	testkit.Migrate(t, database)
	standby, err := pg.Replica(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer standby.Close()
	server := testkit.Redis(t)
	cache := redis.NewClient(server.Options())
	defer cache.Close()
	start(t, database, server.URL(), "worker")
	primary, follower := connectPool(t, database), connectPool(t, standby.URL("postgres"))
	add := func(n, head int) {
		t.Helper()
		if _, err := primary.Exec(t.Context(), `SELECT commitcast.append('t', 'test', to_json(i)) FROM generate_series(1, $1::int) i`, n); err != nil {
			t.Fatal(err)
		}
		published(t, primary, head)
		cache.FlushAll(t.Context()) // what was missed has to come from the journal
	}
	// fresh is a client of a new broadcaster, which has nothing in memory, and what that says of the replica afterwards.
	fresh := func(after string, from, to int64) (asked, knew float64) {
		t.Helper()
		n := start(t, database, server.URL(), "broadcaster", "--replica-url="+standby.URL("postgres"))
		c := testkit.Dial(t, n.URL)
		began := time.Now()
		if after == "" {
			after = c.Hello.Epoch + ":0"
		}
		c.Subscribe(1, "t", after)
		c.Expect("subscribed")
		c.ExpectEvents("t", from, to)
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("events %d to %d came after %v", from, to, took)
		}
		return metric(t, n, "commitcast_replica_reads_total"), metric(t, n, "commitcast_replica_reads_answered_total")
	}

	add(20, 20)
	testkit.Eventually(t, 20*time.Second, func() (v bool) {
		_ = follower.QueryRow(t.Context(), `SELECT head = 20 FROM commitcast.topic WHERE topic = 't'`).Scan(&v)
		return v
	}, "the replica has twenty events")
	if asked, knew := fresh("", 1, 20); asked == 0 || knew != asked {
		t.Errorf("the replica was asked %v times and knew %v times", asked, knew)
	}

	if _, err := follower.Exec(t.Context(), `SELECT pg_wal_replay_pause()`); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 20*time.Second, func() (v bool) {
		_ = follower.QueryRow(t.Context(), `SELECT pg_get_wal_replay_pause_state() = 'paused'`).Scan(&v)
		return v
	}, "the replica has stopped to replay")
	add(20, 40)
	if asked, knew := fresh("", 1, 40); knew == 0 || knew >= asked {
		t.Errorf("the replica, which has half of it, was asked %v times and knew %v times", asked, knew)
	}
	positions, err := outbox.Snapshot(t.Context(), follower, []string{"t"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := positions[0].Epoch + ":20"; positions[0].Cursor != want || len(positions[0].Pending) != 0 {
		t.Fatalf("a snapshot of the replica: %+v, want the cursor %s", positions[0], want)
	}
	if _, knew := fresh(positions[0].Cursor, 21, 40); knew != 0 {
		t.Errorf("the replica knew %v reads of what it does not have", knew)
	}

	standby.Kill()
	if asked, knew := fresh("", 1, 40); asked == 0 || knew != 0 {
		t.Errorf("the replica, which is gone, was asked %v times and knew %v times", asked, knew)
	}
}

// published waits until so many events are published.
func published(t *testing.T, pool *pgxpool.Pool, n int) {
	t.Helper()
	testkit.Eventually(t, 20*time.Second, func() error {
		var seq, done int
		err := pool.QueryRow(t.Context(), `SELECT sum(seq), sum(published) FROM commitcast.partition`).Scan(&seq, &done)
		if err == nil && (seq != n || done != n) {
			err = fmt.Errorf("%d events are sequenced and %d published", seq, done)
		}
		return err
	}, "%d events are published", n)
}
