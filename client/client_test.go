package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/commitcast/commitcast/wire"
)

// Bad input, each time: one clear error, never a wrong state, and right in the end.

func TestGarbage(t *testing.T) {
	inBubble(t, Config{}, func(b *bench) {
		f, p := b.live(at(epochE, 0))
		p.send(eventLine("t", epochE, 1), "not json", `{"op":"event","topic":"t"}`, eventLine("t", epochE, 2))
		p.send("[]")
		if err := p.ws.Write(b.ctx, websocket.MessageBinary, []byte("binary")); err != nil {
			t.Fatal(err)
		}
		p.send(`{"op":"of a later server","topic":"t"}`)
		p.send(eventLine("u", epochE, 1), eventLine("u", epochE, 2)) // nobody asked for u
		p.send(string(wire.AppendError(nil, 0, &wire.Error{Code: wire.CodeBadRequest, Message: "m"})))
		p.send(eventLine("t", epochE, 3))
		f.state("-123", 3)
		b.kinds(KindGarbage, KindTopic, KindRefused)
		if text := b.errs[1].Error(); text != "client: u: topic: the server sent event, which nobody asked for" {
			t.Error(text)
		}
	})
}

// An event that was garbled is a hole.
func TestGarbledEventHeals(t *testing.T) {
	for _, line := range []string{
		strings.Replace(eventLine("t", epochE, 1), `"offset":1`, `"offset":"1"`, 1),
		strings.Replace(eventLine("t", epochE, 1), `"at":"`, `"at":"x`, 1),
	} {
		inBubble(t, Config{}, func(b *bench) {
			f, p := b.live(at(epochE, 0))
			p.send(line, eventLine("t", epochE, 2))
			p.request(wire.OpUnsubscribe)
			if r := p.subscribed(2); r.After != epochE+":0" {
				t.Errorf("again after %s", r.After)
			}
			p.send(eventLine("t", epochE, 1), eventLine("t", epochE, 2))
			f.state("-12", 2)
			b.kinds(KindGarbage)
		})
	}
}

func TestOffsetsGoBackwards(t *testing.T) {
	inBubble(t, Config{}, func(b *bench) {
		f, p := b.live(at(epochE, 0))
		p.send(eventLine("t", epochE, 1), eventLine("t", epochE, 2), eventLine("t", epochE, 1), eventLine("t", epochE, 3))
		f.state("-123", 3)
		p.send(eventLine("t", "2-ffff", 4)) // of another history
		p.request(wire.OpUnsubscribe)
		if r := p.subscribed(); r.After != epochE+":3" {
			t.Errorf("again after %s", r.After)
		}
		p.send(eventLine("t", epochE, 4))
		f.state("-1234", 4)
		b.kinds()
	})
}

func TestSnapshotEndpoint(t *testing.T) {
	say := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) }
	}
	status := func(code int, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if len(header) > 0 {
				w.Header().Set(header[0], header[1])
			}
			w.WriteHeader(code)
		}
	}
	for name, c := range map[string]struct {
		answer  http.HandlerFunc
		message string
		final   bool
		pause   time.Duration // at least
	}{
		"500":                  {status(500), "answered 500", false, 0},
		"503 with Retry-After": {status(503, "Retry-After", "7"), "answered 503", false, 7 * time.Second},
		"an end in the middle": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			fmt.Fprint(w, `{"state":`)
		}, "unexpected EOF", false, 0},
		"404":          {status(404), "answered 404", true, 0},
		"403":          {status(403), "answered 403", true, 0},
		"a redirect":   {status(302, "Location", "/login"), "answered 302", true, 0},
		"HTML":         {say("<html>"), "did not answer with a snapshot", true, 0},
		"nothing":      {say(""), "did not answer with a snapshot", true, 0},
		"null":         {say("null"), "no valid cursor", true, 0},
		"no cursor":    {say(`{"state":"a","epoch":"3-7d0a","pending":[]}`), "no valid cursor", true, 0},
		"a bad cursor": {say(`{"state":"a","cursor":"7","epoch":"3-7d0a","pending":[]}`), "no valid cursor", true, 0},
		"no epoch":     {say(`{"state":"a","cursor":"3-7d0a:1","pending":[]}`), "no valid epoch", true, 0},
		"no pending":   {say(`{"state":"a","cursor":"3-7d0a:1","epoch":"3-7d0a"}`), "no pending ids", true, 0},
		"odd pending":  {say(`{"state":"a","cursor":"3-7d0a:1","epoch":"3-7d0a","pending":["7"]}`), "cannot unmarshal string", true, 0},
		"no state":     {say(`{"cursor":"3-7d0a:1","epoch":"3-7d0a","pending":[]}`), "no state", true, 0},
		"a wrong state": {say(`{"state":1,"cursor":"3-7d0a:1","epoch":"3-7d0a","pending":[]}`),
			"cannot unmarshal number", true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, Config{}, func(b *bench) {
				began, asked := time.Now(), 0
				b.mux.HandleFunc("/login", func(http.ResponseWriter, *http.Request) { t.Error("the redirect was followed") })
				b.mux.HandleFunc("/snapshot", func(w http.ResponseWriter, r *http.Request) {
					if asked++; asked == 1 {
						c.answer(w, r)
						return
					}
					if waited := time.Since(began); waited < c.pause || waited > c.pause+againBase*2 {
						t.Errorf("asked again after %v", waited)
					}
					fmt.Fprintf(w, `{"state":"good","cursor":"%s:5","pending":[],"epoch":"%s"}`, epochE, epochE)
				})
				topic := appended(nil)
				topic.Snapshot = SnapshotURL[string](b.http, "http://example.org/snapshot")
				f := b.follow("t", topic)
				b.run()
				p := b.accept()
				p.hello()
				if c.final {
					err := receive(b, "the end", f.err)
					if e := new(Error); !errors.As(err, &e) || e.Kind != KindSnapshot || !e.Final || !strings.Contains(err.Error(), c.message) {
						t.Errorf("Follow ended with %v", err)
					}
					b.kinds()
				} else {
					p.subscribed()
					f.state("good", 5)
					b.kinds(KindSnapshot)
					if e := b.errs[0]; e.Final || !strings.Contains(e.Error(), c.message) {
						t.Error(e)
					}
				}
				if len(f.changes) > 0 {
					t.Errorf("a state came through: %+v", <-f.changes)
				}
			})
		})
	}
}

