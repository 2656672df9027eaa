package outbox_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/outbox"
)

// depositAction adds what the body says to account 1; the user "nobody" is refused.
func depositAction(t *testing.T, pool *pgxpool.Pool, change ...func(*outbox.ActionConfig)) *outbox.Action {
	t.Helper()
	cfg := outbox.ActionConfig{
		Logger: slog.New(slog.DiscardHandler),
		Caller: func(r *http.Request) (string, error) {
			if u := r.Header.Get("User"); u != "nobody" {
				return "user " + u, nil
			}
			return "", &outbox.Problem{Status: http.StatusUnauthorized}
		},
		Do: func(r *http.Request, tx *outbox.Transaction) (any, error) {
			var by int64
			if err := json.NewDecoder(r.Body).Decode(&by); err != nil {
				return nil, &outbox.Problem{Status: http.StatusBadRequest, Detail: "not a number"}
			}
			var balance int64
			if err := tx.QueryRow(r.Context(), `UPDATE account SET balance = balance + $1 WHERE id = 1 RETURNING balance`, by).Scan(&balance); err != nil {
				return nil, err
			}
			for range 2 {
				if err := tx.Publish(event("account:1")); err != nil {
					return nil, err
				}
			}
			return outbox.Answer{Status: http.StatusCreated, Header: http.Header{"Location": {"/deposits/1"}}, Body: map[string]any{"balance": balance, "by": "<&>"}}, nil
		},
	}
	for _, c := range change {
		c(&cfg)
	}
	return must(outbox.NewAction(pool, cfg))
}

// A repeated request takes effect once and gets the same answer, to the letter.
func TestActionRepeated(t *testing.T) {
	pool := fresh(t)
	a := depositAction(t, pool)
	first := ask(a, "POST", "/deposits?x=1", "5", outbox.KeyHeader, "k", "User", "ann")
	ids := one[string](t, pool, `SELECT string_agg(id::text, ',' ORDER BY id) FROM commitcast.outbox`)
	if first.status != 201 || first.text != `{"balance":5,"by":"<&>"}` || first.header.Get("Location") != "/deposits/1" ||
		first.header.Get(outbox.EventHeader) != ids || first.header.Get("Cache-Control") != "no-store" || first.header.Get(outbox.RepeatedHeader) != "" {
		t.Errorf("%d %v %s", first.status, first.header, first.text)
	}
	again := ask(a, "POST", "/deposits?x=1", "5", outbox.KeyHeader, "k", "User", "ann", outbox.SawHeader, "17")
	if again.header.Get(outbox.RepeatedHeader) != "true" {
		t.Error("not said to be repeated")
	}
	again.header.Del(outbox.RepeatedHeader)
	if again.status != first.status || again.text != first.text || fmt.Sprint(again.header) != fmt.Sprint(first.header) {
		t.Errorf("repeated: %d %v %s", again.status, again.header, again.text)
	}
	for name, other := range map[string][3]string{"body": {"POST", "/deposits?x=1", "6"}, "query": {"POST", "/deposits?x=2", "5"},
		"path": {"POST", "/withdrawals?x=1", "5"}, "method": {"PUT", "/deposits?x=1", "5"}} {
		t.Run(name, func(t *testing.T) {
			ask(a, other[0], other[1], other[2], outbox.KeyHeader, "k", "User", "ann").is(t, 422, outbox.ProblemReused)
		})
	}
	// Another user's key is another key.
	if got := ask(a, "POST", "/deposits?x=1", "5", outbox.KeyHeader, "k", "User", "bob"); got.status != 201 || got.header.Get(outbox.RepeatedHeader) != "" {
		t.Errorf("another user: %d %s", got.status, got.text)
	}
	// What was refused is not recorded.
	ask(a, "POST", "/deposits", "x", outbox.KeyHeader, "k2", "User", "ann").is(t, 400, "")
	if got := ask(a, "POST", "/deposits", "1", outbox.KeyHeader, "k2", "User", "ann"); got.status != 201 {
		t.Errorf("after a refusal: %d %s", got.status, got.text)
	}
	if b := balance(t, pool); b != 11 {
		t.Errorf("balance %d, want 11", b)
	}
}

