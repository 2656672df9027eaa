package migrations

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

const (
	// Schema holds everything of Commitcast's.
	Schema = "commitcast"
	// RiverSchema is where River's tables are: for river.Config.Schema.
	RiverSchema = Schema
	// MinServerVersion is the oldest Postgres supported, as in server_version_num: DETACH PARTITION CONCURRENTLY
	// came with 14.
	MinServerVersion = 140000

	// leavesAhead is how many days of journal leaves Up makes ahead of today. The worker makes them from then on.
	leavesAhead = 3
	// lockTimeout bounds the wait for any one table lock. A migration that waits for a lock makes every writer of
	// that table queue up behind it.
	lockTimeout = 10 * time.Second
	// lockPoll is how often the advisory lock of another migration is tried. Waiting inside one statement would
	// hold a snapshot, for which a CREATE INDEX CONCURRENTLY of the other migration would wait in turn: a deadlock.
	lockPoll = 50 * time.Millisecond
	// advisoryLock is the key that excludes two migrations at once: "commitca" in ASCII.
	advisoryLock = 0x636f6d6d69746361
)

// Up brings the database to [Latest]: missing migrations, River's tables, journal leaves, and an epoch. Running it
// again changes nothing. A nil log means slog.Default.
//
// Errors: [ErrNewerSchema], [ErrUnsupported], or one line that says what failed. Migrations that were done before
// the failure stay done; each is whole.
func Up(ctx context.Context, databaseURL string, log *slog.Logger) error {
	return withLock(ctx, databaseURL, log, func(s *session) error {
		at, err := readVersions(ctx, s.conn)
		if err != nil {
			return stepError("reading the schema's version", err)
		}
		if err := at.refuseNewer(); err != nil {
			return err
		}
		for _, m := range bundled[at.schema:] {
			start := time.Now()
			if err := s.apply(ctx, m.up, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, recordSQL, m.version, m.name)
				return err
			}); err != nil {
				return stepError(fmt.Sprintf("migration %04d_%s", m.version, m.name), err)
			}
			s.log.InfoContext(ctx, "migrated", "version", m.version, "name", m.name, "took", time.Since(start).Round(time.Millisecond))
		}
		// River would log a line for each of its steps, and one if there is none.
		river, err := riverMigrator(s.pool, slog.New(slog.DiscardHandler))
		if err != nil {
			return fmt.Errorf("preparing River's migrations: %w", err)
		}
		start := time.Now()
		done, err := river.Migrate(ctx, rivermigrate.DirectionUp, nil)
		if err != nil {
			return stepError("migrating River's tables", err)
		}
		if n := len(done.Versions); n > 0 {
			s.log.InfoContext(ctx, "migrated River's tables", "version", done.Versions[n-1].Version, "took", time.Since(start).Round(time.Millisecond))
		}
		if _, err := s.conn.Exec(ctx, `SELECT commitcast.settle_grants()`); err != nil {
			return stepError("granting to roles", err)
		}
		if _, err := s.conn.Exec(ctx, `SELECT commitcast.ensure_leaves($1)`, leavesAhead); err != nil {
			return stepError("making journal leaves", err)
		}
		if _, err := s.conn.Exec(ctx, `SELECT commitcast.check_epoch()`); err != nil {
			return stepError("checking the epoch", err)
		}
		return nil
	})
}

// Down goes back to a version, newest migration first. Version 0 removes the schema with every event in it, and
// River's tables with every job; the caller must have asked first. Going down from where the database already is, or
// below, changes nothing. A nil log means slog.Default.
func Down(ctx context.Context, databaseURL string, version int, log *slog.Logger) error {
	if version < 0 || version > Latest() {
		return fmt.Errorf("version %d does not exist: this binary knows 0 to %d", version, Latest())
	}
	return withLock(ctx, databaseURL, log, func(s *session) error {
		at, err := readVersions(ctx, s.conn)
		if err != nil {
			return stepError("reading the schema's version", err)
		}
		if err := at.refuseNewer(); err != nil {
			return err
		}
		for v := at.schema; v > version; v-- {
			m := bundled[v-1]
			if err := s.apply(ctx, m.down, func(tx pgx.Tx) error {
				if m.version == 1 {
					return nil // the record went with the schema
				}
				_, err := tx.Exec(ctx, `DELETE FROM commitcast.migration WHERE version = $1`, m.version)
				return err
			}); err != nil {
				return stepError(fmt.Sprintf("undoing migration %04d_%s", m.version, m.name), err)
			}
			s.log.InfoContext(ctx, "migration undone", "version", m.version, "name", m.name)
		}
		return nil
	})
}

// recordSQL notes a migration. The table is made here and not by the first migration, so that every migration has the
// same frame.
const recordSQL = `INSERT INTO commitcast.migration (version, name) VALUES ($1, $2)`

