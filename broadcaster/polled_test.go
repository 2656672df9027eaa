package broadcaster_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/stream"
)

// downStream is one whose subscriptions never come up.
type downStream struct{ stream.Stream }

func (s downStream) NewSubscription(h stream.Handler) stream.Subscription { return downSubscription{h} }

type downSubscription struct{ h stream.Handler }

func (s downSubscription) Run(ctx context.Context) error {
	s.h.Down(stream.AllPartitions, errors.New("as a test"))
	<-ctx.Done()
	return ctx.Err()
}
func (downSubscription) Add(...stream.Channel)    {}
func (downSubscription) Remove(...stream.Channel) {}

// While events come by polling, topics that lag are healed together: each gets all of its own, also more than one read
// brings, and again and again.
func TestHealedTogether(t *testing.T) {
	const topics = 10
	r := newRig(t, downStream{stream.NewMemory(stream.MemoryConfig{})}, broadcaster.Config{LogEvents: 4000, DegradedPoll: 10 * time.Millisecond})
	c := testkit.Dial(t, r.URL)
	for i := range topics {
		c.Subscribe(i+1, fmt.Sprintf("t:%d", i), "")
	}
	for range topics {
		c.Expect("subscribed")
	}
	last := make(map[string]int64)
	want := func(n int) {
		t.Helper()
		for range n {
			m := c.Expect("event")
			if m.Offset != last[m.Topic]+1 {
				t.Fatalf("%s: %d after %d", m.Topic, m.Offset, last[m.Topic])
			}
			last[m.Topic] = m.Offset
		}
	}
	for range 20 { // more than the places for reads
		for i := range topics {
			r.sequence(fmt.Sprintf("t:%d", i), 1)
		}
		want(topics)
	}
	r.sequence("t:0", 2500) // more than one read brings
	r.sequence("t:1", 1)
	want(2501)
}

// The database goes back, to another history, between the look at the heads and the read: what was read is not for those who saw
// the history before.
func TestHealedTogetherInAnotherEpoch(t *testing.T) {
	r := newRig(t, downStream{stream.NewMemory(stream.MemoryConfig{})}, broadcaster.Config{})
	c := testkit.Dial(t, r.URL)
	c.Subscribe(1, "t", "")
	c.Expect("subscribed")
	r.sequence("t", 3)
	c.ExpectEvents("t", 1, 3)
	r.journal.set("before range", func() {
		r.exec(`DELETE FROM commitcast.journal WHERE topic = 't' AND "offset" > 2;
			UPDATE commitcast.topic SET head = 2 WHERE topic = 't';
			SELECT commitcast.begin_epoch(NULL, 'test')`)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.exec(`SELECT commitcast.append('t', 'other', '1') FROM generate_series(1, 2)`)
		r.exec(`SELECT commitcast.sequence(commitcast.partition_of('t'), 0, 100000, NULL, NULL)`)
	})
	r.sequence("t", 1)
	if m := c.Expect("reset"); m.Reason != "epoch" || m.Head != 4 || m.Epoch != r.epoch() {
		t.Errorf("%+v", m)
	}
}
