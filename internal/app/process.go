package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/internal/journal"
	"github.com/commitcast/commitcast/worker"
)

// shutdownTimeout bounds the end of the HTTP servers, after every stage has drained.
const shutdownTimeout = 5 * time.Second

// process is one running command: what it opens, in order, and closes, in the order of the flow.
type process struct {
	database, redis, ops string
	log                  *slog.Logger
}

// run opens database and stream, runs a worker if there is a configuration for one, and a broadcaster if there are flags, until ctx
// ends or one of them fails. Worker first, then broadcaster, then listeners: the order of the data, both in starting
// and in draining.
func (p *process) run(ctx context.Context, work *worker.Config, clients *clientFlags) error {
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	// Listeners first of all: an address in use is an error before anything has begun.
	var clientListener, opsListener net.Listener
	var err error
	if clients != nil {
		if clientListener, err = listen("--listen", clients.Listen); err != nil {
			return err
		}
		defer clientListener.Close()
	}
	if p.ops != "" {
		if opsListener, err = listen("--ops-listen", p.ops); err != nil {
			return err
		}
		defer opsListener.Close()
	}
	pool, err := OpenDatabase(ctx, p.database)
	if err != nil {
		return err
	}
	defer pool.Close()
	s, err := OpenStream(ctx, p.redis, p.log, metrics)
	if err != nil {
		return err
	}
	defer s.Close()

	var stages []stage
	checks := make(map[string]func() error)
	if work != nil {
		work.Logger, work.Registerer = p.log, metrics
		w, err := worker.New(pool, s, *work)
		if err != nil {
			return err
		}
		stages = append(stages, stage{"worker", w.Run})
		checks["worker"] = w.Ready
	}
	if clients != nil {
		config, err := clients.config(p.log, metrics)
		if err != nil {
			return err
		}
		b, err := broadcaster.New(journal.New(pool), s, config)
		if err != nil {
			return err
		}
		if clients.Auth == "off" {
			p.log.Warn("authentication is off: everybody who reaches this address may read every topic", "listen", clientListener.Addr())
		}
		stages = append(stages, stage{"broadcaster", b.Run}, serve("clients", clientListener, b.Handler()))
		checks["broadcaster"] = b.Ready
	}
	if opsListener != nil {
		stages = append(stages, serve("ops", opsListener, opsHandler(checks, metrics)))
		p.log.Info("serving operators", "url", "http://"+opsListener.Addr().String())
	}
	if clients != nil {
		p.log.Info("serving clients", "url", "ws://"+clientListener.Addr().String()+"/v1/ws")
	}
	return runStages(ctx, p.log, stages)
}

func listen(flag, addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	return l, nil
}

// stage is a part that runs until its context ends, and drains then.
type stage struct {
	name string
	run  func(ctx context.Context) error
}

// runStages runs all stages until ctx ends or one fails, and then ends them one after the other, in their order.
func runStages(ctx context.Context, log *slog.Logger, stages []stage) error {
	type ended struct {
		stage int
		err   error
	}
	ends := make(chan ended, len(stages))
	cancels := make([]context.CancelFunc, len(stages))
	for i, st := range stages {
		// Not under ctx: a stage ends when its turn comes.
		stageCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		cancels[i] = cancel
		defer cancel()
		go func() { // owned by runStages: it waits for all of them below
			ends <- ended{i, st.run(stageCtx)}
		}()
	}
	done := make([]bool, len(stages))
	var failure error
	note := func(e ended) {
		done[e.stage] = true
		if e.err != nil && !errors.Is(e.err, context.Canceled) && failure == nil {
			failure = fmt.Errorf("%s: %w", stages[e.stage].name, e.err)
		}
	}
	select {
	case <-ctx.Done():
		log.Info("shutting down")
	case e := <-ends:
		note(e)
	}
	for i := range stages {
		cancels[i]()
		for !done[i] {
			note(<-ends)
		}
	}
	return failure
}

// serve is the stage of an HTTP server.
func serve(name string, l net.Listener, h http.Handler) stage {
	return stage{name, func(ctx context.Context) error {
		// The limits are those of a client that means well: a header at once, and nothing after the upgrade that
		// the server would time.
		server := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 16 << 10, IdleTimeout: time.Minute}
		stop := context.AfterFunc(ctx, func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
			defer cancel()
			if server.Shutdown(ctx) != nil {
				server.Close()
			}
		})
		defer stop()
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	}}
}

// opsHandler serves health, readiness and metrics.
func opsHandler(checks map[string]func() error, metrics *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		states := make(map[string]string, len(checks))
		status := http.StatusOK
		for name, check := range checks {
			states[name] = "ready"
			if err := check(); err != nil {
				states[name] = oneLine(err)
				// Delivery by polling is late by a fraction of a second, not absent: still ready.
				if !errors.Is(err, broadcaster.ErrPolling) {
					status = http.StatusServiceUnavailable
				}
			}
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(states)
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	return mux
}
