package outbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/outbox"
)

// holdings is a database with many rows, of which a view shows a few.
func holdings(t *testing.T, change ...func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	pool := fresh(t, change...)
	exec(t, pool, `CREATE TABLE holding (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, market int NOT NULL, shares bigint NOT NULL,
		updated_at timestamptz NOT NULL DEFAULT clock_timestamp())`)
	exec(t, pool, `CREATE INDEX ON holding (market)`)
	exec(t, pool, `INSERT INTO holding (market, shares) SELECT i % 2000, i FROM generate_series(1, 50000) i`)
	exec(t, pool, `INSERT INTO commitcast.topic SELECT 'market:' || i, commitcast.partition_of('market:' || i), 1, (SELECT max(name) FROM commitcast.epoch) FROM generate_series(0, 1999) i`)
	// Not VACUUM: it runs in no transaction, and the test needs statistics only.
	exec(t, pool, `ANALYZE holding`)
	exec(t, pool, `ANALYZE commitcast.topic`)
	return pool
}

func sumUp(hash bool) func(r *http.Request) (outbox.DigestQuery, error) {
	third := ""
	if hash {
		third = `, commitcast.hash_rows(id || ' ' || shares)`
	}
	return func(r *http.Request) (outbox.DigestQuery, error) {
		return outbox.DigestQuery{SQL: `SELECT count(*), max(updated_at)` + third + ` FROM holding WHERE market = $1`,
			Args: []any{r.URL.Query().Get("market")}}, nil
	}
}

func marketView(t *testing.T, db outbox.Database, hash bool) *outbox.View {
	t.Helper()
	return accountView(t, db, func(c *outbox.ViewConfig) {
		c.Topic = func(r *http.Request) (string, error) { return "market:" + r.URL.Query().Get("market"), nil }
		c.State = func(r *http.Request, tx pgx.Tx) (any, error) {
			rows, _ := tx.Query(r.Context(), `SELECT shares FROM holding WHERE market = $1 ORDER BY id`, r.URL.Query().Get("market"))
			return pgx.CollectRows(rows, pgx.RowTo[int64])
		}
		c.Digest = sumUp(hash)
	})
}

// statements counts what is sent, and keeps it.
type statements struct {
	mu   sync.Mutex
	sent []pgx.TraceQueryStartData
}

