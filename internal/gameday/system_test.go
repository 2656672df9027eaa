package gameday

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/commitcast/commitcast/client"
	"github.com/commitcast/commitcast/internal/services"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/internal/testkit/chromium"
)

// options are what a fault needs beside the usual.
type options struct {
	standby bool // a second Postgres follows the first
	prepare func(s *system)
	worker  []string // more flags of the worker
	nodes   []string // and of the broadcasters
	tls     bool     // the broadcasters serve it, with a certificate of s.authority in s.cert and s.key
	tokens  bool     // clients show tokens of s.issuer
}

// system is a worker and two broadcasters, b1 and b2, with Postgres and Redis of their own; b1 reaches Redis through a network that
// may fail. A writer writes, a witness at each broadcaster watches, Prometheus scrapes, and an operator has the console open.
type system struct {
	t  *testing.T
	up options

	postgres, standby *services.Postgres
	redis             *services.Redis
	address           *testkit.Proxy // of the database: it stays when another server takes over
	network           *testkit.Proxy // from b1 to Redis
	database          string         // for a superuser, at the address
	operators         string         // the same for an operator

	authority *testkit.Authority
	issuer    *testkit.Issuer
	cert, key string // files

	disk        string // of the journal, if that has one of its own
	stopProgram func() // ends a program that reads nothing
	page        *page  // that many have open

	worker, b1, b2 *testkit.Node
	ops            map[string]string // ops listeners, host:port; they stay over restarts
	tab            *chromium.Console // nil: nobody looks
	watch          *watch
	writer         *writer
	witnesses      []*witness
}

func start(t *testing.T, up options) *system {
	t.Helper()
	s := &system{t: t, up: up, postgres: testkit.Postgres(t), redis: testkit.Redis(t), ops: map[string]string{}}
	testkit.Migrate(t, s.postgres.URL("postgres"))
	if up.standby {
		var err error
		if s.standby, err = s.postgres.Replica(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.standby.Close)
		for _, sql := range []string{`ALTER SYSTEM SET synchronous_standby_names = '*'`, `SELECT pg_reload_conf()`} {
			s.sql(s.postgres.URL("postgres"), sql) // what is acknowledged is not lost with the primary
		}
	}
	s.address, s.network = testkit.NewProxy(t, s.postgres.Addr()), testkit.NewProxy(t, s.redis.Addr())
	s.database = s.address.URL(s.postgres.URL("postgres"))
	s.operators = testkit.As(t, s.database, "operator")
	for _, name := range []string{"worker", "b1", "b2"} {
		port, err := services.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		s.ops[name] = fmt.Sprintf("127.0.0.1:%d", port)
	}
	flags := append([]string{"--canary"}, up.nodes...)
	h := &http.Client{Transport: &http.Transport{}}
	if up.tls {
		s.authority = testkit.NewAuthority(t)
		cert, key := s.authority.IssueUntil(time.Now().AddDate(0, 1, 0), "127.0.0.1")
		s.cert, s.key = testkit.File(t, "cert.pem", cert), testkit.File(t, "key.pem", key)
		flags = append(flags, "--tls-cert="+s.cert, "--tls-key="+s.key)
		h.Transport = &http.Transport{TLSClientConfig: s.authority.Client()}
	}
	t.Cleanup(h.CloseIdleConnections)
	if up.tokens {
		s.issuer = testkit.NewIssuer(t)
		flags = append(flags, "--auth=jwt", "--jwt-alg=EdDSA", "--jwt-key-file="+s.issuer.File(t), "--jwt-audience="+testkit.Audience)
	}
	if up.prepare != nil {
		up.prepare(s)
	}
	s.startWorker()
	s.b1 = testkit.Start(t, s.database, s.network.URL(s.redis.URL()), append([]string{"broadcaster", "--node=b1", "--ops-listen=" + s.ops["b1"]}, flags...)...)
	s.b2 = testkit.Start(t, s.database, s.redis.URL(), append([]string{"broadcaster", "--node=b2", "--ops-listen=" + s.ops["b2"]}, flags...)...)
	s.watch = startWatch(t, s.ops["worker"], s.ops["b1"], s.ops["b2"])
	s.writer = startWriter(t, s.database)
	s.witnesses = []*witness{s.follow("b1", s.b1.URL, h), s.follow("b2", s.b2.URL, h)}
	if *all {
		console := testkit.Run(t, s.operators, s.redis.URL(), "ops", "serve", "--listen=127.0.0.1:0", "--node="+s.nodes())
		s.tab = chromium.OpenConsole(t, console.URL, "alice", "", "503", "502", "WebSocket", "Failed to load")
		s.tab.Emulate(1120, 700, "light", false)
	}
	return s
}

