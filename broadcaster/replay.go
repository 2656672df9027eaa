package broadcaster

import (
	"context"
	"errors"
	"strconv"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

const (
	// replayReads is how many reads of stream and journal run at once: enough to keep both busy, few enough that
	// live delivery keeps its share of the machine.
	replayReads = 16
	// replayEvents is how many events one read of the journal asks for.
	replayEvents = 1000
	// healBatch is how many topics are read together while events come by polling: some MB at the very most.
	healBatch = 100
	// replayTimeout bounds one read.
	replayTimeout = 5 * time.Second
	// replayStream is how much of it the stream gets: one that answers later is no help against the journal, which has
	// the same, and one that has gone dead without a word must not hold up what is to be healed.
	replayStream = 500 * time.Millisecond
)

var errEpoch = errors.New("the database is in another epoch")

// replayer reads ranges that the log does not hold: from the stream, or else from the journal. A range that several
// subscribers want at the same time is read once.
type replayer struct {
	b     *Broadcaster
	slots chan struct{}
	group singleflight.Group
}

// fetch reads the run that begins at after+1; it is empty if neither stream nor journal has that event.
func (r *replayer) fetch(ctx context.Context, ch stream.Channel, after int64) (stream.Run, error) {
	key := ch.Epoch + " " + ch.Topic + " " + strconv.FormatInt(after, 10)
	v, err, _ := r.group.Do(key, func() (any, error) {
		select {
		case r.slots <- struct{}{}:
			defer func() { <-r.slots }()
		case <-ctx.Done():
			return stream.Run{}, ctx.Err()
		}
		ctx, cancel := context.WithTimeout(ctx, replayTimeout)
		defer cancel()
		return r.read(ctx, ch, after)
	})
	return v.(stream.Run), err
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
		ctx, cancel := context.WithTimeout(ctx, replayTimeout)
		epoch, frames, err = r.b.journal.Ranges(ctx, after)
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
			r.b.heads.kick()
			errs[i] = errEpoch
			continue
		}
		r.b.metrics.replayed.WithLabelValues("journal").Add(float64(len(frames[i])))
		runs[i] = stream.Run{Channel: h.channel, First: h.after + 1, Frames: frames[i]}
	}
	return runs, errs
}

func (r *replayer) read(ctx context.Context, ch stream.Channel, after int64) (stream.Run, error) {
	if r.b.pushUp.Load() {
		streamCtx, cancel := context.WithTimeout(ctx, replayStream)
		run, err := r.b.stream.Range(streamCtx, ch, after)
		cancel()
		if err == nil && len(run.Frames) > 0 && run.First == after+1 {
			r.b.metrics.replayed.WithLabelValues("stream").Add(float64(len(run.Frames)))
			return run, nil
		}
	}
	epoch, frames, err := r.b.journal.Range(ctx, ch.Topic, after, replayEvents)
	if err != nil {
		return stream.Run{}, err
	}
	if epoch != ch.Epoch {
		r.b.heads.kick()
		return stream.Run{}, errEpoch
	}
	r.b.metrics.replayed.WithLabelValues("journal").Add(float64(len(frames)))
	return stream.Run{Channel: ch, First: after + 1, Frames: frames}, nil
}

// replay brings a subscription that fell out of the log one range further, if its topic may be read still. While that cannot
// be decided, nothing is read, and it is tried again. Called with the session's mu held.
func (b *Broadcaster) replay(sub *subscription) {
	life, after, who := sub.life, sub.cursor, sub.s.who
	ch := stream.Channel{Epoch: sub.epoch, Partition: sub.t.partition, Topic: sub.t.name}
	b.spawn(func(ctx context.Context) { // ends after one range
		defer sub.s.replayEnded(sub)
		var run stream.Run
		var err error
		switch refusal := b.allowed(ctx, who, sub.t.name); {
		case refusal == nil:
			run, err = sub.s.budgeted(ctx, who, func() (stream.Run, error) { return b.replayer.fetch(ctx, ch, after) })
		case refusal.Code == wire.CodeForbidden:
			b.revoke(sub, refusal)
			return
		default:
			err = refusal
		}
		s := sub.s
		s.mu.Lock()
		defer s.mu.Unlock()
		switch sub.splice(life, run, err) {
		case replayTaken:
			s.wakeLocked(sub)
		case replayRetry:
			b.after(jitter(500*time.Millisecond), func() { s.wake(sub) })
		case replayCheck:
			b.after(jitter(100*time.Millisecond), func() { b.joiner.add(sub) })
		}
	})
}
