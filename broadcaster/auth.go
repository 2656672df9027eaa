package broadcaster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/commitcast/commitcast/auth"
	"github.com/commitcast/commitcast/wire"
)

const (
	// maxReason is the longest text of a close frame, in bytes (RFC 6455).
	maxReason = 123
	// reviewsAtOnce is how many subscriptions of one session are held to a newer token at once: an Authorizer may have to
	// ask somebody.
	reviewsAtOnce = 16
	// reviewPause is the longest pause before what could not be decided is tried again, the first time; it doubles, up to
	// reviewMaxPause: seldom enough for a service that is in trouble, and often enough within the minutes of a token's life.
	reviewPause, reviewMaxPause = time.Second, 15 * time.Second
)

// ended is the error that ends a connection with a close code.
type ended struct{ code wire.CloseCode }

func (e ended) Error() string { return e.code.Reason }

// because is a close code with the reason for people to read.
func because(c wire.CloseCode, why error) ended {
	c.Reason += ": " + strings.TrimPrefix(why.Error(), auth.ErrRefused.Error()+": ")
	if len(c.Reason) > maxReason {
		c.Reason = strings.ToValidUTF8(c.Reason[:maxReason], "")
	}
	return ended{c}
}

// verify checks a token, within Config.AuthTimeout.
func (b *Broadcaster) verify(ctx context.Context, token string) (*auth.Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, b.cfg.AuthTimeout)
	defer cancel()
	who, err := b.cfg.Verifier.Verify(ctx, token)
	if err == nil && (!utf8.ValidString(who.Subject) || strings.ContainsRune(who.Subject, 0)) {
		// The database would refuse a whole batch of positions for it, those of others, too.
		who, err = nil, fmt.Errorf("%w: its subject is no text", auth.ErrRefused)
	}
	outcome := "accepted"
	switch {
	case errors.Is(err, auth.ErrRefused):
		outcome = "refused"
	case err != nil:
		outcome = "unavailable"
		b.undecided.Do(func() { b.log.Warn("tokens cannot be checked", "error", err) })
	case who.Expires.IsZero():
		outcome = "lasting" // the canary's, for one, which comes every few seconds: no client has come back with it
	}
	b.metrics.tokens.WithLabelValues(outcome).Inc()
	if l := b.tokens.of(outcome); l != nil {
		l.add(time.Now())
	}
	return who, err
}

// identify reads the token in a request's headers, if there is one: Authorization, or an entry of the WebSocket's
// subprotocols for those who can set no other header. It has answered the client if that token is not good. who is nil
// while the client has yet to say who it is.
func (b *Broadcaster) identify(w http.ResponseWriter, r *http.Request) (who *auth.Identity, ok bool) {
	if b.cfg.Verifier == nil {
		return nil, true
	}
	token := headerToken(r.Header)
	if token == "" {
		return nil, true
	}
	who, err := b.verify(r.Context(), token)
	switch {
	case err == nil && b.userFull(who):
		b.turnAway(w, limitUser, "too many connections of this user")
	case err == nil:
		return who, true
	case errors.Is(err, auth.ErrRefused):
		b.mu.Lock()
		b.strike(b.client(r))
		b.mu.Unlock()
		unauthorized(w, `error="invalid_token"`, err.Error())
	default:
		refuse(w, "tokens cannot be checked now", time.Second+jitter(4*time.Second))
	}
	return nil, false
}

// unauthorized answers 401.
func unauthorized(w http.ResponseWriter, how, detail string) {
	w.Header().Set("WWW-Authenticate", strings.TrimSuffix("Bearer "+how, " "))
	problem(w, http.StatusUnauthorized, wire.CodeForbidden, detail)
}

