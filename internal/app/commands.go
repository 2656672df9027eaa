package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"text/tabwriter"

	"github.com/commitcast/commitcast/migrations"
)

type migrateCommand struct {
	Up     migrateUp     `cmd:"" help:"Bring the schema to the version of this binary. Safe to run twice, and from two places at once."`
	Down   migrateDown   `cmd:"" help:"Remove the schema and every event in it."`
	Status migrateStatus `cmd:"" help:"Show the version of the schema."`
}

type migrateUp struct{ databaseFlags }

func (c *migrateUp) Run(ctx context.Context, s *streams) error {
	return migrations.Up(ctx, c.DatabaseURL, slog.New(slog.NewTextHandler(s.err, nil)))
}

type migrateDown struct {
	databaseFlags
	Yes bool `help:"Really remove it."`
}

func (c *migrateDown) Run(ctx context.Context, s *streams) error {
	if !c.Yes {
		return usageError{fmt.Errorf("migrate down removes the outbox, the journal and every event; repeat with --yes")}
	}
	return migrations.Down(ctx, c.DatabaseURL, 0, slog.New(slog.NewTextHandler(s.err, nil)))
}

type migrateStatus struct{ databaseFlags }

func (c *migrateStatus) Run(ctx context.Context, s *streams) error {
	status, err := migrations.Status(ctx, c.DatabaseURL)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, status)
	return w.Flush()
}

type workerCommand struct {
	databaseFlags
	RedisURL string `required:"" env:"REDIS_URL" placeholder:"URL" help:"Redis 7.0 or later: redis://user:password@host:6379/0, redis+sentinel://…@host:26379,…/master or redis+cluster://…@host:6379,…; rediss for TLS."`
	workerFlags
	processFlags
}

// Run runs a worker until ctx ends.
func (c *workerCommand) Run(ctx context.Context, s *streams) error {
	if c.RedisURL == "" {
		return usageError{errors.New("--redis-url is empty: a node of its own needs Redis; `commitcast all` does not")}
	}
	if err := c.checkWorker(); err != nil {
		return err
	}
	config := c.worker()
	p, err := c.process(c.DatabaseURL, c.RedisURL, c.logger(s))
	if err != nil {
		return err
	}
	return p.run(ctx, &config, nil)
}

type broadcasterCommand struct {
	databaseFlags
	RedisURL string `required:"" env:"REDIS_URL" placeholder:"URL" help:"Redis 7.0 or later: redis://user:password@host:6379/0, redis+sentinel://…@host:26379,…/master or redis+cluster://…@host:6379,…; rediss for TLS."`
	processFlags
	clientFlags
}

// Run runs a broadcaster until ctx ends.
func (c *broadcasterCommand) Run(ctx context.Context, s *streams) error {
	if c.RedisURL == "" {
		return usageError{errors.New("--redis-url is empty: a node of its own needs Redis; `commitcast all` does not")}
	}
	if err := c.check(); err != nil {
		return err
	}
	p, err := c.process(c.DatabaseURL, c.RedisURL, c.logger(s))
	if err != nil {
		return err
	}
	return p.run(ctx, nil, &c.clientFlags)
}

type allCommand struct {
	databaseFlags
	streamFlags
	workerFlags
	processFlags
	clientFlags
	nodeTLSFlags
	ConsoleNodes []string `env:"COMMITCAST_NODES" placeholder:"HOST:PORT" help:"Ops listeners that the console asks besides those that the database knows, https://HOST:PORT if they serve TLS."`
}

// Run runs a worker and a broadcaster until ctx ends.
func (c *allCommand) Run(ctx context.Context, s *streams) error {
	if err := c.check(); err != nil {
		return err
	}
	if len(c.Shards) > 0 && c.RedisURL == "" {
		return usageError{errors.New("--shard needs --redis-url: the database of a shard has workers of its own, which publish there")}
	}
	if err := c.checkWorker(); err != nil {
		return err
	}
	config := c.worker()
	p, err := c.process(c.DatabaseURL, c.RedisURL, c.logger(s))
	if err != nil {
		return err
	}
	p.nodes = c.ConsoleNodes
	if p.nodeTLS, err = c.nodeTLS(p.log); err != nil {
		return err
	}
	return p.run(ctx, &config, &c.clientFlags)
}