// follow has a witness follow the topic through a broadcaster.
func (s *system) follow(name, url string, h *http.Client) *witness {
	s.t.Helper()
	c := client.Config{HTTPClient: h}
	if s.issuer != nil {
		c.Token = func(context.Context, bool) (string, error) {
			return s.issuer.Token("witness", []string{topic}, nil), nil
		}
	}
	return startWitness(s.t, name, url, c, s.writer.pool)
}

// startWorker runs the worker, as it was run before.
func (s *system) startWorker() {
	s.t.Helper()
	s.worker = testkit.Start(s.t, s.database, s.redis.URL(), append([]string{"worker", "--ops-listen=" + s.ops["worker"]}, s.up.worker...)...)
}

func (s *system) nodes() string { return s.ops["worker"] + "," + s.ops["b1"] + "," + s.ops["b2"] }

// env is an operator's.
func (s *system) env() []string {
	return []string{"DATABASE_URL=" + s.operators, "REDIS_URL=" + s.redis.URL(), "COMMITCAST_NODES=" + s.nodes(), "COMMITCAST_OPERATOR=alice"}
}

// operator runs a command as the runbook has it, as an operator, and returns all it says.
func (s *system) operator(command string) string {
	s.t.Helper()
	words := strings.Fields(command)
	if words[0] != "commitcast" {
		s.t.Fatalf("%q is not a command of ours", command)
	}
	stdout, stderr, _ := testkit.Command(s.t, s.env(), words[1:]...)
	return stdout + stderr
}

// acts runs a command that changes something, and fails if it is refused.
func (s *system) acts(command string) string {
	s.t.Helper()
	words := append(strings.Fields(command)[1:], "--yes")
	stdout, stderr, code := testkit.Command(s.t, s.env(), words...)
	if code != 0 {
		s.t.Fatalf("%s: exit code %d\n%s%s", command, code, stdout, stderr)
	}
	return stdout
}

// green waits until everything is scraped and nothing fires, nor is about to.
func (s *system) green() {
	s.t.Helper()
	for _, expr := range []string{`count(up{job="commitcast"} == 1) == 3`, `count(commitcast_canary_age_seconds < 3) == 2`, `commitcast_pipeline_sequenced_events > 0`} {
		testkit.Eventually(s.t, curedWithin, func() error {
			n, err := s.watch.finds(expr)
			if err == nil && n == 0 {
				err = fmt.Errorf("no: %s", expr)
			}
			return err
		}, "everything is scraped")
	}
	testkit.Eventually(s.t, curedWithin, func() error {
		names, err := s.watch.alerts("")
		if err == nil && len(names) > 0 {
			err = fmt.Errorf("%v", names)
		}
		return err
	}, "no alert fires, or will")
}

// cured waits until what every alert is about is over that has fired or is pending, and returns which others there were.
func (s *system) cured(alert string) (others []string) {
	s.t.Helper()
	testkit.Eventually(s.t, curedWithin, func() error {
		names, err := s.watch.alerts("firing")
		if err != nil {
			return err
		}
		for _, name := range append(names, alert) {
			if name != alert && !slices.Contains(others, name) {
				others = append(others, name)
			}
			if err := s.watch.over(name); err != nil {
				return err
			}
		}
		return nil
	}, "all is good again")
	slices.Sort(others)
	return others
}

// arrives waits until what is committed from now on is seen at both broadcasters.
func (s *system) arrives() {
	s.t.Helper()
	from := s.writer.committed()
	testkit.Eventually(s.t, curedWithin, func() error {
		if s.writer.committed() < from+3 {
			return fmt.Errorf("only %d are written since %d", s.writer.committed(), from)
		}
		for _, w := range s.witnesses {
			if w.has() < from+3 {
				return fmt.Errorf("%s has %d, not %d", w.name, w.has(), from+3)
			}
		}
		return nil
	}, "what is committed arrives")
}

// exact stops the writer and compares: each witness has seen all that is committed, each once and in order, and none had to read
// its snapshot again unless the database has another history.
func (s *system) exact(history bool) {
	s.t.Helper()
	s.writer.stop()
	last := s.writer.committed()
	held, err := snapshot(s.t.Context(), s.writer.pool)
	if err != nil || held.State != last {
		s.t.Fatalf("%d rows, not the %d that were committed: %v", held.State, last, err)
	}
	for _, w := range s.witnesses {
		testkit.Eventually(s.t, 20*time.Second, func() error {
			if n := w.has(); n != last {
				return fmt.Errorf("%d of %d", n, last)
			}
			return nil
		}, "%s has delivered all", w.name)
		w.mu.Lock()
		if len(w.wrong) > 0 || w.snapshots != 1 && !history {
			s.t.Errorf("%s: %d snapshots, %q", w.name, w.snapshots, w.wrong)
		}
		w.mu.Unlock()
	}
	s.t.Logf("%d events, at both broadcasters each once and in order", last)
}
