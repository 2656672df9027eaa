package broadcaster_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/wire"
)

// Bad input is answered with a clear error, and changes nothing for the same client's other subscriptions or for
// anybody else.
func TestBadRequests(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{MaxSubscriptions: 3})
	other := testkit.Dial(t, r.URL)
	other.Subscribe(1, "good", "")
	other.Expect("subscribed")
	c := testkit.Dial(t, r.URL)
	c.Subscribe(7, "good", "")
	c.Expect("subscribed")
	for _, bad := range []struct {
		send, code, says string
		id               int64
	}{
		{`nonsense`, "bad_request", "not a JSON object", 0},
		{`[1]`, "bad_request", "not a JSON object", 0},
		{`{"op":"subscribe","id":-1,"topic":"t"}`, "bad_request", "id must be", 0},
		{`{"op":"subscribe","id":1.5,"topic":"t"}`, "bad_request", "id must be", 0},
		{`{"op":"subscribe","id":9007199254740992,"topic":"t"}`, "bad_request", "id must be", 0},
		{`{"id":2}`, "bad_request", `"op" is missing`, 2},
		{`{"op":"dance","id":3}`, "unknown_op", `unknown op "dance"`, 3},
		{`{"op":"subscribe","id":4}`, "bad_request", `needs "topic"`, 4},
		{`{"op":"subscribe","id":5,"topic":"no spaces"}`, "bad_topic", "does not match", 5},
		{`{"op":"subscribe","id":5,"topic":""}`, "bad_topic", "does not match", 5},
		{`{"op":"subscribe","id":5,"topic":"` + strings.Repeat("a", 129) + `"}`, "bad_topic", "does not match", 5},
		{`{"op":"subscribe","id":6,"topic":"good"}`, "already_subscribed", "already", 6},
		{`{"op":"subscribe","id":8,"topic":"t","after":"12"}`, "bad_cursor", "epoch:offset", 8},
		{`{"op":"subscribe","id":8,"topic":"t","after":"1-abcd:01"}`, "bad_cursor", "epoch:offset", 8},
		{`{"op":"unsubscribe","id":9,"topic":"t"}`, "not_subscribed", "not subscribed", 9},
		{`{"op":"auth","id":10}`, "bad_request", `needs "token"`, 10},
	} {
		c.Send(bad.send)
		m := c.Expect("error")
		if m.Code != bad.code || m.ID != bad.id || !strings.Contains(m.Message, bad.says) {
			t.Errorf("%s: answered %+v", bad.send, m)
		}
	}
	for i := range 2 {
		c.Subscribe(20+i, fmt.Sprint("more:", i), "")
		c.Expect("subscribed")
	}
	c.Subscribe(30, "one-too-many", "")
	if m := c.Expect("error"); m.Code != "too_many" || m.ID != 30 {
		t.Errorf("one too many: %+v", m)
	}
	r.commit("good", 2)
	c.ExpectEvents("good", 1, 2)
	other.ExpectEvents("good", 1, 2)
}

// Two requests in one message, unknown fields, and a subscription that ends and begins again.
func TestRequests(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{})
	r.commit("a", 3)
	c := testkit.Dial(t, r.URL)
	if c.Hello.Protocol != wire.Protocol || c.Hello.Epoch != r.epoch() || c.Hello.Session == "" || c.Hello.HeartbeatMS != 15000 {
		t.Errorf("hello: %+v", c.Hello)
	}
	c.Send(fmt.Sprintf("{\"op\":\"subscribe\",\"id\":1,\"topic\":\"a\",\"after\":%q,\"new\":{}}\r\n\n {\"op\":\"auth\",\"token\":\"x\"}\n", r.cursor(1)))
	if m := c.Expect("subscribed"); m.ID != 1 || m.After != 1 || m.Head != 3 {
		t.Errorf("%+v", m)
	}
	c.ExpectEvents("a", 2, 3)
	c.Send(`{"op":"unsubscribe","id":2,"topic":"a"}`)
	if m := c.Expect("unsubscribed"); m.ID != 2 || m.Topic != "a" {
		t.Errorf("%+v", m)
	}
	r.commit("a", 2)
	c.Subscribe(3, "a", "")
	if m := c.Expect("subscribed"); m.ID != 3 || m.After != 5 || m.Head != 5 {
		t.Errorf("%+v", m)
	}
	r.commit("a", 1)
	m := c.ExpectEvents("a", 6, 6)[0]
	if m.Type != "test" || string(m.Data) != `{"n":1}` || m.At == "" || m.Epoch != r.epoch() || m.ID == 0 {
		t.Errorf("event: %+v", m)
	}
}

