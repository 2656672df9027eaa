package broadcaster_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/commitcast/commitcast/auth"
	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/wire"
)

// handshake is the status that a WebSocket is answered with.
func handshake(t *testing.T, url, host string, header http.Header) int {
	t.Helper()
	c, resp, err := testkit.Open(t, url, &websocket.DialOptions{HTTPHeader: header, Host: host})
	if err == nil {
		c.WS.CloseNow()
	}
	if resp == nil {
		t.Fatal(err)
	}
	return resp.StatusCode
}

// A page of another site cannot use its visitor's browser to read here, nor one that has come by another name.
func TestOrigins(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{Hosts: []string{"live.example.com", "*.internal"}, TrustedHops: 1,
		Origins: []string{"https://*.example.com", "http://dev.test:3000", "app.test"}})
	own := strings.TrimPrefix(r.URL, "http://")
	for _, c := range []struct {
		host, origin, proto string
		status              int
	}{
		{"", "", "", 101},
		{"", r.URL, "", 101},
		{"", "https://" + own, "", 101},
		{"live.example.com", "https://live.example.com", "https", 101},
		{"LIVE.example.com:443", "https://live.example.com", "https", 101},
		{"live.example.com", "http://live.example.com", "https", 403}, // a page that anybody on the way could have changed
		{"live.example.com", "http://live.example.com", "http, https", 403},
		{"live.example.com", "http://live.example.com", "", 101}, // nobody says that this came by TLS
		{"", "https://a.example.com", "", 101},
		{"", "https://a.b.example.com", "", 101},
		{"", "HTTPS://A.example.com", "", 101},
		{"", "http://a.example.com", "", 403},
		{"", "https://example.com", "", 403},
		{"", "https://a.example.com.evil.test", "", 403},
		{"", "https://evil.test/.example.com", "", 403},
		{"", "https://evil.test?.example.com", "", 403},
		{"", "https://evil.test#.example.com", "", 403},
		{"", "https://evil.test@a.example.com", "", 403},
		{"", "https://a.example.com:8443", "", 403},
		{"", "http://dev.test:3000", "", 101},
		{"", "http://dev.test", "", 403},
		{"", "https://app.test", "", 101},
		{"", "http://app.test", "", 403},
		{"", "https://evil.test", "", 403},
		{"", "null", "", 403},
		{"", "file://", "", 403},
		{"", "nonsense", "", 403},
	} {
		header := http.Header{}
		if c.origin != "" {
			header.Set("Origin", c.origin)
		}
		if c.proto != "" {
			header.Set("X-Forwarded-Proto", c.proto)
		}
		if got := handshake(t, r.URL, c.host, header); got != c.status {
			t.Errorf("WebSocket, host %q, origin %q, %s: %d, want %d", c.host, c.origin, c.proto, got, c.status)
		}
		if c.host != "" {
			header.Set("Host", c.host)
		}
		status, h, _ := answerOf(t, r.events("a"), header)
		if want := map[int]int{101: 200, 403: 403}[c.status]; status != want {
			t.Errorf("events, host %q, origin %q, %s: %d, want %d", c.host, c.origin, c.proto, status, want)
		}
		cross := status == 200 && c.origin != "" && !strings.Contains(c.origin, "127.0.0.1") && !strings.Contains(c.origin, "live.example.com")
		if allow, want := h.Get("Access-Control-Allow-Origin"), map[bool]string{true: c.origin}[cross]; allow != want {
			t.Errorf("events, origin %q: allowed %q", c.origin, allow)
		}
	}
	if got := handshake(t, r.URL, "", http.Header{"Origin": {"https://a.example.com", "https://evil.test"}}); got != 403 {
		t.Errorf("two origins: %d", got)
	}
	for site, want := range map[string]int{"cross-site": 403, "same-site": 403, "same-origin": 200, "none": 200} {
		if status, _, _ := answerOf(t, r.events("a"), http.Header{"Sec-Fetch-Site": {site}}); status != want {
			t.Errorf("a page's element, %s: %d", site, status)
		}
	}
	strict := newRig(t, nil, broadcaster.Config{RequireOrigin: true})
	if got := handshake(t, strict.URL, "", nil); got != 403 {
		t.Errorf("no origin: %d", got)
	}
	if got := handshake(t, strict.URL, "", http.Header{"Origin": {strict.URL}}); got != 101 {
		t.Errorf("the own origin: %d", got)
	}
	for _, bad := range []broadcaster.Config{{Origins: []string{"[a"}}, {Origins: []string{""}}, {Origins: []string{"ftp://a"}}, {Origins: []string{"https://a/b"}},
		{Hosts: []string{"[a"}}, {Hosts: []string{""}}, {MaxRequests: -1}} {
		if _, err := broadcaster.New(r.journal, r.stream, bad); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}

