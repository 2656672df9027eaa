package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/internal/testkit"
)

// redWithin is the time within which a broken hop turns the canary red: the limit of 5 s, and what a busy machine may take beyond.
// The listener is tried anew every 5 s, and a silent socket is given up after 3 s.
const canaryReady, redWithin, greenWithin = "--canary-ready=5s", 20 * time.Second, 30 * time.Second

// readiness is what /readyz says of a part, and whether the node as a whole is ready.
func readiness(t *testing.T, n *node, part string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", n.Ops+"/readyz", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err.Error(), 0
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body) // all of it: the connection is used again
	if err != nil {
		return err.Error(), 0
	}
	states := make(map[string]string)
	if err := json.Unmarshal(text, &states); err != nil {
		return err.Error(), resp.StatusCode
	}
	return states[part], resp.StatusCode
}

func green(t *testing.T, n *node) {
	t.Helper()
	start := time.Now()
	testkit.Eventually(t, greenWithin, func() error {
		if said, status := readiness(t, n, "canary"); said != "ready" || status != http.StatusOK {
			return fmt.Errorf("%d %s", status, said)
		}
		return nil
	}, "the canary is green")
	t.Logf("green after %v", time.Since(start).Round(time.Millisecond))
}

// red waits until the canary says why the node is not ready.
func red(t *testing.T, n *node, why ...string) {
	t.Helper()
	start := time.Now()
	testkit.Eventually(t, redWithin, func() error {
		said, status := readiness(t, n, "canary")
		for _, part := range why {
			if status != http.StatusServiceUnavailable || !strings.Contains(said, part) {
				return fmt.Errorf("%d %s, which does not say %q", status, said, part)
			}
		}
		return nil
	}, "the canary is red")
	said, _ := readiness(t, n, "canary")
	t.Logf("red after %v: %s", time.Since(start).Round(time.Millisecond), said)
}

