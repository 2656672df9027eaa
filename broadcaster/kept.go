package broadcaster

import (
	"container/list"
	"slices"
	"time"

	"github.com/commitcast/commitcast/stream"
)

const (
	// keepBytes is how much of what replays have read a node keeps for those who ask next, in all topics together (with several
	// databases, in equal parts): what
	// 50 topics have in 10 s at 1,000 events/s, and little beside the connections of those who come back.
	keepBytes = 64 << 20
	// keepFor is how long a run is kept after it was last asked for. Clients that were cut off together come back within
	// seconds; whoever comes later finds others before him, or reads himself.
	keepFor = 5 * time.Second
	// frameCost is what a frame takes in memory beside its bytes: its slice, and what the allocator rounds up.
	frameCost = 48
)

// place is where runs belong: one history of one topic. What was read in one is void in the next.
type place struct {
	feed    *feed
	history uint64
}

// kept holds what replays read and have read lately: of many who come back together, the first reads and the others
// take, so that each event is read once. A reading ends where the next one that is known begins: then whoever began
// before another goes on with what that one has read. It waits for nothing and reads no clock, like the machines of the
// splice.
type kept struct {
	maxBytes, maxRun int // bytes in all, events of one reading

	runs   map[place][]*reading // by offset; no two have an event in common
	recent list.List            // of *reading that have ended; the one asked for longest ago is first
	bytes  int
}

// reading is a run that is being read, or was.
type reading struct {
	hole
	last  int64         // the last offset that it may bring; once it has ended, that it has brought
	ended chan struct{} // closed by end: then run and err are what came of it
	run   stream.Run
	err   error
	bytes int
	asked time.Time
	old   *list.Element // in recent
}

func newKept(maxBytes, maxRun int) *kept {
	return &kept{maxBytes: maxBytes, maxRun: maxRun, runs: make(map[place][]*reading)}
}

// ask finds the reading that brings, or has brought, the event after a hole. If there is none, one begins that the caller
// is to carry out and end: mine.
func (k *kept) ask(h hole, now time.Time) (r *reading, mine bool) {
	runs := k.runs[h.place]
	next, _ := slices.BinarySearchFunc(runs, h.after+1, func(r *reading, after int64) int { return int(r.after - after) })
	if next > 0 && runs[next-1].last > h.after {
		r := runs[next-1]
		if r.asked = now; r.old != nil {
			k.recent.MoveToBack(r.old)
		}
		return r, false
	}
	r = &reading{hole: h, last: h.after + int64(k.maxRun), ended: make(chan struct{}), asked: now}
	if next < len(runs) {
		r.last = min(r.last, runs[next].after)
	}
	k.runs[h.place] = slices.Insert(runs, next, r)
	return r, true
}

// end takes what came of a reading. It is kept if it is what was asked for.
func (k *kept) end(r *reading, run stream.Run, err error, now time.Time) {
	if run.First == r.after+1 && run.Last() > r.last {
		run.Frames = run.Frames[:r.last-r.after] // more than was asked for: others have that
	}
	r.run, r.err = run, err
	defer close(r.ended)
	if err != nil || len(run.Frames) == 0 || run.First != r.after+1 || run.Channel != r.channel {
		k.drop(r)
		return
	}
	r.last = run.Last()
	for _, f := range run.Frames {
		r.bytes += len(f) + frameCost
	}
	k.bytes += r.bytes
	r.asked = now
	r.old = k.recent.PushBack(r)
	k.forget(time.Time{})
}

// forget drops what nobody has asked for since a time, and the rest, the oldest first, as far as it is too much.
func (k *kept) forget(since time.Time) {
	for e := k.recent.Front(); e != nil && (k.bytes > k.maxBytes || e.Value.(*reading).asked.Before(since)); e = k.recent.Front() {
		k.drop(e.Value.(*reading))
	}
}

func (k *kept) drop(r *reading) {
	runs := k.runs[r.place]
	if i := slices.Index(runs, r); len(runs) > 1 {
		k.runs[r.place] = slices.Delete(runs, i, i+1)
	} else {
		delete(k.runs, r.place)
	}
	if r.old != nil {
		k.recent.Remove(r.old)
		k.bytes -= r.bytes
	}
}

// after is what a reading that has ended has brought after an offset; nothing if it has not brought the next event.
func (r *reading) from(after int64) (stream.Run, bool) {
	if after == r.after {
		return r.run, true // whatever it is, an error included
	}
	if r.err != nil || after+1 < r.run.First || after >= r.run.Last() {
		return stream.Run{}, false
	}
	run := r.run
	run.Frames = run.Frames[after+1-run.First:]
	run.First = after + 1
	return run, true
}
