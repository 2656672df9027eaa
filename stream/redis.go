package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
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

// Redis is the stream over Redis 7.0 or later. One standalone server works today; names and commands are those a
// cluster needs.
//
// Commands are never repeated here: when a reply is lost, the caller learns that the outcome is unknown and repeats
// with Announce. Messages of one topic arrive in the order they were published, since one script stores and announces.
type Redis struct {
	client  redis.UniversalClient
	options *redis.Options // where and how to connect; never logged
	cfg     RedisConfig
	metrics *metrics
	log     *slog.Logger

	checked atomic.Bool // the version was read and is new enough
}

var _ Stream = (*Redis)(nil)

// NewRedis prepares a stream on the server that url names: redis://[user:password@]host[:port][/database], rediss://
// for TLS, or unix://[user:password@]/path/to/socket.
//
// It fails on a URL that it cannot use, on a server older than 7.0 (ErrRedisTooOld), and on one that refuses the
// password (ErrRefused). A server that cannot be reached now is no error: it is logged, and asked again when it is
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
	opts, err := redisOptions(url, cfg)
	if err != nil {
		return nil, err
	}
	redis.SetLogger(driverLog{cfg.Logger})
	r := &Redis{
		client:  redis.NewClient(opts),
		options: opts,
		cfg:     cfg,
		metrics: newMetrics(cfg.Registerer),
		log:     cfg.Logger.With("redis", opts.Addr),
	}
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

// redisOptions reads the URL. Cluster and Sentinel would get schemes of their own here, and a client of their own in
// NewRedis. Errors tell nothing of the URL: a password with an unescaped slash or at sign ends up in any part of it.
func redisOptions(rawURL string, cfg RedisConfig) (*redis.Options, error) {
	scheme, _, ok := strings.Cut(rawURL, "://")
	switch {
	case ok && (scheme == "redis" || scheme == "rediss" || scheme == "unix"):
	case ok && (strings.Contains(scheme, "cluster") || strings.Contains(scheme, "sentinel")) && len(scheme) < 20:
		return nil, fmt.Errorf("stream: redis URL: scheme %s is not supported yet; use redis:// or rediss://", scheme)
	default:
		return nil, errors.New("stream: redis URL must begin with redis://, rediss:// or unix://")
	}
	opts, err := redis.ParseURL(rawURL)
	if u, perr := url.Parse(rawURL); err != nil || perr != nil || u.Fragment != "" {
		return nil, errors.New("stream: redis URL is not redis://[user:password@]host[:port][/database]; " +
			"special characters in a password must be percent-encoded")
	}
	if opts.TLSConfig != nil && cfg.TLS != nil {
		tlsConfig := cfg.TLS.Clone()
		if tlsConfig.ServerName == "" {
			tlsConfig.ServerName = opts.TLSConfig.ServerName
		}
		opts.TLSConfig = tlsConfig
	}
	opts.Protocol = 2 // plain replies; nothing here needs pushes
	opts.DisableIdentity = true
	opts.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	opts.MaxRetries = -1 // a lost reply is unknown, not a reason to do it twice
	opts.DialerRetries = 1
	opts.DialTimeout = cfg.Timeout
	opts.ReadTimeout = cfg.Timeout
	opts.WriteTimeout = cfg.Timeout
	opts.PoolTimeout = cfg.Timeout
	opts.ContextTimeoutEnabled = true
	if opts.ClientName == "" {
		opts.ClientName = "commitcast"
	}
	return opts, nil
}

// checkVersion asks the server for its version until it has once been answered.
func (r *Redis) checkVersion(ctx context.Context) error {
	if r.checked.Load() {
		return nil
	}
	info, err := r.client.Info(ctx, "server").Result()
	if err != nil {
		if redis.IsAuthError(err) || redis.IsPermissionError(err) || errors.As(err, new(*tls.CertificateVerificationError)) {
			return fmt.Errorf("read the version of redis: %w: %w: %w", ErrUnavailable, ErrRefused, err)
		}
		return unavailable("read the version of redis", err)
	}
	version := "unknown"
	for line := range strings.Lines(info) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "redis_version:"); ok {
			version = v
		}
	}
	major, _, _ := strings.Cut(version, ".")
	if n, err := strconv.Atoi(major); err != nil || n < 7 {
		return fmt.Errorf("%w: %w: %s reports version %s; Commitcast needs 7.0 or later",
			ErrUnavailable, ErrRedisTooOld, r.options.Addr, version)
	}
	r.checked.Store(true)
	return nil
}

// Ping implements [Stream].
func (r *Redis) Ping(ctx context.Context) error {
	if err := r.checkVersion(ctx); err != nil {
		return err
	}
	if err := r.client.Ping(ctx).Err(); err != nil {
		return unavailable("ping redis", err)
	}
	return nil
}

// Tick implements [Stream]. With a cluster there would be one tick a shard.
func (r *Redis) Tick(ctx context.Context) error {
	if err := r.client.SPublish(ctx, tickKey, messageVersion).Err(); err != nil {
		return unavailable("tick through redis on "+tickKey, err)
	}
	return nil
}

// Close implements [Stream].
func (r *Redis) Close() error { return r.client.Close() }
