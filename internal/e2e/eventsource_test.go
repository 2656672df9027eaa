package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/internal/testkit"
)

// The page of TestEventSourceInChromium. It does nothing about a reset: EventSource reconnects by itself.
const eventSourcePage = `<!doctype html><title>events</title><script>
const seen = { opened: 0, resets: [], offsets: [], at: "" };
globalThis.follow = (url) => {
	const source = new EventSource(url);
	source.onopen = () => seen.opened++;
	source.addEventListener("subscribed", (e) => (seen.at = e.lastEventId));
	source.addEventListener("reset", (e) => seen.resets.push(JSON.parse(e.data).reason));
	source.onmessage = (e) => seen.offsets.push(JSON.parse(e.data).offset);
};
</script>`

// A browser's own EventSource: a cursor that is not valid is answered with one reset, and the reconnect that follows, which
// nobody has written, goes on from the head and not from the cursor in its address; connections that are cut, also in the
// midst of an event, lose nothing and show nothing twice.
func TestEventSourceInChromium(t *testing.T) {
	database := testkit.Database(t)
	n := start(t, database, "", "all", "--origins=http://127.0.0.1:*")
	proxy := testkit.NewProxy(t, n.URL)
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, eventSourcePage)
	}))
	defer site.Close()
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	written := int64(0)
	write := func(n int) {
		t.Helper()
		for range n {
			written++
			if _, err := conn.Exec(t.Context(), `SELECT commitcast.append('t', 'test', to_json($1::bigint))`, written); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(5)
	var epoch string
	testkit.Eventually(t, soon, func() error {
		return conn.QueryRow(t.Context(), `SELECT epoch FROM commitcast.journal WHERE topic = 't' AND "offset" = 5`).Scan(&epoch)
	}, "the first events have offsets")

	p := &tortureTab{name: "events", ctx: headless(t)}
	if err := chromedp.Do(p.ctx, chromedp.Navigate(site.URL)); err != nil {
		t.Fatal(err)
	}
	type page struct {
		Opened  int
		Resets  []string
		Offsets []int64
		At      string
	}
	until := func(what string, holds func(page) bool) {
		t.Helper()
		var s page
		if err := p.until(what, func() (_ bool, err error) {
			s, err = evaluate[page](p, "seen")
			return holds(s), err
		}); err != nil {
			t.Fatalf("%v: %+v", err, s)
		}
	}
	if err := p.do("follow(%q)", fmt.Sprintf("http://%s/v1/topics/t/events?after=%s:99", proxy.Addr, epoch)); err != nil {
		t.Fatal(err)
	}
	until("it is reset, and follows from the head", func(s page) bool { return len(s.Resets) == 1 && s.At == epoch+":5" && s.Opened == 2 })
	write(3)
	until("events come", func(s page) bool { return len(s.Offsets) == 3 })

	proxy.Break(0.5)
	write(1)
	testkit.Eventually(t, soon, func() bool { return proxy.Open() == 0 }, "the connection breaks in the midst of an event")
	write(5)
	until("it reconnects", func(s page) bool { return s.Opened == 3 && len(s.Offsets) == 9 })
	proxy.Cut()
	write(5)
	until("it reconnects", func(s page) bool { return s.Opened == 4 && len(s.Offsets) == 14 })
	write(1)
	want := []int64{6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20}
	until("the last", func(s page) bool { return slices.Contains(s.Offsets, written) })
	until("each once, in order, after one reset", func(s page) bool {
		if !slices.Equal(s.Offsets, want) || !slices.Equal(s.Resets, []string{"ahead"}) {
			t.Fatalf("%+v", s)
		}
		return true
	})
}
