package outbox

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

var (
	//go:embed operation_begin.sql
	operationBeginSQL string
	//go:embed operation_finish.sql
	operationFinishSQL string
	//go:embed operation_forget.sql
	operationForgetSQL string
)

var (
	// ErrOperationReused: the operation's key was used with another fingerprint. Answer 422.
	ErrOperationReused = errors.New("the operation's key belongs to another request")

	// ErrOperationBusy: the same operation is under way in another transaction, for longer than was waited. Nothing
	// was done by this call. Try again.
	ErrOperationBusy = errors.New("the same operation is under way")
)

// Operation identifies an intent, so that carrying it out again does nothing.
type Operation struct {
	// Scope is whose key it is, such as a user's id: keys of different scopes never meet. 1 to MaxLabelLen bytes.
	Scope string
	// Key is the author's own id of the intent, the same for each attempt. 1 to MaxOperationKey bytes.
	Key string
	// Fingerprint tells apart two requests with the same key, for example a hash of the request; it may be nil.
	Fingerprint []byte
}

// Outcome is what became of an operation.
type Outcome[T any] struct {
	// Result is what fn returned, this time or the first time.
	Result T
	// Events are the ids of the events that were published, in order.
	Events []int64
	// Repeated says that it had been carried out before, and nothing was done now.
	Repeated bool
}

// Once is [Tx] for an operation: however often it is called with the same Operation, at once or one after the other,
// fn's work takes effect once, and every call returns the first one's Outcome. Result, events and the record of the operation are one
// transaction. The record is kept for OperationRetention.
//
// A COMMIT whose answer was lost is looked up and tried again, as long as ctx allows. If that does not help, the error
// is ErrCommitUnknown, and a later call with the same Operation finds out.
//
// fn may be called more than once; only one of its transactions is committed. If it returns an error nothing is
// recorded, and the next call tries again. T goes through encoding/json; at most MaxAnswer bytes of it.
//
// Errors apart from those of Tx: [ErrOperationReused], [ErrOperationBusy], an [ErrInvalidEvent] for a bad Operation.
func Once[T any](ctx context.Context, db *pgxpool.Pool, op Operation, fn func(tx *Transaction) (T, error)) (Outcome[T], error) {
	if err := op.check(); err != nil {
		return Outcome[T]{}, err
	}
	var unknown error
	for attempt := 1; ; attempt++ {
		out, decided, err := tryOnce(ctx, db, op, fn)
		switch {
		case errors.Is(err, ErrCommitUnknown):
			unknown = err
		case err == nil || unknown == nil || decided:
			// The record decides: its row was written before COMMIT, so whoever found none, and wrote it, knows that
			// the earlier transaction is gone for good.
			if err == nil && !out.Repeated && rand.N(forgetEvery) == 0 {
				forget(ctx, db)
			}
			return out, err
		}
		if attempt == onceAttempts || ctx.Err() != nil {
			return Outcome[T]{}, unknown
		}
		select {
		case <-time.After(50*time.Millisecond<<attempt/2 + rand.N(50*time.Millisecond<<attempt)):
		case <-ctx.Done():
			return Outcome[T]{}, unknown
		}
	}
}

// tryOnce is one transaction. decided says that the database has answered whether the operation is recorded.
func tryOnce[T any](ctx context.Context, db *pgxpool.Pool, op Operation, fn func(tx *Transaction) (T, error)) (out Outcome[T], decided bool, err error) {
	var returns []idReturn
	var partitions uint32
	err = Tx(ctx, db, func(tx *Transaction) error {
		recorded, err := op.begin(ctx, tx)
		if err != nil {
			decided = errors.Is(err, ErrOperationReused)
			return err
		}
		decided = true
		if recorded != nil {
			out.Events, out.Repeated = recorded.events, true
			if err := json.Unmarshal(recorded.result, &out.Result); err != nil {
				return fmt.Errorf("outbox: the recorded result: %w", err)
			}
			return nil
		}
		if out.Result, err = fn(tx); err != nil {
			return err
		}
		if tx.Conn().PgConn().TxStatus() != 'T' {
			return nil // Tx says what is wrong
		}
		returns, partitions = tx.returns, tx.buffer.partitions()
		out.Events, err = op.finish(ctx, tx, out.Result)
		return err
	})
	if err != nil && !errors.Is(err, ErrCommitUnknown) {
		return Outcome[T]{}, decided, err
	}
	if partitions != 0 {
		wake(db, partitions)
	}
	if err == nil {
		for _, r := range returns {
			*r.to = out.Events[r.nth]
		}
	}
	return out, decided, err
}

