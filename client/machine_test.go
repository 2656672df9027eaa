package client

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/commitcast/commitcast/wire"
)

// What the model cannot see, because another rule heals it in the end: that the right thing is done at once.

// told is a machine whose ports write down what they are asked for.
type told struct {
	t *testing.T
	machine[string]
	log []string
	id  int64
}

func newTold(t *testing.T) *told {
	m := &told{t: t}
	say := func(format string, args ...any) { m.log = append(m.log, fmt.Sprintf(format, args...)) }
	m.ports = ports[string]{
		subscribe:   func(after wire.Cursor) int64 { m.id++; say("subscribe %s", after); return m.id },
		unsubscribe: func() int64 { m.id++; say("unsubscribe"); return m.id },
		wait:        func(ms int64, attempt int) { say("wait %d #%d", ms, attempt) },
		apply: func(s string, e *event) (string, error) {
			if e.Type == "bad" {
				return "", errors.New("no")
			}
			return s + string(e.Data), nil
		},
		changed: func(e *event, applied bool) {
			if e != nil {
				say("changed %d %v", e.Offset, applied)
			}
		},
	}
	return m
}

// live is at offset 1, with nothing written down.
func (m *told) live(pending ...int64) *told {
	m.start(at(epochE, 1, pending...))
	m.up()
	m.subscribed(m.id, epochE, 1)
	if !m.current() {
		m.t.Fatalf("phase %d", m.phase)
	}
	m.log = nil
	return m
}

func (m *told) want(log ...string) {
	m.t.Helper()
	if !slices.Equal(m.log, log) {
		m.t.Errorf("did %q, want %q", m.log, log)
	}
	m.log = nil
}

func (m *told) holds(state, cursor string) {
	m.t.Helper()
	if m.held.State != state || m.held.Token.Cursor.String() != cursor {
		m.t.Errorf("holds %q at %s, want %q at %s", m.held.State, m.held.Token.Cursor, state, cursor)
	}
}

func ev(offset int64, epoch ...string) *event {
	return &event{Event: wire.Event{
		Topic: "t", Epoch: append(epoch, epochE)[0], Offset: offset, ID: 100 + offset, Type: "x", Data: []byte(fmt.Sprint(offset)),
	}}
}

const later, older = "4-9f3c", "2-ffff"

// What is dropped costs nothing: a server may send twice what it sent, and that is no hole.
func TestMachineDropsWhatItHolds(t *testing.T) {
	m := newTold(t).live()
	for _, offset := range []int64{2, 2, 1, 0, 3} {
		m.event(ev(offset))
	}
	m.want("changed 2 true", "changed 3 true")
	m.holds("-23", epochE+":3")
}

func TestMachineTokenBelongsToState(t *testing.T) {
	m := newTold(t).live(102)
	before := m.held
	m.event(ev(2))
	m.event(ev(3))
	m.want("changed 2 false", "changed 3 true")
	m.holds("-3", epochE+":3")
	if len(m.held.Token.Pending) != 0 || before.State != "-" || before.Token.Cursor.Offset != 1 || !slices.Equal(before.Token.Pending, []int64{102}) {
		t.Errorf("before %+v, now %+v", before, m.held)
	}
	skipped := ev(4)
	skipped.skip = true
	m.event(skipped)
	m.want("changed 4 false")
	m.holds("-3", epochE+":4")
	m.ports.rereadSkipped = true
	skipped.Offset = 5
	m.event(skipped)
	m.want("unsubscribe")
	if m.holds("-3", epochE+":4"); m.phase != phaseReading {
		t.Errorf("phase %d", m.phase)
	}
}

// conflated is an event before which others were left out.
func conflated(offset, left int64, more bool) *event {
	e := ev(offset)
	e.conflated, e.more = left, more
	return e
}

