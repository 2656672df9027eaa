package broadcaster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/commitcast/commitcast/auth"
	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

const (
	// pingRate and pingBurst are how many pings of a client are read and answered, a second and at once. A client that means well
	// sends one every few seconds; heartbeats make even those unnecessary.
	pingRate, pingBurst = 5, 50
	// maxPings is how many that had to wait end a connection: 20 s of a flood.
	maxPings = 100
	// mistakeRate and mistakeBurst are how many refused requests of a client are read, a second and at once. Each costs an
	// answer, which one that means well needs, and who floods with nonsense does not.
	mistakeRate, mistakeBurst = 5, 50
	// requestSeconds is how many seconds of Config.MaxRequests a connection may ask at once.
	requestSeconds = 10
	// renewEvery and renewBurst are how often a connection may bring a newer token: each has its signature checked, and may
	// cost a question about each subscription. A token lives for minutes.
	renewEvery, renewBurst = 5 * time.Second, 5
	// replaySeconds is how many seconds of Config.MaxReplayRate a user may have at once.
	replaySeconds = 5
	// reconnectWithin is how long a client that is sent away stays away at most: nothing is gained by more, since those who are sent
	// away are spread already, and it is blind meanwhile.
	reconnectWithin = 250 * time.Millisecond
	// userSeconds is how many seconds of its pace a user may ask at once: enough for all its connections to come back, each with
	// 20 topics.
	userSeconds = 60
	// connectionCost is what a connection of a user counts, in requests: a handshake, and a token whose signature is checked.
	connectionCost = 10
	// userMistakes is how many connections of a user may make all the mistakes that one may.
	userMistakes = 4
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
	limitReplayRate    = "replay_rate"
	limitMessage       = "message_size"
	limitFrames        = "frames"
	limitRenewals      = "renewals"
	limitLogs          = "log_memory"
	limitStrikes       = "strikes"
	limitStrangers     = "unauthenticated"
	limitUserRequests  = "requests_per_user"
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
	case s.from.IsValid() && b.connectionsFrom(s.from) >= b.cfg.MaxPerAddress:
		return limitAddress, "too many connections from this address"
	}
	return "", ""
}

// connectionsFrom is how many there are from an address. Called with mu held.
func (b *Broadcaster) connectionsFrom(from netip.Prefix) int {
	if a := b.addresses[from]; a != nil {
		return a.connections
	}
	return 0
}

// admit says whether one more client can be taken. It has answered the client, or will, if not.
func (b *Broadcaster) admit(w http.ResponseWriter, s *session) bool {
	if b.struck(s.from) {
		b.holdUp(w, limitStrikes)
		return false
	}
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

// count takes a place for a client among the connections of its user. Those of tokens without a subject are one user.
func (s *session) count(who *auth.Identity) error {
	b := s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if u := b.users[who.Subject]; u != nil && u.connections >= b.cfg.MaxPerUser {
		b.hit(limitUser)
		return overloaded("too many connections of this user")
	}
	if _, in := b.sessions[s]; in { // not closed meanwhile
		b.userOf(who).connections++
		s.user, s.counted, s.account = who.Subject, true, b.users[who.Subject]
		b.unseat(s)
		if s.from.IsValid() {
			b.addresses[s.from].known++
		}
	}
	return nil
}

// userFull reports whether a client has as many connections as it may.
func (b *Broadcaster) userFull(who *auth.Identity) bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if who == nil {
		return false
	}
	u := b.users[who.Subject]
	return u != nil && u.connections >= b.cfg.MaxPerUser
}

// uncount gives places back. Called with mu held.
func (b *Broadcaster) uncount(s *session) {
	b.unseat(s)
	if s.from.IsValid() {
		a := b.addresses[s.from]
		a.connections--
		if s.counted {
			a.leaves(time.Now())
		}
	}
	if s.unwelcome.Load() || !s.counted && !s.excused && !b.draining && !b.held {
		b.strike(s.from)
	}
	if s.counted {
		b.users[s.user].connections-- // it is forgotten later, so that nobody gets a new budget by reconnecting
	}
}

// user is what is counted of one subject of tokens, over all its connections.
type user struct {
	connections int           // guarded by Broadcaster.mu
	reads       chan struct{} // replays that are read for
	budget      *rate.Limiter // of events that are read
	pace        *pace         // of all its connections together
}

