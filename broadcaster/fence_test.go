package broadcaster_test

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/wire"
)

// revoke takes a topic from a subject, sequenced and published.
func (r *rig) revoke(subject, topic string) (id int64) {
	r.t.Helper()
	r.query(&id, `SELECT commitcast.revoke($1, $2)`, subject, topic)
	r.commit(topic, 0)
	return id
}

func (r *rig) restore(subject, topic string) {
	r.t.Helper()
	r.exec(`SELECT commitcast.restore($1, $2)`, subject, topic)
	r.commit(topic, 0)
}

// as connects as a subject whose token allows every topic.
func (r *rig) as(issuer *testkit.Issuer, subject string) *testkit.Client {
	r.t.Helper()
	c := open(r.t, r.URL, &websocket.DialOptions{HTTPHeader: bearer(issuer.Token(subject, []string{"**"}, nil))})
	c.Expect("hello")
	return c
}

func expectRefused(t *testing.T, c *testkit.Client, id int64) {
	t.Helper()
	if m := c.Expect("error"); m.Code != wire.CodeForbidden || m.ID != id {
		t.Fatalf("%+v, want the end of subscription %d", m, id)
	}
}

// A subscription ends exactly where its subject's right to read was revoked; everybody else sees an offset that is filled.
func TestRevokedWhileLive(t *testing.T) {
	r, issuer := newAuthRig(t, broadcaster.Config{})
	r.commit("t", 3)
	ann, also, bob, nobody := r.as(issuer, "ann"), r.as(issuer, "ann"), r.as(issuer, "bob"), r.as(issuer, "")
	for _, c := range []*testkit.Client{ann, also, bob, nobody} {
		c.Subscribe(1, "t", r.cursor(2))
		c.Expect("subscribed")
		c.ExpectEvents("t", 3, 3)
		c.Subscribe(2, "u", "")
		c.Expect("subscribed")
	}
	live := newEventSource(t, r.events("t"))
	live.header = bearer(issuer.Token("ann", []string{"t"}, nil))
	live.open()

	var id int64 // in one transaction with what comes before and after
	r.query(&id, `WITH a AS MATERIALIZED (SELECT commitcast.append('t', 'x', '1') AS a), f AS MATERIALIZED (SELECT commitcast.revoke('ann', 't') AS id FROM a)
		SELECT id FROM f, LATERAL (SELECT commitcast.append('t', 'x', to_json(id))) AS b`)
	r.commit("t", 0)
	for _, c := range []*testkit.Client{ann, also} {
		c.ExpectEvents("t", 4, 4)
		expectRefused(t, c, 1)
	}
	live.expectEvents(4, 4)
	live.expect("refused")
	for _, c := range []*testkit.Client{bob, nobody} {
		c.ExpectEvents("t", 4, 4)
		if m := c.ExpectEvents("t", 5, 5)[0]; !m.Skip || m.ID != id || m.Type != "" || m.Data != nil {
			t.Errorf("in place of the fence: %+v", m)
		}
		c.ExpectEvents("t", 6, 6)
	}
	r.commit("t", 2)
	r.commit("u", 1)
	for _, c := range []*testkit.Client{ann, also} {
		c.ExpectEvents("u", 1, 1) // the connection, and what else it follows, go on
	}
	bob.ExpectEvents("t", 7, 8)

	// Nothing of the topic is shown any more, old or new, whatever way it is asked for.
	for i, after := range []string{"", r.cursor(0), r.cursor(2), r.cursor(8)} {
		ann.Subscribe(10+i, "t", after)
		expectRefused(t, ann, int64(10+i))
	}
	for _, after := range []string{"", "?after=" + r.cursor(1)} {
		if status, _, body := answerOf(t, r.events("t")+after, live.header); status != http.StatusForbidden {
			t.Errorf("as Server-Sent Events: %d %s", status, body)
		}
	}

	// Restored, all of it is; the old fence is an offset that is filled.
	r.restore("ann", "t")
	ann.Subscribe(20, "t", r.cursor(0))
	ann.Expect("subscribed")
	for _, m := range ann.ExpectEvents("t", 1, 9) {
		if m.Skip != (m.Offset == 5 || m.Offset == 9) {
			t.Errorf("%+v", m)
		}
	}
	r.revoke("ann", "t")
	expectRefused(t, ann, 20)
}

