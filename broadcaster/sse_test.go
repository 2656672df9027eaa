package broadcaster_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/wire"
)

// eventSource reads Server-Sent Events as a browser's EventSource does: it keeps the last id and the pause, and brings
// the id back when it connects again, to the same address.
type eventSource struct {
	t      *testing.T
	url    string
	client *http.Client
	header http.Header // besides
	lastID string
	retry  time.Duration
	resp   *http.Response
	lines  *bufio.Reader
	cancel context.CancelFunc
}

// message is one event of the stream, with its frame decoded.
type message struct {
	typ, id string
	frame   wire.Message
}

func newEventSource(t *testing.T, url string) *eventSource {
	e := &eventSource{t: t, url: url, client: &http.Client{Transport: &http.Transport{}}}
	t.Cleanup(func() {
		e.close()
		e.client.CloseIdleConnections()
	})
	return e
}

func (e *eventSource) close() {
	if e.cancel != nil {
		e.cancel()
		e.resp.Body.Close()
		e.cancel = nil
	}
}

// connect fails the test unless the answer is a stream of events.
func (e *eventSource) connect() error {
	e.close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	r, err := http.NewRequestWithContext(ctx, "GET", e.url, nil)
	if err != nil {
		e.t.Fatal(err)
	}
	if e.header != nil {
		r.Header = e.header.Clone()
	}
	r.Header.Set("Accept", "text/event-stream")
	if e.lastID != "" {
		r.Header.Set("Last-Event-ID", e.lastID)
	}
	resp, err := e.client.Do(r)
	if err != nil {
		cancel()
		return err
	}
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		cancel()
		e.t.Fatalf("%d %s %s", resp.StatusCode, resp.Header, body)
	}
	e.cancel, e.resp, e.lines = cancel, resp, bufio.NewReader(resp.Body)
	return nil
}

// next is the next event, or how the stream ended.
func (e *eventSource) next() (m message, err error) {
	var data []string
	for {
		line, err := e.lines.ReadString('\n')
		if err != nil {
			return m, err
		}
		line = strings.TrimSuffix(line, "\n")
		if line == "" {
			if len(data) == 0 {
				m.typ = ""
				continue
			}
			m.id = e.lastID
			return m, json.Unmarshal([]byte(strings.Join(data, "\n")), &m.frame)
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "id":
			e.lastID = value
		case "event":
			m.typ = value
		case "data":
			data = append(data, value)
		case "retry":
			ms, _ := strconv.Atoi(value)
			e.retry = time.Duration(ms) * time.Millisecond
		}
	}
}

// expect is the next event of a type ("" is an event of the topic), heartbeats aside.
func (e *eventSource) expect(typ string) message {
	e.t.Helper()
	for {
		m, err := e.next()
		if err != nil {
			e.t.Fatalf("waiting for %q: %v", typ, err)
		}
		if m.typ == typ {
			return m
		}
		if m.typ != "heartbeat" {
			e.t.Fatalf("%+v, want %q", m, typ)
		}
	}
}

func (e *eventSource) open() (subscribed message) {
	e.t.Helper()
	if err := e.connect(); err != nil {
		e.t.Fatal(err)
	}
	e.expect("hello")
	return e.expect("subscribed")
}

func (e *eventSource) expectEvents(from, to int64) (last message) {
	e.t.Helper()
	for n := from; n <= to; n++ {
		if last = e.expect(""); last.frame.Offset != n {
			e.t.Fatalf("offset %d, want %d", last.frame.Offset, n)
		}
	}
	return last
}

func (r *rig) events(topic string) string { return r.URL + "/v1/topics/" + topic + "/events" }

func TestServerSentEvents(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{Heartbeat: 200 * time.Millisecond})
	r.commit("hall:7/row:B", 3)
	address := r.events("hall:7%2Frow:B")
	live := newEventSource(t, address)
	if m := live.open(); m.frame.After != 3 || m.id != r.cursor(3) {
		t.Errorf("live: %+v", m)
	}
	if live.retry < time.Second {
		t.Errorf("retry %v", live.retry)
	}
	past := newEventSource(t, address+"?after="+r.cursor(1))
	if m := past.open(); m.frame.After != 1 || m.frame.Head != 3 {
		t.Errorf("past: %+v", m)
	}
	past.expectEvents(2, 3)
	r.commit("hall:7/row:B", 2)
	for _, e := range []*eventSource{live, past} {
		m := e.expectEvents(4, 5)
		if m.id != r.cursor(5) || m.frame.Type != "test" || string(m.frame.Data) != `{"n":2}` || m.frame.Topic != "hall:7/row:B" || m.frame.ID == 0 {
			t.Errorf("%+v", m)
		}
	}
	if m := live.expect("heartbeat"); m.frame.Heads["hall:7/row:B"] != 5 || m.id != r.cursor(5) {
		t.Errorf("%+v", m)
	}
	if n := r.b.Connections(); n != 2 {
		t.Errorf("%d connections", n)
	}
	live.close()
	past.close()
	testkit.Eventually(t, 10*time.Second, func() bool { return r.b.Connections() == 0 }, "the sessions are gone")
}

