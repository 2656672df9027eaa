package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/commitcast/commitcast/internal/network"
)

// With -hosts every process, Postgres and Redis are on a host of their own, and what breaks is what lies between them: packets that
// nobody answers for, in one direction or both, which no process is told of.

// opsToken is what operators show: ops listeners that are not on a loopback want one.
const opsToken = "a-token-of-a-machine-that-is-broken-on-purpose"

func (w *world) makeHosts(redis string) (err error) {
	if w.network, err = network.New(); err != nil {
		return err
	}
	names := append([]string{"postgres"}, hostNames(redis)...)
	for i := range workers {
		names = append(names, fmt.Sprint("worker", i+1))
	}
	for i := range broadcasters {
		names = append(names, fmt.Sprint("broadcaster", i+1))
	}
	w.hosts = make(map[string]*network.Host)
	for _, name := range names {
		if w.hosts[name], err = w.network.Host(name); err != nil {
			return err
		}
	}
	f, err := os.CreateTemp("", "commitcast-ops-token-")
	if err != nil {
		return err
	}
	w.opsToken = f.Name()
	_, err = f.WriteString(opsToken)
	return errors.Join(err, f.Close())
}

// networkKinds are the faults of -hosts. The order matters to seeds: new ones go to the end.
var networkKinds = func() (all []kind) {
	for _, role := range []string{"worker", "broadcaster"} {
		for _, server := range []string{"redis", "postgres"} {
			pair := role + "-" + server
			all = append(all,
				kind{name: "net-apart-" + pair, long: true, apply: func(f *fault) error {
					a, b := f.host(role), f.server(server)
					return f.breaks(f.w.network.Part(a, b))
				}},
				kind{name: "net-mute-" + pair, long: true, apply: func(f *fault) error { // what the role sends is lost
					return f.breaks(f.w.network.Break(f.host(role), f.server(server), network.Fault{Lost: 1}))
				}},
				kind{name: "net-deaf-" + pair, long: true, apply: func(f *fault) error { // what it would receive is
					return f.breaks(f.w.network.Break(f.server(server), f.host(role), network.Fault{Lost: 1}))
				}})
		}
		all = append(all, kind{name: "net-island-" + role, long: true, apply: func(f *fault) error { // nobody reaches it
			return f.around(f.host(role), network.Fault{Lost: 1})
		}})
	}
	return append(all,
		kind{name: "net-apart-clients", long: true, apply: func(f *fault) error {
			return f.breaks(f.w.network.Part(f.w.network.Outside(), f.host("broadcaster")))
		}},
		kind{name: "net-slow-redis", long: true, apply: func(f *fault) error {
			return f.around(f.redisHost(), network.Fault{Delay: f.between(20, 150)})
		}},
		kind{name: "net-slow-postgres", long: true, apply: func(f *fault) error {
			return f.around(f.w.hosts["postgres"], network.Fault{Delay: f.between(5, 40)})
		}},
		kind{name: "net-lossy-redis", long: true, apply: func(f *fault) error {
			return f.around(f.redisHost(), network.Fault{Lost: 0.05 + 0.2*f.r.Float64()})
		}},
		kind{name: "net-lossy-postgres", long: true, apply: func(f *fault) error {
			return f.around(f.w.hosts["postgres"], network.Fault{Lost: 0.02 + 0.08*f.r.Float64()})
		}},
		kind{name: "net-lossy-clients", long: true, apply: func(f *fault) error {
			return f.around(f.w.network.Outside(), network.Fault{Lost: 0.02 + 0.08*f.r.Float64()})
		}})
}()

// server is the host of Redis or Postgres.
func (f *fault) server(name string) *network.Host {
	if name == "redis" {
		return f.redisHost()
	}
	return f.w.hosts[name]
}

// host is that of a process of a role.
func (f *fault) host(role string) *network.Host {
	p := f.pick(role)
	f.w.log.add("FAULT", "at %s", p.name)
	return p.host
}

// between is a time of so many milliseconds.
func (f *fault) between(least, most int64) time.Duration {
	return time.Duration(least+f.r.Int64N(most-least)) * time.Millisecond
}

// breaks holds what is broken, and mends it.
func (f *fault) breaks(mend func()) error {
	f.wait()
	mend()
	return nil
}

// around breaks each link of a host, both ways.
func (f *fault) around(h *network.Host, how network.Fault) error {
	var mends []func()
	others := []*network.Host{f.w.network.Outside()}
	for _, other := range f.w.hosts {
		others = append(others, other)
	}
	for _, other := range others {
		if other != h {
			mends = append(mends, f.w.network.Break(h, other, how), f.w.network.Break(other, h, how))
		}
	}
	return f.breaks(func() {
		for _, mend := range slices.Backward(mends) {
			mend()
		}
	})
}
