package auth_test

import (
	"cmp"
	"context"
	"encoding/json"
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
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/commitcast/commitcast/auth"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// service decides about topics; f is what it does.
func service(t *testing.T, c auth.WebhookConfig, f http.HandlerFunc) *auth.Webhook {
	t.Helper()
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	c.URL = server.URL + "/allow?key=sesame"
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	w, err := auth.NewWebhook(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

func TestWebhookAnswers(t *testing.T) {
	var got struct {
		Subject, Topic string
		Claims         map[string]any
	}
	var bearer string
	answers := map[string]func(w http.ResponseWriter){
		"yes":      func(w http.ResponseWriter) { fmt.Fprint(w, `{"allow":true}`) },
		"no":       func(w http.ResponseWriter) { fmt.Fprint(w, `{"allow":false}`) },
		"403":      func(w http.ResponseWriter) { w.WriteHeader(403) },
		"404":      func(w http.ResponseWriter) { w.WriteHeader(404); fmt.Fprint(w, `{"allow":true}`) },
		"500":      func(w http.ResponseWriter) { w.WriteHeader(500); fmt.Fprint(w, `{"allow":true}`) },
		"201":      func(w http.ResponseWriter) { w.WriteHeader(201); fmt.Fprint(w, `{"allow":true}`) },
		"redirect": func(w http.ResponseWriter) { w.Header().Set("Location", "/yes"); w.WriteHeader(307) },
		"empty":    func(w http.ResponseWriter) {},
		"null":     func(w http.ResponseWriter) { fmt.Fprint(w, `{"allow":null}`) },
		"word":     func(w http.ResponseWriter) { fmt.Fprint(w, `{"allow":"true"}`) },
		"page":     func(w http.ResponseWriter) { fmt.Fprint(w, `<html>`) },
		"long":     func(w http.ResponseWriter) { fmt.Fprintf(w, `{"pad":%q,"allow":true}`, strings.Repeat("x", 1<<20)) },
		"cut": func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, `{"allow":true}`)
		},
	}
	for name, want := range map[string]string{"yes": "", "no": "forbidden", "403": "forbidden"} {
		testAnswer(t, answers[name], name, want, &got, &bearer)
	}
	for name := range answers {
		if name != "yes" && name != "no" && name != "403" {
			testAnswer(t, answers[name], name, "failed", nil, nil)
		}
	}
	if got.Subject != "7" || got.Topic == "" || got.Claims["tenant"] != "acme" || bearer != "Bearer hush" {
		t.Errorf("the service was asked %+v by %q", got, bearer)
	}
	for _, bad := range []auth.WebhookConfig{{}, {URL: "ftp://x"}, {URL: "https://"}, {URL: "https://x", TTL: -1}, {URL: "http://service.test"}, {URL: "http://10.0.0.1"},
		{URL: "http://127.0.0.1.evil.test"}, {URL: "http://localhost@evil.test"}, {URL: "file:///x", PlainHTTP: true}} {
		if _, err := auth.NewWebhook(bad); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
	for _, fine := range []auth.WebhookConfig{{URL: "https://service.test"}, {URL: "http://127.0.0.1:1"}, {URL: "http://[::1]"}, {URL: "http://localhost/x"}, {URL: "http://service.test", PlainHTTP: true}} {
		if _, err := auth.NewWebhook(fine); err != nil {
			t.Errorf("%s: %v", fine.URL, err)
		}
	}
}

func testAnswer(t *testing.T, answer func(http.ResponseWriter), topic, want string, got any, bearer *string) {
	t.Helper()
	w := service(t, auth.WebhookConfig{Bearer: "hush"}, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if got != nil {
			json.Unmarshal(body, got)
			*bearer = r.Header.Get("Authorization")
		}
		answer(w)
	})
	err := w.Authorize(t.Context(), &auth.Identity{Subject: "7", Claims: []byte(`{"tenant":"acme"}`)}, topic)
	switch {
	case want == "" && err != nil, want == "forbidden" && !errors.Is(err, auth.ErrForbidden),
		want == "failed" && (err == nil || errors.Is(err, auth.ErrForbidden)):
		t.Errorf("%s: %v", topic, err)
	case err != nil && (strings.Contains(err.Error(), "sesame") || strings.Contains(err.Error(), "hush")):
		t.Errorf("the error tells a secret: %v", err)
	}
}

// Many who ask the same share one question, and the number of questions at once is bounded.
func TestWebhookIsNotStormed(t *testing.T) {
	var asked, now, most atomic.Int64
	w := service(t, auth.WebhookConfig{AtOnce: 4, Timeout: 20 * time.Second}, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		fmt.Fprint(w, `{"allow":true}`)
	})
	var all sync.WaitGroup
	for i := range 400 {
		all.Go(func() {
			if err := w.Authorize(t.Context(), &auth.Identity{Subject: "7"}, fmt.Sprint("t", i%40)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if asked.Load() != 40 || most.Load() > 4 {
		t.Errorf("asked %d times, %d at once", asked.Load(), most.Load())
	}
	if err := w.Authorize(t.Context(), &auth.Identity{Subject: "8"}, "t0"); err != nil || asked.Load() != 41 {
		t.Errorf("another client's decision was taken: %v, asked %d times", err, asked.Load())
	}
}

// clockwork is a service without a network, for tests with the time of a bubble.
type clockwork struct {
	mu    sync.Mutex
	allow bool
	err   error
	slow  time.Duration
	asked int
	code  int // instead of 200
}

func (c *clockwork) RoundTrip(r *http.Request) (*http.Response, error) {
	c.mu.Lock()
	c.asked++
	allow, err, slow, code := c.allow, c.err, c.slow, cmp.Or(c.code, 200)
	c.mu.Unlock()
	select {
	case <-time.After(slow):
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: code, Body: io.NopCloser(strings.NewReader(fmt.Sprintf(`{"allow":%v}`, allow)))}, nil
}

func (c *clockwork) set(allow bool, err error, slow time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.allow, c.err, c.slow, c.asked = allow, err, slow, 0
}

func (c *clockwork) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked
}

func clockworkWebhook(t *testing.T, remembered int, f func(w *auth.Webhook, c *clockwork)) {
	synctest.Test(t, func(t *testing.T) {
		c := &clockwork{allow: true}
		w, err := auth.NewWebhook(auth.WebhookConfig{URL: "https://service.test", Logger: slog.New(slog.DiscardHandler), Remembered: remembered})
		if err != nil {
			t.Fatal(err)
		}
		auth.SetTransport(w, c)
		f(w, c)
	})
}

// Decisions are remembered for a while, refusals for a shorter one, and only so many.
func TestWebhookRemembers(t *testing.T) {
	clockworkWebhook(t, 100, func(w *auth.Webhook, c *clockwork) {
		who, ctx := &auth.Identity{Subject: "7"}, context.Background()
		if err := w.Authorize(ctx, who, "a"); err != nil {
			t.Fatal(err)
		}
		c.set(false, nil, 0)
		time.Sleep(29 * time.Second)
		if err := w.Authorize(ctx, who, "a"); err != nil || c.count() != 0 {
			t.Errorf("%v, asked %d times", err, c.count())
		}
		time.Sleep(2 * time.Second)
		if err := w.Authorize(ctx, who, "a"); !errors.Is(err, auth.ErrForbidden) {
			t.Errorf("remembered for too long: %v", err)
		}
		c.set(true, nil, 0)
		if err := w.Authorize(ctx, who, "a"); !errors.Is(err, auth.ErrForbidden) || c.count() != 0 {
			t.Errorf("%v, asked %d times", err, c.count())
		}
		time.Sleep(6 * time.Second)
		if err := w.Authorize(ctx, who, "a"); err != nil {
			t.Errorf("refused for too long: %v", err)
		}
		for i := range 1000 {
			if err := w.Authorize(ctx, who, fmt.Sprint("t", i)); err != nil {
				t.Fatal(err)
			}
		}
		if n := auth.Remembered(w); n > 100 {
			t.Errorf("%d decisions are remembered", n)
		}
	})
}

// A service that is down or slow allows nothing, costs nobody more than the timeout, and after some failures nothing at all;
// what is remembered goes on. It is tried again after a rest that grows.
func TestWebhookDown(t *testing.T) {
	for _, how := range []struct {
		err  error
		slow time.Duration
	}{{errors.New("refused"), 0}, {nil, time.Hour}} {
		clockworkWebhook(t, 0, func(w *auth.Webhook, c *clockwork) {
			who, ctx := &auth.Identity{Subject: "7"}, context.Background()
			if err := w.Authorize(ctx, who, "known"); err != nil {
				t.Fatal(err)
			}
			c.set(true, how.err, how.slow)
			ask := func(i int) {
				t.Helper()
				began := time.Now()
				if err := w.Authorize(ctx, who, fmt.Sprint("t", i)); err == nil || errors.Is(err, auth.ErrForbidden) {
					t.Errorf("%v", err)
				}
				if d := time.Since(began); d > time.Second {
					t.Errorf("took %v", d)
				}
			}
			for i := range 5 {
				ask(i)
			}
			began := time.Now()
			for i := range 100 {
				ask(i)
			}
			if c.count() != 5 || time.Since(began) != 0 {
				t.Errorf("with an open circuit: asked %d times, took %v", c.count(), time.Since(began))
			}
			if err := w.Authorize(ctx, who, "known"); err != nil {
				t.Errorf("what is remembered: %v", err)
			}
			for i := range 60 * 10 {
				time.Sleep(time.Second)
				ask(i)
			}
			if n := c.count(); n > 5+5+10*60/30+1 {
				t.Errorf("asked %d times within ten minutes", n)
			}
			c.set(true, nil, 0)
			time.Sleep(31 * time.Second)
			for i := range 10 {
				if err := w.Authorize(ctx, who, fmt.Sprint("u", i)); err != nil {
					t.Errorf("back again: %v", err)
				}
			}
		})
	}
}

// That this node asks too much at once, or that the service does not know a topic, says nothing about the service: nobody is
// shut out for it.
func TestWebhookIsNotDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &clockwork{allow: true, slow: 900 * time.Millisecond}
		w, err := auth.NewWebhook(auth.WebhookConfig{URL: "https://service.test", Logger: slog.New(slog.DiscardHandler), AtOnce: 1})
		if err != nil {
			t.Fatal(err)
		}
		auth.SetTransport(w, c)
		who, ctx := &auth.Identity{Subject: "7"}, context.Background()
		var all sync.WaitGroup
		for i := range 20 {
			all.Go(func() { w.Authorize(ctx, who, fmt.Sprint("t", i)) })
		}
		all.Wait()
		c.set(true, nil, 0)
		if err := w.Authorize(ctx, who, "a"); err != nil {
			t.Errorf("after a crowd: %v", err)
		}
		for code, shut := range map[int]bool{400: false, 401: false, 404: false, 408: true, 429: true, 500: true} {
			c.code = code
			for i := range 10 {
				if err := w.Authorize(ctx, who, fmt.Sprint(code, ":", i)); err == nil || errors.Is(err, auth.ErrForbidden) {
					t.Errorf("%d: %v", code, err)
				}
			}
			c.code = 0
			if err := w.Authorize(ctx, who, fmt.Sprint("after", code)); (err != nil) != shut {
				t.Errorf("after %d: %v", code, err)
			}
			time.Sleep(time.Minute)
			if err := w.Authorize(ctx, who, fmt.Sprint("long after", code)); err != nil {
				t.Errorf("long after %d: %v", code, err)
			}
		}
	})
}

