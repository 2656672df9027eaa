package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/commitcast/commitcast/internal/journal"
)

const (
	// pingEvery is how often an idle drain asks Postgres something, all drains at the same moments, so that they share the
	// round trip. It is their sign of life, well within silentAfter and ownerIdle, and tells who was passed by a newer term.
	pingEvery = 250 * time.Millisecond
	// contestedWait is how soon a partition is tried again whose row somebody else had locked: as long as sequencing a
	// batch takes.
	contestedWait = 5 * time.Millisecond
	// reportEvery is how often, at most, the watermark goes along with a batch; reportAfter is when it goes alone.
	reportEvery = 25 * time.Millisecond
	reportAfter = 100 * time.Millisecond
	// readRows and readBytes bound one read of the journal; partitions that read in the same round trip share readBytes, but
	// have readBytesLeast each. A drain holds up to three reads in memory.
	readRows       = 1000
	readBytes      = 8 << 20
	readBytesLeast = 256 << 10
	// readLeast is how many rows are read at least, however large events are: 256 KiB each make readBytes.
	readLeast = 32
	// releaseTimeout bounds waiting for the lock to be given up.
	releaseTimeout = 2 * time.Second
	// handOverWithin is how long an aged drain waits to be passed by the next term that it has ordered.
	handOverWithin = 5 * time.Second
	// stuckAfter is when a call to the stream, which has a timeout, is taken for hung.
	stuckAfter = 3 * publishTimeout
	// maxSQLFailures is how often in a row a round may fail without losing its connection before the drain fails.
	maxSQLFailures = 6
)

// drain sequences and publishes one partition for one term. One goroutine, and the publisher's.
type drain struct {
	w         *Worker
	log       *slog.Logger
	partition int16
	term      int64
	wake      chan struct{}
	inTouch   atomic.Int64 // UnixNano of the last answer from Postgres
	asked     atomic.Int64 // UnixNano of the last question to it; 0 while one is under way or about to be

	sequencer *sequencer
	turn      *turn
	pub       *publisher

	at         standing         // as Postgres last said
	gen        uint64           // of the batches sent to the publisher
	cursor     int64            // the last seq sent to the publisher
	since      journal.PgMicros // sequenced_at of cursor, or less
	limit      int              // rows to read next
	announceTo int64            // events up to here may have been offered without an answer
	done       int64            // published in this epoch, as the publisher last said
	readable   bool             // the publisher takes batches
	lastWork   time.Time        // something was sequenced, read or confirmed
	lastRound  time.Time        // it had answered
	lastReport time.Time        // the watermark went along
}

// The reasons why a drain ends, as in the metric.
const (
	endIdle    = "idle"
	endPassed  = "passed"
	endAged    = "aged"
	endStopped = "stopped"
	endError   = "error"
)

// drain runs a partition's drain of one term to its end.
func (w *Worker) drain(ctx context.Context, partition int16, term int64) (why string, err error) {
	start := time.Now()
	d := &drain{
		w: w, log: w.log.With("partition", partition, "term", term), partition: partition, term: term,
		wake: make(chan struct{}, 1), limit: readRows,
	}
	d.inTouch.Store(time.Now().UnixNano())

	defer func() {
		panicked := recover() // River's to handle, once the connection is closed
		d.release()
		if panicked != nil {
			err = errors.New("panic")
		}
		w.hub.ended(partition, why, err, time.Since(start))
		w.hub.leave(d) // after the lock is free, so that the dispatcher sees it free
		if panicked != nil {
			panic(panicked)
		}
	}()
	began, err := d.begin(ctx)
	switch {
	case err != nil:
		return endError, fmt.Errorf("beginning to drain partition %d: %w", partition, err)
	case !began:
		return endPassed, nil
	}
	w.metrics.drains.Inc()
	defer w.metrics.drains.Dec()
	w.hub.enter(d)

	d.pub = newPublisher(w, d.log, partition)
	pctx, cancel := context.WithCancel(ctx)
	var publishing sync.WaitGroup
	publishing.Go(func() { d.pub.run(pctx) }) // owned by this drain, which waits for it
	defer publishing.Wait()
	defer d.release() // not after a call to the stream that hangs
	defer cancel()

	why, err = d.loop(ctx)
	if err != nil {
		return endError, fmt.Errorf("draining partition %d: %w", partition, err)
	}
	return why, nil
}