// The same over HTTP/2, where a deadline that is left behind would end an idle stream.
func TestServerSentEventsOverHTTP2(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{WriteTimeout: 200 * time.Millisecond, Heartbeat: time.Hour})
	server := httptest.NewUnstartedServer(r.b.Handler())
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	e := newEventSource(t, server.URL+"/v1/topics/a/events")
	e.client = &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	e.open()
	if e.resp.ProtoMajor != 2 {
		t.Fatalf("%s", e.resp.Proto)
	}
	idle := newEventSource(t, server.URL+"/v1/topics/b/events")
	idle.client = e.client
	idle.open()
	for i := range int64(4) {
		r.commit("a", 1)
		e.expectEvents(i+1, i+1)
		time.Sleep(100 * time.Millisecond) // not to wait for anything: so that the idle stream outlives a write timeout
	}
	r.commit("b", 1)
	idle.expectEvents(1, 1)
	e.close()
	idle.close()
	testkit.Eventually(t, 10*time.Second, func() bool { return r.b.Connections() == 0 }, "the sessions are gone")
}

// A connection that breaks again and again, as it comes: what arrives is every event, once, in order.
func TestEventSourceReconnects(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{LogEvents: 16})
	r.commit("a", 10)
	proxy := testkit.NewProxy(t, r.URL)
	e := newEventSource(t, proxy.URL(r.events("a"))+"?after="+r.cursor(0)) // the address stays what it was
	const total = 400
	var writer sync.WaitGroup
	writer.Go(func() {
		for n := 10; n < total; n += 10 {
			r.commit("a", 10)
		}
	})
	at, cuts := int64(0), 0
	for at < total {
		if err := e.connect(); err != nil {
			continue
		}
		for got := 0; at < total; {
			m, err := e.next()
			if err != nil {
				break
			}
			if m.typ != "" {
				continue
			}
			if m.frame.Offset != at+1 {
				t.Fatalf("offset %d after %d", m.frame.Offset, at)
			}
			at++
			if got++; got == 37 {
				proxy.Cut()
				cuts++
			}
		}
	}
	writer.Wait()
	if cuts < 5 {
		t.Errorf("cut %d times only", cuts)
	}
}

// A reset brings a new id and says when to come back. Who comes back with it goes on; it does not loop.
func TestEventSourceAfterAReset(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{})
	r.commit("a", 5)
	for cursor, reason := range map[string]string{r.cursor(9): "ahead", "7-abcdef01:2": "epoch"} {
		e := newEventSource(t, r.events("a")+"?after="+cursor)
		if err := e.connect(); err != nil {
			t.Fatal(err)
		}
		e.expect("hello")
		e.retry = time.Hour
		m := e.expect("reset")
		if m.frame.Reason != reason || m.frame.Head != 5 || m.id != r.cursor(5) || e.retry > r.spread() {
			t.Errorf("%s: %+v, retry %v", cursor, m, e.retry)
		}
		if m, err := e.next(); err != io.EOF {
			t.Errorf("after a reset: %+v, %v", m, err)
		}
		if m := e.open(); m.frame.After != 5 {
			t.Errorf("after coming back: %+v", m)
		}
	}
	r.commit("a", 1)
	testkit.Eventually(t, 10*time.Second, func() bool { return r.b.Connections() <= 2 }, "the sessions that were reset are gone")
}

func (r *rig) spread() time.Duration { return time.Millisecond } // see newRig

// A client that does not read costs a cursor, and one that reads again gets everything.
func TestSlowEventSource(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{LogEvents: 50, WriteTimeout: time.Minute})
	slow, quick := newEventSource(t, r.events("big")), newEventSource(t, r.events("big"))
	slow.open()
	quick.open()
	const batches, perBatch = 20, 25
	for i := range batches {
		r.exec(`SELECT commitcast.append('big', 'test', json_build_object('n', i, 'pad', repeat('x', 40000))) FROM generate_series(1, $1) i`, perBatch)
		r.sequence("big", 0)
		r.publish("big")
		quick.expectEvents(int64(i*perBatch+1), int64((i+1)*perBatch))
	}
	slow.expectEvents(1, batches*perBatch)
}

// One that takes nothing for a whole write timeout is let go.
func TestStalledEventSource(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{WriteTimeout: 300 * time.Millisecond})
	newEventSource(t, r.events("big")).open()
	for range 60 {
		r.exec(`SELECT commitcast.append('big', 'test', json_build_object('n', i, 'pad', repeat('x', 200000))) FROM generate_series(1, 5) i`)
		r.sequence("big", 0)
		r.publish("big")
	}
	testkit.Eventually(t, 20*time.Second, func() bool { return r.b.Connections() == 0 }, "the stalled client is gone")
}

