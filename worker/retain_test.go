package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/internal/testkit"
)

func TestPast(t *testing.T) {
	now := time.Date(2025, 3, 10, 15, 0, 0, 0, time.UTC)
	var leaves []leaf
	for day := 1; day <= 13; day++ { // the newest three are made ahead
		leaves = append(leaves, leaf{name: fmt.Sprint(day), day: time.Date(2025, 3, day, 0, 0, 0, 0, time.UTC), attached: true, bytes: 10})
	}
	for name, c := range map[string]struct {
		age   time.Duration
		bytes int64
		want  string
	}{
		"age":                {7 * 24 * time.Hour, -1, "12"},
		"least age":          {24 * time.Hour, -1, "12345678"},
		"size":               {-1, 100, "123"},
		"both, age wins":     {5 * 24 * time.Hour, 100, "1234"},
		"both, size wins":    {7 * 24 * time.Hour, 80, "12345"},
		"never the last two": {time.Hour, 1, "12345678"},
		"for ever":           {-1, -1, ""},
	} {
		got := ""
		for _, l := range past(leaves, now, c.age, c.bytes) {
			got += l.name
		}
		if got != c.want {
			t.Errorf("%s: leaves %s, want %s", name, got, c.want)
		}
	}
	leaves[0].doomed, leaves[1].attached = true, false // on their way already: not counted, not chosen again
	if got := past(leaves, now, -1, 100); len(got) != 1 || got[0].name != "3" {
		t.Errorf("%+v", got)
	}
}

// age makes a leaf for a day in the past, and moves there what the journal holds of a topic up to an offset.
func (b *bench) age(days int, topic string, upTo int64) (leaf string) {
	b.t.Helper()
	day := time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, -days)
	leaf = "journal_" + day.Format("20060102")
	if !b.hasLeaf(leaf) {
		b.exec(`CREATE TABLE commitcast.` + leaf + ` (LIKE commitcast.journal)`)
		b.exec(`ALTER TABLE commitcast.` + leaf + ` ADD PRIMARY KEY (topic, "offset")`)
		b.exec(`CREATE UNIQUE INDEX ON commitcast.` + leaf + ` (partition, seq)`)
		b.exec(fmt.Sprintf(`ALTER TABLE commitcast.journal ATTACH PARTITION commitcast.%s FOR VALUES FROM ('%s') TO ('%s')`,
			leaf, day.Format(time.RFC3339), day.AddDate(0, 0, 1).Format(time.RFC3339)))
	}
	b.exec(`UPDATE commitcast.journal SET sequenced_at = $3 WHERE topic = $1 AND "offset" <= $2`, topic, upTo, day.Add(time.Hour))
	return leaf
}

func (b *bench) hasLeaf(name string) bool {
	b.t.Helper()
	return scalar[bool](b, `SELECT to_regclass('commitcast.' || $1) IS NOT NULL`, name)
}

