package console

import (
	"testing"
	"time"

	"github.com/commitcast/commitcast/ops"
)

// clocked are sessions whose clock the test moves.
func clocked() (s *sessions, later func(time.Duration)) {
	s, now := newSessions(), time.Now()
	s.now = func() time.Time { return now }
	return s, func(d time.Duration) { now = now.Add(d) }
}

func TestSessionsEnd(t *testing.T) {
	s, later := clocked()
	idle, _ := s.begin("alice")
	later(sessionIdle + time.Second)
	if s.find(idle) != nil {
		t.Error("a session that nobody used is still there")
	}
	used, _ := s.begin("bob")
	for range int(sessionFor / sessionIdle * 2) {
		if s.find(used) == nil {
			t.Fatal("a session that is used has ended early")
		}
		later(sessionIdle / 2)
	}
	later(time.Second)
	if s.find(used) != nil {
		t.Error("a session that is used does not end with the shift")
	}
	if s.find("") != nil || s.find("made up") != nil {
		t.Error("somebody without a cookie of ours has a session")
	}
	s.tidy()
	if len(s.all) != 0 {
		t.Errorf("%d sessions are kept that are over", len(s.all))
	}
}

func TestSessionsAreBounded(t *testing.T) {
	s, later := clocked()
	first, v := s.begin("alice")
	for range maxSessions {
		later(time.Millisecond)
		s.begin("bob")
	}
	if len(s.all) != maxSessions || s.find(first) != nil || !v.ended {
		t.Errorf("%d sessions, and the one that is idle for longest has ended: %v", len(s.all), v.ended)
	}
}

func TestProposals(t *testing.T) {
	s, later := clocked()
	_, v := s.begin("alice")
	p := new(ops.Proposal)
	id := v.keep(p, s.now())
	if v.take(id, s.now()) != p || v.take(id, s.now()) != nil {
		t.Error("a proposal is not good for once")
	}
	id = v.keep(p, s.now())
	later(proposalFor + time.Second)
	if v.take(id, s.now()) != nil {
		t.Error("a proposal is good for ever")
	}
	oldest := v.keep(p, s.now())
	for range maxProposals {
		later(time.Millisecond)
		v.keep(p, s.now())
	}
	if len(v.proposals) > maxProposals || v.take(oldest, s.now()) != nil {
		t.Errorf("%d proposals are kept", len(v.proposals))
	}
}

func TestKnocks(t *testing.T) {
	k := newKnocks()
	for range knocksBurst {
		if !k.may("a") {
			t.Fatal("a person who mistypes is turned away")
		}
		k.failed("a")
	}
	if k.may("a") || !k.may("b") {
		t.Error("who guesses may go on, or somebody else may not")
	}
	for i := range 2 * knocksOfAll {
		k.failed(string(rune('A' + i)))
	}
	if k.may("c") {
		t.Error("many addresses may guess without end")
	}
}
