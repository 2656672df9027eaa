package worker

import (
	"context"
	_ "embed"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
)

var (
	//go:embed orphans.sql
	orphansSQL string
	//go:embed pass.sql
	passSQL string
)

const (
	// republishLock is the first key of the advisory locks of topic_republish jobs; the second is the job's id. Their
	// holders are alive.
	republishLock = lockClass + 0x100
	// orphansEvery is how often a process looks for jobs whose process is gone; two looks agree before one is passed.
	orphansEvery = time.Second
	// republishSilence ends the session of a job that was stopped, or whose host is gone. Between two of its statements
	// lies at most one round trip to the stream and one read.
	republishSilence = statementTimeout + 2*publishTimeout
)

// holdJob opens a session that shows for as long as it lasts that somebody works on a job. One that was stopped, or is
// cut off, does not last.
func (w *Worker) holdJob(ctx context.Context, id int64) (*pgx.Conn, error) {
	cfg, err := w.connConfig(ctx, "commitcast republish")
	if err != nil {
		return nil, err
	}
	setSession(cfg, "commitcast republish", map[string]string{
		"idle_session_timeout":    millis(republishSilence),
		"statement_timeout":       millis(statementTimeout),
		"tcp_user_timeout":        millis(ownerIdle),
		"tcp_keepalives_idle":     "1",
		"tcp_keepalives_interval": "1",
		"tcp_keepalives_count":    "3",
	})
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	// Not waited for: whoever else holds it does the same work, which does no harm.
	if _, err := conn.Exec(ctx, "SELECT pg_try_advisory_lock($1, ($2::bigint & 2147483647)::integer)", int32(republishLock), id); err != nil {
		releaseJob(conn)
		return nil, fmt.Errorf("showing that a job is alive: %w", err)
	}
	return conn, nil
}

func releaseJob(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	_ = conn.Close(ctx) // the session ends in any case
}

// passOrphans orders the next term of topics whose job died with its process, and the first of those that have none, until ctx
// ends. River would run the former again too, but only when they have taken far too long.
func (w *Worker) passOrphans(ctx context.Context) {
	var before map[orphan]bool
	for sleep(ctx, jitter(orphansEvery)) {
		lctx, cancel := context.WithTimeout(ctx, statementTimeout)
		now, err := w.orphans(lctx)
		if err == nil {
			err = w.pass(lctx, now, before)
		}
		if err == nil {
			err = w.adopt(lctx)
		}
		cancel()
		if before = now; err != nil && ctx.Err() == nil {
			w.log.DebugContext(ctx, "jobs whose process is gone cannot be looked for", "error", err)
		}
	}
}

// orphan is one run of a job that nobody seems to work on. A run is told by its begin: one that is put off gets its attempt back.
type orphan struct {
	ID    int64
	Begun int64 // microseconds since 1970
}

func (w *Worker) orphans(ctx context.Context) (map[orphan]bool, error) {
	rows, err := w.pool.Query(ctx, orphansSQL, int64(republishLock), queueRepublish)
	if err != nil {
		return nil, err
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[orphan])
	found := make(map[orphan]bool, len(all))
	for _, o := range all {
		found[o] = true
	}
	return found, err
}

// pass orders successors for the orphans that were seen twice.
func (w *Worker) pass(ctx context.Context, now, before map[orphan]bool) error {
	var ids []int64
	for o := range now {
		if before[o] {
			ids = append(ids, o.ID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	rows, err := w.pool.Query(ctx, passSQL, ids)
	if err != nil {
		return err
	}
	heirs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[RepublishArgs])
	if err != nil || len(heirs) == 0 {
		return err
	}
	params := make([]river.InsertManyParams, len(heirs))
	for i, h := range heirs {
		params[i] = republishJob(h, w.cfg.RepublishAttempts)
		w.log.InfoContext(ctx, "the process that republished a topic is gone; another takes over", "topic", h.Topic, "term", h.Term)
	}
	_, err = w.river.InsertMany(ctx, params)
	return err
}
