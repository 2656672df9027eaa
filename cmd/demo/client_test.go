package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// clientPage is a page with nothing but the client: it writes down what it is told to apply.
const clientPage = `<!doctype html><title>client</title><script type="module">
import { Client } from './commitcast.js';
Math.random = () => 0; // no jitter: what waits, waits because it was told to
window.applied = []; window.snapshots = 0;
window.client = new Client({
	url: 'ws://' + location.host + '/v1/ws',
	snapshot: async () => { const s = await (await fetch('/snapshot')).json(); return { positions: s, state: s }; },
	onSnapshot() { window.snapshots++; window.applied = []; },
	onEvent(e) { window.applied.push(e.offset); },
});
client.follow(['t']); client.start(); window.ready = true;
</script>`

// script plays the server to one client.
type script struct {
	t        *testing.T
	tab      *tab
	sockets  chan *websocket.Conn
	snapshot chan string // the answer to the next GET /snapshot
	socket   *websocket.Conn
	done     chan struct{} // closed when the test is over
}

func newScript(t *testing.T) *script {
	s := &script{t: t, sockets: make(chan *websocket.Conn), snapshot: make(chan string), done: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, clientPage)
	})
	mux.HandleFunc("GET /commitcast.js", func(w http.ResponseWriter, r *http.Request) {
		http.ServeFileFS(w, r, web, "web/commitcast.js")
	})
	mux.HandleFunc("GET /snapshot", func(w http.ResponseWriter, r *http.Request) {
		select {
		case body := <-s.snapshot:
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, body)
		case <-r.Context().Done():
		}
	})
	mux.HandleFunc("GET /v1/ws", func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"commitcast.v1"}})
		if err != nil {
			return
		}
		if c.Subprotocol() != "commitcast.v1" {
			t.Errorf("the client asks for subprotocol %q", c.Subprotocol())
		}
		select {
		case s.sockets <- c: // the test's from here on
		case <-s.done:
			_ = c.CloseNow()
		}
	})
	server := httptest.NewServer(mux)
	s.tab = openTab(t, server.URL)
	t.Cleanup(func() {
		close(s.done)
		if s.socket != nil {
			_ = s.socket.CloseNow()
		}
		server.CloseClientConnections()
		server.Close()
	})
	return s
}

// accept takes the client's next connection and says hello.
func (s *script) accept() {
	s.t.Helper()
	select {
	case s.socket = <-s.sockets:
	case <-time.After(soon):
		s.t.Fatal("the client does not connect")
	}
	s.send(`{"op":"hello","node":"n","session":"s","epoch":"1-aaaa","heartbeat_ms":60000}`)
}

// answer gives the next snapshot: what the database holds up to an offset, and events that have none yet.
func (s *script) answer(cursor, epoch string, pending ...int64) {
	s.t.Helper()
	ids, _ := json.Marshal(append([]int64{}, pending...))
	select {
	case s.snapshot <- fmt.Sprintf(`[{"topic":"t","cursor":%q,"epoch":%q,"pending":%s}]`, cursor, epoch, ids):
	case <-time.After(soon):
		s.t.Fatal("the client does not read the snapshot")
	}
}

func (s *script) send(lines string) {
	s.t.Helper()
	if err := s.socket.Write(s.t.Context(), websocket.MessageText, []byte(lines)); err != nil {
		s.t.Fatalf("sending: %v", err)
	}
}

func (s *script) event(epoch string, offset, id int64) {
	s.t.Helper()
	s.send(fmt.Sprintf(`{"op":"event","topic":"t","epoch":%q,"offset":%d,"id":%d,"type":"x","at":"2026-01-02T03:04:05.000000Z","data":1}`, epoch, offset, id))
}

// expect reads the client's next message, and returns its id.
func (s *script) expect(op, after string) (id int64) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), soon)
	defer cancel()
	_, line, err := s.socket.Read(ctx)
	if err != nil {
		s.t.Fatalf("waiting for %s: %v", op, err)
	}
	var m struct {
		Op, Topic, After string
		ID               int64
	}
	if err := json.Unmarshal(line, &m); err != nil || m.Op != op || m.Topic != "t" || m.After != after || m.ID == 0 {
		s.t.Fatalf("the client sends %s, want %s after %q", line, op, after)
	}
	return m.ID
}

// subscribe expects a subscription after a cursor and confirms it.
func (s *script) subscribe(after string, offset, head int64) {
	s.t.Helper()
	id := s.expect("subscribe", after)
	s.send(fmt.Sprintf(`{"op":"subscribed","id":%d,"topic":"t","epoch":"1-aaaa","after":%d,"head":%d}`, id, offset, head))
}

// unsubscribe expects the end of the subscription and confirms it.
func (s *script) unsubscribe() {
	s.t.Helper()
	s.send(fmt.Sprintf(`{"op":"unsubscribed","id":%d,"topic":"t"}`, s.expect("unsubscribe", "")))
}

func (s *script) applied(want string) {
	s.t.Helper()
	s.tab.until(fmt.Sprintf("JSON.stringify(window.applied) === %q", want), "applied is %s, not %s", want,
		in[string](s.tab, "JSON.stringify(window.applied)"))
}

