package outbox

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

//go:embed snapshot.sql
var snapshotSQL string

// Position is where a topic stood in a snapshot: what a client needs to follow it exactly. Send it along with what was
// read, as it is; all of its fields belong together.
type Position struct {
	Topic string `json:"topic"`
	// Cursor is what to subscribe after: "epoch:offset" of the topic's newest event in the snapshot, with offset 0
	// if there is none.
	Cursor string `json:"cursor"`
	// Epoch is the epoch that was current in the snapshot. Pending ids are worth nothing in another one.
	Epoch string `json:"epoch"`
	// Pending holds the ids of events that the snapshot contains although their offsets come after Cursor: the client
	// skips them when they arrive. Never nil; normally empty, at most MaxPending.
	Pending []int64 `json:"pending"`
}

// Beginner is a *pgxpool.Pool or a *pgx.Conn, of the primary or of a replica.
type Beginner interface {
	BeginTx(ctx context.Context, opts pgx.TxOptions) (pgx.Tx, error)
}

// Snapshot reads the state of topics together with their positions, in one REPEATABLE READ, READ ONLY transaction. read
// is called once with that transaction, and what it reads contains exactly the events up to each topic's Cursor and
// those in Pending. The positions have the order of topics. read may be nil.
//
// Only what is read inside read counts: a cache, another connection, or a second Snapshot shows another moment.
//
// Errors: that of read as it is; [ErrTooManyPending]; [ErrEpochPending]; [ErrInvalidEvent] for a bad topic name or more
// than MaxTopics; what Postgres or ctx says. Snapshot waits up to 2 s for an epoch that is about to begin.
func Snapshot(ctx context.Context, db Beginner, topics []string, read func(tx pgx.Tx) error) ([]Position, error) {
	if len(topics) > MaxTopics {
		return nil, invalidf("a snapshot can have %d topics at most, not %d", MaxTopics, len(topics))
	}
	for _, topic := range topics {
		if !validTopic(topic) {
			return nil, badTopic(topic)
		}
	}
	var positions []Position
	err := waitEpoch(ctx, func() (err error) {
		positions, err = snapshot(ctx, db, topics, read)
		return err
	})
	return positions, err
}

// waitEpoch calls attempt again while that fails with ErrEpochPending, for up to maxEpochWait.
func waitEpoch(ctx context.Context, attempt func() error) error {
	deadline := time.Now().Add(maxEpochWait)
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		err := attempt()
		if !errors.Is(err, ErrEpochPending) || time.Now().After(deadline) {
			return err
		}
		select {
		case <-time.After(wait/2 + rand.N(wait)):
		case <-ctx.Done():
			return fmt.Errorf("outbox: snapshot: %w (waiting: %w)", ctx.Err(), err)
		}
	}
}

// snapshot is one attempt. If it fails with ErrEpochPending, read was not called.
func snapshot(ctx context.Context, db Beginner, topics []string, read func(tx pgx.Tx) error) ([]Position, error) {
	tx, err := db.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return nil, fmt.Errorf("outbox: snapshot: beginning the transaction: %w", err)
	}
	defer rollback(ctx, tx) // nothing to commit
	positions, err := readPositions(ctx, tx, topics)
	if err != nil {
		return nil, err
	}
	if read != nil {
		if err := read(tx); err != nil {
			return nil, err
		}
	}
	return positions, nil
}

func readPositions(ctx context.Context, tx pgx.Tx, topics []string) ([]Position, error) {
	rows, err := tx.Query(ctx, snapshotSQL, topics, MaxPending, maxPendingScan)
	if err != nil {
		return nil, fmt.Errorf("outbox: snapshot: reading positions: %w", err)
	}
	defer rows.Close()
	positions := make([]Position, 0, len(topics))
	for rows.Next() {
		p, err := scanPosition(rows, topics[len(positions)])
		if err != nil {
			return nil, err
		}
		positions = append(positions, p)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("outbox: snapshot: reading positions: %w", err)
	}
	return positions, nil
}

// scanPosition reads a row of snapshotSQL, and further columns of it.
func scanPosition(rows pgx.Rows, topic string, more ...any) (Position, error) {
	var epoch, headEpoch *string
	var head *int64
	var ids []int64
	var tooMany bool
	var unborn *bool
	p := Position{Topic: topic, Pending: []int64{}}
	if err := rows.Scan(append([]any{&epoch, &head, &headEpoch, &ids, &tooMany, &unborn}, more...)...); err != nil {
		return p, fmt.Errorf("outbox: snapshot: reading positions: %w", err)
	}
	switch {
	case tooMany:
		return p, fmt.Errorf("outbox: snapshot: topic %s: %w", topic, ErrTooManyPending)
	case epoch == nil || unborn != nil && *unborn:
		return p, fmt.Errorf("outbox: snapshot: topic %s: %w", topic, ErrEpochPending)
	}
	p.Epoch = *epoch
	if head == nil {
		head, headEpoch = new(int64), epoch
	}
	p.Cursor = *headEpoch + ":" + strconv.FormatInt(*head, 10)
	if ids != nil {
		p.Pending = ids
	}
	return p, nil
}
