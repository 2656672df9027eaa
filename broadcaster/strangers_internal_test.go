package broadcaster

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/commitcast/commitcast/auth"
	"github.com/commitcast/commitcast/wire"
)

// closing is a client that is told to go, and goes.
type closing struct {
	sink
	code atomic.Int64
}

func (c *closing) close(code wire.CloseCode) { c.code.Store(int64(code.Code)) }

func prefix(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 32)
}

// come has a client ask for a seat, and sit down if it gets one. The channel says whether it did.
func come(ctx context.Context, b *Broadcaster, from netip.Prefix) (*session, *closing, <-chan bool) {
	to := &closing{}
	s := newSession(b, to, from)
	got := make(chan bool, 1)
	go func() { // ends with the answer
		ok := b.seat(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodGet, "/v1/ws", nil), s)
		if ok {
			b.addSession(s)
		}
		got <- ok
	}()
	synctest.Wait()
	return s, to, got
}

// crowd is how many sit, and how many wait at the door.
func crowd(b *Broadcaster) (seated, waiting int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.strangers), len(b.atDoor)
}

func strangersOf(t *testing.T, seats int) *Broadcaster {
	b := unstarted(t, Config{Verifier: refuser{}, MaxStrangers: seats})
	t.Cleanup(func() { // what was counted ends within the bubble
		b.stopMu.Lock()
		b.stopped = true
		b.stopMu.Unlock()
		b.wg.Wait()
	})
	return b
}

// A seat goes to the one at the door whose address is trusted most, and is taken from the one that is trusted least, once that one has
// had some time, and evenly however many want it.
func TestSeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const seats, bad, good = 8, 1, 2
		b := strangersOf(t, seats)
		var sitting []*closing
		for i := range seats {
			from := prefix(bad)
			if i == 0 {
				from = prefix(good)
			}
			_, to, got := come(t.Context(), b, from)
			if !<-got {
				t.Fatal("a free seat is not given")
			}
			sitting = append(sitting, to)
		}
		began := time.Now()
		var others []<-chan bool
		for range 20 {
			_, _, got := come(t.Context(), b, prefix(bad))
			others = append(others, got)
		}
		_, _, first := come(t.Context(), b, prefix(3)) // of which nothing is known
		if !<-first {
			t.Fatal("it is sent away")
		}
		if waited := time.Since(began); waited < strangerPatience || waited > strangerPatience+3*seatEvery {
			t.Errorf("it waited for %v", waited)
		}
		for _, got := range others {
			select {
			case <-got:
				t.Error("one that is trusted less came first")
			default:
			}
		}
		time.Sleep(seatEvery * (seats - 3)) // two are gone: for the one that came, and for the next
		synctest.Wait()
		var gone []int64
		for _, to := range sitting {
			gone = append(gone, to.code.Load())
		}
		want := []int64{0, 4400, 4400, 4400, 4400, 4400, 4400, 4400}
		if fmt.Sprint(gone) != fmt.Sprint(want) {
			t.Errorf("closed with %v, want %v", gone, want)
		}
		if n, _ := crowd(b); n > seats || n < seats-1 {
			t.Errorf("%d sit on %d seats", n, seats)
		}
		time.Sleep(b.cfg.AuthTimeout) // and nobody waits for longer than that
		synctest.Wait()
		if _, n := crowd(b); n > 0 {
			t.Errorf("%d wait still", n)
		}
	})
}

// Who has said who it is, or is gone, gives its seat to the next at once. One whose token is being checked keeps it.
func TestSeatsAreGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := strangersOf(t, 1)
		next := func(ctx context.Context) (*session, <-chan bool) {
			s, _, got := come(ctx, b, prefix(1))
			return s, got
		}
		first, got := next(t.Context())
		<-got
		first.checking.Store(true)
		began := time.Now()
		second, got := next(t.Context())
		time.Sleep(strangerPatience + 10*seatEvery)
		if len(got) > 0 {
			t.Fatal("one whose token is being checked was sent away")
		}
		first.checking.Store(false)
		if err := first.count(&auth.Identity{Subject: "7"}); err != nil {
			t.Fatal(err)
		}
		if !<-got || time.Since(began) > strangerPatience+10*seatEvery {
			t.Errorf("the seat of one that is known is free after %v", time.Since(began))
		}
		began = time.Now()
		const comers = 100
		last := second
		for range comers { // each leaves by itself, and comes to nothing
			this, got := next(t.Context())
			b.removeSession(last)
			if !<-got {
				t.Fatal("the seat of one that is gone is not free")
			}
			last = this
		}
		if took := time.Since(began); took < comers*seatEvery || took > comers*seatEvery*5/4 {
			t.Errorf("%d that come to nothing take %v", comers, took)
		}
		b.removeSession(last)
		b.removeSession(first)
		time.Sleep(seatEvery)

		fourth, got := next(t.Context())
		<-got
		ctx, cancel := context.WithCancel(t.Context())
		_, left := next(ctx)
		cancel()
		seated := <-left
		if _, n := crowd(b); seated || n > 0 {
			t.Error("one that has left the door waits there")
		}
		b.removeSession(fourth)
	})
}

