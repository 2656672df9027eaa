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
	// leafLockTimeout is how long a leaf is waited for that nobody writes to any more.
	leafLockTimeout = 100 * time.Millisecond
	// detachFor is for how long, and detachEvery how often, a moment is looked for in which nobody uses the journal, to detach
	// a leaf of it. Behind a reader that stays longer, the next upkeep tries again.
	detachFor   = 2 * time.Second
	detachEvery = 3 * time.Millisecond
)

// leaf is a day of the journal.
type leaf struct {
	name     string
	day      time.Time
	attached bool
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
// mark, detach, drop. Nobody waits for it, and what somebody reads stays. Leaves are not the worker's, and so it asks functions of
// their owner. It is safe to run twice at once: the second does nothing.
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
	for _, l := range leaves {
		if l.doomed {
			if err := w.drop(ctx, conn.Conn(), l); err != nil {
				return err
			}
		}
	}
	return nil
}

// drop detaches and drops a leaf that is marked.
func (w *Worker) drop(ctx context.Context, conn *pgx.Conn, l leaf) error {
	for until := time.Now().Add(detachFor); l.attached; {
		var detached bool
		if err := conn.QueryRow(ctx, `SELECT commitcast.detach_leaf($1::text::regclass)`, "commitcast."+l.name).Scan(&detached); err != nil {
			return leafError(l, "detaching", err)
		}
		if detached {
			break
		}
		if time.Now().After(until) || !sleep(ctx, jitter(detachEvery)) {
			return fmt.Errorf("detaching %s: %w", l.name, errLeafBusy)
		}
	}
	// Nothing can be added to it any more.
	var dropped bool
	if err := conn.QueryRow(ctx, `SELECT commitcast.drop_leaf($1::text::regclass)`, "commitcast."+l.name).Scan(&dropped); err != nil {
		return leafError(l, "dropping", err)
	}
	if !dropped {
		w.log.ErrorContext(ctx, "a detached leaf of the journal holds unpublished events; it is not dropped, attach it again", "leaf", l.name)
		return nil
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
		if err = row.Scan(&l.name, &l.attached, &l.doomed, &l.bytes); err == nil {
			l.day, err = time.Parse("journal_20060102", l.name)
		}
		return l, err
	})
	if err != nil {
		return nil, fmt.Errorf("listing the journal's leaves: %w", err)
	}
	return leaves, nil
}
