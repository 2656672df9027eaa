// Command bench measures the hops of Commitcast beside a limit program for each, in one run: ratios, not promises.
// It needs DATABASE_URL and REDIS_URL; `make bench` provides private ones. QUICK=1 makes one short round; CURVES=1 measures
// how figures grow with one quantity instead, and draws them. PROFILE=folder puts CPU profiles of the children there, and
// heap profiles of the servers of fan-outs.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/commitcast/commitcast/internal/app"
)

// roles are what this program is when it starts itself again as a child.
var roles = map[string]func(){
	"swarm": swarmMain, "fanserver": fanserverMain, "bareworker": bareWorkerMain, "barebroadcaster": bareBroadcasterMain,
	"commitcast": func() {
		if code := app.Main(os.Args[2:], os.Stdout, os.Stderr); code != 0 {
			os.Exit(code)
		}
	},
}

// results is what one run writes to bench-results/.
type results struct {
	At       time.Time        `json:"at"`
	Machine  string           `json:"machine"`
	Pipeline []pipelineResult `json:"pipeline"`
	Pgbench  []pgbenchResult  `json:"pgbench"`
	Writers  []writersResult  `json:"writers"`
	Backlog  []backlogResult  `json:"backlog"`
	Fanout   []fanResult      `json:"fanout"`
	Idle     []fanResult      `json:"idle"`
	Stalled  []fanResult      `json:"stalled"`
	Storm    []stormResult    `json:"storm"`
	Capacity []capacityResult `json:"capacity,omitempty"`
	Curves   []curveResult    `json:"curves,omitempty"`

	Details map[string]string `json:"details"` // of the machine and its servers
}

func main() {
	if len(os.Args) > 1 {
		role, ok := roles[os.Args[1]]
		if !ok {
			fatal(fmt.Errorf("unknown argument %q; run make bench", os.Args[1]))
		}
		defer profile(os.Args[1:])()
		role()
		return
	}
	rounds, seconds := 3, 8.0
	if os.Getenv("QUICK") != "" {
		rounds, seconds = 1, 3
	}
	all := allHops
	if os.Getenv("CURVES") != "" {
		all = nil
		for _, c := range curves {
			all = append(all, c.name)
		}
	}
	hops := strings.Fields(strings.ReplaceAll(os.Getenv("HOPS"), ",", " "))
	if len(hops) == 0 {
		hops = all
	}
	for _, hop := range hops {
		if !slices.Contains(all, hop) {
			fatal(fmt.Errorf("HOPS has %q; there are: %s", hop, strings.Join(all, " ")))
		}
	}
	ctx := context.Background()
	r := results{At: time.Now().UTC(), Machine: fmt.Sprintf("%d cores, %s/%s, %s, everything on it", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version())}
	r.Details = machine(ctx)
	fmt.Println("Machine:", r.Machine)
	if os.Getenv("CURVES") != "" {
		if err := r.runCurves(ctx, hops); err != nil {
			fatal(err)
		}
		if err := r.save(); err != nil {
			fatal(err)
		}
		return
	}
	for round := range rounds {
		fmt.Printf("\nRound %d\n", round+1)
		for _, hop := range hops {
			if err := map[string]func(context.Context, float64) error{
				"pipeline": r.pipeline, "pgbench": r.pgbench, "writers": r.writers, "backlog": r.backlog, "fanout": r.fanout,
				"idle": r.idle, "stalled": r.stalled, "storm": r.storm, "capacity": r.capacity,
			}[hop](ctx, seconds); err != nil {
				fatal(err)
			}
		}
	}
	r.ratios()
	if err := r.save(); err != nil {
		fatal(err)
	}
}

// allHops are the parts of a round; HOPS selects some.
var allHops = []string{"pipeline", "pgbench", "writers", "backlog", "fanout", "idle", "stalled", "storm", "capacity"}

func (r *results) pipeline(ctx context.Context, seconds float64) error {
	for _, kind := range []string{kindLimit, kindCommitcast, kindSQL} {
		database, err := freshDatabase(ctx, "bench_pipeline")
		if err != nil {
			return err
		}
		p, err := pipeline(ctx, kind, database, 200, seconds)
		if err != nil {
			return err
		}
		r.Pipeline = append(r.Pipeline, p)
		fmt.Printf("  commit → socket, %3.0f tx/s     %-14s from the acknowledged commit p50 %5.2f ms p99 %5.2f ms, from the intended time p50 %5.2f ms p99 %5.2f ms\n",
			p.Rate, p.Kind, p.AckP50, p.AckP99, p.IntendedP50, p.IntendedP99)
		if kind != kindLimit {
			fmt.Printf("    of it to the sequencing statement p50 %5.2f ms p99 %5.2f ms, from there to the socket p50 %5.2f ms p99 %5.2f ms\n",
				p.SequenceP50, p.SequenceP99, p.SocketP50, p.SocketP99)
		}
	}
	return nil
}

