package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/internal/testkit"
)

// exec1 runs one statement on a connection of its own.
func exec1(t *testing.T, database, sql string, args ...any) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

// hold leaves a transaction open that has written, until the test's end.
func hold(t *testing.T, database, table string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	for _, sql := range []string{"CREATE TABLE " + table + " (i int)", "BEGIN ISOLATION LEVEL REPEATABLE READ", "INSERT INTO " + table + " VALUES (1)"} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
}

// An idle transaction that has written, in this database and in another, open all the time, and one that has appended
// an event and does not commit: nobody else's event waits.
func TestIdleTransactionsDelayNobody(t *testing.T) {
	database, redis := testkit.Database(t), testkit.RedisURL(t)
	start(t, database, redis, "worker")
	n := start(t, database, redis, "broadcaster")
	hold(t, database, "here")
	hold(t, testkit.EmptyDatabase(t), "elsewhere")
	appender, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer appender.Close(context.Background())
	if _, err := appender.Exec(t.Context(), "BEGIN"); err != nil {
		t.Fatal(err)
	}
	if _, err := appender.Exec(t.Context(), "SELECT commitcast.append('t', 'late', '0')"); err != nil {
		t.Fatal(err)
	}
	c := testkit.Dial(t, n.URL)
	c.Subscribe(1, "t", "")
	c.Expect("subscribed")
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	const events = 200
	var took []time.Duration
	for i := int64(1); i <= events; i++ {
		if _, err := conn.Exec(t.Context(), "SELECT commitcast.append('t', 'test', $1::json)", fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
		committed := time.Now()
		m := c.ExpectEvents("t", i, i)[0]
		took = append(took, time.Since(committed))
		if string(m.Data) != fmt.Sprint(i) {
			t.Fatalf("event %d is %s", i, m.Data)
		}
	}
	slices.Sort(took)
	// Whoever waited for one of the transactions would wait to the test's end; a busy machine may well take a second or two.
	if took[events/2] > 100*time.Millisecond || took[events-1] > 10*time.Second {
		t.Errorf("median %v, slowest %v", took[events/2], took[events-1])
	}
	if _, err := appender.Exec(t.Context(), "COMMIT"); err != nil {
		t.Fatal(err)
	}
	if m := c.ExpectEvents("t", events+1, events+1)[0]; m.Type != "late" {
		t.Errorf("%+v", m)
	}
	t.Logf("by sweep, commit to socket: median %v, slowest %v", took[events/2], took[events-1])
}

// Odd JSON reaches the client as one line of what the writer wrote.
func TestOddJSONOnTheWire(t *testing.T) {
	database := testkit.Database(t)
	exec1(t, database, fmt.Sprintf(`ALTER DATABASE %s SET default_transaction_isolation = 'repeatable read'`, pgx.Identifier{databaseName(t, database)}.Sanitize()))
	exec1(t, database, fmt.Sprintf(`ALTER DATABASE %s SET synchronous_commit = off`, pgx.Identifier{databaseName(t, database)}.Sanitize()))
	n := start(t, database, "", "all")
	c := testkit.Dial(t, n.URL)
	c.Subscribe(1, "odd", "")
	c.Expect("subscribed")
	for i, data := range []string{"{\n  \"a\": [1,\r\n\t2]\n}", `"\u0000"`, `"\ud800"`, `1e400`, `"\u2028"`, `"` + "\u2028" + `"`, `{"a":1,"a":2}`} {
		exec1(t, database, "SELECT commitcast.append('odd', 'test', $1::text::json)", data)
		m := c.ExpectEvents("odd", int64(i+1), int64(i+1))[0]
		want := data
		if i == 0 {
			want = `{"a":[1,2]}`
		}
		if string(m.Data) != want || !json.Valid(m.Data) {
			t.Errorf("%q arrives as %q", data, m.Data)
		}
	}
}

func databaseName(t *testing.T, url string) string {
	t.Helper()
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	return config.Database
}
