package worker

import (
	"context"
	_ "embed"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"

	"github.com/commitcast/commitcast/wire"
)

var (
	//go:embed sweep.sql
	sweepSQL string
	//go:embed owners.sql
	ownersSQL string
)

const (
	// sweepGap is the least time between two sweeps, however many wake-ups come. It is longer than fetchCooldown,
	// within which River would send no second notification.
	sweepGap = 3 * time.Millisecond
	// sweepTimeout bounds a sweep.
	sweepTimeout = 2 * time.Second
	// ownSilence is after how long without an answer from Postgres a drain of this process counts as one of another
	// process.
	ownSilence = 3 * time.Second
	// pingTimeout bounds asking whether the stream is there, which is asked at most once a sweep.
	pingTimeout = 200 * time.Millisecond
	// trustOwner is for how long a partition whose owner was seen alive is not looked at again because of a wake-up.
	trustOwner = time.Second
)

// dispatcher orders drains for partitions that have work and no owner.
type dispatcher struct {
	w          *Worker
	parts      [wire.Partitions]prospect
	lastSweep  time.Time
	worked     time.Time // a sweep found work
	overlooked time.Time // a sweep found events of which a drain of this process did not know
}

func newDispatcher(w *Worker) *dispatcher { return &dispatcher{w: w} }

// run sweeps until ctx ends.
func (d *dispatcher) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for failures := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-d.w.hub.kick:
			if !d.worthSweeping(d.w.hub.hinted.Swap(0), time.Now()) {
				continue
			}
			if wait := sweepGap - time.Since(d.lastSweep); wait > 0 && !sleep(ctx, wait) {
				return
			}
		}
		sctx, cancel := context.WithTimeout(ctx, sweepTimeout)
		err := d.sweep(sctx)
		cancel()
		if ctx.Err() != nil {
			return
		}
		d.w.databaseState(ctx, err)
		now := time.Now()
		d.lastSweep = now
		next := sweepWait(now.Sub(d.worked), now.Sub(d.overlooked), d.w.sequencing().resting())
		if err != nil {
			next = jitter(backoff(failures, sweepBusy, time.Second))
			failures++
		} else {
			failures = 0
		}
		timer.Reset(next)
	}
}

// worthSweeping: a wake-up for a partition whose owner lives elsewhere is the owner's.
func (d *dispatcher) worthSweeping(hinted uint32, now time.Time) bool {
	for p := range d.parts {
		if hinted&(1<<p) != 0 && now.Sub(d.parts[p].ownerSeen) > trustOwner {
			return true
		}
	}
	return false
}

// order is a drain to be inserted.
type order struct {
	partition int16
	term      int64
	why       string
}

// sweep looks once, and orders what is missing.
func (d *dispatcher) sweep(ctx context.Context) error {
	now := time.Now()
	rows, err := d.w.pool.Query(ctx, sweepSQL)
	if err != nil {
		return fmt.Errorf("sweeping: %w", err)
	}
	own := d.w.hub.lookedAfter(now)
	var found [wire.Partitions]bool
	var busy bool
	var suspects []int16
	var lag int64
	var id int16
	var s sight
	_, err = pgx.ForEachRow(rows, []any{&id, &s.term, &s.seq, &s.published, &s.waiting}, func() error {
		if id < 0 || id >= wire.Partitions {
			return fmt.Errorf("partition %d does not exist", id)
		}
		busy = true
		if own&(1<<id) != 0 {
			if s.waiting && d.w.hub.overlooked(id, time.Now()) {
				d.overlooked = now
			}
			return nil
		}
		found[id] = true
		lag += s.seq - s.published
		if d.parts[id].see(s, now) {
			suspects = append(suspects, id)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("sweeping: %w", err)
	}
	d.w.metrics.backlog.Set(float64(lag))
	if busy {
		d.worked = now
	}
	for p := range d.parts {
		if !found[p] {
			d.parts[p].clear()
		}
	}
	if len(suspects) == 0 {
		return nil
	}
	owners, err := livingOwners(ctx, d.w.pool)
	if err != nil {
		return err
	}
	var orders []order
	streamUp := sync.OnceValue(func() bool {
		pctx, cancel := context.WithTimeout(ctx, pingTimeout)
		defer cancel()
		return d.w.stream.Ping(pctx) == nil
	})
	for _, p := range suspects {
		if term, why := d.parts[p].judge(owners[p], now, streamUp); term > 0 {
			orders = append(orders, order{p, term, why})
		}
	}
	return d.insert(ctx, orders)
}

// livingOwner is the session with the highest term that holds a partition's lock. The zero livingOwner: none.
type livingOwner struct {
	term   int64
	silent *float64 // for how many seconds Postgres has waited for it; nil: unknown
}

func livingOwners(ctx context.Context, pool *pgxpool.Pool) (owners [wire.Partitions]livingOwner, err error) {
	rows, err := pool.Query(ctx, ownersSQL, int64(lockClass))
	if err != nil {
		return owners, fmt.Errorf("looking for owners: %w", err)
	}
	var id int16
	var o livingOwner
	_, err = pgx.ForEachRow(rows, []any{&id, &o.term, &o.silent}, func() error {
		if id >= 0 && id < wire.Partitions && o.term > owners[id].term {
			owners[id] = o
		}
		return nil
	})
	if err != nil {
		return owners, fmt.Errorf("looking for owners: %w", err)
	}
	return owners, nil
}

// insert orders drains, all in one statement, so that River notifies once for all.
func (d *dispatcher) insert(ctx context.Context, orders []order) error {
	if len(orders) == 0 {
		return nil
	}
	results, err := d.w.river.InsertMany(ctx, drainJobs(orders))
	if err != nil {
		return fmt.Errorf("ordering drains: %w", err)
	}
	now := time.Now()
	for i, r := range results {
		p := &d.parts[orders[i].partition]
		p.ordered(orders[i].term, now, r.UniqueSkippedAsDuplicate, r.Job.State)
		if orders[i].why != "" && !r.UniqueSkippedAsDuplicate {
			d.w.metrics.takeovers.WithLabelValues(orders[i].why).Inc()
		}
	}
	return nil
}

// handOver orders the next term of a partition whose drain here has reached its age.
func (w *Worker) handOver(ctx context.Context, partition int16, term int64) error {
	err := w.insert(ctx, []order{{partition: partition, term: term}})
	if err == nil {
		w.metrics.takeovers.WithLabelValues("aged").Inc()
	}
	return err
}

// handOverAll orders what follows the drains of a process that stops, so that nobody has to find out that they are gone. If
// that fails, others do find out.
func (w *Worker) handOverAll(next []order) {
	if len(next) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), sweepTimeout)
	defer cancel()
	if err := w.insert(ctx, next); err != nil {
		w.log.WarnContext(ctx, "partitions could not be handed over; other workers find them by looking", "error", err)
		return
	}
	w.metrics.takeovers.WithLabelValues("stopped").Add(float64(len(next)))
}

func (w *Worker) insert(ctx context.Context, orders []order) error {
	_, err := w.river.InsertMany(ctx, drainJobs(orders))
	return err
}

func drainJobs(orders []order) []river.InsertManyParams {
	params := make([]river.InsertManyParams, len(orders))
	for i, o := range orders {
		params[i].Args = DrainArgs{Partition: o.partition, Term: o.term}
	}
	return params
}

// claimed: some process has taken the job, or failed with it.
func claimed(s rivertype.JobState) bool {
	return s == rivertype.JobStateRunning || s == rivertype.JobStateRetryable
}
