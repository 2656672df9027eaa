package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/riverqueue/river"

	"github.com/commitcast/commitcast/migrations"
	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

// Config configures a [Worker]. The zero Config works.
type Config struct {
	// Logger receives what operators should know; nil means slog.Default.
	Logger *slog.Logger
	// Registerer takes the worker's metrics; nil registers none.
	Registerer prometheus.Registerer
	// Trace receives the spans of sampled events, as they are sequenced and published; it must not wait. Default: none are made.
	Trace func(wire.Span)
	// Node names this process in River's tables; at most 60 bytes. Default: host name and process id. River adds
	// nothing to it, so two processes of one name would be taken for one.
	Node string
	// Slots is how many partitions this process may drain at once. Default and
	// maximum sensible: all 32, so that one process that is left can carry everything. With fewer slots in all
	// processes together than partitions that are busy, some wait until others have been idle for Linger.
	Slots int
	// Batch is how many events are sequenced in one transaction, 1 to 10,000; all partitions with work share it, but
	// have 8 each in any case. Default 1,000. Smaller costs commits,
	// larger holds a partition's row lock longer.
	Batch int
	// Linger is how long a drain waits for more events before it ends. Default 1 s. Shorter costs a River job for
	// every event of a quiet topic, longer holds a partition without traffic.
	Linger time.Duration
	// MaxAge is how long a drain runs before it hands its partition to a fresh job. Default 60 s. It bounds how long
	// a job row says "running", and lets partitions spread over processes that came later.
	MaxAge time.Duration
	// RepublishAttempts is how often a topic that the stream refuses is tried before it is a dead letter. Default 16,
	// about half an hour. Fewer give up on what would have passed; more leave it unsaid for longer that somebody has
	// to look.
	RepublishAttempts int
	// Retention is how long events are kept in the journal, at least 24 h; leaves of a day are dropped as a whole.
	// Default 7 days; negative keeps them for ever. A client that was away longer is told to reset.
	Retention time.Duration
	// RetentionBytes is how large the journal may grow, indexes included, before its oldest leaf is dropped although
	// Retention would keep it. Default 64 GiB; negative is no limit. Today's and yesterday's leaves stay in any
	// case, and so does what is not published.
	RetentionBytes int64
	// StopTimeout is how long Run waits, once its context has ended, for drains to publish what they have sequenced.
	// Default 10 s. What is left then is published by another process.
	StopTimeout time.Duration
}

func (c Config) withDefaults() (Config, error) {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Node == "" {
		host, _ := os.Hostname()
		if len(host) > 40 {
			host = host[:40]
		}
		c.Node = fmt.Sprintf("%s-%d", host, os.Getpid())
	}
	setDefault(&c.Slots, wire.Partitions)
	setDefault(&c.Batch, 1000)
	setDefault(&c.Linger, time.Second)
	setDefault(&c.MaxAge, time.Minute)
	setDefault(&c.RepublishAttempts, republishAttempts)
	setDefault(&c.Retention, retention)
	setDefault(&c.RetentionBytes, retentionBytes)
	setDefault(&c.StopTimeout, 10*time.Second)
	switch {
	case len(c.Node) > 60:
		return c, fmt.Errorf("worker: Node has %d bytes, more than 60", len(c.Node))
	case c.Slots < 1 || c.Slots > 1000:
		return c, fmt.Errorf("worker: Slots is %d, not 1 to 1000", c.Slots)
	case c.Batch < 1 || c.Batch > 10_000:
		return c, fmt.Errorf("worker: Batch is %d, not 1 to 10000", c.Batch)
	case c.Linger < 10*time.Millisecond:
		return c, fmt.Errorf("worker: Linger is %v, less than 10ms", c.Linger)
	case c.MaxAge < c.Linger:
		return c, fmt.Errorf("worker: MaxAge is %v, less than Linger", c.MaxAge)
	case c.RepublishAttempts < 1 || c.RepublishAttempts > 1000:
		return c, fmt.Errorf("worker: RepublishAttempts is %d, not 1 to 1000", c.RepublishAttempts)
	case c.Retention > 0 && c.Retention < retentionLeast:
		return c, fmt.Errorf("worker: Retention is %v, less than %v", c.Retention, retentionLeast)
	case c.StopTimeout < 0:
		return c, fmt.Errorf("worker: StopTimeout is negative")
	}
	return c, nil
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Worker sequences and publishes. See the package comment.
type Worker struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	stream  stream.Stream
	hub     *hub
	horizon horizon
	poolCfg *pgxpool.Config
	started atomic.Bool
	running atomic.Bool
	dbUp    atomic.Bool
	epoch   atomic.Pointer[string] // the newest that was logged

	// Set by Run before any goroutine starts.
	pool     *pgxpool.Pool // River's tables and backfills: no session state
	river    *river.Client[pgx.Tx]
	stopping chan struct{}

	sequencerMu    sync.Mutex
	sequencer      *sequencer // of drains that begin now
	startSequencer func()     // puts a new one there; the mutex is held, or nobody else runs yet
}