// check holds an operation to its limits.
func (op Operation) check() error {
	switch {
	case op.Scope == "" || len(op.Scope) > MaxLabelLen || !validText(op.Scope):
		return invalidf("the scope of an operation must have 1 to %d bytes of UTF-8 without NUL", MaxLabelLen)
	case op.Key == "" || len(op.Key) > MaxOperationKey || !validText(op.Key):
		return invalidf("the key of an operation must have 1 to %d bytes of UTF-8 without NUL", MaxOperationKey)
	case len(op.Fingerprint) > maxFingerprint:
		return invalidf("the fingerprint of an operation can have %d bytes at most", maxFingerprint)
	}
	return nil
}

// record is what the first time left behind.
type record struct {
	result json.RawMessage
	events []int64
}

// begin writes the operation's record, or returns the one that is there.
func (op Operation) begin(ctx context.Context, tx pgx.Tx) (*record, error) {
	fingerprint := op.Fingerprint
	if fingerprint == nil {
		fingerprint = []byte{}
	}
	var begun, same bool
	var r record
	var result *string
	err := tx.QueryRow(ctx, operationBeginSQL, op.Scope, op.Key, fingerprint).Scan(&begun, &same, &result, &r.events)
	switch pg := (*pgconn.PgError)(nil); {
	case errors.As(err, &pg) && (pg.Code == "55P03" || pg.Code == "40001"): // the wait was too long, or cannot help
		return nil, fmt.Errorf("outbox: %w: %w", ErrOperationBusy, err)
	case err != nil:
		return nil, fmt.Errorf("outbox: looking up the operation: %w", err)
	case begun:
		return nil, nil
	case !same:
		return nil, fmt.Errorf("outbox: %w", ErrOperationReused)
	}
	r.result = json.RawMessage("null")
	if result != nil {
		r.result = json.RawMessage(*result)
	}
	return &r, nil
}

// finish inserts the transaction's events and completes the record with their ids and the result, in one statement.
func (op Operation) finish(ctx context.Context, tx *Transaction, result any) (events []int64, err error) {
	text, err := marshal(result)
	if err != nil {
		return nil, fmt.Errorf("outbox: encoding the result: %w", err)
	}
	if len(text) > MaxAnswer {
		return nil, fmt.Errorf("outbox: the result of an operation has %d bytes, more than the limit of %d", len(text), MaxAnswer)
	}
	insert, args := `SELECT NULL::bigint AS id WHERE false`, []any(nil)
	if len(tx.buffer.rows) > 0 {
		insert, args = tx.buffer.insert()
	}
	args = append(args, op.Scope, op.Key, text)
	sql := fmt.Sprintf(operationFinishSQL, insert, len(args)-2, len(args)-1, len(args))
	if err := tx.QueryRow(ctx, sql, args...).Scan(&events); err != nil {
		return nil, fmt.Errorf("outbox: adding events and recording the operation: %w", err)
	}
	tx.truncate(0)
	return events, nil
}

// ForgetOperations removes up to limit operations that are older than OperationRetention, and returns how many it
// removed. Once does this now and then by itself; it is for a database whose writers have stopped.
func ForgetOperations(ctx context.Context, db *pgxpool.Pool, limit int) (int64, error) {
	var n int64
	if err := db.QueryRow(ctx, operationForgetSQL, OperationRetention, limit).Scan(&n); err != nil {
		return 0, fmt.Errorf("outbox: forgetting operations: %w", err)
	}
	return n, nil
}

// forget is ForgetOperations on the way, after a commit: it may fail, another one will do it.
func forget(ctx context.Context, db *pgxpool.Pool) {
	ctx, cancel := context.WithTimeout(ctx, forgetTimeout)
	defer cancel()
	_, _ = ForgetOperations(ctx, db, forgetBatch)
}