// A name that was pointed at this server is not one of its own: its page would be of the same origin.
func TestDNSRebinding(t *testing.T) {
	open := newRig(t, nil, broadcaster.Config{})
	named := newRig(t, nil, broadcaster.Config{Hosts: []string{"live.example.com"}})
	any := newRig(t, nil, broadcaster.Config{Hosts: []string{"*"}})
	for _, c := range []struct {
		r     *rig
		host  string
		shut  bool
		about string
	}{
		{open, "evil.test", true, "no authentication, another name"},
		{open, "evil.test:80", true, "with a port"},
		{open, "evil.test.", true, "with a dot"},
		{open, "127.0.0.1.evil.test", true, "that begins like an address"},
		{open, "localhost.evil.test", true, "that begins like localhost"},
		{open, "evil-localhost", true, "that ends like localhost"},
		{open, "localhost:8080", false, "localhost"},
		{open, "a.localhost", false, "below localhost"},
		{open, "[::1]:8080", false, "an address"},
		{open, "10.1.2.3", false, "an address"},
		{named, "live.example.com:8443", false, "the own name"},
		{named, "evil.test", true, "another name"},
		{any, "evil.test", false, "any name"},
	} {
		origin := http.Header{"Origin": {"http://" + c.host}}
		if got := handshake(t, c.r.URL, c.host, origin); (got == 421) != c.shut || !c.shut && got != 101 {
			t.Errorf("%s, %s: %d", c.about, c.host, got)
		}
		origin.Set("Host", c.host)
		if got, h, _ := answerOf(t, c.r.events("a"), origin); (got == 421) != c.shut || c.shut && h.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("events: %s, %s: %d", c.about, c.host, got)
		}
	}
	auth, issuer := newAuthRig(t, broadcaster.Config{}) // the page has no token of the other origin
	if got := handshake(t, auth.URL, "any.test", bearer(issuer.Token("7", nil, nil))); got != 101 {
		t.Errorf("with authentication: %d", got)
	}
}

// raw speaks HTTP by hand.
func raw(t *testing.T, url string) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c, bufio.NewReader(c)
}

// A body is not waited for.
func TestBodyIsNotRead(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{})
	for _, head := range []string{"Content-Length: 1000000", "Transfer-Encoding: chunked"} {
		c, answer := raw(t, r.URL)
		fmt.Fprintf(c, "GET /v1/topics/a/events HTTP/1.1\r\nHost: localhost\r\n%s\r\n\r\n", head)
		line, err := answer.ReadString('\n')
		if err != nil || !strings.Contains(line, " 400 ") {
			t.Errorf("%s: %q %v", head, line, err)
		}
	}
}

