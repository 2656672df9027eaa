// Command attack measures what attackers do to honest clients: a broadcaster with authentication, a worker, Postgres and Redis,
// 500 subscribers of topics with a steady flow of events, and attackers in processes of their own, on this machine only. The
// broadcaster believes what they say their addresses are, as it would a proxy: 200 of the attackers, one for each of the honest. It
// needs DATABASE_URL and REDIS_URL; `make attack` provides private ones.
//
// In one run it measures commit to honest socket before, beside a control, during, and after. The control is the same
// attackers against a program that answers their handshakes and drops what they send: on a machine that they share, it
// tells what they cost by being there, and what is beyond it is what they do to the broadcaster. Their rates are bounded, and
// they run at the lowest priority. `make attack` leaves them half of the cores and takes the other half for everything else, so
// that they are a machine of their own as far as one machine can be two.
//
// PROFILE=folder puts a CPU profile of the broadcaster there.
package main

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/internal/app"
	"github.com/commitcast/commitcast/migrations"
)

const (
	audience = "commitcast-attack"
	// topics with the steady flow, and events a second over all of them.
	topics, rate = 10, 50
	// accounts are how many users the attackers have tokens of.
	accounts = 8
	// cpuSeconds is the metric of what a process has used of cores.
	cpuSeconds = "process_cpu_seconds_total"
	// pastTopics hold pastEvents each, for those who want to read the past.
	pastTopics, pastEvents = 50, 1000
)

// roles are what this program is when it starts itself again as a child.
var roles = map[string]func(){
	"commitcast": func() {
		stop := profile(os.Args[2])
		code := app.Main(os.Args[2:], os.Stdout, os.Stderr)
		stop()
		os.Exit(code)
	},
	"honest": honestMain, "attackers": attackersMain, "dummy": dummyMain,
}

func main() {
	if len(os.Args) > 1 {
		if role, ok := roles[os.Args[1]]; ok {
			role()
			return
		}
	}
	seconds := flag.Int("seconds", 20, "how long each phase is measured, at most 60")
	honest := flag.Int("honest", 500, "honest subscribers")
	scale := flag.Float64("scale", 1, "how many attackers, of 5,000 idle ones, 200 flooders, 50 replay bombers and 50 that do not read; at most 1")
	flag.Parse()
	if *seconds < 1 || *seconds > 60 || *scale <= 0 || *scale > 1 || *honest < 1 || *honest > 5000 {
		fmt.Fprintln(os.Stderr, "attack: a flag is out of its bounds")
		os.Exit(2)
	}
	fmt.Printf("Machine: %d cores for everything but the attackers, %s, %s/%s, %s\n", runtime.NumCPU(), apart(), runtime.GOOS, runtime.GOARCH, runtime.Version())
	if err := run(context.Background(), time.Duration(*seconds)*time.Second, *honest, *scale); err != nil {
		fmt.Fprintln(os.Stderr, "attack:", err)
		os.Exit(1)
	}
}

// issuer makes tokens.
type issuer struct{ key ed25519.PrivateKey }

func (i issuer) token(subject string) string {
	text, err := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{"sub": subject, "aud": audience, "exp": time.Now().Add(time.Hour).Unix(),
		"topics": []string{"live:*", "past:*"}}).SignedString(i.key)
	if err != nil {
		panic(err) // strings and a number, with a key of its own
	}
	return text
}

