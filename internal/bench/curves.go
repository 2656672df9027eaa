package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-analyze/charts"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/internal/journal"
	"github.com/commitcast/commitcast/wire"
)

// The curves: how a figure grows with one quantity, all else the same. What is worse than linear shows in them.

// curve is one growth. Measure is called for each X in turn and returns a value for each name, in the order of names.
type curve struct {
	name    string
	title   string
	x       string
	xs      []int
	names   []string
	plotted []int // the names that share one plot and one axis
	measure func(ctx context.Context, x int) ([]float64, error)
}

// curveResult is what one run found.
type curveResult struct {
	Name   string      `json:"name"`
	Title  string      `json:"title"`
	X      string      `json:"x"`
	Xs     []int       `json:"xs"`
	Names  []string    `json:"names"`
	Values [][]float64 `json:"values"` // by x, then by name
}

const (
	curveSeconds  = 3
	curveBacklog  = 100_000
	curveFollows  = 2_000 // subscribers, shared among the broadcasters
	curveOldReads = 200   // of 1,000 events each
)

var curves = []curve{
	{"subscribers", "Subscribers of one topic, 5 events/s", "subscribers", []int{1, 10, 100, 1000, 2000, 4000, 8000},
		[]string{"p50 ms", "p99 ms", "CPU s per million deliveries"}, []int{0, 1}, curveSubscribers},
	{"topics", "Backlog of 100,000 events, one worker, by topics", "topics", []int{1, 10, 100, 1000, 10_000, 100_000},
		[]string{"events/s"}, []int{0}, curveTopics},
	{"partitions", "Backlog of 100,000 events in 1,000 topics, one worker, by partitions with work", "partitions", []int{1, 2, 4, 8, 16, 32},
		[]string{"events/s"}, []int{0}, curvePartitions},
	{"rate", "Commit to socket, by transactions a second", "tx/s", []int{25, 50, 100, 200, 400, 800},
		[]string{"p50 ms", "p99 ms"}, []int{0, 1}, curveRate},
	{"journal", "Journal of so many rows: read 1,000 events at random places; sequence 20,000", "rows", []int{0, 10_000, 100_000, 1_000_000, 10_000_000},
		[]string{"read p50 ms", "read p99 ms", "sequenced events/s", "size MB"}, []int{0, 1}, curveJournal},
	{"broadcasters", "2,000 subscribers of one topic on so many broadcasters, 10 events/s", "broadcasters", []int{1, 2, 3, 4},
		[]string{"p50 ms", "p99 ms", "CPU s of all broadcasters per million deliveries"}, []int{0, 1}, curveBroadcasters},
}

// runCurves measures those that are chosen; all, if none are.
func (r *results) runCurves(ctx context.Context, chosen []string) error {
	for _, c := range curves {
		if len(chosen) > 0 && !slices.Contains(chosen, c.name) {
			continue
		}
		result := curveResult{Name: c.name, Title: c.title, X: c.x, Names: c.names}
		fmt.Printf("\n%s\n\n| %s | %s |\n|%s\n", c.title, c.x, strings.Join(c.names, " | "), strings.Repeat("---|", len(c.names)+1))
		for _, x := range c.xs {
			values, err := c.measure(ctx, x)
			if err != nil {
				return fmt.Errorf("%s at %d: %w", c.name, x, err)
			}
			result.Xs, result.Values = append(result.Xs, x), append(result.Values, values)
			fmt.Printf("| %s |", thousands(x))
			for _, v := range values {
				fmt.Printf(" %s |", short(v))
			}
			fmt.Println()
		}
		r.Curves = append(r.Curves, result)
		if err := result.plot(c.plotted); err != nil {
			return err
		}
	}
	return nil
}

// plot draws a curve into bench-results; the axis of x has one step for each value.
func (c curveResult) plot(names []int) error {
	labels, legend, values := make([]string, len(c.Xs)), make([]string, len(names)), make([][]float64, len(names))
	for i, x := range c.Xs {
		labels[i] = thousands(x)
	}
	for i, n := range names {
		legend[i] = c.Names[n]
		for _, at := range c.Values {
			values[i] = append(values[i], at[n])
		}
	}
	zero := 0.0
	p, err := charts.LineRender(values, charts.SVGOutputOptionFunc(), charts.DimensionsOptionFunc(640, 320), charts.TitleTextOptionFunc(c.Title, c.X),
		charts.XAxisLabelsOptionFunc(labels), charts.YAxisOptionFunc(charts.YAxisOption{Min: &zero}),
		charts.LegendOptionFunc(charts.LegendOption{SeriesNames: legend, Offset: charts.OffsetStr{Left: charts.PositionRight, Top: "28"}}))
	if err != nil {
		return err
	}
	svg, err := p.Bytes()
	if err != nil {
		return err
	}
	if err := os.MkdirAll("bench-results", 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join("bench-results", "curve-"+c.Name+".svg"), svg, 0o644)
}

