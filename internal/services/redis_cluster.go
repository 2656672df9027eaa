package services

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// clusterSlots is how many slots every Redis Cluster has.
	clusterSlots = 16384
	// clusterNodeTimeout is after how much silence nodes take another one for gone: short, since tests wait for it.
	clusterNodeTimeout = 1500 * time.Millisecond
)

// clusterLines configure a node of a private cluster: replicas begin to copy at once.
const clusterLines = `
cluster-enabled yes
cluster-config-file nodes.conf
cluster-node-timeout %d
cluster-replica-validity-factor 0
cluster-allow-replica-migration no
repl-diskless-sync-delay 0
cluster-port %d
masterauth %s
`

// RedisCluster is a private Redis Cluster: masters, and a replica of each.
type RedisCluster struct {
	nodes    []*Redis // masters first, then the replica of each, as it was at first
	clients  []*redis.Client
	password string
}

// RedisClusterConfig says how a private cluster runs.
type RedisClusterConfig struct {
	// Masters is how many there are, each with a replica.
	Masters int
	// Lines are added to the configuration of each node.
	Lines []string
	// Hosts are where the nodes run, masters first and then the replica of each. Default: here.
	Hosts []Host
}

// StartRedisCluster starts masters, each with a replica, and shares the slots among them. ctx bounds the start only.
func StartRedisCluster(ctx context.Context, cfg RedisClusterConfig) (*RedisCluster, error) {
	c := &RedisCluster{password: rand.Text()}
	if err := c.start(ctx, cfg); err != nil {
		c.Close()
		return nil, fmt.Errorf("starting a private Redis Cluster: %w", err)
	}
	return c, nil
}

