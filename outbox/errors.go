package outbox

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
)

var (
	// ErrInvalidEvent: an event breaks a limit. Its transaction can go on without it.
	ErrInvalidEvent = errors.New("invalid event")

	// ErrCommitUnknown: COMMIT was sent, and no answer came. The transaction may or may not be durable. Trying it
	// again blindly may do the work twice; look first.
	ErrCommitUnknown = errors.New("commit outcome unknown")

	// ErrTxControl: fn called Commit or Rollback on its Transaction, or ended it with SQL. Tx commits when fn returns
	// nil and rolls back when it returns an error.
	ErrTxControl = errors.New("the transaction is ended by outbox.Tx, not inside it")

	// ErrTooManyPending: more than MaxPending events of a topic wait to be sequenced, because no worker runs or they
	// are far behind. Answer 503 with Retry-After.
	ErrTooManyPending = errors.New("too many unsequenced events")

	// ErrEpochPending: the database has just been restarted, restored or failed over, and no worker has begun an
	// epoch for it yet. Answer 503 with Retry-After.
	ErrEpochPending = errors.New("the database's new epoch has not begun")
)

// invalidEvent is an ErrInvalidEvent with the message that commitcast.append raises for the same mistake.
type invalidEvent string

func (e invalidEvent) Error() string        { return string(e) }
func (e invalidEvent) Is(target error) bool { return target == ErrInvalidEvent }

func invalidf(format string, args ...any) error {
	return invalidEvent("commitcast: " + fmt.Sprintf(format, args...))
}

// unknownError is an ErrCommitUnknown with its cause.
type unknownError struct{ cause error }

func (e *unknownError) Error() string {
	return fmt.Sprintf("outbox: %v: %v", ErrCommitUnknown, e.cause)
}
func (e *unknownError) Is(target error) bool { return target == ErrCommitUnknown }
func (e *unknownError) Unwrap() error        { return e.cause }

// SafeToRetry shadows what the cause says: pgx calls some lost COMMITs safe to retry, and pgconn.SafeToRetry asks the
// outermost error that has an opinion.
func (e *unknownError) SafeToRetry() bool { return false }

// answered reports whether err is the server's word that the transaction failed. A FATAL error is not: it may come
// from a pooler whose server went away with the COMMIT, and a connection that ends while a commit waits for its standby
// has committed.
func answered(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	severity := pg.SeverityUnlocalized
	if severity == "" {
		severity = pg.Severity
	}
	return severity == "ERROR" && pg.Code[:min(2, len(pg.Code))] != "08"
}
