package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/coder/websocket"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/internal/testkit/chromium"
	"github.com/commitcast/commitcast/wire"
)

var pictures = flag.String("pictures", "", "a folder into which the console's pages are written as PNG")

const opsToken = "0123456789abcdef-ops"

// nasty would run where text is taken for markup.
const nasty = `<img src=x onerror="document.title='pwned';window.pwned=1">`

// consoleOf runs `commitcast ops serve` for a role, and returns where it is.
func consoleOf(t *testing.T, database, redis, role string, args ...string) *node {
	t.Helper()
	return run(t, testkit.As(t, database, role), redis, append([]string{"ops", "serve", "--listen=127.0.0.1:0"}, args...)...)
}

// visitor is an operator's browser without pages: its cookies, and the session's second secret.
type visitor struct {
	t    *testing.T
	base string // …/console/
	http *http.Client
	csrf string
}

func newVisitor(t *testing.T, base string) *visitor {
	jar, _ := cookiejar.New(nil)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &visitor{t: t, base: base, http: &http.Client{Jar: jar, Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

func (b *visitor) do(method, path string, body io.Reader, header map[string]string) (int, string, http.Header) {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), method, b.base+path, body)
	if err != nil {
		b.t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := b.http.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return resp.StatusCode, string(text), resp.Header
}

func (b *visitor) login(who, token string) int {
	b.t.Helper()
	status, _, _ := b.do("POST", "login", strings.NewReader(url.Values{"name": {who}, "token": {token}}.Encode()), map[string]string{"Content-Type": "application/x-www-form-urlencoded"})
	if status == http.StatusSeeOther {
		var s struct{ CSRF string }
		_, text, _ := b.do("GET", "api/session", nil, nil)
		if err := json.Unmarshal([]byte(text), &s); err != nil || s.CSRF == "" {
			b.t.Fatalf("session: %s", text)
		}
		b.csrf = s.CSRF
	}
	return status
}

// post orders something as a page would; more headers replace its own, "" removes one.
func (b *visitor) post(path string, v any, more ...string) (int, string) {
	b.t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		b.t.Fatal(err)
	}
	u, _ := url.Parse(b.base)
	header := map[string]string{"Content-Type": "application/json", "Commitcast-Csrf": b.csrf, "Origin": u.Scheme + "://" + u.Host, "Sec-Fetch-Site": "same-origin"}
	for i := 0; i+1 < len(more); i += 2 {
		header[more[i]] = more[i+1]
		if more[i+1] == "" {
			delete(header, more[i])
		}
	}
	status, answer, _ := b.do("POST", path, bytes.NewReader(text), header)
	return status, answer
}

// act proposes and carries out.
func (b *visitor) act(order map[string]any, why string) (status int, answer string) {
	b.t.Helper()
	if status, answer = b.post("api/propose", order); status != http.StatusOK {
		return status, answer
	}
	var p struct{ ID string }
	json.Unmarshal([]byte(answer), &p)
	return b.post("api/carry", map[string]string{"id": p.ID, "why": why})
}

// Who gets in, and that nothing is changed by who does not, nor by pages of others.
func TestConsoleDoor(t *testing.T) {
	database, redisURL := testkit.Database(t), testkit.RedisURL(t)
	exec1(t, database, `SELECT commitcast.append('t', 'test', '1')`)
	token := testkit.File(t, "token", []byte(opsToken))
	c := consoleOf(t, database, redisURL, "operator", "--ops-token-file="+token)
	b := newVisitor(t, c.URL)

	for _, path := range []string{"api/status", "api/session", "api/topics", "api/audit", "live/v1/ws", "river/api/jobs"} {
		if status, body, _ := b.do("GET", path, nil, nil); status != http.StatusUnauthorized {
			t.Errorf("%s without a session: %d %s", path, status, body)
		}
	}
	for _, path := range []string{"", "river/"} {
		if status, _, h := b.do("GET", path, nil, nil); status != http.StatusSeeOther || h.Get("Location") != "/console/login" {
			t.Errorf("/console/%s without a session: %d %v", path, status, h)
		}
	}
	status, body, header := b.do("GET", "login", nil, nil)
	policy := header.Get("Content-Security-Policy")
	if status != 200 || !strings.Contains(body, `name="token"`) || !strings.Contains(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") ||
		header.Get("Access-Control-Allow-Origin") != "" || header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("login page: %d, %v", status, header)
	}
	if status := b.login("", opsToken); status != http.StatusBadRequest {
		t.Errorf("without a name: %d", status)
	}
	form := map[string]string{"Content-Type": "application/x-www-form-urlencoded", "Origin": "https://evil.example"}
	if status, _, _ := b.do("POST", "login", strings.NewReader(url.Values{"name": {"eve"}, "token": {opsToken}}.Encode()), form); status != http.StatusForbidden {
		t.Errorf("a login by a foreign page: %d", status)
	}
	if status := b.login("alice", opsToken); status != http.StatusSeeOther {
		t.Fatalf("login: %d", status)
	}
	cookie := b.http.Jar.(*cookiejar.Jar)
	u, _ := url.Parse(c.URL)
	if len(cookie.Cookies(u)) != 1 {
		t.Fatalf("cookies: %v", cookie.Cookies(u))
	}

	// Each action, without the second secret, with a wrong one, from another origin, and as a form.
	pause := func() (paused bool) {
		_, text, _ := b.do("GET", "api/status", nil, nil)
		return strings.Contains(text, "paused_at")
	}
	orders := []map[string]any{
		{"action": "pause", "partition": 3}, {"action": "resume", "partition": 3}, {"action": "park", "topic": "t"}, {"action": "redrive", "topic": "t", "from": 1},
		{"action": "redrive first", "topic": "t", "subject": "ada"}, {"action": "redrive all"}, {"action": "discard", "topic": "t"}, {"action": "drain", "node": "b1"}, {"action": "undrain", "node": "b1"},
		{"action": "disconnect", "subject": "ada"}, {"action": "epoch bump"},
	}
	_, good := b.post("api/propose", map[string]any{"action": "pause", "partition": 3})
	var p struct{ ID, What string }
	if json.Unmarshal([]byte(good), &p); p.ID == "" || !strings.Contains(p.What, "pause partition 3") {
		t.Fatalf("proposal: %s", good)
	}
	for name, more := range map[string][]string{
		"no secret":            {"Commitcast-Csrf", ""},
		"a wrong secret":       {"Commitcast-Csrf", "x" + b.csrf[1:]},
		"another origin":       {"Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"},
		"another origin's":     {"Origin", "https://evil.example", "Sec-Fetch-Site", ""},
		"a sibling's":          {"Sec-Fetch-Site", "same-site"},
		"a form, no preflight": {"Content-Type", "text/plain"},
	} {
		for _, o := range orders {
			if status, answer := b.post("api/propose", o, more...); status != http.StatusForbidden && status != http.StatusUnsupportedMediaType {
				t.Errorf("%s: propose %v: %d %s", name, o, status, answer)
			}
		}
		for _, path := range []string{"api/carry", "api/doctor", "logout"} {
			if status, answer := b.post(path, map[string]string{"id": p.ID, "why": "x"}, more...); status != http.StatusForbidden && status != http.StatusUnsupportedMediaType {
				t.Errorf("%s: %s: %d %s", name, path, status, answer)
			}
		}
	}
	for _, more := range [][]string{{"Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"}, {"Origin", "", "Sec-Fetch-Site", ""}} {
		if status, answer := b.post("river/api/jobs/cancel", map[string]any{"ids": []string{"1"}}, more...); status != http.StatusForbidden || strings.Contains(answer, "commitcast_worker") {
			t.Errorf("river, %v: %d %s", more, status, answer)
		}
	}
	if status, answer := b.post("river/api/jobs/cancel", map[string]any{"ids": []string{"1"}}); status != http.StatusForbidden || !strings.Contains(answer, "commitcast_worker") {
		t.Errorf("river by a role that may not: %d %s", status, answer)
	}
	if pause() {
		t.Fatal("something was paused")
	}
	if status, answer := b.post("api/carry", map[string]string{"id": p.ID}); status != http.StatusBadRequest || !strings.Contains(answer, "say why") {
		t.Errorf("without a reason: %d %s", status, answer)
	}
	if status, answer := b.act(map[string]any{"action": "pause", "partition": 3}, "wrong prices"); status != http.StatusOK || !strings.Contains(answer, "partition 3 is paused") {
		t.Fatalf("pause: %d %s", status, answer)
	}
	if _, text, _ := b.do("GET", "api/audit", nil, nil); !strings.Contains(text, `"who":"alice"`) || !strings.Contains(text, `"why":"wrong prices"`) {
		t.Errorf("record: %s", text)
	}

	// Two operators at once: the second is refused, and nothing changes.
	second := newVisitor(t, c.URL)
	second.login("bob", opsToken)
	_, mine := b.post("api/propose", map[string]any{"action": "resume", "partition": 3})
	_, theirs := second.post("api/propose", map[string]any{"action": "resume", "partition": 3})
	var p1, p2 struct{ ID string }
	json.Unmarshal([]byte(mine), &p1)
	json.Unmarshal([]byte(theirs), &p2)
	if status, answer := b.post("api/carry", map[string]string{"id": p2.ID}); status != http.StatusConflict {
		t.Errorf("another's proposal: %d %s", status, answer)
	}
	if status, answer := second.post("api/carry", map[string]string{"id": p2.ID}); status != http.StatusOK {
		t.Errorf("resume: %d %s", status, answer)
	}
	if status, answer := b.post("api/carry", map[string]string{"id": p1.ID}); status != http.StatusConflict || !strings.Contains(answer, "look again") {
		t.Errorf("resumed already: %d %s", status, answer)
	}
	if status, answer := second.post("api/carry", map[string]string{"id": p2.ID}); status != http.StatusConflict || !strings.Contains(answer, "carried out already") {
		t.Errorf("carried out twice: %d %s", status, answer)
	}
	for _, w := range []struct {
		order  map[string]any
		status int
		says   string
	}{
		{map[string]any{"action": "park", "topic": "nowhere"}, 404, "no event of a topic"},
		{map[string]any{"action": "park", "topic": nasty}, 400, "not the name of a topic"},
		{map[string]any{"action": "pause", "partition": 32}, 400, "partitions are 0 to 31"},
		{map[string]any{"action": "redrive", "topic": "t", "from": 7}, 400, ""},
		{map[string]any{"action": "redrive", "topic": "t"}, 409, ""},
		{map[string]any{"action": "drain", "node": "b9"}, 404, "no broadcaster"},
		{map[string]any{"action": "discard", "topic": "t"}, 404, "no dead letters"},
		{map[string]any{"action": "nonsense"}, 400, "no action"},
		{map[string]any{"action": "pause", "nonsense": 1}, 400, "not an order"},
	} {
		if status, answer := b.act(w.order, "a test"); w.says != "no event of a topic" && w.order["topic"] == "t" && status == 404 {
			continue // its event is not sequenced: there is no worker
		} else if status != w.status || !strings.Contains(answer, w.says) {
			t.Errorf("%v: %d %s", w.order, status, answer)
		}
	}

	// A role that may only look.
	reader := newVisitor(t, consoleOf(t, database, redisURL, "reader", "--ops-token-file="+token).URL)
	reader.login("carol", opsToken)
	for _, o := range orders {
		if status, answer := reader.act(o, "a test"); status != http.StatusForbidden || !strings.Contains(answer, "commitcast_operator") {
			t.Errorf("a reader, %v: %d %s", o, status, answer)
		}
	}
	// What is live is for pages of this origin alone, and for as long as the session.
	for _, origin := range []string{"", "https://evil.example"} {
		if ws, status := b.live(origin); status != http.StatusForbidden {
			t.Errorf("live for a page of %q: %d", origin, status)
			ws.CloseNow()
		}
	}
	ws, status := b.live(u.Scheme + "://" + u.Host)
	if ws == nil {
		t.Fatalf("live for a page of the console: %d", status)
	}
	defer ws.CloseNow()
	kept := cookie.Cookies(u)
	if status, _ := b.post("logout", map[string]any{}); status != http.StatusOK {
		t.Errorf("logout: %d", status)
	}
	cookie.SetCookies(u, kept) // somebody has a copy
	if status, _, _ := b.do("GET", "api/status", nil, nil); status != http.StatusUnauthorized {
		t.Errorf("after logout: %d", status)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		if _, _, err := ws.Read(ctx); err != nil {
			break // hello came before
		}
	}
	if ctx.Err() != nil {
		t.Error("what was live stays so after logout")
	}
	// Who guesses has to wait. Who knows has not, however often others have guessed from there.
	last := 0
	for range 7 {
		last = newVisitor(t, c.URL).login("eve", "guess")
	}
	if last != http.StatusTooManyRequests {
		t.Errorf("the seventh guess: %d", last)
	}
	if status := newVisitor(t, c.URL).login("alice", opsToken); status != http.StatusSeeOther {
		t.Errorf("the token, after guesses: %d", status)
	}
}

// live opens the WebSocket of a page of an origin; nil and why not.
func (b *visitor) live(origin string) (*websocket.Conn, int) {
	b.t.Helper()
	header := http.Header{}
	if origin != "" {
		header.Set("Origin", origin)
	}
	ctx, cancel := context.WithTimeout(b.t.Context(), 30*time.Second)
	defer cancel()
	ws, resp, err := websocket.Dial(ctx, b.base+"live/v1/ws", &websocket.DialOptions{HTTPClient: b.http, HTTPHeader: header, Subprotocols: []string{wire.Protocol}})
	if resp == nil {
		b.t.Fatal(err)
	}
	return ws, resp.StatusCode
}

// consoleTab is the console in a real browser, of which pictures may be wanted.
type consoleTab struct {
	*chromium.Console
	t *testing.T
}

func openConsole(t *testing.T, base, who, token string, expected ...string) *consoleTab {
	t.Helper()
	return &consoleTab{chromium.OpenConsole(t, base, who, token, expected...), t}
}

// picture writes what is shown, if pictures are wanted.
func (p *consoleTab) picture(name string) {
	p.t.Helper()
	if *pictures == "" {
		return
	}
	if err := os.WriteFile(filepath.Join(*pictures, name+".png"), p.Picture(), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

const textHas = `document.getElementById('page').innerText.includes(%q)`

// The whole of it in a real browser: somebody logs in, sees that events flow, follows a topic live, pauses a partition, sees who is
// affected, resumes it from there, and finds it in the record. Names, payloads, errors and subjects that would run as markup are
// shown as text. Every page fits a phone.
func TestConsoleInABrowser(t *testing.T) {
	database, redisURL := testkit.Database(t), testkit.RedisURL(t)
	token := testkit.File(t, "token", []byte(opsToken))
	issuer := testkit.NewIssuer(t)
	start(t, database, redisURL, "worker", "--ops-token-file="+token)
	auth := []string{"--ops-token-file=" + token, "--auth=jwt", "--jwt-alg=EdDSA", "--jwt-key-file=" + issuer.File(t), "--jwt-audience=" + testkit.Audience}
	b1 := start(t, database, redisURL, append([]string{"broadcaster", "--node=b1"}, auth...)...)
	start(t, database, redisURL, append([]string{"broadcaster", "--node=b2" + nasty}, auth...)...)
	ada, _, err := testkit.Open(t, b1.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	ada.Auth(issuer.Token(nasty, []string{"**"}, nil))
	ada.Subscribe(1, "market:42", "")
	ada.Expect("subscribed")
	nastyJSON, _ := json.Marshal(map[string]string{"text": nasty})
	exec1(t, database, `SELECT commitcast.append('market:42', $1, $2, $1) FROM generate_series(1, 30)`, "trade"+nasty, string(nastyJSON))
	ada.ExpectEvents("market:42", 1, 30)
	exec1(t, database, `INSERT INTO commitcast.dead_letter (topic, "offset", epoch, partition, seq, id, type, data, created_at, error, attempts, died_at)
		SELECT 'dead:' || i, i, '1-cafe', commitcast.partition_of('dead:' || i), i, i, $1, $2, now(), 'NOPERM ' || $1, 16, now() - i * interval '1 min' FROM generate_series(1, 60) i`, "t"+nasty, string(nastyJSON))
	exec1(t, database, `INSERT INTO commitcast.topic (topic, partition, head, head_epoch) SELECT 'dead:1', commitcast.partition_of('dead:1'), 1, name FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1`)
	exec1(t, database, `INSERT INTO commitcast.parked (topic, partition, parked_from, error, attempts, died_at) VALUES ('dead:1', commitcast.partition_of('dead:1'), 1, $1, 16, now())`, "NOPERM "+nasty)
	c := consoleOf(t, database, redisURL, "operator", "--ops-token-file="+token)
	p := openConsole(t, c.URL, "al<img src=x onerror=pwned=1>", opsToken)

	p.Until(`document.querySelectorAll('.hop').length === 6 && document.querySelector('#hop-subscribers .big b').textContent === '1'`, "six hops, and the client")
	p.Until(fmt.Sprintf(textHas, "dead:1 is given up"), "what is stuck is said")
	p.Until(`document.querySelector('#fresh').dataset.state === 'now'`, "figures are fresh, and everybody answers")
	p.Until(`window.__console.connection() === 'open'`, "the page is a subscriber")

	// Live, through Commitcast.
	p.Look("#/topic?name=market:42", fmt.Sprintf(textHas, "30"))
	p.Until(`[...document.querySelectorAll('.tail .off')].some((e) => e.textContent === '30')`, "the newest events")
	exec1(t, database, `SELECT commitcast.append('market:42', 'trade', '{"yes":0.53}', '42')`)
	p.Until(`document.querySelector('.tail li .off').textContent === '31' && document.querySelector('.tail li .late')`, "a new event appears by itself")
	p.Until(fmt.Sprintf(textHas, `{"yes":0.53}`), "with its data")
	p.picture("topic-light")

	// Pause, from the list; see who is affected; resume, from the finding.
	part := wire.Partition("market:42")
	p.Look("#/partitions", `document.querySelectorAll('tbody tr').length === 32`)
	p.Click(fmt.Sprintf(`tr[data-key="%d"] button`, part))
	p.Until(`document.querySelector('#d-why')`, "it is said what would happen")
	p.Until(fmt.Sprintf(`document.querySelector('.would').textContent.includes('pause partition %d: nothing new of a thirty-second of all topics reaches anybody')`, part), "in the words of the dry run")
	p.Until(fmt.Sprintf(`(document.getElementById('d-why').value = %q, true)`, "wrong prices "+nasty), "a reason is given")
	p.picture("dialog-light")
	p.Click("#d-go")
	p.Until(fmt.Sprintf(`document.querySelector('dialog .notice')?.textContent.includes('partition %d is paused')`, part), "it is paused")
	p.Click("dialog .d-foot button")
	exec1(t, database, `SELECT commitcast.append('market:42', 'trade', '1') FROM generate_series(1, 7)`)
	p.Look("#/", fmt.Sprintf(`document.querySelector('.finding[data-level=problem] button') && %s`, fmt.Sprintf(textHas, fmt.Sprintf("partition %d is paused", part))))
	p.Until(fmt.Sprintf(textHas, "7 events wait"), "and who is affected")
	p.picture("pipeline-light")
	p.Emulate(1440, 960, "dark", false)
	p.picture("pipeline-dark")
	p.Emulate(1440, 960, "light", false)
	p.Click(fmt.Sprintf(`.finding button[data-handle="Resume partition %d…"]`, part))
	p.Until(`document.querySelector('#d-go')`, "it is said what would happen")
	p.Click("#d-go")
	p.Until(fmt.Sprintf(`document.querySelector('dialog .notice')?.textContent.includes('partition %d goes on')`, part), "it is resumed")
	p.Click("dialog .d-foot button")
	ada.ExpectEvents("market:42", 31, 38)
	p.Until(fmt.Sprintf(`!document.getElementById('page').innerText.includes('partition %d is paused')`, part), "the finding goes")

	// Redrive of a range, with progress.
	p.Look("#/topic?name=market:42", `document.querySelector('#t-from')`)
	p.Until(`(document.querySelector('details').open = true, document.getElementById('t-from').value = '1', true)`, "a range is named")
	p.Click("details form button")
	p.Until(`document.querySelector('.would')?.textContent.includes('publish 38 events of market:42, 1 to 38, in order')`, "it is said what would happen")
	p.Until(`(document.getElementById('d-why').value = 'a test', true)`, "a reason is given")
	p.Click("#d-go")
	p.Until(`document.querySelector('dialog')?.textContent.includes('38 of 38 events published: done')`, "workers do it")
	p.Click("dialog .d-foot button")

	// One client first, then all.
	if _, stderr, code := operate(t, database, redisURL, "park", "market:42", "--yes"); code != 0 {
		t.Fatalf("park: %d %s", code, stderr)
	}
	exec1(t, database, `SELECT commitcast.append('market:42', 'trade', '1') FROM generate_series(1, 3)`)
	ada.ExpectEvents("market:42", 39, 41)
	p.Until(`document.querySelector('button[data-handle="Release…"]')`, "the topic is parked")
	p.Click(`button[data-handle="Release…"]`)
	p.Until(`document.querySelector('#d-first')`, "one may be first")
	p.Until(fmt.Sprintf(`(document.getElementById('d-first').value = %q, document.getElementById('d-why').value = 'a test', true)`, nasty), "who, and why")
	p.Click("#d-go")
	p.Until(`document.querySelector('dialog .notice')?.textContent.includes('has been sent everything up to 41')`, "how far that client is")
	p.Click("#d-all")
	p.Until(`document.querySelector('.would')?.textContent.includes('publish 3 events of market:42, 39 to 41, in order')`, "then all")
	p.Until(`(document.getElementById('d-why').value = 'a test', true)`, "a reason is given")
	p.Click("#d-go")
	p.Until(`document.querySelector('dialog')?.textContent.includes('3 of 3 events published: done')`, "workers do it")
	p.Click("dialog .d-foot button")

	// Every page shows markup as text, and fits a phone.
	for _, v := range []struct{ name, hash, until string }{
		{"pipeline", "#/", `document.querySelector('.verdict').dataset.level !== 'wait' && document.querySelector('.finding')`},
		{"topics", "#/topics", fmt.Sprintf(textHas, "market:42")},
		{"topics-lag", "#/topics?order=lag", fmt.Sprintf(textHas, "dead:1")},
		{"topic", "#/topic?name=market:42", `document.querySelector('.tail').innerText.includes('onerror')`},
		{"dead", "#/dead", `document.querySelectorAll('tbody tr').length >= 51 && document.querySelector('.more:not([hidden])')`},
		{"letter", "#/letter?topic=dead:1&offset=1", `document.querySelector('pre')?.textContent.includes('onerror')`},
		{"partitions", "#/partitions", `document.querySelectorAll('tbody tr').length === 32`},
		{"nodes", "#/nodes", `document.getElementById('page').innerText.includes('b2<img')`},
		{"clients", "#/clients", `[...document.querySelectorAll('td')].some((e) => e.textContent.includes('<img src=x'))`},
		{"audit", "#/audit", fmt.Sprintf(textHas, "wrong prices <img")},
		{"doctor", "#/doctor", `document.querySelectorAll('.checks li').length > 10`},
	} {
		p.Emulate(1440, 960, "light", false)
		p.Look(v.hash, v.until)
		p.picture(v.name + "-wide")
		for _, width := range []int{390, 900} {
			p.Emulate(width, 844, "light", width < 500)
			p.Until(fmt.Sprintf("document.documentElement.scrollWidth <= %d", width), "%s fits %d pixels", v.name, width)
			if width == 390 {
				p.picture(v.name + "-phone")
			}
		}
		if n := chromium.In[int](p.Tab, `document.querySelectorAll('#page img, #page script, dialog img').length`); n != 0 || chromium.In[bool](p.Tab, `'pwned' in window || document.title === 'pwned'`) {
			t.Errorf("%s takes text for markup", v.name)
		}
	}
	p.Emulate(390, 844, "dark", true)
	p.Look("#/", `document.querySelector('.finding')`)
	p.picture("pipeline-phone-dark")
	p.Emulate(1440, 960, "light", false)

	// The next page of a list, by key.
	p.Look("#/dead", `document.querySelector('.more:not([hidden])')`)
	p.Click(".more:not([hidden])")
	p.Until(`document.querySelectorAll('section.card:first-of-type tbody tr').length === 60`, "the rest of the dead letters")

	// River's own interface, behind the same login.
	p.Do(chromedp.Navigate(c.URL + "river/"))
	p.Until(`document.querySelector('#root')?.innerText.includes('Jobs')`, "River's interface is shown")
	p.Until(`document.body.innerText.includes('journal_upkeep') || document.body.innerText.includes('outbox_drain') || document.body.innerText.includes('No jobs')`, "and its jobs")
	p.picture("river")
	for _, s := range p.Troubles() {
		t.Errorf("console: %s", s)
	}
}

// With Redis, Postgres or both gone the page answers, and says who does not, and since when.
func TestConsoleWithBothDown(t *testing.T) {
	server, postgres := testkit.Redis(t), testkit.Postgres(t)
	database := postgres.URL("postgres")
	testkit.Migrate(t, database)
	start(t, database, server.URL(), "worker")
	start(t, database, server.URL(), "broadcaster", "--node=b1")
	exec1(t, database, `SELECT commitcast.append('t', 'test', '1')`)
	c := consoleOf(t, database, server.URL(), "operator")
	p := openConsole(t, c.URL, "alice", "", "503", "502", "WebSocket", "Failed to load")
	silent := func(names string) string {
		return fmt.Sprintf(`window.__console.store.status?.sources.filter((s) => !s.up).map((s) => s.name).sort().join() === %q`, names)
	}
	p.Until(silent("")+` && window.__console.store.status.sources.length === 4 && document.querySelector('#fresh').dataset.state === 'now'`, "all is well")
	server.Kill()
	p.Until(silent("redis")+` && document.getElementById('hop-redis').dataset.level === 'problem' && document.querySelector('#fresh').dataset.state === 'part'`, "Redis is down")
	p.Until(fmt.Sprintf(textHas, "Redis does not answer"), "and said to be")
	postgres.Kill()
	p.Until(silent("database,redis")+` && document.querySelector('.verdict').dataset.level === 'problem' && document.getElementById('hop-outbox').dataset.level === 'unknown'`, "both are down")
	p.Until(fmt.Sprintf(textHas, "the database does not answer")+` && [...document.querySelectorAll('.sources .why')].some((e) => e.textContent.includes('Last answer'))`, "and said to be, with the last answer")
	p.Until(`window.__console.store.status.nodes.length === 2 && window.__console.store.status.nodes.every((n) => n.identity)`, "nodes are asked all the same")
	p.picture("both-down-light")
	for _, hash := range []string{"#/topics", "#/dead", "#/audit", "#/clients", "#/doctor"} {
		p.Look(hash, `document.querySelector('#page [data-level=problem]') || document.querySelector('#page .card h2')?.textContent === 'b1'`)
	}
	p.Look("#/partitions", fmt.Sprintf(textHas, "Not known while the database is away"))
	b := newVisitor(t, c.URL)
	if status := b.login("bob", ""); status != http.StatusSeeOther {
		t.Errorf("login while both are down: %d", status)
	}
	if status, answer := b.act(map[string]any{"action": "pause", "partition": 3}, "a test"); status != http.StatusServiceUnavailable || !strings.Contains(answer, "database does not answer") {
		t.Errorf("an action while both are down: %d %s", status, answer)
	}
	p.Look("#/", `document.querySelector('.verdict')`)
	if err := postgres.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.Until(silent("")+` && document.getElementById('hop-redis').dataset.level === 'good'`, "both are back")
	// From nothing: a console may start while both are down.
	postgres.Kill()
	server.Kill()
	began := time.Now()
	late := newVisitor(t, run(t, database, server.URL(), "ops", "serve", "--listen=127.0.0.1:0").URL)
	late.login("carol", "")
	if status, text, _ := late.do("GET", "api/status", nil, nil); status != 200 || !strings.Contains(text, `"up":false`) || time.Since(began) > 40*time.Second {
		t.Errorf("after %v: %d %s", time.Since(began), status, text)
	}
}

// Ops listeners that serve TLS are found by what their sessions say, and asked with a certificate of the operator; one that the
// operator named with https is not asked without. The console is on the ops listener of `commitcast all`, with the same login.
func TestNodesOverTLS(t *testing.T) {
	database, redisURL := testkit.Database(t), testkit.RedisURL(t)
	ours, others := testkit.NewAuthority(t), testkit.NewAuthority(t)
	cert, key := ours.Files("127.0.0.1")
	ca := testkit.File(t, "ca.pem", ours.PEM)
	token := testkit.File(t, "token", []byte(opsToken))
	mutual := []string{"--ops-tls-cert=" + cert, "--ops-tls-key=" + key, "--ops-client-ca=" + ca}
	run(t, testkit.As(t, database, "worker"), redisURL, append([]string{"worker", "--ops-listen=127.0.0.1:0"}, mutual...)...)
	b := run(t, testkit.As(t, database, "reader"), redisURL, append([]string{"broadcaster", "--node=b1", "--auth=off", "--listen=127.0.0.1:0", "--ops-listen=127.0.0.1:0"}, mutual...)...)
	operatorCert, operatorKey := ours.Files("alice")
	shows := []string{"--node-ca=" + ca, "--node-cert=" + operatorCert, "--node-key=" + operatorKey}
	status := func(args ...string) (string, int) {
		stdout, stderr, code := operate(t, database, redisURL, append([]string{"status", "--over=0"}, args...)...)
		return stdout + stderr, code
	}
	testkit.Eventually(t, 30*time.Second, func() error {
		if out, code := status(shows...); code != 0 || strings.Count(out, "https://127.0.0.1:") != 2 || !strings.Contains(out, "b1") {
			return fmt.Errorf("code %d\n%s", code, out)
		}
		return nil
	}, "both nodes answer")
	wrong := testkit.File(t, "wrong.pem", others.PEM)
	for name, c := range map[string]struct {
		args []string
		says string
		code int
	}{
		"no authority":       {nil, "--node-ca", 3},
		"another authority":  {[]string{"--node-ca=" + wrong}, "--node-ca", 3},
		"no certificate":     {[]string{"--node-ca=" + ca}, "--node-cert", 3},
		"half a certificate": {[]string{"--node-cert=" + operatorCert}, "go together", 2},
	} {
		if out, code := status(c.args...); code != c.code || !strings.Contains(strings.Join(strings.Fields(out), " "), c.says) {
			t.Errorf("%s: code %d\n%s", name, code, out)
		}
	}
	at := strings.TrimPrefix(b.Ops, "https://")
	if out, code := status(append(shows, "--node=https://"+at)...); code != 0 || strings.Count(out, at) != 1 {
		t.Errorf("named with https: code %d\n%s", code, out)
	}
	if out, _, code := operate(t, database, redisURL, append([]string{"drain", "b1", "--yes"}, shows...)...); code != 0 {
		t.Errorf("drain: code %d %s", code, out)
	}

	all := run(t, testkit.As(t, database, "worker", "reader"), "", "all", "--auth=off", "--listen=127.0.0.1:0", "--ops-listen=127.0.0.1:0", "--ops-token-file="+token)
	page := newVisitor(t, all.Ops+"/console/")
	if status := page.login("alice", "wrong"); status != http.StatusForbidden {
		t.Errorf("a wrong token: %d", status)
	}
	if status := page.login("alice", opsToken); status != http.StatusSeeOther {
		t.Errorf("login: %d", status)
	}
	testkit.Eventually(t, 30*time.Second, func() error {
		code, text, _ := page.do("GET", "api/status", nil, nil)
		if code != 200 || !strings.Contains(text, `"up":true`) || !strings.Contains(text, all.Ops[len("http://"):]) {
			return fmt.Errorf("%d %s", code, text)
		}
		return nil
	}, "it knows itself")
	if code, answer := page.act(map[string]any{"action": "pause", "partition": 1}, "a test"); code != http.StatusForbidden || !strings.Contains(answer, "commitcast_operator") {
		t.Errorf("without an operator's rights: %d %s", code, answer)
	}
}

// The pictures of docs/operations.md: a busy deployment in which somebody has paused a partition.
//
//	go test ./internal/e2e -run TestConsolePictures -args -pictures FOLDER
func TestConsolePictures(t *testing.T) {
	if *pictures == "" {
		t.Skip("no pictures are wanted: -pictures")
	}
	database, redisURL := testkit.Database(t), testkit.RedisURL(t)
	start(t, database, redisURL, "worker")
	var nodes []*node
	for _, name := range []string{"b1", "b2"} {
		nodes = append(nodes, start(t, database, redisURL, "broadcaster", "--node="+name))
	}
	for i := range 24 {
		c := testkit.Dial(t, nodes[i%2].URL)
		for id := range 4 {
			c.Subscribe(id+1, fmt.Sprintf("market:%d", 40+(i+id)%8), "")
			c.Expect("subscribed")
		}
	}
	c := consoleOf(t, database, redisURL, "operator")
	p := openConsole(t, c.URL, "alice", "")
	b := newVisitor(t, c.URL)
	b.login("alice", "")
	write := func(rounds int) {
		for range rounds {
			exec1(t, database, `SELECT commitcast.append('market:' || 40 + i % 8, 'trade', json_build_object('yes', round((0.4 + random() / 5)::numeric, 2)), (40 + i % 8)::text) FROM generate_series(1, 20 + (random() * 40)::int) i`)
			time.Sleep(300 * time.Millisecond) // traffic, and nothing waits for it
		}
	}
	write(30)
	p.picture("console-good")
	if status, answer := b.act(map[string]any{"action": "pause", "partition": wire.Partition("market:42")}, "wrong prices since 03:10"); status != http.StatusOK {
		t.Fatal(answer)
	}
	write(30)
	p.Until(`document.querySelector('.finding')`, "the pause is seen")
	for _, scheme := range []string{"light", "dark"} {
		p.Emulate(1280, 860, scheme, false)
		p.picture("console-" + scheme)
	}
	p.Emulate(390, 844, "dark", true)
	p.picture("console-phone")
	p.Emulate(1280, 860, "light", false)
	p.Look("#/topic?name=market:43", `document.querySelectorAll('.tail li').length > 5`)
	write(3)
	p.picture("console-topic")
}
