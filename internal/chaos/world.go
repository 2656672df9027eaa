package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/commitcast/commitcast/internal/network"
	"github.com/commitcast/commitcast/internal/services"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/migrations"
	"github.com/commitcast/commitcast/wire"
)

const (
	workers      = 2
	broadcasters = 3
	// queryTimeout bounds what the checker itself asks; the machine may be busy.
	queryTimeout = 20 * time.Second
)

var errNotRunning = errors.New("the process does not run")

// schema is the domain that events tell about: entities whose total is the sum of the deltas told, and the ids of
// the transactions that committed.
const schema = `
CREATE SCHEMA chaos;
CREATE TABLE chaos.entity (
    topic text, entity text, version bigint NOT NULL DEFAULT 0, total bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (topic, entity));
CREATE TABLE chaos.op (id bigint PRIMARY KEY)`

// world is everything that runs.
type world struct {
	ctx context.Context
	log *timeline

	postgres    *services.Postgres // the primary
	replica     *services.Postgres // with -standby
	redis       *services.Redis
	postgresURL string // of the first primary; proxies lead to the present one
	redisURL    string
	replicated  *replicated           // with -redis, in place of redis
	cache       redis.UniversalClient // the checker's own way to Redis, past the proxies
	processes   []*process
	network     *network.Network         // with -hosts: everybody has a host of its own on it
	hosts       map[string]*network.Host // by the names of processes, "postgres" and "redis"
	opsToken    string                   // then: a file with what operators show
	writing     *testkit.Proxy           // between writers and Postgres
	reading     *testkit.Proxy           // between whoever reads snapshots and Postgres
	writers     *pgxpool.Pool
	readers     *pgxpool.Pool

	direct    atomic.Pointer[pgxpool.Pool] // the checker's own way to Postgres
	sequenced [wire.Partitions]int64       // verified so far

	refusing sync.Mutex   // one rule of access is in force at a time
	moving   sync.RWMutex // held by a slot that moves, shared by what may have another server become master
	resumed  atomic.Int64 // times that Redis was let go on after a pause

	mu         sync.Mutex
	violations []violation
	counts     map[string]int // violations by name
	soft       map[string]int // failures in a row of checks that a busy machine may fail
}

// violation is something that must never happen.
type violation struct{ name, text string }

func (w *world) violate(name, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.mu.Lock()
	w.violations = append(w.violations, violation{name, text})
	w.counts[name]++
	tooMany := w.counts[name] > maxTold
	w.mu.Unlock()
	if tooMany {
		return
	}
	w.log.add("VIOLATION", "%s: %s", name, text)
}

// maxTold is how many violations of one name are written out.
const maxTold = 20

// maxSoft is how many times in a row a check that depends on time must fail to count: the machine may be busy.
const maxSoft = 3

// judge is violate for a check that depends on time.
func (w *world) judge(ok bool, name, format string, args ...any) {
	w.mu.Lock()
	if ok {
		w.soft[name] = 0
	} else {
		w.soft[name]++
	}
	n := w.soft[name]
	w.mu.Unlock()
	if ok {
		return
	}
	w.log.add("check", "%s (%d in a row): %s", name, n, fmt.Sprintf(format, args...))
	if n >= maxSoft {
		w.violate(name, format, args...)
	}
}

func (w *world) violated() []violation {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]violation(nil), w.violations...)
}

// newWorld starts everything and waits until it serves.
func newWorld(ctx context.Context, o options) (w *world, err error) {
	w = &world{ctx: ctx, log: newTimeline(), soft: make(map[string]int), counts: make(map[string]int)}
	defer func() {
		if err != nil {
			w.close()
			w = nil
		}
	}()
	if err := services.EnsurePostgres(ctx, os.Stderr); err != nil {
		return w, err
	}
	if err := services.EnsureRedis(ctx, os.Stderr); err != nil {
		return w, err
	}
	postgres, redisServer := services.PostgresConfig{Settings: map[string]string{"shared_buffers": "64MB"}}, services.RedisConfig{}
	if o.hosts {
		if err := w.makeHosts(o.redis); err != nil {
			return w, err
		}
		postgres.Host, redisServer.Host = w.hosts["postgres"], w.hosts["redis"]
	}
	if w.postgres, err = services.StartPostgres(ctx, postgres); err != nil {
		return w, err
	}
	redis.SetLogger(silent{})
	w.postgresURL = w.postgres.URL("postgres")
	if o.redis == redisOne {
		if w.redis, err = services.StartRedis(ctx, redisServer); err != nil {
			return w, err
		}
		w.redisURL, w.cache = w.redis.URL(), redis.NewClient(w.redis.Options())
	} else {
		if w.replicated, err = startReplicated(ctx, o.redis, w.hosts); err != nil {
			return w, err
		}
		w.redisURL, w.cache = w.replicated.url(), w.replicated.client()
	}
	if err := migrations.Up(ctx, w.postgresURL, slog.New(slog.DiscardHandler)); err != nil {
		return w, err
	}
	if err := w.connectDirect(); err != nil {
		return w, err
	}
	if _, err := w.db().Exec(ctx, schema); err != nil {
		return w, err
	}
	for _, p := range []struct {
		proxy **testkit.Proxy
		pool  **pgxpool.Pool
	}{{&w.writing, &w.writers}, {&w.reading, &w.readers}} {
		if *p.proxy, err = testkit.StartProxy(w.postgres.Addr()); err != nil {
			return w, err
		}
		if *p.pool, err = newPool((*p.proxy).URL(w.postgresURL)); err != nil {
			return w, err
		}
	}
	for i := range workers {
		if err := w.add("worker", i+1); err != nil {
			return w, err
		}
	}
	for i := range broadcasters {
		if err := w.add("broadcaster", i+1); err != nil {
			return w, err
		}
	}
	for _, p := range w.processes {
		select {
		case <-p.up:
		case <-time.After(time.Minute):
			return w, fmt.Errorf("%s does not serve", p.name)
		}
	}
	if o.standby {
		w.replica, err = w.postgres.Replica(ctx)
	}
	return w, err
}

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