// A question that has waited for its turn for most of its time says nothing about the service when that takes as long as it
// always does; one that had its time does.
func TestWebhookLateTurns(t *testing.T) {
	for slow, shut := range map[time.Duration]bool{700 * time.Millisecond: false, time.Hour: true} {
		synctest.Test(t, func(t *testing.T) {
			c := &clockwork{allow: true, slow: slow}
			w, err := auth.NewWebhook(auth.WebhookConfig{URL: "https://service.test", Logger: slog.New(slog.DiscardHandler), AtOnce: 10})
			if err != nil {
				t.Fatal(err)
			}
			auth.SetTransport(w, c)
			who, ctx := &auth.Identity{Subject: "7"}, context.Background()
			var all sync.WaitGroup
			for i := range 20 { // the second half gets its turn after 700 ms, and has 300
				all.Go(func() { w.Authorize(ctx, who, fmt.Sprint("t", i)) })
			}
			all.Wait()
			if slow < time.Second && c.count() != 20 {
				t.Errorf("asked %d times", c.count())
			}
			c.set(true, nil, 0)
			if err := w.Authorize(ctx, who, "a"); (err != nil) != shut {
				t.Errorf("a service that takes %v: after a crowd: %v", slow, err)
			}
		})
	}
}

// One who gives up does not take the answer from the others.
func TestWebhookSharedQuestion(t *testing.T) {
	clockworkWebhook(t, 0, func(w *auth.Webhook, c *clockwork) {
		c.set(true, nil, 500*time.Millisecond)
		who := &auth.Identity{Subject: "7"}
		hasty, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		var all sync.WaitGroup
		all.Go(func() {
			if err := w.Authorize(hasty, who, "a"); err == nil || errors.Is(err, auth.ErrForbidden) {
				t.Errorf("%v", err)
			}
		})
		time.Sleep(10 * time.Millisecond)
		if err := w.Authorize(context.Background(), who, "a"); err != nil {
			t.Error(err)
		}
		all.Wait()
		if c.count() != 1 {
			t.Errorf("asked %d times", c.count())
		}
	})
}

