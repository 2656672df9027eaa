package broadcaster

import (
	"sync/atomic"

	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

// The splice makes replay and live one gapless sequence for each subscriber. It is two machines: a feed for each topic
// and a reader for each subscription. They decide; they wait for nothing, start nothing and read no clock, so that
// schedule_test.go drives these very machines through every order of events. The other files hold the locks, do what
// the machines ask for, and tell them what came of it.

// feed is the topic's side: what the log holds, and what is known to be missing from it. log and want may be read by
// anyone; the rest is guarded by the topic's mu.
type feed struct {
	log       sharedLog
	want      atomic.Int64   // the newest offset known to exist in this history; written under mu
	channel   stream.Channel // of the epoch that the topic is in
	confirmed bool           // the channel is live: every run published from now on arrives
	looked    bool           // the head was read since the channel was confirmed, or was not any more
	healing   bool           // from startHeal until hole has no more to read
	turn      uint64         // counts what makes looked false: a look that began before says nothing about after
	history   uint64         // counts the histories that were left: what was read in one is void in the next
}

// enter begins another epoch: a new log on a new channel.
func (f *feed) enter(epoch string) {
	f.channel.Epoch = epoch
	f.begin("", 0)
	f.turned(false)
}

// rewind begins the log anew at head: the database went back within the epoch.
func (f *feed) rewind(head int64) {
	f.begin(f.channel.Epoch, head)
	f.turned(f.confirmed)
}

func (f *feed) begin(epoch string, head int64) {
	f.history++
	f.want.Store(head)
	f.log.reset(epoch, head+1)
}

// confirm says that a channel is live. True if it is this feed's: what was published while nobody listened is to be
// looked for, and those who waited may join.
func (f *feed) confirm(ch stream.Channel) bool {
	if f.channel != ch {
		return false
	}
	f.turned(true)
	return true
}

// down says that runs may be missed from here on.
func (f *feed) down() {
	f.turned(false)
}

func (f *feed) turned(confirmed bool) {
	f.confirmed, f.looked = confirmed, false
	f.turn++
}

// hear takes a run from the stream. grew: subscribers have something to read. gap: what lies before it is to be healed.
func (f *feed) hear(r stream.Run) (grew, gap bool) {
	if r.Epoch != f.channel.Epoch {
		return false, false
	}
	f.raise(r.Last())
	f.log.start(r.Epoch, r.First) // the first one heard is where a log begins; readers find the rest themselves
	return f.log.append(r)
}

// raise notes that an offset exists.
func (f *feed) raise(head int64) { f.want.Store(max(f.want.Load(), head)) }

// lags reports whether the log lacks events that are known to exist.
func (f *feed) lags() bool {
	epoch, last := f.log.position()
	return epoch == f.channel.Epoch && last < f.want.Load()
}

// unsure reports whether the head must be read though nothing was sequenced: it was not since the channel came or went,
// or the log still lags, and somebody follows it.
func (f *feed) unsure(followed bool) bool { return !f.looked || followed && f.lags() }

// look is taken before the head is read: what comes later is no evidence about it.
type look struct {
	turn uint64
	want int64
}

func (f *feed) look() look { return look{f.turn, f.want.Load()} }

// saw says what the head is. back: it lies behind what was known to exist before the look; the log has begun anew, and
// every cursor must be checked.
func (f *feed) saw(l look, epoch string, head int64) (back bool) {
	if epoch != f.channel.Epoch || l.turn != f.turn {
		return false // look again
	}
	if head < l.want {
		f.rewind(head)
		return true
	}
	f.looked = true
	f.raise(head)
	return false
}

// hole is a run that the log lacks.
type hole struct {
	place
	channel stream.Channel
	after   int64
}

// startHeal reports whether healing is to begin. Then hole and heal follow in turn, until hole has nothing to read.
func (f *feed) startHeal() bool {
	if f.healing || !f.lags() {
		return false
	}
	f.healing = true
	return true
}

// hole is what to read next; false ends the healing. moved: subscribers have something to do.
func (f *feed) hole() (h hole, ok, moved bool) {
	_, last := f.log.position()
	want := f.want.Load()
	switch {
	case !f.lags():
	case want-last > int64(f.log.maxEvents):
		f.log.skip(f.channel.Epoch, want+1) // more than the log can hold: each replays from its own cursor
		moved = true
	default:
		return hole{place{f, f.history}, f.channel, last}, true, false
	}
	f.healing = false
	return hole{}, false, moved
}

// heal takes what was read for a hole. again: ask hole for the next; otherwise the next look at the head tries again.
func (f *feed) heal(h hole, run stream.Run, err error) (moved, again bool) {
	switch {
	case err != nil:
		f.healing = false
		return false, false
	case h.history != f.history:
		return false, true
	case len(run.Frames) == 0:
		f.log.skip(f.channel.Epoch, f.want.Load()+1) // trimmed: subscribers find out one by one
		return true, true
	}
	f.raise(run.Last())
	moved, gap := f.log.append(run)
	if gap { // not what was asked for
		f.healing = false
	}
	return moved, !gap
}

// admission lets a subscription join: whatever is published after a head is read now arrives, or is polled for.
type admission struct {
	history uint64
}

// admit reports whether a subscription may join. polled: the channel is not to be waited for, since the journal is
// polled instead.
func (f *feed) admit(polled bool) (admission, bool) {
	return admission{f.history}, f.confirmed || polled
}

type subState uint8

const (
	subJoining subState = iota // waits for its channel to be live and its cursor to be checked
	subLive                    // follows the log
	subEnded                   // unsubscribed or reset
)

// reader is the subscriber's side: a cursor, and how it goes on from there. Guarded by the session's mu.
type reader struct {
	fence
	state    subState
	answered bool        // "subscribed" was sent: a further joining checks the cursor again
	asked    wire.Cursor // the cursor that the client gave; zero: from the head
	epoch    string      // the epoch that it has joined; that of the log it may read
	history  uint64      // the history of the feed that it has joined; that of what it may replay
	cursor   int64       // the last offset given to the socket
	origin   string      // the epoch of the cursor as the client has it: that of the event itself, or of what it asked

	chunk     [][]byte // what a replay brought: the offsets from cursor+1 on
	replaying bool     // one is under way, or waits for its turn

	ahead int64 // an operator wants the reader to have what is stored up to here, whatever the log has; 0, or passed: as the log goes

	conflate bool    // the client wants no more than it needs when it is behind
	window   *window // what it is sent then
	leftOut  int64   // how many events it was not shown so far

	life uint64 // counts the ends of being live: a replay asked for in an earlier one is void
}

// question is the cursor to be checked; zero if there is none yet. It is the one with which the client itself would come
// back. The epoch that was joined last says less: of one that has been lost again nothing need have been delivered.
func (r *reader) question() wire.Cursor {
	if r.answered {
		return wire.Cursor{Epoch: r.origin, Offset: r.cursor}
	}
	return r.asked
}

// joined is what became of a joining.
type joined uint8

const (
	joinNone     joined = iota // it had ended
	joinAgain                  // the history changed since it was admitted
	joinReset                  // it has ended: the cursor is not valid
	joinRevoked                // it has ended: its subject may not read the topic any more
	joinAnswered               // it is live for the first time: the client is to be told
	joinResumed                // it is live again
)

// join decides about an admitted reader, by a position that was read after the admission.
func (r *reader) join(f *feed, a admission, epoch string, p wire.Position) joined {
	switch {
	case r.state != subJoining:
		return joinNone
	case epoch != f.channel.Epoch || a.history != f.history:
		return joinAgain
	}
	f.log.start(epoch, p.Head+1)
	f.raise(p.Head)
	if !r.may(p) {
		r.end()
		return joinRevoked
	}
	if p.Reason != "" {
		r.end()
		return joinReset
	}
	r.state, r.epoch, r.history = subLive, epoch, a.history
	if r.answered {
		return joinResumed
	}
	r.answered = true
	r.cursor, r.origin = p.Head, epoch
	if !r.asked.IsZero() {
		r.cursor, r.origin = r.asked.Offset, r.asked.Epoch
	}
	return joinAnswered
}

// unasked says that the cursor could not be checked. True if it is to be tried again: the client has what it has, and
// waits for no answer. Otherwise the reader has ended.
func (r *reader) unasked() bool {
	if r.state == subJoining && r.answered {
		return true
	}
	r.end()
	return false
}

// recheck takes a live reader back to joining, for its cursor to be checked.
func (r *reader) recheck() bool {
	if r.state != subLive {
		return false
	}
	r.state = subJoining
	r.leave()
	return true
}

func (r *reader) end() {
	r.state = subEnded
	r.leave()
}

func (r *reader) leave() {
	if r.window != nil {
		r.window.drop()
	}
	r.chunk, r.window, r.replaying = nil, nil, false
	r.ahead = 0
	r.life++
}

// next is what a reader needs beside what it has collected.
type next uint8

const (
	nextNothing next = iota
	nextReplay       // the log begins after the cursor: the run that follows the cursor is to be read, for splice
	nextCheck        // the same, and the log may have missed a fence: the reader joins again
	nextEnd          // it has ended, at a fence
)

// collect appends what follows the cursor to a message. more: the budget ended it.
func (r *reader) collect(p []byte, log *sharedLog, budget int) (_ []byte, more bool, then next) {
	if r.state != subLive {
		return p, false, nextNothing
	}
	if r.at > 0 && (r.replaying || r.holds()) {
		r.end()
		return p, false, nextEnd
	}
	if r.conflate {
		if p, more, then, ok := r.conflated(p, log, budget); ok {
			return p, more, then
		}
	}
	start := len(p)
	var last []byte
	defer func() { r.passed(last) }()
	for len(r.chunk) > 0 {
		f := r.chunk[0]
		if wire.IsFence(f) {
			if r.meets(f) {
				r.end()
				return p, false, nextEnd
			}
			f = shown(f)
		}
		if len(p) > start && len(p)-start+len(f) > budget {
			return p, true, nextNothing
		}
		p = appendLine(p, f)
		last = f
		r.cursor++
		r.chunk = r.chunk[1:]
	}
	r.chunk = nil
	p, cursor, newest, state := log.read(p, r.epoch, r.cursor, r.limit(), budget-(len(p)-start))
	if r.cursor = cursor; newest != nil {
		last = newest
	}
	switch {
	case r.cursor+1 >= r.limit() || state == readBehind && r.at > 0:
		r.end()
		then = nextEnd
	case state == readBehind && !r.replaying:
		then = r.behind(log)
	case state == readCurrent && r.goesAhead(r.cursor) && !r.replaying:
		then = r.behind(log)
	}
	return p, state == readMore, then
}

// behind says how a reader that is behind the log goes on.
func (r *reader) behind(log *sharedLog) next {
	if r.asksAgain(log) {
		r.recheck()
		return nextCheck
	}
	r.replaying = true
	return nextReplay
}

// asksAgain reports whether the log may have passed a fence that the reader does not know of, while it was behind.
func (r *reader) asksAgain(log *sharedLog) bool { return r.subject != "" && r.cleared < log.since() }

// passed takes note of the epoch of the event that the cursor is now at.
func (r *reader) passed(frame []byte) {
	if epoch, _, ok := eventCursor(frame); ok && string(epoch) != r.origin { // a string is made only when it changes
		r.origin = string(epoch)
	}
}

// replayed is what a replay leads to.
type replayed uint8

const (
	replayVoid  replayed = iota // nobody waits for it any more
	replayTaken                 // there is something to collect
	replayRetry                 // try again later
	replayCheck                 // it is not there: the cursor is to be checked, the reader joins again
)

// splice takes what a replay brought that was asked for in a life.
func (r *reader) splice(life uint64, run stream.Run, err error) replayed {
	if life != r.life {
		return replayVoid
	}
	r.replaying = false
	switch {
	case err != nil:
		return replayRetry
	case len(run.Frames) == 0:
		r.recheck()
		return replayCheck
	case run.First != r.position()+1 || run.Epoch != r.epoch:
		return replayRetry // never spliced with a hole
	}
	if r.window != nil {
		r.fold(run)
	} else {
		r.chunk = run.Frames
	}
	return replayTaken
}
