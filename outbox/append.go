package outbox

import (
	"context"
	_ "embed"
	"fmt"

	"github.com/jackc/pgx/v5"
)

var (
	//go:embed append.sql
	appendSQL string
	//go:embed append_one.sql
	appendOneSQL string
)

// Append adds events to a transaction that the caller owns and returns their ids, in order. Call it after the
// transaction's last write to the rows that the events are about: offsets follow the order of these calls, not that of
// the commits (see the package's guarantees). Workers find the events within their sweep, 50 ms, or at once if the
// caller calls [Wake] after the commit.
//
// Errors: [ErrInvalidEvent], before anything was sent; or what Postgres answered, and then the transaction can only be
// rolled back.
func Append(ctx context.Context, tx pgx.Tx, events ...Event) ([]int64, error) {
	b := buffer{trace: traceparent(ctx)}
	for _, e := range events {
		if _, err := b.add(e); err != nil {
			return nil, err
		}
	}
	return b.append(ctx, tx)
}

// append inserts the buffered events and returns their ids, in order.
func (b *buffer) append(ctx context.Context, tx pgx.Tx) ([]int64, error) {
	if len(b.rows) == 0 {
		return nil, nil
	}
	sql, args := b.insert()
	rows, _ := tx.Query(ctx, sql, args...)
	ids, err := pgx.AppendRows(make([]int64, 0, len(b.rows)), rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("outbox: adding events: %w", err)
	}
	return ids, nil
}

// buffer holds events that are still to be inserted.
type buffer struct {
	rows   []row
	bytes  int
	fences int    // of the rows
	trace  string // the writer's traceparent; "": none
}

// add checks an event and returns its place in the buffer.
func (b *buffer) add(e Event) (int, error) {
	r, err := encode(e)
	if err != nil {
		return 0, err
	}
	return b.addRow(r)
}

func (b *buffer) addRow(r row) (int, error) {
	if len(b.rows) >= MaxEvents {
		return 0, invalidf("a transaction can have %d events at most", MaxEvents)
	}
	if b.bytes+r.size() > MaxEventBytes {
		return 0, invalidf("the events of a transaction can have %d bytes of data and headers at most", MaxEventBytes)
	}
	b.rows = append(b.rows, r)
	b.bytes += r.size()
	if r.isFence() {
		b.fences++
	}
	return len(b.rows) - 1, nil
}

// truncate forgets all but the first n events.
func (b *buffer) truncate(n int) {
	for _, r := range b.rows[n:] {
		b.bytes -= r.size()
		if r.isFence() {
			b.fences--
		}
	}
	clear(b.rows[n:])
	b.rows = b.rows[:n]
}

// insert is the statement that adds the buffered events and returns their ids in order.
func (b *buffer) insert() (sql string, args []any) {
	switch {
	case b.fences > 0:
		return appendFencesSQL, b.columns()
	case len(b.rows) == 1:
		r := &b.rows[0]
		return appendOneSQL, []any{r.topic, r.typ, r.key, r.data, r.headersIn(b.trace)}
	}
	return appendSQL, b.columns()
}

// columns are the arrays that append.sql and append_fences.sql take.
func (b *buffer) columns() []any {
	n := len(b.rows)
	all := make([]string, 5*n)
	topics, types, keys, data, headers := all[:n:n], all[n:2*n:2*n], all[2*n:3*n:3*n], all[3*n:4*n:4*n], all[4*n:]
	for i, r := range b.rows {
		topics[i], types[i], keys[i], data[i], headers[i] = r.topic, r.typ, r.key, r.data, r.headersIn(b.trace)
	}
	return []any{topics, types, keys, data, headers}
}

// partitions is the set of partitions of the buffered events, one bit each.
func (b *buffer) partitions() (set uint32) {
	for _, r := range b.rows {
		set |= 1 << partitionOf(r.topic)
	}
	return set
}
