package worker

import (
	"context"
	"log/slog"
	"time"

	"github.com/commitcast/commitcast/wire"
)

// maxLaggardSpans bounds the sampled events of a laggard whose spans wait for it. Later ones have none for being published.
const maxLaggardSpans = 64

// traced says of sampled events that the stream has them; with an error, that it refuses them. Each comes as the span of its
// being sequenced, which is recorded together with that of its being published: an event that is read again and again while the
// stream is away has both once.
func (p *publisher) traced(ctx context.Context, sampled []wire.Span, now time.Time, refusal error) {
	if len(sampled) == 0 {
		return
	}
	debug := refusal == nil && p.log.Enabled(ctx, slog.LevelDebug)
	for _, s := range sampled {
		if debug {
			p.log.DebugContext(ctx, "an event was published", append([]any{"topic", s.Topic, "offset", s.Offset}, joins([]wire.Span{s})...)...)
		}
		if p.w.cfg.Trace == nil {
			continue
		}
		p.w.cfg.Trace(s)
		s.Hop, s.Start = wire.HopPublish, s.End
		if s.End = now; now.Before(s.Start) { // the database's clock is another
			s.End = s.Start
		}
		if refusal != nil {
			s.Error = refusal.Error()
		}
		p.w.cfg.Trace(s)
	}
}

// wait keeps the spans of a run for when its topic is complete in the stream again.
func (l *laggard) wait(sampled []wire.Span) {
	room := maxLaggardSpans - len(l.sampled)
	l.sampled = append(l.sampled, sampled[:min(room, len(sampled))]...)
}

// upTo takes out the sampled events that are in the stream when the offset is.
func (l *laggard) upTo(offset int64) (sampled []wire.Span) {
	n := 0
	for n < len(l.sampled) && l.sampled[n].Offset <= offset {
		n++
	}
	sampled, l.sampled = l.sampled[:n:n], l.sampled[n:]
	return sampled
}

// joins is what joins a log line to the trace of the first sampled event that it is about.
func joins(sampled []wire.Span) []any {
	if len(sampled) == 0 {
		return nil
	}
	return []any{"event_id", sampled[0].Event, "trace_id", sampled[0].Trace.String()}
}
