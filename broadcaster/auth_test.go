package broadcaster_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/commitcast/commitcast/auth"
	"github.com/commitcast/commitcast/auth/token"
	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/internal/testkit"
)

// newAuthRig is a rig that asks for tokens of an issuer.
func newAuthRig(t *testing.T, config broadcaster.Config) (*rig, *testkit.Issuer) {
	t.Helper()
	issuer := testkit.NewIssuer(t)
	keys, err := token.ParsePublicKeys(issuer.PEM)
	if err != nil {
		t.Fatal(err)
	}
	v, err := token.New(token.Config{Algorithms: []string{token.EdDSA}, Keys: keys, Audiences: []string{testkit.Audience}, Leeway: -1, NoSubject: true})
	if err != nil {
		t.Fatal(err)
	}
	config.Verifier = v
	return newRig(t, nil, config), issuer
}

func open(t *testing.T, url string, options *websocket.DialOptions) *testkit.Client {
	t.Helper()
	c, _, err := testkit.Open(t, url, options)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func bearer(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }

// answerOf is the answer to a plain request.
func answerOf(t *testing.T, url string, header http.Header) (int, http.Header, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = header.Clone()
	if r.Header == nil {
		r.Header = http.Header{}
	}
	if host := r.Header.Get("Host"); host != "" {
		r.Host = host
	}
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.Header.Get("Content-Type") == "text/event-stream" {
		return resp.StatusCode, resp.Header, ""
	}
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, string(body)
}

// A token opens a session by each of its ways, and only with it is anything said.
func TestWaysOfATokenIn(t *testing.T) {
	r, issuer := newAuthRig(t, broadcaster.Config{})
	r.commit("news", 2)
	good, bad := issuer.Token("7", []string{"news"}, nil), testkit.NewIssuer(t).Token("7", []string{"news"}, nil)
	for name, connect := range map[string]func() *testkit.Client{
		"frame": func() *testkit.Client {
			c := open(t, r.URL, nil)
			c.Auth(good)
			return c
		},
		"header": func() *testkit.Client {
			c := open(t, r.URL, &websocket.DialOptions{HTTPHeader: bearer(good)})
			c.Expect("hello")
			return c
		},
		"subprotocol": func() *testkit.Client {
			c := open(t, r.URL, &websocket.DialOptions{Subprotocols: []string{"commitcast.token." + good}})
			if p := c.WS.Subprotocol(); p != "commitcast.v1" {
				t.Errorf("the server chose %q", p)
			}
			c.Expect("hello")
			return c
		},
	} {
		c := connect()
		c.Subscribe(1, "news", r.cursor(0))
		c.Expect("subscribed")
		c.ExpectEvents("news", 1, 2)
		c.Subscribe(2, "secret", "")
		if m := c.Expect("error"); m.Code != "forbidden" || m.ID != 2 {
			t.Errorf("%s: %+v", name, m)
		}
	}
	e := newEventSource(t, r.events("news")+"?after="+r.cursor(0))
	e.header = bearer(good)
	e.open()
	e.expectEvents(1, 2)

	c := open(t, r.URL, nil)
	c.Send(fmt.Sprintf(`{"op":"auth","token":%q}`, bad))
	if reason := c.ExpectClose(4401); !strings.HasPrefix(reason, "token refused: ") {
		t.Errorf("reason %q", reason)
	}
	for name, options := range map[string]*websocket.DialOptions{"header": {HTTPHeader: bearer(bad)}, "subprotocol": {Subprotocols: []string{"commitcast.token." + bad}}} {
		if _, resp, err := testkit.Open(t, r.URL, options); err == nil || resp.StatusCode != 401 || resp.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("a bad token in the %s: %v %v", name, resp, err)
		}
	}
	for header, want := range map[*http.Header]int{{}: 401, new(bearer(bad)): 401, new(bearer(good)): 403} {
		if status, h, body := answerOf(t, r.events("secret"), *header); status != want || want == 401 && h.Get("WWW-Authenticate") == "" {
			t.Errorf("events with %v: %d %s", header, status, body)
		}
	}
}

