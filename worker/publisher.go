package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/commitcast/commitcast/internal/journal"
	"github.com/commitcast/commitcast/stream"
)

const (
	// publishTimeout bounds one round trip to the stream; a longer one counts as unavailable.
	publishTimeout = 2 * time.Second
	// probeLeast and probeMost are the waits between two looks at a stream that is not available.
	probeLeast = 10 * time.Millisecond
	probeMost  = 250 * time.Millisecond
	// refillRows and refillBytes bound one piece that is offered out of the journal, refillPieces and refillSlice what
	// laggards are offered between two batches, so that neither a laggard starves the others nor they it.
	refillRows   = 1000
	refillBytes  = 2 << 20
	refillPieces = 4
	refillSlice  = 100 * time.Millisecond
)

// publisher offers a partition's batches to the stream, in a goroutine of its own, so that a stream that hangs never
// holds up sequencing. It belongs to one drain.
type publisher struct {
	w         *Worker
	ledger    ledger
	log       *slog.Logger
	partition int16
	in        chan batch    // one may wait while one is being published
	changed   chan struct{} // progress() has something new

	busySince atomic.Int64 // UnixNano of the call that is under way; 0: none
	panicked  atomic.Pointer[error]

	mu   sync.Mutex
	prog progress

	// Of the goroutine alone.
	gen      uint64
	dead     uint64 // batches of this generation and older are dropped
	down     bool
	mark     watermark
	laggards map[string]*laggard
	parked   map[string]struct{} // topics that were set aside, as far as this drain knows
	failures int                 // of the stream as a whole, in a row
	lagging  int                 // as counted in the metrics
	scanner  journal.Scanner
}

// progress is how far a publisher is.
type progress struct {
	gen       uint64
	published int64  // in terms of gen
	dead      uint64 // generations up to here were given up: the drain reads again from published
	down      bool   // the stream is not available
	taken     int64  // everything up to here was offered at least once, in terms of gen
}

func newPublisher(w *Worker, log *slog.Logger, partition int16) *publisher {
	return &publisher{
		w: w, ledger: database{w, w.pool}, log: log, partition: partition,
		in: make(chan batch, 1), changed: make(chan struct{}, 1), laggards: make(map[string]*laggard),
		parked: make(map[string]struct{}),
	}
}

func (p *publisher) progress() progress {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.prog
}

// ready reports whether a batch would be taken without waiting. Only the drain asks, and only it sends.
func (p *publisher) ready() bool { return len(p.in) < cap(p.in) }

// stuckFor is how long the call to the stream that is under way has taken.
func (p *publisher) stuckFor() time.Duration {
	since := p.busySince.Load()
	if since == 0 {
		return 0
	}
	return time.Since(time.Unix(0, since))
}

func (p *publisher) update() {
	prog := progress{gen: p.gen, published: p.mark.published(), dead: p.dead, down: p.down, taken: p.mark.taken}
	p.mu.Lock()
	same := p.prog == prog
	p.prog = prog
	p.mu.Unlock()
	if !same {
		signal(p.changed)
	}
}

// run publishes until ctx ends.
func (p *publisher) run(ctx context.Context) {
	defer p.setLagging(0)
	defer func() {
		if r := recover(); r != nil { // it would end the process; this way it ends the drain
			err := fmt.Errorf("publishing panicked: %v\n%s", r, debug.Stack())
			p.panicked.Store(&err)
			signal(p.changed)
		}
	}()
	if err := p.lookForParked(ctx, nil); err != nil {
		p.log.DebugContext(ctx, "topics that are set aside are not known yet; each is found out when it is refused", "error", err)
	}
	for {
		in := p.in
		if len(p.laggards) >= maxLaggards {
			in = nil
		}
		select {
		case <-ctx.Done():
			return
		case b := <-in:
			p.take(ctx, b)
		case <-p.nextAttempt():
		}
		if !p.down {
			p.catchUp(ctx)
		}
		if p.down && !p.awaitStream(ctx) {
			return
		}
		p.setLagging(len(p.laggards))
		p.update()
	}
}

