package services

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

// sentinelLines configure a private Sentinel: it takes a server for gone after a second of silence, and tries a failover that
// failed again after 4 s, twice its timeout.
const sentinelLines = `bind %s
port %d
dir %q
requirepass %s
sentinel sentinel-pass %s
sentinel monitor main %s 2
sentinel auth-pass main %s
sentinel down-after-milliseconds main 1000
sentinel failover-timeout main 2000
`

// RedisSentinels is a private master with a replica, and three Sentinels that watch them under the name main.
type RedisSentinels struct {
	servers   []*Redis
	sentinels []*sentinel
	password  string // of the servers
	secret    string // of the Sentinels
}

// sentinel is one process.
type sentinel struct {
	folder *folder
	port   int
	proc   *process
	client *redis.SentinelClient
}

// SentinelHosts is how many hosts StartRedisSentinels takes: of the master, its replica and three Sentinels.
const SentinelHosts = 5

func (s *sentinel) addr() string { return net.JoinHostPort(s.folder.ip(), strconv.Itoa(s.port)) }

// StartRedisSentinels starts them, each on one of SentinelHosts hosts in that order, or all here if there are none. ctx bounds the
// start only.
func StartRedisSentinels(ctx context.Context, hosts []Host) (*RedisSentinels, error) {
	if hosts == nil {
		hosts = make([]Host, SentinelHosts)
	}
	s := &RedisSentinels{password: rand.Text(), secret: rand.Text()}
	if err := s.start(ctx, hosts); err != nil {
		s.Close()
		return nil, fmt.Errorf("starting private Sentinels: %w", err)
	}
	return s, nil
}

func (s *RedisSentinels) start(ctx context.Context, hosts []Host) error {
	lines := []string{"masterauth " + s.password, "repl-diskless-sync-delay 0"}
	for _, host := range hosts[:2] {
		r, err := StartRedis(ctx, RedisConfig{Password: s.password, Lines: lines, Host: host})
		if err != nil {
			return err
		}
		s.servers = append(s.servers, r)
		if len(s.servers) == 1 {
			lines = append(lines, "replicaof "+spaced(r.Addr()))
		}
	}
	for _, host := range hosts[2:] {
		if err := s.startSentinel(ctx, host); err != nil {
			return err
		}
	}
	// In order: each knows both servers and both others.
	for _, one := range s.sentinels {
		err := one.proc.ready(ctx, "Sentinel", func(ctx context.Context) error {
			m, err := one.client.Master(ctx, "main").Result()
			if err == nil && (m["num-slaves"] != "1" || m["num-other-sentinels"] != "2") {
				err = errors.New("it does not know all yet")
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// spaced is host:port as Redis writes it in its configuration.
func spaced(addr string) string { return strings.Replace(addr, ":", " ", 1) }

func (s *RedisSentinels) startSentinel(ctx context.Context, host Host) error {
	f, err := newFolder("sentinel")
	if err != nil {
		return err
	}
	f.host = host
	one := &sentinel{folder: f}
	s.sentinels = append(s.sentinels, one)
	dir, err := f.private("data")
	if err != nil {
		return err
	}
	return onFreePort(func(port int) error {
		one.port = port
		// It writes to its configuration, in whose folder it must be at home.
		f := *f
		f.path = dir
		conf, err := f.secret("sentinel.conf", fmt.Appendf(nil, sentinelLines, f.ip(), port, dir, s.secret, s.secret, spaced(s.servers[0].Addr()), s.password))
		if err != nil {
			return err
		}
		proc, err := one.folder.spawn(s.servers[0].program, nil, syscall.SIGKILL, conf, "--sentinel")
		if err != nil {
			return err
		}
		client := redis.NewSentinelClient(&redis.Options{Addr: one.addr(), Password: s.secret})
		err = proc.ready(ctx, "Sentinel", func(ctx context.Context) error { return client.Ping(ctx).Err() })
		if err != nil {
			client.Close()
			proc.end(syscall.SIGKILL)
			return err
		}
		one.proc, one.client = proc, client
		return nil
	})
}

// URL names the Sentinels, with the passwords.
func (s *RedisSentinels) URL() string {
	var hosts []string
	for _, one := range s.sentinels {
		hosts = append(hosts, one.addr())
	}
	return "redis+sentinel://" + url.UserPassword("default", s.password).String() + "@" + strings.Join(hosts, ",") +
		"/main?sentinel_password=" + url.QueryEscape(s.secret)
}

// Master is the server that most Sentinels name, and that says so itself.
func (s *RedisSentinels) Master(ctx context.Context) (*Redis, error) {
	votes := map[string]int{}
	for _, one := range s.sentinels {
		if addr, err := one.client.GetMasterAddrByName(ctx, "main").Result(); err == nil {
			votes[net.JoinHostPort(addr[0], addr[1])]++
		}
	}
	for _, r := range s.servers {
		if votes[r.Addr()] > len(s.sentinels)/2 && r.PID() != 0 {
			client := redis.NewClient(r.Options())
			role, err := client.Do(ctx, "ROLE").Slice()
			client.Close()
			if err == nil && role[0] == "master" {
				return r, nil
			}
		}
	}
	return nil, errors.New("there is no master that most Sentinels agree on")
}

// Client is a client of whoever is the master. The caller closes it.
func (s *RedisSentinels) Client() redis.UniversalClient {
	addrs := make([]string, len(s.sentinels))
	for i, one := range s.sentinels {
		addrs[i] = one.addr()
	}
	return redis.NewFailoverClient(&redis.FailoverOptions{MasterName: "main", SentinelAddrs: addrs, SentinelPassword: s.secret, Password: s.password})
}

// Servers are the master and its replica, as they were at first.
func (s *RedisSentinels) Servers() []*Redis { return s.servers }

// Said is what the Sentinels have logged, for a test that failed.
func (s *RedisSentinels) Said() string {
	var b strings.Builder
	for i, one := range s.sentinels {
		text, _ := os.ReadFile(one.proc.log)
		fmt.Fprintf(&b, "Sentinel %d:\n%s\n", i+1, text)
	}
	return b.String()
}

// Settled waits until there is a master with a replica that has a copy.
func (s *RedisSentinels) Settled(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		r, err := s.Master(ctx)
		if err == nil {
			client := redis.NewClient(r.Options())
			var text string
			text, err = client.Info(ctx, "replication").Result()
			client.Close()
			if err == nil && strings.Contains(text, "state=online") {
				return nil
			}
			err = errors.Join(err, errors.New("the master has no replica with a copy"))
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Close ends all for good. Calling it twice is fine.
func (s *RedisSentinels) Close() {
	var all sync.WaitGroup
	for _, one := range s.sentinels {
		all.Go(func() {
			if one.client != nil {
				one.client.Close()
			}
			one.proc.end(syscall.SIGKILL)
			one.folder.remove()
		})
	}
	for _, r := range s.servers {
		all.Go(r.Close)
	}
	all.Wait()
	s.sentinels, s.servers = nil, nil
}
