package journal

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// replicaTimeout is how long a replica may take for a read, a connection included, until the primary is asked.
	replicaTimeout = 500 * time.Millisecond
	// replicaRest is for how long the primary alone is asked after the replica did not know or did not answer: one that lags
	// or is gone costs one read in so long, and not one in each.
	replicaRest = time.Second
)

// replica answers reads of events. It is asked for nothing else: where topics stand, whether a cursor is valid and that an
// event is no longer there, only the primary may say. So it may lag as it likes: what it does not have is read from the
// primary, and what it has in the primary's epoch is what the primary has, since the journal is only appended to.
type replica struct {
	pool        *pgxpool.Pool
	until       atomic.Int64 // UnixNano: it rests until then
	asked, knew atomic.Int64
}

// UseReplica has events read from a streaming replica of the database, which need not be there and may lag, and spares the
// primary these reads. Call it before the first read. Closing the pool is the caller's.
func (r *Reader) UseReplica(pool *pgxpool.Pool) { r.replica = &replica{pool: pool} }

// ReplicaReads is how many reads the replica was asked for, and how many of these it could answer.
func (r *Reader) ReplicaReads() (asked, knew int64) {
	if r.replica == nil {
		return 0, 0
	}
	return r.replica.asked.Load(), r.replica.knew.Load()
}

// ranges reads events in an epoch, of each topic at least one. False: it did not know all, or not in time, or rests.
func (r *replica) ranges(ctx context.Context, epoch string, topics []string, after []int64, limit, bytes int) ([][][]byte, bool) {
	if time.Now().UnixNano() < r.until.Load() {
		return nil, false
	}
	r.asked.Add(1)
	ctx, cancel := context.WithTimeout(ctx, replicaTimeout)
	defer cancel()
	at, frames, err := ranges(ctx, r.pool, topics, after, limit, bytes)
	knows := err == nil && at == epoch
	for _, f := range frames {
		knows = knows && len(f) > 0
	}
	if !knows {
		r.until.Store(time.Now().Add(replicaRest).UnixNano())
		return nil, false
	}
	r.knew.Add(1)
	return frames, true
}