const recordTableSQL = `
CREATE TABLE IF NOT EXISTS commitcast.migration (
    version    integer PRIMARY KEY CHECK (version > 0),
    name       text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
)`

// session is a connection that holds the advisory lock, and a pool for River, which wants one.
type session struct {
	conn *pgx.Conn
	pool *pgxpool.Pool
	log  *slog.Logger
}

// apply runs one migration's SQL and then record, in one transaction.
func (s *session) apply(ctx context.Context, sql string, record func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, s.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return err
		}
		var exists bool
		if err := tx.QueryRow(ctx, `SELECT to_regnamespace('commitcast') IS NOT NULL`).Scan(&exists); err != nil {
			return err
		}
		if exists {
			if _, err := tx.Exec(ctx, recordTableSQL); err != nil {
				return err
			}
		}
		return record(tx)
	})
}

// withLock connects, checks that the server will do, takes the advisory lock and calls fn. The lock ends with its
// connection.
func withLock(ctx context.Context, databaseURL string, log *slog.Logger, fn func(*session) error) error {
	if log == nil {
		log = slog.Default()
	}
	cfg, err := parse(databaseURL)
	if err != nil {
		return err
	}
	cfg.MaxConns = 2 // one holds the lock, one serves River
	Mark(&cfg.ConnConfig.Config)
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, sessionSQL)
		return err
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return connectError(&cfg.ConnConfig.Config, err)
	}
	defer pool.Close()
	c, err := pool.Acquire(ctx)
	if err != nil {
		return connectError(&cfg.ConnConfig.Config, err)
	}
	defer c.Release()
	conn := c.Conn()
	if err := CheckDirect(ctx, conn); err != nil {
		return err
	}
	if err := checkServer(ctx, conn); err != nil {
		return err
	}
	if err := lock(ctx, conn, log); err != nil {
		return err
	}
	return fn(&session{conn: conn, pool: pool, log: log})
}

// sessionSQL makes a session independent of what the database, the role or the URL set as defaults.
var sessionSQL = fmt.Sprintf(`
SET default_transaction_isolation = 'read committed';
SET default_transaction_read_only = off;
SET default_transaction_deferrable = off;
SET synchronous_commit = on;
SET statement_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET lock_timeout = %d`, lockTimeout.Milliseconds())

func lock(ctx context.Context, conn *pgx.Conn, log *slog.Logger) error {
	for waited := false; ; waited = true {
		var got bool
		if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, int64(advisoryLock)).Scan(&got); err != nil {
			return stepError("taking the migration lock", err)
		}
		if got {
			return nil
		}
		if !waited {
			log.InfoContext(ctx, "waiting for another migration of this database")
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for another migration of this database: %w", ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}

// checkServer refuses servers and databases that Commitcast cannot work with.
func checkServer(ctx context.Context, conn *pgx.Conn) error {
	var version int
	var name, encoding string
	var replica bool
	err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, current_setting('server_version'),
		current_setting('server_encoding'), pg_is_in_recovery()`).Scan(&version, &name, &encoding, &replica)
	if err != nil {
		return stepError("asking the server for its version", err)
	}
	return serverProblem(version, name, encoding, replica)
}

func serverProblem(version int, name, encoding string, replica bool) error {
	switch {
	case version < MinServerVersion:
		return fmt.Errorf("%w: the server is PostgreSQL %s, but Commitcast needs %d or later", ErrUnsupported, name, MinServerVersion/10000)
	case encoding != "UTF8":
		return fmt.Errorf("%w: the database's encoding is %s, but Commitcast needs UTF8, in which JSON is exchanged", ErrUnsupported, encoding)
	case replica:
		return fmt.Errorf("%w: the server is a replica; migrate the primary", ErrUnsupported)
	}
	return nil
}

// parse reads a database URL for this package's use.
func parse(databaseURL string) (*pgxpool.Config, error) {
	if databaseURL == "" {
		return nil, errors.New("no database URL: set --database-url or DATABASE_URL")
	}
	cfg, err := pgxpool.ParseConfig(databaseURL)
	if err != nil {
		return nil, parseError()
	}
	if cfg.ConnConfig.ConnectTimeout == 0 {
		cfg.ConnConfig.ConnectTimeout = 10 * time.Second // a black hole must not hang a deployment
	}
	return cfg, nil
}

func riverMigrator(pool *pgxpool.Pool, log *slog.Logger) (*rivermigrate.Migrator[pgx.Tx], error) {
	return rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{Schema: RiverSchema, Logger: log})
}

// riverLatest is the newest of River's migrations that this binary holds.
func riverLatest() (int, error) {
	m, err := riverMigrator(nil, slog.New(slog.DiscardHandler))
	if err != nil {
		return 0, fmt.Errorf("preparing River's migrations: %w", err)
	}
	all := m.AllVersions()
	return all[len(all)-1].Version, nil
}
