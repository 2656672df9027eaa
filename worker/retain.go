package worker

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

//go:embed leaves.sql
var leavesSQL string

const (
	// retention is how long the journal is kept: a client that was away over a week reads its snapshot again anyway.
	retention = 7 * 24 * time.Hour
	// retentionLeast is the least: a leaf is a day.
	retentionLeast = 24 * time.Hour
	// retentionBytes is how large the journal may grow on the disk that the application's own tables are on.
	retentionBytes = 64 << 30
	// leafKept is how many days, with today, keep their leaves in any case: sequencing may still write there.
	leafKept = 2
	// retainLock is the advisory lock of whoever drops leaves: class "CC" in ASCII times 2^16 plus 0xff, see lockClass.
	retainLock = lockClass + 0xff
	// leafLockTimeout is how long a leaf is waited for, behind whom others might queue. Behind a reader that stays
	// longer, the next upkeep tries again.
	leafLockTimeout = 100 * time.Millisecond
)

// leaf is a day of the journal.
type leaf struct {
	name     string
	day      time.Time
	attached bool
	pending  bool // detaching was interrupted, or waits for a reader
	doomed   bool // marked by doom_leaf
	bytes    int64
}

// past chooses the leaves that retention lets go, oldest first, from all leaves in order.
func past(leaves []leaf, now time.Time, age time.Duration, bytes int64) []leaf {
	today := now.UTC().Truncate(24 * time.Hour)
	var total int64
	for _, l := range leaves {
		if l.attached && !l.doomed {
			total += l.bytes
		}
	}
	var chosen []leaf
	for _, l := range leaves {
		old := age > 0 && !l.day.Add(24*time.Hour).After(now.Add(-age))
		large := bytes > 0 && total > bytes
		if !l.attached || l.doomed {
			continue
		}
		if !old && !large || l.day.After(today.AddDate(0, 0, -leafKept)) {
			break
		}
		chosen = append(chosen, l)
		total -= l.bytes
	}
	return chosen
}

// retain drops the journal's leaves that are past retention. Each step is durable and is taken up where it was left:
// mark, detach, drop. Nobody waits for it longer than leafLockTimeout, and what somebody reads stays. It is safe to run
// twice at once: the second does nothing.
func (w *Worker) retain(ctx context.Context) error {
	conn, err := w.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("retention: %w", err)
	}
	defer conn.Release()
	var ours bool
	if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, int64(retainLock)).Scan(&ours); err != nil || !ours {
		return err
	}
	defer func() {
		ectx, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectTimeout)
		defer cancel()
		if _, err := conn.Exec(ectx, `SELECT pg_advisory_unlock_all(); RESET lock_timeout`); err != nil {
			_ = conn.Conn().Close(ectx) // the lock must not stay with the pool
		}
	}()
	if _, err := conn.Exec(ctx, `SET lock_timeout = `+millis(leafLockTimeout)); err != nil {
		return fmt.Errorf("retention: %w", err)
	}
	leaves, err := readLeaves(ctx, conn.Conn())
	if err != nil {
		return err
	}
	for _, l := range past(leaves, time.Now(), w.cfg.Retention, w.cfg.RetentionBytes) {
		var doomed bool
		if err := conn.QueryRow(ctx, `SELECT commitcast.doom_leaf($1::text::regclass)`, "commitcast."+l.name).Scan(&doomed); err != nil {
			return leafError(l, "marking", err)
		}
		if !doomed {
			w.log.WarnContext(ctx, "a leaf of the journal is past retention and holds unpublished events; it stays", "leaf", l.name)
			break
		}
	}
	if leaves, err = readLeaves(ctx, conn.Conn()); err != nil {
		return err
	}
	// An interrupted one first: Postgres detaches one at a time.
	for _, pending := range []bool{true, false} {
		for _, l := range leaves {
			if l.doomed && l.pending == pending {
				if err := w.drop(ctx, conn.Conn(), l); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// drop detaches and drops a leaf that is marked.
func (w *Worker) drop(ctx context.Context, conn *pgx.Conn, l leaf) error {
	table := pgx.Identifier{"commitcast", l.name}.Sanitize()
	how := "CONCURRENTLY"
	if l.pending {
		how = "FINALIZE"
	}
	if l.attached {
		if _, err := conn.Exec(ctx, `ALTER TABLE commitcast.journal DETACH PARTITION `+table+` `+how); err != nil {
			return leafError(l, "detaching", err)
		}
	}
	// Nothing can be added to it any more. A clock that went back by days may have added something before.
	var published bool
	if err := conn.QueryRow(ctx, `SELECT commitcast.leaf_is_published($1::text::regclass)`, "commitcast."+l.name).Scan(&published); err != nil {
		return leafError(l, "looking through", err)
	}
	if !published {
		w.log.ErrorContext(ctx, "a detached leaf of the journal holds unpublished events; it is not dropped, attach it again", "leaf", l.name)
		return nil
	}
	if _, err := conn.Exec(ctx, `DROP TABLE `+table); err != nil {
		return leafError(l, "dropping", err)
	}
	w.log.InfoContext(ctx, "dropped a leaf of the journal that is past retention", "leaf", l.name, "bytes", l.bytes)
	return nil
}

// errLeafBusy: somebody reads the leaf; the next upkeep tries again.
var errLeafBusy = errors.New("a leaf of the journal is being read")

func leafError(l leaf, doing string, err error) error {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == "55P03" {
		return fmt.Errorf("%s %s: %w", doing, l.name, errLeafBusy)
	}
	return fmt.Errorf("%s %s: %w", doing, l.name, err)
}

func readLeaves(ctx context.Context, conn *pgx.Conn) ([]leaf, error) {
	rows, err := conn.Query(ctx, leavesSQL)
	if err != nil {
		return nil, fmt.Errorf("listing the journal's leaves: %w", err)
	}
	leaves, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l leaf, err error) {
		if err = row.Scan(&l.name, &l.attached, &l.pending, &l.doomed, &l.bytes); err == nil {
			l.day, err = time.Parse("journal_20060102", l.name)
		}
		return l, err
	})
	if err != nil {
		return nil, fmt.Errorf("listing the journal's leaves: %w", err)
	}
	return leaves, nil
}
