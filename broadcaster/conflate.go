package broadcaster

import (
	"cmp"
	"slices"

	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

// A conflating reader that is behind, by more than one message takes, is sent a window: of a stretch of offsets the latest
// event of each key, and each event without a key. What is left out has a later event of its key in the same window, and the
// client applies a window as a whole, or not at all. So a state is that of one offset at any time, and a connection or a
// database that ends in the middle of a window leaves the client, like the reader, at the cursor before it.
//
// A window is made of what replays bring and of the log, and a place among the replays of its session is held for it, since it
// is a copy: of a frame for each key. Whoever is not behind has no window, and shares the frames of the log.

// windowCost is what an event of a window takes in memory beside its frame and its key.
const windowCost = 128

// windowsBytes is what all windows of a node hold, in bytes, beside windowLeast of each: with less, a page would be read for few
// events. Without room they are closed sooner, and less is left out.
const windowsBytes, windowLeast = 64 << 20, 16 << 10

// window is a stretch of offsets behind a reader's cursor. Guarded by the session's mu.
type window struct {
	last        int64 // the newest offset in it
	latest      map[string]*windowed
	all         []*windowed // until it is closed in no order
	bytes, most int         // beyond most, nothing comes to it any more
	room        *room       // of all windows of the node
	leftOut     int64
	enough      bool  // the client has waited for it long enough: it is to be closed as it is
	closed      bool  // nothing comes to it any more: all is what is yet to be sent, by offset
	sent        int64 // the newest offset that was sent
}

type windowed struct {
	offset int64
	frame  []byte
}

func newWindow(cursor int64, most int, room *room) *window {
	return &window{last: cursor, sent: cursor, most: most, room: room, latest: make(map[string]*windowed)}
}

// full reports whether a window is to be closed as it is.
func (w *window) full() bool { return w.bytes > w.most || w.bytes > windowLeast && w.room.full(0) }

// drop gives the window's room back.
func (w *window) drop() {
	w.room.take(-w.bytes)
	w.bytes = 0
}

// add takes the event after the last one.
func (w *window) add(frame []byte) {
	w.last++
	before := w.bytes
	defer func() { w.room.take(w.bytes - before) }()
	key := wire.EventKey(frame)
	if e := w.latest[string(key)]; e != nil {
		w.bytes -= cap(e.frame)
		w.leftOut++
		e.offset, e.frame = w.last, append(e.frame[:0], frame...)
		w.bytes += cap(e.frame)
		return
	}
	e := &windowed{w.last, slices.Clone(frame)}
	w.all = append(w.all, e)
	w.bytes += cap(e.frame) + len(key) + windowCost
	if key != nil {
		w.latest[string(key)] = e
	}
}

// close puts a window in order, to be sent.
func (w *window) close() {
	w.closed, w.latest = true, nil
	slices.SortFunc(w.all, func(x, y *windowed) int { return cmp.Compare(x.offset, y.offset) })
}

// holds reports whether the reader has read what is not sent yet.
func (r *reader) holds() bool { return len(r.chunk) > 0 || r.window != nil }

// position is the offset after which is to be read.
func (r *reader) position() int64 {
	if r.window != nil {
		return r.window.last
	}
	return r.cursor
}

// grant gives a reader the place that it waited for. read: something is to be read, for splice; otherwise there is something to
// collect, since a conflating reader that is behind may have what follows in the log.
func (r *reader) grant(log *sharedLog) (read bool) {
	if !r.conflate || r.state != subLive {
		return true
	}
	if r.window == nil {
		r.window = newWindow(r.cursor, log.maxBytes, log.windows)
	}
	if log.pending(r.epoch, r.window.last) < 0 || r.goesAhead(r.window.last) {
		return true
	}
	r.replaying = false
	return false
}

// fold takes a replay into the window. What it brings of the reader's own fence ends the reader.
func (r *reader) fold(run stream.Run) {
	for _, f := range run.Frames {
		if r.window.full() {
			return
		}
		if wire.IsFence(f) {
			if r.meets(f) {
				return
			}
			f = shown(f)
		}
		r.window.add(f)
	}
}

// conflated is collect for a reader that has a window, or needs one. ok is false if it is to be served like everybody else.
func (r *reader) conflated(p []byte, log *sharedLog, budget int) (_ []byte, more bool, then next, ok bool) {
	w := r.window
	switch {
	case r.replaying:
		return p, false, nextNothing, true
	case w == nil && (r.at > 0 || log.pending(r.epoch, r.cursor) <= log.maxMessage):
		return p, false, nextNothing, false // a message takes all of it, or it ends at a fence
	case w == nil:
		r.replaying = true
		return p, false, nextReplay, true
	case !w.closed:
		switch state := log.window(w, r.epoch); {
		case state == readForeign:
			return p, false, nextNothing, true // it is about to join again
		case state == readBehind && !w.enough && !w.full() && !(len(w.all) > 0 && r.asksAgain(log)): // it is sent before that
			return p, false, r.behind(log), true
		}
		w.close()
	}
	p, more = r.send(p, budget)
	return p, more, nextNothing, true
}

// send appends what is left of a closed window to a message. The cursor moves when all of it was sent.
func (r *reader) send(p []byte, budget int) (_ []byte, more bool) {
	w := r.window
	start := len(p)
	for len(w.all) > 0 {
		e := w.all[0]
		if len(p) > start && len(p)-start+len(e.frame) > budget {
			return p, true
		}
		left, together := e.offset-w.sent-1, w.leftOut > 0 && len(w.all) > 1
		if left > 0 || together {
			p = wire.AppendConflated(appendLine(p, nil), e.frame, left, together)
		} else {
			p = appendLine(p, e.frame)
		}
		w.sent = e.offset
		if !together {
			r.cursor = e.offset
			r.passed(e.frame)
		}
		w.all[0] = nil
		w.all = w.all[1:]
	}
	r.leftOut += w.leftOut
	w.drop()
	r.window = nil
	return p, true // what came meanwhile
}
