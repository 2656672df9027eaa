package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/internal/app"
	"github.com/commitcast/commitcast/internal/journal"
	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/worker"
)

const (
	// heartbeat is shorter than a broadcaster's default, so that people who break things need not wait long to see
	// the last net at work.
	heartbeat = 5 * time.Second
	// drain is how long tabs are given to leave at shutdown.
	drain = 500 * time.Millisecond
)

// pipeline is Commitcast beside the exchange: a broadcaster in this process and a worker. With Redis, the worker is a
// process of its own, which can be killed; without, both share the in-process stream, and the worker is cancelled
// instead. Safe for concurrent use.
type pipeline struct {
	log         *slog.Logger
	pool        *pgxpool.Pool // of the broadcaster and an in-process worker
	stream      stream.Stream
	broadcaster *broadcaster.Broadcaster
	worker      *workerControl
	redisURL    string // "": the stream is in this process
	why         string // why there is no Redis
	private     bool   // Redis is ours alone: it may be flushed
}

// pipelineConfig says where the servers are.
type pipelineConfig struct {
	databaseURL, redisURL string
	withoutRedis          string // why redisURL is empty
	privateRedis          bool
	log                   *slog.Logger
}

// openPipeline connects; nothing moves before run.
func openPipeline(ctx context.Context, cfg pipelineConfig) (p *pipeline, err error) {
	p = &pipeline{log: cfg.log, redisURL: cfg.redisURL, why: cfg.withoutRedis, private: cfg.privateRedis}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.pool, err = app.OpenDatabase(ctx, cfg.databaseURL); err != nil {
		return nil, err
	}
	if p.stream, err = app.OpenStream(ctx, cfg.redisURL, cfg.log, nil); err != nil {
		return nil, err
	}
	p.broadcaster, err = broadcaster.New(journal.New(p.pool), p.stream, broadcaster.Config{
		Node: "demo", Heartbeat: heartbeat, Drain: drain, Logger: cfg.log,
	})
	if err != nil {
		return nil, err
	}
	if cfg.redisURL != "" {
		p.worker = &workerControl{log: cfg.log, begin: workerProcess(cfg.databaseURL, cfg.redisURL)}
	} else {
		p.worker = &workerControl{log: cfg.log, begin: p.workerHere}
	}
	return p, nil
}

// run moves events until ctx ends; then worker and broadcaster end, in this order: that of the flow.
func (p *pipeline) run(ctx context.Context) error {
	if err := p.worker.start(); err != nil {
		return err
	}
	broadcasting, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- p.broadcaster.Run(broadcasting) }() // owned by run
	select {
	case <-ctx.Done():
	case err := <-ended:
		p.worker.stop(false)
		return fmt.Errorf("broadcaster: %w", err)
	}
	p.worker.stop(false)
	stop()
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("broadcaster: %w", err)
	}
	return nil
}

// close releases connections, after run.
func (p *pipeline) close() {
	if p.stream != nil {
		_ = p.stream.Close()
	}
	if p.pool != nil {
		p.pool.Close()
	}
}

// handler serves GET /v1/ws.
func (p *pipeline) handler() http.Handler { return p.broadcaster.Handler() }

func (p *pipeline) streamName() string {
	if p.redisURL == "" {
		return "in-process"
	}
	return "redis"
}

// flushBlocked says why the stream must not be flushed from the page, or "".
func (p *pipeline) flushBlocked() string {
	switch {
	case p.redisURL == "":
		return "there is no Redis here (" + p.why + "); the stream is in this process"
	case !p.private:
		return "Redis was given by REDIS_URL and may hold other people's data"
	}
	return ""
}

// flush empties Redis: every database, every stream.
func (p *pipeline) flush(ctx context.Context) error {
	options, err := redis.ParseURL(p.redisURL)
	if err != nil {
		return err
	}
	client := redis.NewClient(options)
	defer client.Close()
	return client.FlushAll(ctx).Err()
}

func (p *pipeline) workerStatus() workerStatus { return p.worker.status() }

func (p *pipeline) startWorker() error { return p.worker.start() }

// killWorker ends the worker as a crash would: kill -9 for a process, cancellation for a goroutine.
func (p *pipeline) killWorker() { p.worker.stop(true) }

// workerHere runs a worker in this process, for the in-process stream.
func (p *pipeline) workerHere() (*runningWorker, error) {
	w, err := worker.New(p.pool, p.stream, worker.Config{Logger: p.log})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	running := &runningWorker{end: func(bool) { cancel() }, done: make(chan struct{})}
	go func() { // owned by the workerControl, which waits for done
		defer close(running.done)
		defer cancel()
		if err := w.Run(ctx); err != nil && ctx.Err() == nil {
			running.err = err
		}
	}()
	return running, nil
}

// runWorker is what the worker process does: it works until ctx ends.
func runWorker(ctx context.Context, databaseURL, redisURL string, log *slog.Logger) error {
	pool, err := app.OpenDatabase(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer pool.Close()
	s, err := app.OpenStream(ctx, redisURL, log, nil)
	if err != nil {
		return err
	}
	defer s.Close()
	w, err := worker.New(pool, s, worker.Config{Logger: log})
	if err != nil {
		return err
	}
	if err := w.Run(ctx); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}
