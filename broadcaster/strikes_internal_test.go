package broadcaster

import (
	"testing"
	"testing/synctest"
	"time"
)

// A flood of pings is read for some seconds, slowly, and then is the end of the connection.
func TestPingsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cuts := 0
		began := time.Now()
		p := unstarted(t, Config{}).newPings(func() { cuts++ })
		for range pingBurst + maxPings - 1 {
			if err := p.wait(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); cuts != 0 || took < (maxPings-2)*time.Second/pingRate {
			t.Errorf("%d cuts, within %v", cuts, took)
		}
		for range 2 {
			p.wait(t.Context())
		}
		if cuts != 1 {
			t.Errorf("%d cuts", cuts)
		}
	})
}

// However often an address has failed, it waits for some seconds after the last time only; and one that many clients come from
// is not shut out after all of them were cut off together.
func TestStrikesAreBounded(t *testing.T) {
	now := time.Now()
	struck := func(a *address) bool { return a.left(now) > a.may(now) }
	a := &address{}
	for range 10_000 {
		a.strike(now)
	}
	if !struck(a) {
		t.Error("it is let in")
	}
	if now = now.Add((strikesBeyond + 1) * strikeLife); struck(a) {
		t.Errorf("it is held up after %v", (strikesBeyond+1)*strikeLife)
	}

	office := &address{known: 100}
	for range 100 {
		office.leaves(now)
	}
	for range maxStrikes + 90 {
		office.strike(now)
	}
	if office.known != 0 || struck(office) {
		t.Errorf("an office that was cut off is a stranger: %+v", office)
	}
	now = now.Add(crowdLife)
	for range maxStrikes + 90 {
		office.strike(now)
	}
	if !struck(office) {
		t.Errorf("an address is known for ever: %+v", office)
	}
}
