package worker

import (
	"context"
	"time"
)

const (
	// tickEvery is the mean time between probes sent through the stream. Subscriptions that hear none for a while
	// rebuild themselves, so every worker sends them.
	tickEvery = time.Second
	// tickTimeout bounds one probe.
	tickTimeout = 2 * time.Second
)

// tick sends probes through the stream until ctx ends.
func (w *Worker) tick(ctx context.Context) {
	up := true
	for sleep(ctx, jitter(tickEvery)) {
		tctx, cancel := context.WithTimeout(ctx, tickTimeout)
		err := w.stream.Tick(tctx)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if ok := err == nil; ok != up {
			up = ok
			if up {
				w.log.InfoContext(ctx, "stream available again")
			} else {
				w.log.WarnContext(ctx, "stream unavailable: events are sequenced, and published once it is back", "error", err)
			}
		}
		w.metrics.streamUp.Set(boolGauge(up))
	}
}

func boolGauge(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
