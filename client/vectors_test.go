package client

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/commitcast/commitcast/wire"
)

// The golden vectors that every implementation of the protocol runs, here through a whole client: a server sends them, and
// what Follow makes of them is what they mean.

func vectors[T any](t *testing.T, name string) (v T) {
	t.Helper()
	text, err := os.ReadFile("../wire/testdata/" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return v
}

// enough fails if a list of vectors is shorter than it was: a test of nothing passes always.
func enough[T any](t *testing.T, list []T, least int) []T {
	t.Helper()
	if len(list) < least {
		t.Fatalf("%d vectors only", len(list))
	}
	return list
}

func TestVectorsServer(t *testing.T) {
	type frame struct {
		Name, Line string
		Frame      wire.Message
	}
	v := vectors[struct{ Frames, Tolerated []frame }](t, "server")
	for _, c := range append(enough(t, v.Frames, 20), enough(t, v.Tolerated, 2)...) {
		t.Run(c.Name, func(t *testing.T) {
			inBubble(t, Config{}, func(b *bench) {
				m := c.Frame
				topic, from := m.Topic, at(m.Epoch, 6)
				if topic == "" {
					topic = "t"
				}
				switch m.Op {
				case "subscribed":
					from = at(m.Epoch, m.After)
				case "event":
					from = at(m.Epoch, m.Offset-1-m.Conflated)
				case "unsubscribed", "error", "reconnect":
					from = at(epochE, 6)
				}
				follow := appended(from)
				read := make(chan struct{}, 1)
				snapshot := follow.Snapshot
				follow.Snapshot = func(ctx context.Context) (Held[string], error) {
					read <- struct{}{}
					return snapshot(ctx)
				}
				f := b.follow(topic, follow)
				b.run()
				p := b.accept()
				if m.Op == "hello" {
					p.send(c.Line)
				} else {
					p.hello()
				}
				if m.Op == "subscribed" && m.ID == 1 {
					p.request(wire.OpSubscribe)
					p.send(c.Line)
					// It is current if it has what is the head now, and only then.
					for offset := m.After + 1; offset <= m.Head; offset++ {
						p.send(eventLine(topic, m.Epoch, offset))
					}
					f.until("all", func(ch Change[string]) bool { return ch.Current && ch.Token.Cursor.Offset == m.Head })
					return
				}
				if m.Op == "error" && m.ID == 1 {
					p.request(wire.OpSubscribe)
					p.send(c.Line)
					var refused *wire.Error
					if err := receive(b, "the refusal", f.err); !errors.As(err, &refused) || refused.Code != m.Code || refused.Message != m.Message {
						t.Errorf("Follow ended with %v", err)
					}
					return
				}
				p.subscribed()
				n := from.Token.Cursor.Offset
				f.state("-", n)
				if m.Op != "hello" {
					p.send(c.Line)
				}
				switch m.Op {
				case "event":
					n = m.Offset
					if m.More {
						n++
						p.send(eventLine(topic, m.Epoch, n))
					}
					ch := receive(b, "the event", f.changes)
					if m.More && !m.Skip && len(ch.Events) == 2 {
						ch.Event = ch.Events[0] // the other one is what follows
					} else if m.More && m.Skip {
						ch.Event = nil
					}
					if ch.Token.Cursor != (wire.Cursor{Epoch: m.Epoch, Offset: n}) || (ch.Event == nil) != m.Skip {
						t.Fatalf("%+v", ch)
					}
					if m.Skip {
						break
					}
					when, err := time.Parse(time.RFC3339Nano, m.At)
					if err != nil {
						t.Fatal(err)
					}
					var line struct{ Data, Headers json.RawMessage }
					if err := json.Unmarshal([]byte(c.Line), &line); err != nil {
						t.Fatal(err)
					}
					if want := (wire.Event{
						Topic: m.Topic, Epoch: m.Epoch, Offset: m.Offset, ID: m.ID, Type: m.Type, Key: m.Key, At: when, Data: line.Data, Headers: line.Headers,
					}); !reflect.DeepEqual(*ch.Event, want) {
						t.Errorf("%+v, want %+v", *ch.Event, want)
					}
				case "reset":
					began := time.Now()
					receive(b, "the snapshot", read)
					if waited := time.Since(began); waited != time.Duration(m.InMS)*time.Millisecond {
						t.Errorf("read after %v", waited)
					}
					return
				case "reconnect":
					p.ws.CloseNow()
					began := time.Now()
					b.accept()
					if waited := time.Since(began); waited != time.Duration(m.InMS)*time.Millisecond {
						t.Errorf("back after %v", waited)
					}
					return
				case "error":
					b.kinds(KindRefused)
					b.errs = nil
				}
				if n < wire.MaxInteger {
					p.send(eventLine(topic, from.Token.Cursor.Epoch, n+1))
					f.until("what follows", func(ch Change[string]) bool { return ch.Token.Cursor.Offset == n+1 })
				}
				b.kinds()
			})
		})
	}
}

func TestVectorsData(t *testing.T) {
	v := vectors[struct {
		Data []struct{ Name, Data, Line string }
	}](t, "server")
	for _, c := range enough(t, v.Data, 10) {
		t.Run(c.Name, func(t *testing.T) {
			inBubble(t, Config{}, func(b *bench) {
				f, p := b.live(at(epochE, 6))
				p.send(c.Line)
				ch := receive(b, "the event", f.changes)
				if _, data, ok := strings.Cut(c.Line, `"data":`); !ok || string(ch.Event.Data)+"}" != data {
					t.Errorf("data %s of %s", ch.Event.Data, c.Line)
				}
			})
		})
	}
}

// What is not a frame is one error, and what comes beside it counts.
func TestVectorsBad(t *testing.T) {
	v := vectors[struct{ Bad []string }](t, "server")
	for _, line := range enough(t, v.Bad, 100) {
		t.Run("", func(t *testing.T) {
			inBubble(t, Config{}, func(b *bench) {
				f, p := b.live(at(epochE, 6))
				p.send(line, line, eventLine("t", epochE, 7))
				if ch := receive(b, "the event after "+line, f.changes); ch.State != "-7" || ch.Token.Cursor.Offset != 7 || !ch.Current {
					t.Errorf("after %s: %+v", line, ch)
				}
				if line == "" {
					b.kinds()
				} else {
					b.kinds(KindGarbage)
				}
			})
		})
	}
}

func TestVectorsMessages(t *testing.T) {
	v := vectors[struct {
		Messages []struct {
			Name, Message string
			Lines         []string
		}
	}](t, "messages")
	for _, c := range enough(t, v.Messages, 5) {
		t.Run(c.Name, func(t *testing.T) {
			inBubble(t, Config{}, func(b *bench) {
				f, p := b.live(at(epochE, 0))
				if c.Message != "" { // nothing is not sent
					p.send(c.Message)
				}
				p.send(eventLine("t", epochE, 1))
				f.state("-1", 1)
				want := []Kind{} // of the errors, one a connection
				told := false
				for _, line := range c.Lines {
					if strings.Contains(line, `"error"`) {
						want = append(want, KindRefused)
					}
					told = told || strings.Contains(line, `"reconnect","in_ms":1`)
				}
				b.kinds(want...)
				p.ws.CloseNow()
				began := time.Now()
				b.accept()
				if waited := time.Since(began); told && waited != time.Millisecond {
					t.Errorf("reconnect was not heard: back after %v", waited)
				}
			})
		})
	}
}

// What this client writes. (It never subscribes without a cursor.)
func TestVectorsClient(t *testing.T) {
	type frame struct {
		Name, Line string
		Request    struct {
			Op, Topic, After, Token string
			ID                      int64
			Conflate                bool
		}
	}
	v := vectors[struct{ Frames []frame }](t, "client")
	for _, c := range enough(t, v.Frames, 6) {
		r := c.Request
		if r.Op == wire.OpSubscribe && r.After == "" {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			cfg := Config{}
			if r.Op == wire.OpAuth {
				cfg.Token = func(context.Context, bool) (string, error) { return r.Token, nil }
			}
			inBubble(t, cfg, func(b *bench) {
				b.client.lastID = r.ID - 1
				if r.Op == wire.OpSubscribe {
					after, err := wire.ParseCursor(r.After)
					if err != nil {
						t.Fatal(err)
					}
					topic := appended(at(after.Epoch, after.Offset))
					topic.Conflate = r.Conflate
					b.follow(r.Topic, topic)
				}
				var f *followed
				if r.Op == wire.OpUnsubscribe {
					b.client.lastID--
					f = b.follow(r.Topic, appended(at(epochE, 1)))
				}
				b.run()
				p := b.accept()
				p.hello()
				if f != nil {
					p.subscribed()
					f.leave <- struct{}{}
					p.send(eventLine(r.Topic, epochE, 2))
				}
				if line := receive(b, c.Line, p.requests); line != c.Line {
					t.Errorf("written\n%s, want\n%s", line, c.Line)
				}
			})
		})
	}
}