// When too many wait, the one that is trusted least is sent away, and that is a strike; one that is trusted more stays.
func TestCrowdAtTheDoor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bad, good = 1, 2
		b := strangersOf(t, 1)
		first, _, got := come(t.Context(), b, prefix(bad))
		<-got
		first.checking.Store(true) // it stays
		_, _, honest := come(t.Context(), b, prefix(good))
		var others []<-chan bool
		for range maxAtDoor + 9 {
			_, _, got := come(t.Context(), b, prefix(bad))
			others = append(others, got)
		}
		away := 0
		for _, got := range others {
			if len(got) > 0 && !<-got {
				away++
			}
		}
		if _, n := crowd(b); away != 10 || n != maxAtDoor {
			t.Errorf("%d are sent away, %d wait", away, n)
		}
		if len(honest) > 0 {
			t.Error("the one that nothing is known of is sent away")
		}
		if n := b.addresses[prefix(bad)].left(time.Now()); n != 10 {
			t.Errorf("%v strikes", n)
		}
		b.removeSession(first)
		if !<-honest {
			t.Error("it got no seat")
		}
		time.Sleep(b.cfg.AuthTimeout)
	})
}

// What all connections of a user ask for has one pace, and so have their mistakes: more connections do not make it faster.
func TestPaceOfAUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := unstarted(t, Config{Verifier: refuser{}, MaxPerUser: 100, MaxRequests: 10})
		const perSecond, burst = 50, 3000
		subscribe := wire.Request{Op: wire.OpSubscribe, Topic: "a"}
		connect := func(subject string) (*session, *pace) {
			s := newSession(b, nowhere{}, netip.Prefix{})
			b.addSession(s)
			if err := s.count(&auth.Identity{Subject: subject}); err != nil {
				t.Fatal(err)
			}
			return s, b.newPace()
		}
		began := time.Now()
		for range 100 {
			s, _ := connect("7")
			if s.greet(t.Context()) != nil {
				t.Fatal("shut down")
			}
			for range 20 {
				p := b.newPace() // that of the connection is not what is looked at
				if err := s.wait(t.Context(), p, subscribe, nil); err != nil {
					t.Fatal(err)
				}
			}
			b.removeSession(s)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("all of its connections, with 20 topics each, take %v", took)
		}
		for range 10 { // by new connections
			s, p := connect("7")
			s.greet(t.Context())
			s.wait(t.Context(), p, subscribe, nil)
			s.wait(t.Context(), p, wire.Request{Op: wire.OpUnsubscribe}, nil)
			b.removeSession(s)
		}
		if took, want := time.Since(began), 10*(connectionCost+1)*time.Second/perSecond; took < want || took > want+time.Second/perSecond {
			t.Errorf("10 connections beyond take %v, want %v", took, want)
		}
		other, _ := connect("8")
		before := time.Now()
		other.greet(t.Context())
		if time.Since(before) > 0 {
			t.Error("another user waits for it")
		}
		b.removeSession(other)

		before = time.Now()
		for range 10 {
			s, p := connect("7")
			for range userMistakes*mistakeBurst/10 + 2 {
				s.mistook(t.Context(), p)
			}
			b.removeSession(s)
		}
		if took, want := time.Since(before), 20*time.Second/(userMistakes*mistakeRate); took < want || took > want+time.Second {
			t.Errorf("20 mistakes beyond take %v, want %v", took, want)
		}
		for _, after := range []time.Duration{0, burst * time.Second / perSecond} {
			time.Sleep(after)
			b.sweepUsers(time.Now())
			if _, in := b.users["7"]; in != (after == 0) {
				t.Errorf("after %v it is remembered: %v", after, in)
			}
		}
	})
}
