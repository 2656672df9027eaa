package worker

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/commitcast/commitcast/stream"
)

var (
	schedules = flag.Uint64("schedules", 0, "how many schedules TestPublishSchedules explores; 0: 200,000, as far as it gets in 5 s")
	seed      = flag.Uint64("seed", 0, "the one schedule to run, with its trace")
)

// TestPublishSchedules drives what decides about publishing (decide, watermark, laggard) through schedules: two
// publishers of one partition at once, one of which may be long out of date, and a stream that is flushed, rolled back,
// refuses, takes a part, or whose answer is lost. The order of their calls is publisher's.
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
)

var pubNames = [pubTopics]string{"a", "b", "far"}

// pubRow is one row of the journal; its index is its seq.
type pubRow struct {
	topic             int
	offset            int64
	stored, announced bool
}

type pubStream struct {
	there      bool
	first, top int64
}

// pub is one publisher: a generation of it, from a base on.
type pub struct {
	mark     watermark
	laggards map[string]*laggard
	cursor   int64 // the last seq read
	announce bool
}

type pubWorld struct {
	rng     *rand.Rand
	pcg     rand.PCG
	broken  string
	tracing bool
	trace   []string
	calm    bool

	rows      [pubRows + 1]pubRow
	seq       int64
	head      [pubTopics]int64
	streams   [pubTopics]pubStream
	published int64 // as the database knows
	pubs      [2]pub
	offers    int
	frames    [pubRows][]byte
}

func (w *pubWorld) log(format string, args ...any) {
	if w.tracing {
		w.trace = append(w.trace, fmt.Sprintf(format, args...))
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
	pcg := w.pcg
	*w = pubWorld{pcg: pcg, tracing: w.tracing, trace: w.trace[:0]}
	w.pcg.Seed(seed, 1)
	w.rng = rand.New(&w.pcg)
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
	w.calm = true
	w.begin(&w.pubs[0]) // whoever was out of date is passed
	before := w.offers
	for range 40 {
		w.take(&w.pubs[0])
		w.catchUp(&w.pubs[0])
		w.check()
	}
	if w.broken == "" && (w.published != w.seq || len(w.pubs[0].laggards) > 0) {
		w.fail("it comes to rest", "published %d of %d, %d laggards", w.published, w.seq, len(w.pubs[0].laggards))
	}
	if n := w.offers - before; n > 4*pubRows {
		w.fail("offers are bounded", "%d", n)
	}
}

// begin is a new generation: a takeover, another epoch of the connection, or after an answer that was lost.
func (w *pubWorld) begin(p *pub) {
	p.mark.reset("1-aaaa", w.published)
	p.laggards = make(map[string]*laggard, pubTopics)
	p.cursor, p.announce = w.published, true
	w.log("publisher begins at %d", w.published)
}

func (w *pubWorld) step() {
	p := &w.pubs[w.rng.IntN(2)]
	switch n := w.rng.IntN(20); {
	case n < 6:
		for range 1 + w.rng.IntN(3) {
			if w.seq < pubRows {
				t := w.rng.IntN(pubTopics)
				w.seq++
				w.head[t]++
				w.rows[w.seq] = pubRow{topic: t, offset: w.head[t]}
			}
		}
	case n < 12:
		w.take(p)
	case n < 15:
		w.catchUp(p)
	case n < 16:
		w.begin(p)
	default:
		w.fault(&w.streams[w.rng.IntN(pubTopics)])
	}
}

func (w *pubWorld) fault(s *pubStream) {
	switch w.rng.IntN(4) {
	case 0:
		*s = pubStream{}
		w.log("a stream is flushed")
	case 1, 2:
		if s.there {
			s.top = s.first + w.rng.Int64N(s.top-s.first+1)
			w.log("a stream is rolled back to %d", s.top)
		}
	case 3:
		if s.there {
			*s = pubStream{there: true, first: 1, top: 1 + w.rng.Int64N(3)}
			w.log("a stream is rolled back to its beginning, %d", s.top)
		}
	}
}

// apply is the stream's side of an offer: publish.lua.
func (w *pubWorld) apply(topic int, o stream.Offer) stream.Answer {
	w.offers++
	if w.chance(4) {
		return stream.Answer{Err: errors.New("refused")}
	}
	s := &w.streams[topic]
	if o.Restart {
		*s = pubStream{}
	}
	last := o.Last()
	var a stream.Answer
	from := o.First
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
		return stream.Answer{Err: errors.New("SPUBLISH refused"), Outcome: a.Outcome, Next: a.Next}
	}
	for seq := int64(1); seq <= w.seq; seq++ {
		if r := &w.rows[seq]; r.topic == topic && r.offset >= from && r.offset <= last {
			r.announced = true
		}
	}
	return a
}