// Before its token, a client hears nothing and can ask for nothing, and not for long.
func TestUnauthenticatedClients(t *testing.T) {
	r, _ := newAuthRig(t, broadcaster.Config{AuthTimeout: 300 * time.Millisecond, Heartbeat: 50 * time.Millisecond})
	// Nor is it worth an answer what it does wrong.
	for _, send := range []string{`{"op":"subscribe","topic":"news"}`, `{"op":"unsubscribe","topic":"news"}`, `nonsense`, `{}`, `{"op":"x"}`, `{"op":"auth"}`,
		`{"op":"auth","token":7}`, `{"op":"subscribe","topic":"?"}`, "{\n}"} {
		c := open(t, r.URL, nil)
		c.Send(send)
		m, err := c.Read(10 * time.Second)
		if code := websocket.CloseStatus(err); code != 4401 {
			t.Errorf("%s: %+v %v", send, m, err)
		}
	}
	c := open(t, r.URL, nil)
	m, err := c.Read(10 * time.Second)
	if code := websocket.CloseStatus(err); code != 4400 {
		t.Errorf("silence: %+v %v", m, err)
	}
	testkit.Eventually(t, 10*time.Second, func() bool { return r.b.Connections() == 0 }, "they are gone")
}

// A newer token prolongs a session, whose subscriptions go on; those that it does not allow any more end.
func TestRefresh(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{Verifier: plain{}, AuthGrace: 200 * time.Millisecond, Heartbeat: 50 * time.Millisecond})
	c := open(t, r.URL, nil)
	began := time.Now()
	c.Auth(plainToken("7", 2*time.Second, "news", "market:*"))
	for i, topic := range []string{"news", "market:1", "market:2"} {
		c.Subscribe(i+1, topic, "")
		c.Expect("subscribed")
	}
	c.Send(fmt.Sprintf(`{"op":"auth","token":%q}`, plainToken("7", 6*time.Second, "news", "market:1")))
	if m := c.Expect("error"); m.Code != "forbidden" || m.ID != 3 {
		t.Errorf("%+v", m)
	}
	for n := int64(1); time.Since(began) < 2700*time.Millisecond; n++ { // beyond the first token and its grace
		r.commit("market:2", 1)
		r.commit("news", 1)
		c.ExpectEvents("news", n, n)
	}
	c.Subscribe(4, "market:2", "")
	if m := c.Expect("error"); m.Code != "forbidden" {
		t.Errorf("%+v", m)
	}
	if reason := c.ExpectClose(4401); !strings.Contains(reason, "expired") {
		t.Errorf("reason %q", reason)
	}
	if d := time.Since(began); d < 6*time.Second {
		t.Errorf("closed after %v", d)
	}

	c = open(t, r.URL, nil)
	c.Auth(plainToken("7", time.Hour, "news"))
	c.Send(fmt.Sprintf(`{"op":"auth","token":%q}`, plainToken("8", time.Hour, "news")))
	if reason := c.ExpectClose(4401); !strings.Contains(reason, "subject") {
		t.Errorf("another subject: %q", reason)
	}
	e := newEventSource(t, r.events("news"))
	e.header = bearer(plainToken("7", 500*time.Millisecond, "news"))
	e.open()
	if m := e.expect("refused"); m.frame.Code != "forbidden" || !strings.Contains(m.frame.Message, "expired") {
		t.Errorf("%+v", m)
	}
	if _, err := e.next(); err != io.EOF {
		t.Errorf("after that: %v", err)
	}
}

// fate is a Verifier of plain tokens and an Authorizer whose answers a test changes.
type fate struct {
	plain
	*switchboard
}

func (f fate) Verify(ctx context.Context, token string) (*auth.Identity, error) {
	return f.plain.Verify(ctx, token)
}

func (s *switchboard) times(topic string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[topic]
}

