package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// pingsPerProbe: so many pings go out within one probe timeout, so that one late answer ends nothing.
	pingsPerProbe = 3
	// maxPatience bounds how long a connection that never heard a tick is kept before the next one is tried.
	maxPatience = time.Minute
	// minBackoff and maxBackoff bound the wait between two connections; it is jittered over its whole length.
	minBackoff = 50 * time.Millisecond
	maxBackoff = 2 * time.Second
	// steady is how long a connection must have been up for the next wait to be short again.
	steady = 5 * time.Second
	// garbageLogEvery keeps a flood of garbage, as from a newer version of the message, out of the log.
	garbageLogEvery = 10 * time.Second
)

// NewSubscription implements [Stream].
//
// The subscription notices within ProbeTimeout (3 s) when it hears nothing any more, in two ways. It pings the server
// over the same connection: no answer, and the connection is dead. And it listens for the ticks of the workers, which
// come the way events come: connected but no tick means that the workers' Redis is not this one, or that there is no
// worker. So a connection that has heard a tick is rebuilt after ProbeTimeout without one; a connection that has heard
// none yet is given ProbeTimeout at first and twice as long after each one given up without a tick, up to a minute: a
// system whose workers are down does not build its subscriptions anew every three seconds.
//
// Time spent in the handler does not count as silence.
//
// In a cluster each partition of which a channel was ever wanted has such a connection, with ticks of its own, to the master
// that has the partition's slot. When the slot moves, that master ends the subscriptions to its channels, and the connection is
// built anew where the slot is.
func (r *Redis) NewSubscription(h Handler) Subscription {
	s := &redisSubscription{r: r, h: h}
	n := r.servers.lanes()
	for i := range n {
		l := &lane{s: s, r: r, log: r.log, set: newWantedSet(), tick: tickKey(i), of: AllPartitions}
		if n > 1 {
			l.of, l.log = 1<<i, r.log.With("partition", i)
		}
		s.lanes = append(s.lanes, l)
	}
	return s
}

// redisSubscription is a Subscription over one connection, or in a cluster one a partition.
type redisSubscription struct {
	r       *Redis
	lanes   []*lane
	running atomic.Bool

	mu sync.Mutex // of calls of h
	h  Handler
}

// Add implements [Subscription].
func (s *redisSubscription) Add(chs ...Channel) { s.sort(chs, (*wantedSet).add) }

// Remove implements [Subscription].
func (s *redisSubscription) Remove(chs ...Channel) { s.sort(chs, (*wantedSet).remove) }

// sort gives each lane its channels.
func (s *redisSubscription) sort(chs []Channel, do func(*wantedSet, []Channel)) {
	if len(s.lanes) == 1 {
		do(s.lanes[0].set, chs)
		return
	}
	sorted := make([][]Channel, len(s.lanes))
	for _, ch := range chs {
		if ch.Partition >= 0 && ch.Partition < len(sorted) {
			sorted[ch.Partition] = append(sorted[ch.Partition], ch)
		}
	}
	for i, chs := range sorted {
		if len(chs) > 0 {
			do(s.lanes[i].set, chs)
		}
	}
}

// Run implements [Subscription].
func (s *redisSubscription) Run(ctx context.Context) error {
	if !s.running.CompareAndSwap(false, true) {
		return errors.New("stream: the subscription runs already")
	}
	defer s.running.Store(false)
	if len(s.lanes) == 1 {
		s.lanes[0].run(ctx)
		return ctx.Err()
	}
	var all sync.WaitGroup
	for _, l := range s.lanes {
		all.Go(func() { // waited for below
			if l.set.awaitFirst(ctx) {
				l.run(ctx)
			}
		})
	}
	all.Wait()
	return ctx.Err()
}

