// Package chromium drives pages in a headless Chromium, for tests: open, evaluate, wait, click. What the page's console
// complains about is kept. Only _test files import it.
package chromium

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/commitcast/commitcast/internal/services"
)

// Soon is how long a page may take for anything, on a machine that is busy with other tests.
const Soon = time.Minute

// Config is how a tab is opened.
type Config struct {
	Width, Height int // of the window, in pixels
	// Expected are parts of what the console may complain about: browsers log answers that are refusals, and
	// connections that were cut.
	Expected []string
	// Describe is an expression for the page's own account of itself, shown when a wait fails.
	Describe string
}

// Tab is one tab, in a browser of its own. Its methods fail the test instead of returning errors, and are for the
// test's goroutine.
type Tab struct {
	t   testing.TB
	ctx context.Context
	cfg Config

	mu       sync.Mutex
	troubles []string
}

// Open starts a browser, installing it if need be, and opens a page. The browser ends with the test.
func Open(t testing.TB, url string, cfg Config) *Tab {
	t.Helper()
	path, err := services.EnsureChromium(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := chromedp.NewExecAllocator(context.Background(),
		chromedp.ExecPath(path), chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true),
		chromedp.Flag("disable-dev-shm-usage", true), chromedp.WindowSize(cfg.Width, cfg.Height))
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	p := &Tab{t: t, ctx: ctx, cfg: cfg}
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
			if s := m.String(); m.IsException() || strings.HasPrefix(s, "error") {
				p.complain(s)
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

func (p *Tab) complain(s string) {
	if slices.ContainsFunc(p.cfg.Expected, func(part string) bool { return strings.Contains(s, part) }) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.troubles = append(p.troubles, s)
}

// Troubles is what the console has complained about so far.
func (p *Tab) Troubles() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.troubles)
}

// Do runs an action of chromedp that has no method here.
func (p *Tab) Do(a chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, Soon)
	defer cancel()
	if err := chromedp.Do(ctx, a); err != nil {
		p.t.Fatal(err)
	}
}

// Picture is what the window shows now, as PNG.
func (p *Tab) Picture() []byte {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, Soon)
	defer cancel()
	picture, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		p.t.Fatal(err)
	}
	return picture
}

// In evaluates an expression in the page.
func In[T any](p *Tab, expression string) T {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, Soon)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		p.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// Until waits for an expression to be true in the page. format and args say what that means.
func (p *Tab) Until(expression, format string, args ...any) {
	p.t.Helper()
	deadline := time.Now().Add(Soon)
	for !In[bool](p, "!!("+expression+")") {
		if time.Now().After(deadline) {
			p.t.Fatalf("not within %v: %s\n%s\nthe page says %s", Soon, fmt.Sprintf(format, args...), expression,
				In[string](p, p.cfg.Describe))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Click clicks like a person: the element must be there, visible and not covered.
func (p *Tab) Click(selector string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, Soon)
	defer cancel()
	if err := chromedp.Do(ctx, chromedp.Steps(chromedp.WaitEnabled(chromedp.CSS(selector)), chromedp.Click(chromedp.CSS(selector)))); err != nil {
		p.t.Fatalf("clicking %s: %v", selector, err)
	}
}
