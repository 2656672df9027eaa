package broadcaster

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/commitcast/commitcast/auth"
)

// A newer token with the same rights is not held against each subscription when the rights are those of the token.
func TestUnchangedRightsAreNotReviewed(t *testing.T) {
	patterns := func(texts ...string) (list []auth.Pattern) {
		for _, text := range texts {
			p, err := auth.ParsePattern(text)
			if err != nil {
				t.Fatal(err)
			}
			p, _ = p.Fill(func(string) (string, bool) { return "acme", true })
			list = append(list, p)
		}
		return list
	}
	other, _ := auth.ParsePattern("{tenant}:*")
	other, _ = other.Fill(func(string) (string, bool) { return "other", true })
	asks := struct{ auth.Claims }{} // an Authorizer that may ask somebody
	for name, c := range map[string]struct {
		authorizer auth.Authorizer
		topics     []auth.Pattern
		alike      bool
	}{
		"the same":         {nil, patterns("{tenant}:*", "b"), true},
		"one less":         {nil, patterns("{tenant}:*"), false},
		"one more":         {nil, patterns("{tenant}:*", "b", "c"), false},
		"another":          {nil, patterns("{tenant}:*", "c"), false},
		"filled by others": {nil, append([]auth.Pattern{other}, patterns("b")...), false},
		"somebody decides": {asks, patterns("{tenant}:*", "b"), false},
	} {
		b := unstarted(t, Config{Verifier: refuser{}, Authorizer: c.authorizer})
		b.stopped = true // nothing is reviewed: what is granted is granted at once
		s := newSession(b, nil, netip.Prefix{})
		before := &auth.Identity{Subject: "7", Topics: patterns("{tenant}:*", "b"), Expires: time.Now().Add(time.Minute)}
		s.renew(before)
		old := &auth.Identity{}
		s.subs["acme:1"], s.subs["acme:2"] = &subscription{s: s, granted: before}, &subscription{s: s, granted: old}
		after := &auth.Identity{Subject: "7", Topics: c.topics, Expires: time.Now().Add(time.Hour)}
		s.prolong(after)
		if got := s.subs["acme:1"].granted; (got == after) != c.alike || s.subs["acme:2"].granted != old {
			t.Errorf("%s: granted by %+v", name, got)
		}
		if s.who != after || time.Until(s.until) < 50*time.Minute {
			t.Errorf("%s: the session ends at %v", name, s.until)
		}
	}
}

// A review that rests, since nobody decides, goes on at once when a newer token has come.
func TestNewerTokenEndsTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asks := &undecided{}
		b := unstarted(t, Config{Verifier: refuser{}, Authorizer: asks})
		s := newSession(b, nil, netip.Prefix{})
		later := time.Now().Add(time.Hour)
		s.renew(&auth.Identity{Subject: "7", Expires: later})
		s.subs["a"] = &subscription{s: s, t: &topic{name: "a"}, granted: &auth.Identity{Subject: "7", Expires: later}}
		s.reviewing = true
		s.review(t.Context(), 10) // after this it rests for up to 15 s
		for n := int64(1); n <= 3; n++ {
			if asked := asks.n.Load(); asked != n {
				t.Fatalf("asked %d times, not %d", asked, n)
			}
			s.prolong(&auth.Identity{Subject: "7", Expires: later})
			synctest.Wait() // no time passes
		}
		s.close()
		time.Sleep(reviewMaxPause)
		synctest.Wait()
		if s.reviewing {
			t.Error("a review of a closed session goes on")
		}
	})
}

// undecided is an Authorizer that never knows.
type undecided struct{ n atomic.Int64 }

func (u *undecided) Authorize(context.Context, *auth.Identity, string) error {
	u.n.Add(1)
	return errors.New("away")
}

// Pings and pongs do not count as bytes of a message, however many there are.
func TestMeterForgivesPings(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	m := &meter{Conn: server}
	m.message()
	go func() { // ends when all is written
		for range 20_000 {
			client.Write(make([]byte, 26))
		}
	}()
	p := make([]byte, 26)
	for i := range 20_000 {
		if _, err := m.Read(p); err != nil || m.exceeded() {
			t.Fatalf("after %d pings: %v", i, err)
		}
		m.forgive(p[6:])
	}
}
