package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/commitcast/commitcast/ops"
	"github.com/commitcast/commitcast/outbox"
)

// The capacity model of package ops, held against whole deployments under the loads that it is asked about: as many workers and
// broadcasters as it says, on this machine.

// capacityLoads are what is tried: next to nothing, and three scales of which the last leaves two cores some room, for the load itself
// runs on them, too.
var capacityLoads = []ops.Load{
	{Events: 1, Topics: 1, Subscribers: 2},
	{Events: 50, Topics: 10, Subscribers: 200},
	{Events: 200, Topics: 40, Subscribers: 1000},
	{Events: 500, Topics: 100, Subscribers: 3000},
}

const (
	// capacityFill is how many events each topic gets first, so that the logs of broadcasters and the streams in Redis are full.
	capacityFill = 1024
	// capacityFillRate is how many of them a second, of all topics: clients follow.
	capacityFillRate = 15_000
	// capacityLeast is how many seconds a load is measured at least, after capacityWarm: a worker that has just started costs half a second more.
	capacityLeast, capacityWarm = 5, 2
	// capacityWriters is how many sessions the load has.
	capacityWriters = 16
)

// capacityResult is one load: each figure as the model has it and as measured.
type capacityResult struct {
	Load    ops.Load         `json:"load"`
	Figures []capacityFigure `json:"figures"`
}

type capacityFigure struct {
	Name     string  `json:"name"`
	Model    float64 `json:"model"`
	Measured float64 `json:"measured"`
}

func (r *results) capacity(ctx context.Context, seconds float64) error {
	for _, load := range capacityLoads {
		c, err := capacity(ctx, load, seconds)
		if err != nil {
			return err
		}
		r.Capacity = append(r.Capacity, c)
		fmt.Printf("  %.0f events/s, %.0f topics, %.0f subscribers\n", load.Events, load.Topics, load.Subscribers)
		for _, f := range c.Figures {
			fmt.Printf("    %-36s model %12.4g  measured %12.4g  ratio %5.2f\n", f.Name, f.Model, f.Measured, f.Model/f.Measured)
		}
	}
	return nil
}

// use is what processes have used up to a moment.
type use struct {
	postgres, redis, workers, broadcasters float64 // seconds of CPU
	redisBytes                             float64 // in and out
}

// since is what was used since an earlier moment, a second.
func (u use) since(before use, seconds float64) use {
	return use{(u.postgres - before.postgres) / seconds, (u.redis - before.redis) / seconds, (u.workers - before.workers) / seconds,
		(u.broadcasters - before.broadcasters) / seconds, (u.redisBytes - before.redisBytes) / seconds}
}