// pgbenchStretch is how many times longer than the other hops pgbench runs: it is the long run of real input.
const pgbenchStretch = 4

func (r *results) pgbench(ctx context.Context, seconds float64) error {
	for _, kind := range []string{kindPlainTable, kindCommitcast} {
		database, err := freshDatabase(ctx, "bench_pgbench")
		if err != nil {
			return err
		}
		p, err := pgbench(ctx, kind, database, pgbenchStretch*seconds)
		if err != nil {
			return err
		}
		r.Pgbench = append(r.Pgbench, p)
		fmt.Printf("  pgbench, %d clients            %-14s %6.0f transactions/s", pgbenchClients, p.Kind, p.PerSecond)
		if kind == kindCommitcast {
			fmt.Printf(", %d: every balance equal on both nodes, no gap; the last event %.0f ms after the load; at %d/s append → socket p50 %.2f ms p99 %.2f ms",
				p.Transactions, p.CaughtUpMS, pgbenchModerate, p.SocketP50, p.SocketP99)
		}
		fmt.Println()
	}
	return nil
}

func (r *results) writers(ctx context.Context, seconds float64) error {
	database, err := freshDatabase(ctx, "bench_writers")
	if err != nil {
		return err
	}
	worker, err := node(ctx, database, "worker")
	if err != nil {
		return err
	}
	defer worker.stop()
	for _, kind := range []string{kindPlainTable, kindManyTopics, kindOneTopic} {
		w, err := writers(ctx, kind, database, 32, seconds)
		if err != nil {
			return err
		}
		r.Writers = append(r.Writers, w)
		fmt.Printf("  %d writers                    %-14s %6.0f transactions/s\n", w.Writers, w.Kind, w.PerSecond)
	}
	return nil
}

func (r *results) fanout(_ context.Context, seconds float64) error {
	for _, o := range []struct {
		order   fanOrder
		clients int
	}{
		{fanOrder{Kind: kindLimit, Events: int64(5 * seconds), Rate: 5}, 4000},
		{fanOrder{Kind: kindCommitcast, Events: int64(5 * seconds), Rate: 5}, 4000},
		{fanOrder{Kind: kindQueues, Events: 1000, Window: 256}, 1000},
		{fanOrder{Kind: kindCommitcast, Events: 4000, Window: 256}, 1000},
	} {
		o.order.Topic, o.order.Bytes = "t", 100
		f, err := fanout(o.order, o.clients, 0)
		if err != nil {
			return err
		}
		r.Fanout = append(r.Fanout, f)
		fmt.Printf("  %d subscribers, one topic     %-14s %8.0f deliveries/s, p50 %6.2f ms p99 %6.2f ms, %5.2f CPU s per million\n",
			f.Clients, f.Kind, f.PerSecond, f.P50, f.P99, f.CPUPerMillion)
	}
	return nil
}

func (r *results) backlog(ctx context.Context, _ float64) error {
	for _, kind := range []string{kindLimit, kindCommitcast} {
		database, err := freshDatabase(ctx, "bench_backlog")
		if err != nil {
			return err
		}
		b, err := backlog(ctx, kind, database)
		if err != nil {
			return err
		}
		r.Backlog = append(r.Backlog, b)
		fmt.Printf("  backlog of %d events      %-14s %6.0f events/s\n", b.Events, b.Kind, b.PerSecond)
	}
	return nil
}

