package broadcaster

import (
	"context"
	"math"
	"net/http"
	"net/netip"
	"time"

	"github.com/commitcast/commitcast/wire"
)

const (
	// seatEvery is how long a seat stays empty whose stranger has come to nothing, one such seat after the other: so what those cost, a
	// handshake and a close, has a bound, and comes evenly. The seat of one that has said who it is, is free at once.
	seatEvery = 20 * time.Millisecond
	// strangerPatience is how long a client may take to say who it is while others wait for its place: some round trips of a
	// bad network. While nobody waits it has Config.AuthTimeout.
	strangerPatience = time.Second
	// maxAtDoor is how many wait for a place among the strangers. Each costs what net/http has for a request.
	maxAtDoor = 256
)

// A stranger is a WebSocket whose client has yet to say who it is. There are Config.MaxStrangers of them at once, in seats, since each
// costs as much as a client and brings nothing. Further ones wait at the door, before their handshake, for a seat: it goes to the one
// whose address is trusted most. Who brings a token in its handshake is no stranger.

// waiter is one that waits at the door.
type waiter struct {
	s    *session
	turn chan bool // true: it has a seat; false: it is sent away
}

// distrust of an address: what has come to nothing there, or may yet, less as many as it has clients that are known. Called with mu
// held.
func (b *Broadcaster) distrust(from netip.Prefix, now time.Time) float64 {
	a := b.addresses[from]
	if a == nil {
		return 0
	}
	return a.left(now) + float64(a.connections-a.known) + maxStrikes - a.may(now)
}

// most finds, among n sessions, the one whose address is distrusted most, by sign 1, or least, by sign -1, and of several the one that
// has been there longest. It looks at those that may be chosen: -1 if there are none. Called with mu held.
func (b *Broadcaster) most(sign float64, now time.Time, n int, of func(i int) *session, may func(*session) bool) int {
	best, worth := -1, 0.0
	for i := range n {
		s := of(i)
		if !may(s) {
			continue
		}
		w := sign * b.distrust(s.from, now)
		if best < 0 || w > worth || w == worth && s.came.Before(of(best).came) {
			best, worth = i, w
		}
	}
	return best
}

// seat has a client that has yet to say who it is wait for a seat. False: it was answered, or is gone.
func (b *Broadcaster) seat(w http.ResponseWriter, r *http.Request, s *session) bool {
	now := time.Now()
	b.mu.Lock()
	if len(b.atDoor) == 0 && b.seatIsFree(now) {
		b.strangers = append(b.strangers, s)
		b.mu.Unlock()
		return true
	}
	me := &waiter{s, make(chan bool, 1)}
	b.atDoor = append(b.atDoor, me)
	if len(b.atDoor) > maxAtDoor {
		i := b.most(1, now, len(b.atDoor), b.waiting, anybody)
		b.strike(b.atDoor[i].s.from)
		b.sendOff(i, false)
	}
	b.seatOthers(now)
	draining := b.draining
	b.mu.Unlock()
	ctx, cancel := context.WithTimeout(r.Context(), b.cfg.AuthTimeout)
	defer cancel()
	turn, decided := false, false
	if !draining {
		select {
		case turn = <-me.turn:
			decided = true
		case <-ctx.Done():
		}
	}
	if !decided {
		b.mu.Lock()
		for i, other := range b.atDoor {
			if other == me {
				b.sendOff(i, false)
				break
			}
		}
		b.mu.Unlock()
		turn = <-me.turn
	}
	switch {
	case turn && r.Context().Err() == nil:
		return true
	case turn: // it did not wait for it
		b.free(s)
	case decided:
		b.holdUp(w, limitStrangers)
	case r.Context().Err() == nil:
		b.turnAway(w, limitStrangers, "too many clients that have yet to say who they are")
	}
	return false
}

func anybody(*session) bool { return true }

func (b *Broadcaster) waiting(i int) *session { return b.atDoor[i].s }
func (b *Broadcaster) seated(i int) *session  { return b.strangers[i] }

// sendOff takes a waiter from the door. Called with mu held.
func (b *Broadcaster) sendOff(i int, seated bool) {
	w, last := b.atDoor[i], len(b.atDoor)-1
	b.atDoor[i], b.atDoor[last] = b.atDoor[last], nil
	b.atDoor = b.atDoor[:last]
	if seated {
		b.strangers = append(b.strangers, w.s)
	}
	w.turn <- seated
}

// empty is how many seats are kept empty, since their strangers have come to nothing. Called with mu held.
func (b *Broadcaster) empty(now time.Time) float64 {
	return max(0, b.emptied-now.Sub(b.emptiedAt).Seconds()/seatEvery.Seconds())
}

func (b *Broadcaster) seatIsFree(now time.Time) bool {
	return len(b.strangers)+int(math.Ceil(b.empty(now))) < b.cfg.MaxStrangers
}

// seatOthers gives free seats to those who wait, and has strangers that have had their time leave, one by one. Called with mu held,
// whenever a seat may have become free.
func (b *Broadcaster) seatOthers(now time.Time) {
	for len(b.atDoor) > 0 {
		if !b.seatIsFree(now) {
			if len(b.strangers) < b.cfg.MaxStrangers {
				b.seatLater()
				return
			}
			i := b.most(1, now, len(b.strangers), b.seated, func(s *session) bool {
				_, open := b.sessions[s]
				return open && !s.checking.Load() && now.Sub(s.came) >= strangerPatience
			})
			if i < 0 {
				b.seatLater()
				return
			}
			s := b.strangers[i]
			b.unseatAt(i, now)
			b.hit(limitStrangers)
			s.mu.Lock()
			if !s.closed {
				s.overstay(overstayed)
			}
			s.mu.Unlock()
			continue
		}
		b.sendOff(b.most(-1, now, len(b.atDoor), b.waiting, anybody), true)
	}
}

// seatLater has seatOthers called again. Called with mu held.
func (b *Broadcaster) seatLater() {
	if b.later {
		return
	}
	b.later = true
	b.after(seatEvery, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.later = false
		b.seatOthers(time.Now())
	})
}

// free is unseat, for whom mu is not held.
func (b *Broadcaster) free(s *session) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unseat(s)
}

// unseat takes a client from among the strangers: it has said who it is, or is gone. Called with mu held.
func (b *Broadcaster) unseat(s *session) {
	for i, other := range b.strangers {
		if other == s {
			now := time.Now()
			b.unseatAt(i, now)
			b.seatOthers(now)
			return
		}
	}
}

func (b *Broadcaster) unseatAt(i int, now time.Time) {
	if !b.strangers[i].counted {
		b.emptied, b.emptiedAt = b.empty(now)+1, now
	}
	last := len(b.strangers) - 1
	b.strangers[i], b.strangers[last] = b.strangers[last], nil
	b.strangers = b.strangers[:last]
}

// overstayed is the end of a stranger whose place others wait for.
var overstayed = wire.CloseCode{Code: wire.CloseAuthTimeout.Code, Reason: "no auth while others wait for this place", Reconnect: true}
