package app

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/ops"
	"github.com/commitcast/commitcast/stream"
)

// opsCommand are the tools of operators: in the order in which somebody who is woken up needs them.
type opsCommand struct {
	Status     opsStatus     `cmd:"" help:"Is it us? Every hop from writers to subscribers: rate, what waits, since when. Answers with Redis or Postgres down."`
	Stuck      opsStuck      `cmd:"" help:"Where is it stuck, why, since when, who is affected, and the command that helps."`
	Topics     opsTopics     `cmd:"" help:"Topics, by name or those that are behind."`
	Topic      opsTopic      `cmd:"" help:"One topic at every hop: head, retained range, what Redis holds, subscribers on each node."`
	Tail       opsTail       `cmd:"" help:"Follow a topic's journal."`
	Trace      opsTrace      `cmd:"" help:"Where one event has been, and what cannot be known."`
	Dead       opsDead       `cmd:"" help:"Dead letters."`
	Redrive    opsRedrive    `cmd:"" help:"Publish what Redis lacks of a topic that is set aside, or a range again, in order."`
	Pause      opsPause      `cmd:"" help:"Stop a partition: committed events wait in the outbox."`
	Resume     opsResume     `cmd:"" help:"End a pause."`
	Park       opsPark       `cmd:"" help:"Set a topic aside: its subscribers are served from the journal."`
	Release    opsRelease    `cmd:"" help:"End the setting aside of a topic."`
	Clients    opsClients    `cmd:"" help:"Connected clients, by node."`
	Drain      opsDrain      `cmd:"" help:"Send a broadcaster's clients elsewhere, and let it take no more."`
	Disconnect opsDisconnect `cmd:"" help:"Close the connections of the subject of a token, on every node. They may come back."`
	Epoch      opsEpoch      `cmd:"" help:"The histories of this database."`
	Audit      opsAudit      `cmd:"" help:"What operators did."`
	Doctor     opsDoctor     `cmd:"" help:"Check a deployment, before and during use, and say what to change. It appends an event of the topic commitcast/canary, unless --no-event."`
}

// opsFlags are those of every command.
type opsFlags struct {
	databaseFlags
	streamFlags
	Node     []string `env:"COMMITCAST_NODES" placeholder:"HOST:PORT" help:"Ops listeners besides those that the database knows: they are asked even while it is down, and get the token."`
	OpsToken string   `name:"ops-token-file" env:"COMMITCAST_OPS_TOKEN_FILE" placeholder:"FILE" help:"The token of ops listeners: it goes to those named with --node, and to this machine, only."`
	Operator string   `env:"COMMITCAST_OPERATOR" placeholder:"NAME" help:"Who you are, for the record (user@host)."`
	JSON     bool     `name:"json" help:"JSON instead of tables."`
}

// actFlags are those of commands that change something.
type actFlags struct {
	DryRun bool `help:"Say what would be done, and do nothing."`
	Yes    bool `short:"y" help:"Do not ask."`
}

// console opens what there is. Nothing need answer yet.
func (f *opsFlags) console(ctx context.Context) (*ops.Console, func(), error) {
	if f.DatabaseURL == "" {
		return nil, nil, usageError{errors.New("--database-url is empty")}
	}
	config, err := pgxpool.ParseConfig(f.DatabaseURL)
	if err != nil {
		return nil, nil, fmt.Errorf("--database-url: %w", err)
	}
	ops.Session(config.ConnConfig)
	config.MaxConns = 4
	if config.ConnConfig.ConnectTimeout == 0 || config.ConnConfig.ConnectTimeout > openTimeout {
		config.ConnConfig.ConnectTimeout = openTimeout
	}
	token := ""
	if f.OpsToken != "" {
		text, err := readSmall(f.OpsToken)
		if err != nil {
			return nil, nil, usageError{fmt.Errorf("--ops-token-file=%s: %w", f.OpsToken, err)}
		}
		token = strings.TrimSpace(string(text))
	}
	for i, n := range f.Node {
		f.Node[i] = strings.TrimSuffix(strings.TrimPrefix(n, "http://"), "/")
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, nil, fmt.Errorf("database: %w", err)
	}
	var redis *stream.Redis
	if f.RedisURL != "" {
		octx, cancel := context.WithTimeout(ctx, openTimeout)
		redis, err = stream.NewRedis(octx, f.RedisURL, stream.RedisConfig{Logger: slog.New(slog.DiscardHandler)})
		cancel()
		if err != nil {
			pool.Close()
			return nil, nil, fmt.Errorf("redis: %w", err)
		}
	}
	c := ops.New(pool, redis, ops.Config{Who: f.Operator, Token: token, Nodes: f.Node})
	return c, func() {
		c.Close()
		if redis != nil {
			redis.Close()
		}
		pool.Close()
	}, nil
}

// with runs a command with a console.
func (f *opsFlags) with(ctx context.Context, do func(c *ops.Console) error) error {
	c, done, err := f.console(ctx)
	if err != nil {
		return err
	}
	defer done()
	return do(c)
}

// show prints what was found: as JSON, or as a person reads it.
func (f *opsFlags) show(s *streams, v any, person func(p *page)) error {
	if f.JSON {
		e := json.NewEncoder(s.out)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(v)
	}
	person(newPage(s.out))
	return nil
}

// errNotConfirmed: the operator has thought better of it.
var errNotConfirmed = fmt.Errorf("%w: not confirmed; nothing was changed", ops.ErrConflict)

// confirm says what is about to be done and asks. False without an error: it was a dry run.
func (f *actFlags) confirm(s *streams, in io.Reader, what string) (bool, error) {
	what = visible(what)
	if f.DryRun {
		fmt.Fprintf(s.err, "would %s; nothing was changed\n", what)
		return false, nil
	}
	if f.Yes {
		return true, nil
	}
	if !isTerminal(in) {
		return false, usageError{fmt.Errorf("this would %s; repeat with --yes, since there is nobody to ask", what)}
	}
	fmt.Fprintf(s.err, "About to %s.\nGo on? [y/N] ", what)
	text, _ := bufio.NewReader(in).ReadString('\n')
	if a := strings.ToLower(strings.TrimSpace(text)); a != "y" && a != "yes" {
		return false, errNotConfirmed
	}
	return true, nil
}

// act confirms, does, and says so.
func (f *actFlags) act(s *streams, what string, do func() (said string, err error)) error {
	if ok, err := f.confirm(s, os.Stdin, what); err != nil || !ok {
		return err
	}
	said, err := do()
	if err != nil {
		return err
	}
	for line := range strings.Lines(said) {
		fmt.Fprintln(s.out, visible(strings.TrimSuffix(line, "\n")))
	}
	return nil
}

// byLevel is the exit code of what was found.
func byLevel(l ops.Level) error {
	switch l {
	case ops.Good:
		return nil
	case ops.Warning:
		return exitCode(exitWarning)
	}
	return exitCode(exitProblem)
}
