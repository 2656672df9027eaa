package stream

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
)

// Defaults of RedisConfig.
const (
	// DefaultMaxAge keeps a topic's events for replay this long after its last one.
	DefaultMaxAge = time.Hour
	// DefaultTimeout is long against a Redis that works and short against a person who waits.
	DefaultTimeout = 2 * time.Second
	// DefaultProbeTimeout is three ticks: one may be lost or late.
	DefaultProbeTimeout = 3 * time.Second
)

// tickLimit bounds one Tick: so much after it at the latest comes the next one, a second or so later, well within
// DefaultProbeTimeout.
const tickLimit = time.Second

// RedisConfig tunes a [Redis]. The zero value works.
type RedisConfig struct {
	// MaxLen is how many events of a topic are kept, at least (Redis trims whole nodes of about 100). Default
	// DefaultMaxLen. Too small: slow subscribers are served from the journal. Too big: memory in Redis.
	MaxLen int
	// MaxAge is how long after its last event a topic is dropped from Redis. Default DefaultMaxAge. Too small:
	// replays come from the journal. Too big: idle topics cost memory in Redis.
	MaxAge time.Duration
	// Timeout bounds connecting, and one read or write of a command. Default DefaultTimeout. Too small: a busy Redis
	// looks down. Too big: a dead one holds publishers up.
	Timeout time.Duration
	// ProbeTimeout is how long a subscription may hear no tick before it is rebuilt; see [Redis.NewSubscription].
	// Default DefaultProbeTimeout. It must be well above the interval of ticks, about 1 s. Too small: rebuilds
	// without need. Too big: losses are noticed late.
	ProbeTimeout time.Duration
	// TLS replaces the TLS configuration of a rediss URL: for a private authority or a client certificate. Ignored
	// for other URLs.
	TLS *tls.Config
	// Logger gets what operators should know. Default slog.Default().
	Logger *slog.Logger
	// Registerer gets the metrics. Default none.
	Registerer prometheus.Registerer
}

// Redis is the stream over Redis 7.0 or later: one server, a master with replicas that Sentinels watch, or a cluster.
//
// Commands are not repeated here: when a reply is lost, the caller learns that the outcome is unknown and repeats
// with Announce. (In a cluster go-redis repeats up to three times what a moved slot or a broken connection has kept from
// being answered. A run that was taken is then a Duplicate, announced before: one script stores and announces.) Messages of
// one topic arrive in the order they were published.
type Redis struct {
	kind    string // of the URL: "", "sentinel" or "cluster"
	servers servers
	client  redis.UniversalClient
	options *redis.Options // how to connect, and where if there is one server; never logged
	where   string
	cfg     RedisConfig
	metrics *metrics
	log     *slog.Logger

	checked atomic.Bool // the version was read and is new enough
}

var _ Stream = (*Redis)(nil)

