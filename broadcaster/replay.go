package broadcaster

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

const (
	// replayReads is how many reads of stream and journal run at once: enough to keep both busy, few enough that
	// live delivery keeps its share of the machine.
	replayReads = 16
	// replayEvents is how many events one read asks for.
	replayEvents = 1000
	// healBatch is how many topics are read together while events come by polling: some MB at the very most.
	healBatch = 100
	// replayTimeout bounds one read.
	replayTimeout = 5 * time.Second
	// replayDown is the same where there are several databases and this one did not answer when it was last asked: its readers hold
	// places that those of other databases wait for.
	replayDown = time.Second
	// replayStream is how much of it the stream gets: one that answers later is no help against the journal, which has
	// the same, and one that has gone dead without a word must not hold up what is to be healed.
	replayStream = 500 * time.Millisecond
	// windowsPerHeartbeat is how many windows can be read in the time of a heartbeat: a client that hears of newer events in
	// two heartbeats, and sees none, takes that for a loss.
	windowsPerHeartbeat = 2
)

var errEpoch = errors.New("the database is in another epoch")

// replayer reads ranges that the log does not hold: from the stream, or else from the journal. What several subscribers
// want, at the same time or soon after one another, is read once.
type replayer struct {
	shard *shard
	slots chan struct{}

	mu   sync.Mutex
	kept *kept
}

func newReplayer(sh *shard, keep int) *replayer {
	return &replayer{shard: sh, slots: make(chan struct{}, replayReads), kept: newKept(keep, replayEvents)}
}

// fetch brings the run that follows a hole's offset; it is empty if neither stream nor journal has that event. ctx is the
// broadcaster's: others may wait for what one of them reads.
func (r *replayer) fetch(ctx context.Context, h hole) (stream.Run, error) {
	for {
		r.mu.Lock()
		reading, mine := r.kept.ask(h, time.Now())
		r.mu.Unlock()
		if mine {
			run, err := r.read(ctx, h, reading.last-h.after)
			r.mu.Lock()
			r.kept.end(reading, run, err, time.Now())
			r.mu.Unlock()
			return reading.run, err
		}
		select {
		case <-reading.ended:
		case <-ctx.Done():
			return stream.Run{}, ctx.Err()
		}
		if run, ok := reading.from(h.after); ok {
			r.shard.b.metrics.replayed.WithLabelValues("memory").Add(float64(len(run.Frames)))
			return run, reading.err
		} // it brought less than it might have
	}
}

// forget lets go of what nobody asks for any more.
func (r *replayer) forget(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kept.forget(now.Add(-keepFor))
}

// fetchTogether reads the beginnings of the runs that follow after, all from the journal. Errors are told for each.
func (r *replayer) fetchTogether(ctx context.Context, holes []hole) ([]stream.Run, []error) {
	runs, errs := make([]stream.Run, len(holes)), make([]error, len(holes))
	after := make([]wire.Question, len(holes))
	for i, h := range holes {
		after[i] = wire.Question{Topic: h.channel.Topic, Cursor: wire.Cursor{Offset: h.after}}
	}
	var epoch string
	var frames [][][]byte
	var err error
	select {
	case r.slots <- struct{}{}:
		ctx, cancel := context.WithTimeout(ctx, r.shard.patience())
		epoch, frames, err = r.shard.journal.Ranges(ctx, after)
		cancel()
		<-r.slots
	case <-ctx.Done():
		err = ctx.Err()
	}
	for i, h := range holes {
		if errs[i] = err; err != nil {
			continue
		}
		if epoch != h.channel.Epoch {
			r.shard.heads.kick()
			errs[i] = errEpoch
			continue
		}
		r.shard.b.metrics.replayed.WithLabelValues("journal").Add(float64(len(frames[i])))
		runs[i] = stream.Run{Channel: h.channel, First: h.after + 1, Frames: frames[i]}
	}
	return runs, errs
}

// read reads a run, of most events at most.
func (r *replayer) read(ctx context.Context, h hole, most int64) (stream.Run, error) {
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return stream.Run{}, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, r.shard.patience())
	defer cancel()
	ch, after := h.channel, h.after
	if r.shard.b.pushUp.Load() {
		streamCtx, cancel := context.WithTimeout(ctx, replayStream)
		run, err := r.shard.b.stream.Range(streamCtx, ch, after, int(most))
		cancel()
		if err == nil && len(run.Frames) > 0 && run.First == after+1 {
			r.shard.b.metrics.replayed.WithLabelValues("stream").Add(float64(len(run.Frames)))
			return run, nil
		}
	}
	epoch, frames, err := r.shard.journal.Range(ctx, ch.Topic, after, int(most))
	if err != nil {
		return stream.Run{}, err
	}
	if epoch != ch.Epoch {
		r.shard.heads.kick()
		return stream.Run{}, errEpoch
	}
	r.shard.b.metrics.replayed.WithLabelValues("journal").Add(float64(len(frames)))
	return stream.Run{Channel: ch, First: after + 1, Frames: frames}, nil
}

// patience is how long one read may take.
func (sh *shard) patience() time.Duration {
	if len(sh.b.shards) > 1 && !sh.up.Load() {
		return replayDown
	}
	return replayTimeout
}

// replay brings a subscription that fell out of the log one range further, if its topic may be read still. While that cannot
// be decided, nothing is read, and it is tried again. Called with the session's mu held.
func (b *Broadcaster) replay(sub *subscription) {
	life, who := sub.life, sub.s.who
	h := hole{place{&sub.t.feed, sub.history}, stream.Channel{Epoch: sub.epoch, Partition: sub.t.partition, Topic: sub.t.name}, sub.position()}
	b.spawn(func(ctx context.Context) { // ends after one range
		s := sub.s
		var run stream.Run
		var err error
		switch refusal := b.allowed(ctx, who, sub.t.name); {
		case refusal == nil:
			run, err = sub.s.budgeted(ctx, who, func() (stream.Run, error) { return sub.t.shard.replayer.fetch(ctx, h) })
		case refusal.Code == wire.CodeForbidden:
			b.revoke(sub, refusal)
			s.mu.Lock()
			defer s.mu.Unlock()
			s.replayEnded(sub)
			return
		default:
			err = refusal
		}
		if err == nil {
			sub.t.mu.Lock()
			sub.t.found(h, run)
			sub.t.mu.Unlock()
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		then := sub.splice(life, run, err)
		// The more there are that wait for its place, the sooner a window is closed: each of them is to be served within a
		// heartbeat or two.
		if most := b.cfg.Heartbeat / windowsPerHeartbeat / time.Duration(1+len(s.line)/b.cfg.MaxReplays); sub.window != nil && time.Since(sub.began) > most {
			sub.window.enough = true
		}
		s.replayEnded(sub)
		switch then {
		case replayTaken:
			s.wakeLocked(sub)
		case replayRetry:
			b.after(jitter(500*time.Millisecond), func() { s.wake(sub) })
		case replayCheck:
			b.after(jitter(100*time.Millisecond), func() { sub.t.shard.joiner.add(sub) })
		}
	})
}
