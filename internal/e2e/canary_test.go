package e2e

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/internal/testkit"
)

// birds are secrets that sing when they are seen: what may not be told, by what it is.
type birds struct {
	mu   sync.Mutex
	all  map[string]string
	seen map[string]string // what was told, by where
}

// new is a secret of 32 letters.
func (b *birds) new(what string) string {
	secret := "canary" + rand.Text()
	b.add(what, secret)
	return secret
}

func (b *birds) add(what, secret string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all[secret] = what
}

// tell notes what was told somewhere.
func (b *birds) tell(where, text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.seen[where] += text + "\n"
}

// listen fails the test where one sings: as it is, or as it stands in an address.
func (b *birds) listen(t *testing.T) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for where, text := range b.seen {
		for secret, what := range b.all {
			if i := strings.Index(text, secret); i >= 0 {
				t.Errorf("%s tells the %s: %.300q", where, what, text[max(0, i-150):])
			} else if strings.Contains(text, url.QueryEscape(secret)) {
				t.Errorf("%s tells the %s, escaped", where, what)
			}
		}
	}
}

// No secret is told anywhere, and no data of an event but in its frame: not in logs of any level, error frames, reasons of
// close frames, answers over HTTP, metrics or what -h prints, whether all goes well or nothing does.
func TestCanaries(t *testing.T) {
	t.Parallel() // most of it is waiting
	b := &birds{all: map[string]string{}, seen: map[string]string{}}
	database, redis := testkit.Database(t), testkit.Redis(t)
	for what, text := range map[string]string{"password of the database": database, "password of Redis": redis.URL()} {
		if u, err := url.Parse(text); err != nil {
			t.Fatal(err)
		} else if password, _ := u.User.Password(); len(password) < 8 {
			t.Fatalf("there is no %s", what)
		} else {
			b.add(what, password)
		}
	}
	file := func(text string) string {
		name := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(name, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	key, hookBearer, ops := b.new("key of tokens"), b.new("token for the webhook"), b.new("token of operators")
	hookKey := b.new("key in the webhook's address")
	payload, header := b.new("data of an event"), b.new("header of an event")
	token := func(subject string, topics ...string) string {
		part := func(v any) string {
			text, _ := json.Marshal(v)
			return base64.RawURLEncoding.EncodeToString(text)
		}
		text := part(map[string]any{"alg": "HS256"}) + "." + part(map[string]any{"sub": subject, "aud": "canaries", "exp": time.Now().Add(time.Hour).Unix(), "topics": topics,
			"secret": b.new("claim of a token")})
		mac := hmac.New(sha256.New, []byte(key))
		mac.Write([]byte(text))
		signature := base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
		b.add("signature of a token", signature)
		b.add("claims of a token", strings.Split(text, ".")[1])
		return text + "." + signature
	}

	var mood atomic.Int64 // of the webhook: the status that it answers with; 0: it hangs up
	mood.Store(200)
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch status := int(mood.Load()); status {
		case 0:
			panic(http.ErrAbortHandler)
		case 200:
			fmt.Fprintf(w, `{"allow":%v}`, !strings.Contains(string(body), `"topic":"no"`))
		default:
			w.WriteHeader(status)
			fmt.Fprintf(w, "%s %s", hookBearer, body) // a service that talks
		}
	}))
	defer hook.Close()
	worker := start(t, database, redis.URL(), "worker", "--log-level=debug", "--ops-token-file="+file(ops))
	n := start(t, database, redis.URL(), "broadcaster", "--log-level=debug", "--ops-token-file="+file(ops), "--auth=jwt", "--jwt-alg=HS256",
		"--jwt-key-file="+file(key), "--jwt-audience=canaries", "--authorize-url="+hook.URL+"/allow?key="+hookKey, "--authorize-bearer-file="+file(hookBearer),
		"--max-connections-per-user=4")

	// over HTTP asks something and notes the answer.
	overHTTP := func(path string, h http.Header) int {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if !strings.HasPrefix(path, "http") {
			path = "http" + strings.TrimPrefix(n.URL, "ws") + path
		}
		r, err := http.NewRequestWithContext(ctx, "GET", path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if h != nil {
			r.Header = h
		}
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b.tell("a header of an answer", fmt.Sprint(resp.Header))
		if resp.Header.Get("Content-Type") != "text/event-stream" {
			text, _ := io.ReadAll(resp.Body)
			b.tell("an answer over HTTP", string(text))
		}
		return resp.StatusCode
	}
	bearer := func(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }
	// over a WebSocket says something and notes what comes, but events, until the connection has ended or said so many frames.
	overWS := func(frames int, h http.Header, say ...string) {
		c, resp, err := testkit.Open(t, "ws"+strings.TrimPrefix(n.URL, "ws"), &websocket.DialOptions{HTTPHeader: h})
		if err != nil {
			text := fmt.Sprint(err)
			if resp != nil && resp.Body != nil {
				body, _ := io.ReadAll(resp.Body)
				text += string(body)
			}
			b.tell("a refused handshake", text)
			return
		}
		defer c.WS.CloseNow()
		for _, s := range say {
			c.WS.Write(t.Context(), websocket.MessageText, []byte(s))
		}
		for range frames {
			m, err := c.Read(10 * time.Second)
			if err != nil {
				b.tell("the end of a WebSocket", err.Error())
				return
			}
			if m.Op == "event" {
				if !strings.Contains(string(m.Data), payload) {
					t.Errorf("an event without its data: %s", m.Data)
				}
				continue
			}
			b.tell("a frame", fmt.Sprintf("%+v", m))
		}
	}
	auth := func(token string) string { return fmt.Sprintf(`{"op":"auth","id":9,"token":%q}`, token) }

	// All goes well.
	exec1(t, database, `SELECT commitcast.append('yes', 'test', json_build_object('secret', $1::text), headers => json_build_object('secret', $2::text))`, payload, header)
	good := token("7", "yes", "no")
	epoch := ""
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := conn.QueryRow(t.Context(), `SELECT name FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1`).Scan(&epoch); err != nil {
		t.Fatal(err)
	}
	overWS(4, nil, auth(good), `{"op":"subscribe","id":1,"topic":"yes","after":"`+epoch+`:0"}`, `{"op":"subscribe","id":2,"topic":"no"}`)
	// Nothing does, for a client.
	bad := good[:len(good)-4] + "AAAA"
	overWS(3, nil, auth(bad))
	overWS(3, nil, auth(strings.ReplaceAll(good, ".", ";")))
	overWS(3, nil, good)
	overWS(3, nil, `{"op":"subscribe","topic":"`+good[:100]+`"}`)
	overWS(8, nil, auth(good), `{"op":"x"}`, `{"op":"auth"}`, `{"op":"auth","token":7}`, auth(token("8", "yes")))
	overWS(3, bearer(good), `{"op":"subscribe","topic":"yes","after":"x"}`)
	overWS(2, bearer(bad))
	overWS(2, bearer(token("7", "no pattern "+b.new("pattern of a token"))))
	overWS(2, http.Header{"Sec-WebSocket-Protocol": {"commitcast.token." + bad}})
	overWS(2, http.Header{"Origin": {"https://evil.test"}, "Authorization": {"Bearer " + good}})
	for path, h := range map[string]http.Header{
		"/v1/ws?token=" + good: nil, "/v1/topics/yes/events?x=" + good: nil, "/v1/topics/yes/events?after=" + epoch + ":0": bearer(good), "/v1/topics/no/events": bearer(good),
		"/v1/topics/yes/events": bearer(bad), "/v1/topics/%00/events": bearer(good), "/v1/topics/yes/events?after=x": bearer(good), "/v1/ws": bearer(good), "/nothing": bearer(good),
	} {
		overHTTP(path, h)
	}
	for _, at := range []string{n.Ops, worker.Ops} {
		for _, path := range []string{"/metrics", "/readyz", "/healthz", "/nothing"} {
			for _, given := range []string{"", ops, b.new("wrong token of operators")} {
				if status := overHTTP(at+path, bearer(given)); path == "/metrics" && (status == 200) != (given == ops) {
					t.Errorf("%s with %q: %d", path, given, status)
				}
			}
		}
	}
	// Something that is no HTTP, with a token in it.
	if c, err := net.Dial("tcp", strings.TrimPrefix(strings.TrimPrefix(n.URL, "ws://"), "http://")); err != nil {
		t.Fatal(err)
	} else {
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nAuthorization Bearer %s\r\n\r\n", good)
		c.SetDeadline(time.Now().Add(10 * time.Second))
		text, _ := io.ReadAll(bufio.NewReader(c))
		b.tell("an answer over HTTP", string(text))
		c.Close()
	}
	// Nor for the webhook.
	for i, status := range []int{500, 404, 302, 0, 0, 0, 0, 0, 0} {
		mood.Store(int64(status))
		overHTTP(fmt.Sprintf("/v1/topics/t%d/events", i), bearer(good))
	}
	mood.Store(200)
	// Nor for Redis and the database.
	redis.Stop()
	exec1(t, database, `SELECT commitcast.append('yes', 'test', json_build_object('secret', $1::text))`, payload)
	exec1(t, database, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
	testkit.Eventually(t, 30*time.Second, func() bool {
		return strings.Contains(n.Log(), "subscription") || strings.Contains(worker.Log(), "redis")
	}, "somebody says that Redis is away")
	for _, at := range []string{n.Ops, worker.Ops} {
		overHTTP(at+"/readyz", bearer(ops))
		overHTTP(at+"/metrics", bearer(ops))
	}
	// Nor for an operator.
	env := []string{"DATABASE_URL=" + database, "REDIS_URL=" + redis.URL()}
	for _, args := range [][]string{{"-h"}, {"broadcaster", "-h"}, {"worker", "-h"}, {"all", "--help"}, {"migrate", "up", "-h"}, {"migrate", "status"}, {"version"},
		{"worker", "--ops-listen=", "--bogus"}, {"worker", "--ops-listen="}, {"all", "--auth=jwt", "--jwt-alg=EdDSA", "--jwt-audience=a", "--jwt-key-file=" + file(key)},
		{"all", "--auth=jwt", "--jwt-alg=HS256", "--jwt-audience=a", "--jwt-key-file=" + file(key[:20])},
		{"all", "--auth=off", "--authorize-url=ftp://x/" + hookKey, "--ops-listen="},
		{"all", "--auth=jwt", "--jwt-alg=HS256", "--jwt-audience=a", "--jwt-key-file=" + file(key), "--authorize-url=http://service.test/?key=" + hookKey, "--listen=127.0.0.1:0", "--ops-listen="},
		{"worker", "--ops-listen=0.0.0.0:0", "--ops-token-file=" + file(ops[:10])}} {
		stdout, stderr, _ := command(t, env, args...)
		b.tell("commitcast "+args[0], stdout+stderr)
	}
	for _, wrong := range []string{strings.Replace(database, "127.0.0.1:", "127.0.0.1:9", 1), strings.Replace(database, "postgres://", "postgres:// ", 1), database + "&sslmode=nonsense", database + "x"} {
		for _, args := range [][]string{{"migrate", "status"}, {"all", "--auth=off", "--listen=127.0.0.1:0", "--ops-listen="}} {
			stdout, stderr, _ := command(t, []string{"DATABASE_URL=" + wrong}, args...)
			b.tell("commitcast "+args[0]+" with a wrong address", stdout+stderr)
		}
	}
	for _, wrong := range []string{redis.URL() + "/x?bogus=1", strings.Replace(redis.URL(), "redis://", "redis:// ", 1), strings.Replace(redis.URL(), "redis://", "http://", 1)} {
		stdout, stderr, _ := command(t, []string{"DATABASE_URL=" + database, "REDIS_URL=" + wrong}, "worker", "--ops-listen=")
		b.tell("commitcast worker with a wrong address", stdout+stderr)
	}
	b.tell("the log of the broadcaster", n.Log())
	b.tell("the log of the worker", worker.Log())
	b.listen(t)
}