func (s *script) stat(name string, want int) {
	s.t.Helper()
	s.tab.until(fmt.Sprintf("client.stats.%s === %d", name, want), "%s is %d, not %s", name, want,
		in[string](s.tab, "String(client.stats."+name+")"))
}

// TestClientKeepsTheContract plays every case of the client contract to the page's client, in the browser.
func TestClientKeepsTheContract(t *testing.T) {
	s := newScript(t)
	s.accept()
	s.answer("1-aaaa:10", "1-aaaa", 501, 502)
	s.subscribe("1-aaaa:10", 10, 10)

	// Events that the snapshot held are skipped, once; others are applied; what comes twice is dropped.
	s.event("1-aaaa", 11, 501)
	s.event("1-aaaa", 12, 600)
	s.event("1-aaaa", 12, 600)
	s.event("1-aaaa", 13, 502)
	s.event("1-aaaa", 14, 501) // the id of an event that was skipped is no excuse to skip again
	s.applied("[12,14]")
	s.stat("skipped", 2)
	s.stat("duplicates", 1)

	// Two frames in one message, and an op from the future.
	s.send(`{"op":"event","topic":"t","epoch":"1-aaaa","offset":15,"id":7,"type":"x","at":"2026-01-02T03:04:05.000000Z","data":1}` + "\n" +
		`{"op":"sparkle"}` + "\n" + `{"op":"event","topic":"t","epoch":"1-aaaa","offset":16,"id":8,"type":"x","at":"2026-01-02T03:04:05.000000Z","data":1}` + "\n")
	s.applied("[12,14,15,16]")

	// A hole: subscribe again from the own cursor. What the old subscription still brings counts for nothing.
	s.event("1-aaaa", 19, 9)
	s.unsubscribe()
	s.event("1-aaaa", 17, 9)
	s.subscribe("1-aaaa:16", 16, 19)
	for offset := int64(17); offset <= 19; offset++ {
		s.event("1-aaaa", offset, 100+offset)
	}
	s.applied("[12,14,15,16,17,18,19]")
	s.stat("gaps", 1)
	s.stat("healed", 1)
	s.stat("replayed", 3)

	// The cursor follows the event's epoch.
	s.event("2-bbbb", 20, 120)
	s.applied("[12,14,15,16,17,18,19,20]")
	_ = s.socket.CloseNow()
	s.accept()
	s.subscribe("2-bbbb:20", 20, 20)

	// A reset: the snapshot is read again, not before the time that was told.
	began := time.Now()
	s.send(`{"op":"reset","topic":"t","epoch":"2-bbbb","head":30,"reason":"trimmed","in_ms":400}`)
	s.answer("2-bbbb:30", "2-bbbb", 131)
	if waited := time.Since(began); waited < 400*time.Millisecond {
		t.Errorf("the snapshot is read after %v, not 400 ms", waited)
	}
	s.subscribe("2-bbbb:30", 30, 30)
	s.stat("resets", 1)

	// Another epoch while events are pending: their ids are worth nothing, so the snapshot is read again.
	s.event("3-cccc", 31, 131)
	s.unsubscribe()
	s.answer("3-cccc:31", "3-cccc")
	s.subscribe("3-cccc:31", 31, 31)
	s.event("3-cccc", 32, 132)
	s.applied("[32]")

	// An event that the stream does not hold is in the snapshot.
	s.send(`{"op":"event","topic":"t","epoch":"3-cccc","offset":33,"id":133,"skip":true}`)
	s.unsubscribe()
	s.answer("3-cccc:33", "3-cccc")
	s.subscribe("3-cccc:33", 33, 33)

	// A heartbeat that stays ahead: the last event of a quiet topic was lost.
	s.send(`{"op":"heartbeat","epoch":"3-cccc","heads":{"t":35,"another":9}}`)
	s.unsubscribe()
	s.answer("3-cccc:35", "3-cccc")
	s.subscribe("3-cccc:35", 35, 35)

	// Refused for now: again, a little later.
	_ = s.socket.CloseNow()
	s.accept()
	id := s.expect("subscribe", "3-cccc:35")
	s.send(fmt.Sprintf(`{"op":"error","id":%d,"code":"unavailable","message":"the database is away"}`, id))
	s.subscribe("3-cccc:35", 35, 35)

	// The server goes away and says when to come back.
	began = time.Now()
	s.send(`{"op":"reconnect","in_ms":500}`)
	_ = s.socket.Close(websocket.StatusServiceRestart, "server is shutting down")
	s.accept()
	if waited := time.Since(began); waited < 450*time.Millisecond { // browsers round timers
		t.Errorf("the client came back after %v, not 500 ms", waited)
	}
	s.subscribe("3-cccc:35", 35, 35)
	s.event("3-cccc", 36, 136)
	s.applied("[36]")

	// A close that is final.
	_ = s.socket.Close(4401, "token refused")
	s.tab.until("client.status.state === 'refused'", "the client stays away")
}
