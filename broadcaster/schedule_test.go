package broadcaster

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

var (
	schedules = flag.Uint64("schedules", 0, "how many schedules TestSpliceSchedules explores; 0: 200,000, as far as it gets in 5 s")
	first     = flag.Uint64("first", 1, "the seed of the first schedule")
	seed      = flag.Uint64("seed", 0, "the one schedule to run, with its trace")
)

// TestSpliceSchedules drives the feed and the readers of one topic through schedules: a database, a stream, a connection
// and clients around them do whatever they may do in any order, with reads that fail and messages that are lost, and
// after each step the rules are checked. Then the faults end; everything must come to rest, whole, and from there on a
// new event must reach everybody without any read.
//
//	go test ./broadcaster -run TestSpliceSchedules -schedules 5000000
//	go test ./broadcaster -run TestSpliceSchedules -seed 4711
func TestSpliceSchedules(t *testing.T) { explore(t, false) }

// TestAheadSchedules is TestSpliceSchedules with an operator who sends readers ahead of the log now and then.
func TestAheadSchedules(t *testing.T) { explore(t, true) }

func explore(t *testing.T, ahead bool) {
	if *seed != 0 {
		w := &world{tracing: true, ahead: ahead}
		w.run(*seed)
		t.Log("\n" + strings.Join(w.trace, "\n"))
		if w.broken != "" {
			t.Fatalf("seed %d: %s", *seed, w.broken)
		}
		return
	}
	var next, done, steps atomic.Uint64
	var mu sync.Mutex       // of broke and how
	var broke atomic.Uint64 // the lowest seed that broke something, so that one failure is told each time; 0: none
	var how string
	var wg sync.WaitGroup
	next.Store(*first - 1)
	last, until := *first-1+*schedules, time.Now().Add(time.Hour)
	if *schedules == 0 { // a busy machine, or the race detector, is no reason to wait
		last, until = 200_000, time.Now().Add(5*time.Second)
	}
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			w := &world{ahead: ahead}
			for n := next.Add(1); n <= last && broke.Load() == 0 && time.Now().Before(until); n = next.Add(1) {
				w.run(n)
				done.Add(1)
				steps.Add(uint64(w.now))
				if w.broken != "" {
					again := &world{tracing: true, ahead: ahead}
					again.run(n)
					text := fmt.Sprintf("seed %d: %s\nthe way there:\n%s", n, w.broken, strings.Join(again.trace, "\n"))
					mu.Lock()
					if b := broke.Load(); b == 0 || n < b {
						broke.Store(n)
						how = text
					}
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	if broke.Load() != 0 {
		t.Fatal(how)
	}
	t.Logf("%d schedules, %d steps", done.Load(), steps.Load())
}

// A feed that somebody follows is looked at until its log has what is known to exist. (What else heals it is so near that few
// schedules need this.)
func TestLaggingLogIsLookedAt(t *testing.T) {
	f := &feed{looked: true}
	f.channel.Epoch = "1-aaaa"
	f.log.start("1-aaaa", 4)
	f.raise(3)
	if f.unsure(true) {
		t.Error("a log that is whole is looked at")
	}
	if f.raise(5); !f.unsure(true) || f.unsure(false) {
		t.Error("a log that lags is not looked at, or one that nobody follows is")
	}
}

const (
	simOffsets = 64 // offsets of one schedule, at most
	simEpochs  = 8
	simLog     = 4   // events in the log
	simFrame   = 150 // bytes of a frame, about
	simKeys    = 3
	simSubs    = 3 // subscriptions at a time
	simRange   = 3 // events of one read
	simKept    = 6 * (simFrame + frameCost)
)

// A frame is one of the protocol, whose topic is the history in which the event was sequenced. Its key follows from history
// and offset.
var (
	frames     [simEpochs + 1][simEpochs + 8][simOffsets][]byte // by epoch, history and offset
	epochNames [simEpochs + 1]string
)

func init() {
	for e := range epochNames {
		epochNames[e] = fmt.Sprintf("%d-aaaa", e)
		for h := range frames[e] {
			for n := range frames[e][h] {
				event := wire.Event{Topic: string(rune('a' + h)), Epoch: epochNames[e], Offset: int64(n), Type: "a\"", Data: []byte("0")}
				if key := keyOf(byte(h), int64(n)); key >= 0 {
					event.Key = fmt.Sprintf("\\%d", key)
				}
				if frames[e][h][n], _ = wire.AppendEvent(nil, &event); n%7 == 6 {
					frames[e][h][n] = wire.AppendSkip(nil, event.Topic, event.Epoch, event.Offset, 0)
				}
			}
		}
	}
}

// keyOf is the number of an event's key; -1: it has none.
func keyOf(history byte, offset int64) int {
	if offset%4 == 3 || offset%7 == 6 {
		return -1
	}
	return int(offset+int64(history)) % simKeys
}

// key is that of the event at an offset as seen in an epoch. A fence has none.
func (w *world) key(e int, n int64) int {
	if w.changes[w.truth[e][n]][n].id > 0 {
		return -1
	}
	return keyOf(w.truth[e][n], n)
}

// state is what all events up to an offset make, as seen in an epoch: of each key, the offset of the latest.
func (w *world) state(e int, at int64) (state [simKeys]int64) {
	for n := int64(1); n <= at; n++ {
		if key := w.key(e, n); key >= 0 {
			state[key] = n
		}
	}
	return state
}

// told reads a frame.
func told(frame []byte) (epoch int, history byte, offset int64) {
	if wire.IsFence(frame) {
		frame = shown(frame)
	}
	e, n, _ := eventCursor(frame)
	offset, _ = strconv.ParseInt(string(n), 10, 64)
	return epochNumber(string(e)), frame[len(`{"op":"event","topic":"`)] - 'a', offset
}

// frame is that of offset n as seen in epoch e.
func (w *world) frame(e int, n int64) []byte {
	h := w.truth[e][n]
	if c := w.changes[h][n]; c.id > 0 {
		return wire.AppendFence(nil, &wire.Fence{Topic: string(rune('a' + h)), Epoch: epochNames[w.sequencedIn[h]], Offset: n,
			ID: c.id, Subject: subjects[c.slot], Revoked: c.revoked})
	}
	return frames[w.sequencedIn[h]][h][n]
}

// change is one of the access of a client's subject.
type change struct {
	slot    int
	revoked bool
	id      int64
}

var subjects = [simSubs]string{"ann", "bob", "cid"}

func epochNumber(name string) int {
	if name == "" {
		return 0
	}
	return int(name[0] - '0')
}

var errSim = errors.New("the read failed")

// row is what the database has at an offset.
type row struct{ history, epoch byte }

type world struct {
	rng     *rand.Rand
	pcg     rand.PCG
	now     int
	calm    bool // no more faults
	broken  string
	tracing bool
	ahead   bool // an operator sends readers ahead
	trace   []string

	// The database. rows[n] is offset n.
	rows      [simOffsets]row
	head, low int64
	history   byte
	epoch     int
	began     [simEpochs + 1]int64 // the head at which an epoch of the present lineage began; -1: not of it
	frozen    bool                 // it went back within the epoch, and nobody has noticed yet

	// sequencedIn is the epoch of a history: each has one.
	sequencedIn [simEpochs + 8]int

	// access is what the database knows of each subject, changes the fences among the events of a history, and unsequenced
	// those that have committed and have no offset yet.
	access      [simSubs]change
	changes     [simEpochs + 8][simOffsets]change
	unsequenced []change
	ids         int64

	// truth[e][n] is the history of offset n as seen in epoch e.
	truth [simEpochs + 1][simOffsets]byte

	// The stream, a channel an epoch: the offsets first to last of truth.
	chFirst, chLast [simEpochs + 1]int64
	published       int64
	streamDown      bool

	// The connection of the subscription.
	connected bool
	listens   [simEpochs + 1]bool
	queue     []message
	liveIn    int   // the epoch whose channel was confirmed to the node and is not lost
	atTurn    int64 // the head when the feed last turned

	// The node.
	feed          feed
	nodeEpoch     int
	pushUp, tried bool
	recheckDue    bool
	seqSeen       int64
	poll          pollOp
	join          joinOp
	heal          rangeOp
	kept          *kept
	suspected     bool
	waiting       []*simSub // for the joiner
	waited        bool      // their wait is over
	later         []timer
	subs          []*simSub
	replays       []*rangeOp
	pool          []*simSub
	pooled        int
	client        [simSubs]memory // what clients hold between subscriptions
	reads, resets int
	backs, trims  int
	badCursors    int
	heals, gaps   int
	message       []byte
	era           int // counts the histories that the feed left
}

type message struct {
	epoch       int
	first, last int64 // 0: the channel is live
}

type pollOp struct {
	phase int // 1 seqs read, 2 look taken, 3 head read
	epoch int
	head  int64
	look  look
}

type joinOp struct {
	phase    int // 1 admitted, 2 read
	batch    []*simSub
	epoch    int
	position []wire.Position
}

type rangeOp struct {
	phase int // 5 waits for its turn, 1 wanted, 2 it reads, 3 it has read, 4 another one reads
	era   int
	sub   *simSub
	life  uint64
	hole  hole
	read  *reading
	run   stream.Run
	err   error
}

type timer struct {
	sub  *simSub
	join bool
}

// memory is what a client holds: it saw offset at, of a history, in an epoch, and has made a state of it.
type memory struct {
	epoch   int
	at      int64
	history byte
	state   [simKeys]int64
}

// passed is an event that a client was shown.
type passed struct {
	epoch   int
	history byte
	offset  int64
}

type simSub struct {
	reader
	slot      int
	dirty     bool
	told      int // times that "subscribed" was sent
	mem       memory
	admission admission
	read      change   // what was read about its subject
	cleared   change   // … when it went live
	mayJoin   bool     // the world knows that it was right to admit it …
	mayIn     int      // … in this epoch
	together  []passed // what it was shown and is to apply with what comes next
	needless  bool     // its cursor was found not to be valid, although that of its client is
}

func (w *world) log(format string, args ...any) {
	if w.tracing {
		w.trace = append(w.trace, fmt.Sprintf("%4d ", w.now)+fmt.Sprintf(format, args...))
	}
}

// fail notes the first rule that was broken.
func (w *world) fail(rule, format string, args ...any) {
	if w.broken == "" {
		w.broken = rule + ": " + fmt.Sprintf(format, args...)
		w.log("BROKEN %s", w.broken)
	}
}

func (w *world) chance(percent int) bool { return !w.calm && w.rng.IntN(100) < percent }

func (w *world) reset(seed uint64) {
	w.pcg.Seed(seed, 1)
	*w = world{rng: w.rng, pcg: w.pcg, tracing: w.tracing, ahead: w.ahead, trace: w.trace[:0], queue: w.queue[:0], waiting: w.waiting[:0],
		later: w.later[:0], subs: w.subs[:0], replays: w.replays[:0], pool: w.pool, message: w.message,
		join: joinOp{batch: w.join.batch[:0], position: w.join.position[:0]}, feed: feed{log: sharedLog{frames: w.feed.log.frames[:0]}}}
	w.rng = rand.New(&w.pcg)
	w.feed.log.maxEvents, w.feed.log.maxBytes, w.feed.log.maxMessage = simLog, 1<<10+simLog*frameCost, 3*simFrame/2
	w.kept = newKept(simKept, simRange)
	w.low, w.history = 1, 0
	for e := range w.began {
		w.began[e] = -1
	}
	w.newEpoch()
	for range w.rng.IntN(8) {
		w.sequence()
	}
	w.published = w.head
	w.chFirst[w.epoch], w.chLast[w.epoch] = min(1, w.head), w.head
	w.nodeEpoch = w.epoch
	w.feed.channel = stream.Channel{Epoch: epochNames[w.epoch]}
	w.atTurn = 0
	w.seqSeen = w.head
}

func (w *world) run(seed uint64) {
	w.reset(seed)
	n := 30 + w.rng.IntN(60)
	for w.now = 1; w.now <= n && w.broken == ""; w.now++ {
		w.step()
		w.check()
	}
	w.settle()
}

// ---- the database

func (w *world) newEpoch() {
	w.epoch++
	w.began[w.epoch] = w.head
	w.sequencedIn[w.history] = w.epoch
	if w.epoch > 1 {
		w.truth[w.epoch] = w.truth[w.epoch-1]
	}
	for n := int64(1); n <= w.head; n++ {
		w.truth[w.epoch][n] = w.rows[n].history
	}
}

func (w *world) sequence() {
	if w.head < simOffsets-4 && !w.frozen {
		w.head++
		w.rows[w.head] = row{w.history, byte(w.epoch)}
		w.truth[w.epoch][w.head] = w.history
		if len(w.unsequenced) > 0 {
			w.changes[w.history][w.head] = w.unsequenced[0]
			w.log("offset %d is a change of %s: revoked %v", w.head, subjects[w.unsequenced[0].slot], w.unsequenced[0].revoked)
			w.unsequenced = w.unsequenced[1:]
		}
	}
}

// changeAccess revokes a subject's access, or restores it; it is sequenced later.
func (w *world) changeAccess() bool {
	slot := w.rng.IntN(simSubs)
	if w.head+int64(len(w.unsequenced)) > simOffsets-12 || w.rng.IntN(3) > 0 {
		return false
	}
	w.ids++
	w.access[slot] = change{slot, !w.access[slot].revoked, w.ids}
	w.unsequenced = append(w.unsequenced, w.access[slot])
	w.log("%s: revoked %v", subjects[slot], w.access[slot].revoked)
	return true
}

// loseChanges takes back what the database has lost with the events after its head. Ids are given again.
func (w *world) loseChanges() {
	w.access, w.ids, w.unsequenced = [simSubs]change{}, 0, nil
	for n := int64(1); n <= w.head; n++ {
		if c := w.changes[w.rows[n].history][n]; c.id > 0 {
			w.access[c.slot] = c
			w.ids = max(w.ids, c.id)
		}
	}
}

// fenced is the first offset of a subject's fence that a subscription may not pass, as far as offset last; 0: none.
func (w *world) fenced(s *simSub, last int64) int64 {
	e := epochNumber(s.epoch)
	for n := int64(1); n <= last && n < simOffsets; n++ {
		if c := w.changes[w.truth[e][n]][n]; c.id > s.cleared.id && c.slot == s.slot && c.revoked {
			return n
		}
	}
	return 0
}

// back has the database lose commits: as a new epoch, or unnoticed within one.
func (w *world) back(unnoticed bool) {
	lost := min(w.head, int64(w.rng.IntN(4)))
	if w.epoch >= simEpochs-1 || unnoticed && lost == 0 {
		return
	}
	if unnoticed && !w.forgettable() {
		return
	}
	for n := w.head - lost + 1; n <= w.head && unnoticed; n++ {
		if w.changes[w.rows[n].history][n].id > 0 {
			return
		}
	}
	w.backs++
	w.head -= lost
	w.low = min(w.low, w.head+1)
	w.published = min(w.published, w.head)
	w.history++
	w.log("the database goes back to %d, unnoticed %v", w.head, unnoticed)
	if unnoticed {
		w.sequencedIn[w.history] = w.epoch
		// What was lost must not be about any more: nothing could tell it from what will take its place.
		w.frozen = true
		w.queue = w.queue[:0]
		w.listens = [simEpochs + 1]bool{}
		w.cut()
		w.chFirst[w.epoch], w.chLast[w.epoch] = 0, 0
		w.atTurn = min(w.atTurn, w.head)
		return
	}
	for e := range w.began {
		if w.began[e] > w.head {
			w.began[e] = -1
		}
	}
	w.frozen = false
	w.loseChanges()
	w.newEpoch()
}

// forgettable reports whether nobody but the feed knows of the newest events: it alone is compared with the head.
func (w *world) forgettable() bool {
	for _, op := range w.replays {
		if op.phase >= 3 {
			return false
		}
	}
	for _, s := range w.subs {
		if s.position()+int64(len(s.chunk)) > w.feed.want.Load() {
			return false
		}
	}
	for _, r := range w.kept.runs[place{&w.feed, w.feed.history}] {
		if r.old != nil && r.last > w.feed.want.Load() {
			return false
		}
	}
	return w.heal.phase < 3 && w.join.phase != 2 && w.poll.phase == 0
}

// thaw lets a database that went back unnoticed go on when what it lost is forgotten.
func (w *world) thaw() {
	if !w.frozen || w.feed.want.Load() > w.head || !w.feed.looked || w.recheckDue || w.poll.phase != 0 || w.join.phase != 0 {
		return
	}
	for _, s := range w.subs {
		if s.state == subJoining && s.answered || s.mem.at > w.head {
			return
		}
	}
	for slot := range w.client { // a client that was away could not be told from one of the new history
		if w.client[slot].at > w.head {
			w.client[slot] = memory{}
		}
	}
	w.frozen = false
}

// position answers as commitcast.cursor_reason does.
func (w *world) position(c wire.Cursor) wire.Position {
	p := wire.Position{Head: w.head}
	if c.IsZero() {
		return p
	}
	e, n := epochNumber(c.Epoch), c.Offset
	switch {
	case e > w.epoch || w.began[e] < 0:
		p.Reason = wire.ReasonEpoch
	case n > w.head:
		p.Reason = wire.ReasonAhead
	case n > 0 && (n >= w.low || n == w.head):
		if int(w.rows[n].epoch) > e {
			p.Reason = wire.ReasonEpoch
		}
	case n+1 < w.low || n > 0 && int(w.rows[n+1].epoch) > e:
		p.Reason = wire.ReasonTrimmed
	}
	return p
}

// fetch reads a range as the replayer does: from the stream, else from the journal. A third source lies.
func (w *world) fetch(ch stream.Channel, after, most int64) (stream.Run, error) {
	w.reads++
	e := epochNumber(ch.Epoch)
	run := stream.Run{Channel: ch, First: after + 1}
	last := int64(0)
	switch {
	case w.chance(20):
		return run, errSim
	case w.pushUp && !w.streamDown && w.chFirst[e] > 0 && w.chFirst[e] <= after+1 && after+1 <= w.chLast[e]:
		last = w.chLast[e]
		if w.chance(4) && after+2 <= last {
			run.First++
		}
	case e != w.epoch:
		return run, errEpoch
	case after+1 >= w.low:
		last = w.head
	}
	if w.chance(4) {
		most++ // more than was asked for
	}
	for n := run.First; n <= min(last, after+most); n++ {
		run.Frames = append(run.Frames, w.frame(e, n))
	}
	return run, nil
}

// ---- the stream and its connection

func (w *world) publish() bool {
	if w.streamDown || w.published >= w.head {
		return false
	}
	first := w.published + 1
	last := min(w.head, first+int64(w.rng.IntN(3)))
	w.published = last
	if w.chFirst[w.epoch] == 0 || w.chLast[w.epoch] != first-1 {
		w.chFirst[w.epoch] = first
	}
	w.chLast[w.epoch] = last
	lost := w.chance(15)
	w.log("publish %d to %d, lost %v", first, last, lost)
	if w.listens[w.epoch] && !lost {
		w.queue = append(w.queue, message{w.epoch, first, last})
	}
	return true
}

func (w *world) serverHears() bool {
	e := epochNumber(w.feed.channel.Epoch)
	if !w.connected || w.streamDown || w.listens[e] {
		return false
	}
	w.listens[e] = true
	w.queue = append(w.queue, message{epoch: e})
	return true
}

func (w *world) hear() bool {
	if len(w.queue) == 0 {
		return false
	}
	m := w.queue[0]
	w.queue = append(w.queue[:0], w.queue[1:]...)
	ch := stream.Channel{Epoch: epochNames[m.epoch]}
	if m.first == 0 {
		w.pushUp = true
		if w.feed.confirm(ch) {
			w.liveIn = m.epoch
			w.turned()
		}
		w.log("confirmed %s", ch.Epoch)
		return true
	}
	run := stream.Run{Channel: ch, First: m.first}
	for n := m.first; n <= m.last; n++ {
		run.Frames = append(run.Frames, w.frame(m.epoch, n))
	}
	if run.Epoch == w.feed.channel.Epoch {
		w.mark(run)
	}
	grew, gap := w.feed.hear(run)
	w.log("heard %d to %d of %s: grew %v gap %v", m.first, m.last, ch.Epoch, grew, gap)
	if grew {
		w.wakeAll()
	}
	if gap {
		w.gaps++
		w.startHeal()
	}
	return true
}

func (w *world) mark(run stream.Run) {
	for _, f := range fences(run) {
		for _, s := range w.subs {
			s.mark(&f, run.Epoch)
		}
	}
}

func (w *world) turned() {
	w.atTurn = 0
	if epochNumber(w.feed.channel.Epoch) == w.epoch {
		w.atTurn = w.head
	}
}

func (w *world) cut() {
	w.connected, w.pushUp, w.tried, w.liveIn = false, false, true, 0
	w.queue = w.queue[:0]
	w.listens = [simEpochs + 1]bool{}
	w.feed.down()
	w.turned()
	w.log("the connection is lost")
}

// ---- the node, where the other files do what the machines ask for

func (w *world) wakeAll() {
	for _, s := range w.subs {
		s.dirty = true
	}
}

func (w *world) polling() bool { return !w.pushUp && w.tried }

func (w *world) startHeal() {
	if len(w.subs) > 0 && w.feed.startHeal() {
		if w.heal.phase != 0 {
			w.fail("one healing", "a second one began")
		}
		w.nextHole()
	}
}

func (w *world) nextHole() {
	h, ok, moved := w.feed.hole()
	if moved {
		w.wakeAll()
	}
	if w.heal.phase = 0; ok {
		w.heal = rangeOp{phase: 1, hole: h, era: w.era}
	}
}

func (w *world) stepHeal() bool {
	op := &w.heal
	if op.phase == 0 {
		return false
	}
	if moved, brought := w.stepFetch(op); !brought {
		return moved
	} else {
		w.heals++
		want, next := w.feed.want.Load(), w.feed.log.next
		if op.err == nil && op.hole.history == w.feed.history {
			w.mark(op.run)
		}
		moved, again := w.feed.heal(op.hole, op.run, op.err)
		if op.era != w.era && (moved || w.feed.want.Load() != want || w.feed.log.next != next) {
			w.fail("nothing is healed from another history", "the log went from %d to %d, the head from %d to %d", next-1, w.feed.log.next-1, want, w.feed.want.Load())
		}
		w.log("healing: moved %v again %v", moved, again)
		if moved {
			w.wakeAll()
		}
		if op.phase = 0; again {
			w.nextHole()
		}
	}
	return true
}

func (w *world) suspect() {
	if w.feed.confirmed {
		w.suspected = true
	} else {
		w.startHeal()
	}
}

func (w *world) behind() bool { return len(w.subs) > 0 && w.feed.lags() }

func (w *world) stepPoll() bool {
	op := &w.poll
	switch op.phase {
	case 0:
		if w.recheckDue || w.chance(5) {
			return false
		}
		*op = pollOp{phase: 1, epoch: w.epoch, head: w.head}
		if w.epoch != w.nodeEpoch {
			w.nodeEpoch = w.epoch
			w.feed.enter(epochNames[w.epoch])
			w.liveIn, w.recheckDue = 0, true
			w.era++
			w.turned()
			w.log("the node enters %s", epochNames[w.epoch])
			return true
		}
	case 1:
		if w.recheckDue {
			return false
		}
		if w.seqSeen == op.head && !w.feed.unsure(len(w.subs) > 0) {
			op.phase = 0
			return true
		}
		op.look = w.feed.look()
		op.phase = 2
	case 2:
		op.phase = 3
		w.reads++
		if w.epoch != op.epoch || w.chance(10) {
			op.phase = 0
			return true
		}
		w.log("read head %d", w.head)
		w.seqSeen, op.head = op.head, w.head
	case 3:
		op.phase = 0
		back := w.feed.saw(op.look, epochNames[op.epoch], op.head)
		w.log("saw head %d: back %v", op.head, back)
		if back {
			if w.backs == 0 {
				w.fail("rewound only when the database went back", "to %d", op.head)
			}
			w.recheckDue = true
			w.era++
			w.turned()
		} else if w.behind() {
			w.suspect()
		}
	}
	return true
}

func (w *world) stepRecheck() bool {
	if !w.recheckDue {
		return false
	}
	w.recheckDue = false
	for _, s := range w.subs {
		if s.recheck() {
			w.waiting = append(w.waiting, s)
		}
	}
	return true
}

func (w *world) stepJoin() bool {
	op := &w.join
	switch op.phase {
	case 0:
		kept := w.waiting[:0]
		for _, s := range w.waiting {
			a, ok := w.feed.admit(w.waited || w.polling())
			if !ok {
				kept = append(kept, s)
				continue
			}
			s.admission = a
			s.admitted()
			s.mayIn = epochNumber(w.feed.channel.Epoch)
			s.mayJoin = w.waited || w.polling() || w.liveIn == s.mayIn
			op.batch = append(op.batch, s)
		}
		w.waiting = kept
		if len(op.batch) == 0 {
			return false
		}
		w.waited = false
		op.phase = 1
	case 1:
		op.phase = 2
		w.reads++
		op.epoch = w.epoch
		op.position = op.position[:0]
		if w.chance(10) {
			w.log("cursors cannot be read")
			for _, s := range op.batch {
				if s.unasked() {
					w.later = append(w.later, timer{s, true})
				} else {
					w.ended(s)
				}
			}
			op.batch, op.phase = op.batch[:0], 0
			return true
		}
		for _, s := range op.batch {
			p := w.position(s.question())
			s.read = w.access[s.slot]
			p.Revoked, p.Changed = s.read.revoked, s.read.id
			own := w.position(wire.Cursor{Epoch: epochNames[s.mem.epoch], Offset: s.mem.at})
			s.needless = p.Reason != "" && own.Reason == ""
			op.position = append(op.position, p)
		}
		w.log("read positions of %d at head %d in %s", len(op.batch), w.head, epochNames[w.epoch])
	case 2:
		i := len(op.batch) - 1
		s, p := op.batch[i], op.position[i]
		op.batch = op.batch[:i]
		outcome := s.reader.join(&w.feed, s.admission, epochNames[op.epoch], p)
		w.log("sub %d joins: outcome %d, cursor %d, head %d, reason %q", s.slot, outcome, s.cursor, p.Head, p.Reason)
		switch outcome {
		case joinAnswered, joinResumed:
			w.joined(s, outcome, p)
		case joinRevoked:
			s.epoch, s.cleared = epochNames[op.epoch], s.read
			if !s.read.revoked && w.fenced(s, simOffsets) == 0 {
				w.fail("no end is needless", "sub %d may read, and is refused", s.slot)
			}
			w.ended(s)
		case joinReset:
			w.resets++
			if s.needless {
				w.fail("no reset is needless", "sub %d is reset (%s) at %d, which it was shown in %s", s.slot, p.Reason, s.mem.at, epochNames[s.mem.epoch])
			}
			if s.told == 0 {
				w.badCursors++
			}
			w.client[s.slot] = memory{w.epoch, w.head, w.rows[w.head].history, w.state(w.epoch, w.head)}
			w.ended(s)
		case joinAgain:
			if op.epoch == w.nodeEpoch {
				w.waiting = append(w.waiting, s)
			} else {
				w.later = append(w.later, timer{s, true})
			}
		}
		if w.behind() {
			w.suspect()
		}
		if len(op.batch) == 0 {
			op.phase = 0
		}
	}
	return true
}

// joined checks what must hold when a reader goes live.
func (w *world) joined(s *simSub, outcome joined, p wire.Position) {
	s.dirty = true
	e := epochNumber(s.epoch)
	if s.cleared = s.read; s.read.revoked {
		w.fail("who is revoked does not join", "sub %d", s.slot)
	}
	if !s.mayJoin || s.mayIn != e {
		w.fail("joined only when live or polled", "sub %d is live in %s, whose channel was not confirmed before its head was read", s.slot, s.epoch)
	}
	if outcome == joinAnswered {
		s.told++
		if s.asked.IsZero() {
			s.mem = memory{e, s.cursor, w.truth[e][s.cursor], w.state(e, s.cursor)}
		}
	}
	if s.told != 1 {
		w.fail("subscribed once", "sub %d was told %d times", s.slot, s.told)
	}
	if s.mem.at > 0 && w.truth[e][s.mem.at] != s.mem.history {
		w.fail("histories do not mix", "sub %d goes on in %s after offset %d of history %c", s.slot, s.epoch, s.mem.at, 'a'+s.mem.history)
	}
}

// ended takes a subscription off its topic.
func (w *world) ended(s *simSub) {
	for i, other := range w.subs {
		if other == s {
			w.subs = append(w.subs[:i], w.subs[i+1:]...)
			return
		}
	}
}

func (w *world) stepReplay() bool {
	if len(w.replays) == 0 {
		return false
	}
	i := w.rng.IntN(len(w.replays))
	if op := w.replays[i]; op.phase == 5 {
		s := op.sub
		if op.phase = 1; s.life != op.life || !s.grant(&w.feed.log) {
			w.replays = slices.Delete(w.replays, i, i+1)
			s.dirty = s.dirty || s.life == op.life
			return true
		}
		op.hole = hole{place{&w.feed, s.history}, stream.Channel{Epoch: s.epoch}, s.position()}
	}
	for range w.replays {
		if w.replays[i].phase == 5 {
			i = (i + 1) % len(w.replays)
			continue
		}
		moved, brought := w.stepFetch(w.replays[i])
		if brought {
			w.spliceReplay(i)
		}
		if moved {
			return true
		}
		i = (i + 1) % len(w.replays)
	}
	return false
}

// stepFetch goes on with a fetch, as the replayer does. moved: something happened. brought: it is over.
func (w *world) stepFetch(op *rangeOp) (moved, brought bool) {
	now := time.UnixMilli(int64(w.now))
	switch op.phase {
	case 1:
		var mine bool
		op.read, mine = w.kept.ask(op.hole, now)
		op.phase = 4
		if mine {
			op.phase = 2
		}
		w.log("a read after %d up to %d, for %d: mine %v", op.read.after, op.read.last, op.hole.after, mine)
		if mine && w.rng.IntN(2) == 0 {
			return w.stepFetch(op)
		}
	case 2:
		op.run, op.err = w.fetch(op.hole.channel, op.hole.after, op.read.last-op.hole.after)
		op.phase = 3
		w.log("read after %d: %d frames from %d, %v", op.hole.after, len(op.run.Frames), op.run.First, op.err)
	case 3:
		w.kept.end(op.read, op.run, op.err, now)
		op.run = op.read.run
		return true, true
	case 4:
		select {
		case <-op.read.ended:
		default:
			return false, false
		}
		run, ok := op.read.from(op.hole.after)
		if ok {
			op.run, op.err = run, op.read.err
			return true, true
		}
		op.phase = 1
	}
	return true, false
}

func (w *world) spliceReplay(i int) {
	op := w.replays[i]
	w.replays = append(w.replays[:i], w.replays[i+1:]...)
	if op.err == nil {
		w.feed.found(op.hole, op.run)
	}
	after := op.sub.position() // one that went ahead may have been given what the log had meanwhile
	next := op.sub.splice(op.life, op.run, op.err)
	w.log("sub %d's replay: %d", op.sub.slot, next)
	switch next {
	case replayTaken:
		op.sub.dirty = true
		if op.run.First != after+1 {
			w.fail("no chunk with a hole", "sub %d at %d took a run from %d", op.sub.slot, after, op.run.First)
		}
		if op.sub.slot == 0 && w.rng.IntN(4) == 0 && op.sub.window != nil { // who waits long enough
			op.sub.window.enough = true
		}
	case replayRetry:
		w.later = append(w.later, timer{op.sub, false})
	case replayCheck:
		w.later = append(w.later, timer{op.sub, true})
	}
}

func (w *world) stepTimer() bool {
	if len(w.later) == 0 {
		return false
	}
	t := w.later[0]
	w.later = append(w.later[:0], w.later[1:]...)
	if t.join {
		w.waiting = append(w.waiting, t.sub)
	} else {
		t.sub.dirty = true
	}
	return true
}

func (w *world) stepGrace() bool {
	if !w.suspected {
		return false
	}
	w.suspected = false
	w.startHeal()
	return true
}

func (w *world) stepCollect() bool {
	for _, s := range w.subs {
		if s.dirty {
			w.collect(s)
			return true
		}
	}
	return false
}

func (w *world) collect(s *simSub) {
	s.dirty = false
	before := s.cursor
	behind := s.replaying || s.holds()
	budget := w.rng.IntN(9) * simFrame / 2
	if then := w.feed.log.pending(s.epoch, s.cursor); s.conflate && then >= 0 && then <= w.feed.log.maxMessage && !behind && !s.goesAhead(s.cursor) {
		defer func() {
			if s.holds() || s.replaying {
				w.fail("no window for who is not behind", "sub %d", s.slot)
			}
		}()
	}
	p, more, then := s.reader.collect(append(w.message[:0], make([]byte, headerRoom)...), &w.feed.log, budget)
	w.message = p
	s.dirty = more
	for line := range strings.SplitSeq(string(p[headerRoom:]), "\n") {
		if line != "" {
			w.show(s, []byte(line))
		}
	}
	w.heldToFences(s, before, behind, then)
	if s.state == subLive && s.cursor != s.mem.at {
		w.fail("the cursor is what was shown", "sub %d: cursor %d, shown %d", s.slot, s.cursor, s.mem.at)
	}
	w.log("sub %d collects %d to %d, more %v then %d", s.slot, before+1, s.cursor, more, then)
	switch then {
	case nextEnd:
		w.client[s.slot] = s.mem
		w.ended(s)
	case nextCheck:
		w.later = append(w.later, timer{s, true})
	case nextReplay:
		for _, op := range w.replays {
			if op.sub == s && op.life == s.life {
				w.fail("one replay", "sub %d has a second one", s.slot)
			}
		}
		w.replays = append(w.replays, &rangeOp{phase: 5, sub: s, life: s.life})
	}
}

// show is what a client does with a frame.
func (w *world) show(s *simSub, line []byte) {
	e := epochNumber(s.epoch)
	in, history, n := told(line)
	left := int64(0)
	if _, mark, ok := strings.Cut(string(line), `,"conflated":`); ok {
		fmt.Sscanf(mark, "%d", &left)
	}
	more := wire.HasMore(line)
	if (left > 0 || more) && !s.conflate {
		w.fail("nothing is left out unasked", "sub %d is shown %s", s.slot, line)
	}
	at := s.mem.at
	if after := n - 1 - left; after == at {
		s.together = s.together[:0] // from where it stands: what was shown after that is void
	} else if len(s.together) > 0 {
		at = s.together[len(s.together)-1].offset
	}
	if n-1-left != at {
		w.fail("contiguous", "sub %d is shown %d, %d left out, after %d", s.slot, n, left, at)
		return
	}
	if w.truth[e][n] != history {
		w.fail("nothing from another history", "sub %d is shown %d of history %c in %s", s.slot, n, 'a'+history, s.epoch)
		return
	}
	if s.together = append(s.together, passed{in, history, n}); more {
		return
	}
	next, o := s.mem, s.mem.at+1
	var seen [simKeys]bool
	for _, p := range s.together {
		for ; o < p.offset; o++ {
			if key := w.key(e, o); key < 0 || !slices.ContainsFunc(s.together, func(q passed) bool { return q.offset > o && w.key(e, q.offset) == key }) {
				w.fail("what is left out has a later event of its key", "sub %d is not shown %d", s.slot, o)
			}
		}
		o++
		next.epoch, next.at, next.history = p.epoch, p.offset, p.history // the client's cursor follows the event's
		if key := w.key(e, p.offset); key >= 0 {
			if seen[key] {
				w.fail("one event of a key in a window", "sub %d is shown %d, too", s.slot, p.offset)
			}
			seen[key] = true
			next.state[key] = p.offset
		}
	}
	s.mem, s.together = next, s.together[:0]
	if truth := w.state(e, next.at); truth != next.state {
		w.fail("the state is that of its offset", "sub %d at %d of %s has %v, want %v", s.slot, next.at, s.epoch, next.state, truth)
	}
}

// heldToFences checks what was collected, and how it went on.
func (w *world) heldToFences(s *simSub, before int64, behind bool, then next) {
	if at := w.fenced(s, s.cursor); at > 0 {
		w.fail("nothing is shown from a fence on", "sub %d is at %d, its fence at %d", s.slot, s.cursor, at)
	}
	known := int64(0) // what has passed through the log, or skipped it
	if log := &w.feed.log; log.epoch == s.epoch && then != nextEnd {
		known = log.next - 1
	}
	at := w.fenced(s, known)
	switch {
	case then == nextEnd && w.fenced(s, simOffsets) == 0:
		w.fail("no end is needless", "sub %d may read, and is ended at %d", s.slot, s.cursor)
	case then == nextEnd && !behind && s.cursor >= w.feed.log.first && w.fenced(s, simOffsets) != s.cursor+1:
		w.fail("the end is exactly at the fence", "sub %d ends at %d", s.slot, s.cursor)
	case then == nextReplay && at > 0:
		w.fail("no replay before a fence", "sub %d at %d is read for, its fence at %d", s.slot, s.cursor, at)
	case behind && at > w.feed.log.base && s.cursor > before:
		w.fail("no replay before a fence", "sub %d is shown up to %d, its fence at %d", s.slot, s.cursor, at)
	}
}

// ---- clients

func (w *world) stepClient() bool {
	slot := w.rng.IntN(simSubs)
	for _, s := range w.subs {
		if s.slot == slot {
			if s.answered {
				w.client[slot] = s.mem
			}
			s.end()
			w.ended(s)
			w.log("sub %d ends", slot)
			return true
		}
	}
	w.subscribe(slot)
	return true
}

func (w *world) subscribe(slot int) {
	if w.pooled == len(w.pool) {
		w.pool = append(w.pool, new(simSub))
	}
	s := w.pool[w.pooled]
	w.pooled++
	*s = simSub{slot: slot, together: s.together[:0]}
	s.subject, s.conflate = subjects[slot], w.rng.IntN(2) == 0
	switch c := w.client[slot]; w.rng.IntN(4) {
	case 0: // from the head
	case 1: // from the beginning
		s.asked = wire.Cursor{Epoch: epochNames[w.epoch]}
		s.mem = memory{epoch: w.epoch}
	default: // from where it was
		if c.epoch > 0 {
			s.asked = wire.Cursor{Epoch: epochNames[c.epoch], Offset: c.at}
			s.mem = c
		}
	}
	w.log("sub %d subscribes after %q", slot, s.asked)
	w.subs = append(w.subs, s)
	w.waiting = append(w.waiting, s)
}

// stepAhead has an operator send a subject ahead of the log, as far as something is stored.
func (w *world) stepAhead() bool {
	for _, s := range w.subs {
		if s.state == subLive && s.epoch == epochNames[w.epoch] && s.cursor < w.head {
			s.ahead, s.dirty = s.cursor+1+int64(w.rng.IntN(int(w.head-s.cursor))), true
			w.log("sub %d is sent ahead to %d", s.slot, s.ahead)
			return true
		}
	}
	return false
}

// ---- the order of events

func (w *world) step() {
	if w.chance(12) {
		w.fault()
		return
	}
	for range 20 {
		if w.act(w.rng.IntN(14)) {
			return
		}
	}
}

func (w *world) act(n int) bool {
	switch n {
	case 0:
		w.sequence()
		return true
	case 1:
		return w.publish()
	case 2:
		return w.serverHears()
	case 3:
		return w.hear()
	case 4:
		if w.connected {
			return false
		}
		w.connected = true
		return true
	case 5:
		return w.stepPoll()
	case 6:
		return w.stepRecheck()
	case 7:
		return w.stepJoin()
	case 8:
		return w.stepHeal()
	case 9:
		return w.stepReplay()
	case 10:
		return w.stepTimer()
	case 11:
		return w.stepCollect()
	case 13:
		return w.changeAccess()
	default:
		if w.rng.IntN(3) == 0 {
			return w.stepClient()
		}
		if w.ahead && w.rng.IntN(4) == 0 {
			return w.stepAhead()
		}
		return w.stepGrace()
	}
}

func (w *world) fault() {
	switch w.rng.IntN(11) {
	case 0:
		w.cut()
	case 1:
		w.chFirst[w.epoch], w.chLast[w.epoch] = 0, 0
		w.log("the stream is flushed")
	case 2:
		if w.chFirst[w.epoch] > 0 {
			w.chLast[w.epoch] = w.chFirst[w.epoch] + int64(w.rng.IntN(int(w.chLast[w.epoch]-w.chFirst[w.epoch]+1)))
			w.log("the stream loses its tail after %d", w.chLast[w.epoch])
		}
	case 3:
		w.streamDown = !w.streamDown
		if w.streamDown {
			w.cut()
		}
	case 4:
		if w.low <= w.published {
			w.trims++
			w.low += 1 + int64(w.rng.IntN(int(w.published-w.low+1)))
			w.log("the journal begins at %d", w.low)
		}
	case 5:
		w.back(false)
	case 6:
		w.back(true)
	case 7:
		w.waited = true
	case 8: // offered again: an answer was lost
		if first := w.chFirst[w.epoch]; first > 0 && w.listens[w.epoch] && w.chLast[w.epoch] >= first {
			w.queue = append(w.queue, message{w.epoch, max(first, w.chLast[w.epoch]-2), w.chLast[w.epoch]})
		}
	case 9:
		for range 5 {
			w.sequence()
		}
	case 10:
		since := time.UnixMilli(int64(w.now) - int64(w.rng.IntN(10)))
		w.kept.forget(since)
		for e := w.kept.recent.Front(); e != nil; e = e.Next() {
			if r := e.Value.(*reading); r.asked.Before(since) {
				w.fail("what nobody asks for is let go", "after %d", r.after)
			}
		}
	}
}

// check holds the rules that must be true after every step.
func (w *world) check() {
	w.thaw()
	f := &w.feed
	l := &f.log
	e := epochNumber(f.channel.Epoch)
	held := l.frames[l.head:]
	if l.epoch != "" && l.epoch != f.channel.Epoch {
		w.fail("the log is of the feed's epoch", "%s in %s", l.epoch, f.channel.Epoch)
	}
	if len(held) > simLog {
		w.fail("the log is bounded", "%d frames", len(held))
	}
	if l.first+int64(len(held)) != l.next {
		w.fail("the log is contiguous", "%d frames from %d to before %d", len(held), l.first, l.next)
	}
	for i, frame := range held {
		n := l.first + int64(i)
		if _, history, holds := told(frame); holds != n {
			w.fail("the log is contiguous", "offset %d holds %d", n, holds)
		} else if history != w.truth[e][n] && !w.frozen {
			w.fail("nothing from another history", "the log holds %d of history %c", n, 'a'+history)
		}
	}
	if l.epoch != "" && f.want.Load() < l.next-1 {
		w.fail("the head is not below the log", "head %d, log %d", f.want.Load(), l.next-1)
	}
	if f.confirmed && w.liveIn != e {
		w.fail("confirmed means live", "the channel of %s is not", f.channel.Epoch)
	}
	if f.looked && w.epoch == e && f.want.Load() < w.atTurn {
		w.fail("the head is looked at after every turn", "it knows of %d; %d existed when its channel came or went", f.want.Load(), w.atTurn)
	}
	if f.healing != (w.heal.phase != 0) {
		w.fail("one healing", "healing is %v", f.healing)
	}
	w.checkKept()
	for _, s := range w.subs {
		if s.state == subLive && len(s.chunk) > 0 {
			if _, _, first := told(s.chunk[0]); first != s.cursor+1 {
				w.fail("no chunk with a hole", "sub %d at %d holds one from %d", s.slot, s.cursor, first)
			}
		}
		if held := s.window; held != nil && (held.bytes > held.most+windowCost+2*simFrame || len(held.all) > 2*simLog) {
			w.fail("a window is bounded", "sub %d: %d bytes, %d events", s.slot, held.bytes, len(held.all))
		}
		if held := s.window; held != nil {
			for i, e := range held.all {
				key := wire.EventKey(e.frame)
				if key != nil && slices.ContainsFunc(held.all[i+1:], func(other *windowed) bool { return bytes.Equal(wire.EventKey(other.frame), key) }) {
					w.fail("one event of a key in a window", "sub %d: %s", s.slot, key)
				}
			}
		}
		if s.state != subLive && (s.holds() || s.replaying) {
			w.fail("no replay beyond a life", "sub %d", s.slot)
		}
		if s.state == subLive && s.history == f.history && s.cursor > f.want.Load() {
			w.fail("the head is not below a reader", "sub %d at %d, head %d", s.slot, s.cursor, f.want.Load())
		}
	}
}

// checkKept holds the rules for what replays have read.
func (w *world) checkKept() {
	bytes, ended := 0, 0
	for at, runs := range w.kept.runs {
		before := int64(0)
		for _, r := range runs {
			if r.after < before {
				w.fail("an event is read once", "after %d and after %d", before, r.after)
			}
			before = r.last
			if r.old == nil {
				continue // is being read
			}
			ended++
			for i, frame := range r.run.Frames {
				bytes += len(frame) + frameCost
				n := r.after + 1 + int64(i)
				if _, history, holds := told(frame); holds != n {
					w.fail("what is kept is whole", "offset %d holds %d", n, holds)
				} else if at.history == w.feed.history && history != w.truth[epochNumber(r.channel.Epoch)][n] && !w.frozen {
					w.fail("what is kept is of its history", "%d of history %c", n, 'a'+history)
				}
			}
			if r.last != r.after+int64(len(r.run.Frames)) {
				w.fail("what is kept is whole", "%d frames from %d to %d", len(r.run.Frames), r.after+1, r.last)
			}
		}
	}
	if bytes > simKept || bytes != w.kept.bytes || ended != w.kept.recent.Len() {
		w.fail("what is kept is bounded", "%d bytes, counted %d; %d runs, counted %d", bytes, w.kept.bytes, ended, w.kept.recent.Len())
	}
}

// settle ends the faults. Everything must come to rest, and then stay whole without any read.
func (w *world) settle() {
	if w.broken != "" {
		return
	}
	w.log("the faults end")
	w.calm, w.streamDown, w.frozen = true, false, false
	if w.rng.IntN(2) == 0 && !w.connected {
		w.connected = true
	}
	if most := simSubs*(w.backs+w.trims) + w.badCursors; w.resets > most {
		w.fail("resets are bounded", "%d, of %d at most", w.resets, most)
	}
	resets, reads := w.resets, w.reads
	for round := range 12 {
		for round == 6 && len(w.unsequenced) > 0 { // not before what the database lost is forgotten
			w.sequence()
		}
		w.connected = true
		w.waited = false
		for progress := true; progress && w.broken == ""; {
			progress = false
			for _, n := range [...]int{1, 2, 3, 6, 7, 8, 9, 11} {
				for i := 0; w.act(n); i++ {
					progress = true
					w.now++
					if w.check(); w.broken != "" {
						return
					}
					if i > 500 {
						w.fail("it comes to rest", "action %d goes on and on", n)
						return
					}
				}
			}
		}
		// Time passes: timers fire, and the heads are polled.
		for w.stepTimer() {
		}
		w.stepGrace()
		for w.stepPoll(); w.poll.phase != 0 && !w.recheckDue; {
			w.stepPoll()
		}
		w.check()
	}
	if w.resets-resets > simSubs {
		w.fail("resets are bounded", "%d after the faults", w.resets-resets)
	}
	if w.reads-reads > 100 {
		w.fail("reads are bounded", "%d after the faults", w.reads-reads)
	}
	w.rested("it comes to rest")
	if w.broken != "" || len(w.subs) == 0 {
		return
	}
	reads, gaps := w.reads, w.gaps
	for range 3 {
		w.sequence()
		for w.publish() || w.hear() || w.stepCollect() || w.stepReplay() || w.stepHeal() {
		}
		w.check()
	}
	w.rested("an event is pushed")
	if w.reads != reads || w.gaps != gaps {
		w.fail("an event is pushed", "it took %d reads and %d gaps", w.reads-reads, w.gaps-gaps)
	}
}

func (w *world) rested(rule string) {
	if len(w.subs) > 0 && !w.feed.confirmed || !w.feed.looked || w.behind() || w.feed.healing {
		w.fail(rule, "the feed is not whole: confirmed %v, looked %v, lags %v, healing %v", w.feed.confirmed, w.feed.looked, w.feed.lags(), w.feed.healing)
	}
	for _, s := range w.subs {
		if s.state != subLive || s.cursor != w.head || s.dirty || s.holds() {
			w.fail(rule, "sub %d in state %d at %d of %d", s.slot, s.state, s.cursor, w.head)
		}
		if w.access[s.slot].revoked {
			w.fail("who is revoked is ended", "sub %d at %d", s.slot, s.cursor)
		}
	}
	if len(w.waiting) > 0 || len(w.replays) > 0 {
		w.fail(rule, "%d wait to join, %d replays", len(w.waiting), len(w.replays))
	}
}
