package worker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/commitcast/commitcast/internal/journal"
	"github.com/commitcast/commitcast/wire"
)

// turn is what a drain asks of Postgres, and the answer. It belongs to the sequencer from ask until done is signalled.
type turn struct {
	partition  int16
	term       int64
	begin, end bool // take the lock and the term first; give up the lock, and nothing else
	batch      int  // how many events to sequence at most
	tell       bool // say how far publishing is: done, in epoch
	epoch      string
	done       int64
	read       bool // read up to limit events after cursor
	cursor     int64
	since      journal.PgMicros
	limit      int
	budget     int           // bytes that the read could take, about
	wake       chan struct{} // emptied when the turn is sent: it looks at what the token was about

	sent     time.Time
	at       standing
	began    bool
	rows     collector
	err      error
	answered chan struct{} // has room for one
}

var (
	errLockLost = errors.New("the session that held the lock is gone")
	errNoAnswer = errors.New("no answer from Postgres")
	errGone     = errors.New("the session did not answer, or the worker has stopped")
)

// sequencer is how the drains of this process go to Postgres: by one session, a round trip at a time. Those who ask while a
// round trip is under way go together with the next, so that a database with a little work in each partition has one
// statement and one commit to do, not thirty-two; and the more there is to do, the more goes at once. Where much happens it
// rests between rounds, so that they are few and large. One goroutine.
type sequencer struct {
	connect func(context.Context) (*owner, error)
	horizon *horizon
	metrics *metrics
	in      chan *turn
	gone    chan struct{} // closed when run has returned
	busy    atomic.Int64  // UnixNano of the round that is under way; 0: none
	left    atomic.Bool   // another has taken its place: end after this round
	rest    atomic.Int64  // nanoseconds of rest after the last round

	// Of the goroutine alone.
	own  *owner
	held map[lock]time.Time // the session's locks, and when their drains last asked
	used time.Time
	pace pace
	next time.Time // when the next round may begin, unless it is full
}

type lock struct {
	partition int16
	term      int64
}

func newSequencer(w *Worker) *sequencer {
	return &sequencer{
		connect: w.connectOwner, horizon: &w.horizon, metrics: w.metrics,
		in: make(chan *turn, 2*wire.Partitions), gone: make(chan struct{}), held: make(map[lock]time.Time),
	}
}

