package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
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
func (r *Redis) NewSubscription(h Handler) Subscription {
	return &redisSubscription{r: r, h: h, log: r.log, set: newWantedSet()}
}

// redisSubscription is a Subscription over one connection at a time. Run reads and calls the handler; a second
// goroutine, which lives as long as the connection, writes.
type redisSubscription struct {
	r   *Redis
	h   Handler
	log *slog.Logger
	set *wantedSet

	running atomic.Bool

	// Of the goroutine of Run.
	isUp     bool // the tick channel is confirmed on the present connection
	toldDown bool // the handler knows that it is down
	deaf     int  // connections in a row that ended without a tick

	garbageLogged time.Time
}

// Add implements [Subscription].
func (s *redisSubscription) Add(chs ...Channel) { s.set.add(chs) }

// Remove implements [Subscription].
func (s *redisSubscription) Remove(chs ...Channel) { s.set.remove(chs) }

// Run implements [Subscription].
func (s *redisSubscription) Run(ctx context.Context) error {
	if !s.running.CompareAndSwap(false, true) {
		return errors.New("stream: the subscription runs already")
	}
	defer s.running.Store(false)
	s.toldDown = false
	for failures := 0; ; {
		began := time.Now()
		err := s.session(ctx)
		s.set.disconnected()
		if s.isUp {
			s.r.metrics.up.Dec()
			if time.Since(began) >= steady {
				failures = 0
			}
		}
		s.isUp = false
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.r.metrics.rebuilds.WithLabelValues(err.reason).Inc()
		if !s.toldDown {
			s.toldDown = true
			s.log.Warn("subscription is down; building it again", "reason", err.reason, "error", err.err)
			s.h.Down(fmt.Errorf("subscription: %w: %w", ErrUnavailable, err.err))
		} else {
			s.log.Debug("subscription is still down", "reason", err.reason, "error", err.err)
		}
		wait := rand.N(min(minBackoff<<min(failures, 10), maxBackoff))
		failures++
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// sessionError is why a connection ended; reason is bounded, for metrics.
type sessionError struct {
	reason string
	err    error
}

// session connects and serves one connection until it fails or ctx ends.
func (s *redisSubscription) session(ctx context.Context) *sessionError {
	conn, err := s.r.connect(ctx)
	if err != nil {
		if errors.As(err, new(replyError)) {
			return &sessionError{reasonRefused, err}
		}
		return &sessionError{reasonConnect, err}
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() }) // wakes the reader
	defer stop()
	quit, written := make(chan struct{}), make(chan error, 1)
	s.set.connected()
	go func() { written <- s.writeLoop(conn, quit) }() // owned by session, which waits for it below
	failed := s.readLoop(conn)
	close(quit)
	conn.Close()
	if werr := <-written; werr != nil {
		return &sessionError{reasonWrite, fmt.Errorf("write to redis: %w", werr)}
	}
	return failed
}

// writeLoop subscribes to what is wanted and pings, until quit is closed or a write fails. It closes the connection
// when it fails, for the reader to notice.
func (s *redisSubscription) writeLoop(conn *redisConn, quit <-chan struct{}) error {
	ping := time.NewTicker(max(s.r.cfg.ProbeTimeout/pingsPerProbe, time.Millisecond))
	defer ping.Stop()
	// The tick channel comes first: its confirmation says that the subscription is up.
	out := appendCommand(nil, "SSUBSCRIBE", tickKey)
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
		if out = s.set.next(out[:0]); len(out) > 0 {
			continue
		}
		select {
		case <-quit:
			return nil
		case <-s.set.wake:
			if out = s.set.next(out[:0]); len(out) > 0 {
				continue
			}
		case <-ping.C:
			out = appendCommand(out[:0], "PING")
		}
	}
}

// readLoop reads pushes and calls the handler until the connection fails or falls silent.
func (s *redisSubscription) readLoop(conn *redisConn) *sessionError {
	probe := s.r.cfg.ProbeTimeout
	patience := min(probe<<min(s.deaf, 10), max(maxPatience, probe))
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
			return s.readFailed(err, deadline.Equal(tickBy), patience)
		}
		heard = time.Now()
		switch {
		case p.kind == "smessage" && p.channel == tickKey:
			s.deaf = 0
			patience = probe
			tickBy = heard.Add(probe)
			continue
		case p.kind == "ssubscribe" && p.channel == tickKey:
			s.isUp, s.toldDown = true, false
			s.r.metrics.up.Inc()
			s.log.Info("subscription is up")
			continue
		case p.kind == "ssubscribe":
			if ch, ok := s.set.subscribed(p.channel); ok {
				s.h.Confirmed(ch)
				s.set.confirmed(p.channel)
			}
		case p.kind == "sunsubscribe":
			if !s.set.unsubscribed(p.channel) || p.channel == tickKey {
				// A slot moved, or access was taken away. Connecting again finds out where the channel lives now.
				return &sessionError{reasonUnsubscribe, errors.New("redis ended the subscription of a channel")}
			}
		case p.kind == "smessage":
			s.deliver(p)
		}
		now := time.Now()
		tickBy = tickBy.Add(now.Sub(heard))
		heard = now
	}
}

// readFailed says why reading failed.
func (s *redisSubscription) readFailed(err error, tick bool, patience time.Duration) *sessionError {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && tick:
		s.deaf++
		return &sessionError{reasonProbe, fmt.Errorf("no tick of a worker came through the subscription for %v", patience)}
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &sessionError{reasonSilent, fmt.Errorf("redis said nothing for %v, though pinged", s.r.cfg.ProbeTimeout)}
	case errors.Is(err, errProtocol), errors.As(err, new(replyError)):
		return &sessionError{reasonRefused, fmt.Errorf("redis answered: %w", err)}
	default:
		return &sessionError{reasonClosed, fmt.Errorf("read from redis: %w", err)}
	}
}

// deliver hands a message over. What cannot be understood is ignored: whoever misses it finds out by its offsets.
func (s *redisSubscription) deliver(p push) {
	ch, live := s.set.get(p.channel)
	if !live {
		return
	}
	s.r.metrics.messages.Inc()
	s.r.metrics.bytes.Add(float64(len(p.payload)))
	run, err := decodeMessage(p.payload)
	if err != nil || run.Epoch != ch.Epoch || run.Topic != ch.Topic {
		s.r.metrics.garbage.Inc()
		if now := time.Now(); now.Sub(s.garbageLogged) >= garbageLogEvery {
			s.garbageLogged = now
			s.log.Warn("ignored a message that could not be understood", "channel", p.channel, "bytes", len(p.payload))
		}
		return
	}
	run.Channel = ch
	s.h.Deliver(run)
}