// Who is turned away keeps no connection.
func TestTurnedAwayIsClosed(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{Verifier: plain{}, MaxPerUser: 1, Hosts: []string{"live.test"}})
	open(t, r.URL, &websocket.DialOptions{HTTPHeader: bearer(plainToken("7", time.Hour, "**"))}).Expect("hello")
	for _, c := range []struct{ status, request string }{
		{"421", "GET /v1/ws HTTP/1.1\r\nHost: evil.test\r\n"},
		{"403", "GET /v1/ws HTTP/1.1\r\nHost: live.test\r\nOrigin: https://evil.test\r\n"},
		{"400", "GET /v1/ws?token=x HTTP/1.1\r\nHost: live.test\r\n"},
		{"404", "GET /nothing HTTP/1.1\r\nHost: live.test\r\n"},
		{"405", "DELETE /v1/ws HTTP/1.1\r\nHost: live.test\r\n"},
		{"426", "GET /v1/ws HTTP/1.1\r\nHost: live.test\r\n"},
		{"401", "GET /v1/topics/a/events HTTP/1.1\r\nHost: live.test\r\n"},
		{"503", "GET /v1/ws HTTP/1.1\r\nHost: live.test\r\nAuthorization: Bearer " + plainToken("7", time.Hour, "**") + "\r\n"},
	} {
		conn, answer := raw(t, r.URL)
		fmt.Fprint(conn, c.request, "\r\n")
		text, err := io.ReadAll(answer) // to the end of the connection
		if err != nil || !strings.HasPrefix(string(text), "HTTP/1.1 "+c.status) {
			t.Errorf("%q: %.60q %v", c.request, text, err)
		}
	}
	conn, answer := raw(t, r.URL) // but who asks whether it may ask, asks then
	for range 2 {
		fmt.Fprint(conn, "OPTIONS /v1/topics/a/events HTTP/1.1\r\nHost: live.test\r\nOrigin: http://live.test\r\n\r\n")
		resp, err := http.ReadResponse(answer, nil)
		if err != nil || resp.StatusCode != 204 || resp.Close {
			t.Fatalf("%+v %v", resp, err)
		}
	}
}

// Frames that hold nothing are not read without end, while a message in as many frames as bytes is one.
func TestFramesWithoutEnd(t *testing.T) {
	registry := prometheus.NewRegistry()
	r := newRig(t, nil, broadcaster.Config{Registerer: registry})
	upgrade := func() (net.Conn, *bufio.Reader) {
		c, answer := raw(t, r.URL)
		fmt.Fprint(c, "GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
		if resp, err := http.ReadResponse(answer, nil); err != nil || resp.StatusCode != 101 {
			t.Fatalf("%+v %v", resp, err)
		}
		return c, answer
	}
	frame := func(answer *bufio.Reader) (op byte, payload []byte) {
		head := make([]byte, 2)
		if _, err := io.ReadFull(answer, head); err != nil {
			t.Fatal(err)
		}
		n := int(head[1])
		if n == 126 {
			more := make([]byte, 2)
			io.ReadFull(answer, more)
			n = int(more[0])<<8 | int(more[1])
		}
		payload = make([]byte, n)
		io.ReadFull(answer, payload)
		return head[0] & 0xf, payload
	}
	flooder, said := upgrade()
	go func() { // ends with the connection
		flooder.Write([]byte{0x01, 0x80, 0, 0, 0, 0}) // text, to be continued
		nothing := bytes.Repeat([]byte{0x00, 0x80, 0, 0, 0, 0}, 100)
		for {
			if _, err := flooder.Write(nothing); err != nil {
				return
			}
		}
	}()
	for {
		op, payload := frame(said)
		if op == 8 {
			if code := int(payload[0])<<8 | int(payload[1]); code != 4429 {
				t.Errorf("closed with %d %s", code, payload[2:])
			}
			break
		}
	}
	if n := hits(t, registry, "frames"); n != 1 {
		t.Errorf("the metric says %v", n)
	}

	c, answer := upgrade()
	text := []byte(fmt.Sprintf(`{"op":"subscribe","topic":"a","pad":%q}`, strings.Repeat("x", 8000)))
	for range 3 {
		op := byte(0x01)
		var all []byte
		for i, b := range text {
			if i == len(text)-1 {
				op |= 0x80
			}
			all = append(all, op, 0x81, 0, 0, 0, 0, b)
			op = 0
		}
		if _, err := c.Write(all); err != nil {
			t.Fatal(err)
		}
		for {
			if op, payload := frame(answer); op == 8 {
				t.Fatalf("closed: %q", payload)
			} else if strings.Contains(string(payload), `"subscribed"`) || strings.Contains(string(payload), `"already_subscribed"`) {
				break
			}
		}
	}
}

// The server's time for a request does not end a stream of events.
func TestEventsOutliveTheRequestTimeout(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{Heartbeat: 100 * time.Millisecond})
	server := httptest.NewUnstartedServer(r.b.Handler())
	server.Config.ReadTimeout = 200 * time.Millisecond
	server.Start()
	defer server.Close()
	e := newEventSource(t, server.URL+"/v1/topics/a/events")
	e.open()
	for range 8 {
		if m, err := e.next(); err != nil || m.typ != "heartbeat" {
			t.Fatalf("%+v %v", m, err)
		}
	}
	r.commit("a", 1)
	e.expectEvents(1, 1)
	e.close()
}