// Whoever joins while the revocation is on its way is refused, or ended at it, at whatever step it comes.
func TestRevokedWhileJoining(t *testing.T) {
	for _, step := range []string{"before positions", "after positions", "before range", "after range"} {
		t.Run(step, func(t *testing.T) {
			r, issuer := newAuthRig(t, broadcaster.Config{LogEvents: 2})
			r.commit("t", 10)
			c := r.as(issuer, "ann")
			h := &r.journal.hooks
			if step == "before range" || step == "after range" {
				h = &r.stream.hooks
			}
			h.set(step, func() { r.revoke("ann", "t"); r.commit("t", 3) })
			c.Subscribe(1, "t", r.cursor(0))
			shown := int64(0)
			for {
				m, err := c.Read(10 * time.Second)
				if err != nil {
					t.Fatal(err)
				}
				if m.Op == "error" {
					if m.Code != wire.CodeForbidden {
						t.Fatalf("%+v", m)
					}
					break
				}
				if m.Op == "event" {
					shown = m.Offset
				}
				if shown > 10 {
					t.Fatalf("%+v, and the fence is 11", m)
				}
			}
			if h.clear() > 0 {
				t.Error("it never came to that step")
			}
		})
	}
}

// A log that has skipped the fence does not let those who are behind it read on; a new epoch asks again about everybody.
func TestRevokedBehindTheLog(t *testing.T) {
	r, issuer := newAuthRig(t, broadcaster.Config{LogEvents: 4})
	r.commit("t", 50)
	c, bob := r.as(issuer, "ann"), r.as(issuer, "bob")
	bob.Subscribe(1, "t", "")
	bob.Expect("subscribed")
	held := make(chan struct{})
	goOn := sync.OnceFunc(func() { close(held) })
	defer goOn()
	reads := make(chan struct{}, 10)
	stop := func() { reads <- struct{}{}; <-held }
	r.stream.held.Store(&stop)
	c.Subscribe(1, "t", r.cursor(0))
	c.Expect("subscribed")
	<-reads              // ann's first page is being read …
	r.revoke("ann", "t") // … while the log takes her fence
	bob.ExpectEvents("t", 51, 51)
	expectRefused(t, c, 1)
	r.stream.held.Store(nil)
	goOn()

	r.restore("ann", "t")
	bob.ExpectEvents("t", 52, 52)
	c.Subscribe(2, "t", "")
	c.Expect("subscribed")
	r.exec(`SELECT commitcast.revoke('ann', 't')`) // in the database alone
	r.exec(`SELECT commitcast.begin_epoch(NULL, 'test')`)
	expectRefused(t, c, 2)
}

// With authentication off nobody's right can be revoked, and a fence fills its offset.
func TestFencesWithoutAuthentication(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{})
	r.commit("t", 1)
	c := testkit.Dial(t, r.URL)
	c.Subscribe(1, "t", r.cursor(0))
	c.Expect("subscribed")
	id := r.revoke("ann", "t")
	r.commit("t", 1)
	if m := c.ExpectEvents("t", 1, 3)[1]; !m.Skip || m.ID != id {
		t.Errorf("%+v", m)
	}
}

