package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"

	"github.com/commitcast/commitcast/migrations"
)

// The queues.
const (
	queueDrain     = "drain"
	queueRepublish = "republish"
	queueUpkeep    = "upkeep"
)

// uniqueWhileAlive lets a job be inserted once until it has ended; then again.
var uniqueWhileAlive = river.UniqueOpts{ByArgs: true, ByState: []rivertype.JobState{
	rivertype.JobStateAvailable, rivertype.JobStatePending, rivertype.JobStateRunning,
	rivertype.JobStateScheduled, rivertype.JobStateRetryable,
}}

const (
	// fetchCooldown is how soon after one fetch River fetches again: the wait of a fresh drain.
	fetchCooldown = time.Millisecond
	// fetchPoll is how long an inserted job may wait when its notification is lost.
	fetchPoll = 100 * time.Millisecond
	// drainGrace is how much longer than Config.MaxAge a drain may run until River cancels it: the handover.
	drainGrace = 30 * time.Second
	// rescueGrace is how much later River tidies up the row of a job whose process is gone. The partition has long
	// been taken over by then.
	rescueGrace = time.Minute
	// keepCompleted is how long an operator can see that a drain has ended.
	keepCompleted = 10 * time.Minute
	// upkeepEvery is how often the journal's leaves are looked after.
	upkeepEvery = time.Minute
	// leavesAhead is how many days of journal leaves are made ahead: as long as upkeep may fail unnoticed.
	leavesAhead = 3
)

// DrainArgs are the arguments of outbox_drain: one job for each term of a partition.
type DrainArgs struct {
	Partition int16 `json:"partition" river:"unique"`
	Term      int64 `json:"term" river:"unique"`
}

// Kind implements river.JobArgs.
func (DrainArgs) Kind() string { return "outbox_drain" }

// InsertOpts implements river.JobArgsWithInsertOpts. A term that has completed may be inserted again, if it ended
// before it began.
func (DrainArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: queueDrain, MaxAttempts: 10, UniqueOpts: uniqueWhileAlive}
}

type drainWorker struct {
	river.WorkerDefaults[DrainArgs]
	w *Worker
}

// Work drains a partition. The job ends well when it was idle or was passed by a newer term.
func (dw *drainWorker) Work(ctx context.Context, job *river.Job[DrainArgs]) error {
	if job.Args.Partition < 0 || int(job.Args.Partition) >= len(dw.w.hub.drains) || job.Args.Term <= 0 {
		return river.JobCancel(fmt.Errorf("partition %d, term %d do not exist", job.Args.Partition, job.Args.Term))
	}
	why := endStopped
	if !dw.w.isStopping() { // else it is for another process, which orders it again
		var err error
		why, err = dw.w.drain(ctx, job.Args.Partition, job.Args.Term)
		if err != nil {
			dw.w.metrics.ended.WithLabelValues(why).Inc()
			return err
		}
	}
	dw.w.metrics.ended.WithLabelValues(why).Inc()
	// River would write this up to 250 ms later, and operators would see a running job that is not there.
	return pgx.BeginFunc(ctx, dw.w.pool, func(tx pgx.Tx) error {
		_, err := river.JobCompleteTx[*riverpgxv5.Driver](ctx, tx, job)
		return err
	})
}

// UpkeepArgs are the arguments of journal_upkeep, which makes the journal's leaves ahead of time and drops those past
// retention.
type UpkeepArgs struct{}

// Kind implements river.JobArgs.
func (UpkeepArgs) Kind() string { return "journal_upkeep" }

// InsertOpts implements river.JobArgsWithInsertOpts.
func (UpkeepArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: queueUpkeep, UniqueOpts: uniqueWhileAlive}
}

type upkeepWorker struct {
	river.WorkerDefaults[UpkeepArgs]
	w *Worker
}

