package broadcaster_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/internal/testkit"
)

// standing is where the one subscription of a subject stands.
func (r *rig) standing(topic, subject string) (f broadcaster.Follower) {
	r.t.Helper()
	list := r.b.Followers(topic, subject, 10)
	if len(list) != 1 {
		r.t.Fatalf("%s has %+v", subject, list)
	}
	return list[0]
}

// The clients of one subject are sent what is stored, in order, while everybody else stays where he is. When the stream brings the
// same, the others have it, and the first see nothing twice; also one who has come back with a cursor that the stream has nothing for yet.
func TestOneSubjectGoesAhead(t *testing.T) {
	r, issuer := newAuthRig(t, broadcaster.Config{HeadPoll: time.Hour, LogEvents: 4}) // nobody looks at heads: only what is told here moves anybody
	r.commit("t", 3)
	ann, also, bob := r.as(issuer, "ann"), r.as(issuer, "ann"), r.as(issuer, "bob")
	for _, c := range []*testkit.Client{ann, also, bob} {
		c.Subscribe(1, "t", r.cursor(0))
		c.Expect("subscribed")
		c.ExpectEvents("t", 1, 3)
	}
	r.sequence("t", 20) // more than the log holds
	if list := r.b.Advance("t", "ann", 23, 10); len(list) != 2 || !list[0].Live || list[0].Cursor != 3 || list[1].Cursor != 3 {
		t.Errorf("before they go: %+v", list)
	}
	ann.ExpectEvents("t", 4, 23)
	also.ExpectEvents("t", 4, 23)
	if f := r.standing("t", "bob"); f.Cursor != 3 || !f.Live {
		t.Errorf("bob was sent more than the stream has: %+v", f)
	}
	r.publish("t")
	bob.ExpectEvents("t", 4, 23)
	r.commit("t", 2)
	for _, c := range []*testkit.Client{ann, also, bob} {
		c.ExpectEvents("t", 24, 25) // and nothing before that
	}

	r.sequence("t", 5)
	r.b.Advance("t", "ann", 30, 10)
	ann.ExpectEvents("t", 26, 30)
	back := r.as(issuer, "ann")
	back.Subscribe(2, "t", r.cursor(30))
	if m := back.Expect("subscribed"); m.Head != 30 {
		t.Errorf("%+v", m)
	}
	r.commit("t", 1)
	for c, from := range map[*testkit.Client]int64{ann: 31, back: 31, bob: 26} {
		c.ExpectEvents("t", from, 31)
	}
}

// What is not there brings nothing, and costs nothing: the wish is given up, and the subscription goes on.
func TestAheadOfWhatThereIs(t *testing.T) {
	r, issuer := newAuthRig(t, broadcaster.Config{HeadPoll: time.Hour})
	r.commit("t", 3)
	ann := r.as(issuer, "ann")
	ann.Subscribe(1, "t", r.cursor(0))
	ann.Expect("subscribed")
	ann.ExpectEvents("t", 1, 3)
	for topic, subject := range map[string]string{"t": "bob", "other": "ann", "": ""} {
		if list := r.b.Advance(topic, subject, 9, 10); len(list) != 0 {
			t.Errorf("%q of %q: %+v", subject, topic, list)
		}
	}
	r.sequence("t", 2)
	read := func() int { r.journal.mu.Lock(); defer r.journal.mu.Unlock(); return r.journal.ranges }
	before := read()
	r.b.Advance("t", "ann", 1000, 10)
	ann.ExpectEvents("t", 4, 5)
	testkit.Eventually(t, 10*time.Second, func() error { // it was looked for, not found, and its cursor checked
		if n := read() - before; n < 2 {
			return fmt.Errorf("%d reads", n)
		}
		if !r.standing("t", "ann").Live {
			return errors.New("not live again")
		}
		return nil
	}, "the wish is given up")
	r.publish("t")
	r.commit("t", 1)
	ann.ExpectEvents("t", 6, 6)
	if n := read() - before; n > 3 {
		t.Errorf("%d reads for five events", n)
	}
}

// Who goes ahead is ended at a fence that nobody else has come to yet.
func TestAheadEndsAtTheFence(t *testing.T) {
	for _, conflate := range []bool{false, true} {
		t.Run(fmt.Sprint("conflate ", conflate), func(t *testing.T) {
			r, issuer := newAuthRig(t, broadcaster.Config{HeadPoll: time.Hour})
			r.commit("t", 3)
			ann, bob := r.as(issuer, "ann"), r.as(issuer, "bob")
			ann.Send(fmt.Sprintf(`{"op":"subscribe","id":1,"topic":"t","after":%q,"conflate":%v}`, r.cursor(3), conflate))
			ann.Expect("subscribed")
			bob.Subscribe(1, "t", r.cursor(3))
			bob.Expect("subscribed")
			r.sequence("t", 2)
			r.exec(`SELECT commitcast.revoke('ann', 't')`)
			r.sequence("t", 2) // 4, 5, the fence, 7, 8
			r.b.Advance("t", "ann", 8, 10)
			for last := int64(3); ; last++ {
				m, err := ann.Read(10 * time.Second)
				if err != nil {
					t.Fatal(err)
				}
				if m.Op == "error" {
					break
				}
				if m.Op != "event" || m.Offset != last+1 || m.Offset > 5 {
					t.Fatalf("%+v, and the fence is 6", m)
				}
			}
			if f := r.standing("t", "bob"); f.Cursor != 3 {
				t.Errorf("%+v", f)
			}
			r.publish("t")
			bob.ExpectEvents("t", 4, 8)
			ann.Subscribe(2, "t", r.cursor(5))
			expectRefused(t, ann, 2)
		})
	}
}

// A conflating client that goes ahead is sent what it needs of the stretch, and then goes on with everybody else.
func TestConflatingClientGoesAhead(t *testing.T) {
	r, issuer := newAuthRig(t, broadcaster.Config{HeadPoll: time.Hour, LogEvents: 16})
	r.commit("t", 3)
	ann := r.as(issuer, "ann")
	ann.Send(fmt.Sprintf(`{"op":"subscribe","id":1,"topic":"t","after":%q,"conflate":true}`, r.cursor(3)))
	ann.Expect("subscribed")
	const events, keys = 2500, 7
	r.exec(`SELECT commitcast.append('t', 'price', to_json(i), 'k' || i % $2::int) FROM generate_series(1, $1::int) i`, events, keys)
	r.sequence("t", 0)
	r.b.Advance("t", "ann", 3+events, 10)
	f := folded{state: map[string]int{}, at: 3}
	for f.at < 3+events {
		if err := f.take(ann.Expect("event")); err != nil {
			t.Fatal(err)
		}
	}
	for i := events - keys + 1; i <= events; i++ {
		if k := fmt.Sprint("k", i%keys); f.state[k] != i {
			t.Errorf("%s is %d, want %d", k, f.state[k], i)
		}
	}
	if f.frames > events/10 {
		t.Errorf("%d frames", f.frames)
	}
	r.publish("t")
	r.commit("t", 1)
	ann.ExpectEvents("t", events+4, events+4)
}
