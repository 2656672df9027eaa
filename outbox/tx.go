package outbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Transaction is a pgx transaction that can publish events. It is valid until the function that got it returns, and
// belongs to one goroutine. Begin makes a savepoint, as in pgx. Commit and Rollback are refused with [ErrTxControl].
type Transaction struct {
	pgx.Tx
	buffer  buffer
	returns []idReturn
}

// idReturn is where the id of a buffered event is wanted.
type idReturn struct {
	nth int
	to  *int64
}

// Publish adds an event to the transaction. It is checked now and inserted when fn has returned, after every write of
// fn, wherever in fn Publish was called; among themselves, events keep the order of these calls. Rolling back a savepoint
// made with Begin drops the events that were published since then (a savepoint made with SQL is not seen).
//
// The error is an [ErrInvalidEvent]; the transaction can go on without the event.
func (t *Transaction) Publish(e Event) error {
	_, err := t.buffer.add(e)
	return err
}

// PublishReturning is [Transaction.Publish] for a caller who wants to recognise the event later: *id is set to its id
// when Tx returns nil, and is not touched otherwise. Subscribers see the same id in the event's frame.
func (t *Transaction) PublishReturning(e Event, id *int64) error {
	n, err := t.buffer.add(e)
	if err == nil {
		t.returns = append(t.returns, idReturn{n, id})
	}
	return err
}

// Begin makes a savepoint. Its Commit releases it, its Rollback goes back to it and drops the events that were
// published since.
func (t *Transaction) Begin(ctx context.Context) (pgx.Tx, error) {
	return beginSavepoint(ctx, t, t.Tx)
}

// Commit is refused with [ErrTxControl].
func (t *Transaction) Commit(context.Context) error { return ErrTxControl }

// Rollback is refused with [ErrTxControl]: return an error to roll back.
func (t *Transaction) Rollback(context.Context) error { return ErrTxControl }

// truncate forgets all but the first n events.
func (t *Transaction) truncate(n int) {
	t.buffer.truncate(n)
	for len(t.returns) > 0 && t.returns[len(t.returns)-1].nth >= n {
		t.returns = t.returns[:len(t.returns)-1]
	}
}

// Tx runs fn in a transaction and commits it together with the events that fn published. The transaction is READ
// COMMITTED and READ WRITE, whatever the database's defaults are: offsets follow causality only if events are inserted
// after a wait for another writer's lock has ended. If fn returns an error or panics, or its goroutine exits,
// everything is rolled back; the error is returned as it is, the panic goes on.
//
// Workers are woken after the commit, in the background.
//
// Errors apart from those of fn: [ErrCommitUnknown] if COMMIT was sent and no answer came, among other things because ctx ended
// then; [pgx.ErrTxCommitRollback] if fn returned nil after a failed statement, whose transaction can only be rolled
// back; [ErrTxControl]; what Postgres answered to the events or to COMMIT, such as a violated deferred constraint.
// After each of these except ErrCommitUnknown, and ErrTxControl for a COMMIT in SQL, nothing was committed.
func Tx(ctx context.Context, db *pgxpool.Pool, fn func(tx *Transaction) error) error {
	conn, err := db.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("outbox: getting a connection: %w", err)
	}
	defer conn.Release() // closes it unless it is idle
	inner, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite})
	if err != nil {
		return fmt.Errorf("outbox: beginning the transaction: %w", err)
	}
	t := &Transaction{Tx: inner, buffer: buffer{trace: traceparent(ctx)}}
	done := false
	defer func() {
		t.Tx = closedTx{} // the connection is about to be someone else's
		if !done {
			rollback(ctx, inner)
		}
	}()
	if err := fn(t); err != nil {
		return err
	}
	done, err = t.commit(ctx, conn.Conn())
	if err == nil || errors.Is(err, ErrCommitUnknown) {
		wake(db, t.buffer.partitions())
	}
	return err
}

// rollback ends a transaction even if ctx has ended, which must not cost the connection. A connection that is closed has
// rolled back, but the transaction of a pool gives it back only here.
func rollback(ctx context.Context, tx pgx.Tx) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
	defer cancel()
	_ = tx.Rollback(ctx) // on failure the connection is closed, which rolls back too
}

