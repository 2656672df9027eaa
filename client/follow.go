package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"time"

	"github.com/commitcast/commitcast/wire"
)

const (
	// snapshotWithin bounds one read of a snapshot.
	snapshotWithin = 30 * time.Second
	// againBase and againCap are the first and the longest pause between healings, and between reads of a snapshot.
	againBase = 250 * time.Millisecond
	againCap  = 30 * time.Second
)

// Topic says how a topic is followed. Snapshot and Apply are required.
type Topic[S any] struct {
	// Snapshot reads the state and where it stands, at one moment: what outbox.Snapshot returns on the server's side. Its
	// ctx lasts 30 s. A [SnapshotError] may say that there is no use in trying again; any other error is reported to
	// OnError, and it is tried again, after a while.
	Snapshot func(ctx context.Context) (Held[S], error)

	// Apply returns the state with one event in it. It is called exactly once for each event that the state does not
	// hold, in order. If it fails, the snapshot is read again.
	Apply func(state S, e *wire.Event) (S, error)

	// Resume is a state that was kept, with its token; nil begins with a snapshot.
	Resume *Held[S]

	// Conflate leaves out, whenever this client is behind by more than a message, each event that has a later one of the same
	// key. Choose it if an event holds all there is to know of its key. Apply is called for what is left, in order, and what
	// belongs together becomes one Change: a state is still that of one moment. Events without a key are never left out.
	Conflate bool

	// RereadSkipped reads the snapshot again when an event could not be shown in a frame, instead of passing over it.
	RereadSkipped bool
}

// Change is one step of a topic.
type Change[S any] struct {
	// Held is the state after it and the token that belongs to it. Whoever keeps a state keeps both, at once.
	Held[S]
	// Event is what was applied. nil: the state was read anew (Snapshot), or only the token or Current has changed.
	Event *wire.Event
	// Events are all that were applied at once, Event the last of them, if others before it were left out (Topic.Conflate).
	// Otherwise nil.
	Events []*wire.Event
	// Snapshot says that the state was replaced, and everything before it is void.
	Snapshot bool
	// Current says that the state holds every event that is known to exist.
	Current bool
}

// Follow follows a topic: first its snapshot, or what Resume holds as soon as it is found to be current, then each event.
// The sequence ends with an error: ctx's, or an *[Error] that is Final. Leaving the loop unsubscribes. To read the state
// anew, leave it and begin again without Resume.
//
// Each sequence may be used once. A client follows a topic once at a time.
func Follow[S any](ctx context.Context, c *Client, name string, t Topic[S]) iter.Seq2[Change[S], error] {
	return func(yield func(Change[S], error) bool) {
		fail := func(err error) { yield(Change[S]{}, err) }
		if t.Snapshot == nil || t.Apply == nil {
			fail(errors.New("client: Follow needs Topic.Snapshot and Topic.Apply"))
			return
		}
		if t.Resume != nil {
			if err := t.Resume.Token.check(); err != nil {
				fail(fmt.Errorf("client: Topic.Resume: %w", err))
				return
			}
		}
		box, err := c.register(name)
		if err != nil {
			fail(err)
			return
		}
		f := &follower[S]{c: c, name: name, t: t, box: box}
		defer c.unregister(name, box)
		defer f.m.close()
		defer func() {
			if f.timer != nil {
				f.timer.Stop()
			}
		}()
		f.m.ports = ports[S]{
			subscribe: func(after wire.Cursor) int64 {
				return c.request(box, f.gen, wire.Request{Op: wire.OpSubscribe, Topic: name, After: after.String(), Conflate: t.Conflate})
			},
			unsubscribe: func() int64 { return c.request(box, f.gen, wire.Request{Op: wire.OpUnsubscribe, Topic: name}) },
			wait:        f.wait, apply: f.apply, changed: f.changed, rereadSkipped: t.RereadSkipped,
		}
		f.m.start(t.Resume)
		for {
			if f.change == nil && f.m.current() && !f.current {
				f.change = &Change[S]{Held: *f.m.held}
			}
			f.current = f.m.current()
			if ch := f.change; ch != nil {
				f.change = nil
				ch.Current = f.current
				if !yield(*ch, nil) {
					return
				}
			}
			if f.failed != nil {
				fail(f.failed)
				return
			}
			if err := ctx.Err(); err != nil {
				fail(err)
				return
			}
			if f.m.phase == phaseReading {
				f.read(ctx)
				continue
			}
			if it, ok := box.take(); ok {
				f.take(it)
				continue
			}
			select {
			case <-ctx.Done():
			case <-box.wake:
			case <-f.due():
				f.m.due()
			}
		}
	}
}