// What was left out is no hole, and what belongs together is applied together or not at all.
func TestMachineAppliesTogether(t *testing.T) {
	m := newTold(t).live(104)
	m.event(conflated(3, 1, true))
	m.event(conflated(4, 0, true))
	m.want()
	m.holds("-", epochE+":1")
	m.event(conflated(7, 2, false))
	m.want("changed 3 true", "changed 4 false", "changed 7 true")
	m.holds("-37", epochE+":7")
	if len(m.held.Token.Pending) > 0 || m.together != nil {
		t.Errorf("pending %v, together %v", m.held.Token.Pending, m.together)
	}

	m.event(conflated(9, 1, true)) // the server begins again: its database went back, perhaps
	m.event(ev(8))
	m.event(ev(9))
	m.want("changed 8 true", "changed 9 true")
	m.holds("-3789", epochE+":9")

	m.event(conflated(12, 2, true))
	for _, offset := range []int64{13, 14} { // it takes more than two heartbeats
		m.heartbeat(epochE, 20)
		m.event(conflated(offset, 0, true))
	}
	m.heartbeat(epochE, 20)
	m.event(conflated(14, 1, true)) // twice
	m.want()
	m.event(conflated(17, 1, true)) // and one is lost
	m.want("unsubscribe", "subscribe "+epochE+":9")
	m.subscribed(m.id, epochE, 14)
	m.heartbeat(epochE, 14)
	m.heartbeat(epochE, 14) // nothing of it counts any more
	m.want("unsubscribe", "wait 0 #2")
	m.due()
	m.subscribed(m.id, epochE, 14)
	m.log = nil
	m.event(conflated(11, 1, true))
	bad := conflated(14, 2, false)
	bad.Type = "bad"
	m.event(bad)
	m.holds("-3789", epochE+":9")
}

func TestMachineHealsAHole(t *testing.T) {
	m := newTold(t).live()
	m.event(ev(3))
	m.want("unsubscribe", "subscribe "+epochE+":1")
	m.event(ev(2)) // of the old subscription
	m.reset(0)
	m.want()
	m.unsubscribed(m.id - 1)
	m.subscribed(m.id, epochE, 3)
	m.event(ev(2))
	m.event(ev(3))
	m.want("changed 2 true", "changed 3 true")
	m.holds("-23", epochE+":3")
}

// Holes without progress: growing pauses, then the snapshot. Progress between two heartbeats begins anew.
func TestMachineHealsWithoutAStorm(t *testing.T) {
	m := newTold(t).live()
	m.event(ev(3))
	m.subscribed(m.id, epochE, 3)
	m.event(ev(3))
	m.want("unsubscribe", "subscribe "+epochE+":1", "unsubscribe", "wait 0 #2")
	m.due()
	m.subscribed(m.id, epochE, 3)
	m.event(ev(3))
	m.want("subscribe "+epochE+":1", "unsubscribe", "wait 0 #3")
	if m.due(); m.phase != phaseReading {
		t.Errorf("phase %d", m.phase)
	}
	m = newTold(t).live()
	m.event(ev(3))
	m.subscribed(m.id, epochE, 3)
	m.event(ev(2))
	m.heartbeat(epochE, 3)
	m.event(ev(3))
	m.heartbeat(epochE, 4)
	m.log = nil
	m.event(ev(5))
	m.want("unsubscribe", "subscribe "+epochE+":3")
}

// The cursor follows the event's epoch, and never to an older one, nor to another history with the same ordinal, although
// the offset fits.
func TestMachineMixesNoHistories(t *testing.T) {
	m := newTold(t).live()
	m.event(ev(2, later))
	m.want("changed 2 true")
	m.holds("-2", later+":2")
	m.event(ev(3))
	m.want("unsubscribe", "subscribe "+later+":2")
	m.holds("-2", later+":2")
	for _, foreign := range []string{older, "3-ffff"} {
		m := newTold(t).live()
		m.event(ev(2, foreign))
		m.want("unsubscribe", "subscribe "+epochE+":1")
		m.holds("-", epochE+":1")
	}
}

// Pending ids die with their epoch, whichever frame brings another.
func TestMachinePendingIDsDieWithTheirEpoch(t *testing.T) {
	for what, act := range map[string]func(m *told){
		"event":     func(m *told) { m.event(ev(2, later)) },
		"heartbeat": func(m *told) { m.heartbeat(later, 1) },
		"subscribed": func(m *told) {
			m.down()
			m.up()
			m.log = nil
			m.subscribed(m.id, later, 1)
		},
	} {
		m := newTold(t).live(555)
		act(m)
		m.want("unsubscribe")
		if m.holds("-", epochE+":1"); m.phase != phaseReading {
			t.Errorf("%s: phase %d", what, m.phase)
		}
		m = newTold(t).live()
		if act(m); m.phase != phaseLive {
			t.Errorf("%s, without pending ids: phase %d", what, m.phase)
		}
	}
}