func (uw *upkeepWorker) Work(ctx context.Context, _ *river.Job[UpkeepArgs]) error {
	var made int
	if err := uw.w.pool.QueryRow(ctx, `SELECT commitcast.ensure_leaves($1)`, leavesAhead).Scan(&made); err != nil {
		return fmt.Errorf("making journal leaves: %w", err)
	}
	if made > 0 {
		uw.w.log.InfoContext(ctx, "made journal leaves", "count", made)
	}
	err := uw.w.retain(ctx)
	if errors.Is(err, errLeafBusy) {
		uw.w.log.DebugContext(ctx, "retention waits for a reader", "error", err)
		err = nil
	}
	return err
}

// retryPolicy is 250 ms·2ⁿ, at most 30 s, with jitter. A drain's failure is mostly answered sooner, by the next term.
type retryPolicy struct{}

func (retryPolicy) NextRetry(job *rivertype.JobRow) time.Time {
	return time.Now().Add(jitter(backoff(len(job.Errors), 250*time.Millisecond, 30*time.Second)))
}

// newRiver makes the client. Every process registers every kind: River's leader discards jobs of kinds it does not
// know when it rescues them.
func (w *Worker) newRiver() (*river.Client[pgx.Tx], error) {
	workers := river.NewWorkers()
	river.AddWorker(workers, &drainWorker{w: w})
	river.AddWorker(workers, &republishWorker{w: w})
	river.AddWorker(workers, &upkeepWorker{w: w})
	timeout := w.cfg.MaxAge + w.cfg.MaxAge/4 + drainGrace // its age is spread by a quarter
	return river.NewClient(riverpgxv5.New(w.pool), &river.Config{
		ID:     w.cfg.Node,
		Schema: migrations.RiverSchema,
		Queues: map[string]river.QueueConfig{
			queueDrain:     {MaxWorkers: w.cfg.Slots},
			queueRepublish: {MaxWorkers: republishSlots, FetchCooldown: 100 * time.Millisecond, FetchPollInterval: 250 * time.Millisecond},
			queueUpkeep:    {MaxWorkers: 1, FetchCooldown: time.Second, FetchPollInterval: 5 * time.Second},
		},
		Workers:                     workers,
		Middleware:                  []rivertype.Middleware{&jobMetrics{m: w.metrics}},
		FetchCooldown:               fetchCooldown,
		FetchPollInterval:           fetchPoll,
		JobTimeout:                  timeout,
		RescueStuckJobsAfter:        timeout + rescueGrace,
		RetryPolicy:                 retryPolicy{},
		ReindexerIndexNames:         []string{}, // a worker does not own River's indexes, and its table is small
		CompletedJobRetentionPeriod: keepCompleted,
		DiscardedJobRetentionPeriod: -1, // nothing is deleted because it failed
		PeriodicJobs: []*river.PeriodicJob{river.NewPeriodicJob(river.PeriodicInterval(upkeepEvery),
			func() (river.JobArgs, *river.InsertOpts) { return UpkeepArgs{}, nil },
			&river.PeriodicJobOpts{RunOnStart: true})},
		Logger: slog.New(&riverLog{Handler: w.log.Handler(), dbUp: w.dbUp.Load, state: &riverLogState{seen: make(map[string]time.Time)}}),
	})
}

// riverLog passes on River's warnings and errors: each message at most once in riverLogEvery, and none while the
// database is gone, which has been said once already and which River would say ten times a second.
type riverLog struct {
	slog.Handler
	dbUp  func() bool
	state *riverLogState
}

type riverLogState struct {
	mu   sync.Mutex
	seen map[string]time.Time
}

const riverLogEvery = 10 * time.Second

func (h *riverLog) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn && h.Handler.Enabled(ctx, level)
}

func (h *riverLog) Handle(ctx context.Context, r slog.Record) error {
	if !h.dbUp() {
		return nil
	}
	h.state.mu.Lock()
	again := r.Time.Sub(h.state.seen[r.Message]) < riverLogEvery
	if !again {
		h.state.seen[r.Message] = r.Time
	}
	h.state.mu.Unlock()
	if again {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

func (h *riverLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &riverLog{h.Handler.WithAttrs(attrs), h.dbUp, h.state}
}

func (h *riverLog) WithGroup(name string) slog.Handler {
	return &riverLog{h.Handler.WithGroup(name), h.dbUp, h.state}
}
