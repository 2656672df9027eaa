package e2e

import (
	"context"
	"fmt"
	"maps"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/wire"
)

// A subscriber of a hot keyed topic that is stalled, while every key changes again and again, catches up with about one event of each
// key, and then has what the table has; one that does not conflate gets all of them.
// COMMITCAST_CONFLATE=200000 says how many events.
func TestStalledConflatingSubscriber(t *testing.T) {
	events := 20_000
	if n, err := strconv.Atoi(os.Getenv("COMMITCAST_CONFLATE")); err == nil {
		events = n
	}
	const keys, batch = 1_000, 2_000
	database := testkit.Database(t)
	start(t, database, testkit.RedisURL(t), "worker")
	n := start(t, database, testkit.RedisURL(t), "broadcaster", "--write-timeout=2m")
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	exec("CREATE TABLE price (key text PRIMARY KEY, n int)")
	exec("INSERT INTO price SELECT 'k' || i, 0 FROM generate_series(0, $1::int - 1) i", keys)
	stalled, steady := testkit.Dial(t, n.URL), testkit.Dial(t, n.URL)
	stalled.Send(`{"op":"subscribe","id":1,"topic":"prices","conflate":true}`)
	steady.Send(`{"op":"subscribe","id":1,"topic":"prices"}`)
	stalled.Expect("subscribed")
	steady.Expect("subscribed")
	for i := 0; i < events; i += batch { // each batch changes each key twice
		exec(`WITH new AS (SELECT 'k' || i % $3::int AS key, i FROM generate_series($1::int + 1, $2) i ORDER BY i),
			told AS (SELECT count(commitcast.append('prices', 'price', json_build_object('n', i, 'pad', repeat('x', 100)), key)) FROM new)
			UPDATE price p SET n = latest.i FROM (SELECT key, max(i) AS i FROM new GROUP BY key) latest, told WHERE p.key = latest.key`, i, i+batch, keys)
	}
	steady.ExpectEvents("prices", 1, int64(events)) // while the other one reads nothing
	table := make(map[string]string)
	rows, err := conn.Query(t.Context(), "SELECT key, n FROM price")
	if err != nil {
		t.Fatal(err)
	}
	var key string
	var value int
	if _, err := pgx.ForEachRow(rows, []any{&key, &value}, func() error { table[key] = fmt.Sprint(value); return nil }); err != nil {
		t.Fatal(err)
	}
	state := make(map[string]string)
	var at, shown, leftOut int64
	var together []wire.Message
	for began := time.Now(); at < int64(events); {
		m := stalled.Expect("event")
		last := at
		if n := len(together); n > 0 {
			last = together[n-1].Offset
		}
		if m.Offset-1-m.Conflated != last {
			t.Fatalf("%d, %d left out, after %d", m.Offset, m.Conflated, last)
		}
		shown++
		leftOut += m.Conflated
		if together = append(together, m); m.More {
			continue
		}
		for _, e := range together {
			var n int
			if _, err := fmt.Sscanf(string(e.Data), `{"n":%d`, &n); err != nil {
				t.Fatalf("%s: %v", e.Data, err)
			}
			state[e.Key] = fmt.Sprint(n)
		}
		if at, together = m.Offset, nil; at == int64(events) {
			t.Logf("%d events in %d frames, in %v", events, shown, time.Since(began))
		}
	}
	if !maps.Equal(state, table) || shown+leftOut != int64(events) || shown > int64(events)/2 {
		t.Errorf("%d frames, %d left out, of %d events; %d keys of %d", shown, leftOut, events, len(state), len(table))
	}
}
