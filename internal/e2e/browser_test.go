package e2e

import (
	"testing"

	"github.com/commitcast/commitcast/internal/testkit/chromium"
)

// soon is how long anything may take, on a machine that is busy with other tests.
const soon = chromium.Soon

// tab is a page in a browser.
type tab struct{ *chromium.Tab }

// openTab opens a page whose console must have nothing to complain about, at the end, but refusals and what
// is expected.
func openTab(t *testing.T, url string, expected ...string) *tab {
	t.Helper()
	p := &tab{chromium.Open(t, url, chromium.Config{Width: 900, Height: 700, Expected: append(expected, "409"), Describe: `document.body.innerText`})}
	t.Cleanup(func() {
		if troubles := p.Troubles(); len(troubles) > 0 && !t.Failed() {
			t.Errorf("the console says %q", troubles)
		}
	})
	return p
}

// in evaluates an expression in the page.
func in[T any](p *tab, expression string) T { return chromium.In[T](p.Tab, expression) }

// until waits for an expression to be true in the page.
func (p *tab) until(expression string) { p.Until(expression, "in the page") }
