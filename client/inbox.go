package client

import (
	"sync"
)

const (
	// MaxQueued is how many frames of one topic wait for a Follow that is slow: a few seconds of a busy topic.
	MaxQueued = 4096
	// MaxQueuedBytes bounds their size, in bytes of data.
	MaxQueuedBytes = 8 << 20
)

// item is one thing that a Follow is told.
type item struct {
	op    op
	id    int64  // of a request
	gen   uint64 // of the connection; opUp
	epoch string
	head  int64
	ms    int64
	code  string
	text  string
	event *event
	err   *Error
}

type op int

const (
	opUp op = iota // a connection is there; gen names it
	opDown
	opLagged // frames were thrown away; gen is that of the connection now, 0: none
	opEvent
	opSubscribed
	opUnsubscribed
	opReset
	opHeartbeat
	opRefused
	opFailed // there will be no connection
)

// inbox is what waits for one Follow. Bounded: beyond that it keeps no frames, and says so. Safe for concurrent use.
type inbox struct {
	wake chan struct{} // of capacity 1: something waits

	mu     sync.Mutex
	items  []item
	bytes  int
	lagged bool
	gen    uint64 // of the connection now; 0: none
	failed *Error
}

func newInbox() *inbox { return &inbox{wake: make(chan struct{}, 1)} }

func (b *inbox) put(it item) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch it.op {
	case opUp:
		b.gen = it.gen
	case opDown:
		b.gen = 0
	case opFailed:
		b.failed = it.err
	}
	size := 0
	if it.event != nil {
		size = len(it.event.Data) + len(it.event.Headers)
	}
	if !b.lagged && (len(b.items) >= MaxQueued || b.bytes+size > MaxQueuedBytes) {
		b.lagged = true
		b.items, b.bytes = nil, 0
	}
	if !b.lagged {
		b.items = append(b.items, it)
		b.bytes += size
	}
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// take returns what has waited longest.
func (b *inbox) take() (item, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lagged {
		b.lagged = false
		if b.failed != nil {
			return item{op: opFailed, err: b.failed}, true
		}
		return item{op: opLagged, gen: b.gen}, true
	}
	if len(b.items) == 0 {
		b.items = nil
		return item{}, false
	}
	it := b.items[0]
	b.items[0] = item{}
	b.items = b.items[1:]
	if it.event != nil {
		b.bytes -= len(it.event.Data) + len(it.event.Headers)
	}
	return it, true
}