// ask hands over a turn and waits for the answer. If ctx ends first, the turn must not be touched again. Who begins does not
// wait for a session that is silent: errNoAnswer.
func (s *sequencer) ask(ctx context.Context, t *turn) error {
	t.err = nil
	begin := t.begin // the turn is the sequencer's from here on
	select {
	case s.in <- t:
	case <-s.gone:
		return errGone
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	var look <-chan time.Time
	if begin {
		ticker := time.NewTicker(silentAfter / 4)
		defer ticker.Stop()
		look = ticker.C
	}
	for {
		select {
		case <-t.answered:
			return t.err
		case <-s.gone:
			return errGone
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-look:
			if s.silentFor() > silentAfter {
				return errNoAnswer
			}
		}
	}
}

// silentFor is how long the round that is under way has taken.
func (s *sequencer) silentFor() time.Duration {
	since := s.busy.Load()
	if since == 0 {
		return 0
	}
	return time.Since(time.Unix(0, since))
}

// sequencing is the sequencer for drains that begin now.
func (w *Worker) sequencing() *sequencer {
	w.sequencerMu.Lock()
	defer w.sequencerMu.Unlock()
	return w.sequencer
}

// leaveBehind puts a new sequencer in the place of one that does not answer. The drains that wait for that one end with it,
// and their partitions are taken over, here or elsewhere, like those of any silent owner.
func (w *Worker) leaveBehind(s *sequencer) {
	w.sequencerMu.Lock()
	defer w.sequencerMu.Unlock()
	if w.sequencer == s {
		s.left.Store(true)
		w.startSequencer()
	}
}

// run serves until ctx ends, or another has taken its place.
func (s *sequencer) run(ctx context.Context) {
	defer close(s.gone)
	defer s.drop()
	var waiting, group []*turn
	expire := time.NewTicker(ownerKept / 2)
	defer expire.Stop()
	for !s.left.Load() {
		if len(waiting) == 0 {
			select {
			case t := <-s.in:
				waiting = append(waiting, t)
			case now := <-expire.C:
				if s.own != nil && len(s.held) == 0 && now.Sub(s.used) >= ownerKept {
					s.drop()
				}
				continue
			case <-ctx.Done():
				return
			}
		}
		waiting = s.gather(ctx, waiting)
		// One of each partition: an older drain's may be left behind it.
		var in [wire.Partitions]bool
		group = group[:0]
		left := waiting[:0]
		for _, t := range waiting {
			if in[t.partition] {
				left = append(left, t)
				continue
			}
			in[t.partition] = true
			group = append(group, t)
		}
		clear(waiting[len(left):])
		waiting = left
		s.serve(ctx, group)
		for _, t := range group {
			t.answered <- struct{}{}
		}
	}
}

// gather adds to those who wait whoever comes until the next round may begin, or has come already.
func (s *sequencer) gather(ctx context.Context, waiting []*turn) []*turn {
	if rest := time.Until(s.next); rest > 0 && !slices.ContainsFunc(waiting, (*turn).full) {
		over := time.NewTimer(rest)
		defer over.Stop()
		for resting := true; resting; {
			select {
			case t := <-s.in:
				waiting = append(waiting, t)
				resting = !t.full()
			case <-over.C:
				resting = false
			case <-ctx.Done():
				resting = false
			}
		}
	}
	for {
		select {
		case t := <-s.in:
			waiting = append(waiting, t)
		default:
			return waiting
		}
	}
}

// resting is for how long the sequencer rests between two rounds at present.
func (s *sequencer) resting() time.Duration { return time.Duration(s.rest.Load()) }

// drop closes the session; whoever held a lock by it has lost it.
func (s *sequencer) drop() {
	if s.own != nil {
		s.own.close()
		s.own = nil
	}
	clear(s.held)
}

// serve answers a group of turns.
func (s *sequencer) serve(ctx context.Context, group []*turn) {
	s.ready(ctx, group)
	now := time.Now()
	round := make([]*turn, 0, len(group))
	for _, t := range group {
		l := lock{t.partition, t.term}
		_, held := s.held[l]
		switch {
		case t.err != nil:
		case t.end:
			if held { // or the lock went with its session
				round = append(round, t)
			}
		case !t.begin && !held:
			t.err = errLockLost
		default:
			if held {
				s.held[l] = now
			}
			round = append(round, t)
		}
	}
	// The session lives as long as any drain asks. One that does not ask any more must not keep its lock by that.
	for l, asked := range s.held {
		if now.Sub(asked) > ownerIdle {
			round = append(round, &turn{partition: l.partition, term: l.term, end: true})
		}
	}
	err := s.round(ctx, round)
	if pgErr := new(pgconn.PgError); errors.As(err, &pgErr) && !isFatal(pgErr) && pgErr.Code != queryCanceled && len(round) > 1 {
		// Whose fault it is shows when each goes alone.
		for _, t := range round {
			switch {
			case t.end || t.begin && !t.began:
			case s.own == nil: // the one before has cost the session
				t.err = errLockLost
			default:
				t.begin = false
				if err := s.round(ctx, []*turn{t}); err != nil {
					t.err = err
				}
			}
		}
		return
	}
	if err != nil {
		for _, t := range round {
			t.err = err
		}
	}
}

// queryCanceled is the code of a statement that took longer than statementTimeout: each alone would take as long.
const queryCanceled = "57014"

// lockNotAvailable is the code of begin_drain when it has waited long enough for the partition's row.
const lockNotAvailable = "55P03"

// ready connects, if somebody begins.
func (s *sequencer) ready(ctx context.Context, group []*turn) {
	var err error
	for _, t := range group {
		if t.begin && s.own == nil && err == nil {
			cctx, cancel := context.WithTimeout(ctx, connectTimeout)
			s.own, err = s.connect(cctx)
			cancel()
			s.used = time.Now()
		}
		if t.begin {
			t.err = err
		}
	}
}

// round is one round trip for turns that are served by the session. An error that is not of one turn alone is returned; if
// it is not the server's answer to a statement, the session is closed.
func (s *sequencer) round(ctx context.Context, turns []*turn) (err error) {
	if len(turns) == 0 {
		return nil
	}
	o := s.own
	start := time.Now()
	s.busy.Store(start.UnixNano())
	defer s.busy.Store(0)
	defer func() {
		if r := recover(); r != nil { // it would end the process; this way it ends the drains
			err = fmt.Errorf("sequencing panicked: %v\n%s", r, debug.Stack())
		}
		if pgErr := new(pgconn.PgError); err != nil && (!errors.As(err, &pgErr) || isFatal(pgErr)) || o.conn.IsClosed() {
			s.drop()
		}
		s.used = time.Now()
	}()
	if err := o.deadline(roundTimeout); err != nil {
		return err
	}
	// A worker that stops must not wait for the server.
	defer context.AfterFunc(ctx, func() { _ = o.deadline(-time.Second) })()
	var working, reading []*turn
	var byPartition [wire.Partitions]*turn
	var epoch string
	batch := math.MaxInt32
	for _, t := range turns {
		t.sent = start
		if t.end {
			continue
		}
		select {
		case <-t.wake:
		default:
		}
		working = append(working, t)
		byPartition[t.partition] = t
		batch = min(batch, t.batch)
		if t.tell && epoch == "" {
			epoch = t.epoch
		}
		if t.read {
			reading = append(reading, t)
			t.rows.reset()
		}
	}
	budget := readBytes
	if len(reading) > 0 {
		budget = max(readBytes/len(reading), readBytesLeast)
	}

	p := o.conn.StartPipeline(context.Background())
	for _, t := range turns {
		if t.begin {
			o.sendBegin(p, t.partition, t.term)
		}
		if t.end {
			o.sendEnd(p, t.partition, t.term)
		}
	}
	if len(working) > 0 {
		o.sendSequence(p, working, batch, epoch, s.horizon.in(epoch))
	}
	if len(reading) > 0 {
		o.sendRead(p, reading, budget)
	}
	err = p.Flush()
	for _, t := range turns {
		if err == nil && t.begin {
			locked := true // also when begin_drain failed: the lock is the session's, not the transaction's
			err = s.alone(t, nextResult(p, func(v [][]byte) error {
				locked = len(v) == 1 && v[0] != nil
				t.began = locked && len(v[0]) == 1 && v[0][0] == 1
				return nil
			}))
			if locked {
				s.held[lock{t.partition, t.term}] = start
			}
		}
		if err == nil && t.end {
			err = s.alone(t, nextResult(p, func([][]byte) error { return nil }))
			delete(s.held, lock{t.partition, t.term})
		}
	}
	if err == nil && len(working) > 0 {
		answers := 0
		err = nextResult(p, func(v [][]byte) error {
			t, err := turnOf(&byPartition, v)
			if err == nil {
				answers++
				err = t.at.scan(v[1:])
			}
			return err
		})
		if err == nil && answers != len(working) {
			err = fmt.Errorf("%d answers about %d partitions: %w", answers, len(working), errShape)
		}
		if isSQL := errors.As(err, new(*pgconn.PgError)); len(reading) > 0 && (err == nil || isSQL) {
			err = errors.Join(err, nextResult(p, func(v [][]byte) error {
				t, err := turnOf(&byPartition, v)
				if err == nil {
					t.budget = budget
					t.err = errors.Join(t.err, t.rows.add(v[1:]))
				}
				return err
			}))
		}
	}
	if cerr := p.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	n, partitions := 0, 0
	for _, t := range working {
		n += t.at.sequenced
		if t.at.sequenced > 0 {
			partitions++
		}
	}
	ended := time.Now()
	rest := s.pace.after(n, partitions, start, ended)
	s.next = ended.Add(rest)
	s.rest.Store(int64(rest))
	if n > 0 {
		s.metrics.sequenced.Add(float64(n))
		s.metrics.batch.Observe(float64(n))
		s.metrics.sequence.Observe(ended.Sub(start).Seconds())
	}
	return nil
}

// alone keeps an error of the server about a statement of one turn to that turn.
func (s *sequencer) alone(t *turn, err error) error {
	if pgErr := new(pgconn.PgError); errors.As(err, &pgErr) && !isFatal(pgErr) {
		t.err = err
		return nil
	}
	return err
}

func turnOf(turns *[wire.Partitions]*turn, v [][]byte) (*turn, error) {
	if len(v) == 0 || len(v[0]) != 2 {
		return nil, errShape
	}
	p := int16(binary.BigEndian.Uint16(v[0]))
	if p < 0 || int(p) >= len(turns) || turns[p] == nil {
		return nil, fmt.Errorf("an answer about partition %d, which was not asked about", p)
	}
	return turns[p], nil
}
