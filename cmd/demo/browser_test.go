package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/redis/go-redis/v9"

	"github.com/commitcast/commitcast/internal/services"
	"github.com/commitcast/commitcast/internal/testkit"
)

// soon is how long the page may take for anything, on a machine that is busy with other tests.
const soon = time.Minute

// liveDemo is a demo that runs, with its page.
type liveDemo struct {
	*demo
	url string
}

// startDemo runs a demo on a fresh database; without a Redis URL, on the in-process stream.
func startDemo(t *testing.T, redisURL string, bots int, rate float64) *liveDemo {
	t.Helper()
	d, err := openDemo(t.Context(), demoConfig{
		databaseURL: testkit.Database(t), redisURL: redisURL, withoutRedis: "left out in this test", privateRedis: redisURL != "",
		bots: bots, rate: rate, seed: 3, controls: true, log: newLogger(os.Stderr, false),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.close)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.run(ctx, l) }() // owned by the test, which reads ended
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the demo ended with: %v", err)
		}
	})
	return &liveDemo{demo: d, url: pageURL(l.Addr())}
}

// tab is one tab of a headless Chromium.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	troubles []string // what the console said that it should not
}

func openTab(t *testing.T, url string) *tab {
	t.Helper()
	path, err := services.EnsureChromium(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := chromedp.NewExecAllocator(context.Background(),
		chromedp.ExecPath(path), chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true),
		chromedp.Flag("disable-dev-shm-usage", true), chromedp.WindowSize(1440, 900))
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	p := &tab{t: t, ctx: ctx}
	if err := chromedp.Do(ctx, chromedp.Navigate("about:blank")); err != nil {
		t.Fatalf("starting Chromium: %v", err)
	}
	console := chromedp.Console(ctx)
	read := make(chan struct{})
	go func() { // owned by the tab: ends with its context
		defer close(read)
		for m, err := range console {
			if err != nil {
				return
			}
			// A refusal is an answer, but browsers log each 409, and each connection that was cut.
			if s := m.String(); (m.IsException() || strings.HasPrefix(s, "error")) && !strings.Contains(s, "409") && !strings.Contains(s, "WebSocket connection") {
				p.mu.Lock()
				p.troubles = append(p.troubles, s)
				p.mu.Unlock()
			}
		}
	}()
	t.Cleanup(func() {
		closing, done := context.WithTimeout(ctx, 20*time.Second)
		defer done()
		if err := chromedp.Cancel(closing); err != nil {
			t.Logf("closing Chromium: %v", err)
		}
		<-read
	})
	if err := chromedp.Do(ctx, chromedp.Navigate(url)); err != nil {
		t.Fatalf("opening the page: %v", err)
	}
	return p
}