func closeCode(t *testing.T, c *testkit.Client) websocket.StatusCode {
	t.Helper()
	for {
		if _, err := c.Read(10 * time.Second); err != nil {
			return websocket.CloseStatus(err)
		}
	}
}

func TestFramesThatEndTheConnection(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{})
	bystander := testkit.Dial(t, r.URL)
	bystander.Subscribe(1, "calm", "")
	bystander.Expect("subscribed")

	c := testkit.Dial(t, r.URL)
	c.WS.Write(t.Context(), websocket.MessageBinary, []byte("{}"))
	if code := closeCode(t, c); code != 1003 {
		t.Errorf("a binary frame: closed with %d", code)
	}
	c = testkit.Dial(t, r.URL)
	c.WS.Write(t.Context(), websocket.MessageText, make([]byte, wire.MaxClientFrame+1))
	if code := closeCode(t, c); code != 1009 {
		t.Errorf("a frame over the limit: closed with %d", code)
	}
	c = testkit.Dial(t, r.URL)
	c.WS.Write(t.Context(), websocket.MessageText, []byte(`{"op":"auth","token":"`+strings.Repeat("x", wire.MaxClientFrame-24)+`"}`))
	c.Subscribe(1, "t", "")
	c.Expect("subscribed") // a frame at the limit is fine
	r.commit("calm", 1)
	bystander.ExpectEvents("calm", 1, 1)
}

// A cursor that cannot be continued is answered with reset and its reason, and the client can subscribe again.
func TestResets(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{})
	r.commit("t", 5)
	old := r.epoch()
	r.exec("SELECT commitcast.begin_epoch(NULL, 'test')")
	testkit.Eventually(t, 10*time.Second, func() bool { return r.b.Epoch() == r.epoch() }, "the node is in the new epoch")
	r.sent["t"] = 0 // the new epoch's channel is empty
	r.sequence("t", 5)
	r.exec("DELETE FROM commitcast.journal WHERE topic = 't' AND \"offset\" IN (1, 2)")

	c := testkit.Dial(t, r.URL)
	for _, q := range []struct{ after, reason string }{
		{r.cursor(11), wire.ReasonAhead},
		{"7-00000000:3", wire.ReasonEpoch},
		{old + ":7", wire.ReasonEpoch},
		{r.cursor(0), wire.ReasonTrimmed},
		{r.cursor(1), wire.ReasonTrimmed},
		{old + ":1", wire.ReasonTrimmed},
	} {
		c.Subscribe(1, "t", q.after)
		m := c.Expect("reset")
		if m.Reason != q.reason || m.Head != 10 || m.Epoch != r.epoch() || m.Topic != "t" {
			t.Errorf("after %s: %+v, want %s", q.after, m, q.reason)
		}
	}
	for _, q := range []struct {
		after string
		from  int64
	}{{r.cursor(2), 3}, {old + ":2", 3}, {old + ":5", 6}, {r.cursor(10), 11}} {
		c.Subscribe(1, "t", q.after)
		c.Expect("subscribed")
		c.ExpectEvents("t", q.from, 10)
		c.Send(`{"op":"unsubscribe","topic":"t"}`)
		c.Expect("unsubscribed")
	}
}

// A topic that is wholly past retention goes on from its head, and tells others to reset, once.
func TestTopicPastRetention(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{})
	r.sequence("t", 5)
	r.exec("DELETE FROM commitcast.journal")
	r.sent["t"] = 5
	c := testkit.Dial(t, r.URL)
	c.Subscribe(1, "t", r.cursor(3))
	if m := c.Expect("reset"); m.Reason != wire.ReasonTrimmed || m.Head != 5 {
		t.Fatalf("%+v", m)
	}
	c.Subscribe(2, "t", r.cursor(5))
	c.Expect("subscribed")
	r.commit("t", 2)
	c.ExpectEvents("t", 6, 7)
}

// A new epoch while clients are connected: one whose cursor the new history has goes on without noticing, one that saw
// what no longer exists is reset.
func TestEpochChangesUnderSubscribers(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{})
	r.commit("kept", 3)
	r.commit("lost", 3)
	c := testkit.Dial(t, r.URL)
	for i, topic := range []string{"kept", "lost"} {
		c.Subscribe(i, topic, r.cursor(0))
		c.Expect("subscribed")
		c.ExpectEvents(topic, 1, 3)
	}
	// The database goes back: "lost" had only one event then.
	r.exec(`DELETE FROM commitcast.journal WHERE topic = 'lost' AND "offset" > 1;
		UPDATE commitcast.topic SET head = 1 WHERE topic = 'lost';
		SELECT commitcast.begin_epoch(NULL, 'test')`) // one transaction: nobody sees it half done
	m := c.Expect("reset")
	if m.Topic != "lost" || m.Reason != wire.ReasonAhead || m.Head != 1 || m.Epoch != r.epoch() {
		t.Fatalf("%+v", m)
	}
	// Both go on in the new epoch; the stream's channel of that epoch begins empty.
	r.sent["lost"], r.sent["kept"] = 1, 3
	c.Subscribe(3, "lost", r.cursor(1))
	c.Expect("subscribed")
	r.commit("lost", 1)
	if e := c.ExpectEvents("lost", 2, 2)[0]; e.Epoch != r.epoch() {
		t.Errorf("epoch of a new event: %+v", e)
	}
	r.commit("kept", 2)
	c.ExpectEvents("kept", 4, 5)
}

