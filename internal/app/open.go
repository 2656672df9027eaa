package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/commitcast/commitcast/internal/journal"
	"github.com/commitcast/commitcast/migrations"
	"github.com/commitcast/commitcast/stream"
)

// openTimeout bounds the first contact with the database and with Redis, so that a wrong address is an error and not
// a silent wait.
const openTimeout = 10 * time.Second

// OpenDatabase connects to the database and checks that it is Postgres itself, and that its schema is the one that this binary knows.
func OpenDatabase(ctx context.Context, url string) (*pgxpool.Pool, error) {
	if url == "" {
		return nil, usageError{errors.New("--database-url is empty")}
	}
	pool, err := newPool(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("--database-url: %w", err)
	}
	if err := checkDatabase(ctx, pool); err != nil {
		pool.Close()
		return nil, fmt.Errorf("database: %w", err)
	}
	return pool, nil
}

// newPool makes a pool for a database; it has not been asked anything yet.
func newPool(ctx context.Context, url string) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	// The database's own defaults are its applications' business; ours are these.
	config.ConnConfig.RuntimeParams["application_name"] = "commitcast"
	if name, ok := ctx.Value(sessionName{}).(string); ok {
		config.ConnConfig.RuntimeParams["application_name"] = name
	}
	config.ConnConfig.RuntimeParams["default_transaction_isolation"] = "read committed"
	config.ConnConfig.RuntimeParams["default_transaction_read_only"] = "off"
	migrations.Mark(&config.ConnConfig.Config)
	return pgxpool.NewWithConfig(ctx, config)
}

// checkDatabase says what is wrong with a database: it cannot be reached, something else answers in its place, or its schema is not
// the one that this binary knows.
func checkDatabase(ctx context.Context, pool *pgxpool.Pool) error {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	err := pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error { return migrations.CheckDirect(ctx, conn.Conn()) })
	if err == nil {
		err = migrations.Check(ctx, pool)
	}
	if pooled := migrations.PooledError(err); pooled != nil {
		return pooled
	}
	return err
}

// openReplica makes a pool for a replica. It need not answer now, nor later.
func openReplica(ctx context.Context, url string) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, usageError{errors.New("--replica-url cannot be read: want postgres://user:password@host:port/database")} // the cause may quote a password
	}
	config.ConnConfig.RuntimeParams["application_name"] = "commitcast"
	config.ConnConfig.RuntimeParams["default_transaction_isolation"] = "read committed"
	return pgxpool.NewWithConfig(ctx, config)
}

// replicaReads are the metrics of reads from a replica.
func replicaReads(r *journal.Reader) []prometheus.Collector {
	counter := func(name, help string, of func() int64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "commitcast_replica_" + name, Help: help}, func() float64 { return float64(of()) })
	}
	return []prometheus.Collector{
		counter("reads_total", "Reads of events for which the replica was asked.", func() int64 { asked, _ := r.ReplicaReads(); return asked }),
		counter("reads_answered_total", "Those that it could answer; the others went to the primary.", func() int64 { _, knew := r.ReplicaReads(); return knew }),
	}
}

// OpenStream connects to Redis or, without a URL, makes a stream in this process.
func OpenStream(ctx context.Context, redisURL string, log *slog.Logger, metrics prometheus.Registerer) (stream.Stream, error) {
	return openStream(ctx, redisURL, nil, log, metrics)
}

func openStream(ctx context.Context, redisURL string, secure *tls.Config, log *slog.Logger, metrics prometheus.Registerer) (stream.Stream, error) {
	if redisURL == "" {
		log.Info("no --redis-url: the stream is in this process, which serves one node only")
		return stream.NewMemory(stream.MemoryConfig{Registerer: metrics}), nil
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	s, err := stream.NewRedis(ctx, redisURL, stream.RedisConfig{TLS: secure, Logger: log, Registerer: metrics})
	if err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	return s, nil
}
