package stream

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// redisURL is a URL of one server, of Sentinels or of a cluster, taken apart.
type redisURL struct {
	kind    string         // "", "sentinel" or "cluster"
	options *redis.Options // of one server, as the URL says
	addrs   []string       // host:port, of Sentinels or of a cluster

	master                         string // the name that Sentinels know
	sentinelUser, sentinelPassword string
}

// errRedisURL tells nothing of the URL: a password with an unescaped slash or at sign ends up in any part of it.
var errRedisURL = errors.New("stream: redis URL is not redis://[user:password@]host[:port][/database], " +
	"redis+sentinel://[user:password@]host[:port],…/master[/database] or redis+cluster://[user:password@]host[:port],…; " +
	"special characters in a password must be percent-encoded")

// parseRedisURL reads a URL. Those with several hosts are none to package url.
func parseRedisURL(raw string) (*redisURL, error) {
	scheme, rest, ok := strings.Cut(raw, "://")
	base, kind, _ := strings.Cut(scheme, "+")
	switch {
	case !ok:
	case scheme == "redis", scheme == "rediss", scheme == "unix":
		opts, err := parseOneURL(raw)
		return &redisURL{options: opts}, err
	case (base == "redis" || base == "rediss") && (kind == "sentinel" || kind == "cluster"):
		return parseManyURL(base, kind, rest)
	}
	return nil, errors.New("stream: redis URL must begin with redis://, rediss://, unix://, redis+sentinel://, rediss+sentinel://, " +
		"redis+cluster:// or rediss+cluster://")
}

func parseOneURL(raw string) (*redis.Options, error) {
	opts, err := redis.ParseURL(raw)
	if u, perr := url.Parse(raw); err != nil || perr != nil || u.Fragment != "" {
		return nil, errRedisURL
	}
	return opts, nil
}

// parseManyURL reads what follows the scheme, [user:password@]host[:port],…[/master][/database][?…], by reading the same with
// one host for what all have in common.
func parseManyURL(base, kind, rest string) (*redisURL, error) {
	authority, after := rest, ""
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority, after = rest[:i], rest[i:]
	}
	login, hosts := "", authority
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		login, hosts = authority[:i+1], authority[i+1:]
	}
	if strings.Count(login, "@") > 1 { // a login for each host, it may be: there is one for all
		return nil, errRedisURL
	}
	u := &redisURL{kind: kind}
	port := map[string]string{"sentinel": "26379", "cluster": "6379"}[kind]
	for host := range strings.SplitSeq(hosts, ",") {
		at, err := url.Parse(base + "://" + host)
		if err != nil || at.Host != host || at.Hostname() == "" {
			return nil, errRedisURL
		}
		u.addrs = append(u.addrs, net.JoinHostPort(at.Hostname(), cmp.Or(at.Port(), port)))
	}
	common, err := url.Parse(base + "://" + login + "many" + after)
	if err != nil {
		return nil, errRedisURL
	}
	q := common.Query()
	if kind == "sentinel" {
		name, database, _ := strings.Cut(strings.TrimPrefix(common.Path, "/"), "/")
		if u.master, common.Path, common.RawPath = name, "/"+database, ""; name == "" {
			return nil, errors.New("stream: redis URL names no master: redis+sentinel://host:26379,…/master")
		}
		u.sentinelUser, u.sentinelPassword = q.Get("sentinel_username"), q.Get("sentinel_password")
		q.Del("sentinel_username")
		q.Del("sentinel_password")
	}
	common.RawQuery = q.Encode()
	if u.options, err = parseOneURL(common.String()); err != nil {
		return nil, err
	}
	if u.options.TLSConfig != nil {
		u.options.TLSConfig.ServerName = "" // each server answers by its own name
	}
	if kind == "cluster" && u.options.DB != 0 {
		return nil, errors.New("stream: redis URL: a cluster has no databases; leave out the path")
	}
	return u, nil
}

// prepare sets what is the same for every server.
func (u *redisURL) prepare(cfg RedisConfig) *redis.Options {
	opts := u.options
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
	return opts
}

// open makes the clients. Nothing is connected yet.
func (u *redisURL) open(opts *redis.Options) servers {
	switch u.kind {
	case "sentinel":
		return newWatched(u, opts)
	case "cluster":
		return newCluster(u, opts)
	}
	return oneServer{redis.NewClient(opts)}
}

// where names the servers, for logs.
func (u *redisURL) where() string {
	switch u.kind {
	case "sentinel":
		return fmt.Sprintf("%s of %s", u.master, strings.Join(u.addrs, ","))
	case "cluster":
		return strings.Join(u.addrs, ",")
	}
	return u.options.Addr
}
