package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/internal/testkit"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == workerArg {
		// The demo under test starts this binary as its worker.
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		os.Exit(workerMain(ctx))
	}
	testkit.Main(m)
}

// quiet is a logger for tests that break things.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// newDemo opens a demo on a fresh database, without bots and without anything that moves.
func newDemo(t *testing.T, bots int) *demo {
	t.Helper()
	d, err := openDemo(t.Context(), demoConfig{
		databaseURL: testkit.Database(t), withoutRedis: "not in this test", bots: bots, rate: 0, seed: 7, controls: true, log: quiet(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.close)
	return d
}

// newTrader makes a trader with money.
func newTrader(t *testing.T, pool *pgxpool.Pool, name string) (id int64) {
	t.Helper()
	err := pool.QueryRow(t.Context(), `INSERT INTO demo.trader (name, bot, deposit, balance) VALUES ($1, false, $2, $2) RETURNING id`,
		name, int64(personDeposit)).Scan(&id)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// visitor is a browser, as far as HTTP goes.
type visitor struct {
	t    *testing.T
	http *http.Client
	url  string
}

func visit(t *testing.T, d *demo) *visitor {
	t.Helper()
	server := httptest.NewServer(d.server.handler())
	t.Cleanup(server.Close)
	return newVisitor(t, server.URL)
}

func newVisitor(t *testing.T, url string) *visitor {
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &visitor{t: t, http: &http.Client{Jar: jar, Transport: transport, Timeout: 20 * time.Second}, url: url}
}

// do sends a request with a JSON body, if there is one, and returns status, header and body.
func (v *visitor) do(method, path, body string) (int, http.Header, []byte) {
	v.t.Helper()
	r, err := http.NewRequestWithContext(v.t.Context(), method, v.url+path, strings.NewReader(body))
	if err != nil {
		v.t.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	return v.send(r)
}

func (v *visitor) send(r *http.Request) (int, http.Header, []byte) {
	v.t.Helper()
	w, err := v.http.Do(r)
	if err != nil {
		v.t.Fatal(err)
	}
	defer w.Body.Close()
	answer, err := io.ReadAll(w.Body)
	if err != nil {
		v.t.Fatal(err)
	}
	return w.StatusCode, w.Header, answer
}

// checkConserved holds the invariants of sql/schema.sql against the tables.
func checkConserved(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	for what, query := range map[string]string{
		"money": `SELECT (SELECT sum(balance) FROM demo.trader) + (SELECT sum(pool) FROM demo.market) - (SELECT sum(deposit) FROM demo.trader)`,
		"shares of yes": `SELECT coalesce(sum(abs(m.yes - m.seed_yes - coalesce(p.sum, 0))), 0) FROM demo.market m
			LEFT JOIN (SELECT market, sum(yes) FROM demo.position GROUP BY market) p ON p.market = m.id`,
		"shares of no": `SELECT coalesce(sum(abs(m.no - m.seed_no - coalesce(p.sum, 0))), 0) FROM demo.market m
			LEFT JOIN (SELECT market, sum(no) FROM demo.position GROUP BY market) p ON p.market = m.id`,
		"money of each trader": `SELECT count(*) FROM demo.trader r
			WHERE balance <> deposit - coalesce((SELECT sum(spent) FROM demo.position WHERE trader = r.id), 0)`,
		"trades of each market": `SELECT count(*) FROM demo.market m WHERE version <> (SELECT count(*) FROM demo.trade WHERE market = m.id)
			OR version <> coalesce((SELECT max(version) FROM demo.trade WHERE market = m.id), 0)
			OR volume <> coalesce((SELECT sum(abs(cost)) FROM demo.trade WHERE market = m.id), 0)`,
		// Each decision met the price that the trade before had left: nobody traded at a price that was gone.
		"prices from trade to trade": `WITH chain AS (
				SELECT market, CASE side WHEN 'yes' THEN before ELSE 1000000 - before END AS met,
					lag(CASE side WHEN 'yes' THEN after ELSE 1000000 - after END) OVER (PARTITION BY market ORDER BY version) AS leaves
				FROM demo.trade)
			SELECT count(*) FROM chain WHERE met <> leaves`,
		"tolerance": `SELECT count(*) FROM demo.trade WHERE (before - seen) * sign(shares) > tolerance`,
		"events": `WITH e AS (SELECT topic, (data ->> 'version')::bigint AS version FROM (
				SELECT topic, data FROM commitcast.outbox UNION ALL SELECT topic, data FROM commitcast.journal) x)
			SELECT count(*) FROM e FULL JOIN demo.trade t ON e.topic = 'market:' || t.market AND e.version = t.version
			WHERE e.topic IS NULL OR t.market IS NULL`,
		"order of events": `SELECT count(*) FROM (SELECT (data ->> 'version')::bigint - lag((data ->> 'version')::bigint)
				OVER (PARTITION BY topic ORDER BY id) AS step FROM (
				SELECT topic, id, data FROM commitcast.outbox UNION ALL SELECT topic, id, data FROM commitcast.journal) x) y
			WHERE step <> 1`,
	} {
		var off int64
		if err := pool.QueryRow(t.Context(), query).Scan(&off); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if off != 0 {
			t.Errorf("%s: off by %d", what, off)
		}
	}
}

// syncBuffer is a buffer that may be read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestRunFromStartToEnd is the program as people run it: a port in use, a line with the URL, trades, Ctrl-C.
func TestRunFromStartToEnd(t *testing.T) {
	t.Setenv("DATABASE_URL", testkit.EmptyDatabase(t))
	t.Setenv("REDIS_URL", testkit.Redis(t).URL())
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, logged syncBuffer
	ended := make(chan error, 1)
	go func() { // owned by this test, which reads ended
		ended <- run(ctx, options{Listen: taken.Addr().String(), Bots: 4, Rate: 100, Seed: 1}, &out, &logged)
	}()
	var url string
	testkit.Eventually(t, time.Minute, func() bool {
		_, rest, found := strings.Cut(out.String(), "Commitcast demo: ")
		url, _, _ = strings.Cut(rest, " ")
		return found && strings.HasSuffix(rest, "\n")
	}, "the URL is printed")
	if !strings.Contains(out.String(), "is in use: taking") || strings.Contains(url, taken.Addr().String()) {
		t.Errorf("the port in use is not mentioned: %q", out.String())
	}

	v := newVisitor(t, url)
	testkit.Eventually(t, 30*time.Second, func() bool {
		status, _, body := v.do("GET", "/api/status", "")
		return status == 200 && strings.Contains(string(body), `"state":"running"`) && !strings.Contains(string(body), `"trades":0,`)
	}, "the worker runs and bots trade")
	if status, _, body := v.do("POST", "/api/chaos/flush", "{}"); status != http.StatusForbidden {
		t.Errorf("flushing a Redis that was given: %d %s", status, body)
	}
	v.http.CloseIdleConnections()

	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Fatalf("run: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the demo does not end")
	}
	if s := logged.String(); strings.Contains(s, "level=WARN") || strings.Contains(s, "level=ERROR") {
		t.Errorf("a run without trouble complains:\n%s", s)
	}
}

func TestRunRefusesNonsense(t *testing.T) {
	for _, o := range []options{
		{Listen: "nonsense"}, {Listen: "127.0.0.1:http"}, {Listen: "192.0.2.1:8080"},
		{Listen: "127.0.0.1:0", Bots: -1}, {Listen: "127.0.0.1:0", Bots: 201}, {Listen: "127.0.0.1:0", Rate: -1}, {Listen: "127.0.0.1:0", Rate: 401},
	} {
		err := run(t.Context(), o, io.Discard, io.Discard)
		if err == nil || strings.Contains(err.Error(), "\n") || !strings.HasPrefix(err.Error(), "--") {
			t.Errorf("%+v: %v: want one line that begins with the flag", o, err)
		}
	}
}