func (w *world) add(role string, n int) error {
	p, err := w.newProcess(role, n)
	if err == nil {
		w.processes = append(w.processes, p)
	}
	return err
}

func (w *world) of(role string) []*process {
	var all []*process
	for _, p := range w.processes {
		if p.role == role {
			all = append(all, p)
		}
	}
	return all
}

// newPool makes a pool whose connections are given up soon when nothing answers.
func newPool(url string) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	cfg.ConnConfig.ConnectTimeout = 2 * time.Second
	cfg.MaxConns = 24
	return pgxpool.NewWithConfig(context.Background(), cfg)
}

// connectDirect makes a pool to the present primary.
func (w *world) connectDirect() error {
	pool, err := newPool(w.postgres.URL("postgres"))
	if err != nil {
		return err
	}
	if old := w.direct.Swap(pool); old != nil {
		go old.Close() // owned by nobody: it waits for queries to a server that is gone, and they fail
	}
	return nil
}

func (w *world) db() *pgxpool.Pool { return w.direct.Load() }

// query runs one query of the checker, again while the server is not to be reached: it was just restarted.
func query[T any](w *world, scan pgx.RowToFunc[T], sql string, args ...any) ([]T, error) {
	deadline := time.Now().Add(queryTimeout)
	for {
		ctx, cancel := context.WithTimeout(w.ctx, queryTimeout)
		rows, _ := w.db().Query(ctx, sql, args...)
		all, err := pgx.CollectRows(rows, scan)
		cancel()
		if err == nil || time.Now().After(deadline) || w.ctx.Err() != nil {
			return all, err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// exec is query for a statement that may be run twice.
func (w *world) exec(sql string, args ...any) error {
	_, err := query(w, pgx.RowTo[string], sql, args...)
	return err
}

// pushing says whether every broadcaster gets events by push.
func (w *world) pushing() error {
	for _, p := range w.processes {
		body, err := p.get("/readyz")
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		if !strings.Contains(body, `"ready"`) {
			return fmt.Errorf("%s: %s", p.name, strings.TrimSpace(body))
		}
	}
	return nil
}

// silentOnPush are the broadcasters that call themselves ready without saying that events come by polling.
func (w *world) silentOnPush() (names []string) {
	for _, p := range w.of("broadcaster") {
		if body, err := p.get("/readyz"); err == nil && !strings.Contains(body, "polling") {
			names = append(names, p.name)
		}
	}
	return names
}

// metric adds up a counter of all broadcasters.
func (w *world) metric(name string) (float64, error) {
	var sum float64
	for _, p := range w.of("broadcaster") {
		body, err := p.get("/metrics")
		if err != nil {
			return 0, err
		}
		for l := range strings.Lines(body) {
			var v float64
			if rest, ok := strings.CutPrefix(l, name+" "); ok {
				if _, err := fmt.Sscan(rest, &v); err == nil {
					sum += v
				}
			}
		}
	}
	return sum, nil
}

// eventually waits for a condition. The last error says what is still missing.
func (w *world) eventually(timeout time.Duration, cond func() error) error {
	deadline := time.Now().Add(timeout)
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := cond()
		if err == nil || w.ctx.Err() != nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(wait)
	}
}

// close ends everything.
func (w *world) close() {
	var all sync.WaitGroup
	for _, p := range w.processes {
		all.Go(p.close)
	}
	all.Wait()
	for _, p := range []*testkit.Proxy{w.writing, w.reading} {
		if p != nil {
			p.Close()
		}
	}
	for _, pool := range []*pgxpool.Pool{w.writers, w.readers, w.db()} {
		if pool != nil {
			pool.Close()
		}
	}
	if w.cache != nil {
		w.cache.Close()
	}
	if w.redis != nil {
		w.redis.Close()
	}
	if w.replicated != nil {
		w.replicated.close()
	}
	for _, pg := range []*services.Postgres{w.replica, w.postgres} {
		if pg != nil {
			pg.Close()
		}
	}
	if w.network != nil {
		w.network.Close()
	}
	if w.opsToken != "" {
		os.Remove(w.opsToken)
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "chaos:", err)
	os.Exit(2)
}
