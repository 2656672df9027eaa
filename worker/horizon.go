package worker

import (
	"context"
	"sync/atomic"
	"time"
)

const (
	// horizonEvery is the mean time between two looks at who writes to the outbox: about how far behind the newest
	// event the floor of a busy partition is, which costs each pass a look at the dead rows in between.
	horizonEvery = 250 * time.Millisecond
	// horizonTimeout bounds one look.
	horizonTimeout = 2 * time.Second
)

// horizon is the event id up to which every row of the outbox that will ever be is visible to new snapshots. Drains tell
// it to sequence(), which raises the partition's floor to it: passes begin there and do not step over the dead rows
// below, which vacuum cannot remove while a long reader might still want them. See commitcast.horizon for the proof.
type horizon struct {
	known atomic.Pointer[knownHorizon]

	// Of watchHorizon alone.
	epoch     string
	candidate int64               // safe once all waiting have ended
	waiting   map[string]struct{} // the transactions that wrote when candidate was read
}

type knownHorizon struct {
	epoch string
	safe  int64
}

// in is the horizon in an epoch, 0 if unknown. Safe for concurrent use.
func (h *horizon) in(epoch string) int64 {
	if k := h.known.Load(); k != nil && k.epoch == epoch {
		return k.safe
	}
	return 0
}

// see takes note of one look: the newest id, and who wrote right after it was read.
func (h *horizon) see(epoch string, newest int64, writers []string) {
	writing := make(map[string]struct{}, len(writers))
	for _, w := range writers {
		writing[w] = struct{}{}
	}
	if epoch != h.epoch { // ids may have been given again
		h.epoch, h.candidate, h.waiting = epoch, newest, writing
	}
	for w := range h.waiting {
		if _, ok := writing[w]; !ok {
			delete(h.waiting, w)
		}
	}
	if len(h.waiting) > 0 {
		return
	}
	safe := h.candidate
	h.candidate, h.waiting = newest, writing
	if len(writing) == 0 {
		safe = newest
	}
	h.known.Store(&knownHorizon{epoch, safe})
}

// watchHorizon looks while there are drains in this process, until ctx ends. What cannot be found out stalls the floor,
// never an event.
func (w *Worker) watchHorizon(ctx context.Context) {
	for sleep(ctx, jitter(horizonEvery)) {
		if !w.hub.busy() {
			continue
		}
		var epoch string
		var newest int64
		var writers []string
		qctx, cancel := context.WithTimeout(ctx, horizonTimeout)
		err := w.pool.QueryRow(qctx, `SELECT epoch, newest, writers FROM commitcast.horizon()`).Scan(&epoch, &newest, &writers)
		cancel()
		if err == nil { // otherwise the dispatcher says that the database is gone
			w.horizon.see(epoch, newest, writers)
		}
	}
}
