package migrations

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ErrPooled: a pooler that shares sessions, or drops their settings, answers in the place of Postgres. Workers and broadcasters hold
// locks of sessions, listen in them, and bound by their settings how long a lost one counts; two who share one would be taken
// for each other.
var ErrPooled = errors.New("a pooler is in the way")

// mark is a setting that sessions bring along when they begin. Only a server that the session itself began with knows it.
const mark = "commitcast.direct"

// Mark has the sessions of a configuration bring a mark along, by which [CheckDirect] knows whether they are with Postgres
// itself. Call it before the first connects.
func Mark(cfg *pgconn.Config) {
	if cfg.RuntimeParams == nil {
		cfg.RuntimeParams = make(map[string]string)
	}
	cfg.RuntimeParams[mark] = rand.Text()
}

// CheckDirect asks a session with a mark whether it is with Postgres itself: nil, or an [ErrPooled] that says what to change. A
// pooler in session mode that passes all settings on is as good. Without a mark it says nil.
func CheckDirect(ctx context.Context, conn *pgx.Conn) error {
	cfg := conn.Config()
	want := cfg.RuntimeParams[mark]
	if want == "" {
		return nil // it cannot be told
	}
	var got *string
	// Without a prepared statement that has a name: it would be the first thing that fails behind such a pooler.
	if err := conn.QueryRow(ctx, `SELECT current_setting('`+mark+`', true)`, pgx.QueryExecModeExec).Scan(&got); err != nil {
		return stepError("asking whether a pooler is in the way", err)
	}
	if got == nil || *got != want {
		return pooled(cfg.Host, cfg.Port, "the settings of a session do not arrive at the server")
	}
	return nil
}

// PooledError is the [ErrPooled] that is behind a failed attempt to connect; or nil.
func PooledError(err error) error {
	var pg *pgconn.PgError
	var connect *pgconn.ConnectError
	if !errors.As(err, &pg) || !errors.As(err, &connect) || pg.Code != "08P01" || !strings.Contains(pg.Message, "startup parameter") {
		return nil
	}
	return pooled(connect.Config.Host, connect.Config.Port, pg.Message)
}

func pooled(host string, port uint16, why string) error {
	return fmt.Errorf("%w at host %s port %d (%s): give --database-url the address of Postgres itself; only applications may go through a pooler", ErrPooled, host, port, why)
}
