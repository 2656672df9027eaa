package testkit

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
)

func value[T any](t *testing.T, database, sql string, args ...any) (v T) {
	t.Helper()
	err := withConn(database, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, sql, args...).Scan(&v)
	})
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func TestDatabasesAreMigratedAndApart(t *testing.T) {
	a, b := Database(t), Database(t)
	const add = `SELECT commitcast.append(topic => 'x', type => 'y', data => '1')`
	value[int64](t, a, add)
	const count = `SELECT count(*) FROM commitcast.outbox`
	if n := value[int](t, a, count); n != 1 {
		t.Errorf("%d events after one was appended", n)
	}
	if n := value[int](t, b, count); n != 0 {
		t.Errorf("%d events in the other database", n)
	}
	const epoch = `SELECT name FROM commitcast.epoch`
	if ea, eb := value[string](t, a, epoch), value[string](t, b, epoch); ea == eb {
		t.Errorf("both have epoch %s: their events would meet on one Redis", ea)
	}
	if n := value[int](t, a, `SELECT count(*) FROM commitcast.river_job`); n != 0 {
		t.Errorf("%d jobs", n)
	}
}

func TestDatabaseIsDroppedAfterTheTestThoughSomebodyIsConnected(t *testing.T) {
	var database string
	var conn *pgx.Conn
	t.Run("user", func(t *testing.T) {
		database = EmptyDatabase(t)
		var err error
		if conn, err = pgx.Connect(context.Background(), database); err != nil {
			t.Fatal(err)
		}
		if n := value[int](t, database, `SELECT count(*) FROM pg_namespace WHERE nspname = 'commitcast'`); n != 0 {
			t.Error("an empty database has the schema")
		}
	})
	defer conn.Close(context.Background())
	name := database[strings.Index(database, testPrefix):]
	name, _, _ = strings.Cut(name, "?")
	server := sharedPostgres.get(t).DatabaseURL
	if n := value[int](t, server, `SELECT count(*) FROM pg_database WHERE datname = $1`, name); n != 0 {
		t.Errorf("%s is still there", name)
	}
}

func TestTemplateIsMadeOnceByAllWhoNeedItAtOnce(t *testing.T) {
	server := Postgres(t).URL("postgres")
	const old = templatePrefix + "20200101_0123456789abcdef"
	err := withConn(server, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "CREATE DATABASE "+old)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	names := make([]string, 4)
	for i := range names {
		all.Go(func() {
			name, err := ensureTemplate(server)
			if err != nil {
				t.Error(err)
			}
			names[i] = name
			create(t, server, name)
		})
	}
	all.Wait()
	for _, name := range names {
		if name != names[0] {
			t.Errorf("templates %q", names)
		}
	}
	const templates = `SELECT coalesce(string_agg(datname, ' '), '') FROM pg_database WHERE starts_with(datname, $1)`
	if got := value[string](t, server, templates, templatePrefix); got != names[0] {
		t.Errorf("the server has templates %q, want %s alone", got, names[0])
	}
}

func TestDatabaseNameIsReplacedInTheURL(t *testing.T) {
	for _, c := range []struct{ server, want string }{
		{"postgres://u:p@h:1/db?sslmode=disable", "postgres://u:p@h:1/x?sslmode=disable"},
		{"postgresql://h", "postgresql://h/x"},
		{"postgres:///db?host=/run&dbname=y", "postgres:///x?host=%2Frun"},
	} {
		if got, err := withDatabase(c.server, "x"); err != nil || got != c.want {
			t.Errorf("%s: %s, %v, want %s", c.server, got, err, c.want)
		}
	}
	if _, err := withDatabase("host=h dbname=db", "x"); err == nil {
		t.Error("took what is no URL")
	}
}

func TestRedisServersAreApart(t *testing.T) {
	a, b := Redis(t), Redis(t, "maxmemory 10mb")
	if a.Addr() == b.Addr() {
		t.Errorf("both are %s", a.Addr())
	}
	if u := RedisURL(t); u == "" || u != RedisURL(t) || strings.Contains(u, a.Addr()) {
		t.Errorf("the shared Redis is %s", u)
	}
}
