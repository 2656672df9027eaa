package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/commitcast/commitcast/internal/app"
)

// options are the flags.
type options struct {
	rounds int
	// failovers is how many rounds with a failover follow.
	failovers int
	seed      uint64
	limit     time.Duration
	faults    string
	hold      time.Duration
	clients   int
	renew     int
	standby   bool
	hosts     bool
	redis     string
	bug       string
	out       string
	goOn      bool
	until     string
	verbose   bool
}

func main() {
	// This program is also the one that it breaks: so both are built from the same, perhaps mutated, source.
	if len(os.Args) > 1 && os.Args[1] == "commitcast" {
		os.Exit(app.Main(os.Args[2:], os.Stdout, os.Stderr))
	}
	var o options
	flag.IntVar(&o.rounds, "rounds", 20, "how many rounds to run, each about 3 s")
	flag.IntVar(&o.failovers, "failovers", 0, "how many rounds of -standby to run after them, each about 6 s")
	flag.Uint64Var(&o.seed, "seed", 1, "seed of the first round; each further one has the next")
	flag.DurationVar(&o.limit, "for", 0, "begin no round after this time; 0: no limit")
	flag.StringVar(&o.faults, "faults", "all", "kinds of fault to draw from, with commas; all; none")
	flag.DurationVar(&o.hold, "hold", 0, "one fault a round, which holds so long; 0: as drawn")
	flag.IntVar(&o.clients, "clients", 8, "how many clients, a quarter of them steady")
	flag.IntVar(&o.renew, "renew", 10, "after how many rounds topics and clients are new")
	flag.BoolVar(&o.standby, "standby", false, "rounds of failovers to a standby that lost acknowledged commits")
	flag.BoolVar(&o.hosts, "hosts", false, "every process on a host of its own, in network namespaces, and faults of the network; takes Linux and root")
	flag.StringVar(&o.redis, "redis", redisOne, "what Redis is, with -hosts: one; cluster, of three masters with a replica each; sentinel, a master with a replica and three Sentinels")
	flag.StringVar(&o.bug, "bug", "", "seed a bug into the product first; 'list' lists them")
	flag.StringVar(&o.out, "out", filepath.Join(os.TempDir(), "commitcast-chaos"), "folder of timelines and results")
	flag.BoolVar(&o.goOn, "go-on", false, "go on after a violation, with a new world")
	flag.StringVar(&o.until, "until", "", "go on after other violations than these, with commas")
	flag.BoolVar(&o.verbose, "v", false, "say what each round did")
	flag.Parse()
	if flag.NArg() > 0 {
		fatal(fmt.Errorf("unknown argument %q; see -h", flag.Arg(0)))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if o.bug != "" {
		os.Exit(runBug(ctx, o))
	}
	violations, err := run(ctx, o)
	switch {
	case err != nil:
		fatal(err)
	case violations > 0:
		os.Exit(1)
	}
}

// run runs the rounds, and returns how many violations there were.
func run(ctx context.Context, o options) (int, error) {
	if o.hosts && (o.standby || o.failovers > 0) {
		return 0, errors.New("-hosts has no standby: leave -standby and -failovers out")
	}
	if o.redis != redisOne && !o.hosts || !slices.Contains([]string{redisOne, redisCluster, redisSentinel}, o.redis) {
		return 0, fmt.Errorf("-redis is %q: one, cluster or sentinel, and the latter two take -hosts", o.redis)
	}
	from, err := parseKinds(o.faults, o.hosts, o.redis)
	if err != nil {
		return 0, err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return 0, err
	}
	rec := newRecord(o)
	err = rec.fill(ctx, o, from)
	path, werr := rec.write(o.out)
	fmt.Printf("results in %s, and as JSON beside it\n", path)
	return rec.total(), cmp.Or(err, werr, ctx.Err())
}

// fill runs the rounds: first those without a failover, if both are asked for.
func (rec *record) fill(ctx context.Context, o options, from []kind) error {
	plain, failovers := o, o
	plain.failovers, failovers.standby, failovers.rounds = 0, true, o.failovers
	for _, o := range []options{plain, failovers} {
		for done := 0; done < o.rounds && ctx.Err() == nil && (o.limit == 0 || time.Since(rec.At) < o.limit); {
			n, violated, err := session(ctx, o, from, o.seed+uint64(done), o.rounds-done, rec)
			if err != nil {
				return err
			}
			done += n
			if violated > 0 && o.stops(rec.Violations) {
				return nil
			}
		}
	}
	return nil
}

// stops says whether a run ends because of what was violated.
func (o options) stops(violations map[string]int) bool {
	if o.until == "" {
		return !o.goOn
	}
	for name := range strings.SplitSeq(o.until, ",") {
		if violations[name] > 0 {
			return true
		}
	}
	return false
}

// session runs rounds in one world until there are violations. It returns how many rounds it ran.
func session(ctx context.Context, o options, from []kind, seed uint64, rounds int, rec *record) (n, violated int, err error) {
	w, err := newWorld(ctx, o)
	if err != nil {
		return 0, 0, err
	}
	defer w.close()
	var g *generation
	defer func() {
		if g != nil {
			g.close()
		}
	}()
	for n < rounds && ctx.Err() == nil && (o.limit == 0 || time.Since(rec.At) < o.limit) {
		s := seed + uint64(n)
		if n%max(1, o.renew) == 0 || o.standby {
			if g != nil {
				g.close()
				w.log.forget()
			}
			if g, err = newGeneration(w, o.clients, s); err != nil {
				return n, 0, err
			}
		}
		start := time.Now()
		var res result
		if o.standby {
			res, err = g.failover(s, from)
			if err != nil {
				return n, 0, err
			}
		} else {
			res = g.round(s, schedule(w, s, from, g.topics, o.hold))
		}
		n++
		rec.Rounds = append(rec.Rounds, res)
		if o.verbose {
			fmt.Printf("round seed %-6d %4.1f s, settled in %4d ms, longest wait %4d %4d ms, push p50 %3d p99 %3d ms  %s", s, time.Since(start).Seconds(),
				res.Settle.Milliseconds(), res.First.Milliseconds(), res.Last.Milliseconds(), res.PushP50.Milliseconds(), res.PushP99.Milliseconds(), strings.Join(res.Faults, " "))
			if o.standby {
				fmt.Printf(", lost %d, astray %d, resets %d", res.Lost, res.Astray, res.Resets)
			}
			fmt.Println()
		}
		all := w.violated()
		if len(all) == 0 {
			continue
		}
		for name, count := range w.counts {
			rec.Violations[name] += count
		}
		path := filepath.Join(o.out, fmt.Sprintf("timeline-%d-%d.txt", s, os.Getpid()))
		head := []string{fmt.Sprintf("Seed %d, faults %s, standby %v, hosts %v, redis %s.", s, o.faults, o.standby, o.hosts, o.redis), ""}
		for i, v := range all {
			text := fmt.Sprintf("VIOLATION %s: %s", v.name, v.text)
			head = append(head, text)
			if i < maxTold {
				fmt.Println(text)
			}
		}
		if err := w.log.write(path, append(head, ""), g.lines()); err != nil {
			return n, len(all), err
		}
		mode := ""
		if o.standby {
			mode = " -standby"
		}
		if o.hosts {
			mode = " -hosts -redis " + o.redis
		}
		fmt.Printf("round with seed %d failed; timeline in %s\nagain: go run ./internal/chaos -seed %d -rounds 1 -faults %s -clients %d%s\n", s, path, s, o.faults, o.clients, mode)
		return n, len(all), nil
	}
	return n, 0, nil
}
