package outbox

import (
	"context"
	_ "embed"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

var (
	//go:embed guard_history.sql
	guardHistorySQL string
	//go:embed guard_cursor.sql
	guardCursorSQL string
)

// SawHeader is the request header that says what the author of an action saw; see [ParseSaw].
const SawHeader = "Commitcast-Saw"

// Saw is what the author of an action saw.
type Saw struct {
	// Cursor is where the topic stood, "epoch:offset". It says which history of the database was looked at, whatever
	// the action is compared by. "" if it was not sent.
	Cursor string
	// Value is a version, a price or whatever else was seen. "" if it was not sent.
	Value string
}

// ParseSaw reads a Commitcast-Saw: a cursor, a value, or both with a semicolon between them:
//
//	Commitcast-Saw: 3-7d0a41c2:1041
//	Commitcast-Saw: 3-7d0a41c2:1041;17
//
// The error is a *Problem, 400.
func ParseSaw(header string) (Saw, error) {
	first, value, both := strings.Cut(header, ";")
	first, value = strings.TrimSpace(first), strings.TrimSpace(value)
	_, _, isCursor := parseCursor(first)
	switch {
	case len(header) > maxSaw:
		return Saw{}, badRequest("%s has %d bytes, more than the limit of %d", SawHeader, len(header), maxSaw)
	case both && !isCursor:
		return Saw{}, badRequest("%s %q does not begin with a cursor, epoch:offset", SawHeader, header)
	case isCursor:
		return Saw{Cursor: first, Value: value}, nil
	}
	return Saw{Value: first}, nil
}

// maxSaw is far more than a cursor and a version need.
const maxSaw = 256

var cursorPattern = regexp.MustCompile(`^([1-9][0-9]{0,9}-[0-9a-f]{4,16}):(0|[1-9][0-9]{0,15})$`)

// parseCursor reads "epoch:offset".
func parseCursor(s string) (epoch string, offset int64, ok bool) {
	m := cursorPattern.FindStringSubmatch(s)
	if m == nil {
		return "", 0, false
	}
	offset, err := strconv.ParseInt(m[2], 10, 64)
	return m[1], offset, err == nil && offset < 1<<53
}

// Guard holds what the author of an action saw against the database. Each method first refuses what was seen in a history
// that this database does not have: after a restore or a failover, version 17 may be another version 17. So a version
// or a price needs its cursor beside it; without one it is refused with a *Problem, 428.
//
// Call the methods in the transaction of the action, after you have locked what every writer of the topic locks (SELECT … FOR UPDATE
// of the market's row, or pg_advisory_xact_lock if there is no row): what is read without a lock may change before
// COMMIT.
//
// Errors apart from *Problem: a [*StaleError]; what Postgres says. An [Action] answers a StaleError with 409 and the
// fresh state.
type Guard struct {
	Topic string
	Saw   Saw
}

// GuardOf is the Guard of a request for a topic. A request without Commitcast-Saw is refused with a *Problem, 428.
func GuardOf(r *http.Request, topic string) (Guard, error) {
	header := r.Header.Get(SawHeader)
	if header == "" {
		return Guard{}, needed("%s is missing: say what you saw", SawHeader)
	}
	saw, err := ParseSaw(header)
	return Guard{Topic: topic, Saw: saw}, err
}

// History refuses only what was seen in another history.
func (g Guard) History(ctx context.Context, tx pgx.Tx) error {
	epoch, offset, ok := parseCursor(g.Saw.Cursor)
	if !ok {
		return needed("%s has no cursor, epoch:offset, which says in which history of the database it was seen", SawHeader)
	}
	var reason *string
	if err := tx.QueryRow(ctx, guardHistorySQL, g.Topic, epoch, offset).Scan(&reason); err != nil {
		return fmt.Errorf("outbox: guard: checking the cursor: %w", err)
	}
	if reason != nil {
		return &StaleError{Topic: g.Topic, Observed: g.Saw.Cursor, Current: "another history of the database (" + *reason + ")"}
	}
	return nil
}

// Cursor refuses if anything has happened to the topic since. That includes events which are not sequenced yet: while no
// worker runs, every action after the first is refused. Where that is too strict, compare versions.
func (g Guard) Cursor(ctx context.Context, tx pgx.Tx) error {
	if err := g.History(ctx, tx); err != nil {
		return err
	}
	_, offset, _ := parseCursor(g.Saw.Cursor)
	var head int64
	var pending *bool
	if err := tx.QueryRow(ctx, guardCursorSQL, g.Topic, maxPendingScan).Scan(&head, &pending); err != nil {
		return fmt.Errorf("outbox: guard: reading the head: %w", err)
	}
	if pending != nil && *pending {
		return &StaleError{Topic: g.Topic, Observed: g.Saw.Cursor, Current: fmt.Sprintf("offset %d and events that are not sequenced yet", head)}
	}
	return Check(g.Topic, offset, head)
}

// Version refuses unless the version that was seen is still current.
func (g Guard) Version(ctx context.Context, tx pgx.Tx, current int64) error {
	observed, err := strconv.ParseInt(g.Saw.Value, 10, 64)
	if err != nil {
		return needed("%s must be cursor;version, as in 3-7d0a41c2:1041;17", SawHeader)
	}
	if err := g.History(ctx, tx); err != nil {
		return err
	}
	return Check(g.Topic, observed, current)
}

// Within refuses unless the author would still want it, such as when a price has moved by less than the slippage that he
// allows: acceptable says so. observed is what was seen, from Saw.Value or from the request's body.
func Within[T any](ctx context.Context, tx pgx.Tx, g Guard, observed, current T, acceptable func(observed, current T) bool) error {
	if err := g.History(ctx, tx); err != nil {
		return err
	}
	return CheckFunc(g.Topic, observed, current, acceptable)
}

// needed refuses a request that must say what it is conditional on (RFC 6585).
func needed(format string, args ...any) error {
	p := badRequest(format, args...)
	p.Status = http.StatusPreconditionRequired
	return p
}
