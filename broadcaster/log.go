package broadcaster

import (
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

// sharedLog holds the newest frames of one topic, in one epoch: offsets first … next-1, contiguous. Subscribers
// read it at their own cursors; nothing is copied for them until it is written to their sockets.
type sharedLog struct {
	maxEvents, maxBytes int
	room                *room // that of the node; nil: without a limit
	windows             *room // that of the node for conflating readers
	maxMessage          int   // bytes: a conflating subscriber for whom more is waiting is behind

	mu     sync.RWMutex
	epoch  string   // "" until the first reset: the position is not known yet
	frames [][]byte // frames[head:] are offsets first … next-1
	head   int
	first  int64
	next   int64
	bytes  int
	base   int64 // what lies up to here has not passed through the log since it began or skipped
}

// room is what the logs of all topics of a node hold together, in bytes, with frameCost for each frame. A log that grows when
// there is none drops its own oldest frames for what it takes; relieve makes room for it at the cost of all.
type room struct {
	most int64
	used atomic.Int64
}

func (r *room) take(bytes int) {
	if r != nil {
		r.used.Add(int64(bytes))
	}
}

// full reports whether there is no room for more bytes.
func (r *room) full(bytes int) bool { return r != nil && r.used.Load()+int64(bytes) > r.most }

// measure has a metric say how much is used.
func (r *room) measure(to prometheus.Registerer, name, help string) {
	if to != nil {
		to.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "commitcast_broadcaster_" + name, Help: help},
			func() float64 { return float64(r.used.Load()) }))
	}
}

// reset empties the log: it continues at next, in epoch.
func (l *sharedLog) reset(epoch string, next int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clear(epoch, next)
}

func (l *sharedLog) clear(epoch string, next int64) {
	clear(l.frames)
	l.room.take(-l.bytes)
	l.epoch, l.frames, l.head, l.first, l.next, l.bytes, l.base = epoch, l.frames[:0], 0, next, next, 0, next-1
}

// skip moves the log on to next, dropping what it holds, if it is in epoch and not that far yet.
func (l *sharedLog) skip(epoch string, next int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.epoch == epoch && next > l.next {
		l.clear(epoch, next)
	}
}

// start gives the log its position unless it has one in this epoch already.
func (l *sharedLog) start(epoch string, next int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.epoch != epoch {
		l.clear(epoch, next)
	}
}

// position is the epoch and the last offset that the log has seen.
func (l *sharedLog) position() (epoch string, last int64) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.epoch, l.next - 1
}

// append takes what follows the log's last offset. grew says whether anything was new; gap says that the run begins
// later than it could be taken.
func (l *sharedLog) append(r stream.Run) (grew, gap bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.epoch != r.Epoch {
		return false, false
	}
	if r.First > l.next {
		return false, true
	}
	if r.Last() < l.next {
		return false, false
	}
	before := l.bytes
	for _, f := range r.Frames[l.next-r.First:] {
		if wire.IsFence(f) {
			f = shown(f)
		}
		l.frames = append(l.frames, f)
		l.bytes += len(f) + frameCost
		l.next++
	}
	l.trim(before)
	l.room.take(l.bytes - before)
	return true, false
}

// relieve drops the older half of what the log holds.
func (l *sharedLog) relieve() {
	l.mu.Lock()
	defer l.mu.Unlock()
	before, half := l.bytes, l.bytes/2
	for l.bytes > half && l.next-l.first > 1 {
		l.drop()
	}
	l.compact()
	l.room.take(l.bytes - before)
}

// leave gives the log's room back: it counts no more.
func (l *sharedLog) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.room.take(-l.bytes)
	l.room = nil
}

// trim drops the oldest frames beyond the limits of the log; and beyond what it held before, in bytes, if the node has no room
// for more. The newest stays.
func (l *sharedLog) trim(before int) {
	for n := len(l.frames) - l.head; n > l.maxEvents || n > 1 && (l.bytes > l.maxBytes || l.bytes > before && l.room.full(l.bytes-before)); n-- {
		l.drop()
	}
	l.compact()
}

// drop drops the oldest frame.
func (l *sharedLog) drop() {
	l.bytes -= len(l.frames[l.head]) + frameCost
	l.frames[l.head] = nil
	l.head++
	l.first++
}

// compact moves the frames down when half of the slice is dead.
func (l *sharedLog) compact() {
	if l.head > 64 && l.head > len(l.frames)/2 {
		n := copy(l.frames, l.frames[l.head:])
		clear(l.frames[n:])
		l.frames, l.head = l.frames[:n], 0
	}
}

// since is the offset behind which everything has passed through the log.
func (l *sharedLog) since() int64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.base
}

// readState says where a cursor stands after a read.
type readState uint8

const (
	readCurrent readState = iota // nothing more now
	readMore                     // the budget was used up
	readBehind                   // the log begins after the cursor: a replay is needed
	readForeign                  // the log is of another epoch, or has no position yet
)

// read appends the frames after cursor and before the offset end to p, one a line, until p has grown by budget (but at least
// one frame), and returns the new cursor with the frame that it is now at; nil if it has not moved.
func (l *sharedLog) read(p []byte, epoch string, cursor, end int64, budget int) (_ []byte, _ int64, last []byte, _ readState) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	switch {
	case l.epoch != epoch:
		return p, cursor, nil, readForeign
	case cursor+1 < l.first:
		return p, cursor, nil, readBehind
	}
	start := len(p)
	for cursor+1 < min(l.next, end) {
		f := l.frames[l.head+int(cursor+1-l.first)]
		if len(p) > start && len(p)-start+len(f) > budget {
			return p, cursor, last, readMore
		}
		p = appendLine(p, f)
		last = f
		cursor++
	}
	return p, cursor, last, readCurrent
}

// pending is how many bytes of a message all frames after cursor take; -1 if the log begins after it. 0 of another epoch.
func (l *sharedLog) pending(epoch string, cursor int64) (bytes int) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	switch {
	case l.epoch != epoch:
		return 0
	case cursor+1 < l.first:
		return -1
	}
	for n := cursor + 1; n < l.next; n++ {
		bytes += len(l.frames[l.head+int(n-l.first)]) + 1
	}
	return bytes
}

// window adds what follows a window to it, until it holds as much as a log may.
func (l *sharedLog) window(w *window, epoch string) readState {
	l.mu.RLock()
	defer l.mu.RUnlock()
	switch {
	case l.epoch != epoch:
		return readForeign
	case w.last+1 < l.first:
		return readBehind
	}
	for w.last+1 < l.next && !w.full() {
		w.add(l.frames[l.head+int(w.last+1-l.first)])
	}
	return readCurrent
}

// appendLine appends a frame to a message: lines are separated, not ended, by a newline.
func appendLine(p, frame []byte) []byte {
	if len(p) > headerRoom {
		p = append(p, '\n')
	}
	return append(p, frame...)
}