// A snapshot function of the caller's own is held to the same.
func TestSnapshotFunction(t *testing.T) {
	for name, c := range map[string]func(ctx context.Context) (Held[string], error){
		"an error":   func(context.Context) (Held[string], error) { return Held[string]{}, errors.New("no database") },
		"no token":   func(context.Context) (Held[string], error) { return Held[string]{State: "wrong"}, nil },
		"bad ids":    func(context.Context) (Held[string], error) { return *at(epochE, 1, -1), nil },
		"no answer":  func(ctx context.Context) (Held[string], error) { <-ctx.Done(); return Held[string]{}, ctx.Err() },
		"bad offset": func(context.Context) (Held[string], error) { return *at(epochE, wire.MaxInteger+1), nil },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, Config{}, func(b *bench) {
				topic := appended(nil)
				good, asked := topic.Snapshot, 0
				topic.Snapshot = func(ctx context.Context) (Held[string], error) {
					if asked++; asked == 1 {
						return c(ctx)
					}
					return good(ctx)
				}
				f := b.follow("t", topic)
				b.run()
				p := b.accept()
				p.hello()
				if name == "no answer" { // which takes longer than a silent server may
					p = b.accept()
					p.hello()
				}
				p.subscribed()
				f.state("-", 0)
				if errs := b.errors(); errs[0].Kind != KindSnapshot && errs[1].Kind != KindSnapshot {
					t.Errorf("errors %v", errs)
				}
			})
		})
	}
}

func TestApplyFails(t *testing.T) {
	inBubble(t, Config{}, func(b *bench) {
		topic := appended(at(epochE, 0))
		apply := topic.Apply
		topic.Apply = func(s string, e *wire.Event) (string, error) {
			if e.Offset == 2 {
				return "wrong", errors.New("not today")
			}
			return apply(s, e)
		}
		topic.Snapshot = func(context.Context) (Held[string], error) {
			held := *at(epochE, 2)
			held.State = "read"
			return held, nil
		}
		f := b.follow("t", topic)
		b.run()
		p := b.accept()
		p.hello()
		p.subscribed()
		p.send(eventLine("t", epochE, 1), eventLine("t", epochE, 2), eventLine("t", epochE, 3))
		p.request(wire.OpUnsubscribe)
		p.subscribed(3)
		p.send(eventLine("t", epochE, 3))
		f.state("read3", 3)
		b.kinds(KindApply)
		if text := b.errs[0].Error(); text != "client: t: apply: at "+epochE+":2 (x): not today" {
			t.Error(text)
		}
	})
}

func TestTokenFails(t *testing.T) {
	asked := 0
	cfg := Config{Token: func(context.Context, bool) (string, error) {
		if asked++; asked == 1 {
			return "", errors.New("logged out")
		}
		return "good", nil
	}}
	inBubble(t, cfg, func(b *bench) {
		f := b.follow("t", appended(at(epochE, 3)))
		b.run()
		p := b.accept()
		if r := p.request(wire.OpAuth); r.Token != "good" {
			t.Errorf("token %q", r.Token)
		}
		p.hello()
		p.subscribed()
		f.state("-", 3)
		b.kinds(KindToken)
		if e := b.errs[0]; e.Final || e.Error() != "client: token: logged out" {
			t.Error(e)
		}
	})
}