// metric is the value of one in a node's /metrics, as it is written there, with its labels; 0 if it is not there.
func metric(t *testing.T, n *node, name string) float64 {
	t.Helper()
	resp, err := http.Get(n.Ops + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	return 0
}

// Whatever hop is broken, a node that gets nothing is not ready, says what to do, and is ready again by itself; other nodes are
// not touched by what is its own.
func TestCanaryGoesRedAndGreen(t *testing.T) {
	t.Run("worker", func(t *testing.T) {
		t.Parallel()
		database, redis := testkit.Database(t), testkit.RedisURL(t)
		w := start(t, database, redis, "worker")
		b := start(t, database, redis, "broadcaster", "--canary", canaryReady)
		green(t, b)
		w.Cmd.Process.Signal(syscall.SIGSTOP)
		red(t, b, "is committed", "commitcast ops stuck")
		w.Cmd.Process.Signal(syscall.SIGCONT)
		green(t, b)
		if stale := metric(t, b, `commitcast_canary_seconds_total{state="stale"}`); stale < 1 {
			t.Errorf("%v stale seconds", stale)
		}
		if lost, again := metric(t, b, "commitcast_canary_lost_total"), metric(t, b, "commitcast_canary_disordered_total"); lost+again != 0 {
			t.Errorf("%v events lost and %v in disorder, though all were late only", lost, again)
		}
	})
	t.Run("redis and postgres", func(t *testing.T) {
		t.Parallel()
		database, redis := testkit.Database(t), testkit.RedisURL(t)
		toPostgres, toRedis := testkit.NewProxy(t, database), testkit.NewProxy(t, redis)
		start(t, database, redis, "worker")
		cut := start(t, toPostgres.URL(database), toRedis.URL(redis), "broadcaster", "--canary", canaryReady)
		other := start(t, database, redis, "broadcaster", "--canary", canaryReady)
		green(t, cut)
		green(t, other)
		toPostgres.Blackhole()
		toRedis.Blackhole()
		red(t, cut, "the database", "commitcast ops status")
		green(t, other) // it writes now
		toPostgres.Resume()
		toRedis.Resume()
		green(t, cut)
		if lost := metric(t, cut, "commitcast_canary_lost_total"); lost != 0 {
			t.Errorf("%v events lost: what came meanwhile was not caught up with", lost)
		}
	})
	t.Run("listener", func(t *testing.T) {
		t.Parallel()
		database, redis := testkit.Database(t), testkit.RedisURL(t)
		start(t, database, redis, "worker")
		b := start(t, database, redis, "broadcaster", "--canary", canaryReady)
		green(t, b)
		// A process that has no file descriptor left takes no client, while those that it has go on, and so does /readyz on a
		// connection that is there.
		limit := openFiles(t, b, 3)
		red(t, b, "own listener", "open files")
		openFiles(t, b, limit)
		green(t, b)
	})
}

// openFiles sets the highest file descriptor that a process may open from now on, and returns what it was.
func openFiles(t *testing.T, n *node, limit uint64) (before uint64) {
	t.Helper()
	var was syscall.Rlimit
	set := func(to, from *syscall.Rlimit) {
		_, _, errno := syscall.Syscall6(syscall.SYS_PRLIMIT64, uintptr(n.Cmd.Process.Pid), syscall.RLIMIT_NOFILE, uintptr(unsafe.Pointer(to)), uintptr(unsafe.Pointer(from)), 0, 0)
		if errno != 0 {
			t.Fatal(errno)
		}
	}
	set(nil, &was)
	set(&syscall.Rlimit{Cur: limit, Max: was.Max}, nil)
	return was.Cur
}

// Three nodes write one event a second together, each sees all of them, and what is passed or comes again is counted: on every node.
func TestCanaryIsCounted(t *testing.T) {
	database, redis := testkit.Database(t), testkit.RedisURL(t)
	start(t, database, redis, "worker")
	nodes := make([]*node, 3)
	for i := range nodes {
		nodes[i] = start(t, database, redis, "broadcaster", "--canary")
	}
	const failedSockets = `commitcast_canary_sockets_total{outcome="failed"}`
	failed := make(map[*node]float64) // before the node had asked the database
	for _, n := range nodes {
		testkit.Eventually(t, greenWithin, func() bool { return metric(t, n, "commitcast_canary_arrived_total") >= 3 }, "three events")
		failed[n] = metric(t, n, failedSockets)
	}
	exec1(t, database, `UPDATE commitcast.canary SET n = n + 3`) // as if three commits had vanished
	for _, n := range nodes {
		testkit.Eventually(t, greenWithin, func() bool { return metric(t, n, "commitcast_canary_lost_total") == 3 }, "three lost")
	}
	exec1(t, database, `UPDATE commitcast.canary SET n = n - 2`)
	for _, n := range nodes {
		testkit.Eventually(t, greenWithin, func() bool { return metric(t, n, "commitcast_canary_disordered_total") >= 1 }, "one in disorder")
	}
	var sum float64
	for _, n := range nodes {
		sum += metric(t, n, "commitcast_canary_written_total")
		if more := metric(t, n, failedSockets) - failed[n]; more > 0 {
			t.Errorf("%v sockets failed", more)
		}
		if age := metric(t, n, "commitcast_canary_age_seconds"); age <= 0 || age > 20 {
			t.Errorf("the newest is %v s old", age)
		}
		if n := metric(t, n, "commitcast_canary_delay_seconds_count"); n < 3 {
			t.Errorf("%v delays", n)
		}
	}
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var rows, fast float64
	if err := conn.QueryRow(t.Context(), `SELECT count(*), count(*) FILTER (WHERE gap < interval '700 ms') FROM (
		SELECT created_at - lag(created_at) OVER (ORDER BY "offset") AS gap FROM commitcast.journal WHERE topic = 'commitcast/canary') j`).Scan(&rows, &fast); err != nil {
		t.Fatal(err)
	}
	if rows > sum || fast > 0 {
		t.Errorf("%v events, of which %v came sooner than 950 ms after the one before; the nodes have written %v", rows, fast, sum)
	}
}

// With tokens, a service that allows nothing, TLS for another name and pages only, the node signs in as itself. Nobody else gets in with
// what looks like it, and what it signs in with is in no log.
func TestCanarySignsIn(t *testing.T) {
	issuer, authority := testkit.NewIssuer(t), testkit.NewAuthority(t)
	database, redis := testkit.Database(t), testkit.RedisURL(t)
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{"allow":false}`) }))
	defer hook.Close()
	cert, key := authority.Files("live.example.com")
	start(t, database, redis, "worker")
	b := start(t, database, redis, "broadcaster", "--log-level=debug", "--canary", canaryReady, "--auth=jwt", "--jwt-alg=EdDSA", "--jwt-key-file="+issuer.File(t),
		"--jwt-audience="+testkit.Audience, "--authorize-url="+hook.URL, "--tls-cert="+cert, "--tls-key="+key, "--require-origin", "--hosts=live.example.com")
	testkit.Eventually(t, greenWithin, func() bool { return metric(t, b, `commitcast_canary_sockets_total{outcome="opened"}`) >= 2 }, "two sockets")
	green(t, b)
	if refused := metric(t, b, `commitcast_broadcaster_tokens_total{outcome="refused"}`); refused > 0 {
		t.Errorf("%v tokens refused", refused)
	}
	if log := b.Log(); regexp.MustCompile(`canary\.[A-Z2-7]{8}`).MatchString(log) {
		t.Error("the log tells what it signs in with")
	}
	// The certificate has expired: clients find that, and so does the canary.
	expired, expiredKey := authority.IssueUntil(time.Now().Add(-time.Minute), "live.example.com")
	for name, content := range map[string][]byte{cert: expired, key: expiredKey} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	red(t, b, "certificate", "expired")
}

// Wrong flags are refused before anything is opened.
func TestCanaryFlags(t *testing.T) {
	for _, args := range [][]string{{"--canary-ready=10s"}, {"--canary", "--canary-ready=1s"}, {"--canary", "--canary-ready=-5s"}} {
		_, stderr, code := command(t, []string{"DATABASE_URL=postgres://127.0.0.1:1/x", "REDIS_URL=redis://127.0.0.1:1"}, append([]string{"broadcaster", "--auth=off", "--ops-listen="}, args...)...)
		if code != 2 || !strings.Contains(stderr, "--canary-ready") {
			t.Errorf("%v: exit code %d, %s", args, code, stderr)
		}
	}
}