func TestActionRefuses(t *testing.T) {
	pool := fresh(t)
	a := depositAction(t, pool, func(c *outbox.ActionConfig) { c.RequireKey, c.MaxBody = true, 10 })
	ask(a, "POST", "/", "1", "User", "ann").is(t, 428, outbox.ProblemBadRequest)
	ask(a, "POST", "/", "1", "User", "ann", outbox.KeyHeader, "").is(t, 400, outbox.ProblemBadRequest)
	ask(a, "POST", "/", "1", "User", "ann", outbox.KeyHeader, strings.Repeat("k", 256)).is(t, 400, outbox.ProblemBadRequest)
	ask(a, "POST", "/", "1", "User", "ann", outbox.KeyHeader, "ü").is(t, 400, outbox.ProblemBadRequest)
	ask(a, "POST", "/", "12345678901", "User", "ann", outbox.KeyHeader, "k").is(t, 413, outbox.ProblemBadRequest)
	ask(a, "POST", "/", "1", "User", "nobody", outbox.KeyHeader, "k").is(t, 401, "")
	ask(a, "POST", "/", "1", "User", strings.Repeat("u", 200), outbox.KeyHeader, "k").is(t, 500, "")
	// Without a key it is carried out as it is, and names its events all the same.
	b := depositAction(t, pool)
	if got := ask(b, "POST", "/", "1", "User", "ann"); got.status != 201 || strings.Count(got.header.Get(outbox.EventHeader), ",") != 1 {
		t.Errorf("%d %v %s", got.status, got.header, got.text)
	}
	for name, do := range map[string]error{"oops": errors.New("secret"), "no rows": pgx.ErrNoRows} {
		c := depositAction(t, pool, func(c *outbox.ActionConfig) {
			c.Do = func(*http.Request, *outbox.Transaction) (any, error) { return nil, do }
		})
		got := ask(c, "POST", "/", "1", "User", "ann", outbox.KeyHeader, name)
		got.is(t, 500, "")
		if strings.Contains(got.text, "secret") {
			t.Errorf("tells of the inside: %s", got.text)
		}
	}
	empty := depositAction(t, pool, func(c *outbox.ActionConfig) {
		c.Do = func(*http.Request, *outbox.Transaction) (any, error) { return nil, nil }
	})
	for range 2 {
		if got := ask(empty, "POST", "/", "1", "User", "ann", outbox.KeyHeader, "empty"); got.status != 204 || got.text != "" {
			t.Errorf("%d %s", got.status, got.text)
		}
	}
	for name, cfg := range map[string]outbox.ActionConfig{"nothing": {}, "no caller": {Do: func(*http.Request, *outbox.Transaction) (any, error) { return nil, nil }}} {
		if _, err := outbox.NewAction(pool, cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// A refusal as stale is a problem and a snapshot at once. Where no snapshot can be had, there is no refusal either: the
// client tries again.
func TestActionStale(t *testing.T) {
	pool := fresh(t)
	view := accountView(t, pool)
	a := depositAction(t, pool, func(c *outbox.ActionConfig) {
		c.View = view
		c.Do = func(r *http.Request, tx *outbox.Transaction) (any, error) {
			if err := deposit(r.Context(), tx); err != nil {
				return nil, err
			}
			return nil, fmt.Errorf("buying: %w", outbox.Check("account:1", 3, 4))
		}
	})
	depositIn(t, pool, 1)
	got := ask(a, "POST", "/?id=1", "1", outbox.KeyHeader, "k", "User", "ann")
	got.is(t, 409, outbox.ProblemStale)
	epoch := one[string](t, pool, `SELECT name FROM commitcast.epoch`)
	if got.body["cursor"] != epoch+":0" || got.body["epoch"] != epoch || len(got.body["pending"].([]any)) != 1 || fmt.Sprint(got.body["state"]) != "map[balance:1]" ||
		fmt.Sprintf("%v %v %v", got.body["observed"], got.body["current"], got.body["topic"]) != "3 4 account:1" {
		t.Errorf("%s", got.text)
	}
	exec(t, pool, `INSERT INTO commitcast.outbox (partition, topic, type, data) SELECT commitcast.partition_of('account:1'), 'account:1', 't', '1' FROM generate_series(1, $1)`, outbox.MaxPending+1)
	ask(a, "POST", "/?id=1", "1", outbox.KeyHeader, "k", "User", "ann").is(t, 503, outbox.ProblemBehind)
	if b := balance(t, pool); b != 1 {
		t.Errorf("balance %d", b)
	}
}

// The same request many times at once, over HTTP: one takes effect, all get the same answer.
func TestActionAtOnce(t *testing.T) {
	pool := fresh(t)
	server := httptest.NewServer(depositAction(t, pool))
	defer server.Close()
	answers := make([]string, 12)
	var all sync.WaitGroup
	for i := range answers {
		all.Go(func() {
			r := must(http.NewRequest("POST", server.URL, strings.NewReader("7")))
			r.Header.Set(outbox.KeyHeader, "k")
			r.Header.Set("User", "ann")
			resp, err := server.Client().Do(r)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body)
			answers[i] = fmt.Sprint(resp.StatusCode, resp.Header.Get(outbox.EventHeader), string(body))
		})
	}
	all.Wait()
	for _, a := range answers {
		if a != answers[0] || !strings.HasPrefix(a, "201") {
			t.Errorf("%s, want %s", a, answers[0])
		}
	}
	if b, n := balance(t, pool), events(t, pool); b != 7 || n != 2 {
		t.Errorf("balance %d, %d events", b, n)
	}
}

// The client's connection breaks after the commit and before the answer: it asks again with the same key.
func TestActionWhoseAnswerIsLost(t *testing.T) {
	pool := fresh(t)
	server := httptest.NewServer(depositAction(t, pool))
	defer server.Close()
	proxy := testkit.NewProxy(t, server.URL)
	send := func(url string) (*http.Response, error) {
		r := must(http.NewRequest("POST", url, strings.NewReader("7")))
		r.Header.Set(outbox.KeyHeader, "k")
		r.Header.Set("User", "ann")
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		return client.Do(r)
	}
	proxy.HoldReplies()
	lost := make(chan error, 1)
	go func() { // ends when the connection is cut; the test waits for it
		resp, err := send(proxy.URL(server.URL))
		if err == nil {
			resp.Body.Close()
		}
		lost <- err
	}()
	testkit.Eventually(t, 20*time.Second, func() bool { return balance(t, pool) == 7 }, "the commit is durable")
	proxy.Cut()
	if err := <-lost; err == nil {
		t.Fatal("the answer came")
	}
	proxy.Resume()
	resp, err := send(proxy.URL(server.URL))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != 201 || string(body) != `{"balance":7,"by":"<&>"}` || resp.Header.Get(outbox.RepeatedHeader) != "true" || balance(t, pool) != 7 {
		t.Errorf("%d %s, balance %d", resp.StatusCode, body, balance(t, pool))
	}
}
