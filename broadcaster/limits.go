package broadcaster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/commitcast/commitcast/auth"
	"github.com/commitcast/commitcast/wire"
)

const (
	// pingRate and pingBurst are how many pings of a client are answered, a second and at once. A client that means well
	// sends one every few seconds; heartbeats make even those unnecessary.
	pingRate, pingBurst = 5, 50
	// comeBack is how long those who are turned away are told to wait at least, and half of what they may wait.
	comeBack = 2 * time.Second
)

// The limits, as the metric limits_total names them when one is hit.
const (
	limitConnections   = "connections"
	limitAddress       = "connections_per_address"
	limitUser          = "connections_per_user"
	limitSubscriptions = "subscriptions"
	limitRequests      = "requests"
	limitRefusals      = "refusals"
	limitPings         = "pings"
	limitReplays       = "replays"
	limitMessage       = "message_size"
)

// full says why one more session cannot be taken; "" if it can. Called with mu held.
func (b *Broadcaster) full(s *session) (limit, why string) {
	switch {
	case b.draining:
		return "", "this node is shutting down"
	case b.held:
		return "", "this node takes no clients now"
	case len(b.sessions) >= b.cfg.MaxConnections:
		return limitConnections, "this node is full"
	case s.from.IsValid() && b.perAddress[s.from] >= b.cfg.MaxPerAddress:
		return limitAddress, "too many connections from this address"
	}
	return "", ""
}

// admit says whether one more client can be taken. It has answered the client if not.
func (b *Broadcaster) admit(w http.ResponseWriter, s *session) bool {
	select {
	case <-b.ready:
	default:
		refuse(w, "the database has not answered yet", time.Second)
		return false
	}
	b.mu.RLock()
	limit, why := b.full(s)
	b.mu.RUnlock()
	if why == "" {
		return true
	}
	b.turnAway(w, limit, why)
	return false
}

// turnAway answers 503 to a client that cannot be taken.
func (b *Broadcaster) turnAway(w http.ResponseWriter, limit, why string) {
	b.metrics.turnedAway.Inc()
	b.hit(limit)
	refuse(w, why, comeBack+jitter(comeBack))
}

func (b *Broadcaster) hit(limit string) {
	if limit != "" {
		b.metrics.limits.WithLabelValues(limit).Inc()
	}
}

// overloaded is the end of a connection that is one too many.
func overloaded(why string) ended { return because(wire.CloseOverload, errors.New(why)) }

// count takes a place for a client among the connections of its user.
func (s *session) count(who *auth.Identity) error {
	b := s.b
	if who.Subject == "" {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.perUser[who.Subject] >= b.cfg.MaxPerUser {
		b.hit(limitUser)
		return overloaded("too many connections of this user")
	}
	if _, in := b.sessions[s]; in { // not closed meanwhile
		b.perUser[who.Subject]++
		s.user = who.Subject
	}
	return nil
}

// userFull reports whether a client has as many connections as it may.
func (b *Broadcaster) userFull(who *auth.Identity) bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return who != nil && who.Subject != "" && b.perUser[who.Subject] >= b.cfg.MaxPerUser
}

// uncount gives places back. Called with mu held.
func (b *Broadcaster) uncount(s *session) {
	if s.from.IsValid() {
		if b.perAddress[s.from]--; b.perAddress[s.from] <= 0 {
			delete(b.perAddress, s.from)
		}
	}
	if s.user != "" {
		if b.perUser[s.user]--; b.perUser[s.user] <= 0 {
			delete(b.perUser, s.user)
		}
	}
}

// pace holds back a client that asks faster than Config.MaxRequests: it is not read from meanwhile, so that it costs its
// own network and nobody's memory. A whole set of subscriptions may be made, and given up, at once.
type pace struct {
	b       *Broadcaster
	limiter *rate.Limiter
	slow    bool
}

func (b *Broadcaster) newPace() *pace {
	return &pace{b: b, limiter: rate.NewLimiter(rate.Limit(b.cfg.MaxRequests), 2*b.cfg.MaxSubscriptions+b.cfg.MaxRequests)}
}

// wait waits for a client's turn. An error means that ctx has ended.
func (p *pace) wait(ctx context.Context) error {
	if p.limiter.Allow() {
		p.slow = false
		return nil
	}
	if !p.slow {
		p.slow = true
		p.b.hit(limitRequests)
	}
	return p.limiter.Wait(ctx)
}

// pings counts the control frames of a connection. pong says whether one may be answered; a client that sends far too many
// is cut off.
func (b *Broadcaster) newPings(cut func()) (pong func(context.Context, []byte) bool) {
	limiter, cut := rate.NewLimiter(pingRate, pingBurst), sync.OnceFunc(cut)
	return func(context.Context, []byte) bool {
		if limiter.Allow() {
			return true
		}
		b.hit(limitPings)
		cut()
		return false
	}
}

// startReplay begins to read a page for a subscription, or puts it in line: one client with many subscriptions that are
// behind takes Config.MaxReplays places at most. Called with the session's mu held.
func (s *session) startReplay(sub *subscription) {
	if s.replays >= s.b.cfg.MaxReplays {
		s.b.hit(limitReplays)
		s.line = append(s.line, queued{sub, sub.life})
		return
	}
	s.replays++
	s.b.replay(sub)
}

// queued is a subscription that waits for its turn to replay.
type queued struct {
	sub  *subscription
	life uint64
}

// replayEnded gives the place to the next in line. Called without the session's mu, once for each replay begun.
func (s *session) replayEnded() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.replays--
	for len(s.line) > 0 && s.replays < s.b.cfg.MaxReplays {
		next := s.line[0]
		s.line[0] = queued{}
		if s.line = s.line[1:]; len(s.line) == 0 {
			s.line = nil
		}
		if next.sub.life == next.life && !s.closed {
			s.replays++
			s.b.replay(next.sub)
		}
	}
}

// tooMany is the refusal of a subscription beyond Config.MaxSubscriptions.
func (b *Broadcaster) tooMany() error {
	b.hit(limitSubscriptions)
	return &wire.Error{Code: wire.CodeTooMany, Message: fmt.Sprintf("a connection may have %d subscriptions", b.cfg.MaxSubscriptions)}
}
