package worker

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/commitcast/commitcast/internal/journal"
	"github.com/commitcast/commitcast/stream"
)

var (
	schedules = flag.Uint64("schedules", 0, "how many schedules TestPublishSchedules explores; 0: 200,000, as far as it gets in 5 s")
	seed      = flag.Uint64("seed", 0, "the one schedule to run, with its trace")
)

// TestPublishSchedules drives the publishers of two drains of one partition, one of which may be long out of date, and the
// jobs of topics that are set aside, through schedules: a stream that is flushed, rolled back, away, refuses one event or
// everything, takes a part, or whose answer is lost, and a database that does not answer. Between any two calls of one of them to
// stream or database the others may do anything; the code is theirs, and only the drain's side of it is told again here.
//
//	go test ./worker -run TestPublishSchedules -schedules 5000000
//	go test ./worker -run TestPublishSchedules -seed 4711
func TestPublishSchedules(t *testing.T) {
	if *seed != 0 {
		w := &pubWorld{tracing: true}
		w.run(*seed)
		t.Log("\n" + strings.Join(w.trace, "\n"))
		if w.broken != "" {
			t.Fatalf("seed %d: %s", *seed, w.broken)
		}
		return
	}
	var next, done atomic.Uint64
	var mu sync.Mutex       // of broke and how
	var broke atomic.Uint64 // the lowest seed that broke something, so that one failure is told each time; 0: none
	var how string
	var wg sync.WaitGroup
	last, until := *schedules, time.Now().Add(time.Hour)
	if last == 0 { // a busy machine, or the race detector, is no reason to wait
		last, until = 200_000, time.Now().Add(5*time.Second)
	}
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			w := new(pubWorld)
			for n := next.Add(1); n <= last && broke.Load() == 0 && time.Now().Before(until); n = next.Add(1) {
				done.Add(1)
				if w.run(n); w.broken != "" {
					again := &pubWorld{tracing: true}
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
	t.Logf("%d schedules", done.Load())
}

const (
	pubTopics = 3
	pubRows   = 40
	// pubFar is where one topic's offsets begin: a stream that was rolled back to its beginning lacks more than is
	// worth filling.
	pubFar = 3 * maxRefill
	// pubDepth is how many actors may be in the midst of something at once, each between two calls of another.
	pubDepth = 3
)

var (
	pubNames  = [pubTopics]string{"a", "b", "far"}
	errSim    = errors.New("the database does not answer")
	errDenied = errors.New("NOPERM")
)

func pubTopic(name string) int {
	for t, n := range pubNames {
		if n == name {
			return t
		}
	}
	return -1 // the canary
}

// pubRow is one row of the journal; its index is its seq.
type pubRow struct {
	topic             int
	offset            int64
	stored, announced bool
	mute, by          *publisher // who was refused the announcement of what it stored; who has published pass it
}

type pubStream struct {
	there      bool
	first, top int64
	poison     int64 // the event that is refused; 0: none
}

// pub is one drain's publisher, with what the drain does for it.
type pub struct {
	*publisher
	busy       bool
	waiting    []batch
	gen        uint64
	cursor     int64 // the last seq read
	done       int64 // published, as the publisher last said
	announceTo int64
	knows      [pubTopics]bool // that it is set aside, ever since it was
}

// pubWorld is the ledger and the stream of all of them.
type pubWorld struct {
	stream.Stream // not asked for anything but what is below
	worker        *Worker
	rng           *rand.Rand
	pcg           rand.PCG
	broken        string
	tracing       bool
	trace         []string
	calm          bool
	depth         int
	actor         *pub // that is calling now; nil: a job

	rows      [pubRows + 1]pubRow
	seq       int64
	head      [pubTopics]int64
	aside     [pubTopics]int64 // set aside from here on; 0: not
	dead      [pubTopics]bool  // given up, until redrive
	jobs      [pubTopics]int   // of River, not completed
	running   [pubTopics]int   // of these
	streams   [pubTopics]pubStream
	refuses   bool  // everything, the canary too
	away      bool  // the stream
	published int64 // as the database knows
	pubs      [2]pub
	offers    int
	frames    [pubRows][]byte
}

func (w *pubWorld) log(format string, args ...any) {
	if w.tracing {
		w.trace = append(w.trace, strings.Repeat("  ", w.depth)+fmt.Sprintf(format, args...))
	}
}

func (w *pubWorld) fail(rule, format string, args ...any) {
	if w.broken == "" {
		w.broken = rule + ": " + fmt.Sprintf(format, args...)
		w.log("BROKEN %s", w.broken)
	}
}

func (w *pubWorld) chance(percent int) bool { return !w.calm && w.rng.IntN(100) < percent }

func (w *pubWorld) run(seed uint64) {
	*w = pubWorld{tracing: w.tracing, trace: w.trace[:0], worker: w.worker}
	w.pcg.Seed(seed, 1)
	w.rng = rand.New(&w.pcg)
	if w.worker == nil {
		w.worker = &Worker{log: slog.New(slog.DiscardHandler), metrics: pubMetrics}
	}
	w.worker.stream = w
	w.head[pubTopics-1] = pubFar
	for i := range w.pubs {
		w.begin(&w.pubs[i])
	}
	for range 20 + w.rng.IntN(30) {
		w.step()
		w.check()
		if w.broken != "" {
			return
		}
	}
	w.log("the faults end")
	w.calm, w.refuses, w.away = true, false, false
	for t := range w.streams {
		w.streams[t].poison = 0
		w.redrive(t)
	}
	if w.rng.IntN(2) == 0 {
		w.begin(&w.pubs[0])
	}
	before := w.offers
	for range 40 {
		w.read(&w.pubs[0])
		w.take(&w.pubs[0])
		w.catchUp(&w.pubs[0])
		for t := range w.jobs {
			w.work(t)
		}
		w.check()
	}
	p := &w.pubs[0]
	if w.broken == "" && (w.published != w.seq || len(p.laggards) > 0 || w.aside != [pubTopics]int64{} || w.jobs != [pubTopics]int{}) {
		w.fail("it comes to rest", "published %d of %d, %d laggards, set aside from %v, jobs %v", w.published, w.seq, len(p.laggards), w.aside, w.jobs)
	}
	if n := w.offers - before; n > 4*pubRows {
		w.fail("offers are bounded", "%d", n)
	}
}

var pubMetrics, _ = newMetrics(nil)

// begin is a new drain: a takeover.
func (w *pubWorld) begin(p *pub) {
	p.publisher = newPublisher(w.worker, w.worker.log, 0)
	p.ledger = w
	p.waiting, p.knows = nil, [pubTopics]bool{}
	p.announceTo = w.seq
	p.gen = 0
	p.restart(w.published)
	w.log("a drain begins at %d", w.published)
	w.act(p, func() { _ = p.lookForParked(context.Background(), nil) })
}

// restart is drain.restart.
func (p *pub) restart(from int64) {
	p.gen++
	p.cursor, p.done = from, from
}

// act runs something of a publisher, into which nothing else of this publisher comes.
func (w *pubWorld) act(p *pub, do func()) {
	was := w.actor
	p.busy, w.actor = true, p
	do()
	p.busy, w.actor = false, was
}

func (w *pubWorld) step() {
	p := &w.pubs[w.rng.IntN(2)]
	n := w.rng.IntN(28)
	if (p.busy || p.publisher == nil) && n >= 5 && n < 16 {
		return
	}
	switch {
	case n < 5:
		for range 1 + w.rng.IntN(3) {
			if w.seq < pubRows {
				t := w.rng.IntN(pubTopics)
				w.seq++
				w.head[t]++
				w.rows[w.seq] = pubRow{topic: t, offset: w.head[t]}
				w.log("seq %d is offset %d of %s", w.seq, w.head[t], pubNames[t])
			}
		}
	case n < 9:
		w.read(p)
	case n < 13:
		w.take(p)
	case n < 15:
		w.catchUp(p)
	case n < 16:
		w.begin(p)
	case n < 21:
		w.work(w.rng.IntN(pubTopics))
	case n < 22:
		w.redrive(w.rng.IntN(pubTopics))
	default:
		w.fault(w.rng.IntN(pubTopics))
	}
}

func (w *pubWorld) fault(t int) {
	s := &w.streams[t]
	switch n := w.rng.IntN(8); {
	case n == 0:
		w.log("the stream of %s is flushed", pubNames[t])
		*s = pubStream{poison: s.poison}
	case n <= 2:
		if s.there {
			s.top = s.first + w.rng.Int64N(s.top-s.first+1)
			w.log("the stream of %s is rolled back to %d", pubNames[t], s.top)
		}
	case n == 3:
		if s.there {
			*s = pubStream{there: true, first: 1, top: min(s.top, 1+w.rng.Int64N(3)), poison: s.poison}
			w.log("the stream of %s is rolled back to its beginning, %d", pubNames[t], s.top)
		}
	case n == 4 && w.depth == 0: // not between a canary and what follows from it
		w.refuses = !w.refuses
		w.log("the stream refuses everything: %v", w.refuses)
	case n == 5:
		w.away = !w.away
		w.log("the stream is away: %v", w.away)
	default:
		if s.poison == 0 {
			s.poison = w.head[t] + w.rng.Int64N(3)
		} else {
			s.poison = 0
		}
		w.log("event %d of %s is refused", s.poison, pubNames[t])
	}
}

// meanwhile lets others do something between two calls.
func (w *pubWorld) meanwhile() {
	if w.depth == pubDepth || !w.chance(12) {
		return
	}
	was := w.actor
	w.depth++
	w.step()
	w.depth--
	w.actor = was
}

// Publish is the stream's.
func (w *pubWorld) Publish(_ context.Context, offers []stream.Offer) ([]stream.Answer, error) {
	w.meanwhile()
	if w.away {
		return nil, stream.ErrUnavailable
	}
	answers := make([]stream.Answer, len(offers))
	for i, o := range offers {
		t := pubTopic(o.Topic)
		switch {
		case w.refuses:
			answers[i].Err = errDenied
		case t >= 0:
			answers[i] = w.apply(t, o)
			w.log("offer %s %d to %d, restart %v, announce %v: %+v", o.Topic, o.First, o.Last(), o.Restart, o.Announce, answers[i])
		}
		w.meanwhile()
	}
	if w.chance(8) {
		w.log("the answers are lost")
		return nil, stream.ErrUnavailable
	}
	return answers, nil
}

// apply is the stream's side of an offer: publish.lua.
func (w *pubWorld) apply(topic int, o stream.Offer) stream.Answer {
	w.offers++
	if w.actor != nil && w.actor.knows[topic] {
		w.fail("what is set aside is left to its job", "%s is offered from %d on by a drain that knows", o.Topic, o.First)
	}
	s := &w.streams[topic]
	if w.chance(3) || s.poison > 0 && o.First <= s.poison && s.poison <= o.Last() {
		return stream.Answer{Err: errDenied}
	}
	if o.Restart {
		*s = pubStream{poison: s.poison}
	}
	last := o.Last()
	var a stream.Answer
	from := o.First
	for seq := int64(1); seq <= w.seq && s.there && o.First <= s.top+1; seq++ {
		// An empty stream takes any base. What lies before it needs no place there: whoever asks for it is sent to the journal.
		if r := &w.rows[seq]; r.topic == topic && r.offset >= o.First && r.offset < s.first {
			r.stored = true
		}
	}
	switch {
	case s.there && o.First > s.top+1:
		return stream.Answer{Outcome: stream.Gap, Next: s.top + 1}
	case s.there && last <= s.top:
		a = stream.Answer{Outcome: stream.Duplicate, Next: s.top + 1}
		if !o.Announce {
			return a
		}
	default:
		if s.there {
			from = s.top + 1
		} else {
			s.first = o.First
			for seq := int64(1); seq <= w.seq && w.actor == nil; seq++ {
				// A job that was cut off after it had unparked begins at the head, here of a stream that has lost everything:
				// whoever hears it has a gap, and heals that from the journal.
				if r := &w.rows[seq]; r.topic == topic && r.offset < s.first {
					r.stored = true
				}
			}
		}
		if w.chance(4) {
			last = from + w.rng.Int64N(last-from+1) // only a part of it
		}
		s.there, s.top = true, last
		a = stream.Answer{Outcome: stream.Appended, Next: last + 1}
		if o.Announce {
			from = o.First
		}
	}
	for seq := int64(1); seq <= w.seq; seq++ {
		if r := &w.rows[seq]; r.topic == topic && r.offset >= s.first && r.offset <= s.top {
			r.stored = true
		}
	}
	if w.chance(4) { // stored, and nobody was told
		for seq := int64(1); seq <= w.seq; seq++ {
			if r := &w.rows[seq]; r.topic == topic && r.offset >= from && r.offset <= last && w.actor != nil {
				r.mute = w.actor.publisher
			}
		}
		return stream.Answer{Err: errDenied, Outcome: a.Outcome, Next: a.Next}
	}
	if w.actor == nil {
		from = 0 // for the same reason
	}
	for seq := int64(1); seq <= w.seq; seq++ {
		if r := &w.rows[seq]; r.topic == topic && r.offset >= from && r.offset <= last {
			r.announced = true
		}
	}
	return a
}

// The ledger. Each call may fail, and others come before and after it.

func (w *pubWorld) parked(_ context.Context, _ int16, among []string) ([]string, error) {
	w.meanwhile()
	defer w.meanwhile()
	if w.chance(3) {
		return nil, errSim
	}
	var all []string
	for t, name := range pubNames {
		if among != nil && !slices.Contains(among, name) {
			continue
		}
		if w.actor.knows[t] = w.aside[t] > 0; w.aside[t] > 0 {
			all = append(all, name)
		}
	}
	return all, nil
}

func (w *pubWorld) park(_ context.Context, _ int16, refusals []refusal) error {
	w.meanwhile()
	defer w.meanwhile()
	if w.chance(3) {
		return errSim
	}
	if w.refuses {
		w.fail("trouble of the stream sets nothing aside", "%+v", refusals)
	}
	for _, r := range refusals {
		t := pubTopic(r.topic)
		if w.aside[t] == 0 {
			w.aside[t] = r.first
		}
		w.jobs[t] = max(w.jobs[t], 1)
		w.actor.knows[t] = true
		w.log("%s is set aside from %d on", r.topic, w.aside[t])
	}
	return nil
}

func (w *pubWorld) position(_ context.Context, topic string) (position, error) {
	w.meanwhile()
	defer w.meanwhile()
	if w.chance(3) {
		return position{}, errSim
	}
	t := pubTopic(topic)
	var from *int64
	if w.aside[t] > 0 {
		from = new(int64)
		*from = w.aside[t]
	}
	return position{epoch: "1-aaaa", head: w.head[t], parkedFrom: from}, nil
}

func (w *pubWorld) progress(_ context.Context, topic string, next int64, _ string, parked bool) error {
	w.meanwhile()
	defer w.meanwhile()
	if w.chance(3) {
		return errSim
	}
	if t := pubTopic(topic); parked && w.aside[t] > 0 {
		w.aside[t] = max(w.aside[t], next)
	}
	return nil
}

func (w *pubWorld) unpark(_ context.Context, topic string, _ int64, parked bool) error {
	w.meanwhile()
	defer w.meanwhile()
	if w.chance(3) {
		return errSim
	}
	if !parked {
		return nil
	}
	t := pubTopic(topic)
	w.aside[t] = 0
	for i := range w.pubs {
		w.pubs[i].knows[t] = false
	}
	w.log("%s is not set aside any more", topic)
	return nil
}

func (w *pubWorld) readTopic(_ context.Context, _ *journal.Scanner, topic string, from, to int64) (first int64, frames [][]byte, lastSeq int64, err error) {
	w.meanwhile()
	defer w.meanwhile()
	if w.chance(3) {
		return 0, nil, 0, errSim
	}
	t := pubTopic(topic)
	first = max(from, 1+w.floor(t))
	last := min(to, w.head[t], first+w.rng.Int64N(5))
	if last < first {
		return 0, nil, 0, nil
	}
	for seq := range w.seq + 1 {
		if w.rows[seq].topic == t && w.rows[seq].offset == last {
			lastSeq = seq
		}
	}
	return first, w.frames[:last-first+1], lastSeq, nil
}

// floor is the last offset of a topic that is past retention.
func (w *pubWorld) floor(topic int) int64 {
	if topic == pubTopics-1 {
		return pubFar
	}
	return 0
}

// read is drain.hand: a batch, in runs, that waits for the publisher.
func (w *pubWorld) read(p *pub) {
	upTo := min(w.seq, p.cursor+1+w.rng.Int64N(6))
	if upTo == p.cursor || len(p.waiting) > 1 {
		return
	}
	b := batch{gen: p.gen, epoch: "1-aaaa", base: p.done, last: upTo, announce: p.cursor < p.announceTo}
	for t, name := range pubNames {
		r := run{topic: name}
		for seq := p.cursor + 1; seq <= upTo; seq++ {
			switch {
			case w.rows[seq].topic != t:
			case r.first == 0:
				r.first, r.seq, r.frames = w.rows[seq].offset, seq, w.frames[:1]
			default:
				r.frames = w.frames[:len(r.frames)+1]
			}
		}
		if r.first > 0 {
			b.runs = append(b.runs, r)
		}
	}
	p.cursor = upTo
	p.waiting = append(p.waiting, b)
	w.log("read up to %d", upTo)
}

func (w *pubWorld) take(p *pub) {
	if len(p.waiting) == 0 {
		return
	}
	b := p.waiting[0]
	p.waiting = p.waiting[1:]
	w.log("take up to %d", b.last)
	w.act(p, func() { p.take(context.Background(), b) })
	w.follow(p)
}

// catchUp is publisher.catchUp, in one order, and however long laggards should wait.
func (w *pubWorld) catchUp(p *pub) {
	w.act(p, func() {
		for _, name := range pubNames {
			l := p.laggards[name]
			if l == nil {
				continue
			}
			if err := p.refill(context.Background(), name, l); errors.Is(err, stream.ErrUnavailable) {
				p.giveUp(context.Background(), err)
			}
			if p.down {
				return
			}
		}
	})
	w.follow(p)
}

// follow is drain.follow, once the stream is available again, and what the next sequencing takes along.
func (w *pubWorld) follow(p *pub) {
	p.down = false
	p.update()
	prog := p.progress()
	if prog.gen == p.gen && prog.published > p.done {
		p.done = prog.published
	}
	if p.gen <= prog.dead {
		p.announceTo = max(p.announceTo, p.cursor)
		p.restart(p.done)
		w.log("the drain reads again from %d", p.done)
	}
	for ; w.published < min(p.done, w.seq); w.published++ {
		w.rows[w.published+1].by = p.publisher
	}
	if p.done > p.cursor {
		w.fail("published is what was read", "%d, of %d", p.done, p.cursor)
	}
}

// work is a job of a topic that is set aside: republishWorker.Work. Another may begin before it has ended: its process
// seemed to be gone.
func (w *pubWorld) work(t int) {
	if w.running[t] == w.jobs[t] {
		if w.running[t] != 1 || !w.chance(30) {
			return
		}
		w.jobs[t]++
	}
	was := w.actor
	w.actor = nil
	w.running[t]++
	w.log("the job of %s begins", pubNames[t])
	r := &republisher{w: w.worker, ledger: w, topic: pubNames[t], rows: 1 + w.rng.IntN(8)}
	err := r.run(context.Background())
	w.meanwhile()
	w.actor = was
	w.running[t]--
	w.log("the job of %s: %v", pubNames[t], err)
	var refused *refusedError
	switch {
	case err == nil && w.aside[t] == 0:
		w.jobs[t]--
	case errors.As(err, &refused):
		w.aside[t] = r.next
		if w.dead[t] = w.running[t] == 0 && w.jobs[t] == 1 && w.chance(30); w.dead[t] { // that was the last attempt
			w.jobs[t]--
		}
	}
}

func (w *pubWorld) redrive(t int) {
	if w.dead[t] {
		w.dead[t] = false
		w.jobs[t] = max(w.jobs[t], 1)
		w.log("redrive of %s", pubNames[t])
	}
}

func (w *pubWorld) check() {
	for seq := int64(1); seq <= w.published; seq++ {
		r := w.rows[seq]
		owed := w.aside[r.topic] > 0 && w.aside[r.topic] <= r.offset || w.jobs[r.topic] > 0
		if !r.stored && !owed {
			w.fail("published is what the stream took", "published is %d; it never took seq %d, offset %d of %s", w.published, seq, r.offset, pubNames[r.topic])
		} else if !r.announced && !owed && (r.mute == nil || r.mute == r.by) { // of another drain's refusal a drain knows nothing: heads do
			w.fail("published is what was announced", "published is %d; seq %d, offset %d of %s never was", w.published, seq, r.offset, pubNames[r.topic])
		}
	}
}