// capacity runs one load.
func capacity(ctx context.Context, load ops.Load, seconds float64) (capacityResult, error) {
	seconds = max(seconds, capacityLeast)
	perTopic := int64(capacityFill + perTopicIn(load, capacityWarm) + perTopicIn(load, seconds))
	load.Kept = float64(perTopic)
	result := capacityResult{Load: load}
	model, err := ops.CapacityFor(load)
	if err != nil {
		return result, err
	}
	parts := make(map[string]ops.Part)
	for _, p := range model.Parts {
		parts[p.Name] = p
	}
	options, err := redis.ParseURL(os.Getenv("REDIS_URL"))
	if err != nil {
		return result, fmt.Errorf("the capacity hop takes a Redis of its own, one server: %w", err)
	}
	cache := redis.NewClient(options)
	defer cache.Close()
	empty, err := redisUse(ctx, cache, "memory", "used_memory")
	if err != nil {
		return result, err
	}
	database, err := freshDatabase(ctx, "bench_capacity")
	if err != nil {
		return result, err
	}
	pool, err := pgxpool.New(ctx, fmt.Sprintf("%s&pool_max_conns=%d&pool_min_conns=%d", database, capacityWriters+2, capacityWriters))
	if err != nil {
		return result, err
	}
	defer pool.Close()
	postmaster, err := postmasterOf(ctx, pool)
	if err != nil {
		return result, err
	}

	// The service's own statements, with nothing of ours running.
	plain := func(ctx context.Context, _ string, data string) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "INSERT INTO bench_plain (topic, type, data) VALUES ('t', 'bench', $1)", data)
			return err
		})
	}
	before := postgresCPU(postmaster)
	took, err := appendAtRate(ctx, load, seconds, plain)
	if err != nil {
		return result, err
	}
	own := (postgresCPU(postmaster) - before) / took

	var workers, broadcasters []*process
	for range parts["worker"].Count {
		w, err := node(ctx, database, "worker")
		if err != nil {
			return result, err
		}
		defer w.stop()
		workers = append(workers, w)
	}
	var swarms []*child
	nodes := parts["broadcaster"].Count
	for range nodes {
		b, err := node(ctx, database, "broadcaster", "--listen=127.0.0.1:0", "--auth=off", "--drain=10ms")
		if err != nil {
			return result, err
		}
		defer b.stop()
		broadcasters = append(broadcasters, b)
		s, err := startChild("swarm")
		if err != nil {
			return result, err
		}
		defer s.kill()
		swarms = append(swarms, s)
		if err := s.tell(swarmOrder{Addr: b.clients, Clients: int(load.Subscribers) / nodes, Topic: "capacity", Topics: int(load.Topics), Events: perTopic, Sample: 1 << 30}); err != nil {
			return result, err
		}
		var ready swarmReport
		if err := s.out.Decode(&ready); err != nil || !ready.Ready {
			return result, fmt.Errorf("swarm: %v %s", err, ready.Error)
		}
	}
	if err := fillTopics(ctx, pool, int(load.Topics)); err != nil {
		return result, err
	}
	reports := make([]swarmReport, nodes)
	behind := func(offset int64) error { // waits until all clients have it
		for i, s := range swarms {
			for reports[i].Slowest < offset && !reports[i].Done {
				reports[i] = swarmReport{}
				if err := s.out.Decode(&reports[i]); err != nil || reports[i].Error != "" {
					return fmt.Errorf("swarm: %v %s", err, reports[i].Error)
				}
			}
		}
		return nil
	}
	publish := func(ctx context.Context, topic, data string) error {
		return outbox.Tx(ctx, pool, func(tx *outbox.Transaction) error {
			return tx.Publish(outbox.Event{Topic: topic, Type: "bench", Data: []byte(data)})
		})
	}
	if _, err := appendAtRate(ctx, load, capacityWarm, publish); err != nil {
		return result, err
	}
	if err := behind(perTopic - int64(perTopicIn(load, seconds))); err != nil {
		return result, err
	}
	filled := reports[0].Received
	for _, r := range reports[1:] {
		filled += r.Received
	}

	used := func() (u use, err error) {
		u.postgres = postgresCPU(postmaster)
		for _, w := range workers {
			u.workers += cpuOf(w.pid)
		}
		for _, b := range broadcasters {
			u.broadcasters += cpuOf(b.pid)
		}
		if u.redis, err = redisUse(ctx, cache, "cpu", "used_cpu_sys", "used_cpu_user"); err == nil {
			u.redisBytes, err = redisUse(ctx, cache, "stats", "total_net_input_bytes", "total_net_output_bytes")
		}
		return u, err
	}
	from, err := used()
	if err != nil {
		return result, err
	}
	took, err = appendAtRate(ctx, load, seconds, publish)
	if err != nil {
		return result, err
	}
	to, err := used()
	if err != nil {
		return result, err
	}
	rate := to.since(from, took)
	memory := 0.0
	for _, b := range broadcasters {
		memory += float64(rss(b.pid)) / float64(nodes)
	}
	stored, err := redisUse(ctx, cache, "memory", "used_memory")
	if err != nil {
		return result, err
	}
	var deliveries, received int64
	for i, s := range swarms {
		for !reports[i].Done {
			reports[i] = swarmReport{}
			if err := s.out.Decode(&reports[i]); err != nil || reports[i].Error != "" {
				return result, fmt.Errorf("swarm: %v %s", err, reports[i].Error)
			}
		}
		deliveries, received = deliveries+reports[i].Events, received+reports[i].Received
	}
	deliveries -= (perTopic - int64(perTopicIn(load, seconds))) * int64(load.Subscribers)
	result.Figures = []capacityFigure{
		{"deliveries/s", model.Deliveries, float64(deliveries) / took},
		{"bytes/s to clients", model.Network, float64(received-filled) / took},
		{"bytes/s in and out of Redis", model.RedisNetwork, rate.redisBytes},
		{"cores of Postgres beyond the service's", parts["Postgres"].Cores, rate.postgres - own},
		{"cores of Redis", parts["Redis"].Cores, rate.redis},
		{"cores of all workers", parts["worker"].Cores, rate.workers},
		{"cores of all broadcasters", parts["broadcaster"].Cores, rate.broadcasters},
		{"MiB of a broadcaster", parts["broadcaster"].Memory / (1 << 20), memory / (1 << 20)},
		{"MiB of Redis", parts["Redis"].Memory / (1 << 20), (stored - empty) / (1 << 20)},
	}
	return result, nil
}

