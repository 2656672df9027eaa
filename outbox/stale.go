package outbox

import "fmt"

// StaleError refuses an action because what its author saw is no longer so. Answer 409 with the fresh state.
type StaleError struct {
	Topic    string
	Observed any // what the author saw
	Current  any // what is
}

func (e *StaleError) Error() string {
	return fmt.Sprintf("stale: %s has changed from %v to %v since it was looked at", e.Topic, e.Observed, e.Current)
}

// Check compares what the author of an action saw with what is, such as a version or a price. Read current inside the
// transaction, with the row locked (SELECT … FOR UPDATE, or the RETURNING of a conditional UPDATE): what is read
// without a lock may change before COMMIT. The error is a [*StaleError] or nil.
func Check[T comparable](topic string, observed, current T) error {
	if observed == current {
		return nil
	}
	return &StaleError{Topic: topic, Observed: observed, Current: current}
}

// CheckFunc is [Check] for an action that tolerates some change: acceptable says whether the author would still want
// it, for example because a price moved by less than a cent.
func CheckFunc[T any](topic string, observed, current T, acceptable func(observed, current T) bool) error {
	if acceptable(observed, current) {
		return nil
	}
	return &StaleError{Topic: topic, Observed: observed, Current: current}
}