// nextAttempt fires when a laggard is due.
func (p *publisher) nextAttempt() <-chan time.Time {
	var first time.Time
	for _, l := range p.laggards {
		if first.IsZero() || l.due.Before(first) {
			first = l.due
		}
	}
	if first.IsZero() {
		return nil
	}
	return time.After(time.Until(first))
}

// take publishes a batch.
func (p *publisher) take(ctx context.Context, b batch) {
	if b.gen <= p.dead || b.gen < p.gen {
		return
	}
	if b.gen > p.gen {
		p.gen = b.gen
		p.mark.reset(b.epoch, b.base)
		clear(p.laggards)
	}
	if err := p.lookForParked(ctx, b.runs); err != nil {
		p.giveUp(ctx, err)
		return
	}
	offers := make([]stream.Offer, 0, len(b.runs))
	runs := make([]run, 0, len(b.runs))
	for _, r := range b.runs {
		if _, ok := p.parked[r.topic]; ok {
			continue // topic_republish has it, and the watermark passes it
		}
		p.mark.offer(r.topic, r.seq)
		if l := p.laggards[r.topic]; l != nil {
			l.last = max(l.last, r.last())
			l.wait(r.sampled)
			continue
		}
		offers = append(offers, stream.Offer{Run: p.streamRun(r), Announce: b.announce})
		runs = append(runs, r)
	}
	p.mark.take(b.last)
	if len(offers) == 0 {
		return
	}
	answers, err := p.publish(ctx, offers)
	if err != nil {
		p.giveUp(ctx, err)
		return
	}
	now := time.Now()
	var refusals []refusal
	for i, r := range runs {
		if !p.answered(ctx, r, offers[i], answers[i], now) {
			refusals = append(refusals, refusal{r.topic, r.first, reason(answers[i]), r.sampled})
		}
	}
	if len(refusals) > 0 && !p.park(ctx, refusals, len(refusals) < len(runs)) {
		return
	}
	for _, r := range runs {
		if p.laggards[r.topic] == nil {
			p.mark.settle(r.topic)
		}
	}
	if !b.announce { // neither what another drain left nor what waited for the stream
		p.w.metrics.delay.Observe(now.Sub(b.oldest).Seconds())
	}
}

func (p *publisher) streamRun(r run) stream.Run {
	return stream.Run{
		Channel: stream.Channel{Epoch: p.mark.epoch, Partition: int(p.partition), Topic: r.topic},
		First:   r.first, Frames: r.frames,
	}
}

// answered makes a laggard of a topic whose run does not fit. False: the run was refused.
func (p *publisher) answered(ctx context.Context, r run, o stream.Offer, a stream.Answer, now time.Time) bool {
	v, from := decide(o, a)
	switch {
	case v == refused:
		return false
	case v == confirmed:
		p.count(o, a)
		p.traced(ctx, r.sampled, now, nil)
	case p.laggards[r.topic] != nil: // an earlier run of this batch did not fit already
		p.laggards[r.topic].last = r.last()
		p.laggards[r.topic].wait(r.sampled)
	default:
		l := &laggard{next: r.first, last: r.last(), restart: v == restart}
		if v == refill {
			l.next = from
		}
		l.failed(now)
		l.wait(r.sampled)
		p.laggards[r.topic] = l
		p.log.InfoContext(ctx, "the stream has lost events of a topic; it is refilled from the journal",
			append([]any{"topic", r.topic, "from", a.Next}, joins(r.sampled)...)...)
	}
	return true
}

func (p *publisher) count(o stream.Offer, a stream.Answer) {
	p.failures = 0
	outcome := "appended"
	if a.Outcome == stream.Duplicate {
		outcome = "duplicate"
	}
	p.w.metrics.published.WithLabelValues(outcome).Add(float64(len(o.Frames)))
}

