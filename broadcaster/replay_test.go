package broadcaster_test

import (
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/internal/testkit"
)

// Of many who come back at once, each from another cursor and further behind than the log reaches, the first reads and the
// others take: each missed event is read from storage once.
func TestStormReadsOnce(t *testing.T) {
	const events, clients = 2500, 30
	for _, source := range []string{"stream", "journal"} {
		t.Run(source, func(t *testing.T) {
			r := newRig(t, nil, broadcaster.Config{LogEvents: 64})
			if r.sequence("storm", events); source == "stream" {
				r.publish("storm")
			}
			r.stream.frames.Store(0)
			r.journal.frames.Store(0)
			beginning := r.cursor(0)
			var all sync.WaitGroup
			for i := range clients {
				after := rand.Int64N(events)
				if i == 0 {
					after = 0
				}
				all.Go(func() { // waited for below
					c := testkit.Dial(t, r.URL)
					c.Subscribe(1, "storm", strings.TrimSuffix(beginning, "0")+strconv.FormatInt(after, 10))
					if sub := c.Expect("subscribed"); sub.Head != events {
						t.Errorf("subscribed at head %d of %d", sub.Head, events)
					}
					c.ExpectEvents("storm", after+1, events)
				})
			}
			all.Wait()
			if stream, journal := r.stream.frames.Load(), r.journal.frames.Load(); stream+journal > events*11/10 || source == "stream" && stream == 0 {
				t.Errorf("%d events were read from the stream and %d from the journal, for %d that were missed", stream, journal, events)
			}
		})
	}
}