// poolConns is the size of the worker's own pool: River's fetching, completing, electing and maintenance, and
// backfills. The owner and the listener have connections of their own.
const poolConns = 8

// New prepares a Worker for the database that pool leads to. Only the pool's settings are used: the worker opens
// connections of its own, since River's needs would otherwise compete with the caller's. Nothing is opened before
// Run. The stream stays the caller's to close, after Run has returned.
func New(pool *pgxpool.Pool, s stream.Stream, cfg Config) (*Worker, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("worker: registering metrics: %w", err)
	}
	w := &Worker{
		cfg: cfg, log: cfg.Logger, metrics: m, stream: s, hub: newHub(),
		poolCfg: pool.Config(), stopping: make(chan struct{}),
	}
	w.dbUp.Store(true)
	return w, nil
}

// Wake says that partitions may have new events. It only saves the time until the next notification or sweep, never
// blocks, and may be called at any time. See wire.Partition.
func (w *Worker) Wake(partitions ...int) {
	for _, p := range partitions {
		if p >= 0 && p < wire.Partitions {
			w.hub.wake(p)
		}
	}
}

// Ready says whether the worker works: nil, or why not. A stream that is down does not count: events are sequenced, and
// delivered from the journal.
func (w *Worker) Ready() error {
	switch {
	case !w.running.Load():
		return errors.New("worker: not running")
	case !w.dbUp.Load():
		return errors.New("worker: the database cannot be reached")
	}
	return nil
}

// Run works until ctx ends, then publishes what it has sequenced, hands its partitions over, and returns nil; it
// returns an error if that took longer than Config.StopTimeout, or if the database is not one it can work with. A
// database that cannot be reached is waited for, at the start and later.
func (w *Worker) Run(ctx context.Context) error {
	if w.started.Swap(true) {
		return errors.New("worker: Run was called before")
	}
	// Connections and jobs must outlive ctx by the time it takes to drain.
	bg, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	if err := w.open(bg); err != nil {
		return err
	}
	defer w.pool.Close()
	var sequencing sync.WaitGroup
	w.startSequencer = func() {
		s := newSequencer(w)
		w.sequencer = s
		sequencing.Go(func() { s.run(bg) }) // owned by Run
	}
	w.startSequencer()
	defer sequencing.Wait()
	defer cancel()
	if err := w.startRiver(ctx, bg); err != nil || ctx.Err() != nil {
		return err
	}

	// All owned by Run, which waits for them below.
	var watchers, ticker sync.WaitGroup
	watchers.Go(func() { newDispatcher(w).run(ctx) })
	watchers.Go(func() { w.listen(ctx) })
	watchers.Go(func() { w.watchHorizon(ctx) })
	watchers.Go(func() { w.passOrphans(ctx) })
	watchers.Go(func() { w.survey(ctx) })
	tickCtx, stopTick := context.WithCancel(bg)
	ticker.Go(func() { w.tick(tickCtx) })

	w.running.Store(true)
	<-ctx.Done()
	w.running.Store(false)
	watchers.Wait() // no new drains from here on
	held := w.hub.held()
	close(w.stopping)
	var successors sync.WaitGroup
	successors.Go(func() { w.handOverAll(held) }) // ends before Run does
	err := w.stopRiver()
	successors.Wait()
	stopTick()
	ticker.Wait()
	return err
}

