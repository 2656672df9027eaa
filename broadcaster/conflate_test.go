package broadcaster_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"testing"
	"time"

	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

// folded is what a client makes of a conflated topic: of each key the latest value, and how many frames it took.
type folded struct {
	at        int64
	state     map[string]int
	together  []wire.Message
	frames    int
	conflated int64
}

// take applies a frame as docs/protocol.md has it.
func (f *folded) take(m wire.Message) error {
	at := f.at
	if n := len(f.together); n > 0 {
		at = f.together[n-1].Offset
	}
	if m.Op != "event" || m.Offset-1-m.Conflated != at {
		return fmt.Errorf("%+v after %d", m, at)
	}
	f.frames++
	f.conflated += m.Conflated
	if f.together = append(f.together, m); m.More {
		return nil
	}
	for _, e := range f.together {
		var n int
		if err := json.Unmarshal(e.Data, &n); err != nil {
			return err
		}
		f.state[e.Key] = n
	}
	f.at, f.together = m.Offset, nil
	return nil
}

// keyed appends events of so many keys in turn, sequences and publishes them. The last of a round is a key's removal.
func (r *rig) keyed(topic string, from, to, keys int) {
	r.t.Helper()
	r.exec(`SELECT commitcast.append($1, CASE WHEN i % 7 = 0 THEN 'removed' ELSE 'price' END, to_json(i), 'k' || i % $4::int) FROM generate_series($2::int, $3) i`,
		topic, from, to, keys)
	r.sequence(topic, 0)
	r.publish(topic)
}

// A conflating subscriber that is behind, by far more than the log holds, is shown the latest event of each key, and each
// without a key, from the journal, the stream and the log; what is left out is counted, in frames and metrics. Then it goes
// on with everybody else.
func TestConflatedCatchUp(t *testing.T) {
	const keys, events = 100, 8_000
	for name, s := range map[string]stream.Stream{"stream": nil, "journal": stream.NewMemory(stream.MemoryConfig{MaxLen: 1})} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, s, broadcaster.Config{LogEvents: 64})
			for i := 0; i < events; i += 4000 {
				r.keyed("hot", i+1, i+4000, keys)
			}
			r.exec(`SELECT commitcast.append('hot', 'note', '7')`)
			r.keyed("hot", 1, keys, keys)
			last := int64(events + 1 + keys)
			want := map[string]int{"": 7}
			for i := 1; i <= keys; i++ {
				want[fmt.Sprintf("k%d", i%keys)] = i
			}
			c := testkit.Dial(t, r.URL)
			c.Send(fmt.Sprintf(`{"op":"subscribe","id":1,"topic":"hot","after":%q,"conflate":true}`, r.cursor(0)))
			c.Expect("subscribed")
			f := folded{state: map[string]int{}}
			for f.at < last {
				if err := f.take(c.Expect("event")); err != nil {
					t.Fatal(err)
				}
			}
			if !maps.Equal(f.state, want) || int64(f.frames)+f.conflated != last || f.frames > events/4 {
				t.Errorf("%d frames, %d left out, %d keys; want %d in all", f.frames, f.conflated, len(f.state), last)
			}
			t.Logf("%d events in %d frames", last, f.frames)
			r.commit("hot", 1)
			c.ExpectEvents("hot", last+1, last+1)
		})
	}
}

// Over Server-Sent Events, what belongs together has one id: who reconnects in its middle comes back to before it.
func TestConflatedServerSentEvents(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{LogEvents: 16})
	r.keyed("hot", 1, 200, 3)
	e := newEventSource(t, r.events("hot")+"?conflate=true&after="+r.cursor(0))
	e.open()
	f := folded{state: map[string]int{}}
	for f.at < 200 {
		m, err := e.next()
		if err == nil {
			err = f.take(m.frame)
		}
		if err != nil || m.id != r.cursor(f.at) {
			t.Fatalf("%+v at %d: %v", m, f.at, err)
		}
	}
	if f.frames != 3 {
		t.Errorf("%d frames", f.frames)
	}
	if resp := get(t, "GET", r.events("hot")+"?conflate=perhaps"); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("answered %d", resp.StatusCode)
	}
}

// Windows hold a place among the replays of their connection: a client with many topics that are behind holds a few, and
// all of them end.
func TestConflatedTopicsTakeTurns(t *testing.T) {
	for _, places := range []int{1, 2} {
		t.Run(fmt.Sprint(places), func(t *testing.T) { takeTurns(t, places) })
	}
}

func takeTurns(t *testing.T, places int) {
	r := newRig(t, nil, broadcaster.Config{LogEvents: 16, MaxReplays: places})
	const topics, events = 6, 1500
	for i := range topics {
		r.keyed(fmt.Sprintf("hot:%d", i), 1, events, 10)
	}
	c := testkit.Dial(t, r.URL)
	states := make(map[string]*folded)
	for i := range topics {
		topic := fmt.Sprintf("hot:%d", i)
		states[topic] = &folded{state: map[string]int{}}
		c.Send(fmt.Sprintf(`{"op":"subscribe","id":%d,"topic":%q,"after":%q,"conflate":true}`, i, topic, r.cursor(0)))
	}
	for done := 0; done < topics; {
		m, err := c.Read(20 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if m.Op != "event" {
			continue
		}
		f := states[m.Topic]
		if err := f.take(m); err != nil {
			t.Fatal(errors.Join(err, fmt.Errorf("in %s", m.Topic)))
		}
		if f.at == events {
			done++
			if f.frames > 200 {
				t.Errorf("%s took %d frames", m.Topic, f.frames)
			}
		}
	}
}
