package broadcaster_test

import (
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/wire"
)

// A connection that stays holds nothing of the request it came with: with net/http's buffers that was 10 KiB.
func TestConnectionLetsGoOfHTTP(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{})
	gone := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		runtime.AddCleanup(req, func(gone chan struct{}) { close(gone) }, gone)
		r.b.Handler().ServeHTTP(w, req)
	}))
	defer server.Close()
	ws, _, err := websocket.Dial(t.Context(), server.URL+"/v1/ws", &websocket.DialOptions{Subprotocols: []string{wire.Protocol}})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	if _, _, err := ws.Read(t.Context()); err != nil { // hello
		t.Fatal(err)
	}
	for late := time.After(20 * time.Second); ; {
		runtime.GC()
		select {
		case <-gone:
			return
		case <-late:
			t.Fatal("the request is still held")
		case <-time.After(10 * time.Millisecond):
		}
	}
}
