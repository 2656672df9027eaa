//go:build !race

package worker

import "time"

// heldUpLimit is how long a partition may be held up by a worker that was stopped (G6).
const heldUpLimit = 5 * time.Second
