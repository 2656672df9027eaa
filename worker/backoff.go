package worker

import (
	"context"
	"math/rand/v2"
	"time"
)

// jitter spreads d evenly over [d/2, 3d/2), so that processes which failed together do not come back together.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }

// backoff is least·2ⁿ, at most most, before jitter.
func backoff(n int, least, most time.Duration) time.Duration {
	if n > 20 {
		return most
	}
	return min(least<<n, most)
}

// sleep waits for d. It reports false, at once, when ctx ends.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
