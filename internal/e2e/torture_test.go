package e2e

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/commitcast/commitcast/internal/testkit"
)

const (
	tortureCuts  = 40 // of `make test`; TORTURE_CUTS says more
	cutsARound   = 20 // about so many between two settle points
	tortureSeed  = 1  // TORTURE_SEED says another
	tortureLines = 3
)

// TestTorture is the TypeScript client, as it is shipped, in a real Chromium. Four tabs show a topic of absolute values and one of
// changes, which must not be applied twice; they write, too. Meanwhile connections are cut in every way that a network knows, tabs are
// hidden, frozen and reloaded, their clocks moved, messages lost and doubled, their tokens expire, broadcasters and the worker are
// killed. Whenever all is quiet each tab must show what the tables hold, made of exactly the events of the journal.
//
// A seed decides what is done, not when the machine does it: a run cannot be repeated to the letter.
func TestTorture(t *testing.T) {
	if testing.Short() {
		t.Skip("takes twenty seconds")
	}
	cuts, seed := fromEnv(t, "TORTURE_CUTS", tortureCuts), fromEnv(t, "TORTURE_SEED", tortureSeed)
	began := time.Now()
	r := newTorture(t, uint64(seed))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("to repeat: TORTURE_SEED=%d TORTURE_CUTS=%d go test ./internal/e2e -run TestTorture", seed, cuts)
		}
	})
	rounds := max(2, cuts/cutsARound)
	for round := range rounds {
		r.round(round, (cuts*(round+1)/rounds - cuts*round/rounds))
		r.settle(round)
	}
	r.conclude(cuts)
	t.Logf("seed %d, %d settle points, %v: %s", seed, rounds, time.Since(began).Round(time.Second), r.figures())
}

func fromEnv(t *testing.T, name string, other int) int {
	t.Helper()
	if s := os.Getenv(name); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return n
	}
	return other
}

// torture is one run.
type torture struct {
	t        *testing.T
	rng      *rand.Rand
	seed     uint64
	database string
	redis    string
	keys     string // file with the public key of tokens
	market   *market
	web      *testkit.Proxy // before the market
	worker   *node
	lines    []*line
	tabs     []*tortureTab

	kills  atomic.Int64 // of broadcasters: begun or over
	failed atomic.Bool  // the test is over

	loading sync.RWMutex // held by those who load a page: a browser does not try again by itself
	mu      sync.Mutex
	nodes   [2]*node // broadcasters

	count map[string]int // of everything that was done, and that the pages counted; under mu
	past  []past         // that is not verified yet; under mu
}

func newTorture(t *testing.T, seed uint64) *torture {
	r := &torture{t: t, rng: rand.New(rand.NewPCG(seed, 0)), seed: seed, database: testkit.Database(t), redis: testkit.RedisURL(t),
		count: make(map[string]int)}
	issuer := testkit.NewIssuer(t)
	r.keys = issuer.File(t)
	r.market = newMarket(t, r.database, issuer, clientJS(t, os.Getenv("TORTURE_MUTANT")))
	r.web = testkit.NewProxy(t, r.market.addr)
	r.worker = start(t, r.database, r.redis, "worker")
	for i := range r.nodes {
		r.nodes[i] = r.broadcaster()
	}
	chrome := headless(t)
	open := func(name string, l *line, options url.Values) {
		options.Set("seed", strconv.FormatUint(seed+uint64(len(r.tabs)), 10))
		p := openTortureTab(t, chrome, name, r.web.Addr, l.proxy.Addr, options)
		l.tabs = append(l.tabs, p)
		r.tabs = append(r.tabs, p)
	}
	for i := range tortureLines {
		l := &line{r: r, rng: rand.New(rand.NewPCG(seed, uint64(i+1))), proxy: testkit.NewProxy(t, r.nodes[i%2].URL)}
		r.lines = append(r.lines, l)
	}
	open("plain", r.lines[0], url.Values{})
	open("keeping", r.lines[1], url.Values{"keep": {"user"}})
	open("sharing", r.lines[2], url.Values{"share": {"user"}})
	open("sharing, too", r.lines[2], url.Values{"share": {"user"}, "keep": {"other"}})
	return r
}

