package app

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/worker"
)

// databaseFlags say where the database is.
type databaseFlags struct {
	DatabaseURL string `required:"" env:"DATABASE_URL" placeholder:"URL" help:"Postgres 14 or later, a direct connection to the primary: postgres://user:password@host:5432/db."`
}

// streamFlags say where the stream is.
type streamFlags struct {
	RedisURL string `env:"REDIS_URL" placeholder:"URL" help:"Redis 7.0 or later: redis://user:password@host:6379/0, redis+sentinel://…@host:26379,…/master or redis+cluster://…@host:6379,…; rediss for TLS."`
}

// processFlags are those of every long-running command.
type processFlags struct {
	OpsListen    string `env:"COMMITCAST_OPS_LISTEN" default:"127.0.0.1:8081" placeholder:"ADDR" help:"Address of /healthz, /readyz and /metrics (${default}); empty for none."`
	OpsToken     string `name:"ops-token-file" env:"COMMITCAST_OPS_TOKEN_FILE" placeholder:"FILE" help:"A file with the token that /metrics and the details of /readyz need, as 'Authorization: Bearer'. This or --ops-client-ca is required where --ops-listen is not loopback."`
	OpsTLSCert   string `name:"ops-tls-cert" env:"COMMITCAST_OPS_TLS_CERT" placeholder:"FILE" help:"Serve operators TLS with this certificate chain in PEM. It is read again when it has changed."`
	OpsTLSKey    string `name:"ops-tls-key" env:"COMMITCAST_OPS_TLS_KEY" placeholder:"FILE" help:"The key of --ops-tls-cert."`
	OpsClientCA  string `name:"ops-client-ca" env:"COMMITCAST_OPS_CLIENT_CA" placeholder:"FILE" help:"The authority of operators' certificates, in PEM: one of these does for the token."`
	OpsAdvertise string `env:"COMMITCAST_OPS_ADVERTISE" placeholder:"HOST:PORT" help:"Where operators reach --ops-listen, if not there: told to the database with each session, which is how they find this process."`
	logFlags
	redisTLSFlags
	otlpFlags
}

// logFlags say what is logged.
type logFlags struct {
	LogLevel  string `env:"COMMITCAST_LOG_LEVEL" enum:"debug,info,warn,error" default:"info" help:"debug, info, warn or error (${default})."`
	LogFormat string `env:"COMMITCAST_LOG_FORMAT" enum:"text,json" default:"text" help:"text or json (${default})."`
}

// workerFlags are those of commands that run a worker.
type workerFlags struct {
	Retention         time.Duration `env:"COMMITCAST_RETENTION" default:"168h" help:"How long events are kept for replay, in days, at least 24h (${default}); negative: for ever."`
	RetentionBytes    int64         `env:"COMMITCAST_RETENTION_BYTES" default:"68719476736" placeholder:"BYTES" help:"How large the journal may grow until its oldest day is dropped all the same (${default}); negative: no limit."`
	RepublishAttempts int           `env:"COMMITCAST_REPUBLISH_ATTEMPTS" default:"16" placeholder:"N" help:"How often a topic that the stream refuses is tried until it is a dead letter (${default}, half an hour)."`
}

// checkWorker refuses what package worker would, in the words of the command line.
func (f *workerFlags) checkWorker() error {
	switch {
	case f.Retention >= 0 && f.Retention < 24*time.Hour:
		return usageError{fmt.Errorf("--retention=%v: must be at least 24h, or negative to keep events for ever", f.Retention)}
	case f.RetentionBytes == 0:
		return usageError{fmt.Errorf("--retention-bytes=0: must be positive, or negative for no limit")}
	case f.RepublishAttempts < 1 || f.RepublishAttempts > 1000:
		return usageError{fmt.Errorf("--republish-attempts=%d: must be 1 to 1000", f.RepublishAttempts)}
	}
	return nil
}

func (f *workerFlags) worker() worker.Config {
	return worker.Config{Retention: f.Retention, RetentionBytes: f.RetentionBytes, RepublishAttempts: f.RepublishAttempts}
}

