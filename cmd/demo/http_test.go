package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"testing"

	"github.com/commitcast/commitcast/cmd/demo/lmsr"
	"github.com/commitcast/commitcast/outbox"
)

// asProblem decodes an answer that has to be application/problem+json.
func asProblem(t *testing.T, status int, header http.Header, body []byte) problem {
	t.Helper()
	var p problem
	if got := header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("content type %q, want application/problem+json", got)
	}
	if err := json.Unmarshal(body, &p); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	if p.Status != status || p.Title == "" || !strings.HasPrefix(p.Type, "urn:problem:") {
		t.Errorf("problem %+v with status %d", p, status)
	}
	return p
}

func orderJSON(market, side, action string, amount, seen, tolerance int64, request string) string {
	return fmt.Sprintf(`{"request":%q,"market":%q,"side":%q,"action":%q,"amount":%d,"seen":{"price":%d,"version":0},"tolerance":%d}`,
		request, market, side, action, amount, seen, tolerance)
}

func TestStaleTradeIs409WithAFreshQuoteThatTrades(t *testing.T) {
	d := newDemo(t, 0)
	v := visit(t, d)
	if status, _, body := v.do("POST", "/api/session", "{}"); status != http.StatusOK {
		t.Fatalf("session: %d %s", status, body)
	}
	const seen = 614_000
	status, _, body := v.do("POST", "/api/trades", orderJSON(tunnel, "yes", "buy", 300*lmsr.Unit, seen, 0, "first"))
	if status != http.StatusOK {
		t.Fatalf("trade: %d %s", status, body)
	}
	status, header, body := v.do("POST", "/api/trades", orderJSON(tunnel, "yes", "buy", 10*lmsr.Unit, seen, 1000, "second"))
	if status != http.StatusConflict {
		t.Fatalf("stale trade: %d %s", status, body)
	}
	p := asProblem(t, status, header, body)
	now, version := quoteOf(t, d.x, tunnel, lmsr.Yes)
	if p.Quote == nil || p.Quote.Now != now || p.Quote.Version != version || p.Quote.Market != tunnel || p.Quote.Side != "yes" {
		t.Fatalf("quote %+v, want %d at version %d", p.Quote, now, version)
	}
	status, _, body = v.do("POST", "/api/trades", orderJSON(tunnel, "yes", "buy", 10*lmsr.Unit, p.Quote.Now, 0, "third"))
	var fill Fill
	if err := json.Unmarshal(body, &fill); status != http.StatusOK || err != nil {
		t.Fatalf("trade at the fresh quote: %d %s", status, body)
	}
	if fill.Shares != p.Quote.Shares || fill.Cost != p.Quote.Cost {
		t.Errorf("the quote promised %d shares for %d, the trade gave %d for %d", p.Quote.Shares, p.Quote.Cost, fill.Shares, fill.Cost)
	}
	checkConserved(t, d.pool)
}

