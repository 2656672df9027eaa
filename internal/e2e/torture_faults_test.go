package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"time"

	"github.com/commitcast/commitcast/internal/testkit"
)

// line is the way of one connection to the broadcasters: of one tab, or of two that share it.
type line struct {
	r     *torture
	rng   *rand.Rand
	proxy *testkit.Proxy
	tabs  []*tortureTab
	deck  []int // kinds of cuts that are to come
}

// cutKinds are the ways in which a connection ends. Each is done to a line whose tabs are connected, and is over when all of
// them have lost their connection.
var cutKinds = []struct {
	name string
	do   func(l *line, lost func() error) error
}{
	{"closed", func(l *line, lost func() error) error { l.proxy.Finish(); return lost() }},
	{"reset", func(l *line, lost func() error) error { l.proxy.Cut(); return lost() }},
	{"in mid-frame", func(l *line, lost func() error) error { l.proxy.Break(l.rng.Float64()); return lost() }},
	{"in mid-frame", func(l *line, lost func() error) error { l.proxy.Break(l.rng.Float64()); return lost() }},
	{"in mid-frame", func(l *line, lost func() error) error { l.proxy.Break(l.rng.Float64()); return lost() }},
	{"black hole", func(l *line, lost func() error) error {
		if l.rng.IntN(2) == 0 {
			l.proxy.Blackhole()
		} else {
			l.proxy.HoldReplies() // the server hears what the client says
		}
		defer l.proxy.Resume()
		return lost()
	}},
	{"and again while connecting", func(l *line, lost func() error) error {
		before := l.proxy.Accepted()
		l.proxy.Cut()
		if err := lost(); err != nil {
			return err
		}
		if err := l.attempt(before); err != nil {
			return err
		}
		l.pause(30 * time.Millisecond) // hello, subscribe or replay
		l.proxy.Cut()
		return nil
	}},
	{"and refused", func(l *line, lost func() error) error {
		before := l.proxy.Accepted()
		l.proxy.Refuse()
		defer l.proxy.Resume()
		if err := lost(); err != nil {
			return err
		}
		return l.attempt(before)
	}},
	{"to another broadcaster", func(l *line, lost func() error) error {
		l.r.direct(l, l.rng.IntN(2))
		l.proxy.Cut()
		return lost()
	}},
	{"while frozen", func(l *line, lost func() error) error {
		p := l.tabs[l.rng.IntN(len(l.tabs))]
		if err := p.freeze(); err != nil {
			return err
		}
		l.pause(200 * time.Millisecond)
		l.proxy.Cut()
		l.pause(500 * time.Millisecond)
		if err := p.show(); err != nil {
			return err
		}
		return lost()
	}},
	{"while hidden", func(l *line, lost func() error) error {
		p := l.tabs[l.rng.IntN(len(l.tabs))]
		if err := p.hide(); err != nil {
			return err
		}
		l.proxy.Finish()
		l.pause(500 * time.Millisecond)
		if err := p.show(); err != nil {
			return err
		}
		return lost()
	}},
	// The clock of a page jumps, and the network falls silent: nothing but the clock can tell how long. Date is moved by
	// the page, not by the browser's virtual time, in which timers jump, too: that is another world, without a real
	// network, while clocks that are set, and machines that were suspended, move Date alone.
	{"the clock moved", func(l *line, lost func() error) error {
		moves := []time.Duration{-24 * time.Hour, -90 * time.Minute, -5 * time.Second, 40 * time.Second, 90 * time.Minute, 24 * time.Hour}
		l.proxy.Blackhole()
		defer l.proxy.Resume()
		for _, p := range l.tabs {
			if err := p.do("moveClock(%d)", moves[l.rng.IntN(len(moves))].Milliseconds()); err != nil {
				return err
			}
		}
		return lost()
	}},
}

