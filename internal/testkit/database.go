package testkit

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/internal/services"
	"github.com/commitcast/commitcast/migrations"
)

const (
	// databaseTimeout bounds each work on a database: the machine may be busy with the tests of other packages.
	databaseTimeout = time.Minute

	testPrefix     = "commitcast_test_"
	templatePrefix = "commitcast_template_"
	// templateLock excludes two test binaries that make the template at once: "template" in ASCII.
	templateLock = 0x74656d706c617465
)

// Database returns the URL of a fresh database with Commitcast's and River's schema, and an epoch of its own. It is
// dropped after the test, whoever is still connected.
func Database(t testing.TB) string {
	t.Helper()
	server := sharedPostgres.get(t).DatabaseURL
	template, err := template(server)
	if err != nil {
		t.Fatalf("making the template database: %v", err)
	}
	database := create(t, server, template)
	// A clone has the template's epoch. Two databases must not: their events would meet on one Redis.
	err = withConn(database, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `DELETE FROM commitcast.epoch; SELECT commitcast.check_epoch()`)
		return err
	})
	if err != nil {
		t.Fatalf("beginning the epoch of a test database: %v", err)
	}
	return database
}

// EmptyDatabase returns the URL of a fresh database without any schema, dropped after the test.
func EmptyDatabase(t testing.TB) string {
	t.Helper()
	return create(t, sharedPostgres.get(t).DatabaseURL, "template0")
}

// Postgres returns a private server for a test that stops it, kills it or sends it back in time. It has only the
// empty database postgres; Migrate gives it the schema.
func Postgres(t testing.TB) *services.Postgres {
	t.Helper()
	if err := services.EnsurePostgres(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	pg, err := services.StartPostgres(t.Context(), services.PostgresConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pg.Close)
	return pg
}

// Migrate makes Commitcast's and River's schema in a database.
func Migrate(t testing.TB, databaseURL string) {
	t.Helper()
	if err := migrations.Up(t.Context(), databaseURL, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
}

// create makes a database of a template and has it dropped after the test.
func create(t testing.TB, server, template string) string {
	t.Helper()
	name := testPrefix + strings.ToLower(rand.Text()[:16])
	database, err := withDatabase(server, name)
	if err != nil {
		t.Fatal(err)
	}
	err = withConn(server, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, fmt.Sprintf("CREATE DATABASE %s TEMPLATE %s", name, template))
		return err
	})
	if err != nil {
		t.Fatalf("creating a test database: %v", err)
	}
	t.Cleanup(func() {
		err := withConn(server, func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, fmt.Sprintf("DROP DATABASE IF EXISTS %s WITH (FORCE)", name))
			return err
		})
		if err != nil {
			t.Errorf("dropping a test database: %v", err)
		}
	})
	return database
}

// made holds the template's name once this binary has made it or seen it.
var made struct {
	sync.Mutex
	name string
}

// template returns the name of a migrated database on the server, made once for all test binaries that agree on the
// migrations.
func template(server string) (string, error) {
	made.Lock()
	defer made.Unlock()
	if made.name != "" {
		return made.name, nil
	}
	name, err := ensureTemplate(server)
	if err == nil {
		made.name = name
	}
	return name, err
}

func ensureTemplate(server string) (string, error) {
	fingerprint, err := migrations.Fingerprint()
	if err != nil {
		return "", err
	}
	// With the day: the journal's leaves are made for the days after a migration, and a given server may be old.
	prefix := templatePrefix + time.Now().UTC().Format("20060102") + "_"
	name := prefix + fingerprint
	err = withConn(server, func(ctx context.Context, conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock($1)", int64(templateLock)); err != nil {
			return err
		}
		defer conn.Exec(context.WithoutCancel(ctx), "SELECT pg_advisory_unlock($1)", int64(templateLock))
		var there bool
		err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name).Scan(&there)
		if err != nil || there {
			return err
		}
		if err := dropTemplates(ctx, conn, templatePrefix+time.Now().UTC().AddDate(0, 0, -1).Format("20060102")); err != nil {
			return err
		}
		return makeTemplate(ctx, conn, server, name)
	})
	return name, err
}

// makeTemplate makes it under another name, so that whatever has the name is whole.
func makeTemplate(ctx context.Context, conn *pgx.Conn, server, name string) error {
	const draft = templatePrefix + "draft"
	if _, err := conn.Exec(ctx, "DROP DATABASE IF EXISTS "+draft+" WITH (FORCE)"); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+draft+" TEMPLATE template0"); err != nil {
		return err
	}
	url, err := withDatabase(server, draft)
	if err != nil {
		return err
	}
	if err := migrations.Up(ctx, url, slog.New(slog.DiscardHandler)); err != nil {
		return err
	}
	// Nobody connects to it by mistake: a template in use cannot be copied.
	if _, err := conn.Exec(ctx, "ALTER DATABASE "+draft+" WITH ALLOW_CONNECTIONS false"); err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "ALTER DATABASE "+draft+" RENAME TO "+name)
	return err
}

// dropTemplates drops the templates whose names come before a name: those of earlier days.
func dropTemplates(ctx context.Context, conn *pgx.Conn, before string) error {
	rows, err := conn.Query(ctx, `SELECT datname FROM pg_database WHERE datname ~ ('^' || $1 || '\d{8}_') AND datname COLLATE "C" < $2`,
		templatePrefix, before)
	if err != nil {
		return err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, err := conn.Exec(ctx, "DROP DATABASE IF EXISTS "+pgx.Identifier{name}.Sanitize()); err != nil {
			return err
		}
	}
	return nil
}

// withConn calls fn with a connection of its own. Not the test's context: that has ended when its cleanups run.
func withConn(databaseURL string, fn func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), databaseTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return fn(ctx, conn)
}

// withDatabase is the URL of another database of the same server.
func withDatabase(server, name string) (string, error) {
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return "", fmt.Errorf("DATABASE_URL must be a URL, postgres://…, for tests: they make databases beside it")
	}
	u.Path = "/" + name
	q := u.Query()
	q.Del("dbname")
	q.Del("database")
	u.RawQuery = q.Encode()
	return u.String(), nil
}