// hits is how often a limit was hit.
func hits(t *testing.T, registry *prometheus.Registry, limit string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "commitcast_broadcaster_limits_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == limit {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

// Who has too many connections, by token or by address, is turned away early, is told when to come back, and takes nobody
// else's place. A place that is given up is free.
func TestConnectionLimits(t *testing.T) {
	registry := prometheus.NewRegistry()
	r := newRig(t, nil, broadcaster.Config{Verifier: plain{}, MaxPerUser: 2, MaxPerAddress: 3, TrustedHops: 2, Registerer: registry})
	from := func(address, who string) http.Header {
		h := bearer(plainToken(who, time.Hour, "**"))
		h.Set("X-Forwarded-For", "spoofed, "+address+", 10.0.0.1")
		return h
	}
	dial := func(h http.Header) (*testkit.Client, *http.Response) {
		c, resp, _ := testkit.Open(t, r.URL, &websocket.DialOptions{HTTPHeader: h})
		if c != nil {
			c.Expect("hello")
		}
		return c, resp
	}
	first, _ := dial(from("192.0.2.1", "7"))
	dial(from("192.0.2.1", "7"))
	for name, h := range map[string]http.Header{"user": from("192.0.2.9", "7")} {
		if c, resp := dial(h); c != nil || resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
			t.Errorf("%s: %v", name, resp)
		}
		if status, h, body := answerOf(t, r.events("a"), h); status != 503 || h.Get("Retry-After") == "" {
			t.Errorf("%s: events: %d %s", name, status, body)
		}
	}
	late, _, err := testkit.Open(t, r.URL, nil) // by its first frame
	if err != nil {
		t.Fatal(err)
	}
	late.Send(fmt.Sprintf(`{"op":"auth","token":%q}`, plainToken("7", time.Hour, "**")))
	if m := late.Expect("reconnect"); m.InMS < 1000 {
		t.Errorf("%+v", m)
	}
	late.ExpectClose(1013)
	dial(from("192.0.2.1", "8"))
	if c, resp := dial(from("192.0.2.1", "9")); c != nil || resp.StatusCode != 503 {
		t.Errorf("an address too often: %v", resp)
	}
	dial(from("2001:db8:1:2::1", "a"))
	dial(from("2001:db8:1:2:ffff::1", "a"))
	dial(from("2001:db8:1:2::3", "b"))
	if c, resp := dial(from("2001:db8:1:2:aaaa::4", "c")); c != nil || resp.StatusCode != 503 {
		t.Errorf("a household too often: %v", resp)
	}
	if c, _ := dial(from("2001:db8:1:3::1", "c")); c == nil {
		t.Error("the neighbours are shut out")
	}
	for limit, want := range map[string]float64{"connections_per_user": 1, "connections_per_address": 2} {
		if n := hits(t, registry, limit); n < want {
			t.Errorf("%s was hit %v times", limit, n)
		}
	}
	first.WS.CloseNow()
	testkit.Eventually(t, 10*time.Second, func() bool {
		c, _ := dial(from("192.0.2.1", "7"))
		return c != nil
	}, "the place is free")
}

// nobody is a Verifier that takes each token for one of nobody in particular.
type nobody struct{}

func (nobody) Verify(context.Context, string) (*auth.Identity, error) { return &auth.Identity{}, nil }

// Tokens without a subject are those of one user.
func TestNobodysConnections(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{Verifier: nobody{}, MaxPerUser: 2})
	first := open(t, r.URL, nil)
	first.Auth("x")
	open(t, r.URL, nil).Auth("y")
	late := open(t, r.URL, nil)
	late.Send(`{"op":"auth","token":"z"}`)
	late.ExpectClose(1013)
	if status, _, body := answerOf(t, r.events("a"), bearer("z")); status != 503 {
		t.Errorf("%d %s", status, body)
	}
	first.WS.CloseNow()
	testkit.Eventually(t, 10*time.Second, func() bool {
		status, _, _ := answerOf(t, r.events("a"), bearer("z"))
		return status == 403 // it may read nothing, but come in
	}, "the place is free")
}

