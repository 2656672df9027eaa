//go:build race

package worker

import "time"

// heldUpLimit: with the race detector, 40 MB of events take their time; what is promised is measured without it.
const heldUpLimit = 20 * time.Second
