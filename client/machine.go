package client

import (
	"slices"
	"strconv"
	"strings"

	"github.com/commitcast/commitcast/wire"
)

// machine is one topic as a state machine: what to do with a snapshot, a frame, a lost connection. It does no I/O and has
// no clock and no randomness; whoever drives it gives it ports. The rules are those of docs/protocol.md, and each has a
// mutation in mutants_test.go that shows what breaks without it. Not safe for concurrent use.
type machine[S any] struct {
	ports ports[S]
	phase phase
	held  *Held[S] // replaced, never changed: whoever has a state has the token that belongs to it
	head  int64    // the newest offset known to exist

	together []*event // have arrived, and are to be applied with what comes next: others before them were left out

	connected bool
	then      step  // what phaseWaiting waits for
	asked     int64 // id of the subscribe that is not answered
	leaving   int64 // id of the unsubscribe that is not answered: frames before its answer belong to the old subscription; 0: none
	stuck     int64 // the offset at the last heartbeat whose head was another; -1: none
	strikes   int   // healings since the last sign of progress
	failures  int   // snapshots that could not be read, in a row
}

// ports are what a machine asks of the world.
type ports[S any] struct {
	// subscribe and unsubscribe send a request and return its id, above zero.
	subscribe   func(after wire.Cursor) int64
	unsubscribe func() int64
	// wait asks for due after ms milliseconds and, from the second attempt on, a random time that grows with attempt.
	wait func(ms int64, attempt int)
	// apply is the reducer. If it fails, the snapshot is read again.
	apply func(S, *event) (S, error)
	// changed tells that held was replaced: by a snapshot (nil), or by what an event made of it. applied is false for an
	// event that the state held already, or that is to be skipped. Of several that belong together, each is told of when held
	// is what all of them made of it.
	changed func(e *event, applied bool)
	// rereadSkipped says that a skipped event makes the snapshot worth reading again.
	rereadSkipped bool
}

// event is an event frame.
type event struct {
	wire.Event
	skip      bool
	conflated int64 // how many before it were left out
	more      bool  // it belongs together with the next one
}

type phase int

const (
	phaseIdle    phase = iota // there is a state, but no connection
	phaseReading              // somebody has to read a snapshot, and to call snapshot or unread
	phaseWaiting              // until it is time to read or to subscribe again: due
	phaseAsked                // subscribe was sent
	phaseLive                 // events arrive
	phaseFailed               // subscribe was refused for good; the next connection tries again
	phaseClosed
)

// step is what comes next after a wait.
type step int

const (
	stepRead step = iota
	stepSubscribe
)

// resubscribes is how many times a topic that makes no progress subscribes again, before it reads the snapshot again.
const resubscribes = 2

// start begins, from a state that was kept, if there is one.
func (m *machine[S]) start(kept *Held[S]) {
	m.stuck = -1
	m.held = kept
	if kept != nil {
		m.subscribe()
	} else {
		m.phase = phaseReading
	}
}

func (m *machine[S]) close() {
	m.leave()
	m.phase = phaseClosed
}

// current reports whether everything that is known to exist is in the state.
func (m *machine[S]) current() bool {
	return m.phase == phaseLive && m.held.Token.Cursor.Offset >= m.head
}

// snapshot is the answer to phaseReading.
func (m *machine[S]) snapshot(held *Held[S]) {
	if m.phase != phaseReading {
		return
	}
	m.held = held
	m.failures = 0
	m.phase = phaseIdle
	m.ports.changed(nil, true)
	m.subscribe()
}

// unread says that the snapshot could not be read; it is not to be tried again before ms milliseconds.
func (m *machine[S]) unread(ms int64) {
	if m.phase != phaseReading {
		return
	}
	m.failures++
	m.wait(stepRead, ms, m.failures+1)
}

func (m *machine[S]) up() {
	m.connected = true
	if m.phase == phaseFailed {
		m.phase = phaseIdle
	}
	m.subscribe()
}

func (m *machine[S]) down() {
	m.connected = false
	m.leaving = 0
	if m.phase == phaseAsked || m.phase == phaseLive || m.phase == phaseWaiting && m.then == stepSubscribe {
		m.phase = phaseIdle
	}
}

// lagged says that frames were thrown away, since nobody took them. It is nobody's fault, and no sign of trouble.
func (m *machine[S]) lagged() {
	if m.phase == phaseAsked || m.phase == phaseLive {
		m.leave()
		m.resume()
	}
}

// due ends a wait.
func (m *machine[S]) due() {
	switch {
	case m.phase != phaseWaiting:
	case m.then == stepRead:
		m.phase = phaseReading
	default:
		m.resume()
	}
}

func (m *machine[S]) subscribed(id int64, epoch string, head int64) {
	if m.phase != phaseAsked || id != m.asked || m.void(epoch) {
		return
	}
	m.phase = phaseLive
	m.head = head
	m.leaving = 0
	m.stuck = -1
}

