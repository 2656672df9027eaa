package worker

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/commitcast/commitcast/internal/services"
	"github.com/commitcast/commitcast/internal/testkit"
)

// standby makes a server that follows another and has everything of it.
func standby(t *testing.T, primary *services.Postgres, b *bench) *services.Postgres {
	t.Helper()
	r, err := primary.Replica(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	lsn := scalar[string](b, `SELECT pg_current_wal_flush_lsn()::text`)
	behind := benchOn(t, r.URL("postgres"), b.redis)
	testkit.Eventually(t, 20*time.Second, func() bool {
		return scalar[bool](behind, `SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn`, lsn)
	}, "the standby has caught up")
	return r
}

// Two standbys are promoted onto the same timeline while the old primary is still up and writes, and a database that is none
// of theirs, all with the same topic on the same Redis: four histories, of which the later two begin with what the first had. None
// sees anything of another, and a cursor of what only one of them has is refused by the others.
func TestHistoriesOnOneRedis(t *testing.T) {
	t.Parallel()
	redis := testkit.RedisURL(t)
	pg := testkit.Postgres(t)
	testkit.Migrate(t, pg.URL("postgres"))
	primary := benchOn(t, pg.URL("postgres"), redis)
	topic := topicIn(11, 0)
	_, stop := primary.run(Config{})
	for range 3 {
		primary.append(topic, `"shared"`)
	}
	primary.published(10 * time.Second)
	stop()
	all := map[string]*bench{"primary": primary, "another": benchOn(t, testkit.Database(t), redis)}
	for _, name := range []string{"standby 1", "standby 2"} {
		r := standby(t, pg, primary)
		if err := r.Promote(t.Context()); err != nil {
			t.Fatal(err)
		}
		all[name] = benchOn(t, r.URL("postgres"), redis)
		if line := scalar[string](all[name], `SELECT substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)`); line != "00000002" {
			t.Fatalf("%s is on timeline %s: the test proves nothing", name, line)
		}
	}
	stops := make([]func(), 0, len(all))
	for _, b := range all { // all at once
		_, stop := b.run(Config{})
		stops = append(stops, stop)
	}
	for range 20 {
		for name, b := range all {
			b.append(topic, `"of `+name+`"`)
		}
	}
	for name, b := range all {
		b.published(20 * time.Second)
		journal, first := b.journal(), int64(3)
		if name == "another" {
			first = 0
		}
		if len(journal[topic]) != int(first)+20 {
			t.Errorf("%s has %d events", name, len(journal[topic]))
		}
		for _, r := range journal[topic][first:] {
			if !strings.Contains(string(r.frame), `"of `+name+`"`) {
				t.Errorf("%s has %s", name, r.frame)
			}
		}
		if name == "primary" {
			first = 0 // its epoch is the first still
		}
		b.checkStream(journal, func(string) int64 { return first })
		for other, o := range all {
			var reason *string
			if err := o.pool.QueryRow(t.Context(), `SELECT commitcast.cursor_reason($1, $2, 10)`, topic, b.epoch()).Scan(&reason); err != nil {
				t.Fatal(err)
			}
			// The standbys know the primary's epoch, and refuse what it numbered after they left it.
			if refused := reason != nil && *reason == "epoch"; refused != (o != b) {
				t.Errorf("%s says %v of a cursor of %s", other, reason, name)
			}
		}
	}
	for _, stop := range stops {
		stop()
	}
}

// A failover, and then the restore of a backup from before it: the restored database counts its epochs as the promoted one
// did, and still tells them apart. Cursors from before both go on.
func TestRestoreToBeforeAFailover(t *testing.T) {
	t.Parallel()
	redis := testkit.RedisURL(t)
	pg := testkit.Postgres(t)
	testkit.Migrate(t, pg.URL("postgres"))
	topic := topicIn(12, 0)
	// write adds events as a worker would sequence them, and returns the cursor after them.
	write := func(pg *services.Postgres, n int) (epoch string, head int64) {
		b := benchOn(t, pg.URL("postgres"), redis)
		for range n {
			b.append(topic, `1`)
		}
		b.exec(`SELECT commitcast.sequence(12::smallint, 0, 1000, NULL, NULL)`)
		b.pool.Close()
		b = benchOn(t, pg.URL("postgres"), redis)
		return b.epoch(), scalar[int64](b, `SELECT head FROM commitcast.topic WHERE topic = $1`, topic)
	}
	before, at := write(pg, 2)
	if err := pg.Save(t.Context(), "before"); err != nil {
		t.Fatal(err)
	}
	r := standby(t, pg, benchOn(t, pg.URL("postgres"), redis))
	if err := r.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	promoted, seen := write(r, 3)
	if err := pg.Restore(t.Context(), "before"); err != nil {
		t.Fatal(err)
	}
	again, _ := write(pg, 2)
	restored, head := write(pg, 3)
	b := benchOn(t, pg.URL("postgres"), redis)
	reason := func(epoch string, offset int64) string {
		return scalar[string](b, `SELECT coalesce(commitcast.cursor_reason($1, $2, $3), 'valid')`, topic, epoch, offset)
	}
	t.Logf("%s, promoted %s:%d, restored %s, %s:%d", before, promoted, seen, again, restored, head)
	if head < seen || promoted[:2] != restored[:2] || promoted == restored {
		t.Fatal("the restored database is not that far, or counts its epochs otherwise: the test proves nothing")
	}
	if got := reason(promoted, seen); got != "epoch" {
		t.Errorf("a cursor of the promoted standby is %s after the restore", got)
	}
	if got := reason(before, at); got != "valid" {
		t.Errorf("a cursor from before both is %s", got)
	}
	if got := reason(restored, head); got != "valid" {
		t.Errorf("a cursor of the restored database is %s", got)
	}
}

// A worker is stopped when what it publishes is on its way and held up by the network; another takes over, publishes that and
// more; and only then it arrives. It changes nothing, nor does the stopped worker when it goes on.
func TestZombiePublishesLate(t *testing.T) {
	t.Parallel()
	b := benchOn(t, testkit.Database(t), testkit.Redis(t).URL()) // its own, since its commands are counted
	topic := topicIn(4, 0)
	sub := b.subscribe(b.stream, b.epoch(), topic)
	proxy := testkit.NewProxy(t, b.redis)
	behind := *b
	behind.redis = proxy.URL(b.redis)
	zombie := behind.spawn()
	b.append(topic, `"first"`)
	b.published(20 * time.Second)
	client := b.redisClient()
	scripts := func() string {
		stats, err := client.Info(context.Background(), "commandstats").Result()
		if err != nil {
			t.Fatal(err)
		}
		_, stats, _ = strings.Cut(stats, "cmdstat_evalsha:")
		stats, _, _ = strings.Cut(stats, ",")
		return stats
	}

	proxy.Blackhole()
	b.exec(`INSERT INTO commitcast.outbox (partition, topic, type, data) SELECT 4, $1, 'held', to_json(i) FROM generate_series(1, 500) i`, topic)
	testkit.Eventually(t, 20*time.Second, func() bool {
		return scalar[bool](b, `SELECT seq = 501 FROM commitcast.partition WHERE id = 4`)
	}, "sequenced by the worker that is to be stopped")
	testkit.Eventually(t, 20*time.Second, func() bool { return proxy.Open() > 0 }, "connected")
	sleep(t.Context(), 300*time.Millisecond) // what it publishes is on its way; if not, the count below says so
	zombie.signal(syscall.SIGSTOP)
	_, stop := b.run(Config{})
	b.append(topic, `"by the successor"`)
	b.published(20 * time.Second)
	testkit.Eventually(t, 10*time.Second, func() bool { return sub.reached(topic) == 502 }, "the successor has published everything")
	stop()
	before := b.journal()
	quiet := scripts()
	testkit.Eventually(t, 10*time.Second, func() bool { was := quiet; quiet = scripts(); return was == quiet }, "Redis is quiet")
	proxy.Resume()
	testkit.Eventually(t, 20*time.Second, func() bool { return scripts() != quiet }, "what was held up has arrived")
	zombie.signal(syscall.SIGCONT)
	b.append(topic, `"after it went on"`)
	b.published(30 * time.Second)
	after := b.journal()
	if count(after) != count(before)+1 || len(after[topic]) != 503 {
		t.Errorf("%d events, %d before", count(after), count(before))
	}
	b.checkStream(after, fromStart)
	testkit.Eventually(t, 10*time.Second, func() bool { return sub.reached(topic) == 503 }, "the last event")
	sub.noHoles(t)
}
