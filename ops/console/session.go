package console

import (
	"bufio"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/commitcast/commitcast/ops"
)

const (
	// sessionFor is how long a session lasts: a shift. sessionIdle is how long one lasts that nobody uses; an open page does.
	sessionFor, sessionIdle = 12 * time.Hour, time.Hour
	// maxSessions bounds the sessions; the one that is idle for longest makes room.
	maxSessions = 1000
	// proposalFor is how long an operator may think about a proposal. maxProposals bounds those of a session.
	proposalFor, maxProposals = 10 * time.Minute, 32
)

// session is an operator who has logged in.
type session struct {
	who  string
	csrf string // only pages of this origin can read it

	mu        sync.Mutex
	began     time.Time
	used      time.Time
	ended     bool
	proposals map[string]*proposed
	conns     map[net.Conn]struct{} // WebSockets, which end with the session
}

type proposed struct {
	*ops.Proposal
	at time.Time
}

// sessions are kept in memory: who restarts the console logs in again.
type sessions struct {
	mu  sync.Mutex
	all map[[32]byte]*session // by the digest of the cookie
	now func() time.Time
}

func newSessions() *sessions { return &sessions{all: make(map[[32]byte]*session), now: time.Now} }

// begin makes a session, and returns the cookie's value.
func (s *sessions) begin(who string) (cookie string, made *session) {
	now := s.now()
	cookie = rand.Text()
	made = &session{who: who, csrf: rand.Text(), began: now, used: now, proposals: make(map[string]*proposed), conns: make(map[net.Conn]struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep(now)
	if len(s.all) >= maxSessions {
		var oldest [32]byte
		var since time.Time
		for key, v := range s.all {
			if used := v.lastUsed(); since.IsZero() || used.Before(since) {
				oldest, since = key, used
			}
		}
		s.all[oldest].end()
		delete(s.all, oldest)
	}
	s.all[sha256.Sum256([]byte(cookie))] = made
	return cookie, made
}

// find is the session of a cookie; nil if there is none, or it is over.
func (s *sessions) find(cookie string) *session {
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.all[sha256.Sum256([]byte(cookie))]
	if v == nil || v.over(now) {
		return nil
	}
	v.mu.Lock()
	v.used = now
	v.mu.Unlock()
	return v
}

// finish ends a session.
func (s *sessions) finish(cookie string) {
	key := sha256.Sum256([]byte(cookie))
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.all[key]; v != nil {
		v.end()
		delete(s.all, key)
	}
}

// sweep ends sessions that are over. mu is held.
func (s *sessions) sweep(now time.Time) {
	for key, v := range s.all {
		if v.over(now) {
			v.end()
			delete(s.all, key)
		}
	}
}

// tidy is sweep, for a loop.
func (s *sessions) tidy() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep(s.now())
}

// close ends all.
func (s *sessions) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, v := range s.all {
		v.end()
		delete(s.all, key)
	}
}

func (s *session) lastUsed() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

func (s *session) over(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended || now.Sub(s.began) > sessionFor || now.Sub(s.used) > sessionIdle
}

// end closes what the session has open.
func (s *session) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for c := range s.conns {
		c.Close()
	}
	clear(s.conns)
}

// meant reports whether a request brings the second secret.
func (s *session) meant(r *http.Request) bool {
	return subtle.ConstantTimeCompare([]byte(r.Header.Get(csrfHeader)), []byte(s.csrf)) == 1
}

// keep remembers a proposal until it is carried out, and returns its name.
func (s *session) keep(p *ops.Proposal, now time.Time) (id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	oldest := ""
	for id, k := range s.proposals {
		if now.Sub(k.at) > proposalFor {
			delete(s.proposals, id)
		} else if oldest == "" || k.at.Before(s.proposals[oldest].at) {
			oldest = id
		}
	}
	if len(s.proposals) >= maxProposals {
		delete(s.proposals, oldest)
	}
	id = rand.Text()
	s.proposals[id] = &proposed{p, now}
	return id
}

// take gives a proposal out, once; nil if there is none.
func (s *session) take(id string, now time.Time) *ops.Proposal {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.proposals[id]
	delete(s.proposals, id)
	if k == nil || now.Sub(k.at) > proposalFor {
		return nil
	}
	return k.Proposal
}

// held ties a connection that is taken over from a request to a session: it ends with it.
type held struct {
	http.ResponseWriter
	of *session
}

// Hijack implements http.Hijacker.
func (h held) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	h.of.mu.Lock()
	defer h.of.mu.Unlock()
	if h.of.ended {
		c.Close()
		return nil, nil, net.ErrClosed
	}
	h.of.conns[c] = struct{}{}
	return &heldConn{c, h.of}, rw, nil
}

// heldConn forgets itself. It shows the connection below it, whose options are set.
type heldConn struct {
	net.Conn
	of *session
}

// NetConn is the connection itself.
func (c *heldConn) NetConn() net.Conn { return c.Conn }

func (c *heldConn) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c.Conn)
	c.of.mu.Unlock()
	return c.Conn.Close()
}
