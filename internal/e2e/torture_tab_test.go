package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"

	"github.com/commitcast/commitcast/internal/services"
)

// headless starts one headless browser and returns its context. It ends with the test.
func headless(t *testing.T) context.Context {
	t.Helper()
	path, err := services.EnsureChromium(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := chromedp.NewExecAllocator(context.Background(),
		chromedp.ExecPath(path), chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true),
		chromedp.Flag("disable-dev-shm-usage", true))
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx, chromedp.Navigate("about:blank")); err != nil {
		t.Fatalf("starting Chromium: %v", err)
	}
	t.Cleanup(func() {
		closing, done := context.WithTimeout(ctx, 20*time.Second)
		defer done()
		if err := chromedp.Cancel(closing); err != nil {
			t.Logf("closing Chromium: %v", err)
		}
	})
	return ctx
}

// tortureTab is a tab that shows testdata/torture.html. Its methods return errors, since they are called from goroutines of
// their own; they may be called from several at once.
type tortureTab struct {
	name string
	ctx  context.Context
	url  string

	loading sync.RWMutex // held while there is no page
}

// openTortureTab opens a page that reaches the broadcasters at link.
func openTortureTab(t *testing.T, chrome context.Context, name, app, link string, options url.Values) *tortureTab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(chrome)
	t.Cleanup(cancel)
	options.Set("link", "ws://"+link+"/v1/ws")
	p := &tortureTab{name: name, ctx: ctx, url: "http://" + app + "/?" + options.Encode()}
	if err := p.load(); err != nil {
		t.Fatal(err)
	}
	return p
}

// load loads the page, anew if it is there.
func (p *tortureTab) load() error {
	p.loading.Lock()
	defer p.loading.Unlock()
	if err := chromedp.Do(p.ctx, chromedp.Navigate(p.url)); err != nil {
		return fmt.Errorf("%s: loading the page: %w", p.name, err)
	}
	return p.until("the page's script runs", func() (bool, error) { return evaluateIn[bool](p, "!!globalThis.torture") })
}

// evaluate evaluates an expression in the page.
func evaluate[T any](p *tortureTab, expression string) (v T, err error) {
	p.loading.RLock()
	defer p.loading.RUnlock()
	return evaluateIn[T](p, expression)
}

// evaluateIn is evaluate under p.loading.
func evaluateIn[T any](p *tortureTab, expression string) (v T, err error) {
	ctx, cancel := context.WithTimeout(p.ctx, soon)
	defer cancel()
	if v, err = chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise)); err != nil {
		err = fmt.Errorf("%s: %.100s: %w", p.name, expression, err)
	}
	return v, err
}

// do evaluates an expression and waits for what it promises.
func (p *tortureTab) do(format string, args ...any) error {
	_, err := evaluate[bool](p, "Promise.resolve("+fmt.Sprintf(format, args...)+").then(() => true)")
	return err
}

// until waits for a condition.
func (p *tortureTab) until(what string, holds func() (bool, error)) error {
	for deadline := time.Now().Add(soon); ; time.Sleep(20 * time.Millisecond) {
		ok, err := holds()
		if ok && err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			status, _ := evaluateIn[string](p, "JSON.stringify([torture.status(), torture.shown()])")
			return fmt.Errorf("%s: not within %v: %s (%v)\n%s", p.name, soon, what, err, status)
		}
	}
}

// devtools sends a command of the DevTools protocol.
func devtools[P, R any](p *tortureTab, c cdp.Command[P, R], params P) (result R, err error) {
	ctx, cancel := context.WithTimeout(p.ctx, soon)
	defer cancel()
	err = chromedp.Do(ctx, chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		result, err = chromedp.Call(ctx, c, params)
		return err
	}))
	return result, err
}

// freeze stops the page's tasks, as a browser does with a tab in the background; its sockets stay. show wakes it.
func (p *tortureTab) freeze() error {
	_, err := devtools(p, page.SetWebLifecycleState, page.SetWebLifecycleStateParams{State: page.SetWebLifecycleStateStateFrozen})
	return err
}

// hide minimizes the window: visibilityState is hidden, and timers are throttled to one a second.
func (p *tortureTab) hide() error { return p.window(browser.WindowStateMinimized) }

// show makes the page visible, however it was hidden.
func (p *tortureTab) show() error {
	err := p.until("the page takes orders", func() (bool, error) {
		_, err := devtools(p, page.SetWebLifecycleState, page.SetWebLifecycleStateParams{State: page.SetWebLifecycleStateStateActive})
		return err == nil, err // not while Chromium is still putting it away
	})
	for _, state := range []browser.WindowState{browser.WindowStateMinimized, browser.WindowStateNormal} { // a frozen page stays hidden otherwise
		if err == nil {
			err = p.window(state)
		}
	}
	if err != nil {
		return fmt.Errorf("%s: showing the page: %w", p.name, err)
	}
	return p.until("the page is visible", func() (bool, error) { return evaluate[bool](p, "document.visibilityState === 'visible'") })
}