func (r *torture) broadcaster() *node {
	return start(r.t, r.database, r.redis, "broadcaster", "--heartbeat=1s", "--origins=http://127.0.0.1:*",
		"--auth=jwt", "--jwt-alg=EdDSA", "--jwt-key-file="+r.keys, "--jwt-audience="+testkit.Audience, "--jwt-leeway=0s", "--auth-grace=0s")
}

func (r *torture) counted(what string, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count[what] += n
}

// round cuts so many connections, while everything else goes on.
func (r *torture) round(round, cuts int) {
	r.market.write(r.seed*1000+uint64(round), 2)
	for _, p := range r.tabs {
		if err := p.do("torture.trade(true)"); err != nil {
			r.t.Fatal(err)
		}
	}
	var cutting sync.WaitGroup
	errs := make([]error, len(r.lines))
	for i, l := range r.lines {
		n := cuts*(i+1)/len(r.lines) - cuts*i/len(r.lines)
		cutting.Go(func() { // ends with its cuts
			for done := 0; n > 0 && errs[i] == nil && !r.failed.Load(); n -= done {
				done, errs[i] = l.cut()
			}
		})
	}
	finished := false
	defer func() {
		r.failed.Store(!finished)
		cutting.Wait() // also when the test has failed
	}()
	r.breakdown(round)
	finished = true
	cutting.Wait()
	if err := errors.Join(errs...); err != nil {
		r.t.Fatal(err)
	}
}