// What retention has dropped of a topic, the fence included, changes nobody's right.
func TestFencePastRetention(t *testing.T) {
	r, issuer := newAuthRig(t, broadcaster.Config{LogEvents: 4})
	r.commit("t", 3)
	r.revoke("ann", "t")
	r.commit("t", 2)
	r.exec("DELETE FROM commitcast.journal")
	c, bob := r.as(issuer, "ann"), r.as(issuer, "bob")
	for id, from := range []string{"", r.cursor(0), r.cursor(3), r.cursor(4), r.cursor(6)} {
		c.Subscribe(id, "t", from)
		expectRefused(t, c, int64(id))
	}
	bob.Subscribe(1, "t", r.cursor(6))
	bob.Expect("subscribed")
	r.restore("ann", "t")
	c.Subscribe(9, "t", r.cursor(6))
	c.Expect("subscribed")
	r.commit("t", 1)
	for _, client := range []*testkit.Client{c, bob} {
		client.ExpectEvents("t", 7, 8)
	}
}

// A fence that no stream ever brings, since its topic is set aside or it has become a dead letter, is read in the journal.
func TestFenceFromTheJournal(t *testing.T) {
	r, issuer := newAuthRig(t, broadcaster.Config{})
	r.commit("t", 1)
	ann, bob := r.as(issuer, "ann"), r.as(issuer, "bob")
	for _, c := range []*testkit.Client{ann, bob} {
		c.Subscribe(1, "t", r.cursor(0))
		c.Expect("subscribed")
		c.ExpectEvents("t", 1, 1)
	}
	r.sequence("t", 1)
	r.exec(`SELECT commitcast.revoke('ann', 't')`)
	r.sequence("t", 2)
	bob.ExpectEvents("t", 2, 5)
	ann.ExpectEvents("t", 2, 2)
	expectRefused(t, ann, 1)
}

// A fence is of one history. Where the database has gone back to before it, the subject may read what comes then; and a fence of
// the new history counts, though its event has a lower id than that of a change which the old one had.
func TestFenceOfALostHistory(t *testing.T) {
	r, issuer := newAuthRig(t, broadcaster.Config{})
	r.commit("t", 2)
	early := newest(r)
	ann, bob := r.as(issuer, "ann"), r.as(issuer, "bob")
	bob.Subscribe(1, "t", "")
	bob.Expect("subscribed")
	ann.Subscribe(1, "t", "")
	ann.Expect("subscribed")
	r.commit("other", 10) // ids go on
	r.revoke("ann", "t")
	expectRefused(t, ann, 1)
	r.restore("ann", "t")
	bob.ExpectEvents("t", 3, 4)
	ann.Subscribe(2, "t", r.cursor(4)) // knows of a change with a high id
	ann.Expect("subscribed")

	back := func() {
		r.exec(`DELETE FROM commitcast.journal WHERE "offset" > 2;
			UPDATE commitcast.topic SET head = 2 WHERE topic = 't';
			DELETE FROM commitcast.revocation;
			SELECT commitcast.begin_epoch(NULL, 'test')`) // one transaction: nobody sees it half done
		r.exec(fmt.Sprintf("ALTER TABLE commitcast.outbox ALTER COLUMN id RESTART WITH %d", early+1))
		r.sent["t"] = 2
	}
	back()
	for _, c := range []*testkit.Client{ann, bob} {
		if m := c.Expect("reset"); m.Reason != wire.ReasonAhead {
			t.Fatalf("%+v", m)
		}
		c.Subscribe(3, "t", r.cursor(2))
		c.Expect("subscribed")
	}
	r.commit("t", 1)
	ann.ExpectEvents("t", 3, 3)
	bob.ExpectEvents("t", 3, 3)
	if id := r.revoke("ann", "t"); id > early+10 {
		t.Fatalf("its id is %d: the test proves nothing", id)
	}
	expectRefused(t, ann, 3)
	r.commit("t", 1)
	bob.ExpectEvents("t", 4, 5)
}

// newest is the id of the newest event.
func newest(r *rig) (id int64) {
	r.t.Helper()
	r.query(&id, "SELECT max(id) FROM commitcast.journal")
	return id
}