// lane is one connection at a time, for the channels of some partitions. run reads and calls the handler; a second
// goroutine, which lives as long as the connection, writes.
type lane struct {
	s    *redisSubscription
	r    *Redis
	log  *slog.Logger
	set  *wantedSet
	tick string     // the channel of the probe
	of   Partitions // whose channels these are

	// Of the goroutine of run.
	isUp     bool   // the tick channel is confirmed on the present connection
	toldDown bool   // the handler knows that it is down
	deaf     int    // connections in a row that ended without a tick
	hint     string // where the cluster says that the slot is; "": it has not said

	garbageLogged time.Time
}

// run holds the connection until ctx ends.
func (l *lane) run(ctx context.Context) {
	l.toldDown = false
	for failures := 0; ; {
		began := time.Now()
		err := l.session(ctx)
		l.set.disconnected()
		if l.isUp {
			l.r.metrics.up.Dec()
			if time.Since(began) >= steady {
				failures = 0
			}
		}
		l.isUp = false
		if ctx.Err() != nil {
			return
		}
		l.r.metrics.rebuilds.WithLabelValues(err.reason).Inc()
		if !l.toldDown {
			l.toldDown = true
			l.log.Warn("subscription is down; building it again", "reason", err.reason, "error", err.err)
			l.call(func(h Handler) { h.Down(l.of, fmt.Errorf("subscription: %w: %w", ErrUnavailable, err.err)) })
		} else {
			l.log.Debug("subscription is still down", "reason", err.reason, "error", err.err)
		}
		l.r.servers.mistaken(ctx)
		wait := rand.N(min(minBackoff<<min(failures, 10), maxBackoff))
		failures++
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// call calls the handler: one lane at a time.
func (l *lane) call(f func(h Handler)) {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	f(l.s.h)
}

// sessionError is why a connection ended; reason is bounded, for metrics.
type sessionError struct {
	reason string
	err    error
}

// session connects and serves one connection until it fails or ctx ends.
func (l *lane) session(ctx context.Context) *sessionError {
	conn, err := l.connect(ctx)
	if err != nil {
		if errors.As(err, new(replyError)) {
			return &sessionError{reasonRefused, err}
		}
		return &sessionError{reasonConnect, err}
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() }) // wakes the reader
	defer stop()
	quit, written := make(chan struct{}), make(chan error, 1)
	l.set.connected()
	go func() { written <- l.writeLoop(conn, quit) }() // owned by session, which waits for it below
	failed := l.readLoop(conn)
	close(quit)
	conn.Close()
	if werr := <-written; werr != nil {
		return &sessionError{reasonWrite, fmt.Errorf("write to redis: %w", werr)}
	}
	return failed
}

// connect connects to where the cluster has said that the slot is, or else to the master of the lane's channels.
func (l *lane) connect(ctx context.Context) (*redisConn, error) {
	if addr := l.hint; addr != "" {
		l.hint = ""
		return l.r.connect(ctx, addr)
	}
	return l.r.connectFor(ctx, l.tick)
}

// writeLoop subscribes to what is wanted and pings, until quit is closed or a write fails. It closes the connection
// when it fails, for the reader to notice.
func (l *lane) writeLoop(conn *redisConn, quit <-chan struct{}) error {
	ping := time.NewTicker(max(l.r.cfg.ProbeTimeout/pingsPerProbe, time.Millisecond))
	defer ping.Stop()
	// The tick channel comes first: its confirmation says that the subscription is up.
	out := appendCommand(nil, "SSUBSCRIBE", l.tick)
	for {
		if err := conn.write(out); err != nil {
			select {
			case <-quit: // the reader ended first; its reason counts
				return nil
			default:
				conn.Close()
				return err
			}
		}
		if out = l.set.next(out[:0]); len(out) > 0 {
			continue
		}
		select {
		case <-quit:
			return nil
		case <-l.set.wake:
			if out = l.set.next(out[:0]); len(out) > 0 {
				continue
			}
		case <-ping.C:
			out = appendCommand(out[:0], "PING")
		}
	}
}

// readLoop reads pushes and calls the handler until the connection fails or falls silent.
func (l *lane) readLoop(conn *redisConn) *sessionError {
	probe := l.r.cfg.ProbeTimeout
	patience := min(probe<<min(l.deaf, 10), max(maxPatience, probe))
	heard := time.Now()
	tickBy := heard.Add(patience)
	for {
		deadline := heard.Add(probe)
		if tickBy.Before(deadline) {
			deadline = tickBy
		}
		err := conn.SetReadDeadline(deadline)
		var p push
		if err == nil {
			p, err = readPush(conn.br)
		}
		if err != nil {
			return l.readFailed(err, deadline.Equal(tickBy), patience)
		}
		heard = time.Now()
		switch {
		case p.kind == "smessage" && p.channel == l.tick:
			l.deaf = 0
			patience = probe
			tickBy = heard.Add(probe)
			continue
		case p.kind == "ssubscribe" && p.channel == l.tick:
			l.isUp, l.toldDown = true, false
			l.r.metrics.up.Inc()
			l.log.Info("subscription is up")
			continue
		case p.kind == "ssubscribe":
			if ch, ok := l.set.subscribed(p.channel); ok {
				l.call(func(h Handler) { h.Confirmed(ch) })
				l.set.confirmed(p.channel)
			}
		case p.kind == "sunsubscribe":
			if !l.set.unsubscribed(p.channel) || p.channel == l.tick {
				// A slot moved, or access was taken away. Connecting again finds out where the channel lives now.
				return &sessionError{reasonUnsubscribe, errors.New("redis ended the subscription of a channel")}
			}
		case p.kind == "smessage":
			l.deliver(p)
		}
		now := time.Now()
		tickBy = tickBy.Add(now.Sub(heard))
		heard = now
	}
}

// readFailed says why reading failed.
func (l *lane) readFailed(err error, tick bool, patience time.Duration) *sessionError {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && tick:
		l.deaf++
		return &sessionError{reasonProbe, fmt.Errorf("no tick of a worker came through the subscription for %v", patience)}
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &sessionError{reasonSilent, fmt.Errorf("redis said nothing for %v, though pinged", l.r.cfg.ProbeTimeout)}
	case l.movedTo(err):
		return &sessionError{reasonMoved, fmt.Errorf("the slot is elsewhere: %w", err)}
	case errors.Is(err, errProtocol), errors.As(err, new(replyError)):
		return &sessionError{reasonRefused, fmt.Errorf("redis answered: %w", err)}
	default:
		return &sessionError{reasonClosed, fmt.Errorf("read from redis: %w", err)}
	}
}

