package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/redis/go-redis/v9"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/internal/testkit/chromium"
)

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

// tab is the page in a browser.
type tab struct {
	*chromium.Tab
	t *testing.T
}

func openTab(t *testing.T, url string) *tab {
	t.Helper()
	return &tab{t: t, Tab: chromium.Open(t, url, chromium.Config{
		Width: 1440, Height: 900, Expected: []string{"409", "WebSocket connection"},
		Describe: `"status " + JSON.stringify(window.__demo?.status() ?? null) + "\nlog " + (document.getElementById("log")?.innerText ?? "")`,
	})}
}

// in evaluates an expression in the page.
func in[T any](p *tab, expression string) T {
	p.t.Helper()
	return chromium.In[T](p.Tab, expression)
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
	testkit.Eventually(p.t, chromium.Soon, func() error {
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
	p.Until(fmt.Sprintf("window.__demo.status().verify.equal > %d && window.__demo.status().verify.kind === 'equal'", before),
		"after %s, the page says that it equals the database", after)
	p.Until("/^Screen equals database at offset [0-9,]+$/.test(document.getElementById('verify-title').textContent)", "the line says so")
}

// unharmed fails the test if the console complained, or the page had to mend a difference.
func (p *tab) unharmed() {
	p.t.Helper()
	for _, s := range p.Troubles() {
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

	p.Until("window.__demo?.status().connection === 'open' && Object.keys(window.__demo.figures().markets).length === 8", "the page shows eight markets, live")
	first := in[figures](p, "window.__demo.figures()").Markets[tunnel]
	p.Until(fmt.Sprintf("window.__demo.figures().markets[%q].version > %d && window.__demo.figures().markets[%q].price !== %d",
		tunnel, first.Version+3, tunnel, first.Price), "prices move")
	p.Until("document.querySelectorAll('#tape tr').length > 3 && /^\\d/.test(document.getElementById('f-p50').textContent)", "tape and latency fill")
	p.verified("the start")
	p.pageEqualsDatabase(d, "the start")

	// A trade that is fresh.
	p.Click("#ticket .go")
	p.Until("document.querySelector('.result.done')?.textContent.includes('on this screen')", "the trade comes back as a push")
	p.Until(fmt.Sprintf("window.__demo.figures().markets[%q].mine.yes > 0", tunnel), "the position is shown")
	p.Until("document.querySelectorAll('#positions li').length === 1 && document.querySelector('#tape').textContent.includes('You')", "account and tape show it")

	// One that is stale: hold the price, accept no slippage, wait until the market has moved against it.
	p.Click("#ticket .link")
	p.Click("#ticket [name=tolerance][value='0']")
	held := in[int64](p, fmt.Sprintf("window.__demo.figures().markets[%q].price", tunnel))
	if _, err := d.x.Trade(t.Context(), Order{Market: tunnel, Trader: newTrader(t, d.pool, "mover"), Side: 1, Amount: 400_000_000, Seen: 1, Tolerance: 1_000_000}); err != nil {
		t.Fatal(err)
	}
	d.fleet.SetRate(0) // so that nobody moves it back
	p.Until("document.querySelector('.seen').dataset.drift === 'out'", "the page sees the market move past %d", held)
	p.Click("#ticket .go")
	p.Until("document.querySelector('.result.refused')", "the stale trade is refused")
	fresh, _ := quoteOf(t, d.x, tunnel, 1)
	if text := in[string](p, "document.querySelector('.result.refused').textContent"); !strings.Contains(text, "the market moved") || !strings.Contains(text, "Trade at "+cents(fresh)) {
		t.Errorf("the refusal says %q, the price is %s", text, cents(fresh))
	}
	p.Click(".result.refused .again")
	p.Until("document.querySelector('.result.done')", "the trade at the fresh quote is made")
	d.fleet.SetRate(60)
	p.pageEqualsDatabase(d, "a refusal")

	// The socket is cut, with a TCP reset.
	p.Click("#b-cut")
	p.Until("window.__demo.status().stats.losses === 1", "the socket is gone")
	p.Until("window.__demo.status().connection === 'open' && window.__demo.status().stats.connects === 2", "the page is back")
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
	p.Click("#b-flush")
	testkit.Eventually(t, chromium.Soon, func() bool { return client.Exists(t.Context(), "witness").Val() == 0 }, "Redis is flushed")
	p.verified("the flush")
	p.pageEqualsDatabase(d, "the flush")

	// The worker is killed; trades go on; it is started.
	pid := d.pipe.workerStatus().PID
	p.Click("#b-worker")
	p.Until("document.querySelector('#b-worker b').textContent === 'Start the worker'", "the worker is stopped")
	if err := syscall.Kill(pid, 0); err == nil {
		t.Errorf("worker %d is alive after kill -9", pid)
	}
	made := d.fleet.trades.Load()
	testkit.Eventually(t, chromium.Soon, func() bool { return d.fleet.trades.Load() > made+50 }, "trades go on without a worker")
	p.Until("window.__demo.status().verify.kind === 'behind' && window.__demo.status().verify.behind > 0", "the page knows that it is behind")
	// A tab that is opened now has everything up to now, though nothing is published: the snapshot is of the tables.
	d.fleet.SetRate(0)
	late := openTab(t, d.url)
	late.verified("opening without a worker")
	late.pageEqualsDatabase(d, "opening without a worker")
	d.fleet.SetRate(60)
	p.Click("#b-worker")
	p.Until("document.querySelector('#b-worker b').textContent === 'Kill the worker'", "the worker is started")
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
	p.Do(chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.Call(ctx, emulation.SetDeviceMetricsOverride,
			emulation.SetDeviceMetricsOverrideParams{Width: 360, Height: 740, DeviceScaleFactor: 2, Mobile: true})
		return err
	}))
	p.Until("innerWidth <= 360 && document.documentElement.scrollWidth <= 360", "the page fits a phone")
}

// TestPageWithoutRedis is the demo on the in-process stream: the worker is cancelled and started, and nothing can be
// flushed.
func TestPageWithoutRedis(t *testing.T) {
	d := startDemo(t, "", 6, 40)
	p := openTab(t, d.url)
	p.verified("the start")
	p.Until("document.querySelector('#b-flush').disabled && document.querySelector('#n-stream').textContent.includes('in-process')", "the page says that there is no Redis")
	p.Click("#b-worker")
	p.Until("window.__demo.status().verify.kind === 'behind'", "the page is behind")
	p.Click("#b-worker")
	p.verified("the start of the worker")
	p.Click("#b-cut")
	p.Until("window.__demo.status().stats.connects === 2", "the page is back")
	p.verified("the cut")
	p.pageEqualsDatabase(d, "all of it")
	checkConserved(t, d.pool)
	p.unharmed()
}