func (p *tortureTab) window(state browser.WindowState) error {
	w, err := devtools(p, browser.GetWindowForTarget, browser.GetWindowForTargetParams{})
	if err == nil {
		_, err = devtools(p, browser.SetWindowBounds, browser.SetWindowBoundsParams{WindowID: w.WindowID, Bounds: &browser.Bounds{WindowState: state}})
	}
	return err
}

// status is torture.status().
type status struct {
	State   string // of the connection
	In      int64  // ms until the next attempt
	Follows bool   // both topics are subscribed to
	Losses  int
	Expired int  // how many of them for their token
	Holds   bool // the snapshots of both topics held events without an offset
}

func (p *tortureTab) status() (status, error) { return evaluate[status](p, "torture.status()") }

// hurry makes a page connect sooner than it means to.
func (p *tortureTab) hurry(s status) error {
	if s.State == "waiting" && s.In > 300 {
		return p.do("torture.hurry()")
	}
	return nil
}

// connected waits until the page is connected, and follows both topics if it is to.
func (p *tortureTab) connected(follows bool) (s status, err error) {
	err = p.until("the page is connected", func() (_ bool, err error) {
		if s, err = p.status(); err != nil {
			return false, err
		}
		return s.State == "open" && (s.Follows || !follows), p.hurry(s)
	})
	return s, err
}

// lost waits until the page has lost the connection that it had, and tells whether for its token.
func (p *tortureTab) lost(before status) (expired bool, err error) {
	return expired, p.until("the page notices that its connection is lost", func() (bool, error) {
		s, err := p.status()
		expired = s.Expired > before.Expired
		return s.Losses > before.Losses, err
	})
}

// report is torture.report(): what the page counted, and the states that are over.
type report struct {
	Counts   map[string]int
	Errors   map[string]int
	Troubles []string
	Past     []struct {
		Topic string
		State held
	}
}

// shown is torture.shown(): what a tab shows.
type shown struct {
	Under  int // actions that are not over
	Topics map[string]struct {
		Status     string
		Cursor     string
		Optimistic bool
		State      held
	}
}

// held is a state, with all that it was made of: the snapshot, and the events that were applied to it.
type held struct {
	Values values
	Seen   [][3]any // epoch, offset, id
	Base   struct {
		Values  values
		Cursor  string
		Pending []int64
	}
}

// offsetOf is the offset of a cursor.
func offsetOf(cursor string) int64 {
	_, offset, _ := strings.Cut(cursor, ":")
	n, err := strconv.ParseInt(offset, 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// verify holds a state to the journal: made of exactly the events after its snapshot and up to an offset, each once, in
// order, without those that the snapshot held; and its values are what that makes of them. It returns how many events
// were skipped because the snapshot held them, and what is wrong.
func (h held) verify(events []row, upTo int64) (skipped int, wrong []string) {
	want := make(values)
	for key, v := range h.Base.Values {
		want[key] = slices.Clone(v)
	}
	var made [][3]any
	for _, e := range events[min(max(offsetOf(h.Base.Cursor), 0), int64(len(events))):] {
		if e.Offset > upTo {
			break
		}
		if slices.Contains(h.Base.Pending, e.ID) {
			skipped++
			continue
		}
		made = append(made, [3]any{e.Epoch, float64(e.Offset), float64(e.ID)})
		if e.Data.Version > 0 {
			want[e.Key] = []int64{e.Data.Value, e.Data.Version}
		} else {
			want[e.Key] = []int64{want[e.Key][0] + e.Data.By}
		}
	}
	times := make(map[[3]any]int)
	for _, e := range h.Seen {
		times[e]++
	}
	for _, e := range made {
		switch n := times[e]; {
		case n == 0:
			wrong = append(wrong, fmt.Sprintf("missed %v", e))
		case n > 1:
			wrong = append(wrong, fmt.Sprintf("applied %d times: %v", n, e))
		}
		delete(times, e)
	}
	for e, n := range times {
		wrong = append(wrong, fmt.Sprintf("applied %d times, though not after %s and in its history, or held by it: %v", n, h.Base.Cursor, e))
	}
	if len(wrong) == 0 && !slices.Equal(made, h.Seen) {
		wrong = append(wrong, "applied in another order")
	}
	if len(wrong) == 0 && !equal(want, h.Values) {
		wrong = append(wrong, fmt.Sprintf("the events make %v, the state is %v", want, h.Values))
	}
	return skipped, wrong
}

func equal(a, b values) bool {
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	return string(x) == string(y)
}
