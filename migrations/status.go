package migrations

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// State says where a database stands.
type State struct {
	Version      int      // of the schema; 0: there is none
	Latest       int      // what this binary works with
	Pending      []string // migrations still to be done, as in "0001_init"
	RiverVersion int      // of River's tables; 0: there are none
	RiverLatest  int      // what this binary works with
}

// String is what "commitcast migrate status" prints: columns separated by tabs.
func (s State) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\tdatabase\tthis binary\n")
	fmt.Fprintf(&b, "schema\t%d\t%d\n", s.Version, s.Latest)
	fmt.Fprintf(&b, "River\t%d\t%d\n", s.RiverVersion, s.RiverLatest)
	if len(s.Pending) > 0 {
		fmt.Fprintf(&b, "pending\t%s\n", strings.Join(s.Pending, ", "))
	}
	if err := s.Err(); err != nil {
		b.WriteString(err.Error())
	} else {
		b.WriteString("up to date")
	}
	return b.String()
}

// Err is nil if the state fits this binary, or what [Check] returns for it.
func (s State) Err() error { return versions{s.Version, s.RiverVersion}.problem(s.RiverLatest) }

// Status reads where a database stands. It changes nothing and may be asked of a replica.
func Status(ctx context.Context, databaseURL string) (State, error) {
	cfg, err := parse(databaseURL)
	if err != nil {
		return State{}, err
	}
	conn, err := pgx.ConnectConfig(ctx, cfg.ConnConfig)
	if err != nil {
		return State{}, connectError(&cfg.ConnConfig.Config, err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	at, err := readVersions(ctx, conn)
	if err != nil {
		return State{}, stepError("reading the schema's version", err)
	}
	river, err := riverLatest()
	if err != nil {
		return State{}, err
	}
	s := State{Version: at.schema, Latest: Latest(), RiverVersion: at.river, RiverLatest: river}
	for _, m := range bundled[min(at.schema, len(bundled)):] {
		s.Pending = append(s.Pending, fmt.Sprintf("%04d_%s", m.version, m.name))
	}
	return s, nil
}

// Querier is a *pgxpool.Pool, a *pgx.Conn, or anything else that can ask for one row.
type Querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Check tells a process that is about to start whether the schema fits its binary: nil, or [ErrNotMigrated],
// [ErrOutdated] or [ErrNewerSchema] with what to do, or why the schema could not be read. It may be asked of a replica.
func Check(ctx context.Context, db Querier) error {
	at, err := readVersions(ctx, db)
	if err != nil {
		return stepError("reading the schema's version", err)
	}
	river, err := riverLatest()
	if err != nil {
		return err
	}
	return at.problem(river)
}

// versions is what a database has; 0 where it has nothing.
type versions struct{ schema, river int }

// readVersions asks for tables before it reads them, so that it can run inside a transaction.
func readVersions(ctx context.Context, db Querier) (v versions, err error) {
	var ours, river bool
	err = db.QueryRow(ctx, `SELECT to_regclass('commitcast.migration') IS NOT NULL, to_regclass('commitcast.river_migration') IS NOT NULL`).
		Scan(&ours, &river)
	if err != nil {
		return v, err
	}
	if ours {
		if err := db.QueryRow(ctx, `SELECT coalesce(max(version), 0) FROM commitcast.migration`).Scan(&v.schema); err != nil {
			return v, err
		}
	}
	if river {
		// River's first migrations had no column line; this binary never leaves a database there.
		err = db.QueryRow(ctx, `SELECT coalesce(max(version), 0)::int FROM commitcast.river_migration`).Scan(&v.river)
	}
	return v, err
}

// refuseNewer refuses to touch what a newer binary has made.
func (v versions) refuseNewer() error {
	river, err := riverLatest()
	if err != nil {
		return err
	}
	if err := v.problem(river); v.newer(river) {
		return err
	}
	return nil
}

func (v versions) newer(riverLatest int) bool { return v.schema > Latest() || v.river > riverLatest }

func (v versions) problem(riverLatest int) error {
	switch {
	case v.schema > Latest():
		return fmt.Errorf("%w: the database has schema version %d and this binary knows %d: run a newer commitcast",
			ErrNewerSchema, v.schema, Latest())
	case v.river > riverLatest:
		return fmt.Errorf("%w: River's tables have version %d and this binary knows %d: run a newer commitcast",
			ErrNewerSchema, v.river, riverLatest)
	case v.schema == 0:
		return fmt.Errorf("%w: the database has no Commitcast schema: run \"commitcast migrate up\"", ErrNotMigrated)
	case v.schema < Latest():
		return fmt.Errorf("%w: the database has schema version %d and this binary needs %d: run \"commitcast migrate up\"",
			ErrOutdated, v.schema, Latest())
	case v.river < riverLatest:
		return fmt.Errorf("%w: River's tables have version %d and this binary needs %d: run \"commitcast migrate up\"",
			ErrOutdated, v.river, riverLatest)
	}
	return nil
}