// in evaluates an expression in the page.
func in[T any](p *tab, expression string) T {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, soon)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		p.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// until waits for an expression to be true in the page.
func (p *tab) until(expression, format string, args ...any) {
	p.t.Helper()
	deadline := time.Now().Add(soon)
	for !in[bool](p, "!!("+expression+")") {
		if time.Now().After(deadline) {
			p.t.Fatalf("not within %v: %s\nstatus %s\nlog %s", soon, fmt.Sprintf(format, args...),
				in[string](p, `JSON.stringify(window.__demo?.status() ?? null)`), in[string](p, `document.getElementById("log")?.innerText ?? ""`))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// click clicks like a person: the element must be there, visible and not covered.
func (p *tab) click(selector string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, soon)
	defer cancel()
	if err := chromedp.Do(ctx, chromedp.Steps(chromedp.WaitEnabled(chromedp.CSS(selector)), chromedp.Click(chromedp.CSS(selector)))); err != nil {
		p.t.Fatalf("clicking %s: %v", selector, err)
	}
}

// figures are what the page says it shows: window.__demo.figures().
type figures struct {
	Markets map[string]struct {
		Offset, Version, Price, Yes, No, Volume int64
		Mine                                    Holding
	}
	Account struct{ Balance int64 }
	Trader  *session
}

// pageEqualsDatabase stops the bots, waits until the page shows what the tables hold, to the last millionth, and lets
// the bots go on. The tables are read here, not by the page.
func (p *tab) pageEqualsDatabase(d *liveDemo, after string) {
	p.t.Helper()
	rate := d.fleet.Rate()
	d.fleet.SetRate(0)
	defer d.fleet.SetRate(rate)
	testkit.Eventually(p.t, soon, func() error {
		f := in[figures](p, "window.__demo.figures()")
		if f.Trader == nil {
			return fmt.Errorf("the page has no trader")
		}
		s, err := d.x.Figures(p.t.Context(), f.Trader.Trader)
		if err != nil {
			return err
		}
		for _, m := range s.Markets {
			shown := f.Markets[m.ID]
			if shown.Version != m.Version || shown.Price != m.Price || shown.Yes != m.Yes || shown.No != m.No || shown.Volume != m.Volume || shown.Mine != m.Mine {
				return fmt.Errorf("%s: the page shows %+v, the database has %+v", m.ID, shown, m)
			}
		}
		if s.Balance == nil || f.Account.Balance != *s.Balance {
			return fmt.Errorf("the page shows a balance of %d, the database has %v", f.Account.Balance, s.Balance)
		}
		return nil
	}, "after %s, the page equals the database", after)
}

// verified waits until the page itself has compared and found itself equal, once more than now.
func (p *tab) verified(after string) {
	p.t.Helper()
	before := in[int](p, "window.__demo.status().verify.equal")
	p.until(fmt.Sprintf("window.__demo.status().verify.equal > %d && window.__demo.status().verify.kind === 'equal'", before),
		"after %s, the page says that it equals the database", after)
	p.until("/^Screen equals database at offset [0-9,]+$/.test(document.getElementById('verify-title').textContent)", "the line says so")
}

// unharmed fails the test if the console complained, or the page had to mend a difference.
func (p *tab) unharmed() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.troubles {
		p.t.Errorf("console: %s", s)
	}
	if n := in[int](p, "window.__demo.status().verify.differences"); n != 0 {
		p.t.Errorf("the page differed from the database %d times: %s", n, in[string](p, "window.__demo.status().verify.detail"))
	}
	if n := in[int](p, "window.__demo.status().stats.resets"); n != 0 {
		p.t.Errorf("%d resets, though the journal had every event", n)
	}
}

// TestPageInABrowser is the demonstration itself, in a real browser: prices move, a trade on an old price is refused,
// and whatever is broken, the page ends up showing what the database holds.
func TestPageInABrowser(t *testing.T) {
	cache := testkit.Redis(t)
	d := startDemo(t, cache.URL(), 12, 60)
	p := openTab(t, d.url)

	p.until("window.__demo?.status().connection === 'open' && Object.keys(window.__demo.figures().markets).length === 8", "the page shows eight markets, live")
	first := in[figures](p, "window.__demo.figures()").Markets[tunnel]
	p.until(fmt.Sprintf("window.__demo.figures().markets[%q].version > %d && window.__demo.figures().markets[%q].price !== %d",
		tunnel, first.Version+3, tunnel, first.Price), "prices move")
	p.until("document.querySelectorAll('#tape tr').length > 3 && /^\\d/.test(document.getElementById('f-p50').textContent)", "tape and latency fill")
	p.verified("the start")
	p.pageEqualsDatabase(d, "the start")

	// A trade that is fresh.
	p.click("#ticket .go")
	p.until("document.querySelector('.result.done')?.textContent.includes('on this screen')", "the trade comes back as a push")
	p.until(fmt.Sprintf("window.__demo.figures().markets[%q].mine.yes > 0", tunnel), "the position is shown")
	p.until("document.querySelectorAll('#positions li').length === 1 && document.querySelector('#tape').textContent.includes('You')", "account and tape show it")

	// One that is stale: hold the price, accept no slippage, wait until the market has moved against it.
	p.click("#ticket .link")
	p.click("#ticket [name=tolerance][value='0']")
	held := in[int64](p, fmt.Sprintf("window.__demo.figures().markets[%q].price", tunnel))
	if _, err := d.x.Trade(t.Context(), Order{Market: tunnel, Trader: newTrader(t, d.pool, "mover"), Side: 1, Amount: 400_000_000, Seen: 1, Tolerance: 1_000_000}); err != nil {
		t.Fatal(err)
	}
	d.fleet.SetRate(0) // so that nobody moves it back
	p.until("document.querySelector('.seen').dataset.drift === 'out'", "the page sees the market move past %d", held)
	p.click("#ticket .go")
	p.until("document.querySelector('.result.refused')", "the stale trade is refused")
	fresh, _ := quoteOf(t, d.x, tunnel, 1)
	if text := in[string](p, "document.querySelector('.result.refused').textContent"); !strings.Contains(text, "the market moved") || !strings.Contains(text, "Trade at "+cents(fresh)) {
		t.Errorf("the refusal says %q, the price is %s", text, cents(fresh))
	}
	p.click(".result.refused .again")
	p.until("document.querySelector('.result.done')", "the trade at the fresh quote is made")
	d.fleet.SetRate(60)
	p.pageEqualsDatabase(d, "a refusal")

	// The socket is cut, with a TCP reset.
	p.click("#b-cut")
	p.until("window.__demo.status().stats.losses === 1", "the socket is gone")
	p.until("window.__demo.status().connection === 'open' && window.__demo.status().stats.connects === 2", "the page is back")
	p.verified("the cut")
	p.pageEqualsDatabase(d, "the cut")

	// Redis loses everything. A key that a worker does not write shows that it did.
	options, err := redis.ParseURL(cache.URL())
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(options)
	defer client.Close()
	if err := client.Set(t.Context(), "witness", "here", 0).Err(); err != nil {
		t.Fatal(err)
	}
	p.click("#b-flush")
	testkit.Eventually(t, soon, func() bool { return client.Exists(t.Context(), "witness").Val() == 0 }, "Redis is flushed")
	p.verified("the flush")
	p.pageEqualsDatabase(d, "the flush")

	// The worker is killed; trades go on; it is started.
	pid := d.pipe.workerStatus().PID
	p.click("#b-worker")
	p.until("document.querySelector('#b-worker b').textContent === 'Start the worker'", "the worker is stopped")
	if err := syscall.Kill(pid, 0); err == nil {
		t.Errorf("worker %d is alive after kill -9", pid)
	}
	made := d.fleet.trades.Load()
	testkit.Eventually(t, soon, func() bool { return d.fleet.trades.Load() > made+50 }, "trades go on without a worker")
	p.until("window.__demo.status().verify.kind === 'behind' && window.__demo.status().verify.behind > 0", "the page knows that it is behind")
	// A tab that is opened now has everything up to now, though nothing is published: the snapshot is of the tables.
	d.fleet.SetRate(0)
	late := openTab(t, d.url)
	late.verified("opening without a worker")
	late.pageEqualsDatabase(d, "opening without a worker")
	d.fleet.SetRate(60)
	p.click("#b-worker")
	p.until("document.querySelector('#b-worker b').textContent === 'Kill the worker'", "the worker is started")
	p.verified("the start of the worker")
	late.verified("the start of the worker")
	p.pageEqualsDatabase(d, "the worker's absence")
	late.pageEqualsDatabase(d, "the worker's absence")
	if n := in[int](late, "window.__demo.status().stats.skipped"); n == 0 {
		t.Error("the late tab skipped no event, though its snapshot held events that came later")
	}

	checkConserved(t, d.pool)
	p.unharmed()
	late.unharmed()
	p.fitsPhone()
}

// fitsPhone checks that nothing sticks out sideways at 360 pixels.
func (p *tab) fitsPhone() {
	p.t.Helper()
	if err := chromedp.Do(p.ctx, chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.Call(ctx, emulation.SetDeviceMetricsOverride,
			emulation.SetDeviceMetricsOverrideParams{Width: 360, Height: 740, DeviceScaleFactor: 2, Mobile: true})
		return err
	})); err != nil {
		p.t.Fatal(err)
	}
	p.until("innerWidth <= 360 && document.documentElement.scrollWidth <= 360", "the page fits a phone")
}

// TestPageWithoutRedis is the demo on the in-process stream: the worker is cancelled and started, and nothing can be
// flushed.
func TestPageWithoutRedis(t *testing.T) {
	d := startDemo(t, "", 6, 40)
	p := openTab(t, d.url)
	p.verified("the start")
	p.until("document.querySelector('#b-flush').disabled && document.querySelector('#n-stream').textContent.includes('in-process')", "the page says that there is no Redis")
	p.click("#b-worker")
	p.until("window.__demo.status().verify.kind === 'behind'", "the page is behind")
	p.click("#b-worker")
	p.verified("the start of the worker")
	p.click("#b-cut")
	p.until("window.__demo.status().stats.connects === 2", "the page is back")
	p.verified("the cut")
	p.pageEqualsDatabase(d, "all of it")
	checkConserved(t, d.pool)
	p.unharmed()
}
