package broadcaster

import (
	"context"
	"log/slog"
	"time"

	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

// traced records the spans of what a topic's log has taken from a run: the sampled events after an offset, heard at start, which
// were handed to those who write to so many subscribers. Without a place for spans it looks at nothing.
func (b *Broadcaster) traced(r stream.Run, after int64, start time.Time, subscribers int) {
	if b.cfg.Trace == nil || subscribers == 0 {
		return
	}
	end := time.Now()
	for i, f := range r.Frames {
		if r.First+int64(i) <= after {
			continue
		}
		s, ok := wire.EventSpan(f)
		if !ok {
			continue
		}
		if b.log.Enabled(context.Background(), slog.LevelDebug) {
			b.log.Debug("an event was delivered", "topic", s.Topic, "offset", s.Offset, "subscribers", subscribers, "event_id", s.Event, "trace_id", s.Trace.String())
		}
		s.Hop, s.Node, s.Start, s.End, s.Subscribers = wire.HopDeliver, b.cfg.Node, start, end, subscribers
		b.cfg.Trace(s)
	}
}

// has is the last offset that the log has of an epoch; 0 if it is in another.
func (f *feed) has(epoch string) int64 {
	if in, last := f.log.position(); in == epoch {
		return last
	}
	return 0
}