func TestBadOrdersAreProblems(t *testing.T) {
	d := newDemo(t, 0)
	v := visit(t, d)
	good := orderJSON(tunnel, "yes", "buy", lmsr.Unit, 614_000, 1000, "x")
	status, header, body := v.do("POST", "/api/trades", good)
	if status != http.StatusUnauthorized {
		t.Errorf("a trade by nobody: %d %s", status, body)
	}
	asProblem(t, status, header, body)
	if status, _, body := v.do("POST", "/api/session", "{}"); status != http.StatusOK {
		t.Fatalf("session: %d %s", status, body)
	}
	with := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("%q is not in %s", old, good)
		}
		return strings.Replace(good, old, new, 1)
	}
	for what, c := range map[string]struct {
		body string
		want int
	}{
		"negative amount":       {with(`"amount":1000000`, `"amount":-1`), 422},
		"no amount":             {with(`"amount":1000000`, `"amount":0`), 422},
		"huge amount":           {with(`"amount":1000000`, `"amount":9223372036854775807`), 422},
		"amount beyond int64":   {with(`"amount":1000000`, `"amount":1e300`), 400},
		"NaN":                   {with(`"amount":1000000`, `"amount":NaN`), 400},
		"fraction":              {with(`"amount":1000000`, `"amount":1.5`), 400},
		"amount as text":        {with(`"amount":1000000`, `"amount":"12"`), 400},
		"unknown market":        {with(tunnel, "no-such-market"), 404},
		"market with a quote":   {with(tunnel, `'; DROP TABLE demo.trade --`), 404},
		"unknown side":          {with(`"side":"yes"`, `"side":"maybe"`), 400},
		"unknown action":        {with(`"action":"buy"`, `"action":"short"`), 400},
		"price of nothing":      {with(`"price":614000`, `"price":0`), 400},
		"price above one":       {with(`"price":614000`, `"price":1000000`), 400},
		"negative price":        {with(`"price":614000`, `"price":-3`), 400},
		"negative tolerance":    {with(`"tolerance":1000`, `"tolerance":-1`), 400},
		"tolerance above one":   {with(`"tolerance":1000`, `"tolerance":1000001`), 400},
		"negative version":      {with(`"version":0`, `"version":-1`), 400},
		"no request id":         {with(`"request":"x"`, `"request":""`), 400},
		"long request id":       {with(`"request":"x"`, `"request":"`+strings.Repeat("x", 65)+`"`), 400},
		"request id of NUL":     {with(`"request":"x"`, `"request":"a\u0000b"`), 400},
		"unknown field":         {with(`"request"`, `"trader":1,"request"`), 400},
		"two values":            {good + good, 400},
		"not JSON":              {"buy me some", 400},
		"JSON of another shape": {`[1,2,3]`, 400},
		"half of it":            {good[:40], 400},
		"too large":             {with(`"request":"x"`, `"request":"`+strings.Repeat("x", 8<<10)+`"`), 413},
		"more than one has":     {with(`"amount":1000000`, `"amount":2000000000`), 422},
		"selling what is not":   {with(`"action":"buy"`, `"action":"sell"`), 422},
	} {
		status, header, body := v.do("POST", "/api/trades", c.body)
		if status != c.want {
			t.Errorf("%s: %d %s, want %d", what, status, body, c.want)
			continue
		}
		asProblem(t, status, header, body)
	}

	r, err := http.NewRequestWithContext(t.Context(), "POST", v.url+"/api/trades", strings.NewReader(good))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "text/plain") // what a form on another site could send
	if status, _, body := v.send(r); status != http.StatusUnsupportedMediaType {
		t.Errorf("an order as text/plain: %d %s", status, body)
	}
	r, _ = http.NewRequestWithContext(t.Context(), "POST", v.url+"/api/trades", strings.NewReader(good))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Origin", "https://elsewhere.example")
	if status, _, body := v.send(r); status != http.StatusForbidden {
		t.Errorf("an order from another site: %d %s", status, body)
	}
	var trades int
	if err := d.pool.QueryRow(t.Context(), `SELECT count(*) FROM demo.trade`).Scan(&trades); err != nil || trades != 0 {
		t.Errorf("bad orders made %d trades (%v)", trades, err)
	}
}

func TestSessionIsKeptByItsCookie(t *testing.T) {
	d := newDemo(t, 0)
	v := visit(t, d)
	who := func(v *visitor) (s session) {
		t.Helper()
		status, header, body := v.do("POST", "/api/session", "{}")
		if status != http.StatusOK || json.Unmarshal(body, &s) != nil {
			t.Fatalf("session: %d %s", status, body)
		}
		if c := header.Get("Set-Cookie"); c != "" && (!strings.Contains(c, "HttpOnly") || !strings.Contains(c, "SameSite=Strict")) {
			t.Errorf("cookie %q is open to scripts or other sites", c)
		}
		return s
	}
	first := who(v)
	if again := who(v); again != first {
		t.Errorf("the same browser is %+v, then %+v", first, again)
	}
	other := newVisitor(t, v.url)
	if s := who(other); s.Trader == first.Trader {
		t.Error("two browsers are one trader")
	}
	forged, _ := http.NewRequestWithContext(t.Context(), "POST", v.url+"/api/session", nil)
	forged.AddCookie(&http.Cookie{Name: cookieName, Value: "guessed"})
	stranger := newVisitor(t, v.url)
	status, _, body := stranger.send(forged)
	var s session
	if json.Unmarshal(body, &s) != nil || status != http.StatusOK || s.Trader == first.Trader {
		t.Errorf("a guessed cookie: %d %s", status, body)
	}
}

func TestSnapshotHoldsFiguresAndPositions(t *testing.T) {
	d := newDemo(t, 0)
	v := visit(t, d)
	v.do("POST", "/api/session", "{}")
	for i := range 3 {
		if status, _, body := v.do("POST", "/api/trades", orderJSON(tide, "no", "buy", 10*lmsr.Unit, 628_000, lmsr.Unit, fmt.Sprint(i))); status != 200 {
			t.Fatalf("trade: %d %s", status, body)
		}
	}
	var s Snapshot
	status, _, body := v.do("GET", "/api/markets?market="+tide, "")
	if status != http.StatusOK || json.Unmarshal(body, &s) != nil {
		t.Fatalf("snapshot: %d %s", status, body)
	}
	if len(s.Markets) != 1 || len(s.Positions) != 1 || len(s.Positions[0].Pending) != 3 || !strings.HasSuffix(s.Positions[0].Cursor, ":0") {
		t.Fatalf("nobody sequences here, so three events are pending after offset 0: %s", body)
	}
	m := s.Markets[0]
	if m.Version != 3 || len(m.Tape) != 3 || len(m.History) == 0 || m.Mine.No <= 0 || m.Question == "" {
		t.Errorf("market %+v", m)
	}
	if s.Balance == nil || *s.Balance != personDeposit-m.Mine.Spent {
		t.Errorf("balance %v, deposit less %d spent", s.Balance, m.Mine.Spent)
	}
	var all Snapshot
	if status, _, body = v.do("GET", "/api/check", ""); status != http.StatusOK || json.Unmarshal(body, &all) != nil {
		t.Fatalf("check: %d %s", status, body)
	}
	if len(all.Markets) != len(seedMarkets) || len(all.Markets[0].Tape) != 0 {
		t.Errorf("check has %d markets, and a tape of %d", len(all.Markets), len(all.Markets[0].Tape))
	}
	status, header, body := v.do("GET", "/api/markets?market=no-such", "")
	if status != http.StatusNotFound {
		t.Errorf("snapshot of an unknown market: %d", status)
	}
	asProblem(t, status, header, body)
}

