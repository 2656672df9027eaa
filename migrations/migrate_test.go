package migrations_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/migrations"
)

// schemaSQL describes every table, column, index, constraint and function of the schema in one text.
const schemaSQL = `
SELECT string_agg(line, E'\n' ORDER BY line) FROM (
    SELECT format('%s.%s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod)) AS line
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE c.relnamespace = 'commitcast'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL SELECT conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'commitcast'::regnamespace
    UNION ALL SELECT p.oid::regprocedure || md5(p.prosrc) FROM pg_proc p WHERE pronamespace = 'commitcast'::regnamespace
) x`

func TestUpTwiceDownAndUpAgain(t *testing.T) {
	ctx, db := t.Context(), empty(t, "")
	conn := connect(t, db)

	if err := migrations.Check(ctx, conn); !errors.Is(err, migrations.ErrNotMigrated) || !strings.Contains(err.Error(), "commitcast migrate up") {
		t.Fatalf("Check of an empty database: %v", err)
	}
	if err := migrations.Down(ctx, postgres.URL(db), 0, nil); err != nil {
		t.Fatalf("Down of an empty database: %v", err)
	}
	up(t, db)
	first := one[string](t, conn, schemaSQL)
	epoch := one[string](t, conn, `SELECT commitcast.check_epoch()`)
	exec(t, db, `SELECT commitcast.append('a', 'b', '1')`)
	up(t, db)
	if again := one[string](t, conn, schemaSQL); again != first {
		t.Errorf("running Up again changed the schema:\n%s\n---\n%s", first, again)
	}
	if again := one[string](t, conn, `SELECT commitcast.check_epoch()`); again != epoch {
		t.Errorf("running Up again changed the epoch: %s, then %s", epoch, again)
	}
	if n := one[int](t, conn, `SELECT count(*) FROM commitcast.outbox`); n != 1 {
		t.Errorf("running Up again lost events: %d left", n)
	}
	if err := migrations.Check(ctx, conn); err != nil {
		t.Errorf("Check after Up: %v", err)
	}
	s, err := migrations.Status(ctx, postgres.URL(db))
	if err != nil || s.Err() != nil || s.Version != migrations.Latest() || len(s.Pending) != 0 || s.RiverVersion != s.RiverLatest || s.RiverLatest == 0 {
		t.Errorf("Status after Up: %+v, %v", s, err)
	}

	if text := s.String(); !strings.HasSuffix(text, "up to date") {
		t.Errorf("Status after Up prints %q", text)
	}

	if err := migrations.Down(ctx, postgres.URL(db), 0, nil); err != nil {
		t.Fatal(err)
	}
	if one[bool](t, conn, `SELECT to_regnamespace('commitcast') IS NOT NULL`) {
		t.Error("Down left the schema")
	}
	s, err = migrations.Status(ctx, postgres.URL(db))
	if err != nil || !errors.Is(s.Err(), migrations.ErrNotMigrated) || s.Version != 0 || len(s.Pending) != migrations.Latest() {
		t.Errorf("Status after Down: %+v, %v", s, err)
	}
	if text := s.String(); !strings.Contains(text, "0001_init") || !strings.Contains(text, "migrate up") {
		t.Errorf("Status after Down prints %q", text)
	}
	up(t, db)
	if again := one[string](t, conn, schemaSQL); again != first {
		t.Errorf("Up after Down made another schema:\n%s\n---\n%s", first, again)
	}
}

