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
			return nil, invalidf(`topic "%s" does not match %s`, clip(topic, 144), TopicPattern)
		}
	}
	deadline := time.Now().Add(maxEpochWait)
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		positions, again, err := snapshot(ctx, db, topics, read)
		if !again || time.Now().After(deadline) {
			return positions, err
		}
		select {
		case <-time.After(wait/2 + rand.N(wait)):
		case <-ctx.Done():
			return nil, fmt.Errorf("outbox: snapshot: %w (waiting: %w)", ctx.Err(), err)
		}
	}
}

// snapshot is one attempt. again is true if it failed with ErrEpochPending, before read was called.
func snapshot(ctx context.Context, db Beginner, topics []string, read func(tx pgx.Tx) error) (_ []Position, again bool, _ error) {
	tx, err := db.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return nil, false, fmt.Errorf("outbox: snapshot: beginning the transaction: %w", err)
	}
	defer rollback(ctx, tx) // nothing to commit
	positions, err := readPositions(ctx, tx, topics)
	if err != nil {
		return nil, errors.Is(err, ErrEpochPending), err
	}
	if read != nil {
		if err := read(tx); err != nil {
			return nil, false, err
		}
	}
	return positions, false, nil
}

func readPositions(ctx context.Context, tx pgx.Tx, topics []string) ([]Position, error) {
	rows, err := tx.Query(ctx, snapshotSQL, topics, MaxPending, maxPendingScan)
	if err != nil {
		return nil, fmt.Errorf("outbox: snapshot: reading positions: %w", err)
	}
	defer rows.Close()
	positions := make([]Position, 0, len(topics))
	for rows.Next() {
		var epoch, headEpoch *string
		var head *int64
		var tooMany bool
		var unborn *bool
		p := Position{Topic: topics[len(positions)], Pending: []int64{}}
		var ids []int64
		if err := rows.Scan(&epoch, &head, &headEpoch, &ids, &tooMany, &unborn); err != nil {
			return nil, fmt.Errorf("outbox: snapshot: reading positions: %w", err)
		}
		switch {
		case tooMany:
			return nil, fmt.Errorf("outbox: snapshot: topic %s: %w", p.Topic, ErrTooManyPending)
		case epoch == nil || unborn != nil && *unborn:
			return nil, fmt.Errorf("outbox: snapshot: topic %s: %w", p.Topic, ErrEpochPending)
		}
		p.Epoch = *epoch
		if head == nil {
			head, headEpoch = new(int64), epoch
		}
		p.Cursor = *headEpoch + ":" + strconv.FormatInt(*head, 10)
		if ids != nil {
			p.Pending = ids
		}
		positions = append(positions, p)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("outbox: snapshot: reading positions: %w", err)
	}
	return positions, nil
}
