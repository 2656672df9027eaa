package broadcaster

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/commitcast/commitcast/wire"
)

// A stream whose client holds a write for ever ends all the same.
func TestEventStreamClosesBesideAWrite(t *testing.T) {
	w := httptest.NewRecorder()
	e := &eventStream{w: w, rc: http.NewResponseController(w), done: make(chan struct{})}
	e.writing.Lock() // as a write does that makes little progress
	go e.close(wire.CloseUnauthorized)
	select {
	case <-e.done:
	case <-time.After(20 * time.Second):
		t.Error("it goes on")
	}
	e.writing.Unlock()
}

func TestAppendServerSent(t *testing.T) {
	for _, c := range []struct {
		frame, want string
		last        bool
		asked       string
	}{
		{`{"op":"event","topic":"a","epoch":"3-7d0a","offset":42,"id":7,"skip":true}`,
			"id: 3-7d0a:42\ndata: {\"op\":\"event\",\"topic\":\"a\",\"epoch\":\"3-7d0a\",\"offset\":42,\"id\":7,\"skip\":true}\n\n", false, ""},
		// A frame is one line. Were it not, a field could not be forged with it.
		{"{\"op\":\"event\",\"topic\":\"a\",\"epoch\":\"3-7d0a\",\"offset\":42,\"x\":\n1,\"y\":\r\"id: 9\"}",
			"id: 3-7d0a:42\ndata: {\"op\":\"event\",\"topic\":\"a\",\"epoch\":\"3-7d0a\",\"offset\":42,\"x\":\ndata: 1,\"y\":\ndata: \"id: 9\"}\n\n", false, ""},
		{`{"op":"subscribed","id":0,"topic":"a","epoch":"3-7d0a","after":5,"head":9}`,
			"id: 3-7d0a:5\nevent: subscribed\ndata: {\"op\":\"subscribed\",\"id\":0,\"topic\":\"a\",\"epoch\":\"3-7d0a\",\"after\":5,\"head\":9}\n\n", false, ""},
		// The client's own cursor, whose epoch may outlive today's.
		{`{"op":"subscribed","id":0,"topic":"a","epoch":"3-7d0a","after":5,"head":9}`,
			"id: 2-aaaa:5\nevent: subscribed\ndata: {\"op\":\"subscribed\",\"id\":0,\"topic\":\"a\",\"epoch\":\"3-7d0a\",\"after\":5,\"head\":9}\n\n", false, "2-aaaa:5"},
		{`{"op":"reset","topic":"a","epoch":"4-7d0a","head":9,"reason":"ahead","in_ms":340}`,
			"id: 4-7d0a:9\nretry: 340\nevent: reset\ndata: {\"op\":\"reset\",\"topic\":\"a\",\"epoch\":\"4-7d0a\",\"head\":9,\"reason\":\"ahead\",\"in_ms\":340}\n\n", true, ""},
		{`{"op":"error","id":0,"code":"unavailable","message":"m"}`,
			"event: refused\ndata: {\"op\":\"error\",\"id\":0,\"code\":\"unavailable\",\"message\":\"m\"}\n\n", true, ""},
		{`nonsense`, "", false, ""},
	} {
		got, last := appendServerSent(nil, []byte(c.frame), c.asked)
		if string(got) != c.want || last != c.last {
			t.Errorf("%s: %q, %v", c.frame, got, last)
		}
	}
}