func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// short is a number with two digits after the point, or none from 100 on.
func short(v float64) string {
	if v >= 100 {
		return thousands(int(v + 0.5))
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

func curveSubscribers(_ context.Context, n int) ([]float64, error) {
	f, err := fanout(fanOrder{Kind: kindCommitcast, Topic: "t", Events: 5 * curveSeconds, Rate: 5, Bytes: 100}, n, 0)
	return []float64{f.P50, f.P99, f.CPUPerMillion}, err
}

func curveTopics(ctx context.Context, n int) ([]float64, error) {
	return curveDrained(ctx, "SELECT 'topic:' || i % $2::int FROM generate_series(1, $1::int) i", curveBacklog, n)
}

// curvePartitions: topics whose partition is below n.
func curvePartitions(ctx context.Context, n int) ([]float64, error) {
	topics := make([]string, 0, backlogTopics)
	for i := 0; len(topics) < backlogTopics; i++ {
		if t := fmt.Sprint("topic:", i); wire.Partition(t) < n {
			topics = append(topics, t)
		}
	}
	return curveDrained(ctx, "SELECT ($2::text[])[1 + i % cardinality($2::text[])] FROM generate_series(1, $1::int) i", curveBacklog, topics)
}

// curveDrained is how many events a second a worker drains from a backlog whose topics a query names.
func curveDrained(ctx context.Context, topics string, events int, arg any) ([]float64, error) {
	database, err := freshDatabase(ctx, "bench_curve")
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.New(ctx, database)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	worker, err := node(ctx, database, "worker")
	if err != nil {
		return nil, err
	}
	defer worker.stop()
	if _, err := pool.Exec(ctx, `INSERT INTO commitcast.outbox (partition, topic, type, data)
		SELECT commitcast.partition_of(t), t, 'bench', '{"price":0.53,"volume":1200}' FROM (`+topics+`) AS x (t)`, events, arg); err != nil {
		return nil, err
	}
	began := time.Now()
	err = drained(ctx, pool, int64(events))
	return []float64{float64(events) / time.Since(began).Seconds()}, err
}

func curveRate(ctx context.Context, rate int) ([]float64, error) {
	database, err := freshDatabase(ctx, "bench_curve")
	if err != nil {
		return nil, err
	}
	p, err := pipeline(ctx, kindCommitcast, database, float64(rate), curveSeconds)
	return []float64{p.AckP50, p.AckP99}, err
}

// curveJournal fills the journal by the hand of an administrator, with seqs below zero, which no publisher looks for.
func curveJournal(ctx context.Context, rows int) ([]float64, error) {
	const topics = 1000
	database, err := freshDatabase(ctx, "bench_curve")
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.New(ctx, database)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, `INSERT INTO commitcast.journal (topic, "offset", epoch, partition, seq, id, type, data, created_at, sequenced_at)
		SELECT t.topic, n, e.name, commitcast.partition_of(t.topic), -(t.i * 100000::bigint + n), t.i * 100000::bigint + n, 'bench', '{"price":0.53,"volume":1200}', now(), now()
		FROM (SELECT i, 'old:' || i AS topic FROM generate_series(1, $1::int) i) AS t, generate_series(1, $2::int) n, commitcast.epoch e`, topics, rows/topics); err != nil {
		return nil, err
	}
	if _, err := pool.Exec(ctx, "ANALYZE commitcast.journal"); err != nil {
		return nil, err
	}
	if _, err := pool.Exec(ctx, "CHECKPOINT"); err != nil {
		return nil, err
	}
	var reads []int64
	each := rows / topics
	for range curveOldReads {
		if each == 0 {
			break
		}
		after := rand.Int64N(int64(max(1, each-1000)))
		began := time.Now()
		_, frames, err := journal.New(pool).Range(ctx, fmt.Sprint("old:", 1+rand.IntN(topics)), after, 1000)
		if err != nil || int64(len(frames)) != min(1000, int64(each)-after) {
			return nil, fmt.Errorf("%d events after %d of %d: %v", len(frames), after, each, err)
		}
		reads = append(reads, int64(time.Since(began)))
	}
	if _, err := pool.Exec(ctx, `INSERT INTO commitcast.outbox (partition, topic, type, data)
		SELECT commitcast.partition_of(t), t, 'bench', '{"price":0.53,"volume":1200}' FROM (SELECT 'topic:' || i % 1000 FROM generate_series(1, 20000) i) AS x (t)`); err != nil {
		return nil, err
	}
	began := time.Now()
	if err := sequenceAll(ctx, pool); err != nil {
		return nil, err
	}
	perSecond := 20_000 / time.Since(began).Seconds()
	var size float64
	err = pool.QueryRow(ctx, `SELECT coalesce(sum(pg_total_relation_size(relid)), 0) / 1e6 FROM pg_partition_tree('commitcast.journal')`).Scan(&size)
	return []float64{percentile(reads, 0.5), percentile(reads, 0.99), perSecond, size}, err
}

func curveBroadcasters(ctx context.Context, n int) ([]float64, error) {
	const topic, rate = "curve", 10
	database, err := freshDatabase(ctx, "bench_curve")
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.New(ctx, database)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	worker, err := node(ctx, database, "worker")
	if err != nil {
		return nil, err
	}
	defer worker.stop()
	const events = rate * curveSeconds
	swarms, pids := make([]*child, n), make([]int, n)
	cpu := func() (sum float64) {
		for _, pid := range pids {
			sum += cpuOf(pid)
		}
		return sum
	}
	for i := range swarms {
		broadcaster, err := node(ctx, database, "broadcaster", "--listen=127.0.0.1:0", "--auth=off", "--drain=10ms")
		if err != nil {
			return nil, err
		}
		defer broadcaster.stop()
		pids[i] = broadcaster.pid
		if swarms[i], err = startChild("swarm"); err != nil {
			return nil, err
		}
		defer swarms[i].kill()
		if err := swarms[i].tell(swarmOrder{Addr: broadcaster.clients, Clients: curveFollows / n, Topic: topic, Events: events}); err != nil {
			return nil, err
		}
		var ready swarmReport
		if err := swarms[i].out.Decode(&ready); err != nil || !ready.Ready {
			return nil, fmt.Errorf("swarm: %v %s", err, ready.Error)
		}
	}
	before, began := cpu(), time.Now()
	for i := range events {
		at := began.Add(time.Duration(i+1) * time.Second / rate)
		time.Sleep(time.Until(at))
		if _, err := pool.Exec(ctx, `SELECT commitcast.append($1, 'bench', $2)`, topic, fmt.Sprintf(`{"t":%d}`, at.UnixNano())); err != nil {
			return nil, err
		}
	}
	var latencies []int64
	for _, s := range swarms {
		for {
			var r swarmReport
			if err := s.out.Decode(&r); err != nil || r.Error != "" {
				return nil, fmt.Errorf("swarm: %v %s", err, r.Error)
			}
			if r.Done {
				latencies = append(latencies, r.Latencies...)
				break
			}
		}
	}
	perMillion := (cpu() - before) / float64(max(1, len(latencies))) * 1e6
	return []float64{percentile(latencies, 0.5), percentile(latencies, 0.99), perMillion}, nil
}

// machine describes what a run ran on.
func machine(ctx context.Context) map[string]string {
	m := map[string]string{}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				m["cpu"] = strings.TrimSpace(value)
			}
		}
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		first, _, _ := strings.Cut(string(b), "\n")
		m["memory"] = strings.Join(strings.Fields(first)[1:], " ")
	}
	if b, err := exec.CommandContext(ctx, "uname", "-sr").Output(); err == nil {
		m["kernel"] = strings.TrimSpace(string(b))
	}
	if pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL")); err == nil {
		defer pool.Close()
		var settings json.RawMessage
		if pool.QueryRow(ctx, `SELECT json_object_agg(name, setting) FROM pg_settings
			WHERE name IN ('server_version', 'fsync', 'synchronous_commit', 'shared_buffers', 'max_wal_size')`).Scan(&settings) == nil {
			m["postgres"] = string(settings)
		}
	}
	return m
}
