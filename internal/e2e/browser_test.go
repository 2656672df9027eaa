package e2e

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/commitcast/commitcast/internal/services"
)

// soon is how long a page may take for anything, on a machine that is busy with other tests.
const soon = time.Minute

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
		chromedp.Flag("disable-dev-shm-usage", true), chromedp.WindowSize(900, 700))
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
			// A refusal is an answer, but browsers log each 409.
			if s := m.String(); (m.IsException() || strings.HasPrefix(s, "error")) && !strings.Contains(s, "409") {
				p.mu.Lock()
				p.troubles = append(p.troubles, s)
				p.mu.Unlock()
			}
		}
	}()
	t.Cleanup(func() {
		p.mu.Lock()
		if len(p.troubles) > 0 && !t.Failed() {
			t.Errorf("the console says %q", p.troubles)
		}
		p.mu.Unlock()
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
func (p *tab) until(expression string) {
	p.t.Helper()
	deadline := time.Now().Add(soon)
	for !in[bool](p, "!!("+expression+")") {
		if time.Now().After(deadline) {
			p.t.Fatalf("not within %v: %s\nthe page says %s", soon, expression, in[string](p, `document.body.innerText`))
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
