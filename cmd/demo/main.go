// Command demo is a live prediction market: people and bots trade, every trade is one Postgres transaction, and every
// screen shows it within milliseconds. The page has buttons that break things, and a line that compares itself with
// the database all the time.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/internal/services"
	"github.com/commitcast/commitcast/migrations"
	"github.com/commitcast/commitcast/outbox"
)

// options are the command line.
type options struct {
	Listen     string  `env:"COMMITCAST_DEMO_LISTEN" default:"127.0.0.1:8080" placeholder:"ADDR" help:"Address of the page (${default}). If the port is in use, the next free one."`
	Bots       int     `default:"24" help:"How many bots trade, 0 to 200 (${default})."`
	Rate       float64 `default:"40" help:"Trades a second of all bots together, 0 to 400 (${default}). The page can change it."`
	Seed       uint64  `default:"1" help:"Seed of the bots' randomness (${default})."`
	NoControls bool    `help:"Leave out the buttons that break things and the bots' rate."`
	Verbose    bool    `short:"v" help:"Log what worker and broadcaster do."`
}

const (
	// poolSize is enough for all that the demo does at once: bots wait for their market's row anyway.
	poolSize = 16
	// portsTried is how many ports are tried, from the one asked for on.
	portsTried = 50
	// pruneEvery is how often chart points are thrown away that no chart shows.
	pruneEvery = 10 * time.Minute
	// httpEndsWithin bounds the end of the HTTP server.
	httpEndsWithin = 3 * time.Second
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) == 2 && os.Args[1] == workerArg {
		os.Exit(workerMain(ctx))
	}
	var o options
	kong.Parse(&o, kong.Name("demo"),
		kong.Description("A live prediction market on Commitcast. DATABASE_URL and REDIS_URL name servers to use; by default, private ones are started."))
	if err := run(ctx, o, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// workerMain is the worker process: it ends on SIGTERM, or when the demo that started it lets go of its input.
func workerMain(ctx context.Context) int {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go untilClosed(os.Stdin, cancel) // ends with the process
	log := newLogger(os.Stderr, os.Getenv("COMMITCAST_DEMO_VERBOSE") != "")
	if err := runWorker(ctx, os.Getenv("DATABASE_URL"), os.Getenv("REDIS_URL"), log); err != nil {
		fmt.Fprintln(os.Stderr, "demo worker:", err)
		return 1
	}
	return 0
}

func newLogger(w io.Writer, verbose bool) *slog.Logger {
	level := slog.LevelWarn
	if verbose {
		level = slog.LevelInfo
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

// run is the demo, until ctx ends.
func run(ctx context.Context, o options, stdout, stderr io.Writer) error {
	if o.Bots < 0 || o.Bots > maxBots {
		return fmt.Errorf("--bots=%d: must lie between 0 and %d", o.Bots, maxBots)
	}
	if !(o.Rate >= 0 && o.Rate <= maxRate) {
		return fmt.Errorf("--rate=%v: must lie between 0 and %d", o.Rate, maxRate)
	}
	log := newLogger(stderr, o.Verbose)
	if o.Verbose {
		_ = os.Setenv("COMMITCAST_DEMO_VERBOSE", "1") // the worker process inherits it
	}
	listener, note, err := listen(o.Listen)
	if err != nil {
		return err
	}
	defer listener.Close()

	servers, err := services.Start(ctx, services.Config{Stdout: stderr, RedisOptional: true})
	if err != nil {
		return err
	}
	defer servers.Close()
	d, err := openDemo(ctx, demoConfig{
		databaseURL: servers.DatabaseURL, redisURL: servers.RedisURL, withoutRedis: servers.RedisReason,
		privateRedis: servers.Redis() != nil, bots: o.Bots, rate: o.Rate, seed: o.Seed, controls: !o.NoControls, log: log,
	})
	if err != nil {
		return err
	}
	defer d.close()

	if note != "" {
		fmt.Fprintln(stdout, note)
	}
	if servers.RedisURL == "" {
		fmt.Fprintf(stdout, "No Redis (%s): events go through the in-process stream instead, and nothing can be flushed.\n", servers.RedisReason)
	}
	if !loopback(listener.Addr()) {
		fmt.Fprintln(stdout, "Everybody who reaches this address may trade and press the buttons (--no-controls takes them away).")
	}
	fmt.Fprintf(stdout, "Commitcast demo: %s  (%d markets, %d bots, %g trades/s; Ctrl-C ends it)\n",
		pageURL(listener.Addr()), len(seedMarkets), len(d.fleet.bots), d.fleet.Rate())
	return d.run(ctx, listener)
}

// listen takes the address, or the next free port after it.
func listen(addr string) (l net.Listener, note string, err error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, "", fmt.Errorf("--listen=%s: %w", addr, err)
	}
	first, err := strconv.Atoi(port)
	if err != nil {
		return nil, "", fmt.Errorf("--listen=%s: the port must be a number", addr)
	}
	for p := first; p < first+portsTried && p <= 65535; p++ {
		l, err = net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(p)))
		if err == nil {
			if p != first {
				note = fmt.Sprintf("Port %d is in use: taking %d.", first, p)
			}
			return l, note, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return nil, "", fmt.Errorf("--listen=%s: %w", addr, err)
		}
	}
	return nil, "", fmt.Errorf("--listen=%s: ports %d to %d are all in use", addr, first, first+portsTried-1)
}

func loopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// pageURL is where a browser on this machine finds the page.
func pageURL(addr net.Addr) string {
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return "http://" + addr.String()
	}
	if ap.Addr().IsUnspecified() {
		return fmt.Sprintf("http://localhost:%d", ap.Port())
	}
	return "http://" + ap.String()
}

// demo is everything together: exchange, bots, pipeline, page.
type demo struct {
	pool   *pgxpool.Pool
	x      *exchange
	fleet  *fleet
	pipe   *pipeline
	server *server
	log    *slog.Logger
}

// demoConfig says where the servers are and how much goes on.
type demoConfig struct {
	databaseURL, redisURL, withoutRedis string
	privateRedis                        bool
	bots                                int
	rate                                float64
	seed                                uint64
	controls                            bool
	log                                 *slog.Logger
}

// openDemo brings the database up to date and connects everything; nothing moves before run.
func openDemo(ctx context.Context, cfg demoConfig) (d *demo, err error) {
	d = &demo{log: cfg.log}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if err := migrations.Up(ctx, cfg.databaseURL, cfg.log); err != nil {
		return nil, err
	}
	config, err := pgxpool.ParseConfig(cfg.databaseURL)
	if err != nil {
		return nil, fmt.Errorf("DATABASE_URL: %w", err)
	}
	config.MaxConns = poolSize
	if d.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	if d.x, err = openExchange(ctx, d.pool); err != nil {
		return nil, err
	}
	if d.fleet, err = newFleet(ctx, d.x, cfg.bots, cfg.rate, cfg.seed, cfg.log); err != nil {
		return nil, err
	}
	if d.pipe, err = openPipeline(ctx, pipelineConfig{
		databaseURL: cfg.databaseURL, redisURL: cfg.redisURL, withoutRedis: cfg.withoutRedis,
		privateRedis: cfg.privateRedis, log: cfg.log,
	}); err != nil {
		return nil, err
	}
	d.server, err = newServer(server{x: d.x, fleet: d.fleet, pipe: d.pipe, tabs: &tabs{}, controls: cfg.controls, log: cfg.log})
	return d, err
}

// run serves and trades until ctx ends or a part fails. It ends in the order of the flow: bots, worker, broadcaster,
// HTTP.
func (d *demo) run(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	web := &http.Server{
		Handler: d.server.handler(), ConnContext: d.server.tabs.remember, ReadHeaderTimeout: 5 * time.Second,
		MaxHeaderBytes: 16 << 10, IdleTimeout: time.Minute, ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
	}
	serving := make(chan struct{})
	go func() { // owned by run, which waits for serving
		defer close(serving)
		if err := web.Serve(listener{l, d.server.tabs}); !errors.Is(err, http.ErrServerClosed) {
			cancel(fmt.Errorf("serving the page: %w", err))
		}
	}()
	var trading sync.WaitGroup
	trading.Go(func() { _ = d.fleet.Run(ctx) }) // owned by run, which waits for it; ends with ctx, never before
	trading.Go(func() { d.prune(ctx) })         // owned by run, which waits for it; ends with ctx

	moving, stopMoving := context.WithCancel(context.WithoutCancel(ctx))
	defer stopMoving()
	moved := make(chan error, 1)
	go func() { moved <- d.pipe.run(moving) }() // owned by run, which reads moved

	var failure error
	select {
	case <-ctx.Done():
		failure = context.Cause(ctx)
		if errors.Is(failure, context.Canceled) {
			failure = nil
		}
		trading.Wait()
		stopMoving()
		failure = errors.Join(failure, <-moved)
	case failure = <-moved:
		cancel(failure)
		trading.Wait()
	}
	ending, done := context.WithTimeout(context.WithoutCancel(ctx), httpEndsWithin)
	defer done()
	if web.Shutdown(ending) != nil {
		_ = web.Close()
	}
	<-serving
	return failure
}

// prune drops what no chart shows any more, now and then.
func (d *demo) prune(ctx context.Context) {
	ticker := time.NewTicker(pruneEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if err := d.x.Prune(ctx); err != nil && ctx.Err() == nil {
				d.log.Warn("old chart points are kept for now", "err", err)
			}
		}
	}
}

// close releases connections, after run.
func (d *demo) close() {
	if d.pipe != nil {
		d.pipe.close()
	}
	if d.pool != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = outbox.Flush(ctx, d.pool) // its error is the time limit's
		d.pool.Close()
	}
}
