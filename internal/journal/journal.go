package journal

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/wire"
)

//go:embed positions.sql
var positionsSQL string

//go:embed seqs.sql
var seqsSQL string

//go:embed range.sql
var rangeSQL string

// rangeBytes is about how many bytes of data one Range returns: what a subscriber that is behind may hold in memory.
const rangeBytes = 512 << 10

const (
	// rangesEvents and rangesBytes are about how much one Ranges returns of each topic: what polling finds new in a moment.
	rangesEvents = 100
	rangesBytes  = 32 << 10
)

// Reader reads the journal through a pool of connections to the primary and, where it has been given one, its replica.
type Reader struct {
	pool    *pgxpool.Pool
	replica *replica               // nil: there is none
	epoch   atomic.Pointer[string] // that the primary said last
}

// New makes a Reader.
func New(pool *pgxpool.Pool) *Reader { return &Reader{pool: pool} }

var errNoEpoch = errors.New("the database has no epoch yet; run: commitcast migrate up")

// Positions implements broadcaster.Journal.
func (r *Reader) Positions(ctx context.Context, questions []wire.Question) (string, []wire.Position, error) {
	var topics, epochs []string
	var offsets []int64
	which, subjects := make([]int64, len(questions)), make([]string, len(questions))
	places := make(map[wire.Question]int64)
	for i, q := range questions {
		subjects[i], q.Subject = q.Subject, ""
		if places[q] == 0 {
			topics, epochs, offsets = append(topics, q.Topic), append(epochs, q.Cursor.Epoch), append(offsets, q.Cursor.Offset)
			places[q] = int64(len(topics))
		}
		which[i] = places[q]
	}
	rows, err := r.pool.Query(ctx, positionsSQL, topics, epochs, offsets, which, subjects)
	if err != nil {
		return "", nil, fmt.Errorf("read positions of %d topics: %w", len(questions), err)
	}
	positions := make([]wire.Position, 0, len(questions))
	var epoch *string
	var p wire.Position
	_, err = pgx.ForEachRow(rows, []any{&epoch, &p.Head, &p.Reason, &p.Revoked, &p.Changed}, func() error {
		positions = append(positions, p)
		return nil
	})
	if err != nil {
		return "", nil, fmt.Errorf("read positions of %d topics: %w", len(questions), err)
	}
	if epoch == nil {
		return "", nil, errNoEpoch
	}
	r.epoch.Store(epoch)
	return *epoch, positions, nil
}

// Seqs implements broadcaster.Journal.
func (r *Reader) Seqs(ctx context.Context) (string, [wire.Partitions]int64, error) {
	var seqs [wire.Partitions]int64
	rows, err := r.pool.Query(ctx, seqsSQL)
	if err != nil {
		return "", seqs, fmt.Errorf("read partitions: %w", err)
	}
	var epoch *string
	var id, seq int64
	_, err = pgx.ForEachRow(rows, []any{&epoch, &id, &seq}, func() error {
		if id < 0 || id >= wire.Partitions {
			return fmt.Errorf("partition %d does not exist", id)
		}
		seqs[id] = seq
		return nil
	})
	if err != nil {
		return "", seqs, fmt.Errorf("read partitions: %w", err)
	}
	if epoch == nil {
		return "", seqs, errNoEpoch
	}
	r.epoch.Store(epoch)
	return *epoch, seqs, nil
}

// Range implements broadcaster.Journal.
func (r *Reader) Range(ctx context.Context, topic string, after int64, limit int) (string, [][]byte, error) {
	epoch, frames, err := r.ranges(ctx, []string{topic}, []int64{after}, limit, rangeBytes)
	if err != nil {
		return "", nil, fmt.Errorf("read events of %q after %d: %w", topic, after, err)
	}
	return epoch, frames[0], nil
}

// Ranges implements broadcaster.Journal.
func (r *Reader) Ranges(ctx context.Context, after []wire.Question) (string, [][][]byte, error) {
	topics, offsets := make([]string, len(after)), make([]int64, len(after))
	for i, q := range after {
		topics[i], offsets[i] = q.Topic, q.Cursor.Offset
	}
	epoch, frames, err := r.ranges(ctx, topics, offsets, rangesEvents, rangesBytes)
	if err != nil {
		return "", nil, fmt.Errorf("read events of %d topics: %w", len(after), err)
	}
	return epoch, frames, nil
}

// ranges asks the replica if it is likely to know, and otherwise the primary.
func (r *Reader) ranges(ctx context.Context, topics []string, after []int64, limit, bytes int) (epoch string, frames [][][]byte, err error) {
	if r.replica != nil {
		if known := r.epoch.Load(); known != nil {
			if frames, ok := r.replica.ranges(ctx, *known, topics, after, limit, bytes); ok {
				return *known, frames, nil
			}
		}
	}
	return ranges(ctx, r.pool, topics, after, limit, bytes)
}

func ranges(ctx context.Context, pool *pgxpool.Pool, topics []string, after []int64, limit, bytes int) (epoch string, frames [][][]byte, err error) {
	rows, err := pool.Query(ctx, rangeSQL, topics, after, limit, bytes)
	if err != nil {
		return "", nil, err
	}
	frames = make([][][]byte, len(topics))
	var current, key *string
	var nth int
	var found bool
	var e wire.Event
	_, err = pgx.ForEachRow(rows, []any{&current, &nth, &found, &e.Topic, &e.Offset, &e.Epoch, &e.ID, &e.Type, &key, &e.Data,
		&e.Headers, &e.At}, func() error {
		if current == nil {
			return errNoEpoch
		}
		epoch = *current
		if of := &frames[nth-1]; found && e.Offset == after[nth-1]+1+int64(len(*of)) { // else nothing, or behind a hole
			if e.Key = ""; key != nil {
				e.Key = *key
			}
			*of = append(*of, Encode(&e))
		}
		return nil
	})
	return epoch, frames, err
}