// settle stops all writing and compares every tab with the database.
func (r *torture) settle(round int) {
	t, ctx := r.t, r.t.Context()
	for _, p := range r.tabs {
		if err := p.do("torture.trade(false)"); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range r.tabs {
		if err := p.until("no action is under way", func() (bool, error) {
			c, err := p.status()
			if err != nil {
				return false, err
			}
			s, err := evaluate[shown](p, "torture.shown(false)")
			return s.Under == 0, errors.Join(err, p.hurry(c))
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.market.stop(); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, soon, func() (err error) {
		var left int
		if err = r.market.pool.QueryRow(ctx, `SELECT count(*) FROM commitcast.outbox`).Scan(&left); err == nil && left > 0 {
			err = fmt.Errorf("%d are not", left)
		}
		return err
	}, "every event is sequenced")
	tables, err := r.market.tables(ctx)
	if err != nil {
		t.Fatal(err)
	}
	journal := make(map[string][]row)
	for topic := range tables {
		if journal[topic], err = r.market.journal(ctx, topic); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range r.tabs {
		if err := r.equal(p, tables, journal); err != nil {
			t.Fatalf("settle point %d: %v", round, err)
		}
		if err := r.collect(p, false); err != nil {
			t.Fatal(err)
		}
	}
	r.verifyPast(journal)
	if t.Failed() {
		t.FailNow()
	}
}

// equal waits until a tab says that it is up to date, and compares.
func (r *torture) equal(p *tortureTab, tables map[string]values, journal map[string][]row) error {
	if err := p.until("the tab is up to date", func() (bool, error) {
		s, err := evaluate[shown](p, "torture.shown(false)")
		if err != nil {
			return false, err
		}
		for topic, events := range journal {
			if v := s.Topics[topic]; v.Status != "live" || v.Optimistic || offsetOf(v.Cursor) != int64(len(events)) {
				c, err := p.status()
				if err != nil {
					return false, err
				}
				return false, p.hurry(c)
			}
		}
		return true, nil
	}); err != nil {
		return err
	}
	s, err := evaluate[shown](p, "torture.shown(true)")
	if err != nil {
		return err
	}
	for topic, want := range tables {
		v := s.Topics[topic]
		if !equal(v.State.Values, want) {
			err = errors.Join(err, fmt.Errorf("%s: it shows %v at %s, the tables have %v", topic, v.State.Values, v.Cursor, want))
		}
		_, wrong := v.State.verify(journal[topic], offsetOf(v.Cursor))
		err = errors.Join(err, wrongs(topic, wrong))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	return nil
}

func wrongs(topic string, wrong []string) error {
	if len(wrong) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %d wrong: %s", topic, len(wrong), strings.Join(wrong[:min(len(wrong), 5)], "; "))
}

// past is a state that a tab has shown and that something has replaced.
type past struct {
	tab   string
	topic string
	held  held
}

// collect takes what a tab has counted and recorded.
func (r *torture) collect(p *tortureTab, ends bool) error {
	rep, err := evaluate[report](p, fmt.Sprintf("torture.report(%t)", ends))
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for what, n := range rep.Counts {
		r.count[what] += n
	}
	for kind, n := range rep.Errors {
		r.count[kind+" errors"] += n
	}
	for _, s := range rep.Troubles {
		r.t.Errorf("%s: %s", p.name, s)
	}
	for _, s := range rep.Past {
		r.past = append(r.past, past{p.name, s.Topic, s.State})
	}
	return nil
}

// verifyPast holds the states that were replaced to the journal.
func (r *torture) verifyPast(journal map[string][]row) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.past {
		if len(s.held.Seen) == 0 {
			continue
		}
		skipped, wrong := s.held.verify(journal[s.topic], int64(s.held.Seen[len(s.held.Seen)-1][1].(float64)))
		if err := wrongs(s.topic, wrong); err != nil {
			r.t.Errorf("%s, a state that was replaced since: %v", s.tab, err)
		}
		r.count["skipped as held"] += skipped
	}
	r.past = nil
}

// conclude fails a run that has proven less than it is for.
func (r *torture) conclude(cuts int) {
	var paid int
	if err := r.market.pool.QueryRow(r.t.Context(), `SELECT count(*) FROM paid`).Scan(&paid); err != nil {
		r.t.Fatal(err)
	}
	c := r.count
	if paid < c["paid"] || paid > c["acts"] {
		r.t.Errorf("the tables have %d payments; the tabs were told of %d, and asked for %d actions", paid, c["paid"], c["acts"])
	}
	for what, least := range map[string]int{"cuts": cuts, "held": 1, "skipped as held": 1, "restored": 1, "restored with held": 1, "shown": 1, "stale": 1, "expired": 1, "token errors": 1, "applied": 10 * cuts} {
		if c[what] < least {
			r.t.Errorf("%s: %d, less than %d: the test has proven less than it should", what, c[what], least)
		}
	}
}

func (r *torture) figures() string {
	var all []string
	for _, what := range slices.Sorted(maps.Keys(r.count)) {
		all = append(all, fmt.Sprintf("%s %d", what, r.count[what]))
	}
	return strings.Join(all, ", ")
}

// tortureMutants are rules of the client; without one of them the torture turns red.
var tortureMutants = []struct {
	name   string
	change []string // old, new
	caught string   // what it then says
}{
	{"no resubscribe", []string{"if (this.phase === \"failed\") this.phase = \"idle\";\n    this.#subscribe();", ""}, "not within"},
	{"no hole check", []string{"if (f.offset !== cursor.offset + 1 || isForeign(f.epoch, cursor.epoch)) return this.#again(\"subscribe\");", ""}, "missed"},
	{"no pending ids", []string{"if (pending.includes(f.id)) rest = pending.filter((id) => id !== f.id);", "if (false) ;"}, "applied"},
	{"no drop", []string{"if (f.offset <= cursor.offset) return;", ""}, "needless"},
	{"no drop, no hole check", []string{
		"if (f.offset <= cursor.offset) return;", "",
		"if (f.offset !== cursor.offset + 1 || isForeign(f.epoch, cursor.epoch)) return this.#again(\"subscribe\");", ""}, "applied 2 times"},
}

// TestTortureMutants takes rules out of the client and looks whether TestTorture notices. It takes minutes.
func TestTortureMutants(t *testing.T) {
	if os.Getenv("TORTURE") != "mutants" {
		t.Skip("TORTURE=mutants runs it")
	}
	for _, m := range tortureMutants {
		t.Run(strings.ReplaceAll(m.name, " ", "-"), func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestTorture$", "-test.count=1")
			cmd.Env = append(os.Environ(), "TORTURE_MUTANT="+m.name)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatalf("TestTorture stays green without a rule: %s", m.name)
			}
			if !strings.Contains(string(out), m.caught) {
				t.Fatalf("it is red, but does not say %q:\n%.3000s", m.caught, out)
			}
			for line := range strings.Lines(string(out)) {
				if strings.Contains(line, m.caught) {
					t.Logf("%.300s", strings.TrimSpace(line))
					break
				}
			}
		})
	}
}
