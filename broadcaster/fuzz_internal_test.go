package broadcaster

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"regexp"
	"strings"
	"testing"

	"github.com/commitcast/commitcast/auth"
	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

// refuser takes no token.
type refuser struct{}

func (refuser) Verify(context.Context, string) (*auth.Identity, error) { return nil, auth.ErrRefused }

// unstarted is a broadcaster that can be asked, and has nothing to say.
func unstarted(t testing.TB, c Config) *Broadcaster {
	t.Helper()
	c.Logger = slog.New(slog.DiscardHandler)
	s := stream.NewMemory(stream.MemoryConfig{})
	t.Cleanup(func() { s.Close() })
	b, err := New(struct{ Journal }{}, s, c) // what is fuzzed comes before the journal
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.cancel)
	return b
}

// FuzzHandler: whatever a request is, it is answered, with a problem, and no part of a token comes back.
func FuzzHandler(f *testing.F) {
	b := unstarted(f, Config{Verifier: refuser{}, TrustedHops: 1, Origins: []string{"https://*.example.com"}, Hosts: []string{"*.test"}})
	close(b.ready) // beyond the door, too
	const secret = "c2VjcmV0LW9mLW5vYm9keQ"
	for _, seed := range []string{
		"GET /v1/ws HTTP/1.1\r\nHost: a.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: commitcast.v1, commitcast.token." + secret + "\r\n\r\n",
		"GET /v1/topics/a%2Fb/events?after=3-7d0a41c2:1041 HTTP/1.1\r\nHost: a.test\r\nAuthorization: Bearer " + secret + "\r\nOrigin: https://a.example.com\r\n\r\n",
		"GET /v1/topics/a/events HTTP/1.1\r\nHost: [::1]:1\r\nLast-Event-ID: 1-0000:7\r\nX-Forwarded-For: ,1.2.3.4, ::1%eth0\r\n\r\n",
		"GET /v1/topics/x/events?token=" + secret + "&%zz;a HTTP/1.1\r\nHost: a.test.\r\n\r\n",
		"OPTIONS /v1/topics/x/events HTTP/1.1\r\nHost: a.test\r\nOrigin: https://evil.test?.example.com\r\nAccess-Control-Request-Method: GET\r\n\r\n",
		"POST /v1/ws HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc", "HEAD //v1/../v1/topics/%00/events HTTP/1.0\r\n\r\n",
	} {
		f.Add(seed)
	}
	handler := b.Handler()
	f.Fuzz(func(t *testing.T, text string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
		if err != nil {
			return
		}
		r.RemoteAddr = "192.0.2.1:1234"
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		resp := w.Result()
		body, _ := io.ReadAll(resp.Body)
		if resp.StatusCode < 300 && resp.StatusCode != http.StatusNoContent {
			t.Fatalf("%q is answered %d %s", text, resp.StatusCode, body)
		}
		if resp.Header.Get("Content-Type") == "application/problem+json" && !json.Valid(body) {
			t.Fatalf("%q: %s", text, body)
		}
		told := r.Host + r.URL.String() + strings.Join(r.Header["Origin"], "") // what an answer may quote
		if strings.Contains(string(body), secret) && !strings.Contains(told, secret) {
			t.Fatalf("%q brings its token back: %s", text, body)
		}
		allowed := resp.Header.Values("Access-Control-Allow-Origin")
		if len(allowed) > 1 || len(allowed) == 1 && !foreignPage.MatchString(allowed[0]) {
			t.Fatalf("%q: %q may read", text, allowed)
		}
	})
}

// foreignPage is what the pattern https://*.example.com means.
var foreignPage = regexp.MustCompile(`(?i)\Ahttps://[^/?#@:]*\.example\.com\z`)

// FuzzOrigin: a page may connect exactly if its origin is the own one or the pattern's.
func FuzzOrigin(f *testing.F) {
	b := unstarted(f, Config{Origins: []string{"https://*.example.com"}})
	for _, seed := range [][2]string{{"https://a.example.com", "live.test"}, {"https://evil.test/.example.com", "live.test"}, {"http://live.test:80", "live.test"},
		{"https://evil.test\\.example.com", "x"}, {"null", ""}, {"http://[::1]:8080", "[::1]:8080"}, {"https://.example.com", "x"}, {"HTTPS://A.EXAMPLE.COM", "x"},
		{"https://a\n.example.com", "x"}, {"https://a%2f.example.com", "x"}, {"https://a:1.example.com", "x"}} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, origin, host string) {
		r := httptest.NewRequest("GET", "/v1/ws", nil)
		r.Host = host
		r.Header["Origin"] = []string{origin}
		cross, err := b.checkOrigin(r, true)
		scheme, rest, _ := strings.Cut(origin, "://")
		own := host != "" && (strings.EqualFold(scheme, "http") || strings.EqualFold(scheme, "https")) &&
			strings.EqualFold(withoutPort(rest, strings.ToLower(scheme)), withoutPort(host, strings.ToLower(scheme)))
		switch {
		case err == nil && cross == "" && !own:
			t.Fatalf("%q is taken for a page of %q", origin, host)
		case err == nil && cross != "" && (cross != origin || !foreignPage.MatchString(origin)):
			t.Fatalf("%q may connect", origin)
		case err != nil && len(err.Error()) > 1000:
			t.Fatalf("an error of %d bytes", len(err.Error()))
		}
	})
}