func headerToken(h http.Header) string {
	if scheme, token, ok := strings.Cut(h.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(token)
	}
	for _, list := range h.Values("Sec-WebSocket-Protocol") {
		for entry := range strings.SplitSeq(list, ",") {
			if token, ok := strings.CutPrefix(strings.TrimSpace(entry), wire.TokenProtocol); ok {
				return token
			}
		}
	}
	return ""
}

// authenticate takes the token of an auth frame: the first one, or a newer one for a session that goes on.
func (s *session) authenticate(ctx context.Context, token string) error {
	b := s.b
	if b.cfg.Verifier == nil {
		return nil // accepted as it is
	}
	s.mu.Lock()
	before := s.who
	s.mu.Unlock()
	if before != nil && !s.mayRenew() {
		return &wire.Error{Code: wire.CodeTooMany, Message: fmt.Sprintf("a token can be renewed every %v; the last one stands until it expires", renewEvery)}
	}
	s.checking.Store(true) // that may take a while, for which a stranger keeps its seat
	who, err := b.verify(ctx, token)
	s.checking.Store(false)
	switch {
	case errors.Is(err, auth.ErrRefused):
		return because(wire.CloseUnauthorized, err)
	case err != nil && before == nil:
		return because(wire.CloseOverload, errors.New("tokens cannot be checked now"))
	case err != nil:
		return &wire.Error{Code: wire.CodeUnavailable, Message: "tokens cannot be checked now; the last one stands until it expires"}
	case before == nil:
		if err := s.admit(who); err != nil {
			return err
		}
		return s.greet(ctx)
	case who.Subject != before.Subject:
		return because(wire.CloseUnauthorized, errors.New("it is of another subject than the last one"))
	default:
		s.prolong(who)
	}
	return nil
}

// admit makes the session that of a client. The error is an ended.
func (s *session) admit(who *auth.Identity) error {
	if err := s.count(who); err != nil {
		return err
	}
	s.renew(who)
	return nil
}

// renew lets the session go on until its token expires and a grace has passed.
func (s *session) renew(who *auth.Identity) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.who, s.until = who, s.b.lasts(who)
	if !s.until.IsZero() {
		s.overdue = because(wire.CloseUnauthorized, errors.New("it has expired")).code
	}
}

// prolong lets the session go on with a newer token, and holds its subscriptions to that.
func (s *session) prolong(who *auth.Identity) {
	s.mu.Lock()
	before := s.who
	s.mu.Unlock()
	s.renew(who)
	_, byClaims := s.b.cfg.Authorizer.(auth.Claims)
	alike := byClaims && slices.EqualFunc(before.Topics, who.Topics, auth.Pattern.Equal)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sub := range s.subs {
		if alike && sub.granted == before {
			sub.granted = who
		}
	}
	if !s.reviewing || s.rests != nil && s.rests.Stop() { // one that rests goes on with the newer token now
		s.reviewing, s.rests = true, nil
		s.b.spawn(func(ctx context.Context) { s.review(ctx, 0) }) // ends after one look at each subscription
	}
}

// expire ends a session whose time is up. Called with mu held.
func (s *session) expire(now time.Time) bool {
	if s.until.IsZero() || now.Before(s.until) || s.closed {
		return false
	}
	s.overstay(s.overdue)
	return true
}

// overstay ends a session whose time is up. Called with mu held.
func (s *session) overstay(code wire.CloseCode) {
	s.b.metrics.expired.Inc()
	s.b.tokens.expired.add(time.Now())
	s.closed = true // nothing is written any more
	s.drained.Broadcast()
	s.b.spawn(func(context.Context) { s.sink.close(code) }) // ends within the WebSocket's closing timeout
}

// allowed asks whether the session may read a topic: nil, or what the client is to be told.
func (b *Broadcaster) allowed(ctx context.Context, who *auth.Identity, topic string) *wire.Error {
	if b.cfg.Verifier == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, b.cfg.AuthTimeout)
	defer cancel()
	err := b.cfg.Authorizer.Authorize(ctx, who, topic)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, auth.ErrForbidden):
		return &wire.Error{Code: wire.CodeForbidden, Message: fmt.Sprintf("topic %q may not be read with this token", topic)}
	}
	b.log.Debug("a topic cannot be decided about", "topic", topic, "error", err)
	return &wire.Error{Code: wire.CodeUnavailable, Message: "whether this topic may be read cannot be decided now; subscribe again in a moment"}
}

