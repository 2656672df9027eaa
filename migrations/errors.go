package migrations

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

var (
	// ErrNotMigrated: the database has no Commitcast schema.
	ErrNotMigrated = errors.New("not migrated")
	// ErrOutdated: the schema is older than the binary.
	ErrOutdated = errors.New("schema outdated")
	// ErrNewerSchema: the schema is newer than the binary.
	ErrNewerSchema = errors.New("schema newer than this binary")
	// ErrUnsupported: Commitcast cannot work with this server or database at all.
	ErrUnsupported = errors.New("unsupported database")
)

// lineError is an error with a message of one line, free of secrets, over a cause that may be neither.
type lineError struct {
	msg   string
	cause error
}

func (e *lineError) Error() string { return e.msg }
func (e *lineError) Unwrap() error { return e.cause }

// parseError leaves the cause out: it may quote a part of the URL, and with it a password.
func parseError() error {
	return errors.New("the database URL cannot be read: want postgres://user:password@host:port/database " +
		"(percent-encode : / ? # [ ] @ and % in a password)")
}

// connectError says in one line why no connection came about.
func connectError(cfg *pgconn.Config, err error) error {
	if pooled := PooledError(err); pooled != nil {
		return pooled
	}
	where := fmt.Sprintf("host %s port %d database %q user %q", cfg.Host, cfg.Port, cfg.Database, cfg.User)
	var pg *pgconn.PgError
	var netErr *net.OpError
	var why string
	switch {
	case errors.As(err, &pg):
		why = pg.Message
		if pg.Code == "28P01" {
			why += " (check the password in the database URL)"
		}
	case errors.Is(err, context.DeadlineExceeded):
		why = "no answer in time"
	case errors.As(err, &netErr):
		why = netErr.Err.Error()
	default:
		var connect *pgconn.ConnectError
		if errors.As(err, &connect) {
			err = connect.Unwrap()
		}
		why = strings.Join(strings.Fields(err.Error()), " ")
	}
	return &lineError{fmt.Sprintf("cannot connect to Postgres at %s: %s", where, why), err}
}

// stepError says in one line what was being done when Postgres refused, and what would help if that is known.
func stepError(doing string, err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	why := pg.Message
	switch pg.Code {
	case "42501": // insufficient_privilege
		if !strings.Contains(why, "CREATE ROLE") { // 0003_roles says itself what is missing
			why += "; grant the role CREATE on the database, or let an administrator run: " +
				"CREATE SCHEMA commitcast AUTHORIZATION <role>"
		}
	case "55P03": // lock_not_available
		why += fmt.Sprintf("; another session held a lock for longer than %s: end it, or try again", lockTimeout)
	}
	if pg.Where != "" && pg.Code != "42501" && pg.Code != "55P03" {
		why += " (" + strings.Join(strings.Fields(pg.Where), " ") + ")"
	}
	return &lineError{fmt.Sprintf("%s: %s (SQLSTATE %s)", doing, why, pg.Code), err}
}
