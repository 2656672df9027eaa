package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/auth"
	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/internal/journal"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/outbox"
	"github.com/commitcast/commitcast/stream"
)

// docs/openapi.yaml says what the handlers do: every answer here is held to it, and every answer that it promises has been
// seen.
func TestOpenAPI(t *testing.T) {
	doc, err := openapi3.NewLoader().LoadFromFile("../../docs/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}
	text := func(body io.Reader, _ http.Header, _ *openapi3.SchemaRef, _ openapi3filter.EncodingFn) (any, error) {
		b, err := io.ReadAll(body)
		return string(b), err
	}
	openapi3filter.RegisterBodyDecoder("text/event-stream", text)

	pool, err := pgxpool.New(t.Context(), testkit.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	mux, stop := service(t, pool)

	seen := map[string]bool{}
	send := func(status int, method, target, body string, headers ...string) (http.Header, []byte) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		r := httptest.NewRequestWithContext(ctx, method, target, strings.NewReader(body))
		if body != "" {
			r.Header.Set("Content-Type", "application/json")
		}
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		route, params, err := router.FindRoute(r)
		if err != nil {
			t.Fatalf("%s %s is not in the description: %v", method, target, err)
		}
		// A stream has no end of its own: read until the topic is followed.
		w := &recorder{ResponseRecorder: httptest.NewRecorder(), until: "event: subscribed", end: cancel}
		mux.ServeHTTP(w, r)
		if w.Code != status {
			t.Errorf("%s %s: %d %s, want %d", method, target, w.Code, w.Body, status)
		}
		in := &openapi3filter.RequestValidationInput{Request: r, PathParams: params, Route: route}
		err = openapi3filter.ValidateResponse(t.Context(), &openapi3filter.ResponseValidationInput{
			RequestValidationInput: in, Status: w.Code, Header: w.Header(), Body: io.NopCloser(bytes.NewReader(w.Body.Bytes())),
			Options: &openapi3filter.Options{IncludeResponseStatus: true, MultiError: true},
		})
		if err != nil {
			t.Errorf("%s %s: %v\n%s", method, target, err, w.Body)
		}
		seen[fmt.Sprint(route.Path, " ", method, " ", w.Code)] = true
		return w.Header(), w.Body.Bytes()
	}

	const events = "/v1/topics/account:1/events"
	upgrade := []string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="}
	send(200, "GET", events, "")
	send(400, "GET", events+"?after=nonsense", "")
	send(403, "GET", events, "", "Origin", "https://evil.test")
	send(401, "GET", events, "", guarded, "yes")
	send(401, "GET", events, "", guarded, "yes", "Authorization", "Bearer stolen")
	send(421, "GET", "https://rebound.test"+events, "")
	send(421, "OPTIONS", "https://rebound.test"+events, "", "Origin", "https://good.test")
	send(204, "OPTIONS", events, "", "Origin", "https://good.test")
	send(403, "OPTIONS", events, "", "Origin", "https://evil.test")
	send(426, "GET", "/v1/ws", "")
	send(400, "GET", "/v1/ws?token=x", "", upgrade...)
	send(401, "GET", "/v1/ws", "", append([]string{guarded, "yes", "Authorization", "Bearer stolen"}, upgrade...)...)
	send(421, "GET", "https://rebound.test/v1/ws", "", upgrade...)
	send(403, "GET", "/v1/ws", "", append([]string{"Origin", "https://evil.test"}, upgrade...)...)

	h, body := send(200, "GET", "/snapshot", "")
	send(304, "GET", "/snapshot", "", "If-None-Match", h.Get("ETag"))
	send(400, "GET", "/snapshot?page=x", "")
	h, _ = send(200, "GET", "/digest", "")
	send(304, "GET", "/digest", "", "If-None-Match", h.Get("ETag"))
	var snapshot struct{ Cursor, Next string }
	if err := json.Unmarshal(body, &snapshot); err != nil {
		t.Fatal(err)
	}
	saw := snapshot.Cursor
	send(428, "POST", "/action", "1", outbox.KeyHeader, "a")
	send(400, "POST", "/action", "1", outbox.KeyHeader, "")
	send(413, "POST", "/action", strings.Repeat("1", 70<<10), outbox.KeyHeader, "a")
	send(200, "POST", "/action", "1", outbox.KeyHeader, "a", outbox.SawHeader, saw+";0")
	send(200, "POST", "/action", "1", outbox.KeyHeader, "a", outbox.SawHeader, saw+";0")
	send(422, "POST", "/action", "2", outbox.KeyHeader, "a", outbox.SawHeader, saw+";0")
	send(409, "POST", "/action", "1", outbox.KeyHeader, "b", outbox.SawHeader, saw+";0")
	send(503, "GET", "/digest", "") // the event waits to be sequenced
	_, body = send(200, "GET", "/snapshot?view=pages", "")
	if err := json.Unmarshal(body, &snapshot); err != nil {
		t.Fatal(err)
	}
	send(200, "GET", "/snapshot?view=pages&page="+snapshot.Next, "")
	if _, err := pool.Exec(t.Context(), `SELECT commitcast.begin_epoch(NULL, 'test')`); err != nil {
		t.Fatal(err)
	}
	send(410, "GET", "/snapshot?view=pages&page="+snapshot.Next, "")
	if _, err := pool.Exec(t.Context(), `UPDATE commitcast.outbox SET born = born + interval '1 second'`); err != nil {
		t.Fatal(err)
	}
	send(503, "GET", "/snapshot", "")
	send(503, "POST", "/action", "1", outbox.KeyHeader, "b", outbox.SawHeader, saw+";0")
	stop()
	send(503, "GET", events, "")
	send(503, "GET", "/v1/ws", "")

	for path, item := range doc.Paths.Map() {
		for method, operation := range item.Operations() {
			for status := range operation.Responses.Map() {
				// 101 leaves HTTP; every other test of the WebSocket sees it.
				if !seen[path+" "+method+" "+status] && status != "101" {
					t.Errorf("promised and not seen: %s %s %s", method, path, status)
				}
			}
		}
	}
}

// guarded is the header of requests that go to a broadcaster with authentication.
const guarded = "Test-Guarded"

// nobody refuses every token.
type nobody struct{}

func (nobody) Verify(context.Context, string) (*auth.Identity, error) {
	return nil, fmt.Errorf("%w: not one of ours", auth.ErrRefused)
}

// recorder ends the request once the body holds a text.
type recorder struct {
	*httptest.ResponseRecorder
	until string
	end   func()
}

func (r *recorder) Write(p []byte) (int, error) {
	n, err := r.ResponseRecorder.Write(p)
	if strings.Contains(r.Body.String(), r.until) {
		r.end()
	}
	return n, err
}

// service is a broadcaster and a small service, on one mux, at the paths of the description. stop ends the broadcaster.
func service(t *testing.T, pool *pgxpool.Pool) (mux *http.ServeMux, stop func()) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), `CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL, updated_at timestamptz NOT NULL DEFAULT clock_timestamp());
		INSERT INTO account VALUES (1, 0), (2, 0)`); err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	s := stream.NewMemory(stream.MemoryConfig{})
	t.Cleanup(func() { s.Close() })
	cfg := broadcaster.Config{Drain: time.Millisecond, Hosts: []string{"example.com"}, Origins: []string{"good.test"}}
	b, err := broadcaster.New(journal.New(pool), s, cfg)
	must(err)
	cfg.Verifier = nobody{}
	locked, err := broadcaster.New(journal.New(pool), s, cfg)
	must(err)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, b := range []*broadcaster.Broadcaster{b, locked} {
		running.Go(func() { b.Run(ctx) }) // ends with stop
	}
	stop = func() { cancel(); running.Wait() }
	t.Cleanup(stop)
	for _, b := range []*broadcaster.Broadcaster{b, locked} {
		testkit.Eventually(t, 10*time.Second, b.Ready, "the broadcaster is ready")
	}

	quiet := slog.New(slog.DiscardHandler)
	topic := func(*http.Request) (string, error) { return "account:1", nil }
	view, err := outbox.NewView(pool, outbox.ViewConfig{
		Topic: topic, Logger: quiet,
		State: func(r *http.Request, tx pgx.Tx) (any, error) {
			var balance int64
			err := tx.QueryRow(r.Context(), `SELECT balance FROM account WHERE id = 1`).Scan(&balance)
			return balance, err
		},
		Digest: func(*http.Request) (outbox.DigestQuery, error) {
			return outbox.DigestQuery{SQL: `SELECT count(*), max(updated_at), commitcast.hash_rows(id || ' ' || balance) FROM account WHERE id = 1`}, nil
		},
	})
	must(err)
	pages, err := outbox.NewView(pool, outbox.ViewConfig{
		Topic: topic, Logger: quiet, Pages: outbox.VersionedPages,
		Page: func(_ *http.Request, _ pgx.Tx, after string) (any, string, error) {
			if after == "" {
				return []int{1}, "1", nil
			}
			return []int{2}, "", nil
		},
	})
	must(err)
	action, err := outbox.NewAction(pool, outbox.ActionConfig{
		Caller: func(*http.Request) (string, error) { return "ann", nil }, View: view, Logger: quiet,
		Do: func(r *http.Request, tx *outbox.Transaction) (any, error) {
			guard, err := outbox.GuardOf(r, "account:1")
			if err != nil {
				return nil, err
			}
			var balance int64
			if err := tx.QueryRow(r.Context(), `SELECT balance FROM account WHERE id = 1 FOR UPDATE`).Scan(&balance); err != nil {
				return nil, err
			}
			if err := guard.Version(r.Context(), tx, balance); err != nil {
				return nil, err
			}
			if _, err := tx.Exec(r.Context(), `UPDATE account SET balance = balance + 1, updated_at = clock_timestamp() WHERE id = 1`); err != nil {
				return nil, err
			}
			return balance + 1, tx.Publish(outbox.Event{Topic: "account:1", Type: "deposit", Data: 1})
		},
	})
	must(err)
	mux = http.NewServeMux()
	mux.HandleFunc("/v1/", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(guarded) != "" {
			locked.Handler().ServeHTTP(w, r)
			return
		}
		b.Handler().ServeHTTP(w, r)
	})
	mux.HandleFunc("/snapshot", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("view") == "pages" {
			pages.SnapshotHandler().ServeHTTP(w, r)
			return
		}
		view.SnapshotHandler().ServeHTTP(w, r)
	})
	mux.Handle("/digest", view.DigestHandler())
	mux.Handle("/action", action)
	t.Cleanup(func() {
		if err := outbox.Flush(context.Background(), pool); err != nil {
			t.Error(err)
		}
	})
	return mux, stop
}
