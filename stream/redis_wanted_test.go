package stream

import (
	"fmt"
	"strings"
	"testing"
)

// online is a set on a connection.
func online(chs ...Channel) *wantedSet {
	s := newWantedSet()
	s.add(chs)
	s.connected()
	return s
}

// wantNext compares the commands and channels that are to be written.
func wantNext(t *testing.T, s *wantedSet, want ...string) {
	t.Helper()
	out := string(s.next(nil))
	for _, command := range []string{"\nSSUBSCRIBE", "\nSUNSUBSCRIBE"} {
		wanted := false
		for _, w := range want {
			wanted = wanted || w == command[1:]
		}
		if wanted != strings.Contains(out, command) {
			t.Fatalf("next is %q, want %v", out, want)
		}
	}
}

func wantSubscribed(t *testing.T, s *wantedSet, ch Channel, want bool) {
	t.Helper()
	if _, tell := s.subscribed(ch.key()); tell != want {
		t.Fatalf("the handler is told: %v, want %v", tell, want)
	}
}

func wantLive(t *testing.T, s *wantedSet, ch Channel, want bool) {
	t.Helper()
	if _, live := s.get(ch.key()); live != want {
		t.Fatalf("live: %v, want %v", live, want)
	}
}

// TestWantedRemovedWhileConfirming: removed and added again while the handler is being told that the channel is live.
// That word must not become a lie: nothing is written that interrupts the channel.
func TestWantedRemovedWhileConfirming(t *testing.T) {
	ch := channel("1-0000", "t")
	s := online(ch)
	wantNext(t, s, "SSUBSCRIBE")
	wantSubscribed(t, s, ch, true)
	// The handler is running.
	s.remove([]Channel{ch})
	wantNext(t, s) // no SUNSUBSCRIBE now
	s.add([]Channel{ch})
	s.confirmed(ch.key())
	wantLive(t, s, ch, true)
	wantNext(t, s, "SSUBSCRIBE") // the new Add is confirmed, too
	wantSubscribed(t, s, ch, true)
	s.confirmed(ch.key())
	wantLive(t, s, ch, true)

	// Removed for good in that moment, it is unsubscribed afterwards.
	s.remove([]Channel{ch})
	s.add([]Channel{ch})
	wantNext(t, s, "SSUBSCRIBE")
	wantSubscribed(t, s, ch, true)
	s.remove([]Channel{ch})
	wantNext(t, s)
	s.confirmed(ch.key())
	wantLive(t, s, ch, false)
	wantNext(t, s, "SUNSUBSCRIBE")
	s.unsubscribed(ch.key())
	if len(s.channels) != 0 || s.unanswered != 0 {
		t.Errorf("%d channels, %d unanswered left", len(s.channels), s.unanswered)
	}
}

// TestWantedAnswersInOrder: an answer to an older question confirms nothing.
func TestWantedAnswersInOrder(t *testing.T) {
	ch := channel("1-0000", "t")
	s := online(ch)
	wantNext(t, s, "SSUBSCRIBE")
	s.remove([]Channel{ch})
	wantNext(t, s, "SUNSUBSCRIBE")
	s.add([]Channel{ch})
	wantNext(t, s, "SSUBSCRIBE")
	wantSubscribed(t, s, ch, false) // of the first
	wantLive(t, s, ch, false)
	if !s.unsubscribed(ch.key()) {
		t.Fatal("an unsubscription that was asked for is taken for one that was not")
	}
	wantSubscribed(t, s, ch, true)
	s.confirmed(ch.key())
	wantLive(t, s, ch, true)
	if s.unsubscribed(ch.key()) {
		t.Fatal("an unsubscription that nobody asked for goes unnoticed")
	}
	// A lost connection forgets all that.
	s.disconnected()
	wantLive(t, s, ch, false)
	s.connected()
	wantNext(t, s, "SSUBSCRIBE")
	wantSubscribed(t, s, ch, true)
}

// TestWantedIsBounded: without a connection, and with answers missing, nothing grows but what is wanted.
func TestWantedIsBounded(t *testing.T) {
	s := newWantedSet()
	var chs []Channel
	for i := range 2 * maxUnanswered {
		chs = append(chs, channel("1-0000", fmt.Sprintf("t%d", i)))
	}
	for range 3 {
		s.add(chs)
		s.remove(chs)
	}
	if len(s.channels) != 0 || len(s.dirty) != 0 {
		t.Fatalf("%d channels, %d to look at left", len(s.channels), len(s.dirty))
	}
	s.connected()
	for range 3 {
		s.add(chs)
		s.remove(chs)
	}
	s.add(chs)
	if len(s.dirty) != len(chs) {
		t.Fatalf("%d to look at, want %d", len(s.dirty), len(chs))
	}
	batches := 0
	for out := s.next(nil); len(out) > 0; out = s.next(nil) {
		if n := strings.Count(string(out), "cc:{"); n > subscribeBatch {
			t.Fatalf("%d channels in one batch", n)
		}
		batches++
	}
	if s.unanswered != maxUnanswered {
		t.Fatalf("%d unanswered after %d batches, want %d", s.unanswered, batches, maxUnanswered)
	}
	for len(s.wake) > 0 {
		<-s.wake
	}
	for i := range maxUnanswered / 2 {
		wantSubscribed(t, s, chs[i], true)
		s.confirmed(chs[i].key())
	}
	if len(s.wake) != 1 {
		t.Fatal("the writer is not woken when there is room again")
	}
	wantNext(t, s, "SSUBSCRIBE")
}
