package canary

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

const (
	// every is how often a node asks to write, and looks how old the newest event is.
	every = time.Second
	// freshWithin is how old the newest event may be to count as fresh: two intervals, and a second for its way.
	freshWithin = 3 * time.Second
	// writeTimeout bounds one question to the database.
	writeTimeout = 2 * time.Second
	// socketFor is how long a socket is used: then clients' way in is tried again.
	socketFor = 5 * time.Second
	// openTimeout bounds opening one, up to the answer to subscribe.
	openTimeout = 3 * time.Second
	// silence is after how long without an event a socket is given up.
	silence = 3 * time.Second
	// pauseLeast and pauseMost are the waits between two attempts to open one.
	pauseLeast, pauseMost = 100 * time.Millisecond, time.Second
)

// Config of a Canary. Topic and URL are required.
type Config struct {
	// Topic is what commitcast.sing appends to.
	Topic string
	// URL is the WebSocket of this node's own listener, by address.
	URL string
	// TLS is how the listener is spoken to. Default: in the clear.
	TLS *tls.Config
	// Key signs the node in. Default: clients need no token.
	Key *Key
	// Limit is how old the newest event may be before Ready says no. Default: it never does.
	Limit time.Duration
	// Held reports whether this node takes no clients because an operator said so: then nothing is watched. Default: never.
	Held func() bool
	// Logger receives a line for each change of state. Default slog.Default().
	Logger *slog.Logger
	// Registerer receives the metrics. Default: none.
	Registerer prometheus.Registerer
}

// Canary writes and watches. Safe for concurrent use.
type Canary struct {
	cfg     Config
	pool    *pgxpool.Pool
	log     *slog.Logger
	metrics *metrics

	mu      sync.Mutex
	started time.Time
	arrived time.Time     // when the newest event came; zero: none has
	delay   time.Duration // how old it was then
	n       int64         // its number
	ahead   time.Duration // of the database's clock, to this node's
	written int64         // the number of the newest event that is committed, as the database last said
	dbErr   error         // of the last question to the database
	wsErr   error         // why there is no socket now
	stale   bool          // as last logged

	track track // of watch alone
}

// New makes a Canary. Nothing happens before Run.
func New(pool *pgxpool.Pool, cfg Config) (*Canary, error) {
	if cfg.Topic == "" || cfg.URL == "" {
		return nil, errors.New("canary: New needs a topic and a URL")
	}
	if cfg.Held == nil {
		cfg.Held = func() bool { return false }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	c := &Canary{cfg: cfg, pool: pool, log: cfg.Logger, started: time.Now()}
	var err error
	if c.metrics, err = newMetrics(cfg.Registerer, c); err != nil {
		return nil, fmt.Errorf("canary: registering metrics: %w", err)
	}
	return c, nil
}

// Run writes and watches until ctx ends, and returns nil.
func (c *Canary) Run(ctx context.Context) error {
	c.mu.Lock()
	c.started = time.Now()
	c.mu.Unlock()
	var all sync.WaitGroup // both owned by Run
	all.Go(func() { c.watch(ctx) })
	all.Go(func() { c.write(ctx) })
	all.Wait()
	return nil
}

// write asks to write, every second, and counts whether the second was a good one.
func (c *Canary) write(ctx context.Context) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		c.sing(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			c.judge()
		}
	}
}

// sing asks the database once.
func (c *Canary) sing(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	var written *int64
	var newest int64
	var clock time.Time
	start := time.Now()
	err := c.pool.QueryRow(ctx, `SELECT written, newest, clock FROM commitcast.sing()`).Scan(&written, &newest, &clock)
	took := time.Since(start)
	if written != nil {
		c.metrics.written.Inc()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dbErr = err; err == nil {
		c.written, c.ahead = newest, clock.Sub(start.Add(took/2))
	}
}

// judge counts this second, and logs when it is the first of its kind.
func (c *Canary) judge() {
	if c.cfg.Held() {
		return
	}
	age := c.Age()
	stale := age > freshWithin
	state := stateFresh
	if stale {
		state = stateStale
	}
	c.metrics.seconds.WithLabelValues(state).Inc()
	c.mu.Lock()
	changed := c.stale != stale
	c.stale = stale
	c.mu.Unlock()
	switch {
	case changed && stale:
		c.log.Warn("the canary does not arrive", "age", age.Round(time.Millisecond), "why", c.Why())
	case changed:
		c.log.Info("the canary arrives again", "age", age.Round(time.Millisecond))
	}
}

// Age is how old the newest event is that has arrived, or how long this canary has run without one.
func (c *Canary) Age() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.arrived.IsZero() {
		return time.Since(c.started)
	}
	return c.delay + time.Since(c.arrived)
}

// Stale reports whether that is too old for the objective.
func (c *Canary) Stale() bool { return c.Age() > freshWithin }

// Ready says whether clients of this node get what is committed: nil, or why not, and what to do. Without Config.Limit it is always
// nil, and while the node is held, which says so itself.
func (c *Canary) Ready() error {
	if c.cfg.Limit <= 0 || c.cfg.Held() {
		return nil
	}
	age := c.Age()
	c.mu.Lock()
	never := c.arrived.IsZero()
	c.mu.Unlock()
	switch {
	case never:
		return fmt.Errorf("no event of the canary has arrived yet, after %v: %s", age.Round(time.Second), c.Why())
	case age > c.cfg.Limit:
		return fmt.Errorf("the newest event of the canary that has arrived is %v old, more than %v: %s", age.Round(time.Second), c.cfg.Limit, c.Why())
	}
	return nil
}

// Why says where it may hang, as far as this node can see, and what to do. While it does not hang, that means nothing.
func (c *Canary) Why() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.wsErr != nil && c.dbErr != nil: // the second may come of the first
		return fmt.Sprintf("this node cannot write to the database (%s): see whether it reaches Postgres, commitcast ops status; nor can a client be served by its own listener (%s)",
			oneLine(c.dbErr), oneLine(c.wsErr))
	case c.wsErr != nil:
		return fmt.Sprintf("a client cannot be served by this node's own listener (%s): see its limits, open files and certificate; docs/runbook.md", oneLine(c.wsErr))
	case c.dbErr != nil:
		return fmt.Sprintf("this node cannot write to the database (%s): see whether it reaches Postgres, and whether its role may execute commitcast.sing; commitcast ops status", oneLine(c.dbErr))
	case c.written > c.n:
		return fmt.Sprintf("event %d is committed, and %d is the last that came: see whether a worker runs, and where it waits; commitcast ops stuck", c.written, c.n)
	}
	return "nothing new is committed; commitcast ops stuck"
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