// At shutdown a client is told when to come back, and its stream ends in order. A node that is full or closing says so.
func TestEventSourceDrain(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{MaxConnections: 1, Drain: 50 * time.Millisecond})
	r.commit("a", 2)
	e := newEventSource(t, r.events("a"))
	e.open()
	full := get(t, "GET", r.events("a"))
	if full.StatusCode != 503 || full.Header.Get("Retry-After") == "" || full.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("full: %d %v", full.StatusCode, full.Header)
	}
	r.stop()
	e.retry = time.Hour
	if m := e.expect("reconnect"); e.retry > 50*time.Millisecond || m.id != r.cursor(2) {
		t.Errorf("%+v, retry %v", m, e.retry)
	}
	if m, err := e.next(); err != io.EOF {
		t.Errorf("after reconnect: %+v, %v", m, err)
	}
	<-r.done
	if closing := get(t, "GET", r.events("a")); closing.StatusCode != 503 {
		t.Errorf("closing: %d", closing.StatusCode)
	}
}

// A database that does not answer is said in the stream, which has begun by then, with a pause.
func TestEventSourceWithoutDatabase(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{})
	r.journal.fail(errors.New("away"))
	e := newEventSource(t, r.events("a"))
	if err := e.connect(); err != nil {
		t.Fatal(err)
	}
	e.expect("hello")
	if m := e.expect("refused"); m.frame.Code != "unavailable" || e.retry < time.Second {
		t.Errorf("%+v, retry %v", m, e.retry)
	}
	if m, err := e.next(); err != io.EOF {
		t.Errorf("after a refusal: %+v, %v", m, err)
	}
	r.journal.fail(nil)
	e.open()
}

// get sends one request and drops the body.
func get(t *testing.T, method, url string, headers ...string) *http.Response {
	t.Helper()
	r, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp
}

func TestBadRequestsForEvents(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{Origins: []string{"*.example.com", "https://only.test"}})
	for _, c := range []struct {
		method, url string
		headers     []string
		status      int
	}{
		{"GET", r.events("no%20spaces"), nil, 400},
		{"GET", r.events(strings.Repeat("a", 129)), nil, 400},
		{"GET", r.events("a") + "?after=12", nil, 400},
		{"GET", r.events("a") + "?after=1-abcd:01", nil, 400},
		{"GET", r.events("a"), []string{"Last-Event-ID", "nonsense"}, 400},
		{"GET", r.events("a") + "?after=1-abcd:1", []string{"Last-Event-ID", "1-abcd:9007199254740992"}, 400},
		{"HEAD", r.events("a"), nil, 200},
		{"HEAD", r.events("a") + "?after=12", nil, 400},
		{"POST", r.events("a"), nil, 405},
		{"GET", r.URL + "/v1/topics/a", nil, 404},
		{"GET", r.URL + "/v1/topics/a/b/events", nil, 404},
		{"GET", r.events("a"), []string{"Origin", "https://evil.test"}, 403},
		{"GET", r.events("a"), []string{"Origin", "http://only.test"}, 403},
		{"GET", r.events("a"), []string{"Origin", "null"}, 403},
		{"OPTIONS", r.events("a"), []string{"Origin", "https://evil.test"}, 403},
		{"HEAD", r.events("a"), []string{"Origin", r.URL}, 200},
		{"HEAD", r.events("a"), []string{"Origin", "https://app.example.com"}, 200},
		{"HEAD", r.events("a"), []string{"Origin", "https://only.test"}, 200},
		{"OPTIONS", r.events("a"), []string{"Origin", "https://app.example.com"}, 204},
	} {
		resp := get(t, c.method, c.url, c.headers...)
		if resp.StatusCode != c.status {
			t.Errorf("%s %s %v: %d, want %d", c.method, c.url, c.headers, resp.StatusCode, c.status)
		}
		if c.status == 400 && resp.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s %s: %v", c.method, c.url, resp.Header)
		}
		allowed := resp.Header.Get("Access-Control-Allow-Origin")
		if len(c.headers) == 2 && c.headers[0] == "Origin" && (c.headers[1] == allowed) != (c.status < 300 && c.headers[1] != r.URL) {
			t.Errorf("%s %v: Access-Control-Allow-Origin %q", c.method, c.headers, allowed)
		}
	}
	if n := r.b.Connections(); n != 0 {
		t.Errorf("%d connections", n)
	}
	if got := fmt.Sprint(get(t, "HEAD", r.events("a")).Header["Content-Type"]); got != "[text/event-stream]" {
		t.Errorf("HEAD: %s", got)
	}
}