// capacityTopic is the name of a topic, as the swarm knows it.
func capacityTopic(n int) string { return swarmOrder{Topic: "capacity", Topics: 1 << 30}.topic(n) }

// perTopicIn is how many events each topic gets in a time.
func perTopicIn(load ops.Load, seconds float64) int { return int(load.Events * seconds / load.Topics) }

// appendAtRate calls write at the load's rate, one topic after the other, and says how many seconds it took.
func appendAtRate(ctx context.Context, load ops.Load, seconds float64, write func(ctx context.Context, topic, data string) error) (float64, error) {
	data := fmt.Sprintf(`{"pad":"%s"}`, strings.Repeat("x", 190)) // 200 bytes: the model's default
	events := perTopicIn(load, seconds) * int(load.Topics)
	work, errs := make(chan int, events), make(chan error, capacityWriters)
	var writers sync.WaitGroup
	for range capacityWriters {
		writers.Go(func() { // waited for below
			for n := range work {
				if err := write(ctx, capacityTopic(n%int(load.Topics)), data); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	began := time.Now()
	for n := range events {
		time.Sleep(time.Until(began.Add(time.Duration(float64(n+1) / load.Events * float64(time.Second))))) // the pace of the load
		work <- n
	}
	close(work)
	writers.Wait()
	select {
	case err := <-errs:
		return 0, err
	default:
		return time.Since(began).Seconds(), nil
	}
}

// fillTopics gives each topic its first events.
func fillTopics(ctx context.Context, pool *pgxpool.Pool, topics int) error {
	names := make([]string, topics)
	for i := range names {
		names[i] = capacityTopic(i)
	}
	each := max(1, min(capacityFill/8, capacityFillRate/10/topics)) // about ten rounds a second
	began := time.Now()
	for done := 0; done < capacityFill; done += each {
		time.Sleep(time.Until(began.Add(time.Duration(done*topics) * time.Second / capacityFillRate))) // the pace of the load
		if _, err := pool.Exec(ctx, `INSERT INTO commitcast.outbox (partition, topic, type, data)
			SELECT commitcast.partition_of(t), t, 'bench', $2::json FROM unnest($1::text[]) t, generate_series(1, $3)`, names,
			fmt.Sprintf(`{"pad":"%s"}`, strings.Repeat("x", 190)), min(each, capacityFill-done)); err != nil {
			return err
		}
	}
	return nil
}

// redisUse adds up fields of a section of INFO.
func redisUse(ctx context.Context, c *redis.Client, section string, fields ...string) (sum float64, err error) {
	text, err := c.Info(ctx, section).Result()
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		for _, f := range fields {
			if f == name {
				v, err := strconv.ParseFloat(value, 64)
				if err != nil {
					return 0, err
				}
				sum += v
			}
		}
	}
	return sum, nil
}

// postmasterOf is the process that all sessions of a server on this machine are children of.
func postmasterOf(ctx context.Context, pool *pgxpool.Pool) (int, error) {
	var pid int
	if err := pool.QueryRow(ctx, "SELECT pg_backend_pid()").Scan(&pid); err != nil {
		return 0, err
	}
	if parent := int(statOf(pid)[1]); parent > 1 {
		return parent, nil
	}
	return 0, errors.New("the capacity hop takes a Postgres on this machine, and Linux")
}

// postgresCPU is what a server has used, in seconds: its processes, and those that have ended.
func postgresCPU(postmaster int) float64 {
	own := statOf(postmaster)
	ticks := own[11] + own[12] + own[13] + own[14]
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range all {
		pid, _ := strconv.Atoi(filepath.Base(p))
		if s := statOf(pid); int(s[1]) == postmaster {
			ticks += s[11] + s[12]
		}
	}
	return ticks / ticksEach
}
