package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/commitcast/commitcast/internal/network"
	"github.com/commitcast/commitcast/internal/services"
)

// With -redis=cluster or -redis=sentinel, Redis is several servers on hosts of their own, one of which takes over from another. What
// a master has acknowledged and not copied yet is lost then, and for a while two may be masters of the same.

// What -redis can be.
const (
	redisOne      = "one"
	redisCluster  = "cluster"
	redisSentinel = "sentinel"
)

// clusterMasters is how many masters the cluster has, each with a replica: the fewest that can agree on one being gone.
const clusterMasters = 3

// replicated is such a Redis.
type replicated struct {
	cluster   *services.RedisCluster
	sentinels *services.RedisSentinels
	hosts     []*network.Host // of the servers, and then of the Sentinels
}

// hostNames are whom it takes hosts for.
func hostNames(kind string) (names []string) {
	switch kind {
	case redisCluster:
		for i := range 2 * clusterMasters {
			names = append(names, fmt.Sprint("redis", i+1))
		}
	case redisSentinel:
		for i := range services.SentinelHosts {
			names = append(names, fmt.Sprint("redis", i+1))
		}
	default:
		names = append(names, "redis")
	}
	return names
}

// startReplicated starts it on the hosts that were made for it.
func startReplicated(ctx context.Context, kind string, hosts map[string]*network.Host) (*replicated, error) {
	r := &replicated{}
	var on []services.Host
	for _, name := range hostNames(kind) {
		r.hosts, on = append(r.hosts, hosts[name]), append(on, hosts[name])
	}
	var err error
	if kind == redisCluster {
		r.cluster, err = services.StartRedisCluster(ctx, services.RedisClusterConfig{Masters: clusterMasters, Hosts: on})
	} else {
		r.sentinels, err = services.StartRedisSentinels(ctx, on)
	}
	return r, err
}

func (r *replicated) url() string {
	if r.cluster != nil {
		return r.cluster.URL()
	}
	return r.sentinels.URL()
}

// client asks whoever is the master.
func (r *replicated) client() redis.UniversalClient {
	if r.cluster != nil {
		return r.cluster.Client()
	}
	return r.sentinels.Client()
}

func (r *replicated) servers() []*services.Redis {
	if r.cluster != nil {
		return r.cluster.Nodes()
	}
	return r.sentinels.Servers()
}

// master is which server has the slot of a key.
func (r *replicated) master(ctx context.Context, key string) (nth int, err error) {
	var m *services.Redis
	if r.cluster != nil {
		m, err = r.cluster.Master(ctx, key)
	} else {
		m, err = r.sentinels.Master(ctx)
	}
	return slices.Index(r.servers(), m), err
}

// masters names all that are one, to tell whether another took over.
func (r *replicated) masters(ctx context.Context) string {
	var all []string
	for _, s := range r.servers() {
		client := redis.NewClient(s.Options())
		if role, err := client.Do(ctx, "ROLE").Slice(); err == nil && role[0] == "master" {
			all = append(all, s.Addr())
		}
		client.Close()
	}
	return strings.Join(all, " ")
}

// settled says whether all its servers agree, and each replica has a copy.
func (r *replicated) settled(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond) // asked again and again
	defer cancel()
	if r.cluster != nil {
		return r.cluster.Settled(ctx)
	}
	return r.sentinels.Settled(ctx)
}

func (r *replicated) close() {
	if r.cluster != nil {
		r.cluster.Close()
	}
	if r.sentinels != nil {
		r.sentinels.Close()
	}
}

// redisHost is where Redis is; of several servers, where the master of one of the topics is.
func (f *fault) redisHost() *network.Host {
	if f.w.replicated == nil {
		return f.w.hosts["redis"]
	}
	nth, err := f.masterOf()
	if err != nil {
		nth = 0 // whoever it is
	}
	return f.w.replicated.hosts[nth]
}

// masterOf picks the master of one of the topics. While another fault holds there may be none.
func (f *fault) masterOf() (nth int, err error) {
	topic := f.topics[f.r.IntN(len(f.topics))]
	ctx, cancel := f.command()
	defer cancel()
	nth, err = f.w.replicated.master(ctx, streamKey(topic, ""))
	if err == nil {
		f.w.log.add("FAULT", "the master of %s is %s", topic, f.w.replicated.hosts[nth].Name)
	}
	return nth, err
}

// long holds mostly for as long as it takes another server to become master, and sometimes not.
func (f *fault) long() {
	if f.r.IntN(4) > 0 {
		f.hold = max(f.hold, f.between(2500, 5500))
	}
}

// apart cuts a master's links to other hosts, as how says: to its own kind only, or to all.
func (f *fault) apart(how func(n *network.Network, master, other *network.Host) func()) error {
	nth, err := f.masterOf()
	if err != nil {
		return err
	}
	f.long()
	hosts := f.w.replicated.hosts
	var mends []func()
	for i, other := range hosts {
		if i != nth {
			mends = append(mends, how(f.w.network, hosts[nth], other))
		}
	}
	return f.breaks(func() {
		for _, mend := range mends {
			mend()
		}
	})
}