// A client that changes its subscriptions without end is read slowly, and its neighbours are served. A set of them is made at once.
func TestRequestFlood(t *testing.T) {
	registry := prometheus.NewRegistry()
	r := newRig(t, nil, broadcaster.Config{MaxRequests: 10, MaxSubscriptions: 300, Registerer: registry})
	c, neighbour := testkit.Dial(t, r.URL), testkit.Dial(t, r.URL)
	neighbour.Subscribe(1, "calm", "")
	neighbour.Expect("subscribed")
	const rounds, set = 130, 300
	began := time.Now()
	go func() { // ends with the connection, or when all is sent
		ask := func(op, topic string) bool {
			return c.WS.Write(t.Context(), websocket.MessageText, fmt.Appendf(nil, `{"op":%q,"topic":%q}`, op, topic)) == nil
		}
		for i := range rounds {
			if topic := fmt.Sprint("t", i); !ask("subscribe", topic) || !ask("unsubscribe", topic) {
				return
			}
		}
		for i := range set {
			if !ask("subscribe", fmt.Sprint("s", i)) {
				return
			}
		}
	}()
	var given, made int
	var changed time.Duration
	for made < set {
		m, err := c.Read(20 * time.Second)
		if err != nil || time.Since(began) > time.Minute {
			t.Fatalf("after %d and %d: %v", given, made, err)
		}
		switch {
		case m.Op == "unsubscribed": // it may come without a "subscribed" before it
			if given++; given == rounds {
				changed = time.Since(began)
			}
		case m.Op == "subscribed" && strings.HasPrefix(m.Topic, "s"):
			made++
		}
	}
	// The first one is free, and of the others 100 are read at once.
	if least := time.Duration(rounds-1-100) * time.Second / 10; changed < least {
		t.Errorf("%d changes were read within %v, want %v", rounds, changed, least)
	}
	if took := time.Since(began) - changed; took > 10*time.Second { // at 10 a second it would be 30
		t.Errorf("%d new subscriptions took %v", set, took)
	}
	if hits(t, registry, "requests") == 0 {
		t.Error("the metric does not say so")
	}
	r.commit("calm", 3)
	neighbour.ExpectEvents("calm", 1, 3)
}

// An address whose connections come to nothing waits for its refusal; others, and one that has as many known clients, do not.
func TestStrikes(t *testing.T) {
	registry := prometheus.NewRegistry()
	r := newRig(t, nil, broadcaster.Config{Verifier: plain{}, TrustedHops: 1, Registerer: registry})
	from := func(address, who string) http.Header {
		h := http.Header{}
		if who != "" {
			h = bearer(plainToken(who, time.Hour, "**"))
		}
		h.Set("X-Forwarded-For", address)
		return h
	}
	dial := func(h http.Header) (*testkit.Client, int) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		ws, resp, err := websocket.Dial(ctx, strings.Replace(r.URL, "http", "ws", 1)+"/v1/ws", &websocket.DialOptions{HTTPHeader: h, Subprotocols: []string{wire.Protocol}})
		switch {
		case err == nil:
			t.Cleanup(func() { ws.CloseNow() })
			return &testkit.Client{WS: ws}, 101
		case resp != nil:
			return nil, resp.StatusCode
		}
		return nil, 0 // no answer
	}
	const office = 20
	for i := range office { // people behind one address
		if c, _ := dial(from("192.0.2.2", fmt.Sprint("u", i))); c == nil {
			t.Fatal("an office is shut out")
		}
	}
	refused := from("192.0.2.1", "x")
	refused.Set("Authorization", "Bearer nonsense")
	if _, status := dial(refused); status != 401 {
		t.Errorf("nonsense as a token: %d", status)
	}
	var idle []*testkit.Client // as long as they last they have not come to nothing
	for range 35 {
		for _, address := range []string{"192.0.2.1", "192.0.2.2"} {
			c, status := dial(from(address, ""))
			if c == nil {
				t.Fatalf("%s: %d", address, status)
			}
			idle = append(idle, c)
		}
	}
	for _, c := range idle {
		c.WS.Write(t.Context(), websocket.MessageText, []byte("nonsense"))
		c.WS.Read(t.Context())
	}
	testkit.Eventually(t, 10*time.Second, func() bool {
		_, status := dial(from("192.0.2.1", "7"))
		return status == 0
	}, "the address is held up")
	for _, address := range []string{"192.0.2.2", "192.0.2.3"} {
		if c, status := dial(from(address, "7")); c == nil {
			t.Errorf("%s is shut out: %d", address, status)
		}
	}
	if hits(t, registry, "strikes") == 0 {
		t.Error("the metric does not say so")
	}
	answered := make(chan string, 1)
	go func() { // ends with the broadcaster
		status, h, _ := answerOf(t, r.events("a"), from("192.0.2.1", "7"))
		answered <- fmt.Sprint(status, h.Get("Retry-After"))
	}()
	testkit.Eventually(t, 10*time.Second, func() bool { return hits(t, registry, "strikes") >= 2 }, "it waits")
	r.stop()
	if got := <-answered; got != "50330" {
		t.Errorf("at shutdown it is told %q", got)
	}
}

