package ops

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"sync"
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
	// Nodes are addresses of ops listeners, host:port or https://host:port, besides those that the database knows: they are asked
	// while it is away. One that is named with https is not asked without, whatever its sessions say.
	Nodes []string
	// TLS is how ops listeners that serve TLS are spoken to. Default: their certificates are from an authority of the system.
	TLS *tls.Config
	// HTTP talks to nodes. Default: a client without proxy, with limits, and with TLS.
	HTTP *http.Client
}

// Console looks at a deployment, and acts on it.
type Console struct {
	cfg   Config
	pool  *pgxpool.Pool
	redis *stream.Redis
	why   string // of what it does, for the record
	known *known
}

// known are the addresses that the database knew when it last answered: they are asked while it does not.
type known struct {
	mu        sync.Mutex
	addresses []string
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
	cfg.Who = whole(cfg.Who)
	cfg.Nodes = slices.Clone(cfg.Nodes)
	for i, n := range cfg.Nodes {
		cfg.Nodes[i] = strings.TrimSuffix(strings.TrimPrefix(n, "http://"), "/")
	}
	if cfg.HTTP == nil {
		cfg.HTTP = &http.Client{Transport: &http.Transport{
			DialContext:            (&net.Dialer{Timeout: lookTimeout}).DialContext,
			TLSClientConfig:        cfg.TLS,
			TLSHandshakeTimeout:    lookTimeout,
			MaxIdleConnsPerHost:    2,
			IdleConnTimeout:        10 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
		}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	return &Console{cfg: cfg, pool: pool, redis: redis, known: &known{}}
}

// whole is a name that fits into the record.
func whole(who string) string {
	if len(who) > maxWho {
		who = strings.ToValidUTF8(who[:maxWho], "")
	}
	return who
}

// As is the same Console in the name of an operator, with what it does recorded for a reason, if there is one.
func (c *Console) As(who, why string) *Console {
	as := *c
	if who != "" {
		as.cfg.Who = whole(who)
	}
	as.why = clip(why)
	return &as
}

// May is what the role of this Console may do in the database.
type May struct {
	Act  bool `json:"act"`  // what operators order
	Jobs bool `json:"jobs"` // change River's jobs
}

// May asks what this role may do.
func (c *Console) May(ctx context.Context) (m May, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	if err := c.ready(ctx); err != nil {
		return m, err
	}
	err = c.pool.QueryRow(ctx, `SELECT has_function_privilege('commitcast.pause_partition(smallint,text,text)', 'EXECUTE') AND has_any_column_privilege('commitcast.audit', 'INSERT'),
		has_table_privilege('commitcast.river_job', 'UPDATE') AND has_any_column_privilege('commitcast.audit', 'INSERT')`).Scan(&m.Act, &m.Jobs)
	return m, wrap("asking for rights", err)
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
	migrations.Mark(&config.Config)
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