func (m *machine[S]) event(f *event) {
	if m.phase != phaseLive { // of an old subscription, perhaps
		return
	}
	at := m.held.Token
	after := f.Offset - 1 - f.conflated
	if after == at.Cursor.Offset {
		m.together = nil // the server has begun again from here
	}
	reached := m.reached()
	if f.Offset <= reached.Offset {
		return
	}
	if after != reached.Offset || foreign(f.Epoch, reached.Epoch) {
		m.again(stepSubscribe, 0)
		return
	}
	if m.void(f.Epoch) {
		return
	}
	m.together = append(m.together, f)
	if f.more {
		return
	}
	next := Held[S]{State: m.held.State, Token: Token{wire.Cursor{Epoch: f.Epoch, Offset: f.Offset}, at.Pending, at.Epoch}}
	events := m.together
	m.together = nil
	applied := make([]bool, len(events))
	for n, e := range events {
		pending := next.Token.Pending
		if i := slices.Index(pending, e.ID); i >= 0 {
			next.Token.Pending = slices.Concat(pending[:i], pending[i+1:])
		} else if e.skip {
			if m.ports.rereadSkipped {
				m.again(stepRead, 0)
				return
			}
		} else {
			var err error
			if next.State, err = m.ports.apply(next.State, e); err != nil {
				m.again(stepRead, 0)
				return
			}
			applied[n] = true
		}
	}
	m.held = &next
	for n, e := range events {
		m.ports.changed(e, applied[n])
	}
}

// reached is the cursor of the last event that has arrived.
func (m *machine[S]) reached() wire.Cursor {
	if n := len(m.together); n > 0 {
		return wire.Cursor{Epoch: m.together[n-1].Epoch, Offset: m.together[n-1].Offset}
	}
	return m.held.Token.Cursor
}

func (m *machine[S]) reset(ms int64) {
	if m.phase != phaseAsked && m.phase != phaseLive || m.leaving != 0 {
		return
	}
	m.phase = phaseIdle // the server has ended the subscription
	m.again(stepRead, ms)
}

// heartbeat takes the head that a heartbeat has for the topic; -1: none.
func (m *machine[S]) heartbeat(epoch string, head int64) {
	if m.phase != phaseAsked && m.phase != phaseLive {
		return
	}
	live := m.phase == phaseLive
	if live && m.void(epoch) {
		return
	}
	offset := m.reached().Offset
	if live && head >= 0 {
		m.head = head
	}
	switch {
	case live && head == offset:
		m.stuck = -1
		m.strikes = 0
	case m.stuck == offset:
		m.again(stepSubscribe, 0) // two heartbeats, and not an event: something was lost, or the subscription was
	default:
		if m.stuck >= 0 {
			m.strikes = 0
		}
		m.stuck = offset
	}
}

func (m *machine[S]) unsubscribed(id int64) {
	if id == m.leaving {
		m.leaving = 0
	}
}

// refused says that a request was refused. It reports whether that ends the attempt.
func (m *machine[S]) refused(id int64, code string) (final bool) {
	if id == m.leaving {
		m.leaving = 0 // not_subscribed: a reset was on its way
		return false
	}
	if m.phase != phaseAsked || id != m.asked {
		return false
	}
	switch code {
	case wire.CodeUnavailable:
		m.phase = phaseIdle
		m.strikes++
		m.wait(stepSubscribe, 0, m.strikes+1)
	case wire.CodeAlreadySubscribed:
		m.again(stepSubscribe, 0)
	case wire.CodeBadCursor:
		m.phase = phaseIdle
		m.again(stepRead, 0)
	default:
		m.phase = phaseFailed
		return true
	}
	return false
}

// void: pending ids die with their epoch. Then the snapshot must be read again.
func (m *machine[S]) void(epoch string) bool {
	if at := m.held.Token; len(at.Pending) == 0 || epoch == at.Epoch {
		return false
	}
	m.again(stepRead, 0)
	return true
}

func (m *machine[S]) resume() {
	m.phase = phaseIdle
	m.subscribe()
}

func (m *machine[S]) subscribe() {
	if m.phase != phaseIdle || !m.connected || m.held == nil {
		return
	}
	m.phase = phaseAsked
	m.together = nil
	m.stuck = -1
	m.asked = m.ports.subscribe(m.held.Token.Cursor)
}

func (m *machine[S]) leave() {
	if m.connected && (m.phase == phaseAsked || m.phase == phaseLive) {
		m.leaving = m.ports.unsubscribe()
	}
}

// again heals: at once the first time, later with growing pauses, and by the snapshot if subscribing does not help.
func (m *machine[S]) again(then step, ms int64) {
	m.leave()
	m.strikes++
	attempt := m.strikes
	if attempt > resubscribes {
		then = stepRead
	}
	switch {
	case ms > 0 || attempt > 1:
		m.wait(then, ms, attempt)
	case then == stepRead:
		m.phase = phaseReading
	default:
		m.resume()
	}
}

func (m *machine[S]) wait(then step, ms int64, attempt int) {
	m.phase = phaseWaiting
	m.then = then
	m.ports.wait(ms, attempt)
}

// foreign reports whether an event sequenced in epoch cannot follow a cursor of epoch at: it is of an older history, or of
// another one with the same ordinal.
func foreign(epoch, at string) bool {
	a, b := ordinal(epoch), ordinal(at)
	return a < b || a == b && epoch != at
}

// ordinal is the number that a valid epoch begins with.
func ordinal(epoch string) int64 {
	digits, _, _ := strings.Cut(epoch, "-")
	n, _ := strconv.ParseInt(digits, 10, 64) // wire.ValidEpoch has looked at it
	return n
}
