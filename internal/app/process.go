package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/internal/journal"
	poolmetrics "github.com/commitcast/commitcast/internal/pool"
	"github.com/commitcast/commitcast/wire"
	"github.com/commitcast/commitcast/worker"
)

// shutdownTimeout bounds the end of the HTTP servers, after every stage has drained.
const shutdownTimeout = 5 * time.Second

// process is one running command: what it opens, in order, and closes, in the order of the flow.
type process struct {
	database, redis, ops string
	advertise            string      // where operators reach ops; "": there
	redisTLS             *tls.Config // nil: as the URL says
	opsDoor              *opsDoor
	nodeTLS              *tls.Config // how the console speaks to ops listeners
	nodes                []string    // that it asks besides those that the database knows
	otlp                 otlpFlags
	log                  *slog.Logger
}

// process is what the flags of a long-running command say.
func (f *processFlags) process(database, redis string, log *slog.Logger) (p *process, err error) {
	p = &process{database: database, redis: redis, ops: f.OpsListen, advertise: f.OpsAdvertise, otlp: f.otlpFlags, log: log}
	if p.opsDoor, err = f.opsDoor(log); err == nil {
		p.redisTLS, err = f.redisTLS(redis, log)
	}
	return p, err
}

// run opens database and stream, runs a worker if there is a configuration for one, and a broadcaster if there are flags, until ctx
// ends or one of them fails. Worker first, then broadcaster, then listeners: the order of the data, both in starting
// and in draining.
func (p *process) run(ctx context.Context, work *worker.Config, clients *clientFlags) error {
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo())

	spans, err := p.otlp.exporter(p.log, metrics)
	if err != nil {
		return err
	}
	var trace func(wire.Span)
	if spans != nil {
		trace = spans.take
	}
	// Listeners first of all: an address in use is an error before anything has begun.
	var clientListener, opsListener net.Listener
	var clientTLS *tls.Config
	if clients != nil {
		if clientTLS, err = clients.tlsFor(p.log); err != nil {
			return err
		}
		if clientListener, err = listen("--listen", clients.Listen); err != nil {
			return err
		}
		turnedAway := prometheus.NewCounter(prometheus.CounterOpts{Name: "commitcast_connections_closed_unheard_total",
			Help: "TCP connections closed at once because there were more than clients and a reserve."})
		metrics.MustRegister(turnedAway)
		clientListener = bound(clientListener, clients.MaxConnections+spareConnections, turnedAway.Inc)
		defer clientListener.Close()
	}
	if p.ops != "" {
		if opsListener, err = listen("--ops-listen", p.ops); err != nil {
			return err
		}
		defer opsListener.Close()
	}
	pool, err := OpenDatabase(named(ctx, p.announce(opsListener)), p.database)
	if err != nil {
		return err
	}
	defer pool.Close()
	sessions := poolmetrics.NewCollector("process")
	sessions.Watch(pool)
	metrics.MustRegister(sessions)
	s, err := openStream(ctx, p.redis, p.redisTLS, p.log, metrics)
	if err != nil {
		return err
	}
	defer s.Close()

	var stages []stage
	checks := make(map[string]func() error)
	face := newNodeFace()
	face.identity.InProcess = p.redis == ""
	if work != nil {
		work.Logger, work.Registerer, work.Trace = p.log, metrics, trace
		w, err := worker.New(pool, s, *work)
		if err != nil {
			return err
		}
		stages = append(stages, stage{"worker", w.Run})
		checks["worker"] = w.Ready
		face.worker = w
	}
	if clients != nil {
		config, err := clients.config(p.log, metrics)
		if err != nil {
			return err
		}
		config.Trace = trace
		key, err := clients.canaryKey(&config)
		if err != nil {
			return err
		}
		shards, err := parseShards(clients.Shards)
		if err != nil {
			return err
		}
		open, pools, err := openShards(named(ctx, p.announce(opsListener)), shards, p.log, metrics)
		for _, shard := range pools {
			defer shard.Close()
		}
		if err != nil {
			return err
		}
		config.Shards = open
		events := journal.New(pool)
		if clients.ReplicaURL != "" {
			replica, err := openReplica(ctx, clients.ReplicaURL)
			if err != nil {
				return err
			}
			defer replica.Close()
			events.UseReplica(replica)
		}
		metrics.MustRegister(replicaReads(events)...)
		b, err := broadcaster.New(events, s, config)
		if err != nil {
			return err
		}
		if clients.Canary {
			c, err := clients.canary(pool, b, clientListener.Addr(), clientTLS, key, p.log, metrics)
			if err != nil {
				return err
			}
			stages = append([]stage{{"canary", c.Run}}, stages...) // the first to end: it must not see the others go
			checks["canary"] = c.Ready
			face.canary = c
		}
		if clients.Auth == "off" {
			p.log.Warn("authentication is off: everybody who reaches this address may read every topic", "listen", clientListener.Addr())
		}
		stages = append(stages, stage{"broadcaster", b.Run}, serve("clients", clientListener, clientTLS, b.Handler(), p.log))
		checks["broadcaster"] = b.Ready
		face.broadcaster, face.identity.Auth = b, clients.Auth != "off"
	}
	if clients != nil {
		scheme := "ws://"
		if clientTLS != nil {
			scheme = "wss://"
		}
		face.identity.ClientURL = scheme + clientListener.Addr().String() + "/v1/ws"
		p.log.Info("serving clients", "url", face.identity.ClientURL)
	}
	face.expiries = expiries{"clients": clientTLS, "operators": p.opsDoor.tls}
	metrics.MustRegister(readiness(checks), face.expiries)
	if opsListener != nil && work != nil && clients != nil {
		stage, err := p.console(ctx, s, face, opsListener)
		if err != nil {
			return err
		}
		stages = append(stages, stage...)
	}
	if opsListener != nil {
		stages = append(stages, serve("ops", opsListener, p.opsDoor.tls, opsHandler(checks, metrics, p.opsDoor, face), p.log))
		scheme := "http://"
		if p.opsDoor.tls != nil {
			scheme = "https://"
		}
		p.log.Info("serving operators", "url", scheme+opsListener.Addr().String())
	}
	if spans != nil {
		stages = append(stages, stage{"spans", spans.run}) // the last to end: it takes what the others say until then
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
func serve(name string, l net.Listener, t *tls.Config, h http.Handler, log *slog.Logger) stage {
	return stage{name, func(ctx context.Context) error {
		server := newServer(h, log)
		server.TLSConfig = t
		stop := context.AfterFunc(ctx, func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
			defer cancel()
			if server.Shutdown(ctx) != nil {
				server.Close()
			}
		})
		defer stop()
		run := func() error { return server.Serve(l) }
		if t != nil {
			run = func() error { return server.ServeTLS(l, "", "") }
		}
		if err := run(); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	}}
}
