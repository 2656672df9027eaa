package broadcaster

import (
	"context"
	"fmt"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"github.com/commitcast/commitcast/wire"
)

// Handler serves protocol commitcast.v1: the WebSocket at GET /v1/ws, and one topic as Server-Sent Events at
// GET /v1/topics/{topic}/events.
func (b *Broadcaster) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/ws", b.serveWS)
	mux.HandleFunc("GET /v1/topics/{topic}/events", b.serveEvents)
	mux.HandleFunc("OPTIONS /v1/topics/{topic}/events", b.allowEvents)
	return b.door(mux)
}

func (b *Broadcaster) serveWS(w http.ResponseWriter, r *http.Request) {
	if _, err := b.checkOrigin(r, true); err != nil {
		b.shut(w, "origin", http.StatusForbidden, wire.CodeForbidden, err.Error())
		return
	}
	s := newSession(b, nil, b.client(r))
	if !b.admit(w, s) {
		return
	}
	who, ok := b.identify(w, r)
	if !ok {
		return
	}
	if who == nil && b.cfg.Verifier != nil && !b.seat(w, r, s) {
		return
	}
	sock, err := accept(w, r, b.newPings(s.flooded))
	if err != nil {
		b.free(s)
		b.log.Debug("handshake refused", "error", err)
		return
	}
	s.sink = sock
	if limit, why := b.addSession(s); why != "" {
		b.free(s)
		if limit == "" {
			sock.close(wire.CloseShutdown)
		} else {
			sock.close(overloaded(why).code)
		}
		return
	}
	// A goroutine of its own: that of the handler would hold on to the request, what net/http has for it, and a deep stack
	// for as long as the client stays.
	if !b.spawn(func(ctx context.Context) { // ends with the connection
		defer func() { // as net/http does for its handlers: what one client sends must not end the process
			if p := recover(); p != nil {
				b.log.Error("serving a client panicked", "panic", p, "stack", string(debug.Stack()))
			}
		}()
		s.serve(ctx, sock, who)
	}) {
		s.end()
	}
}

// refuse answers 503 with the time after which to come back.
func refuse(w http.ResponseWriter, why string, in time.Duration) {
	w.Header().Set("Retry-After", fmt.Sprint(max(1, int(in/time.Second))))
	problem(w, http.StatusServiceUnavailable, wire.CodeUnavailable, why)
}

// addSession takes a session in, or says why not: for a limit, or without one because the node is shutting down.
func (b *Broadcaster) addSession(s *session) (limit, why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if limit, why = b.full(s); why != "" {
		b.hit(limit)
		return limit, why
	}
	if s.from.IsValid() {
		b.addressOf(s.from).connections++
	}
	now := time.Now()
	s.came = now
	s.nextBeat = now.Add(jitter(b.cfg.Heartbeat)) // spread, after a mass reconnect
	if b.cfg.Verifier != nil {
		s.until, s.overdue = now.Add(b.cfg.AuthTimeout), wire.CloseAuthTimeout
	}
	b.sessions[s] = struct{}{}
	b.metrics.connections.Inc()
	return "", ""
}

// removeSession forgets a closed session and its subscriptions.
func (b *Broadcaster) removeSession(s *session) {
	b.mu.Lock()
	delete(b.sessions, s)
	b.uncount(s)
	b.mu.Unlock()
	b.metrics.connections.Dec()
	s.mu.Lock()
	subs := make([]*subscription, 0, len(s.subs))
	for _, sub := range s.subs {
		sub.end()
		subs = append(subs, sub)
	}
	clear(s.subs)
	s.mu.Unlock()
	for _, sub := range subs {
		b.detach(sub)
	}
}

// drain tells every client to come back at once, and closes it: evenly over Config.Drain, so that the other nodes meet
// a stream of clients and not a wave.
func (b *Broadcaster) drain() {
	b.mu.Lock()
	b.draining = true
	for len(b.atDoor) > 0 {
		b.sendOff(0, false)
	}
	b.mu.Unlock()
	b.sendAway(func(*session) bool { return true })
}

// sendAway tells the clients that were chosen when to come back, and closes them; it returns how many. choose is called with
// mu held.
func (b *Broadcaster) sendAway(choose func(*session) bool) int {
	b.mu.RLock()
	sessions := make([]*session, 0, len(b.sessions))
	for s := range b.sessions {
		if choose(s) {
			sessions = append(sessions, s)
		}
	}
	b.mu.RUnlock()
	if len(sessions) == 0 {
		return 0
	}
	b.log.Info("closing clients", "clients", len(sessions), "over", b.cfg.Drain)
	pace := b.cfg.Drain / time.Duration(len(sessions))
	ticker := time.NewTicker(max(pace, time.Microsecond))
	defer ticker.Stop()
	var closing sync.WaitGroup
	for _, s := range sessions {
		<-ticker.C
		in := jitter(min(b.cfg.Drain, reconnectWithin)).Milliseconds()
		s.send(func(p []byte) []byte { return wire.AppendReconnect(p, in) })
		closing.Add(1)
		go func() { // owned by sendAway
			defer closing.Done()
			s.settle(time.Second)
			s.goodbye(wire.CloseShutdown)
		}()
	}
	closing.Wait()
	return len(sessions)
}

// settle waits until what the session has to send is written, at most for the given time.
func (s *session) settle(most time.Duration) {
	deadline := time.Now().Add(most)
	for time.Now().Before(deadline) {
		s.mu.Lock()
		clean := s.closed || !s.flushing
		s.mu.Unlock()
		if clean {
			return
		}
		time.Sleep(time.Millisecond)
	}
}