// The database goes back without a new epoch, which only a lost promise of durability can do: told, not hidden.
func TestHeadGoesBackWithinAnEpoch(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{})
	r.commit("t", 5)
	c := testkit.Dial(t, r.URL)
	c.Subscribe(1, "t", r.cursor(0))
	c.Expect("subscribed")
	c.ExpectEvents("t", 1, 5)
	r.exec(fmt.Sprintf(`DELETE FROM commitcast.journal WHERE "offset" > 2;
		UPDATE commitcast.topic SET head = 2;
		UPDATE commitcast.partition SET seq = seq - 3 WHERE id = %d`, wire.Partition("t")))
	if m := c.Expect("reset"); m.Reason != wire.ReasonAhead || m.Head != 2 {
		t.Fatalf("%+v", m)
	}
}

// While the database cannot be asked, subscribing is answered with unavailable, connected clients stay, and what comes
// by push is delivered.
func TestDatabaseAway(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{})
	c := testkit.Dial(t, r.URL)
	c.Subscribe(1, "t", "")
	c.Expect("subscribed")
	r.journal.fail(errors.New("away"))
	testkit.Eventually(t, 10*time.Second, func() bool { return r.b.Ready() != nil }, "readiness says so")
	c.Subscribe(2, "u", "")
	if m := c.Expect("error"); m.Code != "unavailable" || m.ID != 2 {
		t.Errorf("%+v", m)
	}
	r.commit("t", 1)
	c.ExpectEvents("t", 1, 1)
	r.journal.fail(nil)
	testkit.Eventually(t, 10*time.Second, r.b.Ready, "ready again")
	c.Subscribe(3, "u", "")
	c.Expect("subscribed")
}

func TestHeartbeatTellsHeads(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{Heartbeat: 50 * time.Millisecond})
	r.commit("a", 4)
	c := testkit.Dial(t, r.URL)
	c.Subscribe(1, "a", r.cursor(4))
	c.Expect("subscribed")
	for range 3 {
		if m := c.Expect("heartbeat"); m.Epoch != r.epoch() || m.Heads["a"] != 4 || len(m.Heads) != 1 {
			t.Fatalf("%+v", m)
		}
	}
}

// At shutdown each client is told when to come back and closed with 1012; new ones get 503.
func TestDrain(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{Drain: 2 * time.Second})
	var clients []*testkit.Client
	for range 10 {
		clients = append(clients, testkit.Dial(t, r.URL))
	}
	r.stop()
	for _, c := range clients {
		if m := c.Expect("reconnect"); m.InMS < 0 || m.InMS > 250 { // it is blind meanwhile, however long the drain is
			t.Errorf("%+v", m)
		}
		if code := closeCode(t, c); code != 1012 {
			t.Errorf("closed with %d", code)
		}
	}
	<-r.done
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, resp, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(r.URL, "http")+"/v1/ws", nil)
	if err == nil || resp == nil || resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("a client while draining: %v %v", resp, err)
	}
}

func TestDoor(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{MaxConnections: 1, Origins: []string{"*.example.com"}})
	url := "ws" + strings.TrimPrefix(r.URL, "http") + "/v1/ws"
	dial := func(origin string) int {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		c, resp, err := websocket.Dial(ctx, url, &websocket.DialOptions{HTTPHeader: http.Header{"Origin": {origin}}})
		if err == nil {
			c.CloseNow()
		}
		return resp.StatusCode
	}
	if got := dial("https://evil.test"); got != http.StatusForbidden {
		t.Errorf("another origin: %d", got)
	}
	if got := dial("https://app.example.com"); got != http.StatusSwitchingProtocols {
		t.Errorf("an allowed origin: %d", got)
	}
	testkit.Eventually(t, 5*time.Second, func() bool {
		c, err := testkit.DialErr(t, r.URL)
		if err != nil {
			return false
		}
		t.Cleanup(func() { c.WS.CloseNow() })
		return true
	}, "the place is free again")
	if got := dial(r.URL); got != http.StatusServiceUnavailable {
		t.Errorf("a client too many: %d", got)
	}
}