// NewRedis prepares a stream on the servers that url names:
//
//	redis://[user:password@]host[:port][/database]                      one server
//	redis+sentinel://[user:password@]host[:port],…/master[/database]    the master that these Sentinels know by that name
//	redis+cluster://[user:password@]host[:port],…                       a cluster, of which these are some nodes
//	unix://[user:password@]/path/to/socket
//
// rediss instead of redis is TLS, with Sentinels too; user and password are those of the servers, and ?sentinel_username=
// and &sentinel_password= those of Sentinels.
//
// It fails on a URL that it cannot use, on a server older than 7.0 (ErrRedisTooOld), on one that is of another kind than the URL
// says, and on one that refuses the password (ErrRefused). A server that cannot be reached now is no error: it is logged, and asked again when it is
// used, so that a process may start while Redis is down. No error and no log line holds the URL or its password.
//
// What go-redis itself has to say, it says for the whole process; it goes to the Logger of the newest Redis, as debug.
func NewRedis(ctx context.Context, url string, cfg RedisConfig) (*Redis, error) {
	if cfg.MaxLen <= 0 {
		cfg.MaxLen = DefaultMaxLen
	}
	if cfg.MaxAge <= 0 {
		cfg.MaxAge = DefaultMaxAge
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.ProbeTimeout <= 0 {
		cfg.ProbeTimeout = DefaultProbeTimeout
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	u, err := parseRedisURL(url)
	if err != nil {
		return nil, err
	}
	redis.SetLogger(driverLog{cfg.Logger})
	opts := u.prepare(cfg)
	r := &Redis{
		kind:    u.kind,
		servers: u.open(opts),
		options: opts,
		where:   u.where(),
		cfg:     cfg,
		metrics: newMetrics(cfg.Registerer),
		log:     cfg.Logger.With("redis", u.where()),
	}
	r.client = r.servers.client()
	switch err := r.checkVersion(ctx); {
	case err == nil:
	case errors.Is(err, ErrRedisTooOld), errors.Is(err, ErrRefused):
		r.client.Close()
		return nil, err
	default:
		r.log.Warn("redis cannot be used yet; it will be asked again", "error", err)
	}
	return r, nil
}

// driverLog takes the log lines of go-redis. They repeat what its errors say.
type driverLog struct{ log *slog.Logger }

func (l driverLog) Printf(ctx context.Context, format string, args ...any) {
	if l.log.Enabled(ctx, slog.LevelDebug) {
		l.log.DebugContext(ctx, "go-redis: "+fmt.Sprintf(format, args...))
	}
}

// checkVersion asks the servers for their version until one has been answered and none is too old.
func (r *Redis) checkVersion(ctx context.Context) error {
	if r.checked.Load() {
		return nil
	}
	var answered atomic.Bool
	err := r.servers.each(ctx, func(ctx context.Context, master *redis.Client) error {
		info, err := master.Info(ctx, "server").Result()
		if err == nil {
			if err = r.checkInfo(info); err == nil {
				answered.Store(true)
			}
		}
		return err
	})
	switch {
	case errors.Is(err, ErrRedisTooOld), errors.Is(err, ErrRefused):
		return err
	case answered.Load():
		r.checked.Store(true)
		return nil
	case err == nil:
		err = errors.New("the cluster has no masters")
	}
	if redis.IsAuthError(err) || redis.IsPermissionError(err) || errors.As(err, new(*tls.CertificateVerificationError)) {
		return fmt.Errorf("read the version of redis: %w: %w: %w", ErrUnavailable, ErrRefused, err)
	}
	if text := err.Error(); strings.Contains(text, "cluster support disabled") {
		return fmt.Errorf("%w: %w: %s is no cluster: use redis://", ErrUnavailable, ErrRefused, r.where)
	}
	return unavailable("read the version of redis", err)
}

// checkInfo reads what a server says of itself.
func (r *Redis) checkInfo(info string) error {
	said := map[string]string{"redis_version": "unknown"}
	for line := range strings.Lines(info) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			said[name] = value
		}
	}
	// Valkey says with which Redis it is compatible as redis_version, and its mode as server_mode.
	version := said["redis_version"]
	major, _, _ := strings.Cut(version, ".")
	if n, err := strconv.Atoi(major); err != nil || n < 7 {
		return fmt.Errorf("%w: %w: %s reports version %s; Commitcast needs 7.0 or later",
			ErrUnavailable, ErrRedisTooOld, r.where, version)
	}
	if mode := cmp.Or(said["redis_mode"], said["server_mode"]); r.kind == "" && (mode == "cluster" || mode == "sentinel") {
		return fmt.Errorf("%w: %w: %s is a %s: use redis+%s://", ErrUnavailable, ErrRefused, r.where,
			map[string]string{"cluster": "node of a cluster", "sentinel": "Sentinel"}[mode], mode)
	}
	return nil
}

// Ping implements [Stream]. Of a cluster one master is enough: the partitions of another one that is away find that out
// themselves, and must not hold up the rest.
func (r *Redis) Ping(ctx context.Context) error {
	if err := r.checkVersion(ctx); err != nil {
		return err
	}
	var answered atomic.Bool
	err := r.servers.each(ctx, func(ctx context.Context, master *redis.Client) error {
		err := master.Ping(ctx).Err()
		if err == nil {
			answered.Store(true)
		}
		return err
	})
	if !answered.Load() {
		return unavailable("ping redis", cmp.Or(err, errNoReply))
	}
	return nil
}

// Tick implements [Stream]. In a cluster each partition has a tick of its own, and those of a master that is away do not hold
// up the others for longer than tickLimit.
func (r *Redis) Tick(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, tickLimit)
	defer cancel()
	pipe := r.client.Pipeline()
	for lane := range r.servers.lanes() {
		pipe.SPublish(ctx, tickKey(lane), messageVersion)
	}
	cmds, err := pipe.Exec(ctx)
	for _, cmd := range cmds {
		if cmd.Err() != nil {
			return unavailable("tick through redis on "+tickKey(0), cmd.Err())
		}
	}
	if err != nil {
		return unavailable("tick through redis on "+tickKey(0), err)
	}
	return nil
}

// Close implements [Stream].
func (r *Redis) Close() error { return r.client.Close() }
