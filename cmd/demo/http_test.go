package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/commitcast/commitcast/client/ts"
	"github.com/commitcast/commitcast/cmd/demo/lmsr"
	"github.com/commitcast/commitcast/outbox"
)

// answered is what a problem tells a client.
type answered struct {
	Type, Title, Detail string
	Status              int
	Quote               *Quote
	State               *Market
	Cursor              string
}

// asProblem decodes an answer that has to be application/problem+json.
func asProblem(t *testing.T, status int, header http.Header, body []byte) answered {
	t.Helper()
	var p answered
	if got := header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("content type %q, want application/problem+json", got)
	}
	if err := json.Unmarshal(body, &p); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	if p.Status != status || p.Title == "" || !strings.HasPrefix(p.Type, "urn:") {
		t.Errorf("problem %+v with status %d", p, status)
	}
	return p
}

// order is a good order, to be spoiled.
func order() map[string]any {
	return map[string]any{"side": "yes", "action": "buy", "amount": lmsr.Unit, "tolerance": 1000}
}

// trade sends an order: what its author saw is the cursor and price, key is its Idempotency-Key; "" leaves either out.
func (v *visitor) trade(market, saw, key string, body any) (int, http.Header, []byte) {
	v.t.Helper()
	text, ok := body.(string)
	if !ok {
		encoded, err := json.Marshal(body)
		if err != nil {
			v.t.Fatal(err)
		}
		text = string(encoded)
	}
	r, err := http.NewRequestWithContext(v.t.Context(), "POST", v.url+"/api/markets/"+market+"/trades", strings.NewReader(text))
	if err != nil {
		v.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	if saw != "" {
		r.Header.Set(outbox.SawHeader, saw)
	}
	if key != "" {
		r.Header.Set(outbox.KeyHeader, key)
	}
	return v.send(r)
}

// look reads a market as a screen does.
func (v *visitor) look(market string) (m Market, cursor string) {
	v.t.Helper()
	var s struct {
		State  Market
		Cursor string
	}
	status, _, body := v.do("GET", "/api/markets/"+market, "")
	if err := json.Unmarshal(body, &s); status != http.StatusOK || err != nil {
		v.t.Fatalf("snapshot: %d %s", status, body)
	}
	return s.State, s.Cursor
}

// visitAsTrader opens the page's session, too.
func visitAsTrader(t *testing.T, d *demo) *visitor {
	t.Helper()
	v := visit(t, d)
	if status, _, body := v.do("POST", "/api/session", "{}"); status != http.StatusOK {
		t.Fatalf("session: %d %s", status, body)
	}
	return v
}

func TestStaleTradeIs409WithAFreshQuoteThatTrades(t *testing.T) {
	d := newDemo(t, 0)
	v := visitAsTrader(t, d)
	m, cursor := v.look(tunnel)
	saw := fmt.Sprintf("%s;%d", cursor, m.Price)
	buy := func(amount, tolerance int64) map[string]any {
		return map[string]any{"side": "yes", "action": "buy", "amount": amount, "tolerance": tolerance}
	}
	status, header, body := v.trade(tunnel, saw, "first", buy(300*lmsr.Unit, 0))
	if status != http.StatusOK || header.Get(outbox.EventHeader) == "" {
		t.Fatalf("trade: %d %s %v", status, body, header)
	}
	status, header, body = v.trade(tunnel, saw, "second", buy(10*lmsr.Unit, 1000))
	if status != http.StatusConflict {
		t.Fatalf("stale trade: %d %s", status, body)
	}
	p := asProblem(t, status, header, body)
	now, version := quoteOf(t, d.x, tunnel, lmsr.Yes)
	if p.Quote == nil || p.Quote.Now != now || p.Quote.Version != version || p.Quote.Market != tunnel || p.Quote.Side != "yes" {
		t.Fatalf("quote %+v, want %d at version %d", p.Quote, now, version)
	}
	if p.State == nil || p.State.Price != now || p.State.Mine.Yes == 0 || p.Cursor == "" {
		t.Errorf("a refusal must bring the fresh state: %s", body)
	}
	status, _, body = v.trade(tunnel, fmt.Sprintf("%s;%d", p.Cursor, p.Quote.Now), "third", buy(10*lmsr.Unit, 0))
	var fill Fill
	if err := json.Unmarshal(body, &fill); status != http.StatusOK || err != nil {
		t.Fatalf("trade at the fresh quote: %d %s", status, body)
	}
	if fill.Shares != p.Quote.Shares || fill.Cost != p.Quote.Cost {
		t.Errorf("the quote promised %d shares for %d, the trade gave %d for %d", p.Quote.Shares, p.Quote.Cost, fill.Shares, fill.Cost)
	}
	// The right price, of another history.
	status, header, body = v.trade(tunnel, fmt.Sprintf("9-dead:0;%d", fill.After), "fourth", buy(10*lmsr.Unit, lmsr.Unit))
	if status != http.StatusConflict || asProblem(t, status, header, body).Quote == nil {
		t.Errorf("a price seen in another history: %d %s", status, body)
	}
	checkConserved(t, d.pool)
}

func TestARepeatedOrderTradesOnce(t *testing.T) {
	d := newDemo(t, 0)
	v := visitAsTrader(t, d)
	m, cursor := v.look(tunnel)
	saw := fmt.Sprintf("%s;%d", cursor, m.Price)
	answers := make([]string, 6)
	var wg sync.WaitGroup
	for i := range answers {
		wg.Go(func() {
			status, header, body := v.trade(tunnel, saw, "again", order())
			if status != http.StatusOK {
				t.Errorf("attempt %d: %d %s", i, status, body)
			}
			answers[i] = header.Get(outbox.EventHeader) + " " + string(body)
		})
	}
	wg.Wait()
	for _, a := range answers {
		if a != answers[0] {
			t.Errorf("attempts differ: %s and %s", a, answers[0])
		}
	}
	var trades int
	if err := d.pool.QueryRow(t.Context(), `SELECT count(*) FROM demo.trade`).Scan(&trades); err != nil || trades != 1 {
		t.Errorf("%d trades, want 1 (%v)", trades, err)
	}
	other := order()
	other["side"] = "no"
	if status, header, body := v.trade(tunnel, saw, "again", other); status != http.StatusUnprocessableEntity {
		t.Errorf("the same key for another order: %d %s", status, body)
	} else {
		asProblem(t, status, header, body)
	}
	checkConserved(t, d.pool)
}

func TestBadOrdersAreProblems(t *testing.T) {
	d := newDemo(t, 0)
	v := visit(t, d)
	m, cursor := v.look(tunnel)
	saw := fmt.Sprintf("%s;%d", cursor, m.Price)
	status, header, body := v.trade(tunnel, saw, "x", order())
	if status != http.StatusUnauthorized {
		t.Errorf("a trade by nobody: %d %s", status, body)
	}
	asProblem(t, status, header, body)
	if status, _, body := v.do("POST", "/api/session", "{}"); status != http.StatusOK {
		t.Fatalf("session: %d %s", status, body)
	}
	good := `{"action":"buy","amount":1000000,"side":"yes","tolerance":1000}`
	with := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("%q is not in %s", old, good)
		}
		return strings.Replace(good, old, new, 1)
	}
	key := 0
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
		"unknown side":          {with(`"side":"yes"`, `"side":"maybe"`), 400},
		"unknown action":        {with(`"action":"buy"`, `"action":"short"`), 400},
		"negative tolerance":    {with(`"tolerance":1000`, `"tolerance":-1`), 400},
		"tolerance above one":   {with(`"tolerance":1000`, `"tolerance":1000001`), 400},
		"unknown field":         {with(`"side"`, `"trader":1,"side"`), 400},
		"two values":            {good + good, 400},
		"not JSON":              {"buy me some", 400},
		"JSON of another shape": {`[1,2,3]`, 400},
		"half of it":            {good[:40], 400},
		"too large":             {with(`"side":"yes"`, `"side":"`+strings.Repeat("x", 8<<10)+`"`), 413},
		"more than one has":     {with(`"amount":1000000`, `"amount":2000000000`), 422},
		"selling what is not":   {with(`"action":"buy"`, `"action":"sell"`), 422},
	} {
		key++
		status, header, body := v.trade(tunnel, saw, fmt.Sprint(key), c.body)
		if status != c.want {
			t.Errorf("%s: %d %s, want %d", what, status, body, c.want)
			continue
		}
		asProblem(t, status, header, body)
	}
	for what, c := range map[string]struct {
		market, saw, key string
		want             int
	}{
		"unknown market":      {"no-such-market", saw, "m1", 404},
		"market with a quote": {"'%3B%20DROP%20TABLE%20demo.trade%20--", saw, "m2", 404},
		"no key":              {tunnel, saw, "", 428},
		"a long key":          {tunnel, saw, strings.Repeat("x", 1000), 400},
		"nothing seen":        {tunnel, "", "s1", 428},
		"a price alone":       {tunnel, "614000", "s2", 400},
		"a cursor alone":      {tunnel, cursor, "s3", 400},
		"price of nothing":    {tunnel, cursor + ";0", "s4", 400},
		"price above one":     {tunnel, cursor + ";1000000", "s5", 400},
		"negative price":      {tunnel, cursor + ";-3", "s6", 400},
		"a price in words":    {tunnel, cursor + ";cheap", "s7", 400},
	} {
		status, header, body := v.trade(c.market, c.saw, c.key, good)
		if status != c.want {
			t.Errorf("%s: %d %s, want %d", what, status, body, c.want)
			continue
		}
		asProblem(t, status, header, body)
	}

	r, err := http.NewRequestWithContext(t.Context(), "POST", v.url+"/api/markets/"+tunnel+"/trades", strings.NewReader(good))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "text/plain") // what a form on another site could send
	r.Header.Set(outbox.SawHeader, saw)
	r.Header.Set(outbox.KeyHeader, "plain")
	if status, _, body := v.send(r); status != http.StatusUnsupportedMediaType {
		t.Errorf("an order as text/plain: %d %s", status, body)
	}
	r, _ = http.NewRequestWithContext(t.Context(), "POST", v.url+"/api/markets/"+tunnel+"/trades", strings.NewReader(good))
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
	v := visitAsTrader(t, d)
	_, cursor := v.look(tide)
	for i := range 3 {
		body := map[string]any{"side": "no", "action": "buy", "amount": 10 * lmsr.Unit, "tolerance": lmsr.Unit}
		if status, _, body := v.trade(tide, cursor+";628000", fmt.Sprint(i), body); status != 200 {
			t.Fatalf("trade: %d %s", status, body)
		}
	}
	var s struct {
		outbox.Position
		State Market
	}
	status, _, body := v.do("GET", "/api/markets/"+tide, "")
	if status != http.StatusOK || json.Unmarshal(body, &s) != nil {
		t.Fatalf("snapshot: %d %s", status, body)
	}
	if s.Topic != topicOf(tide) || len(s.Pending) != 3 || !strings.HasSuffix(s.Cursor, ":0") {
		t.Fatalf("nobody sequences here, so three events are pending after offset 0: %s", body)
	}
	m := s.State
	if m.Version != 3 || len(m.Tape) != 3 || len(m.History) == 0 || m.Mine.No <= 0 || m.Question == "" {
		t.Errorf("market %+v", m)
	}
	var all Figures
	if status, _, body = v.do("GET", "/api/check", ""); status != http.StatusOK || json.Unmarshal(body, &all) != nil {
		t.Fatalf("check: %d %s", status, body)
	}
	if len(all.Markets) != len(seedMarkets) || len(all.Markets[0].Tape) != 0 {
		t.Errorf("check has %d markets, and a tape of %d", len(all.Markets), len(all.Markets[0].Tape))
	}
	if all.Balance == nil || *all.Balance != personDeposit-m.Mine.Spent {
		t.Errorf("balance %v, deposit less %d spent", all.Balance, m.Mine.Spent)
	}
	var names []string
	if _, _, body := v.do("GET", "/api/markets", ""); json.Unmarshal(body, &names) != nil || len(names) != len(seedMarkets) {
		t.Errorf("markets: %s", body)
	}
	stranger, _ := newVisitor(t, v.url).look(tide)
	if stranger.Mine != (Holding{}) || stranger.Version != 3 {
		t.Errorf("a stranger sees %+v", stranger)
	}
	status, header, body := v.do("GET", "/api/markets/no-such", "")
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
	if status, header, body := v.do("GET", "/commitcast.js", ""); status != http.StatusOK || !bytes.Equal(body, ts.JS) ||
		!strings.HasPrefix(header.Get("Content-Type"), "text/javascript") {
		t.Errorf("the client: %d, %d bytes as %s", status, len(body), header.Get("Content-Type"))
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
	if p := asProblem(t, status, header, body); p.Type != outbox.ProblemBehind {
		t.Errorf("problem %+v", p)
	}
}
