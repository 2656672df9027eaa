package broadcaster_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/wire"
)

// A sampled event has one span on a node that has subscribers of it, however many there are, and however it came.
func TestSpansOfDelivery(t *testing.T) {
	var mu sync.Mutex
	var spans []wire.Span
	all := func() []wire.Span {
		mu.Lock()
		defer mu.Unlock()
		return append([]wire.Span(nil), spans...)
	}
	r := newRig(t, nil, broadcaster.Config{Node: "b1", Trace: func(s wire.Span) {
		mu.Lock()
		defer mu.Unlock()
		spans = append(spans, s)
	}})
	traced := func(topic, flags string) {
		r.exec(`SELECT commitcast.append($1, 'e', '1', headers => json_build_object('traceparent', '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-' || $2))`, topic, flags)
		r.exec(`SELECT commitcast.sequence($1::smallint, 0, 100000, NULL, NULL)`, wire.Partition(topic))
	}
	gone := testkit.Dial(t, r.URL)
	gone.Subscribe(1, "alone", "")
	gone.Expect("subscribed")
	gone.Send(`{"op":"unsubscribe","id":2,"topic":"alone"}`)
	gone.Expect("unsubscribed")
	traced("alone", "01")
	r.publish("alone") // which is still listened to, with nobody to deliver it to
	var subscribers []*testkit.Client
	for range 3 {
		c := testkit.Dial(t, r.URL)
		c.Subscribe(1, "t", "")
		c.Expect("subscribed")
		subscribers = append(subscribers, c)
	}
	begun := time.Now()
	traced("t", "01")
	traced("t", "00")
	r.sequence("t", 1)
	r.publish("t")
	for _, c := range subscribers {
		c.ExpectEvents("t", 1, 3)
	}
	traced("t", "01")
	r.lose("t", 0) // its message reaches nobody: the log takes it from the stream
	for _, c := range subscribers {
		c.ExpectEvents("t", 4, 4)
	}
	testkit.Eventually(t, 10*time.Second, func() bool { return len(all()) >= 2 }, "two spans")
	got := all()
	if len(got) != 2 {
		t.Fatalf("%d spans: %+v", len(got), got)
	}
	for i, s := range got {
		if s.Hop != wire.HopDeliver || s.Node != "b1" || s.Topic != "t" || s.Offset != []int64{1, 4}[i] || s.Event == 0 || s.Subscribers != 3 ||
			!strings.HasPrefix(s.Trace.String(), "4bf92f35") || s.Start.Before(begun) || s.End.Before(s.Start) || s.End.After(time.Now()) {
			t.Errorf("%+v", s)
		}
	}
}