// While nobody can decide what a newer token allows, subscriptions go on, but not beyond the last token that was decided
// about, however often the client renews; it is asked again, and what is decided then counts.
func TestRefreshUndecided(t *testing.T) {
	s := &switchboard{}
	r := newRig(t, nil, broadcaster.Config{Verifier: fate{switchboard: s}, Authorizer: s, AuthGrace: 200 * time.Millisecond, Heartbeat: 50 * time.Millisecond})
	begin := func() (c *testkit.Client, until time.Time) {
		s.set(nil, "a", nil)
		s.set(nil, "b", nil)
		c = open(t, r.URL, nil)
		until = time.Now().Add(4 * time.Second)
		c.Auth(plainToken("7", time.Until(until), "**"))
		for i, topic := range []string{"a", "b"} {
			c.Subscribe(i+1, topic, "")
			c.Expect("subscribed")
		}
		for range 3 {
			s.set(nil, "a", errors.New("away"))
			asked := s.times("a")
			c.Send(fmt.Sprintf(`{"op":"auth","token":%q}`, plainToken("7", time.Hour, "**")))
			testkit.Eventually(t, 10*time.Second, func() bool { return s.times("a") > asked }, "it is asked about")
		}
		r.commit("a", 1)
		r.commit("b", 1)
		for range 2 { // both go on
			c.Expect("event")
		}
		return c, until
	}

	c, until := begin()
	if m := c.Expect("error"); m.Code != "unavailable" || m.ID != 1 {
		t.Errorf("%+v", m)
	}
	if early := time.Until(until); early > 0 {
		t.Errorf("it ended %v before the last token that was decided about", early)
	}
	r.commit("a", 1)
	r.commit("b", 1)
	if m := c.Expect("event"); m.Topic != "b" {
		t.Errorf("%+v", m)
	}
	s.set(nil, "a", nil)
	c.Subscribe(3, "a", "")
	c.Expect("subscribed")

	c, until = begin()
	s.set(nil, "a", nil)
	for time.Until(until) > -500*time.Millisecond { // beyond the first token and its grace
		r.commit("a", 1)
		if m := c.Expect("event"); m.Topic != "a" {
			t.Fatalf("%+v", m)
		}
	}

	c, _ = begin()
	s.set(nil, "a", fmt.Errorf("%w: no more", auth.ErrForbidden))
	if m := c.Expect("error"); m.Code != "forbidden" || m.ID != 1 {
		t.Errorf("%+v", m)
	}
}