// idle measures memory: connections with one subscription each, and next to nothing to deliver.
func (r *results) idle(context.Context, float64) error {
	for _, clients := range []int{1, 8000} {
		f, err := fanout(fanOrder{Kind: kindCommitcast, Topic: "t", Events: 1, Rate: 1, Bytes: 100}, clients, 0)
		if err != nil {
			return err
		}
		r.Idle = append(r.Idle, f)
	}
	n := len(r.Idle)
	each := func(of func(fanResult) int64) float64 {
		return float64(of(r.Idle[n-1])-of(r.Idle[n-2])) / float64(r.Idle[n-1].Clients-r.Idle[n-2].Clients) / 1024
	}
	fmt.Printf("  %d idle connections        %-14s %6.1f KiB of RSS each; after a collection %.1f of heap, %.1f of stacks\n", r.Idle[n-1].Clients, kindCommitcast,
		each(func(f fanResult) int64 { return f.RSS }), each(func(f fanResult) int64 { return f.Heap }), each(func(f fanResult) int64 { return f.Stacks }))
	return nil
}

// stalled measures what a subscriber that takes nothing does to 1,000 others.
func (r *results) stalled(_ context.Context, seconds float64) error {
	for _, stalled := range []int{0, 1} {
		f, err := fanout(fanOrder{Kind: kindCommitcast, Topic: "t", Events: int64(20 * seconds), Rate: 20, Bytes: 1000}, 1000, stalled)
		if err != nil {
			return err
		}
		r.Stalled = append(r.Stalled, f)
		fmt.Printf("  1000 subscribers, %d stalled    %-14s p50 %6.2f ms p99 %6.2f ms, RSS %d MiB\n", stalled, f.Kind, f.P50, f.P99, f.RSS>>20)
	}
	return nil
}

func (r *results) storm(ctx context.Context, _ float64) error {
	for _, clients := range []int{2000, 5000} {
		database, err := freshDatabase(ctx, "bench_storm")
		if err != nil {
			return err
		}
		s, err := storm(ctx, database, clients)
		if err != nil {
			return err
		}
		r.Storm = append(r.Storm, s)
		fmt.Printf("  %d come back, %d behind     %-14s all caught up in %.2f s, %.0f events read; the connected p50 %.2f ms p99 %.2f ms\n",
			s.Clients, s.Missed, kindCommitcast, s.Seconds, s.EventsRead, s.LiveP50, s.LiveP99)
	}
	return nil
}

// ratios prints medians over the rounds, each against its limit in the same run.
func (r *results) ratios() {
	median := func(v []float64) float64 {
		if len(v) == 0 {
			return math.NaN()
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	var p50 = map[string][]float64{}
	for _, p := range r.Pipeline {
		p50[p.Kind] = append(p50[p.Kind], p.AckP50)
	}
	var rate = map[string][]float64{}
	for _, w := range r.Writers {
		rate[w.Kind] = append(rate[w.Kind], w.PerSecond)
	}
	var stock = map[string][]float64{}
	for _, p := range r.Pgbench {
		stock[p.Kind] = append(stock[p.Kind], p.PerSecond)
	}
	var fast = map[string][]float64{}
	for _, f := range r.Fanout {
		if f.Rate == 0 {
			fast[f.Kind] = append(fast[f.Kind], f.PerSecond)
		}
	}
	var drain = map[string][]float64{}
	for _, b := range r.Backlog {
		drain[b.Kind] = append(drain[b.Kind], b.PerSecond)
	}
	fmt.Printf("\nMedians, as ratios inside this run\n")
	fmt.Printf("  commit → socket p50, to the bare hops:                     %.2f\n", median(p50[kindCommitcast])/median(p50[kindLimit]))
	fmt.Printf("  the same in SQL only, commitcast.append, to the bare hops: %.2f\n", median(p50[kindSQL])/median(p50[kindLimit]))
	fmt.Printf("  pgbench, commitcast.append to a plain table:               %.2f\n", median(stock[kindCommitcast])/median(stock[kindPlainTable]))
	fmt.Printf("  transactions/s, one topic to 10,000 topics:                %.2f\n", median(rate[kindOneTopic])/median(rate[kindManyTopics]))
	fmt.Printf("  transactions/s, outbox to a plain table:                   %.2f\n", median(rate[kindManyTopics])/median(rate[kindPlainTable]))
	fmt.Printf("  events/s of a backlog, worker to sequencing alone:         %.2f\n", median(drain[kindCommitcast])/median(drain[kindLimit]))
	fmt.Printf("  deliveries/s, shared log to a queue for each connection:   %.2f\n", median(fast[kindCommitcast])/median(fast[kindQueues]))
}

func (r *results) save() error {
	if err := os.MkdirAll("bench-results", 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	name := "bench-results/" + r.At.Format("20060102-150405") + ".json"
	fmt.Println("Raw results:", name)
	return os.WriteFile(name, b, 0o644)
}