// begin takes the lock and the term. False: this term is not to be drained here.
func (d *drain) begin(ctx context.Context) (bool, error) {
	var err error
	for again := true; again; {
		d.sequencer = d.w.sequencing()
		d.turn = &turn{
			partition: d.partition, term: d.term, begin: true, batch: d.w.cfg.Batch, wake: d.wake, answered: make(chan struct{}, 1),
		}
		err = d.sequencer.ask(ctx, d.turn)
		if errors.Is(err, errNoAnswer) {
			d.w.leaveBehind(d.sequencer)
		}
		again = errors.Is(err, errNoAnswer) || errors.Is(err, errGone) && d.w.sequencing() != d.sequencer
	}
	if pgErr := new(pgconn.PgError); errors.As(err, &pgErr) && pgErr.Code == lockNotAvailable {
		return false, nil // somebody is at it: it is ordered again
	}
	if pgErr := new(pgconn.PgError); errors.As(err, &pgErr) && !isFatal(pgErr) && d.turn.began {
		d.turn.at, err = standing{}, nil // the first round meets it again, and deals with it
	}
	if err != nil {
		return false, err
	}
	d.turn.begin = false
	d.at = d.turn.at
	now := time.Now()
	d.inTouch.Store(now.UnixNano())
	d.lastWork, d.lastRound, d.lastReport = now, now, now
	// The drain before may have been lost between offering these and hearing the answer.
	d.announceTo = d.at.seq
	d.restart(d.at.published)
	return d.turn.began, nil
}

// restart reads again from a seq on, in a new generation.
func (d *drain) restart(from int64) {
	d.gen++
	d.cursor, d.done, d.since = from, from, journal.MinusInfinity
}

// release gives up the lock, if it was taken. Whoever asks next has it free.
func (d *drain) release() {
	if d.turn == nil {
		return
	}
	d.turn = nil
	ctx, cancel := context.WithTimeout(context.Background(), releaseTimeout)
	defer cancel()
	// A turn of its own: the sequencer may still be busy with one that was not waited for. Without an answer the session is
	// in trouble, and the lock goes with it.
	_ = d.sequencer.ask(ctx, &turn{partition: d.partition, term: d.term, end: true, answered: make(chan struct{}, 1)})
}