func run(ctx context.Context, length time.Duration, honest int, scale float64) error {
	dir, err := os.MkdirTemp("", "commitcast-attack-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return err
	}
	keyFile := filepath.Join(dir, "key.pem")
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		return err
	}
	who := issuer{private}

	database, pool, err := freshDatabase(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	worker, err := node(database, "worker")
	if err != nil {
		return err
	}
	defer worker.stop()
	b, err := node(database, "broadcaster", "--listen=127.0.0.1:0", "--trusted-proxy-hops=1", "--drain=10ms", "--auth=jwt", "--jwt-alg=EdDSA", "--jwt-key-file="+keyFile, "--jwt-audience="+audience)
	if err != nil {
		return err
	}
	defer b.stop()
	if _, err := pool.Exec(ctx, `SELECT count(commitcast.append('past:' || t, 'past', json_build_object('pad', repeat('x', 200))))
		FROM generate_series(1, $1) t, generate_series(1, $2)`, pastTopics, pastEvents); err != nil {
		return err
	}
	var epoch string
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var published int64
		if err := pool.QueryRow(ctx, `SELECT sum(published)::bigint, (SELECT name FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1) FROM commitcast.partition`).Scan(&published, &epoch); err != nil {
			return err
		}
		if published == pastTopics*pastEvents {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d of %d events are published", published, pastTopics*pastEvents)
		}
	}

	// What Postgres does about so many rows a minute later would fall into one phase or another.
	for _, sql := range []string{"VACUUM ANALYZE", "CHECKPOINT"} {
		if _, err := pool.Exec(ctx, sql); err != nil {
			return err
		}
	}

	crowd, err := startChild("honest")
	if err != nil {
		return err
	}
	defer crowd.end()
	order := honestOrder{Addr: b.clients, Clients: honest, Topics: topics}
	for i := range honest {
		order.Tokens = append(order.Tokens, who.token(fmt.Sprint("honest-", i/50)))
	}
	if err := crowd.tell(order); err != nil {
		return err
	}
	var ready honestReport
	if err := crowd.hear(&ready); err != nil || ready.Error != "" {
		return fmt.Errorf("the honest: %v %s", err, ready.Error)
	}

	w := &writer{pool: pool, acked: make(map[int64]int64)}
	writing := make(chan error, 1)
	over, stopWriting := context.WithCancel(ctx)
	defer stopWriting()
	go func() { writing <- w.run(over) }() // ends with over
	measure := func(name string, length time.Duration) (p phase, err error) {
		p.name = name
		began := time.Now()
		before, err := scrape(b.ops)
		if err != nil {
			return p, err
		}
		from := w.next.Load()
		for end := time.Now().Add(length); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			p.rss = max(p.rss, rss(b.pid))
		}
		to := w.next.Load()
		time.Sleep(time.Second) // what was sent last has a second to arrive
		if err := crowd.tell(honestAsk{}); err != nil {
			return p, err
		}
		var r honestReport
		if err := crowd.hear(&r); err != nil {
			return p, err
		}
		if r.Error != "" {
			return p, fmt.Errorf("%s: an honest client: %s", name, r.Error)
		}
		p.events = to - from
		p.latencies = w.latencies(r, from, to)
		after, err := scrape(b.ops)
		if err != nil {
			return p, err
		}
		p.metrics = difference(before, after)
		p.cpu = p.metrics[cpuSeconds] / time.Since(began).Seconds()
		p.connections = after["commitcast_broadcaster_connections"]
		select {
		case err := <-writing:
			return p, fmt.Errorf("the writer: %w", err)
		default:
			return p, nil
		}
	}
	if _, err := measure("warm", 2*time.Second); err != nil {
		return err
	}
	before, err := measure("before", length)
	if err != nil {
		return err
	}

	attack := attackOrder{Epoch: epoch, Scale: scale, Past: pastTopics, Live: topics}
	for i := range accounts {
		attack.Tokens = append(attack.Tokens, who.token(fmt.Sprint("mallory-", i)))
	}
	dummy, err := startChild("dummy")
	if err != nil {
		return err
	}
	defer dummy.kill()
	var at dummyReport
	if err := dummy.hear(&at); err != nil {
		return err
	}
	var beginnings []phase
	under := func(name, addr string) (phase, error) {
		attack.Addr = addr
		attackers, err := startAttackers(attack)
		if err != nil {
			return phase{}, err
		}
		defer func() { // for a run that ends early
			for _, a := range attackers {
				a.kill()
			}
		}()
		time.Sleep(3 * time.Second)                                  // they come up to strength
		first, err := measure(name+", the first 8 s", 8*time.Second) // until it is known who they are
		if err != nil {
			return first, err
		}
		beginnings = append(beginnings, first)
		p, err := measure(name, length)
		if err != nil {
			return p, err
		}
		for _, a := range attackers {
			if err := a.tell(struct{}{}); err != nil {
				return p, fmt.Errorf("an attacker is gone: %w", err)
			}
			var r attackReport
			if err := a.hear(&r); err != nil {
				return p, fmt.Errorf("an attacker: %w", err)
			}
			p.attackers = append(p.attackers, r)
		}
		return p, nil
	}
	control, err := under("control", at.Addr)
	if err != nil {
		return err
	}
	dummy.kill()
	time.Sleep(2 * time.Second)
	during, err := under("during", b.clients)
	if err != nil {
		return err
	}
	stopped := time.Now()
	recovered := time.Duration(-1)
	for time.Since(stopped) < 30*time.Second {
		m, err := scrape(b.ops)
		if err != nil {
			return err
		}
		if m["commitcast_broadcaster_connections"] == float64(honest) {
			recovered = time.Since(stopped)
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	after, err := measure("after", length)
	if err != nil {
		return err
	}
	stopWriting()
	if err := <-writing; err != nil {
		return err
	}
	report([]phase{before, beginnings[0], control, beginnings[1], during, after}, recovered, honest)
	if recovered < 0 {
		return fmt.Errorf("30 s after the attack there are %v connections, not %d", after.connections, honest)
	}
	return nil
}

// phase is one stretch of the measurement.
type phase struct {
	name        string
	events      int64
	latencies   []int64 // commit to honest socket, ns
	rss         int64   // the most of the broadcaster, in bytes
	cpu         float64 // of the broadcaster, in cores
	connections float64 // at its end
	metrics     map[string]float64
	attackers   []attackReport
}

func report(phases []phase, recovered time.Duration, honest int) {
	fmt.Printf("\nFrom the acknowledged commit to %d honest sockets\n", honest)
	fmt.Printf("  %-23s %8s %10s %9s %9s %9s %10s %6s %12s\n", "", "events", "received", "p50 ms", "p99 ms", "max ms", "RSS MiB", "cores", "connections")
	p99 := map[string]float64{}
	for _, p := range phases {
		p99[p.name] = percentile(p.latencies, 0.99)
		fmt.Printf("  %-23s %8d %10d %9.2f %9.2f %9.2f %10.1f %6.2f %12.0f\n", p.name, p.events, len(p.latencies),
			percentile(p.latencies, 0.5), p99[p.name], percentile(p.latencies, 1), float64(p.rss)/(1<<20), p.cpu, p.connections)
	}
	fmt.Printf("  p99 during, to before %+.0f %%, to the control %+.0f %%\n", 100*(p99["during"]/p99["before"]-1), 100*(p99["during"]/p99["control"]-1))
	fmt.Printf("  %v after the last attacker, the honest are alone again\n", recovered.Round(100*time.Millisecond))
	for _, p := range phases {
		if len(p.attackers) == 0 {
			continue
		}
		fmt.Printf("\nThe attackers, %s\n", p.name)
		for _, a := range p.attackers {
			fmt.Printf("  %-10s opened %7d connections, %6d refused with 503, %6d with another status, %8d frames sent, ended by close codes %v, CPU %.1f s\n",
				a.Kind, a.Opened, a.Full, a.Refused, a.Frames, a.Closes, a.CPU)
		}
		names := slices.Sorted(func(yield func(string) bool) {
			for name := range p.metrics {
				if !yield(name) {
					return
				}
			}
		})
		for _, name := range names {
			if v := p.metrics[name]; v != 0 && (strings.Contains(name, "limits_total") || strings.Contains(name, "_refused_total") || strings.Contains(name, "stalled") ||
				strings.Contains(name, "tokens_total") || strings.Contains(name, "expired") || strings.Contains(name, "events_replayed")) {
				fmt.Printf("  %s %+.0f\n", strings.TrimPrefix(name, "commitcast_"), v)
			}
		}
	}
}

// writer appends events at a steady rate, each with its number.
type writer struct {
	pool  *pgxpool.Pool
	next  atomic.Int64
	mu    sync.Mutex
	acked map[int64]int64 // number → when its commit was acknowledged, Unix ns
}

func (w *writer) run(ctx context.Context) error {
	ticker := time.NewTicker(time.Second / rate)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		n := w.next.Load()
		if _, err := w.pool.Exec(ctx, `SELECT commitcast.append($1, 'live', json_build_object('n', $2::bigint))`, fmt.Sprint("live:", n%topics), n); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		now := time.Now().UnixNano()
		w.mu.Lock()
		w.acked[n] = now
		w.mu.Unlock()
		w.next.Add(1)
	}
}

