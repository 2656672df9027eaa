package stream

import (
	"context"
	"errors"

	"github.com/commitcast/commitcast/wire"
)

// Limits of a stream.
const (
	// DefaultMaxLen is how many events of a topic a stream keeps, at least, before older ones are trimmed.
	DefaultMaxLen = 10_000
	// MaxRangeFrames and MaxRangeBytes bound what one Range returns.
	MaxRangeFrames = 1_000
	MaxRangeBytes  = 512 << 10
)

// ErrUnavailable wraps every error that says nothing about the events themselves: the stream is down, loading, out
// of memory, read-only, unreachable. Such an error never counts as an attempt of an event.
var ErrUnavailable = errors.New("stream unavailable")

// Channel names the stream of one topic in one epoch. A new epoch is a new, empty channel, so events of two
// histories of a database cannot mix.
type Channel struct {
	Epoch     string
	Partition int
	Topic     string
}

// Run is a contiguous run of one topic's events: frame i has offset First+i.
type Run struct {
	Channel
	First  int64
	Frames [][]byte // finished frames, each one line; shared, never modified
}

// Last is the offset of the last frame; First-1 if the run is empty.
func (r Run) Last() int64 { return r.First + int64(len(r.Frames)) - 1 }

// Offer is a run to publish and how.
type Offer struct {
	Run
	// Restart drops what the stream holds of this topic and begins anew at First: after a gap that is not worth
	// filling.
	Restart bool
	// Announce sends the run to subscribers even when the stream holds it already. A publisher sets it when it
	// repeats an offer whose answer it did not get, since storing and announcing may have failed apart.
	Announce bool
}

// Outcome is what became of an offer.
type Outcome uint8

const (
	// Appended: the stream took the run, or the part of it that it did not have yet.
	Appended Outcome = iota + 1
	// Duplicate: the stream had all of it already. Nothing was stored.
	Duplicate
	// Gap: the run begins after what the stream holds. Nothing was stored; Answer.Next says what is wanted.
	Gap
)

// Answer is what became of one offer. If Err is not nil, this run could not be published although the stream is
// there (refused by an access rule, for instance) and Outcome is 0.
type Answer struct {
	Outcome Outcome
	Next    int64 // the offset that the stream would take next
	Err     error
}

// Stream is the way from workers to broadcasters.
type Stream interface {
	// Publish offers runs in one round trip. answers[i] belongs to offers[i]. An error wraps ErrUnavailable and
	// means that any of the offers may or may not have been taken: repeat them with Announce set.
	Publish(ctx context.Context, offers []Offer) (answers []Answer, err error)

	// Range reads the events of a topic after an offset: at most limit, MaxRangeFrames and about MaxRangeBytes (always at
	// least one). The run begins exactly at after+1 and is contiguous, or is empty: the stream does not hold that
	// event. An error wraps ErrUnavailable.
	Range(ctx context.Context, ch Channel, after int64, limit int) (Run, error)

	// Tick sends a probe through every subscription: workers call it about once a second, and a subscription that
	// hears none for a while rebuilds itself.
	Tick(ctx context.Context) error

	// NewSubscription prepares a subscription. It does nothing until its Run is called.
	NewSubscription(h Handler) Subscription

	// Ping says whether the stream, or a part of it, can be used now: nil, or an error that wraps ErrUnavailable.
	Ping(ctx context.Context) error

	// Close releases connections. Subscriptions must have ended before.
	Close() error
}

// Handler receives what a subscription hears. Calls come one at a time, and must not block: the readers of connections
// wait for them.
type Handler interface {
	// Confirmed says that ch is live: every run announced from now on is delivered until Down.
	Confirmed(ch Channel)
	// Deliver hands over a run of a confirmed channel. Frames may be kept.
	Deliver(r Run)
	// Down says that runs of these partitions may have been lost: none of their channels is confirmed any more. The
	// subscription goes on by itself and confirms each channel again.
	Down(of Partitions, err error)
}

// Partitions is a set of partitions: bit p stands for partition p.
type Partitions uint32

// AllPartitions holds every one.
const AllPartitions Partitions = 1<<wire.Partitions - 1

// Has reports whether the set holds a partition.
func (s Partitions) Has(partition int) bool { return s&(1<<partition) != 0 }

// Subscription is a set of channels that are listened to.
type Subscription interface {
	// Run holds the connection, rebuilds it when it breaks or falls silent, and calls the handler, until ctx ends.
	// It returns ctx's error.
	Run(ctx context.Context) error
	// Add begins to listen to channels; each is confirmed to the handler once live. Never blocks. Adding a channel
	// twice has no effect.
	Add(chs ...Channel)
	// Remove stops listening. Runs under way may still be delivered. Never blocks.
	Remove(chs ...Channel)
}
