package app

import (
	"bufio"
	"context"
	"crypto/tls"
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
	Serve      opsServe      `cmd:"" help:"Serve the console: all of this in a browser."`
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
	Capacity   opsCapacity   `cmd:"" help:"How many workers, broadcasters and shards of Redis a load takes, what of Postgres, memory and network, and by which numbers. Asks nobody."`
	Doctor     opsDoctor     `cmd:"" help:"Check a deployment, before and during use, and say what to change. It appends an event of the topic commitcast/canary, unless --no-event."`
}

// lookFlags say what there is to look at.
type lookFlags struct {
	databaseFlags
	streamFlags
	redisTLSFlags
	nodeTLSFlags
	Node     []string `env:"COMMITCAST_NODES" placeholder:"HOST:PORT" help:"Ops listeners besides those that the database knows, https://HOST:PORT if they serve TLS: they are asked even while it is down, and get the token."`
	OpsToken string   `name:"ops-token-file" env:"COMMITCAST_OPS_TOKEN_FILE" placeholder:"FILE" help:"The token of ops listeners: it goes to those named with --node, and to this machine, only."`
}

// opsFlags are those of every command.
type opsFlags struct {
	lookFlags
	Operator string `env:"COMMITCAST_OPERATOR" placeholder:"NAME" help:"Who you are, for the record (user@host)."`
	JSON     bool   `name:"json" help:"JSON instead of tables."`
}

// nodeTLSFlags say how ops listeners that serve TLS are spoken to.
type nodeTLSFlags struct {
	NodeCA   string `name:"node-ca" env:"COMMITCAST_NODE_CA" placeholder:"FILE" help:"The authority that certificates of ops listeners are from, in PEM (those of the system)."`
	NodeCert string `name:"node-cert" env:"COMMITCAST_NODE_CERT" placeholder:"FILE" help:"A certificate in PEM to show to ops listeners (their --ops-client-ca). It is read again when it has changed."`
	NodeKey  string `name:"node-key" env:"COMMITCAST_NODE_KEY" placeholder:"FILE" help:"The key of --node-cert."`
}

// nodeTLS is how ops listeners are spoken to.
func (f *nodeTLSFlags) nodeTLS(log *slog.Logger) (*tls.Config, error) {
	if (f.NodeCert == "") != (f.NodeKey == "") {
		return nil, usageError{errors.New("--node-cert and --node-key go together")}
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.NodeCA != "" {
		pool, err := readAuthority(f.NodeCA)
		if err != nil {
			return nil, usageError{fmt.Errorf("--node-ca=%s: %w", f.NodeCA, err)}
		}
		config.RootCAs = pool
	}
	if f.NodeCert != "" {
		c, err := openCertificate(f.NodeCert, f.NodeKey, log)
		if err != nil {
			return nil, usageError{fmt.Errorf("--node-cert, --node-key: %w", err)}
		}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.get(nil) }
	}
	return config, nil
}

// sight is what lookFlags open. Nothing need answer yet.
type sight struct {
	pool    *pgxpool.Pool
	redis   *stream.Redis // nil: none is named
	console *ops.Console
	token   string
}

func (s *sight) close() {
	s.console.Close()
	if s.redis != nil {
		s.redis.Close()
	}
	s.pool.Close()
}

// actFlags are those of commands that change something.
type actFlags struct {
	DryRun bool `help:"Say what would be done, and do nothing."`
	Yes    bool `short:"y" help:"Do not ask."`
}

// open opens what there is. who is the operator; "" is the user of this process.
func (f *lookFlags) open(ctx context.Context, who string, conns int32, log *slog.Logger) (*sight, error) {
	s := new(sight)
	if f.OpsToken != "" {
		text, err := readSmall(f.OpsToken)
		if err != nil {
			return nil, usageError{fmt.Errorf("--ops-token-file=%s: %w", f.OpsToken, err)}
		}
		s.token = strings.TrimSpace(string(text))
	}
	secure, err := f.nodeTLS(log)
	if err != nil {
		return nil, err
	}
	redisTLS, err := f.redisTLS(f.RedisURL, log)
	if err != nil {
		return nil, err
	}
	if s.pool, err = openLooks(ctx, f.DatabaseURL, conns); err != nil {
		return nil, err
	}
	if f.RedisURL != "" {
		octx, cancel := context.WithTimeout(ctx, openTimeout)
		s.redis, err = stream.NewRedis(octx, f.RedisURL, stream.RedisConfig{TLS: redisTLS, Logger: slog.New(slog.DiscardHandler)})
		cancel()
		if err != nil {
			s.pool.Close()
			return nil, fmt.Errorf("redis: %w", err)
		}
	}
	s.console = ops.New(s.pool, s.redis, ops.Config{Who: who, Token: s.token, Nodes: f.Node, TLS: secure})
	return s, nil
}

// openLooks makes a pool for a Console. It is not connected yet.
func openLooks(ctx context.Context, url string, conns int32) (*pgxpool.Pool, error) {
	if url == "" {
		return nil, usageError{errors.New("--database-url is empty")}
	}
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("--database-url: %w", err)
	}
	ops.Session(config.ConnConfig)
	config.MaxConns = conns
	if config.ConnConfig.ConnectTimeout == 0 || config.ConnConfig.ConnectTimeout > openTimeout {
		config.ConnConfig.ConnectTimeout = openTimeout
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	return pool, nil
}

// lookConns is how many sessions with the database one command takes at most.
const lookConns = 4

// with runs a command with a console.
func (f *opsFlags) with(ctx context.Context, do func(c *ops.Console) error) error {
	s, err := f.open(ctx, f.Operator, lookConns, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer s.close()
	return do(s.console)
}

// show prints what was found: as JSON, or as a person reads it.
func (f *opsFlags) show(s *streams, v any, person func(p *page)) error {
	return show(s, f.JSON, v, person)
}

func show(s *streams, asJSON bool, v any, person func(p *page)) error {
	if asJSON {
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

// order looks, confirms, does, and says what came of it.
func (f *opsFlags) order(ctx context.Context, s *streams, act *actFlags, o ops.Order) error {
	return f.with(ctx, func(console *ops.Console) error {
		p, err := console.Propose(ctx, o)
		if err != nil {
			return err
		}
		if ok, err := act.confirm(s, os.Stdin, p.What); err != nil || !ok {
			return err
		}
		out, err := console.Carry(ctx, p) // with an error, a part may be done
		tell(s, out.Says)
		return err
	})
}

// tell prints what came of an order, line by line.
func tell(s *streams, said string) {
	for line := range strings.Lines(said) {
		fmt.Fprintln(s.out, visible(strings.TrimSuffix(line, "\n")))
	}
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
