package broadcaster_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/internal/testkit"
)

// A subscriber is shown every event after its cursor, once, in order, whenever others are published while it
// subscribes: at every step of the splice of replay and live, with and without a loss on the way.
func TestSpliceAtEveryStep(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{LogEvents: 8})
	steps := []struct {
		name string
		set  func(f func())
	}{
		{"before the request", func(f func()) { f() }},
		{"before the channel is confirmed", func(f func()) { r.stream.set("before confirmed", f) }},
		{"after the channel is confirmed", func(f func()) { r.stream.set("after confirmed", f) }},
		{"before the head is read", func(f func()) { r.journal.set("before positions", f) }},
		{"after the head is read", func(f func()) { r.journal.set("after positions", f) }},
		{"before the stream is read", func(f func()) { r.stream.set("before range", f) }},
		{"after the stream is read", func(f func()) { r.stream.set("after range", f) }},
		{"before the journal is read", func(f func()) { r.journal.set("before range", f) }},
		{"after the journal is read", func(f func()) { r.journal.set("after range", f) }},
	}
	acts := []struct {
		name string
		do   func(topic string) int64
	}{
		{"3 published", func(topic string) int64 { r.commit(topic, 3); return 3 }},
		{"20 published, more than the log holds", func(topic string) int64 { r.commit(topic, 20); return 20 }},
		{"2 sequenced, not published", func(topic string) int64 { r.sequence(topic, 2); return 2 }},
	}
	n := 0
	for _, step := range steps {
		for _, act := range acts {
			for _, after := range []int64{0, 4, 10} {
				name := fmt.Sprintf("%s, %s, from %d of 10", step.name, act.name, after)
				n++
				topic := fmt.Sprintf("splice:%d", n)
				r.commit(topic, 10)
				did := make(chan int64, 1)
				step.set(func() { did <- act.do(topic) })
				c := testkit.Dial(t, r.URL)
				c.Subscribe(1, topic, r.cursor(after))
				sub := c.Expect("subscribed")
				if sub.After != after || sub.ID != 1 || sub.Epoch != r.epoch() {
					t.Fatalf("%s: %+v", name, sub)
				}
				c.ExpectEvents(topic, after+1, 10)
				if r.stream.clear()+r.journal.clear() > 0 {
					// This way does not pass that step: nothing was to be replayed, for instance.
					did <- act.do(topic)
				}
				last := 10 + <-did
				c.ExpectEvents(topic, 11, last)
				r.commit(topic, 1)
				c.ExpectEvents(topic, last+1, last+1)
				c.WS.CloseNow()
			}
		}
	}
}

// A message lost on the way, on a topic that is quiet afterwards, is noticed by the heads.
func TestLostLastMessageIsFound(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{})
	c := testkit.Dial(t, r.URL)
	c.Subscribe(1, "quiet", "")
	c.Expect("subscribed")
	r.commit("quiet", 1)
	c.ExpectEvents("quiet", 1, 1)
	r.lose("quiet", 3)
	began := time.Now()
	c.ExpectEvents("quiet", 2, 4)
	r.lose("quiet", 2)
	r.commit("quiet", 1) // a message that does not follow: healed at once
	c.ExpectEvents("quiet", 5, 7)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("found after %v", took)
	}
	r.commit("quiet", 1)
	c.ExpectEvents("quiet", 8, 8)
}
