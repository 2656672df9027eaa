package broadcaster

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/commitcast/commitcast/stream"
)

func run(epoch string, from, to int64) stream.Run {
	r := stream.Run{Channel: stream.Channel{Epoch: epoch, Topic: "t"}, First: from}
	for n := from; n <= to; n++ {
		r.Frames = append(r.Frames, fmt.Appendf(nil, "%d", n))
	}
	return r
}

func readAll(l *sharedLog, cursor int64, budget int) (string, int64, readState) {
	p, cursor, _, state := l.read(make([]byte, headerRoom), "e", cursor, math.MaxInt64, budget)
	return strings.ReplaceAll(string(p[headerRoom:]), "\n", " "), cursor, state
}

func TestLogTakesOnlyWhatFollows(t *testing.T) {
	l := &sharedLog{maxEvents: 5, maxBytes: 1 << 10}
	if grew, gap := l.append(run("e", 1, 3)); grew || gap {
		t.Fatal("a log without a position took a run")
	}
	l.start("e", 4)
	for _, c := range []struct {
		run       stream.Run
		grew, gap bool
		holds     string
	}{
		{run("e", 6, 6), false, true, ""},
		{run("f", 4, 4), false, false, ""},
		{run("e", 4, 5), true, false, "4 5"},
		{run("e", 3, 5), false, false, "4 5"},
		{run("e", 4, 7), true, false, "4 5 6 7"},
		{run("e", 9, 9), false, true, "4 5 6 7"},
		{run("e", 8, 11), true, false, "7 8 9 10 11"},
	} {
		grew, gap := l.append(c.run)
		got, _, _ := readAll(l, l.first-1, 1<<20)
		if grew != c.grew || gap != c.gap || got != c.holds {
			t.Fatalf("append %d..%d of %s: grew %v gap %v holds %q, want %v %v %q",
				c.run.First, c.run.Last(), c.run.Epoch, grew, gap, got, c.grew, c.gap, c.holds)
		}
	}
	if _, _, state := readAll(l, 5, 100); state != readBehind {
		t.Fatalf("a cursor before the log: %v", state)
	}
	if _, cursor, state := readAll(l, 11, 100); state != readCurrent || cursor != 11 {
		t.Fatalf("a cursor at the end: %v at %d", state, cursor)
	}
	if _, _, _, state := l.read(nil, "f", 11, math.MaxInt64, 100); state != readForeign {
		t.Fatalf("another epoch: %v", state)
	}
}

func TestLogReadsWithinBudget(t *testing.T) {
	l := &sharedLog{maxEvents: 100, maxBytes: 1 << 10}
	l.start("e", 1)
	l.append(run("e", 1, 9))
	for _, c := range []struct {
		budget int
		want   string
		state  readState
	}{{0, "1", readMore}, {1, "1", readMore}, {2, "1 2", readMore}, {3, "1 2", readMore}, {17, "1 2 3 4 5 6 7 8 9", readCurrent}} {
		if got, _, state := readAll(l, 0, c.budget); got != c.want || state != c.state {
			t.Errorf("budget %d: %q %v, want %q %v", c.budget, got, state, c.want, c.state)
		}
	}
}

func TestLogBytesAreBounded(t *testing.T) {
	l := &sharedLog{maxEvents: 1000, maxBytes: 600}
	l.start("e", 1)
	for n := int64(1); n < 500; n++ {
		l.append(run("e", n, n))
		if l.bytes > 600 || len(l.frames) > 300 {
			t.Fatalf("at %d: %d bytes in %d slots", n, l.bytes, len(l.frames))
		}
	}
	l.append(stream.Run{Channel: stream.Channel{Epoch: "e"}, First: 500, Frames: [][]byte{make([]byte, 1000)}})
	if l.first != 500 || l.next != 501 {
		t.Fatalf("one frame over the limit must be kept: %d..%d", l.first, l.next)
	}
}