// movedTo reads "MOVED 1234 10.0.0.5:6379". A node that does not know its own address leaves it out.
func (l *lane) movedTo(err error) bool {
	var reply replyError
	if !errors.As(err, &reply) {
		return false
	}
	f := strings.Fields(string(reply))
	if len(f) != 3 || f[0] != "MOVED" {
		return false
	}
	if host, port, err := net.SplitHostPort(f[2]); err == nil && host != "" && port != "" {
		l.hint = f[2]
	}
	return true
}

// deliver hands a message over. What cannot be understood is ignored: whoever misses it finds out by its offsets.
func (l *lane) deliver(p push) {
	ch, live := l.set.get(p.channel)
	if !live {
		return
	}
	l.r.metrics.messages.Inc()
	l.r.metrics.bytes.Add(float64(len(p.payload)))
	run, err := decodeMessage(p.payload)
	if err != nil || run.Epoch != ch.Epoch || run.Topic != ch.Topic {
		l.r.metrics.garbage.Inc()
		if now := time.Now(); now.Sub(l.garbageLogged) >= garbageLogEvery {
			l.garbageLogged = now
			l.log.Warn("ignored a message that could not be understood", "channel", p.channel, "bytes", len(p.payload))
		}
		return
	}
	run.Channel = ch
	l.call(func(h Handler) { h.Deliver(run) })
}
