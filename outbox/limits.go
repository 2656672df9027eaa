package outbox

import "time"

// Limits of one event. The same numbers stand in commitcast.append, in the CHECK constraints of commitcast.outbox and
// in package wire; tests hold them together.
const (
	// MaxTopicLen is the longest topic name, in bytes: fits an index entry and a log line.
	MaxTopicLen = 128
	// MaxLabelLen is the longest type or key, in bytes.
	MaxLabelLen = 128
	// MaxData is the largest data of one event, in bytes of JSON text. Larger things belong behind a link.
	MaxData = 256 << 10
	// MaxHeaders is the largest set of headers of one event, in bytes of JSON text.
	MaxHeaders = 4 << 10
	// TopicPattern is the regular expression of a topic name.
	TopicPattern = `^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$`
)

// Limits of one transaction. They bound what a writer holds in memory, what one INSERT carries, and how long the
// sequencer works on what it cannot split.
const (
	// MaxEvents is how many events one Tx or one call of Append may add.
	MaxEvents = 10_000
	// MaxEventBytes is how much data and headers these may have together, in bytes of JSON text.
	MaxEventBytes = 16 << 20
)

// Limits of a snapshot.
const (
	// MaxTopics is how many topics one Snapshot covers: about a page full.
	MaxTopics = 100
	// MaxPending is how many unsequenced events of one topic a Position names. More means that no worker has run for
	// a while: see ErrTooManyPending.
	MaxPending = 1_000
	// maxPendingScan is how many unsequenced events of a topic's partition are looked at to find them.
	maxPendingScan = 20_000
	// maxEpochWait is how long Snapshot waits for the epoch of events that are newer than the newest epoch it can
	// see. A worker names it within one sweep, 50 ms, and a replica shows it as late as it lags.
	maxEpochWait = 2 * time.Second
)

// Times of the wake-up.
const (
	// WakeIdle is how long the connection for wake-ups stays open without use. Long enough for a steady trickle of
	// writes to share one connection, short enough not to be in anyone's way.
	WakeIdle = 2 * time.Second
	// wakeSpacing and wakeDuty keep wake-ups apart under load: at least this long, and this many times as long as
	// the last one took, so that they use at most a fifth of one connection.
	wakeSpacing = time.Millisecond
	wakeDuty    = 4
	// wakeMaxSpacing is the worker's sweep interval: a wake-up later than that would tell nothing new.
	wakeMaxSpacing = 50 * time.Millisecond
	// wakeTimeout ends a wake-up, connecting included, that a network swallows.
	wakeTimeout = 2 * time.Second
	// wakeBackoff is how long nothing is tried after a failure. The sweep covers for it.
	wakeBackoff = time.Second
)

// rollbackTimeout bounds a ROLLBACK for a caller whose context has ended. The connection is closed when it passes.
const rollbackTimeout = 5 * time.Second