// The windows of a node share its room: one that there is no room for is full, but not before it holds enough for its reader to
// get on; and what is sent, or given up, is given back.
func TestWindowsShareTheirRoom(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 3))
		shared := &room{most: 3 * windowLeast}
		early := 0
		readers := make([]*reader, 4)
		for i := range readers {
			readers[i] = &reader{conflate: true, state: subLive}
		}
		for range 2000 {
			rd := readers[r.IntN(len(readers))]
			w := rd.window
			switch {
			case w == nil:
				rd.window = newWindow(rd.cursor, 10*windowLeast, shared)
			case r.IntN(500) == 0:
				rd.leave()
			case w.full():
				if early++; w.bytes <= windowLeast {
					t.Fatalf("seed %d: a window is full of %d bytes", seed, w.bytes)
				}
				w.close()
				if _, more := rd.send(make([]byte, headerRoom), 1<<20); !more || rd.window != nil || rd.cursor != w.last {
					t.Fatalf("seed %d: a window is not sent", seed)
				}
			default:
				w.add(fmt.Appendf(nil, `{"op":"event","topic":"t","epoch":"1-0000","offset":%d,"id":1,"type":"x","key":"k%d","at":"","data":{}}`, w.last+1, r.IntN(100_000)))
			}
			var sum int
			for _, rd := range readers {
				if rd.window != nil {
					sum += rd.window.bytes
				}
			}
			if used := int(shared.used.Load()); used != sum || used > 3*windowLeast+len(readers)*(windowLeast+400) {
				t.Fatalf("seed %d: %d bytes are held, %d counted", seed, sum, used)
			}
		}
		if early == 0 {
			t.Fatalf("seed %d: no window was full: the test proves nothing", seed)
		}
		for _, rd := range readers {
			rd.leave()
		}
		if used := shared.used.Load(); used != 0 {
			t.Fatalf("seed %d: %d bytes are left", seed, used)
		}
	}
}

// The logs of a node share its room: none grows at the cost of what is promised to the process, each keeps its newest frame, and
// what a topic took is given back.
func TestLogsShareTheirRoom(t *testing.T) {
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 2))
		shared := &room{most: 1000}
		logs := make([]*sharedLog, 4)
		for i := range logs {
			logs[i] = &sharedLog{maxEvents: 50, maxBytes: 1 << 20, room: shared}
			logs[i].start("e", 1)
		}
		for range 200 {
			l := logs[r.IntN(len(logs))]
			switch r.IntN(20) {
			case 0:
				l.relieve()
			case 1:
				l.skip("e", l.next+1)
			default:
				from := l.next
				if l.append(run("e", from, from+int64(r.IntN(5)))); l.first >= l.next {
					t.Fatalf("seed %d: the newest frame is gone", seed)
				}
			}
			var sum int
			for _, l := range logs {
				sum += l.bytes
			}
			if used := int(shared.used.Load()); used != sum || used > 1000+len(logs)*(frameCost+4) {
				t.Fatalf("seed %d: %d bytes are used, %d counted", seed, sum, used)
			}
		}
		for _, l := range logs {
			l.leave()
			l.append(run("e", l.next, l.next)) // too late: it is not counted any more
		}
		if used := shared.used.Load(); used != 0 {
			t.Fatalf("seed %d: %d bytes are left", seed, used)
		}
	}
}

// Any sequence of runs and reads shows each cursor consecutive offsets only.
func TestLogNeverShowsAHole(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		l := &sharedLog{maxEvents: 1 + r.IntN(8), maxBytes: 1 << 10}
		l.start("e", 1)
		cursor := int64(0)
		for range 60 {
			switch r.IntN(3) {
			case 0, 1:
				from := max(1, l.next-3+int64(r.IntN(6)))
				l.append(run("e", from, from+int64(r.IntN(4))))
			case 2:
				text, next, state := readAll(l, cursor, r.IntN(10))
				for _, s := range strings.Fields(text) {
					if cursor++; s != fmt.Sprint(cursor) {
						t.Fatalf("seed %d: after %d came %s", seed, cursor-1, s)
					}
				}
				if next != cursor {
					t.Fatalf("seed %d: cursor %d after showing %d", seed, next, cursor)
				}
				if state == readBehind {
					cursor = l.first - 1
				}
			}
		}
	}
}