func TestControls(t *testing.T) {
	d := newDemo(t, 2)
	v := visit(t, d)
	for _, c := range []struct {
		path, body string
		want       int
	}{
		{"/api/bots", `{"rate":12.5}`, 200},
		{"/api/bots", `{"rate":-1}`, 400}, {"/api/bots", `{"rate":401}`, 400}, {"/api/bots", `{}`, 400}, {"/api/bots", `{"rate":"fast"}`, 400},
		{"/api/chaos/cut", `{"tab":"nobody"}`, 404}, {"/api/chaos/cut", `{"tab":""}`, 404},
		{"/api/chaos/flush", `{}`, 403}, // no Redis here
		{"/api/chaos/worker", `{}`, 400}, {"/api/chaos/worker", `{"running":"no"}`, 400},
	} {
		status, header, body := v.do("POST", c.path, c.body)
		if status != c.want {
			t.Errorf("%s %s: %d %s, want %d", c.path, c.body, status, body, c.want)
		} else if status >= 400 {
			asProblem(t, status, header, body)
		}
	}
	if rate := d.fleet.Rate(); rate != 12.5 {
		t.Errorf("rate %v, want 12.5", rate)
	}
	d.server.controls = false
	for _, path := range []string{"/api/bots", "/api/chaos/cut", "/api/chaos/flush", "/api/chaos/worker"} {
		status, header, body := v.do("POST", path, `{}`)
		if status != http.StatusForbidden || asProblem(t, status, header, body).Type != "urn:problem:controls-off" {
			t.Errorf("%s without controls: %d %s", path, status, body)
		}
	}
	if status, header, _ := v.do("GET", "/api/bots", ""); status != http.StatusMethodNotAllowed && status != http.StatusNotFound {
		t.Errorf("GET of a control: %d %v", status, header)
	}
}

// TestPageIsSelfContained holds the page to its promises: nothing inline, nothing from elsewhere, data only as text.
func TestPageIsSelfContained(t *testing.T) {
	d := newDemo(t, 0)
	v := visit(t, d)
	for _, path := range []string{"/", "/api/status", "/api/no-such"} {
		_, header, _ := v.do("GET", path, "")
		csp := header.Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"} {
			if !strings.Contains(csp, want) {
				t.Errorf("%s: policy %q lacks %s", path, csp, want)
			}
		}
		if strings.Contains(csp, "unsafe") {
			t.Errorf("%s: policy %q", path, csp)
		}
	}
	err := fs.WalkDir(web, "web", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := fs.ReadFile(web, path)
		if err != nil {
			return err
		}
		for _, banned := range []string{"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", " style=\"", " onclick=\"", "src=\"http", "@import"} {
			if strings.Contains(string(text), banned) {
				t.Errorf("%s contains %s", path, banned)
			}
		}
		status, _, body := v.do("GET", strings.TrimPrefix(path, "web"), "")
		if strings.HasSuffix(path, "index.html") {
			status, _, body = v.do("GET", "/", "")
		}
		if status != http.StatusOK || string(body) != string(text) {
			t.Errorf("%s: served with %d, %d bytes of %d", path, status, len(body), len(text))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestSnapshotTooFarBehindSaysSo: without a worker, events pile up until a snapshot can no longer name them all.
func TestSnapshotTooFarBehindSaysSo(t *testing.T) {
	d := newDemo(t, 0)
	v := visit(t, d)
	if _, err := d.pool.Exec(t.Context(), `SELECT commitcast.append($1, 'trade', '{}') FROM generate_series(1, $2)`,
		topicOf(tunnel), outbox.MaxPending+1); err != nil {
		t.Fatal(err)
	}
	status, header, body := v.do("GET", "/api/check", "")
	if status != http.StatusServiceUnavailable || header.Get("Retry-After") == "" {
		t.Fatalf("check: %d %s", status, body)
	}
	if p := asProblem(t, status, header, body); p.Type != "urn:problem:behind" {
		t.Errorf("problem %+v", p)
	}
}