// A connection that does nothing but ping is read slowly: what it asks for behind its pings comes when those have had their
// turn, and it gets no more pongs than that. A few pings are answered at once.
func TestPingFlood(t *testing.T) {
	registry := prometheus.NewRegistry()
	r := newRig(t, nil, broadcaster.Config{Registerer: registry})
	calm := testkit.Dial(t, r.URL)
	go calm.Read(20 * time.Second) // pongs are read by a reader; ends with the connection
	for range 5 {
		if err := calm.WS.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	const beyond = 8                           // of the 50 that are read at once: at 5 a second, the last waits for 1.6 s
	for _, frame := range []byte{0x89, 0x8a} { // ping, pong
		c, answer := raw(t, r.URL)
		fmt.Fprintf(c, "GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: commitcast.v1\r\n\r\n")
		line, err := answer.ReadString('\n')
		if err != nil || !strings.Contains(line, " 101 ") {
			t.Fatalf("%q %v", line, err)
		}
		for line := ""; line != "\r\n"; {
			if line, err = answer.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		frames := bytes.Repeat([]byte{frame, 0x80, 1, 2, 3, 4}, 50+beyond)
		request := `{"op":"subscribe","topic":"calm"}`
		frames = append(append(frames, 0x81, 0x80|byte(len(request)), 0, 0, 0, 0), request...)
		frames = append(frames, bytes.Repeat([]byte{frame, 0x80, 1, 2, 3, 4}, 10_000)...)
		began := time.Now()
		go c.Write(frames) // ends with the connection
		pongs := 0
		for answered := false; !answered; {
			head := make([]byte, 2)
			if _, err := readFull(answer, head); err != nil {
				t.Fatalf("after %d pongs: %v", pongs, err)
			}
			n := int(head[1])
			if n == 126 {
				more := make([]byte, 2)
				readFull(answer, more)
				n = int(more[0])<<8 | int(more[1])
			}
			payload := make([]byte, n)
			readFull(answer, payload)
			switch {
			case head[0] == 0x8a:
				pongs++
			case head[0] == 0x88:
				t.Fatalf("closed with %d %s", int(payload[0])<<8|int(payload[1]), payload[2:])
			default:
				answered = strings.Contains(string(payload), `"subscribed"`)
			}
		}
		if took := time.Since(began); took < (beyond-1)*time.Second/5 {
			t.Errorf("%d frames of %#x were read within %v", 50+beyond, frame, took)
		}
		if most := 50 + beyond + int(time.Since(began)/(time.Second/5)); frame == 0x89 && pongs > most || frame == 0x8a && pongs > 0 {
			t.Errorf("%d pongs", pongs)
		}
		c.Close()
	}
	if hits(t, registry, "pings") == 0 {
		t.Error("the metric does not say so")
	}
}

// Who asks for nonsense gets 50 answers at once and then 5 a second, and is sent away with the 100th.
func TestRefusals(t *testing.T) {
	t.Parallel() // it mostly waits
	registry := prometheus.NewRegistry()
	r := newRig(t, nil, broadcaster.Config{Registerer: registry})
	c := testkit.Dial(t, r.URL)
	began := time.Now()
	go func() { // ends with the connection
		for range 200 {
			if c.WS.Write(t.Context(), websocket.MessageText, []byte(`{"op":"dance"}`)) != nil {
				return
			}
		}
	}()
	answers := 0
	for {
		m, err := c.Read(20 * time.Second)
		if err != nil {
			if code := websocket.CloseStatus(err); code != 4429 || answers < 99 {
				t.Errorf("after %d answers: %v", answers, err)
			}
			break
		}
		if m.Op != "error" {
			continue
		}
		switch answers++; {
		case answers == 40 && time.Since(began) > 8*time.Second:
			t.Error("40 mistakes are not answered at once")
		case answers == 60 && time.Since(began) < 9*time.Second/5:
			t.Errorf("60 mistakes are answered within %v", time.Since(began))
		}
	}
	if hits(t, registry, "refusals") != 1 {
		t.Error("the metric does not say so")
	}
}

func readFull(r *bufio.Reader, p []byte) (int, error) {
	for n := 0; n < len(p); {
		m, err := r.Read(p[n:])
		if n += m; err != nil {
			return n, err
		}
	}
	return len(p), nil
}

// Compression is not agreed on, so that no small frame becomes a large one; who sends a compressed one all the same is
// closed, and so is one that sends a large one.
func TestCompressedAndLargeFrames(t *testing.T) {
	registry := prometheus.NewRegistry()
	r := newRig(t, nil, broadcaster.Config{Registerer: registry})
	c, resp, err := testkit.Open(t, r.URL, &websocket.DialOptions{CompressionMode: websocket.CompressionContextTakeover})
	if err != nil || resp.Header.Get("Sec-WebSocket-Extensions") != "" {
		t.Fatalf("%v %v", resp.Header, err)
	}
	c.Expect("hello")
	for name, bytes := range map[string][]byte{"compressed": {0xc1, 0x82, 0, 0, 0, 0, 1, 0}, "declared to be huge": {0x81, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}} {
		c, answer := raw(t, r.URL)
		fmt.Fprintf(c, "GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
		c.Write(bytes)
		c.Write(make([]byte, wire.MaxClientFrame+100))
		testkit.Eventually(t, 10*time.Second, func() bool {
			for {
				if _, err := answer.ReadByte(); err != nil {
					return true
				}
			}
		}, "%s: closed", name)
	}
	big := testkit.Dial(t, r.URL)
	big.WS.Write(t.Context(), websocket.MessageText, make([]byte, wire.MaxClientFrame+1))
	big.ExpectClose(1009)
	testkit.Eventually(t, 10*time.Second, func() bool { return hits(t, registry, "message_size") > 0 }, "the metric says so")
}

// A client that is behind in many topics takes few places among the replays, and all its topics are caught up in the end.
func TestReplayBomb(t *testing.T) {
	registry := prometheus.NewRegistry()
	r := newRig(t, nil, broadcaster.Config{LogEvents: 4, MaxReplays: 2, Registerer: registry})
	const topics, events = 40, 50
	for i := range topics {
		r.commit(fmt.Sprint("t", i), events)
	}
	var reads, most atomic.Int64
	held := func() { // long enough for one too many to be seen
		n := reads.Add(1)
		defer reads.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		time.Sleep(20 * time.Millisecond)
	}
	r.stream.held.Store(&held)
	c := testkit.Dial(t, r.URL)
	for i := range topics {
		c.Subscribe(i, fmt.Sprint("t", i), r.cursor(0))
	}
	next := map[string]int64{}
	for total := 0; total < topics*events; {
		m, err := c.Read(20 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if m.Op != "event" {
			continue
		}
		if next[m.Topic]++; m.Offset != next[m.Topic] {
			t.Fatalf("%s: offset %d, want %d", m.Topic, m.Offset, next[m.Topic])
		}
		total++
	}
	if most.Load() != 2 {
		t.Errorf("%d reads at once for one client", most.Load())
	}
	if hits(t, registry, "replays") == 0 {
		t.Error("the metric does not say so")
	}
}

// Of the subscriptions of a connection that are behind, each gets a page in turn.
func TestReplaysTakeTurns(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{LogEvents: 4, MaxReplays: 1})
	const many, few = 20_000, 10
	r.commit("a", many)
	r.commit("b", few)
	c := testkit.Dial(t, r.URL)
	c.Subscribe(1, "a", r.cursor(0))
	c.Subscribe(2, "b", r.cursor(0))
	seen := map[string]int64{}
	for seen["b"] < few {
		m, err := c.Read(20 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if m.Op == "event" {
			seen[m.Topic] = m.Offset
		}
	}
	if seen["a"] == many {
		t.Error("all of one topic came before another one's first event")
	}
}

// A client that asks for much of the past and takes none of it holds a few pages of it, not one for each subscription; when
// it reads after all, everything comes.
func TestReplaysThatAreNotTaken(t *testing.T) {
	registry := prometheus.NewRegistry()
	r := newRig(t, nil, broadcaster.Config{LogEvents: 4, MaxReplays: 2, WriteTimeout: time.Minute, Registerer: registry})
	const topics, events = 20, 600
	for i := range topics {
		r.commit(fmt.Sprint("a", i), events)
		r.commit(fmt.Sprint("b", i), events)
	}
	read := func() (n float64) {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "commitcast_broadcaster_events_replayed_total" {
				for _, m := range f.GetMetric() {
					n += m.GetCounter().GetValue()
				}
			}
		}
		return n
	}
	take := func(c *testkit.Client, most int) {
		next := map[string]int64{}
		for total := 0; total < most; {
			m, err := c.Read(30 * time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if m.Op != "event" {
				continue
			}
			if next[m.Topic]++; m.Offset != next[m.Topic] {
				t.Fatalf("%s: offset %d, want %d", m.Topic, m.Offset, next[m.Topic])
			}
			total++
		}
	}
	small := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		if err == nil {
			err = c.(*net.TCPConn).SetReadBuffer(4 << 10)
		}
		return c, err
	}}
	stalled, _, err := testkit.Open(t, r.URL, &websocket.DialOptions{HTTPClient: &http.Client{Transport: small}})
	if err != nil {
		t.Fatal(err)
	}
	neighbour := testkit.Dial(t, r.URL)
	for i := range topics {
		stalled.Subscribe(i, fmt.Sprint("a", i), r.cursor(0))
	}
	for i := range topics {
		neighbour.Subscribe(i, fmt.Sprint("b", i), r.cursor(0))
	}
	take(neighbour, topics*events) // as long as that takes, the other could have read as much
	if n := read() - topics*events; n > topics*events/2 {
		t.Errorf("%v events were read for a client that takes none, of %d", n, topics*events)
	}
	take(stalled, events) // all would take a minute, a few KiB at a time
}

// One user is read for at a rate, beyond a burst, over all of its connections; another one does not wait for it.
func TestReplayBudget(t *testing.T) {
	registry := prometheus.NewRegistry()
	r := newRig(t, nil, broadcaster.Config{Verifier: plain{}, LogEvents: 4, MaxReplayRate: 400, Registerer: registry})
	const topics, events = 20, 200
	for i := range topics {
		r.commit(fmt.Sprint("t", i), events)
	}
	dial := func(subject string) *testkit.Client {
		c := open(t, r.URL, nil)
		c.Auth(plainToken(subject, time.Hour, "**"))
		return c
	}
	take := func(c *testkit.Client, n int) {
		for n > 0 {
			m, err := c.Read(30 * time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if m.Op == "event" {
				n--
			}
		}
	}
	began := time.Now()
	for half := range 2 { // the second connection comes when the first one is gone
		c := dial("7")
		for i := range topics / 2 {
			c.Subscribe(i, fmt.Sprint("t", half*topics/2+i), r.cursor(0))
		}
		if half == 1 {
			other := dial("8")
			other.Subscribe(1, "t0", r.cursor(0))
			take(other, events)
		}
		take(c, topics/2*events)
		c.WS.CloseNow()
	}
	// 4,000 events, less a burst of 2,000, less what may be under way when the budget is gone.
	if d := time.Since(began); d < 2*time.Second {
		t.Errorf("all was read within %v", d)
	}
	if hits(t, registry, "replay_rate") == 0 {
		t.Error("the metric does not say so")
	}
}