// replicatedKinds are the further faults of a Redis of several servers. The order matters to seeds: new ones go to the end.
var replicatedKinds = []kind{
	{name: "redis-master-kill", long: true, kill: true, data: true, apply: (*fault).masterKill},
	{name: "redis-master-stop", long: true, data: true, apply: (*fault).masterStop},
	{name: "net-island-master", long: true, data: true, apply: func(f *fault) error {
		nth, err := f.masterOf()
		if err != nil {
			return err
		}
		f.long()
		return f.around(f.w.replicated.hosts[nth], network.Fault{Lost: 1})
	}},
	// Workers and broadcasters reach both the old master and the new one.
	{name: "net-apart-master", long: true, data: true, apply: func(f *fault) error { return f.apart((*network.Network).Part) }},
	{name: "net-mute-master", long: true, data: true, apply: func(f *fault) error {
		return f.apart(func(n *network.Network, master, other *network.Host) func() {
			return n.Break(master, other, network.Fault{Lost: 1})
		})
	}},
	{name: "net-deaf-master", long: true, data: true, apply: func(f *fault) error {
		return f.apart(func(n *network.Network, master, other *network.Host) func() {
			return n.Break(other, master, network.Fault{Lost: 1})
		})
	}},
	{name: "net-slow-master", long: true, data: true, apply: func(f *fault) error {
		delay := f.between(100, 900)
		return f.apart(func(n *network.Network, master, other *network.Host) func() {
			there, back := n.Break(master, other, network.Fault{Delay: delay}), n.Break(other, master, network.Fault{Delay: delay})
			return func() { there(); back() }
		})
	}},
	{name: "net-split-redis", long: true, data: true, apply: (*fault).split},
}

// clusterKinds are those of a cluster alone, sentinelKinds those of Sentinels.
var (
	clusterKinds  = []kind{{name: "redis-slot-moves", alone: true, apply: (*fault).slotMoves}}
	sentinelKinds = []kind{{name: "net-apart-sentinels", long: true, data: true, apply: (*fault).sentinelsApart}}
)

func (f *fault) masterKill() error {
	nth, err := f.masterOf()
	if err != nil {
		return err
	}
	f.long()
	server := f.w.replicated.servers()[nth]
	server.Kill()
	f.wait()
	return server.Start(f.w.ctx)
}

// masterStop freezes a master, which then goes on as if nothing had been.
func (f *fault) masterStop() error {
	nth, err := f.masterOf()
	if err != nil {
		return err
	}
	f.long()
	server := f.w.replicated.servers()[nth]
	if err := server.Pause(); err != nil {
		return err
	}
	f.wait()
	return server.Resume()
}

// split leaves a worker and a broadcaster with a master that all other servers are cut off from, and the others with those.
func (f *fault) split() error {
	nth, err := f.masterOf()
	if err != nil {
		return err
	}
	f.long()
	with := []*network.Host{f.w.replicated.hosts[nth], f.host("worker"), f.host("broadcaster")}
	others := slices.Clone(f.w.replicated.hosts)
	for _, p := range f.w.processes {
		others = append(others, p.host)
	}
	var mends []func()
	for i, a := range with {
		for _, b := range others {
			redisThere := slices.Contains(f.w.replicated.hosts, b)
			if !slices.Contains(with, b) && (i == 0 || redisThere) {
				mends = append(mends, f.w.network.Part(a, b))
			}
		}
	}
	return f.breaks(func() {
		for _, mend := range mends {
			mend()
		}
	})
}

// slotMoves moves the slot of a topic to another master, and tells all nodes when the fault ends.
func (f *fault) slotMoves() error {
	if !f.w.moving.TryLock() {
		return errors.New("a server of Redis is being broken, or another slot moves")
	}
	defer f.w.moving.Unlock()
	key := streamKey(f.topics[f.r.IntN(len(f.topics))], "")
	f.w.log.add("FAULT", "the slot of %s moves", key)
	err := f.w.replicated.cluster.MoveSlot(f.w.ctx, key, f.wait)
	f.failed = err != nil
	return err
}

// sentinelsApart cuts two of three Sentinels off from all others: none of the parts may name another master, or it may.
func (f *fault) sentinelsApart() error {
	f.long()
	hosts := f.w.replicated.hosts
	sentinels := hosts[len(f.w.replicated.servers()):]
	spared := f.r.IntN(len(sentinels))
	var mends []func()
	for i, a := range sentinels {
		for _, b := range f.w.hosts {
			if i != spared && a != b {
				mends = append(mends, f.w.network.Part(a, b))
			}
		}
	}
	return f.breaks(func() {
		for _, mend := range mends {
			mend()
		}
	})
}
