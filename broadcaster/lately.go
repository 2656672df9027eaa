package broadcaster

import (
	"sync"
	"time"
)

const (
	// latelyPart is a part of what counts as lately, and latelyParts how many there are: what is counted is told for 45 to 60 s, long
	// enough for somebody who is called by an alert, and short enough to be about now.
	latelyPart  = 15 * time.Second
	latelyParts = 4
)

// lately counts what has happened in the last minute.
type lately struct {
	mu    sync.Mutex
	part  int64 // the number of the newest
	count [latelyParts]int
}

// move goes on to the part that it is now. Called with mu held.
func (l *lately) move(now time.Time) {
	part := now.UnixNano() / int64(latelyPart)
	for n := max(l.part, part-latelyParts); n < part; n++ {
		l.count[(n+1)%latelyParts] = 0
	}
	l.part = max(l.part, part)
}

func (l *lately) add(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.move(now)
	l.count[l.part%latelyParts]++
}

func (l *lately) sum(now time.Time) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.move(now)
	for _, c := range l.count {
		n += c
	}
	return n
}
