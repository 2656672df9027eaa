package broadcaster

import (
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"
)

const (
	// maxStrikes is how many connections of an address may have come to nothing, beyond as many as it has clients that are
	// known, before further ones are held up. One is forgotten every strikeLife: a page that is reloaded over a bad network,
	// or a client whose token has expired, causes a few.
	maxStrikes, strikeLife = 20, 2 * time.Second
	// strikesBeyond is how many more than that are remembered: so an address is held up for 20 s after the last, whatever it did.
	strikesBeyond = 10
	// crowdLife is for how long clients that have left count as known: all of an office may be cut off together.
	crowdLife = 5 * time.Minute
	// strikeHold is how long a request of such an address waits for its refusal, at least, and half of what it waits at most.
	// To refuse it at once would have it come again at once; while it waits, it costs a socket and a timer.
	strikeHold = 12 * time.Second
	// maxHeld is how many of them wait at once; more are refused at once.
	maxHeld = 10_000
)

// address is what is remembered of an address, of IPv6 of a /64. Guarded by Broadcaster.mu.
type address struct {
	connections int
	known       int       // of them, clients that have said who they are
	crowd       int       // the most that were known, in the time before crowdAt
	crowdAt     time.Time // when one of them left
	strikes     float64   // connections that came to nothing, as of at
	at          time.Time
}

// left is how many strikes are not forgotten yet.
func (a *address) left(now time.Time) float64 {
	return max(0, a.strikes-now.Sub(a.at).Seconds()/strikeLife.Seconds())
}

// may is how many strikes an address may have.
func (a *address) may(now time.Time) float64 {
	n := a.known
	if now.Sub(a.crowdAt) < crowdLife {
		n = max(n, a.crowd)
	}
	return float64(maxStrikes + n)
}

// leaves takes note that a client that was known has left.
func (a *address) leaves(now time.Time) {
	if now.Sub(a.crowdAt) >= crowdLife {
		a.crowd = 0
	}
	a.crowd, a.crowdAt = max(a.crowd, a.known), now
	a.known--
}

// addressOf is the address of a client. Called with mu held.
func (b *Broadcaster) addressOf(from netip.Prefix) *address {
	a := b.addresses[from]
	if a == nil {
		a = &address{}
		b.addresses[from] = a
	}
	return a
}

// strike counts a connection that came to nothing. Called with mu held.
func (b *Broadcaster) strike(from netip.Prefix) {
	if from.IsValid() && b.cfg.Verifier != nil {
		b.addressOf(from).strike(time.Now())
	}
}

func (a *address) strike(now time.Time) {
	a.strikes, a.at = min(a.left(now)+1, a.may(now)+strikesBeyond), now
}

// struck reports whether too many connections of an address have come to nothing.
func (b *Broadcaster) struck(from netip.Prefix) bool {
	if !from.IsValid() {
		return false
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	a := b.addresses[from]
	now := time.Now()
	return a != nil && a.left(now) > a.may(now)
}

// sweepAddresses forgets those that there is nothing to remember of.
func (b *Broadcaster) sweepAddresses(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for from, a := range b.addresses {
		if a.connections == 0 && a.left(now) == 0 && now.Sub(a.crowdAt) >= crowdLife {
			delete(b.addresses, from)
		}
	}
}

// holdUp refuses a request for a limit, after a while, or at once where it cannot wait.
func (b *Broadcaster) holdUp(w http.ResponseWriter, limit string) {
	b.mu.RLock()
	full := b.draining || len(b.heldUp) >= maxHeld
	b.mu.RUnlock()
	if !full {
		if conn, _, err := http.NewResponseController(w).Hijack(); err == nil { // not in HTTP/2
			b.metrics.turnedAway.Inc()
			b.hit(limit)
			b.mu.Lock()
			wait := strikeHold + jitter(strikeHold)
			if b.draining { // nobody would let it go
				wait = 0
			}
			b.heldUp[conn] = time.AfterFunc(wait, func() { b.letGo(conn) })
			b.mu.Unlock()
			return
		}
	}
	b.turnAway(w, limit, "too many connections come to nothing")
}

// letGo refuses a request that was held up.
func (b *Broadcaster) letGo(conn net.Conn) {
	b.mu.Lock()
	delete(b.heldUp, conn)
	b.mu.Unlock()
	conn.SetDeadline(time.Now().Add(time.Second))
	io.WriteString(conn, "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 30\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
	conn.Close()
}

// letAllGo refuses all that are held up, at shutdown.
func (b *Broadcaster) letAllGo() {
	b.mu.Lock()
	var list []net.Conn
	for conn, timer := range b.heldUp {
		if timer.Stop() {
			list = append(list, conn)
		}
	}
	b.mu.Unlock()
	for _, conn := range list {
		b.letGo(conn)
	}
}