// clientFlags are those of commands that serve clients.
type clientFlags struct {
	Listen         string        `env:"COMMITCAST_LISTEN" default:"127.0.0.1:8080" placeholder:"ADDR" help:"Address for clients (${default})."`
	AllowPublic    bool          `env:"COMMITCAST_ALLOW_PUBLIC" help:"With --auth=off: serve on an address that is not loopback all the same."`
	Hosts          []string      `env:"COMMITCAST_HOSTS" placeholder:"NAME" help:"Names of this server, as patterns: live.example.com. Requests to others are refused. Addresses and localhost are always among them. With --auth=off there are no other names unless given here; '*' is any."`
	Origins        []string      `env:"COMMITCAST_ORIGINS" placeholder:"ORIGIN" help:"Pages on other origins that may connect, as patterns: https://*.example.com."`
	RequireOrigin  bool          `env:"COMMITCAST_REQUIRE_ORIGIN" help:"Refuse WebSockets without an Origin: all but browsers."`
	TrustedHops    int           `name:"trusted-proxy-hops" env:"COMMITCAST_TRUSTED_PROXY_HOPS" placeholder:"N" help:"Proxies in a row before this server that add to X-Forwarded-For (0: the header is not looked at)."`
	TLSCert        string        `name:"tls-cert" env:"COMMITCAST_TLS_CERT" placeholder:"FILE" help:"Serve TLS with this certificate chain in PEM. It is read again when it has changed."`
	TLSKey         string        `name:"tls-key" env:"COMMITCAST_TLS_KEY" placeholder:"FILE" help:"The key of --tls-cert."`
	ReplicaURL     string        `name:"replica-url" env:"COMMITCAST_REPLICA_URL" placeholder:"URL" help:"A streaming replica of --database-url, not of a --shard. Events that clients have missed are read there; what it does not have yet, and everything else, from the primary."`
	Shards         []string      `name:"shard" env:"COMMITCAST_SHARDS" sep:" " placeholder:"PATTERN=URL" help:"A further database, and the topics that it holds, as a pattern like those of tokens: 'orders:*=postgres://…'. Repeat it, or separate them with spaces; the first that fits a topic counts. All other topics are in --database-url."`
	Node           string        `env:"COMMITCAST_NODE" help:"Name of this node, for clients and logs (host name and random digits)."`
	Heartbeat      time.Duration `env:"COMMITCAST_HEARTBEAT" default:"15s" help:"How often clients hear the heads of their topics (${default})."`
	MaxConnections int           `env:"COMMITCAST_MAX_CONNECTIONS" default:"50000" help:"Clients at once; further ones get 503 (${default})."`
	MaxPerAddress  int           `name:"max-connections-per-address" env:"COMMITCAST_MAX_CONNECTIONS_PER_ADDRESS" placeholder:"N" help:"Clients at once from one address, of IPv6 a /64; this machine is not counted (no limit of its own)."`
	MaxPerUser     int           `name:"max-connections-per-user" env:"COMMITCAST_MAX_CONNECTIONS_PER_USER" default:"200" placeholder:"N" help:"Clients at once with one subject in their token (${default})."`
	MaxStrangers   int           `name:"max-unauthenticated" env:"COMMITCAST_MAX_UNAUTHENTICATED" default:"256" placeholder:"N" help:"WebSockets at once whose clients have yet to say who they are; further ones wait (${default})."`
	MaxSubs        int           `name:"max-subscriptions" env:"COMMITCAST_MAX_SUBSCRIPTIONS" default:"1000" placeholder:"N" help:"Topics that one connection may follow (${default})."`
	MaxRequests    int           `env:"COMMITCAST_MAX_REQUESTS" default:"20" placeholder:"N" help:"Requests a second of one connection, beyond ten times as many at once; what comes faster waits. Unsubscribing is free, and so is following more topics than ever before (${default})."`
	MaxReplays     int           `env:"COMMITCAST_MAX_REPLAYS" default:"4" placeholder:"N" help:"Subscriptions of one connection that are caught up at once (${default})."`
	MaxReplayRate  int           `env:"COMMITCAST_MAX_REPLAY_RATE" default:"2000" placeholder:"N" help:"Events a second that are read for all subscriptions of one user that are behind, beyond five times as many at once (${default})."`
	LogMemory      int           `env:"COMMITCAST_LOG_MEMORY" default:"268435456" placeholder:"BYTES" help:"Memory for the newest events of all topics together (${default}); what has to go sooner is replayed."`
	WriteTimeout   time.Duration `env:"COMMITCAST_WRITE_TIMEOUT" default:"10s" help:"How long a client may take not a single byte of what it is sent (${default})."`
	Drain          time.Duration `env:"COMMITCAST_DRAIN" default:"5s" help:"Window over which clients are closed at shutdown (${default})."`
	Canary         bool          `env:"COMMITCAST_CANARY" help:"Have an event of the topic commitcast/canary written every second, by one node for all, and watch it arrive through a socket of this node: commitcast_canary_… in /metrics."`
	CanaryReady    time.Duration `env:"COMMITCAST_CANARY_READY" placeholder:"DURATION" help:"With --canary: this node is not ready while the newest event of the canary that has arrived is older, at least 5s (0: metrics only)."`
	authFlags
}