// upkept is a worker that only looks after the journal.
func (b *bench) upkept(cfg Config) *Worker {
	b.t.Helper()
	cfg.Logger = testLogger(b.t)
	w, err := New(b.least, b.stream, cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := w.open(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(w.pool.Close)
	return w
}

// publish sequences and publishes n events of a topic, with a worker for the time it takes.
func (b *bench) publish(topic string, n int) {
	b.t.Helper()
	_, stop := b.run(Config{})
	b.exec(`INSERT INTO commitcast.outbox (partition, topic, type, data)
		SELECT commitcast.partition_of($1), $1, 'e', to_json(i) FROM generate_series(1, $2) i`, topic, n)
	b.published(10 * time.Second)
	stop()
}

// Leaves leave by age and by size, never with unpublished events; what is set aside goes to the dead letters, from which
// redrive publishes it.
func TestRetention(t *testing.T) {
	b := newBench(t)
	b.publish("old", 10)
	b.publish("young", 10)
	old, young := b.age(20, "old", 10), b.age(3, "young", 10)
	w := b.upkept(Config{})

	b.exec(`UPDATE commitcast.partition SET published = 9 WHERE id = commitcast.partition_of('old')`)
	if err := w.retain(t.Context()); err != nil || !b.hasLeaf(old) {
		t.Fatalf("a leaf with an unpublished event: %v, kept %v", err, b.hasLeaf(old))
	}
	b.exec(`UPDATE commitcast.partition SET published = seq`)
	b.exec(`INSERT INTO commitcast.parked (topic, partition, parked_from, error, died_at) VALUES ('old', commitcast.partition_of('old'), 7, 'no', now())`)
	if err := w.retain(t.Context()); err != nil || b.hasLeaf(old) || !b.hasLeaf(young) {
		t.Fatalf("%v; old leaf there: %v, young: %v", err, b.hasLeaf(old), b.hasLeaf(young))
	}
	if n := scalar[int](b, `SELECT count(*) FROM commitcast.dead_letter WHERE topic = 'old' AND "offset" BETWEEN 7 AND 10`); n != 4 {
		t.Errorf("%d of 4 events that were set aside are kept", n)
	}
	if err := b.upkept(Config{RetentionBytes: 1}).retain(t.Context()); err != nil || b.hasLeaf(young) {
		t.Errorf("by size: %v, there: %v", err, b.hasLeaf(young))
	}

	// Redriven, from the dead letters, onto a stream that holds nothing; then new events follow.
	if err := b.redisClient().FlushDB(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	if taken, err := Redrive(t.Context(), openPool(t, testkit.As(t, b.url, "operator"))); err != nil || len(taken) != 1 {
		t.Fatal(taken, err)
	}
	sub := b.subscribe(b.stream, b.epoch(), "old")
	sub.last["old"] = 6
	b.run(Config{})
	testkit.Eventually(t, 20*time.Second, func() bool { return sub.reached("old") == 10 }, "redriven")
	b.append("old", `1`)
	testkit.Eventually(t, 10*time.Second, func() bool { return sub.reached("old") == 11 }, "the next event")
	sub.noHoles(t)
}

// A leaf that somebody reads stays until they are done; while they read, and while leaves are made and dropped again and
// again, no sequencing waits. Interrupted between any two steps, and run by two at once, it comes to the same.
func TestRetentionBehindAReader(t *testing.T) {
	b := newBench(t)
	b.publish("old", 10)
	names := []string{b.age(20, "old", 5)}
	names = append(names, b.age(30, "none", 0))
	reader, err := pgx.Connect(t.Context(), b.url)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close(context.Background())
	rows := func() (n int) {
		t.Helper()
		if err := reader.QueryRow(t.Context(), `SELECT count(*) FROM commitcast.journal`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if _, err := reader.Exec(t.Context(), "BEGIN ISOLATION LEVEL REPEATABLE READ"); err != nil {
		t.Fatal(err)
	}
	if n := rows(); n != 10 {
		t.Fatalf("the reader sees %d events", n)
	}

	topic := topicIn(7, 0)
	sub := b.subscribe(b.stream, b.epoch(), topic)
	b.run(Config{})
	one, two := b.upkept(Config{}), b.upkept(Config{})
	upkeep := func(w *Worker) {
		if err := w.retain(context.Background()); err != nil && !errors.Is(err, errLeafBusy) {
			t.Error(err)
		}
		if _, err := w.pool.Exec(context.Background(), `SELECT commitcast.ensure_leaves(5)`); err != nil {
			t.Error(err)
		}
	}
	var slowest time.Duration
	for i := range int64(12) {
		var both sync.WaitGroup
		both.Go(func() { upkeep(one) }) // waited for below
		both.Go(func() { upkeep(two) })
		b.append(topic, `1`)
		start := time.Now()
		testkit.Eventually(t, 5*time.Second, func() bool { return sub.reached(topic) == i+1 }, "event %d", i+1)
		slowest = max(slowest, time.Since(start))
		both.Wait()
	}
	t.Logf("slowest event while leaves are made and dropped behind a reader: %v", slowest)
	if slowest > 2*time.Second {
		t.Errorf("an event waited %v", slowest)
	}
	for _, name := range names {
		if !b.hasLeaf(name) {
			t.Errorf("%s is gone while it is being read", name)
		}
	}
	if _, err := reader.Exec(t.Context(), "COMMIT"); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 10*time.Second, func() bool {
		upkeep(one)
		return !b.hasLeaf(names[0]) && !b.hasLeaf(names[1])
	}, "the leaves are dropped")
	// Detached and then interrupted: the next run drops it. One that somebody else has detached is theirs.
	ours, theirs := b.age(20, "none", 0), b.age(21, "none", 0)
	b.exec(`SELECT commitcast.doom_leaf('commitcast.` + ours + `')`)
	for _, name := range []string{ours, theirs} {
		b.exec(`ALTER TABLE commitcast.journal DETACH PARTITION commitcast.` + name)
	}
	upkeep(two)
	if b.hasLeaf(ours) || !b.hasLeaf(theirs) {
		t.Errorf("detached by us: there %v; by somebody else: there %v", b.hasLeaf(ours), b.hasLeaf(theirs))
	}
}
