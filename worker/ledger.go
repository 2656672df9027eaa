package worker

import (
	"context"
	_ "embed"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/internal/journal"
)

var (
	//go:embed parked.sql
	parkedSQL string
	//go:embed position.sql
	positionSQL string
	//go:embed unpark.sql
	unparkSQL string
	//go:embed progress.sql
	progressSQL string
)

// position is where a topic stands.
type position struct {
	epoch                  string // the current one
	head                   int64
	parkedFrom             *int64 // from where on it is set aside; nil: it is not
	orderedFrom, orderedTo *int64 // what an operator wants published again
}

// ledger is what publishing asks the database and tells it, one statement or transaction each. It is apart so that
// schedule_test.go can let others do something between any two of them.
type ledger interface {
	// parked are the topics of a partition, among some or (nil) all, that are set aside.
	parked(ctx context.Context, partition int16, among []string) ([]string, error)
	// park sets topics aside durably, each with a job. Topics that are set aside already keep what they have.
	park(ctx context.Context, partition int16, refusals []refusal) error
	// position reads where a topic stands.
	position(ctx context.Context, topic string) (position, error)
	// progress notes that the stream has everything of a topic before next, in an epoch: whoever goes on begins there. Of a topic
	// that was not set aside, it says so of what was ordered only.
	progress(ctx context.Context, topic string, next int64, epoch string, parked bool) error
	// unpark ends a topic's being set aside, if it was, and what an operator has ordered of it before next.
	unpark(ctx context.Context, topic string, next int64, parked bool) error
	// readTopic reads events of a topic. They are contiguous, and begin at offset from unless that is past retention.
	readTopic(ctx context.Context, sc *journal.Scanner, topic string, from, to int64) (first int64, frames [][]byte, lastSeq int64, err error)
}

// database is the ledger there is. Positions are read in a session of one's own, if one has it.
type database struct {
	*Worker
	session interface {
		QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	}
}

func (d database) parked(ctx context.Context, partition int16, among []string) ([]string, error) {
	rows, err := d.pool.Query(ctx, parkedSQL, partition, among, maxParked)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

func (d database) position(ctx context.Context, topic string) (p position, err error) {
	err = d.session.QueryRow(ctx, positionSQL, topic).Scan(&p.epoch, &p.head, &p.parkedFrom, &p.orderedFrom, &p.orderedTo)
	return p, err
}

func (d database) progress(ctx context.Context, topic string, next int64, epoch string, parked bool) error {
	if _, err := d.pool.Exec(ctx, progressSQL, topic, next, epoch, parked); err != nil {
		return fmt.Errorf("noting how far %q is: %w", topic, err)
	}
	return nil
}

func (d database) unpark(ctx context.Context, topic string, next int64, parked bool) error {
	if _, err := d.pool.Exec(ctx, unparkSQL, topic, next, parked); err != nil {
		return fmt.Errorf("unparking %q: %w", topic, err)
	}
	return nil
}