// check refuses what cannot be, before anything is opened.
func (f *clientFlags) check() error {
	if err := f.authFlags.check(); err != nil {
		return err
	}
	if f.Auth == "off" && !f.AllowPublic && !loopback(f.Listen) {
		return usageError{fmt.Errorf("--auth=off on %s would let anybody in; listen on 127.0.0.1 behind a proxy, or insist with --allow-public", f.Listen)}
	}
	if f.Heartbeat < time.Second {
		return usageError{fmt.Errorf("--heartbeat=%v: must be at least 1s", f.Heartbeat)}
	}
	for name, n := range map[string]int{"max-connections": f.MaxConnections, "max-connections-per-user": f.MaxPerUser, "max-unauthenticated": f.MaxStrangers,
		"max-subscriptions": f.MaxSubs, "max-requests": f.MaxRequests, "max-replays": f.MaxReplays, "max-replay-rate": f.MaxReplayRate, "log-memory": f.LogMemory} {
		if n < 1 {
			return usageError{fmt.Errorf("--%s=%d: must be at least 1", name, n)}
		}
	}
	if f.MaxPerAddress < 0 || f.TrustedHops < 0 || f.TrustedHops > 16 {
		return usageError{errors.New("--max-connections-per-address must not be negative, and --trusted-proxy-hops must be 0 to 16")}
	}
	if f.WriteTimeout < 100*time.Millisecond {
		return usageError{fmt.Errorf("--write-timeout=%v: must be at least 100ms", f.WriteTimeout)}
	}
	if (f.TLSCert == "") != (f.TLSKey == "") {
		return usageError{errors.New("--tls-cert and --tls-key go together")}
	}
	if f.CanaryReady != 0 && (!f.Canary || f.CanaryReady < 5*time.Second) {
		return usageError{fmt.Errorf("--canary-ready=%v: needs --canary, and must be at least 5s: a takeover takes three", f.CanaryReady)}
	}
	if _, err := parseShards(f.Shards); err != nil {
		return err
	}
	if f.Drain < 0 {
		return usageError{fmt.Errorf("--drain=%v: must not be negative", f.Drain)}
	}
	return nil
}

// config is what a broadcaster is made with.
func (f *clientFlags) config(log *slog.Logger, metrics prometheus.Registerer) (broadcaster.Config, error) {
	c := broadcaster.Config{Node: f.Node, Heartbeat: f.Heartbeat, MaxConnections: f.MaxConnections,
		Drain: max(f.Drain, time.Millisecond), Origins: f.Origins, Hosts: f.Hosts, RequireOrigin: f.RequireOrigin, TrustedHops: f.TrustedHops,
		MaxPerAddress: f.MaxPerAddress, MaxPerUser: f.MaxPerUser, MaxStrangers: f.MaxStrangers, MaxSubscriptions: f.MaxSubs, MaxRequests: f.MaxRequests,
		MaxReplays: f.MaxReplays, MaxReplayRate: f.MaxReplayRate, LogMemory: f.LogMemory, WriteTimeout: f.WriteTimeout, AuthGrace: max(f.AuthGrace, time.Nanosecond), Logger: log, Registerer: metrics}
	return c, f.configure(&c, log)
}

// loopback reports whether an address can be reached from this machine only.
func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// logger makes the process's logger.
func (f *logFlags) logger(s *streams) *slog.Logger {
	var level slog.Level
	level.UnmarshalText([]byte(f.LogLevel)) // an enum of kong's: always valid
	options := &slog.HandlerOptions{Level: level}
	if f.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(s.err, options))
	}
	return slog.New(slog.NewTextHandler(s.err, options))
}