// follower is one Follow, in its goroutine.
type follower[S any] struct {
	c       *Client
	name    string
	t       Topic[S]
	box     *inbox
	m       machine[S]
	gen     uint64 // of the connection that the machine knows; 0: none
	change  *Change[S]
	current bool // as it was yielded last
	failed  *Error
	timer   *time.Timer
}

func (f *follower[S]) take(it item) {
	switch it.op {
	case opUp:
		f.gen = it.gen
		f.m.up()
	case opDown:
		f.gen = 0
		f.m.down()
	case opLagged:
		if it.gen != f.gen {
			f.gen = it.gen
			f.m.down()
			if it.gen != 0 {
				f.m.up()
			}
		} else if it.gen != 0 {
			f.m.lagged()
		}
	case opEvent:
		f.m.event(it.event)
	case opSubscribed:
		f.m.subscribed(it.id, it.epoch, it.head)
	case opUnsubscribed:
		f.m.unsubscribed(it.id)
	case opReset:
		f.m.reset(it.ms)
	case opHeartbeat:
		f.m.heartbeat(it.epoch, it.head)
	case opRefused:
		if f.m.refused(it.id, it.code) {
			f.failed = &Error{KindRefused, f.name, true, &wire.Error{Code: it.code, Message: it.text}}
		}
	case opFailed:
		f.failed = it.err
	}
}

func (f *follower[S]) read(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, snapshotWithin)
	held, err := f.t.Snapshot(limited)
	cancel()
	if err == nil {
		err = held.Token.check()
	}
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		f.m.snapshot(&held)
		return
	}
	var said *SnapshotError
	errors.As(err, &said)
	e := &Error{KindSnapshot, f.name, said != nil && said.Final, err}
	if e.Final {
		f.failed = e
		return
	}
	f.c.report(e)
	ms := int64(0)
	if said != nil {
		ms = said.RetryAfter.Milliseconds()
	}
	f.m.unread(ms)
}

func (f *follower[S]) apply(state S, e *event) (S, error) {
	next, err := f.t.Apply(state, &e.Event)
	if err != nil {
		f.c.report(&Error{KindApply, f.name, false, fmt.Errorf("at %s:%d (%s): %w", e.Epoch, e.Offset, e.Type, err)})
	}
	return next, err
}

func (f *follower[S]) changed(e *event, applied bool) {
	if f.change == nil || e == nil { // else e belongs together with the one before
		f.change = &Change[S]{Held: *f.m.held, Snapshot: e == nil}
	}
	ch := f.change
	if e == nil || !applied {
		return
	}
	if ch.Event != nil && ch.Events == nil {
		ch.Events = []*wire.Event{ch.Event}
	}
	if ch.Event = &e.Event; ch.Events != nil {
		ch.Events = append(ch.Events, ch.Event)
	}
}

func (f *follower[S]) wait(ms int64, attempt int) {
	pause := time.Duration(ms) * time.Millisecond
	if attempt > 1 {
		pause += jitter(againBase, attempt-1, againCap)
	}
	if f.timer == nil {
		f.timer = time.NewTimer(pause)
	} else {
		f.timer.Reset(pause)
	}
}

// due is when a wait is over; a timer that nobody waits for changes nothing.
func (f *follower[S]) due() <-chan time.Time {
	if f.timer == nil || f.m.phase != phaseWaiting {
		return nil
	}
	return f.timer.C
}

// jitter is full jitter: a random part of a time that doubles with each attempt, from 0, up to a limit.
func jitter(base time.Duration, attempt int, limit time.Duration) time.Duration {
	return rand.N(min(limit, base<<min(attempt, 20)) + 1)
}