// A token callback that never answers is given up.
func TestTokenHangs(t *testing.T) {
	asked := 0
	cfg := Config{Token: func(ctx context.Context, _ bool) (string, error) {
		if asked++; asked == 1 {
			<-ctx.Done()
			return "", ctx.Err()
		}
		return "good", nil
	}}
	inBubble(t, cfg, func(b *bench) {
		began := time.Now()
		b.run()
		b.accept().request(wire.OpAuth)
		if waited := time.Since(began); waited < helloWithin || waited > helloWithin+retryBase {
			t.Errorf("asked again after %v", waited)
		}
		b.kinds(KindToken)
	})
}

// 4401: a new token is asked for; the same one again is final.
func TestTokenRefused(t *testing.T) {
	tokens, refused := []string{"old", "new", "new"}, []bool{}
	cfg := Config{Token: func(_ context.Context, again bool) (string, error) {
		refused = append(refused, again)
		return tokens[len(refused)-1], nil
	}}
	inBubble(t, cfg, func(b *bench) {
		f := b.follow("t", appended(at(epochE, 3)))
		b.run()
		for _, want := range tokens[:2] {
			p := b.accept()
			if r := p.request(wire.OpAuth); r.Token != want {
				t.Errorf("token %q", r.Token)
			}
			p.ws.Close(websocket.StatusCode(wire.CloseUnauthorized.Code), wire.CloseUnauthorized.Reason)
		}
		for what, err := range map[string]error{"Run": receive(b, "the end of Run", b.ran), "Follow": receive(b, "the end of Follow", f.err)} {
			if e := new(Error); !errors.As(err, &e) || e.Kind != KindToken || !e.Final {
				t.Errorf("%s ended with %v", what, err)
			}
		}
		if !reflect.DeepEqual(refused, []bool{false, true, true}) {
			t.Errorf("asked with %v", refused)
		}
	})
}

func TestServerFallsSilent(t *testing.T) {
	inBubble(t, Config{}, func(b *bench) {
		f, _ := b.live(at(epochE, 3))
		began := time.Now()
		b.accept() // and never a hello
		if waited := time.Since(began); waited < 30*time.Second || waited > 30*time.Second+2*retryBase {
			t.Errorf("left after %v", waited)
		}
		began = time.Now()
		p := b.accept()
		if waited := time.Since(began); waited < helloWithin || waited > helloWithin+4*retryBase {
			t.Errorf("left after %v", waited)
		}
		p.hello()
		if r := p.subscribed(); r.After != epochE+":3" {
			t.Errorf("again from %s", r.After)
		}
		f.state("-", 3)
		b.kinds(KindConnection, KindConnection)
	})
}

// What comes over HTTP instead of a WebSocket: a refusal is final, a trouble is not.
func TestHandshakeRefused(t *testing.T) {
	for code, final := range map[int]bool{302: true, 403: true, 404: true, 500: false, 503: false, 429: false} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			inBubble(t, Config{}, func(b *bench) {
				asked := 0
				b.client.url = "ws://example.org/other"
				b.mux.HandleFunc("/other", func(w http.ResponseWriter, r *http.Request) {
					if asked++; asked == 1 {
						w.Header().Set("Location", "/login")
						w.WriteHeader(code)
						return
					}
					b.serve(w, r)
				})
				b.run()
				if !final {
					b.accept()
					b.kinds(KindConnection)
					return
				}
				err := receive(b, "the end", b.ran)
				if e := new(Error); !errors.As(err, &e) || e.Kind != KindConnection || !e.Final {
					t.Errorf("Run ended with %v", err)
				}
			})
		})
	}
}

// A loop that is slow holds up nobody: what does not fit is thrown away, and asked for again from the own cursor.
func TestSlowFollow(t *testing.T) {
	inBubble(t, Config{}, func(b *bench) {
		topic := appended(at(epochE, 0))
		n, hold := int64(0), make(chan struct{})
		topic.Apply = func(s string, e *wire.Event) (string, error) {
			if e.Offset == 1 {
				<-hold
			}
			if n++; n != e.Offset {
				t.Errorf("event %d is number %d", e.Offset, n)
			}
			return s, nil
		}
		f := b.follow("t", topic)
		other := b.follow("u", appended(at(epochE, 0)))
		b.run()
		p := b.accept()
		p.hello()
		p.subscribed()
		p.subscribed()
		const last = MaxQueued + 10
		for i := int64(1); i <= last; i++ {
			p.send(eventLine("t", epochE, i))
		}
		p.send(eventLine("u", epochE, 1))
		other.state("-1", 1) // nobody waits for t
		close(hold)
		go func() { // ends with the subscription
			for range f.changes {
			}
		}()
		defer close(f.changes)
		p.request(wire.OpUnsubscribe)
		r := p.subscribed(last)
		after, err := wire.ParseCursor(r.After)
		if err != nil || after.Offset < 1 || after.Offset >= last {
			t.Errorf("again from %s", r.After)
		}
		for i := after.Offset + 1; i <= last; i++ {
			p.send(eventLine("t", epochE, i))
		}
		b.kinds()
		if n != last {
			t.Errorf("%d events of %d", n, last)
		}
	})
}