// userOf is the user of an identity. Called with mu held.
func (b *Broadcaster) userOf(who *auth.Identity) *user {
	u := b.users[who.Subject]
	if u == nil {
		u = &user{reads: make(chan struct{}, b.cfg.MaxReplays), budget: rate.NewLimiter(rate.Limit(b.cfg.MaxReplayRate), replaySeconds*b.cfg.MaxReplayRate),
			pace: b.newUserPace()}
		b.users[who.Subject] = u
	}
	return u
}

// whole reports whether nothing is missing from a budget.
func whole(l *rate.Limiter, now time.Time) bool { return l.TokensAt(now) >= float64(l.Burst()) }

// sweepUsers forgets users without a connection that have their whole budgets again.
func (b *Broadcaster) sweepUsers(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for name, u := range b.users {
		if u.connections == 0 && whole(u.budget, now) && whole(u.pace.limiter, now) && whole(u.pace.mistakes, now) {
			delete(b.users, name)
		}
	}
}

// budgeted reads for a replay within the budget of its user: a few reads at once, and so many events a second beyond a burst.
// One who asks for all of the past, again and again, waits for himself. Without authentication there is nobody to hold to it.
func (s *session) budgeted(ctx context.Context, who *auth.Identity, read func() (stream.Run, error)) (stream.Run, error) {
	if who == nil {
		return read()
	}
	s.b.mu.Lock()
	u := s.b.userOf(who)
	s.b.mu.Unlock()
	select {
	case u.reads <- struct{}{}:
		defer func() { <-u.reads }()
	case <-ctx.Done():
		return stream.Run{}, ctx.Err()
	}
	if debt := -u.budget.Tokens(); debt > 0 {
		s.b.hit(limitReplayRate)
		timer := time.NewTimer(time.Duration(debt / float64(u.budget.Limit()) * float64(time.Second)))
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return stream.Run{}, ctx.Err()
		}
	}
	s.mu.Lock()
	gone := s.closed
	s.mu.Unlock()
	if gone {
		return stream.Run{}, net.ErrClosed
	}
	run, err := read()
	u.budget.ReserveN(time.Now(), min(len(run.Frames), u.budget.Burst())) // it is paid by who comes next
	return run, err
}

// pace holds back a client that asks faster than it may: it is not read from meanwhile, so that it costs its own network and
// nobody's memory. There is one of each connection, and one of each user for all its connections.
type pace struct {
	b        *Broadcaster
	limit    string
	limiter  *rate.Limiter
	mistakes *rate.Limiter
	slow     atomic.Bool
}

// newPace is that of a connection: Config.MaxRequests. A whole set of subscriptions may be made, and given up, at once (free).
func (b *Broadcaster) newPace() *pace {
	return &pace{b: b, limit: limitRequests, limiter: rate.NewLimiter(rate.Limit(b.cfg.MaxRequests), requestSeconds*b.cfg.MaxRequests),
		mistakes: rate.NewLimiter(mistakeRate, mistakeBurst)}
}

// newUserPace is that of a user, which only giving up subscriptions is free of: so a set of them is not made again and again,
// each time by a new connection.
func (b *Broadcaster) newUserPace() *pace {
	perSecond := max(b.cfg.MaxRequests, b.cfg.MaxPerUser/2)
	return &pace{b: b, limit: limitUserRequests, limiter: rate.NewLimiter(rate.Limit(perSecond), userSeconds*perSecond),
		mistakes: rate.NewLimiter(userMistakes*mistakeRate, userMistakes*mistakeBurst)}
}

// wait waits for the turn of n requests. An error means that ctx has ended.
func (p *pace) wait(ctx context.Context, n int) error {
	if p.limiter.AllowN(time.Now(), n) {
		p.slow.Store(false)
		return nil
	}
	if !p.slow.Swap(true) {
		p.b.hit(p.limit)
	}
	return p.limiter.WaitN(ctx, n)
}

// wait waits for the turn of a request, of its connection and of its user. An error means that ctx has ended. Called by the reader.
func (s *session) wait(ctx context.Context, p *pace, req wire.Request, err error) error {
	if err != nil || !s.free(req) {
		if err := p.wait(ctx, 1); err != nil {
			return err
		}
	}
	if s.account != nil && req.Op != wire.OpUnsubscribe {
		return s.account.pace.wait(ctx, 1)
	}
	return nil
}

// mistook waits after a refused request, if there have been many. An error means that ctx has ended. Called by the reader.
func (s *session) mistook(ctx context.Context, p *pace) error {
	if s.account != nil {
		if err := s.account.pace.mistakes.Wait(ctx); err != nil {
			return err
		}
	}
	return p.mistakes.Wait(ctx)
}