func TestUpFromManyAtOnce(t *testing.T) {
	db := empty(t, "")
	var wg sync.WaitGroup
	errs := make([]error, 6)
	for i := range errs {
		wg.Go(func() { errs[i] = migrations.Up(t.Context(), postgres.URL(db), nil) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if n := value[int](t, db, `SELECT count(*) FROM commitcast.epoch`); n != 1 {
		t.Errorf("%d epochs, want 1", n)
	}
	if err := migrations.Check(t.Context(), connect(t, db)); err != nil {
		t.Error(err)
	}
}

// A migration waits for another one's lock, and stops waiting when its context ends.
func TestUpWaitsForTheLock(t *testing.T) {
	db := empty(t, "")
	holder := connect(t, db)
	if !one[bool](t, holder, `SELECT pg_try_advisory_lock(x'636f6d6d69746361'::bigint)`) {
		t.Fatal("lock not free")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := migrations.Up(ctx, postgres.URL(db), nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Up under a held lock: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- migrations.Up(t.Context(), postgres.URL(db), nil) }() // ends before the test does
	holder.Close(t.Context())
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	for name, change := range map[string]string{
		"ours":    `INSERT INTO commitcast.migration (version, name) VALUES (999, 'future')`,
		"River's": `INSERT INTO commitcast.river_migration (line, version) VALUES ('main', 999)`,
	} {
		t.Run(name, func(t *testing.T) {
			db := migrated(t)
			exec(t, db, change)
			before := value[string](t, db, schemaSQL)
			status, err := migrations.Status(t.Context(), postgres.URL(db))
			if err != nil {
				t.Fatal(err)
			}
			for doing, err := range map[string]error{
				"up":     migrations.Up(t.Context(), postgres.URL(db), nil),
				"down":   migrations.Down(t.Context(), postgres.URL(db), 0, nil),
				"check":  migrations.Check(t.Context(), connect(t, db)),
				"status": status.Err(),
			} {
				if !errors.Is(err, migrations.ErrNewerSchema) || !strings.Contains(err.Error(), "999") {
					t.Errorf("%s: %v", doing, err)
				}
			}
			if after := value[string](t, db, schemaSQL); after != before {
				t.Error("a refused migration changed the schema")
			}
		})
	}
}

// What a crash between two steps leaves is reported as outdated, and completed by the next Up.
func TestInterruptedUpIsCompleted(t *testing.T) {
	db := migrated(t)
	exec(t, db, `DELETE FROM commitcast.river_migration WHERE version = (SELECT max(version) FROM commitcast.river_migration)`)
	if err := migrations.Check(t.Context(), connect(t, db)); !errors.Is(err, migrations.ErrOutdated) {
		t.Errorf("Check: %v", err)
	}
	up(t, db)
	if err := migrations.Check(t.Context(), connect(t, db)); err != nil {
		t.Errorf("Check after Up: %v", err)
	}
}

// The defaults of a database do not matter.
func TestUpUnderOddDefaults(t *testing.T) {
	db := empty(t, "")
	for _, set := range []string{
		"default_transaction_isolation = 'serializable'", "default_transaction_read_only = on", "statement_timeout = '5ms'",
		"synchronous_commit = off", "search_path = ''", "DateStyle = 'German'", "TimeZone = 'America/Sao_Paulo'",
	} {
		exec(t, "postgres", "ALTER DATABASE "+db+" SET "+set)
	}
	up(t, db)
	conn := connect(t, db)
	if _, err := conn.Exec(t.Context(), "SET statement_timeout = 0"); err != nil { // Check asks as its caller does
		t.Fatal(err)
	}
	if err := migrations.Check(t.Context(), conn); err != nil {
		t.Error(err)
	}
}

func TestErrorsAreOneClearLine(t *testing.T) {
	const secret = "hunter2/@secret"
	exec(t, "postgres", `CREATE ROLE weak LOGIN PASSWORD 'weak'`)
	t.Cleanup(func() {
		conn, _ := pgx.Connect(context.Background(), postgres.URL("postgres"))
		conn.Exec(context.Background(), `DROP ROLE weak`)
		conn.Close(context.Background())
	})
	db := empty(t, "")
	latin := empty(t, "ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
	for _, c := range []struct{ name, url, want string }{
		{"empty", "", "DATABASE_URL"},
		{"not a URL", "postgres://u:" + secret + "@h:99999999/x", "percent-encode"},
		{"not a URL either", "postgres://u:%zz" + secret + "@h/x", "percent-encode"},
		{"wrong password", urlOf(t, db, func(u *url.URL) { u.User = url.UserPassword("postgres", secret) }), `password authentication failed for user "postgres"`},
		{"no such database", postgres.URL("nowhere"), `database "nowhere" does not exist`},
		{"nobody listens", urlOf(t, db, func(u *url.URL) { u.User = url.UserPassword("postgres", secret); u.Host = "127.0.0.1:1" }), "connection refused"},
		{"no such host", urlOf(t, db, func(u *url.URL) { u.User = url.UserPassword("postgres", secret); u.Host = "nowhere.invalid:5432" }), "nowhere.invalid"},
		{"no privilege", urlOf(t, db, func(u *url.URL) { u.User = url.UserPassword("weak", "weak") }), "CREATE SCHEMA commitcast AUTHORIZATION"},
		{"encoding", postgres.URL(latin), "LATIN1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := migrations.Up(t.Context(), c.url, nil)
			if err == nil {
				t.Fatal("no error")
			}
			msg := err.Error()
			t.Log(msg)
			if !strings.Contains(msg, c.want) || strings.Contains(msg, "\n") || strings.Contains(msg, "hunter2") {
				t.Errorf("%q, want one line with %q and no password", msg, c.want)
			}
			if _, err := migrations.Status(t.Context(), c.url); err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("Status shows the password: %v", err)
			}
		})
	}
}

// A role without CREATE on the database can migrate into a schema that an administrator made for it.
func TestUpWithoutCreatePrivilege(t *testing.T) {
	migrated(t) // makes the cluster's roles
	db := empty(t, "")
	role := "owner_" + db
	exec(t, db, fmt.Sprintf(`CREATE ROLE %s LOGIN PASSWORD 'x'; CREATE SCHEMA commitcast AUTHORIZATION %s`, role, role))
	u := urlOf(t, db, func(u *url.URL) { u.User = url.UserPassword(role, "x") })
	if err := migrations.Up(t.Context(), u, nil); err != nil {
		t.Fatal(err)
	}
	// And such a role can do all that writers and workers do.
	conn, err := pgx.Connect(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	one[int64](t, conn, `SELECT commitcast.append('a', 'b', '1')`)
	p := one[int](t, conn, `SELECT commitcast.partition_of('a')`)
	if n := one[int](t, conn, `SELECT sequenced FROM commitcast.sequence($1::int::smallint, 1, 10, NULL, NULL)`, p); n != 1 {
		t.Errorf("sequenced %d", n)
	}
}

func TestReplicaIsRefused(t *testing.T) {
	db := migrated(t)
	replica, err := postgres.Replica(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer replica.Close()
	if err := migrations.Up(t.Context(), replica.URL(db), nil); !errors.Is(err, migrations.ErrUnsupported) {
		t.Errorf("Up on a replica: %v", err)
	}
	s, err := migrations.Status(t.Context(), replica.URL(db))
	if err != nil || s.Err() != nil {
		t.Errorf("Status on a replica: %+v %v", s, err)
	}
}
