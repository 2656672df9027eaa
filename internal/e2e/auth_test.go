package e2e

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/commitcast/commitcast/client"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/wire"
)

// The binary with tokens: the Go client brings a new one whenever the last has expired, and misses nothing; nobody comes in
// without.
func TestTokensEndToEnd(t *testing.T) {
	database := testkit.Database(t)
	issuer, retiring := testkit.NewIssuer(t), testkit.NewIssuer(t)
	n := start(t, database, "", "all", "--auth=jwt", "--jwt-alg=EdDSA", "--jwt-key-file="+retiring.File(t)+","+issuer.File(t),
		"--jwt-audience="+testkit.Audience, "--jwt-leeway=0s", "--auth-grace=0s", "--allow-topics=user:{sub}")
	old, _, err := testkit.Open(t, n.URL, &websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {"Bearer " + retiring.Token("7", nil, nil)}}})
	if err != nil {
		t.Fatal(err)
	}
	epoch := old.Expect("hello").Epoch // both keys are good
	old.Subscribe(1, "user:7", "")
	old.Expect("subscribed")
	old.Subscribe(2, "t", "")
	if m := old.Expect("error"); m.Code != wire.CodeForbidden {
		t.Errorf("%+v", m)
	}

	var asked, refused atomic.Int64
	c, err := client.New(n.URL+"/v1/ws", client.Config{Token: func(_ context.Context, was bool) (string, error) {
		asked.Add(1)
		if was {
			refused.Add(1)
		}
		return issuer.Token("7", []string{"t"}, map[string]any{"exp": time.Now().Add(2 * time.Second).Unix()}), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	ran := make(chan error, 1)
	go func() { ran <- c.Run(ctx) }() // ends with ctx
	topic := client.Topic[int64]{
		Snapshot: func(context.Context) (held client.Held[int64], err error) {
			held.Token, err = client.Token{Cursor: wire.Cursor{Epoch: epoch}, Epoch: epoch}, nil
			return held, err
		},
		Apply: func(n int64, e *wire.Event) (int64, error) {
			d, err := strconv.ParseInt(string(e.Data), 10, 64)
			return n + d, err
		},
	}
	sum, want := int64(0), int64(0)
	written := false
	for change, err := range client.Follow(ctx, c, "t", topic) {
		if err != nil {
			t.Fatal(err)
		}
		sum = change.Held.State
		if !written {
			written = true
			go func() { // ends after its writes
				for i := range 40 {
					exec1(t, database, `SELECT commitcast.append('t', 'delta', to_json($1::int))`, i)
					time.Sleep(100 * time.Millisecond) // the pace of the writes, over several lives of a token
				}
			}()
			want = 40 * 39 / 2
		}
		if sum == want {
			break
		}
	}
	if sum != want || asked.Load() < 2 || refused.Load() < 1 {
		t.Errorf("sum %d, want %d; asked for a token %d times, %d of them after a refusal", sum, want, asked.Load(), refused.Load())
	}
	cancel()
	<-ran

	// The same keys by URL.
	var set atomic.Pointer[[]byte]
	set.Store(new([]byte))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(*set.Load()) }))
	defer server.Close()
	text, err := json.Marshal(map[string]any{"keys": []any{issuer.JWK("k1")}})
	if err != nil {
		t.Fatal(err)
	}
	set.Store(&text)
	n = start(t, database, "", "all", "--auth=jwt", "--jwt-alg=EdDSA", "--jwks-url="+server.URL, "--jwt-audience="+testkit.Audience)
	by, _, err := testkit.Open(t, n.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	by.Auth(issuer.Token("7", []string{"t"}, nil))
	by.Subscribe(1, "t", epoch+":38")
	by.Expect("subscribed")
	by.ExpectEvents("t", 39, 40)
}

// What is wrong with how tokens are checked is said before anything is served, without the keys.
func TestAuthFlagMistakes(t *testing.T) {
	database := testkit.Database(t)
	file := func(text string) string {
		name := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	key := testkit.NewIssuer(t).File(t)
	secret := file("sesamesesamesesamesesamesesamesesame")
	for _, c := range []struct{ args, says string }{
		{"--auth=magic", "jwt and off"},
		{"--auth=jwt", "--jwt-alg"},
		{"--auth=jwt --jwt-alg=EdDSA", "--jwt-key-file"},
		{"--auth=jwt --jwt-alg=EdDSA --jwt-key-file=" + key, "--jwt-audience"},
		{"--auth=jwt --jwt-alg=none --jwt-audience=a --jwt-key-file=" + key, `"none"`},
		{"--auth=jwt --jwt-alg=RS256 --jwt-audience=a --jwt-key-file=" + key, "EdDSA"},
		{"--auth=jwt --jwt-alg=HS256 --jwt-audience=a --jwt-key-file=" + key, "PEM"},
		{"--auth=jwt --jwt-alg=HS256 --jwt-audience=a --jwt-key-file=" + file("sesame"), "at least 32"},
		{"--auth=jwt --jwt-alg=EdDSA --jwt-audience=a --jwt-key-file=" + secret, "no PEM block"},
		{"--auth=jwt --jwt-alg=EdDSA --jwt-audience=a --jwt-key-file=/nowhere", "no such file"},
		{"--auth=jwt --jwt-alg=EdDSA --jwt-audience=a --jwks-url=http://issuer.test/keys", "https"},
		{"--auth=jwt --jwt-alg=EdDSA --jwt-audience=a --jwt-leeway=1h --jwt-key-file=" + key, "--jwt-leeway"},
		{"--auth=jwt --jwt-alg=EdDSA --jwt-audience=a --allow-topics=a* --jwt-key-file=" + key, "--allow-topics"},
		{"--auth=off --jwt-key-file=" + key, "--auth=off"},
	} {
		_, stderr, code := command(t, []string{"DATABASE_URL=" + database}, append([]string{"all", "--listen=127.0.0.1:0", "--ops-listen="}, strings.Fields(c.args)...)...)
		if code != 2 || !strings.Contains(stderr, c.says) || strings.Contains(stderr, "sesame") {
			t.Errorf("%s: code %d, %s", c.args, code, stderr)
		}
	}
}