func TestMachineReset(t *testing.T) {
	m := newTold(t).live()
	m.reset(340)
	m.want("wait 340 #1") // and no unsubscribe: the server has ended it
	m.event(ev(2))
	m.holds("-", epochE+":1")
	if m.due(); m.phase != phaseReading {
		t.Errorf("phase %d", m.phase)
	}
	m = newTold(t)
	m.start(at(epochE, 1))
	m.up()
	if m.reset(0); m.phase != phaseReading {
		t.Errorf("instead of subscribed: phase %d", m.phase)
	}
}

func TestMachineHeartbeats(t *testing.T) {
	again := []string{"unsubscribe", "subscribe " + epochE + ":1"}
	m := newTold(t).live()
	m.heartbeat(epochE, 2)
	m.want()
	if m.current() {
		t.Error("current, below the head")
	}
	m.heartbeat(epochE, 3)
	m.want(again...)

	m = newTold(t).live() // a head that is ahead while events arrive is nothing
	m.heartbeat(epochE, 3)
	m.event(ev(2))
	m.heartbeat(epochE, 4)
	m.event(ev(3))
	m.heartbeat(epochE, 3)
	m.want("changed 2 true", "changed 3 true")
	if !m.current() {
		t.Error("not current, at the head")
	}

	m = newTold(t).live() // the server has lost the subscription
	m.heartbeat(epochE, -1)
	m.heartbeat(epochE, -1)
	m.want(again...)

	m = newTold(t) // no answer to subscribe
	m.start(at(epochE, 1))
	m.up()
	m.log = nil
	m.heartbeat(epochE, -1)
	m.heartbeat(epochE, -1)
	m.want(again...)
}

func TestMachineRefusals(t *testing.T) {
	for code, want := range map[string]string{
		wire.CodeUnavailable: "wait 0 #2", wire.CodeBadCursor: "reading", wire.CodeAlreadySubscribed: "unsubscribe; subscribe " + epochE + ":1",
		wire.CodeForbidden: "final", wire.CodeBadTopic: "final", wire.CodeTooMany: "final",
	} {
		m := newTold(t)
		m.start(at(epochE, 1))
		m.up()
		m.log = nil
		if m.refused(m.id+7, code) || len(m.log) > 0 || m.phase != phaseAsked {
			t.Errorf("%s of another request", code)
		}
		did := "final"
		if !m.refused(m.id, code) {
			did = strings.Join(m.log, "; ")
			if m.phase == phaseReading {
				did = "reading"
			}
		}
		if did != want {
			t.Errorf("%s: %s, want %s", code, did, want)
		}
		if want == "final" {
			m.down()
			if m.up(); m.phase != phaseAsked {
				t.Errorf("%s: the next connection does not ask again", code)
			}
		}
	}
}

func TestMachineApplyFails(t *testing.T) {
	m := newTold(t).live()
	bad := ev(2)
	bad.Type = "bad"
	m.event(bad)
	m.want("unsubscribe")
	if m.holds("-", epochE+":1"); m.phase != phaseReading {
		t.Errorf("phase %d", m.phase)
	}
	m.unread(7000)
	m.want("wait 7000 #2")
	m.snapshot(at(epochE, 9)) // nobody reads now
	m.holds("-", epochE+":1")
	m.due()
	m.snapshot(at(epochE, 2))
	m.want("subscribe " + epochE + ":2")
	m.close()
	m.want("unsubscribe")
	m.down()
	m.up()
	m.event(ev(3))
	m.want()
	if m.phase != phaseClosed {
		t.Errorf("after close: phase %d", m.phase)
	}
}

func TestMachineLagged(t *testing.T) {
	m := newTold(t).live()
	m.lagged()
	m.want("unsubscribe", "subscribe "+epochE+":1")
	m.lagged() // again, and again: no pause, since nobody is at fault
	m.want("unsubscribe", "subscribe "+epochE+":1")
}
