package stream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/commitcast/commitcast/wire"
)

const (
	// clusterReload is how often a cluster is asked which master has which slots, beside whenever one of them answers that
	// it is another: after the default, a minute, a master that was killed was missed for 59 s.
	clusterReload = 2 * time.Second
	// clusterRedirects is how often a command is sent again because a slot has moved, or a connection broke.
	clusterRedirects = 3
	// sentinelTimeout bounds the question to one Sentinel: there are others.
	sentinelTimeout = 500 * time.Millisecond
)

// servers is what lies behind a URL: one server, a master that Sentinels name, or the masters of a cluster.
type servers interface {
	client() redis.UniversalClient
	// lanes is how many connections a subscription needs: 1, or one a partition.
	lanes() int
	// master is where a subscription to the channels of a key connects now.
	master(ctx context.Context, key string) (addr string, err error)
	// mistaken says that what master told was of no use.
	mistaken(ctx context.Context)
	// each calls f for every master, and returns the first error. At least one was called if it is nil.
	each(ctx context.Context, f func(ctx context.Context, master *redis.Client) error) error
	// with is a client that asks the master of a key.
	with(ctx context.Context, key string) (redis.Cmdable, error)
}

// oneServer is the server of a redis, rediss or unix URL.
type oneServer struct{ c *redis.Client }

func (s oneServer) client() redis.UniversalClient                       { return s.c }
func (s oneServer) lanes() int                                          { return 1 }
func (s oneServer) master(context.Context, string) (string, error)      { return s.c.Options().Addr, nil }
func (s oneServer) mistaken(context.Context)                            {}
func (s oneServer) with(context.Context, string) (redis.Cmdable, error) { return s.c, nil }
func (s oneServer) each(ctx context.Context, f func(context.Context, *redis.Client) error) error {
	return f(ctx, s.c)
}

// watched is a master with replicas, of which Sentinels tell where it is. Commands go through go-redis, which asks and
// listens to them.
type watched struct {
	oneServer
	name      string
	sentinels []string
	options   redis.Options // of a connection to a Sentinel; Addr is set for each
}

func newWatched(u *redisURL, opts *redis.Options) *watched {
	w := &watched{name: u.master, sentinels: u.addrs, options: *opts}
	w.options.Username, w.options.Password, w.options.DB = u.sentinelUser, u.sentinelPassword, 0
	w.options.DialTimeout, w.options.ReadTimeout, w.options.WriteTimeout = sentinelTimeout, sentinelTimeout, sentinelTimeout
	w.options.ClientName = ""
	w.options.PoolSize = 1
	w.c = redis.NewFailoverClient(&redis.FailoverOptions{
		MasterName: u.master, SentinelAddrs: u.addrs, SentinelUsername: u.sentinelUser, SentinelPassword: u.sentinelPassword,
		Username: opts.Username, Password: opts.Password, DB: opts.DB, ClientName: opts.ClientName, TLSConfig: opts.TLSConfig,
		Protocol: opts.Protocol, DisableIdentity: true, MaxRetries: opts.MaxRetries, DialerRetries: opts.DialerRetries,
		DialTimeout: opts.DialTimeout, ReadTimeout: opts.ReadTimeout, WriteTimeout: opts.WriteTimeout,
		PoolTimeout: opts.PoolTimeout, PoolSize: opts.PoolSize, ContextTimeoutEnabled: true,
	})
	return w
}

// master asks the Sentinels in any order, until one knows: one that is cut off from the others names a master that is none
// any more, over which no tick comes, and the next connection asks another one first.
func (w *watched) master(ctx context.Context, _ string) (string, error) {
	var errs []error
	for _, i := range rand.Perm(len(w.sentinels)) {
		o := w.options
		o.Addr = w.sentinels[i]
		s := redis.NewSentinelClient(&o)
		addr, err := s.GetMasterAddrByName(ctx, w.name).Result()
		s.Close()
		switch {
		case err == nil && len(addr) == 2:
			return net.JoinHostPort(addr[0], addr[1]), nil
		case errors.Is(err, redis.Nil):
			err = fmt.Errorf("it watches no master %q", w.name)
		}
		errs = append(errs, fmt.Errorf("ask sentinel %s: %w", o.Addr, err))
	}
	return "", errors.Join(errs...)
}

// cluster is a Redis Cluster. The channels of a partition are those of one slot, and a connection may subscribe to many
// slots of its master, but a slot moves away by itself: so each partition has a connection of its own.
type cluster struct {
	c *redis.ClusterClient
}

func newCluster(u *redisURL, opts *redis.Options) *cluster {
	return &cluster{c: redis.NewClusterClient(&redis.ClusterOptions{
		Addrs: u.addrs, Username: opts.Username, Password: opts.Password, ClientName: opts.ClientName, TLSConfig: opts.TLSConfig,
		Protocol: opts.Protocol, DisableIdentity: true, MaintNotificationsConfig: opts.MaintNotificationsConfig,
		MaxRedirects: clusterRedirects, MaxRetries: opts.MaxRetries, DialerRetries: opts.DialerRetries,
		DialTimeout: opts.DialTimeout, ReadTimeout: opts.ReadTimeout, WriteTimeout: opts.WriteTimeout,
		PoolTimeout: opts.PoolTimeout, PoolSize: opts.PoolSize, ContextTimeoutEnabled: true,
		ClusterStateReloadInterval: clusterReload,
		DisableRoutingPolicies:     true, // every command here has a key; the policies would need COMMAND, which users may not ask
	})}
}

func (c *cluster) client() redis.UniversalClient { return c.c }
func (c *cluster) lanes() int                    { return wire.Partitions }

func (c *cluster) master(ctx context.Context, key string) (string, error) {
	node, err := c.c.MasterForKey(ctx, key)
	if err != nil {
		return "", fmt.Errorf("ask the cluster for its masters: %w", err)
	}
	return node.Options().Addr, nil
}

func (c *cluster) mistaken(ctx context.Context) { c.c.ReloadState(ctx) }

func (c *cluster) with(ctx context.Context, key string) (redis.Cmdable, error) {
	return c.c.MasterForKey(ctx, key)
}

func (c *cluster) each(ctx context.Context, f func(context.Context, *redis.Client) error) error {
	return c.c.ForEachMaster(ctx, f)
}
