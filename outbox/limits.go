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
	// MaxSubject is the longest subject whose access can be revoked, in bytes: what OpenID Connect allows for "sub".
	MaxSubject = 255
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

// Limits of views, actions and operations.
const (
	// HeldPagesFor is how long a snapshot is held open for its pages. It keeps vacuum from removing what died since, so
	// it is no longer than a client on a bad line needs.
	HeldPagesFor = 30 * time.Second
	// MaxHeldPages is how many snapshots one View holds at once: each has a connection of the pool for itself.
	MaxHeldPages = 8
	// MaxOperationKey is the longest key of an operation, in bytes: fits every scheme in use, from UUIDs to hashes.
	MaxOperationKey = 255
	// MaxAnswer is the largest recorded result, in bytes of JSON text. It is kept for OperationRetention.
	MaxAnswer = 64 << 10
	// OperationRetention is how long an operation is remembered: longer than a client may be off and try again.
	OperationRetention = 24 * time.Hour
	// maxFingerprint is far more than a hash.
	maxFingerprint = 128
	// onceAttempts is how often Once looks up and tries again what became of a COMMIT whose answer was lost.
	onceAttempts = 6
	// forgetEvery and forgetBatch bound how operations past their retention are removed: by every so many'th new one on
	// average, after its commit, so many at once, for at most forgetTimeout. More than come in, so the table is bounded.
	forgetEvery   = 64
	forgetBatch   = 512
	forgetTimeout = 2 * time.Second
	// maxEventHeader is how many event ids an answer's header names at most: about 2 KB of header.
	maxEventHeader = 128
	// maxRequestBody and requestTimeout are the defaults of an Action and a View.
	maxRequestBody = 64 << 10
	requestTimeout = 10 * time.Second
	// retryAfter is what clients are told with a 503. They add jitter of their own.
	retryAfter = time.Second
	// digestSettle is how long a digest waits for pending events to be sequenced: some sweeps of the worker.
	digestSettle = 250 * time.Millisecond
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