// offer is one run as it is offered.
func (w *pubWorld) offer(topic int, first, last int64, restart, announce bool) stream.Offer {
	return stream.Offer{
		Run:     stream.Run{Channel: stream.Channel{Topic: pubNames[topic]}, First: first, Frames: w.frames[:last-first+1]},
		Restart: restart, Announce: announce,
	}
}

// take is publisher.take: a batch, in runs.
func (w *pubWorld) take(p *pub) {
	upTo := min(w.seq, p.cursor+1+w.rng.Int64N(6))
	if upTo == p.cursor {
		return
	}
	var first, last, firstSeq [pubTopics]int64
	for seq := p.cursor + 1; seq <= upTo; seq++ {
		r := w.rows[seq]
		if first[r.topic] == 0 {
			first[r.topic], firstSeq[r.topic] = r.offset, seq
		}
		last[r.topic] = r.offset
	}
	var offers [pubTopics]stream.Offer
	var offered [pubTopics]bool
	for t := range first {
		if first[t] == 0 {
			continue
		}
		p.mark.offer(pubNames[t], firstSeq[t])
		if l := p.laggards[pubNames[t]]; l != nil {
			l.last = max(l.last, last[t])
			continue
		}
		offers[t], offered[t] = w.offer(t, first[t], last[t], false, p.announce), true
	}
	p.mark.take(upTo)
	p.cursor = upTo
	var answers [pubTopics]stream.Answer
	for t := range offers {
		if offered[t] {
			answers[t] = w.apply(t, offers[t])
			w.log("offer %s %d to %d: %+v", pubNames[t], offers[t].First, offers[t].Last(), answers[t])
		}
	}
	if w.chance(8) {
		w.log("the answers are lost")
		w.begin(p)
		return
	}
	for t := range offers {
		if !offered[t] {
			continue
		}
		o := offers[t]
		switch v, from := decide(o, answers[t]); v {
		case confirmed:
			p.mark.settle(pubNames[t])
		case refill:
			p.laggards[pubNames[t]] = &laggard{next: from, last: o.Last()}
		default:
			p.laggards[pubNames[t]] = &laggard{next: o.First, last: o.Last(), restart: v == restart}
		}
	}
	w.report(p)
}

// catchUp is publisher.refill, for each laggard.
func (w *pubWorld) catchUp(p *pub) {
	for t, name := range pubNames {
		l := p.laggards[name]
		if l == nil {
			continue
		}
		last := min(l.last, l.next+1+w.rng.Int64N(4))
		first := max(l.next, 1+w.floor(t))
		last = max(last, first)
		o := w.offer(t, first, last, l.restart || first > l.next, true)
		a := w.apply(t, o)
		w.log("refill %s %d to %d, restart %v: %+v", name, o.First, o.Last(), o.Restart, a)
		if w.chance(8) {
			w.log("the answer is lost")
			w.begin(p)
			return
		}
		switch v, from := decide(o, a); v {
		case confirmed:
			l.next, l.restart = last+1, false
			for seq := int64(1); seq <= p.cursor; seq++ {
				if w.rows[seq].topic == t && w.rows[seq].offset == last {
					p.mark.confirm(name, seq+1)
				}
			}
			if l.next > l.last {
				delete(p.laggards, name)
				p.mark.settle(name)
			}
		case refill:
			l.next, l.restart = from, false
		case restart:
			l.restart = true
		}
	}
	w.report(p)
}

// floor is the last offset of a topic that is past retention.
func (w *pubWorld) floor(topic int) int64 {
	if topic == pubTopics-1 {
		return pubFar
	}
	return 0
}

// report is what the next sequencing takes along.
func (w *pubWorld) report(p *pub) { w.published = max(w.published, p.mark.published()) }

func (w *pubWorld) check() {
	for seq := int64(1); seq <= w.published; seq++ {
		r := w.rows[seq]
		if !r.stored {
			w.fail("published is what the stream took", "published is %d; it never took seq %d, offset %d of %s", w.published, seq, r.offset, pubNames[r.topic])
		} else if !r.announced {
			w.fail("published is what was announced", "published is %d; seq %d, offset %d of %s never was", w.published, seq, r.offset, pubNames[r.topic])
		}
	}
	for i := range w.pubs {
		if p := &w.pubs[i]; p.mark.published() > p.cursor {
			w.fail("published is what was read", "%d, of %d", p.mark.published(), p.cursor)
		}
	}
}
