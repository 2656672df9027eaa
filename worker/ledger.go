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
)

// ledger is what publishing asks the database and tells it, one statement or transaction each. It is apart so that
// schedule_test.go can let others do something between any two of them.
type ledger interface {
	// parked are the topics of a partition, among some or (nil) all, that are set aside.
	parked(ctx context.Context, partition int16, among []string) ([]string, error)
	// park sets topics aside durably, each with a job. Topics that are set aside already keep what they have.
	park(ctx context.Context, partition int16, refusals []refusal) error
	// position reads the current epoch, a topic's head, and from where on it is set aside; nil if it is not.
	position(ctx context.Context, topic string) (epoch string, head int64, parkedFrom *int64, err error)
	// unpark ends a topic's being set aside.
	unpark(ctx context.Context, topic string) error
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

func (d database) position(ctx context.Context, topic string) (epoch string, head int64, parkedFrom *int64, err error) {
	err = d.session.QueryRow(ctx, positionSQL, topic).Scan(&epoch, &head, &parkedFrom)
	return epoch, head, parkedFrom, err
}

func (d database) unpark(ctx context.Context, topic string) error {
	if _, err := d.pool.Exec(ctx, unparkSQL, topic); err != nil {
		return fmt.Errorf("unparking %q: %w", topic, err)
	}
	return nil
}
