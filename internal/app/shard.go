package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/commitcast/commitcast/auth"
	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/internal/journal"
	poolmetrics "github.com/commitcast/commitcast/internal/pool"
	"github.com/commitcast/commitcast/ops"
	"github.com/commitcast/commitcast/wire"
)

// shard is a --shard: a further database, and the topics that it holds.
type shard struct {
	topics []string // patterns
	url    string
}

// parseShards reads the flags; those of one URL are one shard if nothing comes between them. No error quotes what may hold a
// password.
func parseShards(flags []string) (shards []shard, err error) {
	bad := func(n int, why error) ([]shard, error) {
		return nil, usageError{fmt.Errorf("--shard, number %d: %w", n+1, why)}
	}
	var before []auth.Pattern
	for i, flag := range flags {
		pattern, url, ok := strings.Cut(flag, "=")
		if !ok {
			return bad(i, errors.New("want PATTERN=URL, like 'orders:*=postgres://user:password@host:5432/db'"))
		}
		p, err := auth.ParsePattern(pattern)
		switch {
		case err != nil:
			return bad(i, fmt.Errorf("before the first = comes a pattern of topics, like orders:*: %w", errors.Unwrap(err)))
		case !p.Covers(p):
			return bad(i, errors.New("{claim} is for tokens; a shard holds a topic for everybody"))
		case p.Match(ops.CanaryTopic):
			return bad(i, fmt.Errorf("%q holds the topic %s, which belongs to --database-url, as do all topics that have no --shard", pattern, ops.CanaryTopic))
		case !strings.HasPrefix(url, "postgres://") && !strings.HasPrefix(url, "postgresql://"):
			return bad(i, fmt.Errorf("after %q comes postgres://user:password@host:5432/db", pattern+"="))
		}
		for _, q := range before {
			if q.Covers(p) {
				return bad(i, fmt.Errorf("%q is never looked at, since every topic of it is one of %q before it; put the narrower pattern first", pattern, q))
			}
		}
		before = append(before, p)
		if last := len(shards) - 1; last >= 0 && shards[last].url == url {
			shards[last].topics = append(shards[last].topics, pattern)
		} else {
			shards = append(shards, shard{[]string{pattern}, url})
		}
	}
	return shards, nil
}

// openShards connects to the databases of --shard. One that cannot be reached now is looked at later: others are served meanwhile.
// The caller closes the pools, also those that come with an error.
func openShards(ctx context.Context, shards []shard, log *slog.Logger, metrics prometheus.Registerer) (open []broadcaster.Shard, pools []*pgxpool.Pool, err error) {
	for i, sh := range shards {
		name := strings.Join(sh.topics, ",")
		pool, err := newPool(ctx, sh.url)
		if err != nil {
			return nil, pools, usageError{fmt.Errorf("--shard %s: its URL cannot be read: want postgres://user:password@host:5432/db", name)} // the cause may quote a password
		}
		pools = append(pools, pool)
		sessions := poolmetrics.NewCollector(fmt.Sprintf("shard%d", i+1))
		sessions.Watch(pool)
		metrics.MustRegister(sessions)
		late := &lateJournal{Reader: journal.New(pool), check: func(ctx context.Context) error { return checkDatabase(ctx, pool) }}
		if err := late.look(ctx); err != nil && unreachable(err) {
			log.Warn("a database cannot be reached; its topics are served when it can", "shard", name, "error", err)
		} else if err != nil {
			return nil, pools, fmt.Errorf("--shard %s: %w", name, err)
		}
		open = append(open, broadcaster.Shard{Topics: sh.topics, Journal: late})
	}
	return open, pools, nil
}

// unreachable reports whether a database may come by itself: nobody answered, or the server is starting, stopping or full.
func unreachable(err error) bool {
	var said *pgconn.PgError
	if errors.As(err, &said) {
		return strings.HasPrefix(said.Code, "57P") || strings.HasPrefix(said.Code, "53")
	}
	return errors.As(err, new(*pgconn.ConnectError)) || errors.Is(err, context.DeadlineExceeded)
}

// lateJournal is the journal of a database that may have to be looked at first: nothing is asked of it before Seqs has told its epoch.
type lateJournal struct {
	*journal.Reader
	check func(ctx context.Context) error

	mu   sync.Mutex
	good bool
}

// look checks the database, unless that was done.
func (j *lateJournal) look(ctx context.Context) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.good {
		return nil
	}
	err := j.check(ctx)
	j.good = err == nil
	return err
}

// Seqs implements [broadcaster.Journal].
func (j *lateJournal) Seqs(ctx context.Context) (epoch string, seqs [wire.Partitions]int64, err error) {
	if err := j.look(ctx); err != nil {
		return "", seqs, err
	}
	return j.Reader.Seqs(ctx)
}