// latencies are those of the events from one number to another.
func (w *writer) latencies(r honestReport, from, to int64) (list []int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, n := range r.N {
		if n >= from && n < to {
			list = append(list, max(0, r.At[i]-w.acked[n]))
		}
	}
	slices.Sort(list)
	return list
}

// percentile of sorted nanoseconds, in milliseconds.
func percentile(ns []int64, p float64) float64 {
	if len(ns) == 0 {
		return 0
	}
	return float64(ns[min(len(ns)-1, int(p*float64(len(ns))))]) / 1e6
}

// freshDatabase makes a migrated database on the server of DATABASE_URL.
func freshDatabase(ctx context.Context) (url string, pool *pgxpool.Pool, err error) {
	admin, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return "", nil, err
	}
	defer admin.Close()
	const name = "attack"
	for _, sql := range []string{"DROP DATABASE IF EXISTS " + name + " WITH (FORCE)", "CREATE DATABASE " + name} {
		if _, err := admin.Exec(ctx, sql); err != nil {
			return "", nil, err
		}
	}
	config := admin.Config().ConnConfig
	url = fmt.Sprintf("postgres://%s:%s@%s:%d/%s?sslmode=disable", config.User, config.Password, config.Host, config.Port, name)
	if err := migrations.Up(ctx, url, slog.New(slog.DiscardHandler)); err != nil {
		return "", nil, err
	}
	pool, err = pgxpool.New(ctx, url)
	return url, pool, err
}