// loop drains until there is a reason to end.
func (d *drain) loop(ctx context.Context) (why string, err error) {
	var (
		timer    = time.NewTimer(0)
		aged     = time.Now().Add(jitter(d.w.cfg.MaxAge/2) + d.w.cfg.MaxAge/2)
		handed   time.Time
		stopping = d.w.stopping
		woken    = true
		failures int
	)
	defer timer.Stop()
	for {
		d.follow(d.pub.progress())
		if stopping == nil && d.settled() {
			_, err := d.round(ctx, 0, true, false)
			return endStopped, err
		}
		now := time.Now()
		batch := d.w.cfg.Batch
		if stopping == nil {
			batch = 0
		}
		full := batch > 0 && d.at.more
		read := d.at.epoch != "" && d.readable && d.pub.ready() && (woken || full || d.cursor < d.at.seq)
		alone := d.done > d.at.published && now.Sub(d.lastWork) >= reportAfter
		ping := now.Sub(d.lastRound) >= d.nextPing()
		if woken || full || alone || ping || read {
			tell := full || alone || now.Sub(d.lastReport) >= reportEvery && (woken || read)
			more, err := d.round(ctx, batch, tell, read)
			woken = d.at.contested
			if err != nil {
				if read { // perhaps it was too much at once
					d.limit = max(readLeast, d.limit/2)
				}
				if failures++; failures > maxSQLFailures || !d.recoverFrom(ctx, err, failures) {
					return "", err
				}
				woken = true
				continue
			}
			failures = 0
			if d.at.term > d.term {
				return endPassed, nil
			}
			if more && !d.at.contested {
				continue
			}
		}

		now = time.Now()
		switch {
		case d.pub.stuckFor() > stuckAfter:
			return "", errors.New("a call to the stream does not return")
		case d.pub.panicked.Load() != nil:
			return "", *d.pub.panicked.Load()
		case d.at.seq == d.at.published && !woken && now.Sub(d.lastWork) >= d.w.cfg.Linger:
			// Sweeps need not step over what this drain took out of the outbox.
			more, err := d.round(ctx, batch, true, false)
			if err != nil || !more && d.at.sequenced == 0 && !d.at.contested {
				return endIdle, err
			}
			if woken = d.at.contested; more && !woken {
				continue
			}
		case handed.IsZero() && now.After(aged) && stopping != nil:
			hctx, cancel := context.WithTimeout(ctx, time.Second)
			err := d.w.handOver(hctx, d.partition, d.term+1)
			cancel()
			if err != nil {
				aged = now.Add(time.Second)
			} else {
				handed = now
			}
		case !handed.IsZero() && now.Sub(handed) > handOverWithin:
			return endAged, nil
		}

		wait := d.nextPing() - now.Sub(d.lastRound)
		switch {
		case woken: // contested
			wait = contestedWait
		case d.done > d.at.published:
			wait = min(wait, reportAfter-now.Sub(d.lastWork))
		case d.at.seq == d.at.published:
			wait = min(wait, d.w.cfg.Linger-now.Sub(d.lastWork))
		}
		timer.Reset(max(0, wait))
		select {
		case <-d.wake:
			woken = true
		case <-d.pub.changed:
		case <-timer.C:
		case <-stopping:
			stopping = nil
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

// nextPing is how long after the last round an idle drain asks again.
func (d *drain) nextPing() time.Duration {
	return pingEvery - time.Duration(d.lastRound.UnixNano()%int64(pingEvery))
}

// settled: everything that was sequenced has been offered once, or cannot be now.
func (d *drain) settled() bool {
	prog := d.pub.progress()
	return !d.readable || d.cursor >= d.at.seq && (d.cursor == d.done || prog.gen == d.gen && prog.taken >= d.cursor)
}

// follow takes note of what the publisher has done.
func (d *drain) follow(prog progress) {
	if prog.gen == d.gen && prog.published > d.done {
		d.done, d.lastWork = prog.published, time.Now()
	}
	if d.gen <= prog.dead && !prog.down {
		d.announceTo = max(d.announceTo, d.cursor)
		d.restart(d.done)
	}
	d.readable = d.gen > prog.dead && !prog.down
}

// round sequences a batch and, if read is set, reads what there is and hands it to the publisher: one round trip, shared with
// other drains. With tell it says how far publishing is, and the horizon. More says that another round would find work.
func (d *drain) round(ctx context.Context, batch int, tell, read bool) (more bool, err error) {
	t := d.turn
	t.batch, t.tell, t.epoch, t.done = batch, tell, d.at.epoch, d.done
	t.read, t.cursor, t.since, t.limit = read, d.cursor, d.since, d.limit
	d.asked.Store(0)
	if err := d.sequencer.ask(ctx, t); err != nil {
		return false, err
	}
	d.asked.Store(t.sent.UnixNano())
	before := d.at
	d.at = t.at
	now := time.Now()
	d.inTouch.Store(now.UnixNano())
	d.lastRound = now
	if d.at.sequenced > 0 {
		d.lastWork = now
	}
	if tell || d.at.published != before.published {
		d.lastReport = now
	}
	if d.at.epoch != before.epoch {
		// What was confirmed in another history of the database says nothing about this one's stream.
		if before.epoch != "" {
			d.w.epochBegan(d.at.epoch)
		}
		d.announceTo = d.at.seq
		d.restart(d.at.published)
		return true, nil
	}
	if read && d.at.term <= d.term {
		d.hand(now, before.seq)
	}
	return d.at.more && batch > 0 || d.cursor < d.at.seq && d.readable && d.pub.ready(), nil
}

// hand gives the rows that were read to the publisher, which is ready. Rows up to seq were there to be read.
func (d *drain) hand(now time.Time, seq int64) {
	c := &d.turn.rows
	b := batch{gen: d.gen, epoch: d.at.epoch, base: d.done, announce: d.cursor < d.announceTo}
	switch {
	case len(c.frames) > 0:
		b.last, b.runs, b.oldest = c.lastSeq, c.finish(), c.oldest
	case d.cursor >= seq:
		return
	case d.since != journal.MinusInfinity:
		d.since = journal.MinusInfinity // no leaf may be left out: look again in all of them
		return
	default:
		d.log.WarnContext(context.Background(), "events are no longer in the journal, and were never published", "from", d.cursor+1, "to", seq)
		b.last = seq
	}
	d.w.metrics.skipped.Add(float64(c.skipped))
	if c.bytes >= d.turn.budget/2 {
		d.limit = max(readLeast, len(c.frames))
	} else {
		d.limit = min(readRows, 2*d.limit)
	}
	d.cursor, d.lastWork = b.last, now
	if len(c.frames) > 0 {
		d.since = c.lastAt
	}
	d.pub.in <- b
}

// recoverFrom deals with a round that failed: true if another may be tried.
func (d *drain) recoverFrom(ctx context.Context, err error, failures int) bool {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || isFatal(pgErr) || ctx.Err() != nil {
		return false
	}
	if pgErr.Code == "23514" { // no partition of relation "journal" found for row
		var made int
		if lerr := d.w.pool.QueryRow(ctx, `SELECT commitcast.ensure_leaves($1)`, leavesAhead).Scan(&made); lerr == nil && made > 0 {
			d.log.InfoContext(ctx, "made journal leaves that were missing", "count", made)
			return true
		}
	}
	if failures == 1 {
		d.log.WarnContext(ctx, "a batch failed in Postgres; trying again", "error", err)
	}
	// The session must not look idle meanwhile, or it would lose the lock.
	return sleep(ctx, min(jitter(backoff(failures, 50*time.Millisecond, time.Second)), ownerIdle/2))
}