// commit inserts the buffered events and commits, in one round trip. done is false if there is still a transaction to
// be rolled back.
func (t *Transaction) commit(ctx context.Context, conn *pgx.Conn) (done bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, fmt.Errorf("outbox: committing: %w", err) // not sent, so not unknown
	}
	switch conn.PgConn().TxStatus() {
	case 'E':
		return false, fmt.Errorf("outbox: committing: %w: a statement failed and fn returned no error", pgx.ErrTxCommitRollback)
	case 'I':
		return true, fmt.Errorf("outbox: committing: %w", ErrTxControl)
	}
	if len(t.buffer.rows) == 0 {
		tag, err := conn.Exec(ctx, "commit")
		return t.committed(conn, nil, tag, err)
	}
	sql, args := t.buffer.insert()
	var batch pgx.Batch
	batch.Queue(sql, args...)
	batch.Queue("commit")
	results := conn.SendBatch(ctx, &batch)
	rows, _ := results.Query()
	ids, err := pgx.AppendRows(make([]int64, 0, len(t.buffer.rows)), rows, pgx.RowTo[int64])
	if err != nil {
		_ = results.Close() // reads on until the server is done
		return t.refused("adding events", err, conn)
	}
	tag, err := results.Exec()
	_ = results.Close() // after the answer to COMMIT its error is about the connection, which Release looks after
	return t.committed(conn, ids, tag, err)
}

// committed says what the answer to COMMIT means.
func (t *Transaction) committed(conn *pgx.Conn, ids []int64, tag pgconn.CommandTag, err error) (done bool, _ error) {
	switch {
	case err != nil:
		return t.refused("committing", err, conn)
	case tag.String() == "ROLLBACK":
		return true, fmt.Errorf("outbox: committing: %w", pgx.ErrTxCommitRollback)
	case tag.String() != "COMMIT":
		return true, &unknownError{fmt.Errorf("the server answered COMMIT with %q", tag)}
	}
	for _, r := range t.returns {
		*r.to = ids[r.nth]
	}
	return true, nil
}

// refused says what an error in the last round trip means.
func (t *Transaction) refused(doing string, err error, conn *pgx.Conn) (done bool, _ error) {
	switch {
	case answered(err):
		return conn.PgConn().TxStatus() == 'I', fmt.Errorf("outbox: %s: %w", doing, err)
	case !conn.IsClosed() && conn.PgConn().TxStatus() == 'T':
		// The connection is in order and the transaction is open: nothing was sent.
		return false, fmt.Errorf("outbox: %s: %w", doing, err)
	}
	return true, &unknownError{err}
}

// savepoint is a pgx savepoint that takes the events back that were published since it was made.
type savepoint struct {
	pgx.Tx
	t      *Transaction
	events int
}

func beginSavepoint(ctx context.Context, t *Transaction, parent pgx.Tx) (pgx.Tx, error) {
	tx, err := parent.Begin(ctx)
	if err != nil {
		return nil, err
	}
	return &savepoint{Tx: tx, t: t, events: len(t.buffer.rows)}, nil
}

func (s *savepoint) Begin(ctx context.Context) (pgx.Tx, error) {
	return beginSavepoint(ctx, s.t, s.Tx)
}

func (s *savepoint) Rollback(ctx context.Context) error {
	err := s.Tx.Rollback(ctx)
	if err == nil && s.events < len(s.t.buffer.rows) {
		s.t.truncate(s.events)
	}
	return err
}

// closedTx is what a Transaction is after its function has returned.
type closedTx struct{}

func (closedTx) failed() pgx.BatchResults {
	return pgx.FailedBatchResults(&pgx.Batch{}, pgx.ErrTxClosed)
}

func (closedTx) Begin(context.Context) (pgx.Tx, error) { return nil, pgx.ErrTxClosed }
func (closedTx) Commit(context.Context) error          { return pgx.ErrTxClosed }
func (closedTx) Rollback(context.Context) error        { return pgx.ErrTxClosed }
func (closedTx) Conn() *pgx.Conn                       { return nil }
func (closedTx) LargeObjects() pgx.LargeObjects        { return pgx.LargeObjects{} }
func (closedTx) SendBatch(_ context.Context, b *pgx.Batch) pgx.BatchResults {
	return pgx.FailedBatchResults(b, pgx.ErrTxClosed)
}
func (closedTx) Prepare(context.Context, string, string) (*pgconn.StatementDescription, error) {
	return nil, pgx.ErrTxClosed
}
func (closedTx) CopyFrom(context.Context, pgx.Identifier, []string, pgx.CopyFromSource) (int64, error) {
	return 0, pgx.ErrTxClosed
}
func (closedTx) Exec(context.Context, string, ...any) (pgconn.CommandTag, error) {
	return pgconn.CommandTag{}, pgx.ErrTxClosed
}
func (c closedTx) Query(context.Context, string, ...any) (pgx.Rows, error) { return c.failed().Query() }
func (c closedTx) QueryRow(context.Context, string, ...any) pgx.Row        { return c.failed().QueryRow() }