// FuzzHost: what is answered is an address, this machine, or a name that is given.
func FuzzHost(f *testing.F) {
	b := unstarted(f, Config{Hosts: []string{"*.example.com"}})
	for _, seed := range []string{"a.example.com", "a.example.com:443", "A.EXAMPLE.COM.", "evil.test", "127.0.0.1.evil.test", "[::1]:80", "localhost.", "::1%lo", "a.localhost:1", "0x7f.1", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, host string) {
		if !b.answersTo(host) {
			return
		}
		name := strings.ToLower(strings.TrimSuffix(hostname(host), "."))
		if ok, _ := path.Match("*.example.com", name); ok || name == "localhost" || strings.HasSuffix(name, ".localhost") {
			return
		}
		if strings.ContainsAny(name, "ghijklmnopqrstuvwxyz") && !strings.Contains(name, "%") || strings.Count(name, ".") != 3 && !strings.Contains(name, ":") {
			t.Fatalf("%q is answered", host)
		}
	})
}

// FuzzForwardedFor: nobody can say by a header that he comes from elsewhere than the trusted proxies say.
func FuzzForwardedFor(f *testing.F) {
	b := unstarted(f, Config{TrustedHops: 2})
	for _, seed := range [][2]string{{"", "192.0.2.1, 10.0.0.1"}, {"127.0.0.1", "192.0.2.1, 10.0.0.1"}, {"x, ::1", "2001:db8::1, 10.0.0.1"}, {",", "[2001:db8::1]:4711, 10.0.0.1"}, {"", "nonsense"}, {"", "::ffff:192.0.2.1%x,,"}} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, spoofed, said string) {
		ask := func(list ...string) string {
			r := httptest.NewRequest("GET", "/v1/ws", nil)
			r.RemoteAddr = "198.51.100.7:1234"
			r.Header["X-Forwarded-For"] = list
			return b.client(r).String()
		}
		plain := ask(said)
		if strings.Count(said, ",") < 1 { // fewer than the trusted ones: nobody has been there
			return
		}
		for _, list := range [][]string{{spoofed + "," + said}, {spoofed, said}} {
			if got := ask(list...); got != plain {
				t.Fatalf("%q before %q makes %s of %s", spoofed, said, got, plain)
			}
		}
		for _, prefix := range []string{"/32", "/64", "invalid Prefix"} {
			if strings.HasSuffix(plain, prefix) {
				return
			}
		}
		t.Fatalf("%q is counted as %s", said, plain)
	})
}

// FuzzTokenInQuery: a token is found wherever in an address it stands.
func FuzzTokenInQuery(f *testing.F) {
	const text = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiI3In0.c2ln"
	for _, seed := range [][2]string{{"", ""}, {"after=1-0000:7&t=", "&x=1"}, {"%zz&", ""}, {"a;b=", ""}, {"%", ""}, {"x=eyJ&y=", ""}, {"eyJ", ""}, {"%0", ""}} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, before, after string) {
		if !holdsToken(before + text + after) {
			t.Fatalf("%q is let in", before+text+after)
		}
		if escaped := "x=" + url.QueryEscape(before+text+after); !holdsToken(escaped) {
			t.Fatalf("%q is let in", escaped)
		}
		holdsToken(before) // any answer, and no panic
	})
}

// FuzzServerSent: whatever frame and cursor there are, what is sent is fields of Server-Sent Events, and no line of a frame
// or a cursor is one by itself.
func FuzzServerSent(f *testing.F) {
	event, _ := wire.AppendEvent(nil, &wire.Event{Topic: "t", Epoch: "1-0000", Offset: 7, ID: 8, Type: "x", Data: []byte(`{"a":1}`)})
	for _, seed := range [][]byte{event, wire.AppendReset(nil, "t", "1-0000", 3, "ahead", 20), wire.AppendSubscribed(nil, 1, "t", "1-0000", 2, 3),
		wire.AppendError(nil, 1, &wire.Error{Code: "forbidden", Message: "no\n"}), wire.AppendConflated(nil, event, 3, true), []byte(`{"op":"event",,"epoch":"x","offset":1`), []byte("{\"op\":\"event\",,\"epoch\":\"\n\n\",\"offset\":1"), []byte("{\"op\":\"a\\nid: 9\"}"), []byte("data: \r\nid: 7\n")} {
		f.Add(seed, "1-0000:6")
	}
	f.Fuzz(func(t *testing.T, frame []byte, asked string) {
		if _, err := wire.ParseCursor(asked); err != nil {
			asked = ""
		}
		out, _ := appendServerSent(nil, frame, asked)
		if len(out) == 0 {
			return
		}
		if !strings.HasSuffix(string(out), "\n\n") || strings.Count(string(out), "\n\n") != 1 || strings.ContainsRune(string(out), '\r') {
			t.Fatalf("%q became %q", frame, out)
		}
		for line := range strings.SplitSeq(strings.TrimSuffix(string(out), "\n\n"), "\n") {
			switch field, value, ok := strings.Cut(line, ": "); {
			case !ok:
				t.Fatalf("%q became %q", frame, out)
			case field == "data" && !strings.Contains(string(frame), value):
				t.Fatalf("%q became %q", frame, out)
			case field == "data", field == "event" && value != "", field == "retry", field == "id":
			default:
				t.Fatalf("%q became %q", frame, out)
			}
		}
	})
}
