package testkit

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// As is a database's URL for somebody who logs in with nothing but some of Commitcast's roles: writer, worker, reader,
// operator. What the product does, it does as one of them, so that a right that was not granted is missed by its own test.
func As(t testing.TB, databaseURL string, roles ...string) string {
	t.Helper()
	login, err := LogInAs(databaseURL, roles...)
	if err != nil {
		t.Fatal(err)
	}
	return login
}

// LogInAs is [As] outside of a test. The database is migrated. The role that logs in stays with the cluster, for others.
func LogInAs(databaseURL string, roles ...string) (string, error) {
	u, err := url.Parse(databaseURL)
	if err != nil {
		return "", errors.New("not the URL of a database")
	}
	// The password of who asks; and so a name that says which, on a server that is used for longer than its password.
	password, _ := u.User.Password()
	digest := sha256.Sum256([]byte(password))
	name := fmt.Sprintf("commitcast_test_%s_%x", strings.Join(roles, "_"), digest[:4])
	err = withConn(databaseURL, func(ctx context.Context, conn *pgx.Conn) error {
		var there bool
		if err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)`, name).Scan(&there); err != nil || there {
			return err
		}
		create := "CREATE ROLE " + name + " LOGIN IN ROLE commitcast_" + strings.Join(roles, ", commitcast_")
		if password != "" {
			create += " PASSWORD '" + strings.ReplaceAll(password, "'", "''") + "'"
		}
		_, err := conn.Exec(ctx, create)
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok && (pg.Code == "42710" || pg.Code == "23505") {
			return nil // another test was faster
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("making the role %s: %w", name, err)
	}
	u.User = url.UserPassword(name, password)
	return u.String(), nil
}