func (s *statements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = append(s.sent, q)
	return ctx
}
func (s *statements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (s *statements) take() []pgx.TraceQueryStartData {
	s.mu.Lock()
	defer s.mu.Unlock()
	sent := s.sent
	s.sent = nil
	return sent
}

// An unchanged poll, of digest or snapshot, is one statement, which reads by indexes what belongs to the view.
func TestUnchangedPollIsOneIndexedRead(t *testing.T) {
	counter := &statements{}
	pool := holdings(t, func(c *pgxpool.Config) { c.ConnConfig.Tracer = counter })
	view := marketView(t, pool, true)
	for name, h := range map[string]http.Handler{"digest": view.DigestHandler(), "snapshot": view.SnapshotHandler()} {
		first := ask(h, "GET", "/?market=7", "")
		if first.status != 200 {
			t.Fatalf("%s: %d %s", name, first.status, first.text)
		}
		counter.take()
		if again := ask(h, "GET", "/?market=7", "", "If-None-Match", first.header.Get("ETag")); again.status != 304 {
			t.Errorf("%s: %d %s", name, again.status, again.text)
		}
		sent := counter.take()
		if len(sent) != 1 {
			t.Fatalf("%s: %d statements: %+v", name, len(sent), sent)
		}
		plan := one[string](t, pool, `EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) `+sent[0].SQL, sent[0].Args...)
		var nodes []struct{ Plan map[string]any }
		if err := json.Unmarshal([]byte(plan), &nodes); err != nil {
			t.Fatal(err)
		}
		for _, table := range scannedWhole(nodes[0].Plan) {
			if table == "holding" || table == "topic" || table == "outbox" {
				t.Errorf("%s: reads the whole of %s: %s", name, table, plan)
			}
		}
		// 25 rows on as many pages, and the way to them; the whole table would be more than 300.
		if blocks := nodes[0].Plan["Shared Hit Blocks"].(float64) + nodes[0].Plan["Shared Read Blocks"].(float64); blocks > 100 {
			t.Errorf("%s: reads %v blocks", name, blocks)
		}
	}
}

// scannedWhole names the tables that a plan reads from one end to the other.
func scannedWhole(plan map[string]any) (tables []string) {
	if plan["Node Type"] == "Seq Scan" {
		tables = append(tables, fmt.Sprint(plan["Relation Name"]))
	}
	children, _ := plan["Plans"].([]any)
	for _, child := range children {
		tables = append(tables, scannedWhole(child.(map[string]any))...)
	}
	return tables
}

// What changes behind the outbox's back is found; what cancels out, by the hash. An event moves the cursor as well.
func TestDigestFindsChanges(t *testing.T) {
	pool := holdings(t)
	rough, exact := marketView(t, pool, false).DigestHandler(), marketView(t, pool, true).DigestHandler()
	const poll = "/?market=7"
	first := ask(exact, "GET", poll, "")
	if first.body["cursor"] != one[string](t, pool, `SELECT name || ':1' FROM commitcast.epoch`) || first.body["rows"] != json.Number("25") ||
		len(fmt.Sprint(first.body["digest"])) != 12 || first.body["modified"] == nil {
		t.Fatalf("%s", first.text)
	}
	for _, c := range []struct {
		name, sql string
		rough     bool // found without a hash
	}{
		{"an update that says so", `UPDATE holding SET shares = shares + 1, updated_at = clock_timestamp() WHERE id = 7`, true},
		{"an insert", `INSERT INTO holding (market, shares) VALUES (7, 1)`, true},
		{"a delete of an old row", `DELETE FROM holding WHERE id = 2007`, true},
		{"an update that does not say so", `UPDATE holding SET shares = shares + 1 WHERE id = 7`, false},
		{"two that cancel out", `UPDATE holding SET shares = shares + CASE id WHEN 7 THEN 5 ELSE -5 END WHERE id IN (7, 4007)`, false},
		{"rows that change places", `UPDATE holding SET shares = CASE id WHEN 7 THEN (SELECT shares FROM holding WHERE id = 4007) ELSE (SELECT shares FROM holding WHERE id = 7) END WHERE id IN (7, 4007)`, false},
		{"another market's row", `UPDATE holding SET shares = 0, updated_at = clock_timestamp() WHERE market = 8`, false},
	} {
		before := map[string]reply{"rough": ask(rough, "GET", poll, ""), "exact": ask(exact, "GET", poll, "")}
		exec(t, pool, c.sql)
		for name, h := range map[string]http.Handler{"rough": rough, "exact": exact} {
			want := 200
			if name == "rough" && !c.rough || c.name == "another market's row" {
				want = 304
			}
			after := ask(h, "GET", poll, "", "If-None-Match", before[name].header.Get("ETag"))
			if after.status != want {
				t.Errorf("%s, %s: %d %s, want %d", c.name, name, after.status, after.text, want)
			}
			if want == 200 && after.body["cursor"] != before[name].body["cursor"] {
				t.Errorf("%s: the cursor moved: %s", c.name, after.text)
			}
		}
	}
	// A new epoch alone changes nothing: the client has what it had.
	tag := ask(exact, "GET", poll, "").header.Get("ETag")
	exec(t, pool, `SELECT commitcast.begin_epoch(NULL, 'test')`)
	if got := ask(exact, "GET", poll, "", "If-None-Match", tag); got.status != 304 {
		t.Errorf("after a new epoch: %d %s", got.status, got.text)
	}
	// An event that waits: rows are newer than the cursor, and nothing is said until it has its offset.
	snapshots := marketView(t, pool, true).SnapshotHandler()
	settled := ask(snapshots, "GET", poll, "").header.Get("ETag")
	exec(t, pool, `SELECT commitcast.append('market:7', 't', '1')`)
	if got := ask(snapshots, "GET", poll, "", "If-None-Match", settled); got.status != 200 {
		t.Errorf("a snapshot whose pending ids have changed: %d", got.status)
	}
	ask(exact, "GET", poll, "").is(t, 503, outbox.ProblemBehind)
	sequenceAll(t, pool)
	if got := ask(exact, "GET", poll, "", "If-None-Match", tag); got.status != 200 || !strings.HasSuffix(fmt.Sprint(got.body["cursor"]), ":2") {
		t.Errorf("after an event: %d %s", got.status, got.text)
	}
	ask(accountView(t, pool).DigestHandler(), "GET", "/account?id=1", "").is(t, 404, "")
}

// The hash does not depend on order, nor on how the work is spread, and can be computed elsewhere.
func TestHashRows(t *testing.T) {
	pool := fresh(t)
	for _, order := range []string{"ASC", "DESC"} {
		// sha256("a") = ca978112ca1b…, sha256("b") = 3e23e8160039…
		if got := one[string](t, pool, `SELECT commitcast.hash_rows(v ORDER BY v `+order+`) FROM (VALUES ('a'), ('b'), (NULL)) t (v)`); got != fmt.Sprintf("%012x", (0xca978112ca1b+0x3e23e8160039)%(1<<48)) {
			t.Errorf("%s: %s", order, got)
		}
	}
	if got := one[string](t, pool, `SELECT commitcast.hash_rows(v) FROM (SELECT 'x' WHERE false) t (v)`); got != "000000000000" {
		t.Errorf("no rows: %s", got)
	}
}

func TestReadDigestRefuses(t *testing.T) {
	pool := fresh(t)
	ctx := t.Context()
	for sql, want := range map[string]string{
		`SELECT 1`: "1 columns", `SELECT 1, now(), '', 4`: "4 columns", `SELECT 1, now() WHERE false`: "0 rows", `SELECT 1, now() FROM account`: "8 rows",
	} {
		if _, err := outbox.ReadDigest(ctx, pool, "a", outbox.DigestQuery{SQL: sql}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", sql, err)
		}
	}
	if _, err := outbox.ReadDigest(ctx, pool, "a b", outbox.DigestQuery{SQL: `SELECT 1, now()`}); !errors.Is(err, outbox.ErrInvalidEvent) {
		t.Errorf("a bad topic: %v", err)
	}
	d, err := outbox.ReadDigest(ctx, pool, "a", outbox.DigestQuery{SQL: `SELECT $2::int, NULL::timestamptz FROM account WHERE id = $1`, Args: []any{3, 12}})
	if err != nil || d.Rows != 12 || !d.Modified.IsZero() || d.Hash != "" || !strings.HasSuffix(d.Cursor, ":0") {
		t.Errorf("%+v, %v", d, err)
	}
}
