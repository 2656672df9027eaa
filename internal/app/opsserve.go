package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/internal/journal"
	"github.com/commitcast/commitcast/ops"
	"github.com/commitcast/commitcast/ops/console"
	"github.com/commitcast/commitcast/stream"
)

const (
	// consoleConns is how many sessions with the database the console takes at most: a look takes two, the live tail one now and
	// then, and River's interface one for each question of a page.
	consoleConns = 8
	// consoleBeat is the heartbeat of the console's own broadcaster: an operator sees within two that nothing is heard.
	consoleBeat = 2 * time.Second
	// consoleTabs bounds the tabs that are live.
	consoleTabs = 200
)

type opsServe struct {
	lookFlags
	Listen   string `env:"COMMITCAST_CONSOLE_LISTEN" default:"127.0.0.1:8082" placeholder:"ADDR" help:"Address of the console (${default}). One that is not loopback needs --ops-token-file or --client-ca: operators log in with that token, or a certificate."`
	TLSCert  string `name:"tls-cert" env:"COMMITCAST_CONSOLE_TLS_CERT" placeholder:"FILE" help:"Serve TLS with this certificate chain in PEM. It is read again when it has changed."`
	TLSKey   string `name:"tls-key" env:"COMMITCAST_CONSOLE_TLS_KEY" placeholder:"FILE" help:"The key of --tls-cert."`
	ClientCA string `name:"client-ca" env:"COMMITCAST_CONSOLE_CLIENT_CA" placeholder:"FILE" help:"The authority of operators' certificates, in PEM: one of these does for the token, and says who it is."`
	logFlags
}

// Run serves the console until ctx ends. Database, Redis and nodes may be down.
func (c *opsServe) Run(ctx context.Context, s *streams) error {
	log := c.logger(s)
	if c.Listen == "" {
		return usageError{errors.New("--listen is empty")}
	}
	door, err := newOpsDoor("--", c.Listen, c.OpsToken, c.TLSCert, c.TLSKey, c.ClientCA, log)
	if err != nil {
		return err
	}
	l, err := listen("--listen", c.Listen)
	if err != nil {
		return err
	}
	defer l.Close()
	sight, err := c.open(ctx, "console", consoleConns, log)
	if err != nil {
		return err
	}
	defer sight.close()
	var live stream.Stream = stream.NewMemory(stream.MemoryConfig{}) // without Redis its broadcaster polls the journal
	if sight.redis != nil {
		live = sight.redis
	} else {
		defer live.Close()
	}
	handler, stages, err := newConsole(sight.console, sight.pool, live, door, log)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ok") })
	serveConsole(mux, handler)
	scheme := "http://"
	if door.tls != nil {
		scheme = "https://"
	}
	if door.open() {
		log.Warn("no --ops-token-file and no --client-ca: everybody on this machine may act in the console", "listen", l.Addr())
	}
	log.Info("serving the console", "url", scheme+l.Addr().String()+console.Prefix)
	return runStages(ctx, log, append(stages, serve("console", l, door.tls, door.named(mux), log)))
}

// serveConsole adds the console to an ops listener.
func serveConsole(mux *http.ServeMux, handler http.Handler) {
	mux.Handle(console.Prefix, handler)
	mux.Handle("GET /{$}", http.RedirectHandler(console.Prefix, http.StatusFound))
}

// newConsole makes a console with a broadcaster of its own, which nobody else reaches: its pages are subscribers like all others.
func newConsole(look *ops.Console, pool *pgxpool.Pool, s stream.Stream, door *opsDoor, log *slog.Logger) (http.Handler, []stage, error) {
	b, err := broadcaster.New(journal.New(pool), s, broadcaster.Config{Node: "console", Heartbeat: consoleBeat, MaxConnections: consoleTabs,
		Hosts: []string{"*"}, RequireOrigin: true, Drain: time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, nil, err
	}
	server, err := console.New(look, pool, console.Config{Token: door.token, Certificates: door.tls != nil && door.tls.ClientCAs != nil,
		Live: b.Handler(), Version: buildVersion(), Logger: log})
	if err != nil {
		return nil, nil, err
	}
	return server.Handler(), []stage{{"console's broadcaster", b.Run}, {"console's sessions", server.Run}}, nil
}

// console is the one of this process, on its ops listener.
func (p *process) console(ctx context.Context, s stream.Stream, face *nodeFace, l net.Listener) ([]stage, error) {
	pool, err := openLooks(context.WithoutCancel(ctx), p.database, consoleConns) // of its own: looks do not take a client's place
	if err != nil {
		return nil, err
	}
	// This process is asked, too, while the database is away; its name for itself is good enough.
	nodes := slices.Clone(p.nodes)
	if at := p.announce(l); at != "" {
		nodes = append(nodes, at)
	}
	redis, _ := s.(*stream.Redis)
	look := ops.New(pool, redis, ops.Config{Who: "console", Token: p.opsDoor.token, Nodes: nodes, TLS: p.nodeTLS})
	handler, stages, err := newConsole(look, pool, s, p.opsDoor, p.log)
	if err != nil {
		pool.Close()
		return nil, err
	}
	if p.opsDoor.open() {
		p.log.Warn("no --ops-token-file and no --ops-client-ca: everybody on this machine may act in the console", "listen", l.Addr())
	}
	face.console = handler
	return append(stages, stage{"console's sight", func(ctx context.Context) error { // ends after what uses it
		<-ctx.Done()
		look.Close()
		pool.Close()
		return nil
	}}), nil
}