func TestVectorsNames(t *testing.T) {
	v := vectors[struct {
		Cursors []struct {
			Text, Epoch string
			Offset      int64
		}
		BadCursors []string `json:"bad_cursors"`
		Topics     []string
		BadTopics  []string `json:"bad_topics"`
	}](t, "names")
	token := func(cursor string) string {
		text, err := json.Marshal(tokenJSON{cursor, []int64{}, epochE})
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for _, c := range enough(t, v.Cursors, 4) {
		var got Token
		if err := json.Unmarshal([]byte(token(c.Text)), &got); err != nil || got.Cursor != (wire.Cursor{Epoch: c.Epoch, Offset: c.Offset}) {
			t.Errorf("%s: read %+v (%v)", c.Text, got, err)
		}
		if text, err := json.Marshal(got); err != nil || string(text) != token(c.Text) {
			t.Errorf("written %s (%v)", text, err)
		}
	}
	for _, text := range enough(t, v.BadCursors, 20) {
		var got Token
		if err := json.Unmarshal([]byte(token(text)), &got); err == nil {
			t.Errorf("%q was read: %+v", text, got)
		}
	}
	c, err := New("wss://example.org/v1/ws", Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range enough(t, v.Topics, 5) {
		if _, err := c.register(name); err != nil {
			t.Errorf("topic %q was refused: %v", name, err)
		}
	}
	for _, name := range enough(t, v.BadTopics, 10) {
		for _, err := range Follow(t.Context(), c, name, appended(nil)) {
			if e := new(Error); !errors.As(err, &e) || e.Kind != KindTopic || !e.Final {
				t.Errorf("topic %q: %v", name, err)
			}
		}
	}
}

func TestVectorsClose(t *testing.T) {
	v := vectors[struct{ Codes []wire.CloseCode }](t, "close")
	for _, c := range append(enough(t, v.Codes, 8), wire.CloseCode{Code: 4999, Reason: "of a later server", Reconnect: true}) {
		t.Run(c.Reason, func(t *testing.T) {
			inBubble(t, Config{}, func(b *bench) {
				f, p := b.live(at(epochE, 6))
				p.ws.Close(websocket.StatusCode(c.Code), c.Reason)
				if c.Reconnect {
					next := b.accept()
					next.hello()
					if r := next.subscribed(); r.After != epochE+":6" {
						t.Errorf("again from %s", r.After)
					}
					f.state("-", 6)
					b.kinds(KindConnection)
					return
				}
				for what, err := range map[string]error{"Run": receive(b, "the end of Run", b.ran), "Follow": receive(b, "the end of Follow", f.err)} {
					if e := new(Error); !errors.As(err, &e) || !e.Final || !strings.Contains(err.Error(), c.Reason) {
						t.Errorf("%s ended with %v", what, err)
					}
				}
			})
		})
	}
}
