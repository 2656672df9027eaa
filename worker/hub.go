package worker

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/commitcast/commitcast/wire"
)

// hub knows the drains of this process and takes wake-ups to them, or to the dispatcher where there is none.
type hub struct {
	hinted atomic.Uint32 // bit p: partition p was woken and has no drain here
	kick   chan struct{} // the dispatcher should look at hinted, or sweep

	mu       sync.Mutex
	drains   [wire.Partitions]*drain
	failures [wire.Partitions]failures
}

// failures counts the drains of a partition that failed here, one after the other.
type failures struct {
	n     int
	until time.Time // when this process orders the next
}

const (
	// failureLeast and failureMost are for how long this process orders no drain of a partition after one has failed
	// here. Other processes may.
	failureLeast = 250 * time.Millisecond
	failureMost  = 30 * time.Second
	// failureForgotten is how long a drain must have lived for the failures before it not to count.
	failureForgotten = 5 * time.Second
)

func newHub() *hub { return &hub{kick: make(chan struct{}, 1)} }

// enter makes d its partition's drain in this process.
func (h *hub) enter(d *drain) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drains[d.partition] = d
}

// leave takes d out and lets the dispatcher look after its partition.
func (h *hub) leave(d *drain) {
	h.mu.Lock()
	if h.drains[d.partition] == d {
		h.drains[d.partition] = nil
	}
	h.mu.Unlock()
	h.hint(int(d.partition))
}

// busy reports whether there is a drain here.
func (h *hub) busy() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.drains {
		if d != nil {
			return true
		}
	}
	return false
}

// held are the drains that would follow those of this process.
func (h *hub) held() (next []order) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for p, d := range h.drains {
		if d != nil {
			next = append(next, order{partition: int16(p), term: d.term + 1})
		}
	}
	return next
}

// wake says that partition p may have new events.
func (h *hub) wake(p int) {
	h.mu.Lock()
	d := h.drains[p]
	h.mu.Unlock()
	if d == nil {
		h.hint(p)
		return
	}
	signal(d.wake)
}

func (h *hub) wakeAll() {
	for p := range wire.Partitions {
		h.wake(p)
	}
}

func (h *hub) hint(p int) {
	h.hinted.Or(1 << p)
	signal(h.kick)
}

// ended counts how the drains of a partition end. One that was passed says nothing: River also runs the jobs of terms
// that have failed again.
func (h *hub) ended(partition int16, why string, err error, lived time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := &h.failures[partition]
	if err == nil {
		if why != endPassed {
			*f = failures{}
		}
		return
	}
	if lived > failureForgotten {
		f.n = 0
	}
	f.until = time.Now().Add(jitter(backoff(f.n, failureLeast, failureMost)))
	f.n++
}

// lookedAfter is the set, one bit each, of partitions for which this process orders no drain: those with a drain here
// that was in touch with Postgres lately, and those that failed here lately.
func (h *hub) lookedAfter(now time.Time) (set uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for p, d := range h.drains {
		if d != nil && now.Sub(time.Unix(0, d.inTouch.Load())) < ownSilence || now.Before(h.failures[p].until) {
			set |= 1 << p
		}
	}
	return set
}

// overlooked wakes the drain of a partition in which a sweep that ended at a time has seen events, unless the drain has
// looked since, or is about to. It reports whether the drain did not know.
func (h *hub) overlooked(p int16, swept time.Time) bool {
	h.mu.Lock()
	d := h.drains[p]
	h.mu.Unlock()
	if d == nil {
		return false
	}
	asked := d.asked.Load()
	return asked != 0 && asked < swept.UnixNano() && signal(d.wake)
}

// signal leaves a token in ch, and reports false if there was one.
func signal(ch chan struct{}) bool {
	select {
	case ch <- struct{}{}:
		return true
	default:
		return false
	}
}