// process is the commitcast command line, running.
type process struct {
	clients string // address for clients
	ops     string // URL for operators
	pid     int
	stop    func()
}

// node runs the commitcast command line in a process of its own, and returns when it is ready.
func node(database string, args ...string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	args = append(append([]string{"commitcast"}, args...), "--ops-listen=127.0.0.1:0", "--log-format=json")
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), "DATABASE_URL="+database)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{pid: cmd.Process.Pid, stop: func() { cmd.Process.Signal(os.Interrupt); cmd.Wait() }}
	lines := bufio.NewScanner(stderr)
	for p.ops == "" || args[1] != "worker" && p.clients == "" {
		if !lines.Scan() {
			cmd.Wait()
			return nil, fmt.Errorf("%v ended before it served", args)
		}
		var line struct{ Msg, URL string }
		json.Unmarshal(lines.Bytes(), &line)
		switch line.Msg {
		case "serving clients":
			p.clients = strings.TrimSuffix(strings.TrimPrefix(line.URL, "ws://"), "/v1/ws")
		case "serving operators":
			p.ops = line.URL
		}
	}
	go io.Copy(io.Discard, stderr) // ends with the process
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		resp, err := http.Get(p.ops + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return p, nil
			}
		}
		if time.Now().After(deadline) {
			p.stop()
			return nil, fmt.Errorf("%v does not become ready: %v", args, err)
		}
	}
}

// child is a process of this program in another role.
type child struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *json.Decoder
	done sync.Once
}

func startChild(role string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{cmd: exec.Command(self, role)}
	c.cmd.Stderr = os.Stderr
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = json.NewDecoder(stdout)
	if role == "attackers" || role == "dummy" {
		return c, onOtherCores(c.cmd.Start)
	}
	return c, c.cmd.Start()
}

func (c *child) tell(v any) error { return json.NewEncoder(c.in).Encode(v) }
func (c *child) hear(v any) error { return c.out.Decode(v) }

// end closes its input, which ends it; kill does not wait for that.
func (c *child) end() {
	c.in.Close()
	timer := time.AfterFunc(5*time.Second, func() { c.cmd.Process.Kill() })
	defer timer.Stop()
	c.done.Do(func() { c.cmd.Wait() })
}

func (c *child) kill() {
	c.cmd.Process.Kill()
	c.done.Do(func() { c.cmd.Wait() })
}

// scrape reads the metrics of a broadcaster.
func scrape(ops string) (map[string]float64, error) {
	resp, err := http.Get(ops + "/metrics")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	all := make(map[string]float64)
	for lines := bufio.NewScanner(io.LimitReader(resp.Body, 4<<20)); lines.Scan(); {
		name, value, ok := strings.Cut(lines.Text(), " ")
		if v, err := strconv.ParseFloat(value, 64); ok && err == nil && (strings.HasPrefix(name, "commitcast_") || name == cpuSeconds) {
			all[name] = v
		}
	}
	return all, nil
}

func difference(before, after map[string]float64) map[string]float64 {
	d := make(map[string]float64)
	for name, v := range after {
		d[name] = v - before[name]
	}
	return d
}

// rss is the resident memory of a process, in bytes; 0 where it cannot be told.
func rss(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	if fields := strings.Fields(string(b)); len(fields) > 1 {
		pages, _ := strconv.ParseInt(fields[1], 10, 64)
		return pages * int64(os.Getpagesize())
	}
	return 0
}