// review holds the subscriptions of a session to its newest token, and ends those that it does not allow. What cannot be
// decided goes on for as long as the last token that was decided about, and is tried again; then it ends, too. So no number of
// newer tokens prolongs anything while nobody can say what they allow. tried counts the attempts before this one. There is one
// review of a session at a time: while s.reviewing.
func (s *session) review(ctx context.Context, tried int) {
	for {
		s.mu.Lock()
		who := s.who
		var subs []*subscription
		for _, sub := range s.subs {
			if sub.granted != who {
				subs = append(subs, sub)
			}
		}
		if s.closed || len(subs) == 0 {
			s.reviewing = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		if undecided, next := s.hold(ctx, who, subs); undecided && s.rest(who, tried, next) {
			return
		}
		tried = 0 // those that are left are of a token that has come meanwhile
	}
}

// rest has the review of a token go on after a pause; not if a newer one has come meanwhile, which is looked at at once.
func (s *session) rest(who *auth.Identity, tried int, next time.Time) bool {
	pause := jitter(min(reviewPause<<min(tried, 10), reviewMaxPause))
	if !next.IsZero() {
		pause = min(pause, max(0, time.Until(next)))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.who != who {
		return false
	}
	s.rests = s.b.after(max(pause, time.Millisecond), func() { s.review(s.b.ctx, tried+1) })
	return true
}

// hold asks about each of some subscriptions whether a token allows it. next is when the first of those ends that cannot be
// decided about; zero: never.
func (s *session) hold(ctx context.Context, who *auth.Identity, subs []*subscription) (undecided bool, next time.Time) {
	// For all of them together: where nobody decides, each one's own end must come in time.
	ctx, cancel := context.WithTimeout(ctx, s.b.cfg.AuthTimeout)
	defer cancel()
	var all sync.WaitGroup
	turns := make(chan struct{}, reviewsAtOnce)
	for _, sub := range subs {
		turns <- struct{}{}
		all.Go(func() { // waited for below
			defer func() { <-turns }()
			refusal := s.b.allowed(ctx, who, sub.t.name)
			s.mu.Lock()
			if refusal == nil {
				sub.granted = who
			}
			until := s.b.lasts(sub.granted)
			last := !until.IsZero() && !time.Now().Before(until)
			wait := refusal != nil && refusal.Code != wire.CodeForbidden && !last && sub.state != subEnded
			if wait {
				if undecided = true; !until.IsZero() && (next.IsZero() || until.Before(next)) {
					next = until
				}
			}
			s.mu.Unlock()
			if refusal != nil && !wait {
				s.b.revoke(sub, refusal)
			}
		})
	}
	all.Wait()
	return undecided, next
}

// lasts is until when a session or a subscription may go on with a token; zero: for ever.
func (b *Broadcaster) lasts(who *auth.Identity) time.Time {
	if who.Expires.IsZero() {
		return time.Time{}
	}
	return who.Expires.Add(b.cfg.AuthGrace)
}

// revoke ends a subscription that may not go on, and says so to the client.
func (b *Broadcaster) revoke(sub *subscription, refusal *wire.Error) {
	s := sub.s
	s.mu.Lock()
	ended := sub.state == subEnded
	if !ended {
		sub.endLocked()
		s.sendLocked(func(p []byte) []byte { return wire.AppendError(p, sub.id, refusal) })
	}
	s.mu.Unlock()
	if !ended {
		b.metrics.refused.WithLabelValues(refusal.Code).Inc()
		b.detach(sub)
	}
}