// cut does something harmless or harmful to the tabs of a line, and cuts its connection in one of the ways. It returns
// how many connections it has cut: none, if a broadcaster was killed or a token has expired meanwhile, and may have been first.
func (l *line) cut() (int, error) {
	if len(l.deck) == 0 { // every kind comes once, in any order, before one comes again
		l.deck = l.rng.Perm(len(cutKinds))
	}
	kind := cutKinds[l.deck[0]]
	l.deck = l.deck[1:]
	if err := l.disturb(); err != nil {
		return 0, err
	}
	kills := l.r.kills.Load()
	before := make([]status, len(l.tabs))
	follows := l.rng.IntN(4) > 0
	for i, p := range l.tabs {
		var err error
		if before[i], err = p.connected(follows); err != nil {
			return 0, err
		}
	}
	l.pause(150 * time.Millisecond)
	expired := false
	err := kind.do(l, func() error {
		for i, p := range l.tabs {
			token, err := p.lost(before[i])
			if err != nil {
				return err
			}
			expired = expired || token
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("cut %s: %w", kind.name, err)
	}
	if expired || l.r.kills.Load() != kills {
		return 0, nil
	}
	l.r.counted("cut "+kind.name, 1)
	l.r.counted("cuts", 1)
	return 1, nil
}

// disturb does to a tab what its user might, or to its messages what the network must not.
func (l *line) disturb() error {
	p := l.tabs[l.rng.IntN(len(l.tabs))]
	switch l.rng.IntN(12) {
	case 0:
		l.r.counted("reloads", 1)
		return l.r.reload(p)
	case 1:
		return p.do("torture.reread(%q)", []string{pricesTopic, accountsTopic}[l.rng.IntN(2)])
	case 2:
		if _, err := p.connected(true); err != nil {
			return err
		}
		return p.do("torture.nudge()") // an open connection is probed
	case 3, 4, 5:
		if _, err := p.connected(true); err != nil {
			return err
		}
		return p.do("torture.harm(%q)", []string{"lose", "twice", "swap"}[l.rng.IntN(3)])
	}
	return nil
}

// attempt waits until somebody connects once more.
func (l *line) attempt(before int) error {
	return l.tabs[0].until("another attempt to connect", func() (bool, error) {
		for _, p := range l.tabs {
			s, err := p.status()
			if err == nil {
				err = p.hurry(s)
			}
			if err != nil {
				return false, err
			}
		}
		return l.proxy.Accepted() > before, nil
	})
}

// pause lets things go on for a random time: it waits for nothing.
func (l *line) pause(most time.Duration) { time.Sleep(time.Duration(l.rng.Int64N(int64(most)))) }

// direct sends new connections of a line to a broadcaster.
func (r *torture) direct(l *line, i int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l.proxy.SetTarget(strings.TrimPrefix(r.nodes[i].URL, "ws://"))
}

// reload loads a page again. What it has shown is verified at the next settle point.
func (r *torture) reload(p *tortureTab) error {
	if err := r.collect(p, true); err != nil {
		return err
	}
	r.loading.RLock()
	err := p.load()
	r.loading.RUnlock()
	if err != nil {
		return err
	}
	return p.do("torture.trade(true)")
}

// breakdown is what happens to the servers in a round.
func (r *torture) breakdown(round int) {
	i := r.rng.IntN(2)
	r.kill(i, syscall.SIGKILL)
	if round%2 == 0 {
		r.killWorker(round%4 == 2)
		return
	}
	r.cutWeb()
	r.kill(1-i, syscall.SIGTERM)
	if round%4 == 3 {
		r.kill(i, syscall.SIGKILL)
	}
}

// kill ends a broadcaster. Its lines go to the other one at once, or come back to it when it is there again.
func (r *torture) kill(i int, signal syscall.Signal) {
	n := r.nodes[i]
	elsewhere := r.rng.IntN(2) == 0
	if elsewhere {
		for _, l := range r.lines {
			r.direct(l, 1-i)
		}
	}
	r.kills.Add(1)
	n.Cmd.Process.Signal(signal)
	<-n.Done
	again := r.broadcaster()
	r.mu.Lock()
	r.nodes[i] = again
	r.mu.Unlock()
	for k, l := range r.lines {
		if !elsewhere || k == i {
			r.direct(l, i)
		}
	}
	r.kills.Add(1)
	r.counted("broadcasters killed", 1)
}

// killWorker kills the worker, lets tabs read snapshots that hold events which nobody has given an offset, and starts another. One
// tab is reloaded in between, and goes on from what it kept; or all of it is of a history that has ended.
func (r *torture) killWorker(epoch bool) {
	r.worker.Cmd.Process.Kill()
	<-r.worker.Done
	for _, topic := range []string{pricesTopic, accountsTopic} {
		testkit.Eventually(r.t, soon, func() (err error) {
			var waits bool
			err = r.market.pool.QueryRow(r.t.Context(), `SELECT EXISTS (SELECT FROM commitcast.outbox WHERE topic = $1)`, topic).Scan(&waits)
			if err == nil && !waits {
				err = errors.New("none")
			}
			return err
		}, "events of %s wait for an offset", topic)
	}
	for _, p := range r.tabs {
		var asked time.Time
		if err := p.until("its snapshots hold events without an offset", func() (bool, error) {
			s, err := p.status()
			if err == nil && !s.Holds && time.Since(asked) > time.Second { // a read that was under way may be an older one
				asked = time.Now()
				err = errors.Join(p.do("torture.reread(%q)", pricesTopic), p.do("torture.reread(%q)", accountsTopic))
			}
			return s.Holds, err
		}); err != nil {
			r.t.Fatal(err)
		}
	}
	keeps := r.lines[1].tabs[0]
	if err := keeps.do("torture.kept()"); err != nil {
		r.t.Fatal(err)
	}
	if err := r.reload(keeps); err != nil {
		r.t.Fatal(err)
	}
	if epoch {
		if _, err := r.market.pool.Exec(r.t.Context(), `SELECT commitcast.begin_epoch(NULL, 'torture')`); err != nil {
			r.t.Fatal(err)
		}
		r.counted("epochs", 1)
	}
	r.worker = start(r.t, r.database, r.redis, "worker")
	r.counted("workers killed", 1)
}

// cutWeb loses requests and answers of snapshots and actions.
func (r *torture) cutWeb() {
	for range 4 {
		r.loading.Lock()
		r.web.HoldReplies() // what is asked now is done, and nobody hears of it
		time.Sleep(time.Duration(r.rng.Int64N(int64(200 * time.Millisecond))))
		r.web.Cut()
		r.web.Resume()
		r.loading.Unlock()
		time.Sleep(time.Duration(r.rng.Int64N(int64(200 * time.Millisecond))))
	}
	r.counted("cuts of HTTP", 4)
}
