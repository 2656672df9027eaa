// Package outbox is the writer's side of Commitcast: it puts events into the transaction that makes them true, and
// hands readers a snapshot together with the exact position from which to follow it. It imports pgx, the API of
// OpenTelemetry's traces, and nothing else of Commitcast's.
//
// Writers call [Tx], and inside it [Transaction.Publish]:
//
//	err := outbox.Tx(ctx, pool, func(tx *outbox.Transaction) error {
//		if _, err := tx.Exec(ctx, `UPDATE market SET yes = $1 WHERE id = $2`, yes, id); err != nil {
//			return err
//		}
//		return tx.Publish(outbox.Event{Topic: "market:42", Type: "price", Data: price})
//	})
//
// # Guarantees
//
// An event exists if and only if its transaction committed. Writers never wait on each other because of this package:
// events are rows that are inserted, nothing else is locked, and nothing is notified inside the transaction. Tx inserts
// all events in one statement after the last write of fn, in the same round trip as COMMIT, so offsets follow
// causality: if B began after A committed, or waited for a row that A had locked, A's events come first. Callers of
// [Append] get that order only if they call it after their last write to the rows that the event is about.
//
// A COMMIT whose answer was lost is reported as [ErrCommitUnknown], never as a failure that is safe to retry.
//
// Readers call [Snapshot]. What it read, and the events that follow its [Position], fit together without a gap or an
// overlap.
//
// # Concurrency and lifecycle
//
// All functions are safe for concurrent use; a [Transaction] is not, as little as a pgx.Tx. After a commit, workers are
// woken by a NOTIFY on a connection of its own, of which there is at most one per pool: it opens with the first event,
// closes after [WakeIdle] without one, and no goroutine exists unless there is something to send. [Flush] closes it at
// once. Nobody waits for it and no error comes of it; a worker's sweep finds what a lost wake-up does not announce.
package outbox