// publish is one round trip to the stream.
func (p *publisher) publish(ctx context.Context, offers []stream.Offer) ([]stream.Answer, error) {
	start := time.Now()
	p.busySince.Store(start.UnixNano())
	defer p.busySince.Store(0)
	pctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	answers, err := p.w.stream.Publish(pctx, offers)
	if err == nil && len(answers) != len(offers) {
		err = fmt.Errorf("%w: %d answers to %d offers", stream.ErrUnavailable, len(answers), len(offers))
	}
	if err != nil {
		return nil, err
	}
	p.w.metrics.publish.Observe(time.Since(start).Seconds())
	return answers, nil
}

// giveUp ends the generation: nobody knows what the stream has taken. Everything from the watermark on is read and
// offered again, once the stream is back.
func (p *publisher) giveUp(ctx context.Context, err error) {
	p.dead, p.down = p.gen, true
	clear(p.laggards)
	p.log.DebugContext(ctx, "publishing is suspended", "error", err)
}

// awaitStream waits until the stream is available; false if ctx ended.
func (p *publisher) awaitStream(ctx context.Context) bool {
	p.setLagging(0)
	p.update()
	for {
		if !sleep(ctx, jitter(backoff(p.failures, probeLeast, probeMost))) {
			return false
		}
		p.failures++
		pctx, cancel := context.WithTimeout(ctx, publishTimeout)
		err := p.w.stream.Ping(pctx)
		cancel()
		if err == nil {
			p.down = false
			return true
		}
	}
}

// catchUp offers laggards what is due, within a slice of time.
func (p *publisher) catchUp(ctx context.Context) {
	start := time.Now()
	for topic, l := range p.laggards {
		if l.due.After(start) {
			continue
		}
		if time.Since(start) > refillSlice {
			return
		}
		for range refillPieces {
			err := p.refill(ctx, topic, l)
			if errors.Is(err, stream.ErrUnavailable) {
				p.giveUp(ctx, err)
				return
			}
			if err != nil { // the database: the drain sees that, too
				l.due = time.Now().Add(jitter(retryLeast))
			}
			if p.down || p.laggards[topic] == nil || l.due.After(start) {
				break
			}
		}
	}
}

// refill offers a laggard one piece out of the journal.
func (p *publisher) refill(ctx context.Context, topic string, l *laggard) error {
	first, frames, lastSeq, err := p.ledger.readTopic(ctx, &p.scanner, topic, l.next, l.last)
	if err != nil {
		return err
	}
	if len(frames) == 0 { // nothing is left of it in the journal: there is nothing to publish
		p.settle(ctx, topic, l)
		return nil
	}
	o := stream.Offer{
		Run:      p.streamRun(run{topic: topic, first: first, frames: frames}),
		Restart:  l.restart || first > l.next, // what lies before is past retention
		Announce: true,
	}
	answers, err := p.publish(ctx, []stream.Offer{o})
	if err != nil {
		return err
	}
	now := time.Now()
	switch v, from := decide(o, answers[0]); v {
	case confirmed:
		p.count(o, answers[0])
		l.next, l.restart, l.attempts, l.due = o.Last()+1, false, 0, now.Add(-time.Hour)
		p.mark.confirm(topic, lastSeq+1)
		p.traced(ctx, l.upTo(o.Last()), now, nil)
		if l.next > l.last {
			p.settle(ctx, topic, l)
		}
	case refused:
		p.park(ctx, []refusal{{topic, first, reason(answers[0]), l.sampled}}, false)
	default:
		if l.restart = v == restart; v == refill {
			l.next = from
		}
		l.failed(now)
	}
	return nil
}

// settle ends a topic's lag.
func (p *publisher) settle(ctx context.Context, topic string, l *laggard) {
	delete(p.laggards, topic)
	p.mark.settle(topic)
	p.log.InfoContext(ctx, "a topic is complete in the stream again", "topic", topic, "offset", l.last)
}

func (p *publisher) setLagging(n int) {
	p.w.metrics.lagging.Add(float64(n - p.lagging))
	p.lagging = n
}