// answering is a service that always says the same.
type answering struct {
	status int
	body   string
}

func (a answering) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: a.status, Status: fmt.Sprint(a.status), Body: io.NopCloser(strings.NewReader(a.body))}, nil
}

// FuzzWebhookAnswer: only a clear yes is a yes, and only a clear no is a no.
func FuzzWebhookAnswer(f *testing.F) {
	for _, seed := range []string{`{"allow":true}`, `{"allow":false}`, `{"allow":null}`, `{"allow":"true"}`, `{"allow":1}`, `[{"allow":true}]`, `{"allow":true`, `{"x":{"allow":true}}`, ``,
		`{"allow":true}{"allow":false}`, `{"allow":false,"allow":true}`, `{"pad":"` + strings.Repeat("x", 5000) + `","allow":true}`} {
		f.Add(200, seed)
	}
	f.Add(403, "")
	f.Add(204, `{"allow":true}`)
	f.Add(-1, `{"allow":true}`)
	f.Fuzz(func(t *testing.T, status int, body string) {
		w, err := auth.NewWebhook(auth.WebhookConfig{URL: "https://service.test", Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		auth.SetTransport(w, answering{status, body})
		err = w.Authorize(context.Background(), &auth.Identity{Subject: "7"}, "a")
		said := map[string]any{}
		whole := status == 200 && json.Unmarshal([]byte(body), &said) == nil
		is := func(want bool) (found bool) { // names of members are read in any case
			for name, value := range said {
				found = found || strings.EqualFold(name, "allow") && value == want
			}
			return found
		}
		switch {
		case err == nil && !(whole && is(true)):
			t.Fatalf("%d %q allows", status, body)
		case errors.Is(err, auth.ErrForbidden) && status != 403 && !(whole && is(false)):
			t.Fatalf("%d %q forbids", status, body)
		case err != nil && len(err.Error()) > 500:
			t.Fatalf("an error of %d bytes", len(err.Error()))
		}
	})
}
