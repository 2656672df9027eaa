package ops

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/user"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/migrations"
	"github.com/commitcast/commitcast/stream"
)

const (
	// lookTimeout bounds one look at the database, at Redis or at a node: long for what works, short for a person who waits.
	lookTimeout = 3 * time.Second
	// statementTimeout ends a statement that has got into something.
	statementTimeout = 30 * time.Second
	// idleTimeout bounds how long an operator whose network has gone holds a partition's row: no action waits for a person.
	idleTimeout = 5 * time.Second
	// MaxPage is how many rows one page of a list has at most.
	MaxPage = 1000
	// maxWho is the longest name of an operator in the record, in bytes.
	maxWho = 200
)

var (
	// ErrInvalid: what was asked for cannot be. Nothing was changed.
	ErrInvalid = errors.New("not possible")
	// ErrNotFound: there is no such topic, event, partition or node.
	ErrNotFound = errors.New("not found")
	// ErrConflict: it is not, or no longer, as the operator takes it to be. Nothing was changed.
	ErrConflict = errors.New("refused")
	// ErrForbidden: this role or token may not do that. Nothing was changed.
	ErrForbidden = errors.New("not allowed")
	// ErrDatabase: the database does not answer.
	ErrDatabase = errors.New("the database does not answer")
)

// Config of a Console. The zero Config works.
type Config struct {
	// Who is the operator, for the record. Default: the user and host of this process.
	Who string
	// Token is what ops listeners ask for (--ops-token-file). It goes to Nodes and to loopback only. Default none.
	Token string
	// Nodes are addresses of ops listeners, host:port, besides those that the database knows: they are asked while it is away.
	Nodes []string
	// HTTP talks to nodes. Default: a client without proxy, and with limits.
	HTTP *http.Client
}

// Console looks at a deployment, and acts on it.
type Console struct {
	cfg   Config
	pool  *pgxpool.Pool
	redis *stream.Redis
}

// New makes a Console. The pool need not be connected. redis is nil where there is none: one process, with its stream within.
func New(pool *pgxpool.Pool, redis *stream.Redis, cfg Config) *Console {
	if cfg.Who == "" {
		cfg.Who = "unknown"
		if u, err := user.Current(); err == nil {
			cfg.Who = u.Username
		}
		if host, err := os.Hostname(); err == nil {
			cfg.Who += "@" + host
		}
	}
	if len(cfg.Who) > maxWho {
		cfg.Who = cfg.Who[:maxWho]
	}
	if cfg.HTTP == nil {
		cfg.HTTP = &http.Client{Transport: &http.Transport{
			DialContext:            (&net.Dialer{Timeout: lookTimeout}).DialContext,
			MaxIdleConnsPerHost:    2,
			IdleConnTimeout:        10 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
		}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	return &Console{cfg, pool, redis}
}

// Session sets a session up for a Console: the settings of its pool, before it is made.
func Session(config *pgx.ConnConfig) {
	for name, value := range map[string]string{"application_name": "commitcast ops", "default_transaction_isolation": "read committed",
		"default_transaction_read_only": "off", "statement_timeout": strconv.FormatInt(statementTimeout.Milliseconds(), 10),
		"jit":                                 "off", // compiling takes longer than any look
		"idle_in_transaction_session_timeout": strconv.FormatInt(idleTimeout.Milliseconds(), 10),
		"tcp_user_timeout":                    strconv.FormatInt(idleTimeout.Milliseconds(), 10),
		"tcp_keepalives_idle":                 "1", "tcp_keepalives_interval": "1", "tcp_keepalives_count": "3",
	} {
		config.RuntimeParams[name] = value
	}
}

// Close gives up connections to nodes. Pool and stream are the caller's.
func (c *Console) Close() { c.cfg.HTTP.CloseIdleConnections() }

// Who is the operator, as recorded.
func (c *Console) Who() string { return c.cfg.Who }

// ready says whether the schema is one that this program knows. Asked before anything is changed, and for what reads more than
// a look does.
func (c *Console) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	return wrap("looking at the schema", migrations.Check(ctx, c.pool))
}

// wrap says what was being done, and tells apart what the operator can do about it.
func wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	var pg *pgconn.PgError
	switch {
	case errors.Is(err, ErrInvalid), errors.Is(err, ErrNotFound), errors.Is(err, ErrConflict), errors.Is(err, ErrForbidden), errors.Is(err, ErrDatabase):
		return err
	case errors.As(err, &pg) && pg.Code == "42501":
		return fmt.Errorf("%w: %s: the database says: %s; use a role that may (commitcast_operator)", ErrForbidden, doing, pg.Message)
	case errors.As(err, &pg) && pg.Code == "25006":
		return fmt.Errorf("%w: %s: this is a replica; give the address of the primary", ErrInvalid, doing)
	case errors.As(err, &pg) && pg.Code == "22023":
		return fmt.Errorf("%w: %s", ErrInvalid, pg.Message)
	case errors.As(err, &pg) && pg.Code[:2] != "08" && pg.Code[:2] != "57":
		return fmt.Errorf("%s: %w", doing, err)
	case errors.Is(err, migrations.ErrNotMigrated), errors.Is(err, migrations.ErrOutdated), errors.Is(err, migrations.ErrNewerSchema):
		return err
	}
	return fmt.Errorf("%w: %s: %w", ErrDatabase, doing, err)
}

// page holds a limit to what one page may have.
func page(limit int) int {
	if limit <= 0 || limit > MaxPage {
		return MaxPage
	}
	return limit
}