// free reports whether a request costs nothing of a client's pace: it gives up what another one has paid for, or makes
// the connection follow more topics than it ever has. Called by the reader.
func (s *session) free(req wire.Request) bool {
	switch req.Op {
	case wire.OpUnsubscribe:
		return true
	case wire.OpSubscribe:
		s.mu.Lock()
		n := len(s.subs) + 1
		s.mu.Unlock()
		if n > s.most && n <= s.b.cfg.MaxSubscriptions {
			s.most = n
			return true
		}
	}
	return false
}

// pings holds back a client that sends many pings, or pongs: it is not read from meanwhile. To cut it off at once would cost
// more, since it would come again; but what it sent before it left would keep its connection for as long as that is read.
type pings struct {
	b       *Broadcaster
	limiter *rate.Limiter
	slow    bool
	waited  int
	cut     func()
}

func (b *Broadcaster) newPings(cut func()) *pings {
	return &pings{b: b, limiter: rate.NewLimiter(pingRate, pingBurst), cut: sync.OnceFunc(cut)}
}

// wait waits until one more may be answered. Called by the connection's reader. An error means that ctx has ended.
func (p *pings) wait(ctx context.Context) error {
	if p.limiter.Allow() {
		p.slow = false
		return nil
	}
	if !p.slow {
		p.slow = true
		p.b.hit(limitPings)
	}
	if p.waited++; p.waited == maxPings {
		p.cut()
	}
	return p.limiter.Wait(ctx)
}

// startReplay puts a subscription in line for a page of a replay, and begins it if there is a place: one client with many
// subscriptions that are behind takes Config.MaxReplays places at most. Called with the session's mu held.
func (s *session) startReplay(sub *subscription) {
	if i := slices.Index(s.holding, sub); i >= 0 && sub.window != nil { // it goes on with the place that it has
		s.holding = slices.Delete(s.holding, i, i+1)
		s.turn(sub)
		return
	}
	if len(s.line) >= s.b.cfg.MaxSubscriptions { // some have ended, or begun anew
		s.line = slices.DeleteFunc(s.line, func(q queued) bool { return q.sub.life != q.life })
	}
	s.line = append(s.line, queued{sub, sub.life})
	if s.advance(); len(s.line) > 0 {
		s.b.hit(limitReplays)
	}
}

// queued is a subscription that waits for its turn to replay.
type queued struct {
	sub  *subscription
	life uint64
}

// advance gives free places to those in line. A place is taken while a page is read, and for as long as the client has not
// taken what it brought: so one that reads nothing holds a few pages, however many subscriptions it has. Called with the
// session's mu held, whenever a place may have become free.
func (s *session) advance() {
	s.holding = slices.DeleteFunc(s.holding, func(sub *subscription) bool { return !sub.holds() })
	for len(s.line) > 0 && s.replays+len(s.holding) < s.b.cfg.MaxReplays {
		next := s.line[0]
		s.line[0] = queued{}
		if s.line = s.line[1:]; len(s.line) == 0 {
			s.line = nil
		}
		if next.sub.life == next.life && !s.closed {
			s.turn(next.sub)
		}
	}
}

// turn has a subscription read, in the place that it was given. Called with the session's mu held.
func (s *session) turn(sub *subscription) {
	if sub.window == nil {
		sub.began = time.Now()
	}
	if sub.grant(&sub.t.log) {
		s.replays++
		s.b.replay(sub)
		return
	}
	s.holding = append(s.holding, sub)
	s.wakeLocked(sub)
}

// replayEnded gives the place on: to what was read, until it is written, or to the next in line. Called with the session's mu
// held, once for each replay begun, before the flusher can take what it brought.
func (s *session) replayEnded(sub *subscription) {
	s.replays--
	if sub.holds() && !slices.Contains(s.holding, sub) {
		s.holding = append(s.holding, sub)
	}
	s.advance()
}

// tooMany is the refusal of a subscription beyond Config.MaxSubscriptions.
func (b *Broadcaster) tooMany() error {
	b.hit(limitSubscriptions)
	return &wire.Error{Code: wire.CodeTooMany, Message: fmt.Sprintf("a connection may have %d subscriptions", b.cfg.MaxSubscriptions)}
}

// mayRenew reports whether the client may bring one more token now. Called by the session's reader.
func (s *session) mayRenew() bool {
	if s.renewed == nil {
		s.renewed = rate.NewLimiter(rate.Every(renewEvery), renewBurst)
	}
	if s.renewed.Allow() {
		return true
	}
	s.b.hit(limitRenewals)
	return false
}