func (c *RedisCluster) start(ctx context.Context, cfg RedisClusterConfig) error {
	masters := cfg.Masters
	for i := range 2 * masters {
		var host Host
		if cfg.Hosts != nil {
			host = cfg.Hosts[i]
		}
		err := onFreePort(func(bus int) error {
			own := fmt.Sprintf(clusterLines, clusterNodeTimeout.Milliseconds(), bus, c.password)
			node, err := StartRedis(ctx, RedisConfig{Password: c.password, Lines: append([]string{own}, cfg.Lines...), Host: host})
			if err == nil {
				c.nodes = append(c.nodes, node)
				c.clients = append(c.clients, redis.NewClient(node.Options()))
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	for i, client := range c.clients { // before any has met another
		if err := client.Do(ctx, "CLUSTER", "SET-CONFIG-EPOCH", i+1).Err(); err != nil {
			return err
		}
	}
	for i, client := range c.clients {
		if i < masters {
			if err := client.ClusterAddSlotsRange(ctx, i*clusterSlots/masters, (i+1)*clusterSlots/masters-1).Err(); err != nil {
				return err
			}
		}
		for j, other := range c.nodes {
			host, port, _ := net.SplitHostPort(other.Addr())
			bus, err := c.clients[j].ConfigGet(ctx, "cluster-port").Result()
			if err != nil {
				return err
			}
			if err := client.Do(ctx, "CLUSTER", "MEET", host, port, bus["cluster-port"]).Err(); err != nil {
				return err
			}
		}
	}
	err := c.await(ctx, func(i int) error {
		return c.info(ctx, i, "cluster_known_nodes:"+strconv.Itoa(2*masters))
	})
	if err != nil {
		return err
	}
	for i := range masters {
		id, err := c.clients[i].Do(ctx, "CLUSTER", "MYID").Text()
		if err != nil {
			return err
		}
		err = c.await(ctx, func(j int) error {
			if j != masters+i {
				return nil
			}
			return c.clients[j].ClusterReplicate(ctx, id).Err() // until it knows the master
		})
		if err != nil {
			return err
		}
	}
	return c.Settled(ctx)
}

// Settled waits until every node that runs finds the cluster in order, every master among them is known to all, and every replica
// has a copy.
func (c *RedisCluster) Settled(ctx context.Context) error {
	running := 0
	for _, node := range c.nodes {
		if node.PID() != 0 {
			running++
		}
	}
	return c.await(ctx, func(i int) error {
		if err := c.info(ctx, i, "cluster_state:ok"); err != nil {
			return err
		}
		text, err := c.clients[i].Info(ctx, "replication").Result()
		if err != nil {
			return err
		}
		if strings.Contains(text, "role:slave") && !strings.Contains(text, "master_link_status:up") {
			return errors.New("a replica has no copy yet")
		}
		nodes, err := c.clients[i].ClusterNodes(ctx).Result()
		if err != nil {
			return err
		}
		if n := strings.Count(nodes, " connected"); n < running || strings.Contains(nodes, "handshake") || strings.Count(nodes, "slave") < running-len(c.nodes)/2 {
			return fmt.Errorf("a node sees %d of %d", n, running)
		}
		return nil
	})
}

// info says whether CLUSTER INFO of a node has a line.
func (c *RedisCluster) info(ctx context.Context, i int, line string) error {
	text, err := c.clients[i].ClusterInfo(ctx).Result()
	if err == nil && !strings.Contains(text, line+"\r\n") {
		err = fmt.Errorf("node %d is not at %s", i, line)
	}
	return err
}

// await asks all nodes that run until they have answered with nil one after the other.
func (c *RedisCluster) await(ctx context.Context, ask func(i int) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for i, node := range c.nodes {
		for node.PID() != 0 {
			err := ask(i)
			if err == nil {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("%w (last: %s)", ctx.Err(), oneLine(err.Error()))
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	return nil
}

// URL names the nodes, with the password.
func (c *RedisCluster) URL() string {
	var hosts []string
	for _, node := range c.nodes {
		hosts = append(hosts, node.Addr())
	}
	return "redis+cluster://" + url.UserPassword("default", c.password).String() + "@" + strings.Join(hosts, ",")
}

// Client is a client of the whole cluster. The caller closes it.
func (c *RedisCluster) Client() redis.UniversalClient {
	addrs := make([]string, len(c.nodes))
	for i, node := range c.nodes {
		addrs[i] = node.Addr()
	}
	return redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs, Password: c.password})
}

// Nodes are the servers, each of which may be killed, frozen and started again.
func (c *RedisCluster) Nodes() []*Redis { return c.nodes }

// Master is the server that has the slot of a key, as most of those that run see it, and whether they agree on one.
func (c *RedisCluster) Master(ctx context.Context, key string) (*Redis, error) {
	i, err := c.master(ctx, key)
	if err != nil {
		return nil, err
	}
	return c.nodes[i], nil
}

func (c *RedisCluster) master(ctx context.Context, key string) (int, error) {
	for i, node := range c.nodes {
		if node.PID() == 0 {
			continue
		}
		slot, err := c.clients[i].ClusterKeySlot(ctx, key).Result()
		if err != nil {
			continue
		}
		//lint:ignore SA1019 ClusterShards says the same at greater length
		ranges, err := c.clients[i].ClusterSlots(ctx).Result()
		if err != nil {
			continue
		}
		for _, r := range ranges {
			if int(slot) < r.Start || int(slot) > r.End {
				continue
			}
			for j, node := range c.nodes {
				if node.Addr() == r.Nodes[0].Addr && node.PID() != 0 {
					return j, nil
				}
			}
		}
	}
	return 0, fmt.Errorf("no running node has the slot of %s", key)
}

// MoveSlot moves the slot of a key, with what is in it, to another master than it has, as an operator does who rebalances: key by
// key, while clients go on. pause is called between the move of the keys and the moment that all nodes are told.
func (c *RedisCluster) MoveSlot(ctx context.Context, key string, pause func()) error {
	from, err := c.master(ctx, key)
	if err != nil {
		return err
	}
	source := c.clients[from]
	slot, err := source.ClusterKeySlot(ctx, key).Result()
	if err != nil {
		return err
	}
	to := -1
	ids := make([]string, len(c.nodes))
	var mastersOf []int
	for i, client := range c.clients {
		if c.nodes[i].PID() == 0 {
			continue
		}
		if ids[i], err = client.Do(ctx, "CLUSTER", "MYID").Text(); err != nil {
			return err
		}
		role, err := client.Do(ctx, "ROLE").Slice()
		if err != nil {
			return err
		}
		if role[0] == "master" {
			mastersOf = append(mastersOf, i)
			if i != from {
				to = i
			}
		}
	}
	if to < 0 {
		return errors.New("there is no other master")
	}
	target := c.clients[to]
	if err := target.Do(ctx, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[from]).Err(); err != nil {
		return err
	}
	if err := source.Do(ctx, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[to]).Err(); err != nil {
		return err
	}
	host, port, _ := net.SplitHostPort(c.nodes[to].Addr())
	for {
		keys, err := source.ClusterGetKeysInSlot(ctx, int(slot), 10).Result()
		if err != nil {
			return err
		}
		if len(keys) == 0 {
			break
		}
		args := []any{"MIGRATE", host, port, "", 0, 5000, "REPLACE", "AUTH2", "default", c.password, "KEYS"}
		for _, k := range keys {
			args = append(args, k)
		}
		if err := source.Do(ctx, args...).Err(); err != nil {
			return err
		}
	}
	if pause != nil {
		pause()
	}
	for _, i := range append([]int{to, from}, mastersOf...) {
		if err := c.clients[i].Do(ctx, "CLUSTER", "SETSLOT", slot, "NODE", ids[to]).Err(); err != nil {
			return err
		}
	}
	return nil
}

// Close ends the servers for good. Calling it twice is fine.
func (c *RedisCluster) Close() {
	for _, client := range c.clients {
		client.Close()
	}
	var all sync.WaitGroup
	for _, node := range c.nodes {
		all.Go(node.Close)
	}
	all.Wait()
}
