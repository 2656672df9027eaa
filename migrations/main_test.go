package migrations_test

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/commitcast/commitcast/internal/services"
	"github.com/commitcast/commitcast/migrations"
)

// postgres is a server of this package's own: its tests restart, crash and rewind it.
var postgres *services.Postgres

func TestMain(m *testing.M) {
	var err error
	if postgres, err = services.StartPostgres(context.Background(), services.PostgresConfig{}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	postgres.Close()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

var databases atomic.Int64

// empty creates a database and returns its name.
func empty(t *testing.T, options string) string {
	t.Helper()
	name := fmt.Sprintf("test_%d", databases.Add(1))
	exec(t, "postgres", "CREATE DATABASE "+name+" "+options)
	t.Cleanup(func() {
		conn, err := pgx.Connect(context.Background(), postgres.URL("postgres"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		if _, err := conn.Exec(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Error(err)
		}
	})
	return name
}

// migrated creates a database with the schema.
func migrated(t *testing.T) string {
	t.Helper()
	db := empty(t, "")
	up(t, db)
	return db
}

func up(t *testing.T, db string) {
	t.Helper()
	if err := migrations.Up(t.Context(), postgres.URL(db), nil); err != nil {
		t.Fatal(err)
	}
}

func connect(t *testing.T, db string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), postgres.URL(db))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// exec runs SQL as superuser on a connection of its own.
func exec(t *testing.T, db, sql string, args ...any) {
	t.Helper()
	conn := connect(t, db)
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// value runs a query for one value, as superuser.
func value[T any](t *testing.T, db, sql string, args ...any) T {
	t.Helper()
	conn := connect(t, db)
	defer conn.Close(context.Background())
	return one[T](t, conn, sql, args...)
}

// one runs a query for one value.
func one[T any](t *testing.T, conn migrations.Querier, sql string, args ...any) (v T) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// urlOf returns the URL of a database with other credentials or another host.
func urlOf(t *testing.T, db string, change func(*url.URL)) string {
	t.Helper()
	u, err := url.Parse(postgres.URL(db))
	if err != nil {
		t.Fatal(err)
	}
	change(u)
	return u.String()
}