// isStopping reports whether this process begins nothing any more.
func (w *Worker) isStopping() bool {
	select {
	case <-w.stopping:
		return true
	default:
		return false
	}
}

// stopRiver lets drains finish, and cancels those that do not within the deadline.
func (w *Worker) stopRiver() error {
	soft, cancel := context.WithTimeout(context.Background(), w.cfg.StopTimeout)
	defer cancel()
	if w.river.Stop(soft) == nil {
		return nil
	}
	// A cancelled drain only has to close its connection.
	hard, cancel := context.WithTimeout(context.Background(), hardStopTimeout)
	defer cancel()
	if err := w.river.StopAndCancel(hard); err != nil {
		return fmt.Errorf("worker: drains did not end within %v of being cancelled: %w", hardStopTimeout, err)
	}
	return fmt.Errorf("worker: drains did not finish within %v and were cancelled; other workers publish the rest", w.cfg.StopTimeout)
}

const hardStopTimeout = 5 * time.Second

// open makes the pool and the River client; neither needs the database yet.
func (w *Worker) open(ctx context.Context) error {
	cfg := w.poolCfg.Copy()
	cfg.MaxConns, cfg.MinConns, cfg.MinIdleConns = poolConns, 0, 0
	setSession(cfg.ConnConfig, "commitcast worker", nil)
	var err error
	if w.pool, err = pgxpool.NewWithConfig(ctx, cfg); err != nil {
		return fmt.Errorf("worker: preparing connections: %w", err)
	}
	w.metrics.pool.Watch(w.pool)
	if w.river, err = w.newRiver(); err != nil {
		w.pool.Close()
		return fmt.Errorf("worker: preparing River: %w", err)
	}
	return nil
}

// startRiver waits for the database and starts River, again if the database goes away in between.
func (w *Worker) startRiver(ctx, bg context.Context) error {
	for failures := 0; ; failures++ {
		if err := w.awaitDatabase(ctx); err != nil || ctx.Err() != nil {
			return err
		}
		err := w.river.Start(bg)
		if err == nil {
			return nil
		}
		if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && !isFatal(pgErr) {
			return fmt.Errorf("worker: starting River: %w", err)
		}
		w.log.WarnContext(ctx, "River could not start; trying again", "error", err)
		if !sleep(ctx, jitter(backoff(failures, 50*time.Millisecond, 2*time.Second))) {
			return nil
		}
		if w.river, err = w.newRiver(); err != nil { // one that has failed is not started again
			return fmt.Errorf("worker: preparing River: %w", err)
		}
	}
}

// awaitDatabase waits until the database answers, and refuses one without the schema.
func (w *Worker) awaitDatabase(ctx context.Context) error {
	for failures := 0; ; failures++ {
		actx, cancel := context.WithTimeout(ctx, connectTimeout)
		var ready bool
		err := w.pool.QueryRow(actx, `SELECT to_regprocedure('commitcast.sequence(smallint[],bigint[],integer,text,bigint[],bigint)') IS NOT NULL
			AND to_regclass('commitcast.river_job') IS NOT NULL`).Scan(&ready)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil && !ready:
			return errors.New("worker: the database has no Commitcast schema; run: commitcast migrate up")
		case err == nil:
			w.databaseState(ctx, nil)
			return nil
		case migrations.PooledError(err) != nil:
			return fmt.Errorf("worker: %w", migrations.PooledError(err))
		}
		w.databaseState(ctx, err)
		sleep(ctx, jitter(backoff(failures, 50*time.Millisecond, 2*time.Second)))
	}
}

// epochBegan logs a new epoch, once for all drains of this process.
func (w *Worker) epochBegan(epoch string) {
	if old := w.epoch.Swap(&epoch); old == nil || *old != epoch {
		w.log.Info("a new epoch began", "epoch", epoch)
	}
}

// databaseState logs changes of whether the database can be worked with.
func (w *Worker) databaseState(ctx context.Context, err error) {
	up := err == nil
	w.metrics.dbUp.Set(boolGauge(up))
	if w.dbUp.Swap(up) == up {
		return
	}
	if up {
		w.log.InfoContext(ctx, "database available again")
	} else {
		w.log.WarnContext(ctx, "database unavailable: nothing is sequenced until it is back", "error", err)
	}
}