// Who renews too often is told so, and goes on with what it has.
func TestRenewalsAreLimited(t *testing.T) {
	registry := prometheus.NewRegistry()
	r := newRig(t, nil, broadcaster.Config{Verifier: plain{}, Registerer: registry})
	c := open(t, r.URL, nil)
	c.Auth(plainToken("7", time.Hour, "news"))
	c.Subscribe(1, "news", "")
	c.Expect("subscribed")
	for i := range 50 {
		c.Send(fmt.Sprintf(`{"op":"auth","id":%d,"token":%q}`, 100+i, plainToken("7", time.Hour, "news")))
	}
	if m := c.Expect("error"); m.Code != "too_many" || m.ID != 105 {
		t.Errorf("%+v", m)
	}
	if hits(t, registry, "renewals") == 0 {
		t.Error("the metric does not say so")
	}
	r.commit("news", 1)
	for {
		m, err := c.Read(10 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if m.Op == "event" {
			break
		}
		if m.Op != "error" && m.Op != "heartbeat" {
			t.Errorf("%+v", m)
		}
	}
}

// A token in an address is refused whatever else is right, and is not written down anywhere.
func TestTokenInURL(t *testing.T) {
	var log lockedBuffer
	r, issuer := newAuthRig(t, broadcaster.Config{Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	good := issuer.Token("7", []string{"news"}, nil)
	for _, query := range []string{"token=", "access_token=", "TOKEN=", "authorization=Bearer%20", "jwt=", "t=", "x=1&other=Bearer+", "%zz&x="} {
		for _, path := range []string{"/v1/ws", "/v1/topics/news/events"} {
			status, _, body := answerOf(t, r.URL+path+"?"+query+good, bearer(good))
			if status != 400 || !strings.Contains(body, "must not be in an address") || strings.Contains(body, good[:20]) {
				t.Errorf("%s?%s: %d %s", path, query, status, body)
			}
		}
	}
	if status, _, body := answerOf(t, r.URL+"/v1/topics/news/events?token=short", bearer(good)); status != 400 {
		t.Errorf("%d %s", status, body)
	}
	if status, _, body := answerOf(t, r.URL+"/v1/topics/news/events?%zz&token=short", bearer(good)); status != 400 {
		t.Errorf("beside what cannot be read: %d %s", status, body)
	}
	// Nor is one that comes the right way.
	c := open(t, r.URL, nil)
	c.Send(fmt.Sprintf(`{"op":"auth","token":%q}`, good[:len(good)-2]))
	c.ExpectClose(4401)
	if text := log.String(); strings.Contains(text, good[:40]) || strings.Contains(text, good[40:60]) {
		t.Errorf("the log has it: %s", text)
	}
}

// lockedBuffer is a bytes.Buffer that may be written to from several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// plain is a Verifier of tokens that say in plain words who, until when to the nanosecond, and what.
type plain struct{}

func plainToken(subject string, life time.Duration, topics ...string) string {
	return fmt.Sprintf("%s %d %s", subject, time.Now().Add(life).UnixNano(), strings.Join(topics, ","))
}

func (plain) Verify(_ context.Context, token string) (*auth.Identity, error) {
	var subject, topics string
	var until int64
	if _, err := fmt.Sscan(token, &subject, &until, &topics); err != nil {
		return nil, fmt.Errorf("%w: %v", auth.ErrRefused, err)
	}
	who := &auth.Identity{Subject: subject, Expires: time.Unix(0, until)}
	for text := range strings.SplitSeq(topics, ",") {
		p, err := auth.ParsePattern(text)
		if err != nil {
			return nil, fmt.Errorf("%w: %v", auth.ErrRefused, err)
		}
		who.Topics = append(who.Topics, p)
	}
	return who, nil
}

// switchboard is a Verifier and an Authorizer whose answers a test changes.
type switchboard struct {
	mu        sync.Mutex
	verify    error
	authorize map[string]error
	asked     map[string]int
}

func (s *switchboard) Verify(context.Context, string) (*auth.Identity, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.verify != nil {
		return nil, s.verify
	}
	return &auth.Identity{Subject: "7"}, nil
}

func (s *switchboard) Authorize(_ context.Context, _ *auth.Identity, topic string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked == nil {
		s.asked = map[string]int{}
	}
	s.asked[topic]++
	return s.authorize[topic]
}

func (s *switchboard) set(verify error, topic string, authorize error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.verify = verify
	if s.authorize == nil {
		s.authorize = map[string]error{}
	}
	s.authorize[topic] = authorize
}

// What cannot be decided is not allowed, and the client is told to come back, not that it may not.
func TestUndecided(t *testing.T) {
	away := errors.New("away")
	s := &switchboard{}
	r := newRig(t, nil, broadcaster.Config{Verifier: s, Authorizer: s})
	s.set(away, "a", nil)
	c := open(t, r.URL, nil)
	c.Send(`{"op":"auth","token":"x"}`)
	c.ExpectClose(1013)
	if status, h, body := answerOf(t, r.events("a"), bearer("x")); status != 503 || h.Get("Retry-After") == "" {
		t.Errorf("%d %s", status, body)
	}
	s.set(nil, "a", nil)
	c = open(t, r.URL, nil)
	c.Auth("x")
	c.Subscribe(1, "a", "")
	c.Expect("subscribed")
	s.set(away, "b", away)
	c.Subscribe(2, "b", "")
	if m := c.Expect("error"); m.Code != "unavailable" || m.ID != 2 {
		t.Errorf("%+v", m)
	}
	c.Send(`{"op":"auth","id":3,"token":"x"}`) // the last one stands
	if m := c.Expect("error"); m.Code != "unavailable" || m.ID != 3 {
		t.Errorf("%+v", m)
	}
	r.commit("a", 1)
	c.ExpectEvents("a", 1, 1)
}

// Every page of a replay is asked about: one who may not read a topic any more does not get the rest of its past.
func TestReplayIsAuthorizedPageByPage(t *testing.T) {
	s := &switchboard{}
	r := newRig(t, nil, broadcaster.Config{Verifier: s, Authorizer: s, LogEvents: 8})
	r.commit("t", 5000)
	c := open(t, r.URL, nil)
	c.Auth("x")
	r.journal.set("after range", func() { s.set(nil, "t", fmt.Errorf("%w: no more", auth.ErrForbidden)) })
	r.stream.set("after range", func() { s.set(nil, "t", fmt.Errorf("%w: no more", auth.ErrForbidden)) })
	c.Subscribe(1, "t", r.cursor(0))
	c.Expect("subscribed")
	last := int64(0)
	for {
		m, err := c.Read(10 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if m.Op == "error" {
			if m.Code != "forbidden" || m.ID != 1 {
				t.Errorf("%+v", m)
			}
			break
		}
		last = m.Offset
	}
	if last == 0 || last >= 5000 {
		t.Errorf("got %d events", last)
	}
	r.commit("t", 1)
	c.Subscribe(2, "u", "") // nothing of t comes any more
	c.Expect("subscribed")
}

// While nobody can decide about a topic, its past is not read, and the subscription waits.
func TestReplayWaitsForADecision(t *testing.T) {
	s := &switchboard{}
	r := newRig(t, nil, broadcaster.Config{Verifier: s, Authorizer: s, LogEvents: 8})
	r.commit("t", 5000)
	c := open(t, r.URL, nil)
	c.Auth("x")
	away := func() { s.set(nil, "t", errors.New("away")) }
	r.journal.set("after range", away)
	r.stream.set("after range", away)
	c.Subscribe(1, "t", r.cursor(0))
	c.Expect("subscribed")
	asked := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.asked["t"]
	}
	testkit.Eventually(t, 10*time.Second, func() bool { return asked() >= 4 }, "it is tried again")
	r.journal.clear()
	r.stream.clear()
	s.set(nil, "t", nil)
	c.ExpectEvents("t", 1, 5000)
}

// A service that decides about topics and is slow, or gone, keeps new subscriptions out, and neither the events of those that
// there are, nor for long the client that asks.
func TestWebhookDownOrSlow(t *testing.T) {
	var hang atomic.Bool
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if hang.Load() {
			select {
			case <-release:
			case <-r.Context().Done():
			}
			return
		}
		fmt.Fprint(w, `{"allow":true}`)
	}))
	defer server.Close()
	defer close(release)
	hook, err := auth.NewWebhook(auth.WebhookConfig{URL: server.URL, Timeout: 200 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer hook.Close()
	r := newRig(t, nil, broadcaster.Config{Verifier: plain{}, Authorizer: hook})
	c, other := open(t, r.URL, nil), open(t, r.URL, nil)
	c.Auth(plainToken("7", time.Hour, "**"))
	other.Auth(plainToken("8", time.Hour, "**"))
	c.Subscribe(1, "a", "")
	c.Expect("subscribed")
	hang.Store(true)
	for i := range 200 { // one after the other they would take 40 s
		other.Subscribe(i, fmt.Sprint("t", i), "")
	}
	for n := int64(1); n <= 5; n++ {
		r.commit("a", 1)
		c.ExpectEvents("a", n, n)
	}
	began := time.Now()
	for i := range 200 {
		if m := other.Expect("error"); m.Code != "unavailable" || m.ID != int64(i) {
			t.Fatalf("%+v", m)
		}
	}
	if d := time.Since(began); d > 15*time.Second {
		t.Errorf("took %v", d)
	}
	server.CloseClientConnections()
	server.Listener.Close()
	if status, h, body := answerOf(t, r.events("b"), bearer(plainToken("9", time.Hour, "**"))); status != 503 || h.Get("Retry-After") == "" {
		t.Errorf("%d %s", status, body)
	}
	r.commit("a", 1)
	c.ExpectEvents("a", 6, 6)
}

// Subjects reach the database in batches: one that it would not take must not spoil those of others.
func TestSubjectIsText(t *testing.T) {
	r, issuer := newAuthRig(t, broadcaster.Config{})
	for _, subject := range []string{"x\x00", "\x00"} {
		if status, _, body := answerOf(t, r.events("t"), bearer(issuer.Token(subject, []string{"**"}, nil))); status != http.StatusUnauthorized {
			t.Errorf("%q: %d %s", subject, status, body)
		}
	}
}
