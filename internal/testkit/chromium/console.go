package chromium

import (
	"context"
	"fmt"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// Console is the operators' console, in a tab.
type Console struct{ *Tab }

// OpenConsole opens it as Open does, and logs in under a name, with a token unless that is "".
func OpenConsole(t testing.TB, base, who, token string, expected ...string) *Console {
	t.Helper()
	p := &Console{Open(t, base, Config{Width: 1440, Height: 960, Expected: expected,
		Describe: `location.href + "\n" + document.body.innerText.slice(0, 3000)`})}
	p.Until(`document.getElementById('name')`, "the login is shown")
	p.Until(fmt.Sprintf(`(document.getElementById('name').value = %q, true)`, who), "a name is typed")
	if token != "" {
		p.Until(fmt.Sprintf(`(document.getElementById('token').value = %q, true)`, token), "the token is typed")
	}
	p.Click("button[type=submit]")
	p.Until(`document.querySelector('.verdict')?.dataset.level in {good: 1, warning: 1, problem: 1}`, "the pipeline is shown")
	return p
}

// Look goes to a page and waits for it.
func (p *Console) Look(hash, until string) {
	p.t.Helper()
	p.Until(fmt.Sprintf(`(location.hash = %q, true)`, hash), "going to %s", hash)
	p.Until(until, "%s", hash)
}

// Emulate makes the window that wide and high, light or dark, and that of a telephone.
func (p *Console) Emulate(width, height int, scheme string, mobile bool) {
	p.t.Helper()
	p.Do(chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.Call(ctx, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: int64(width), Height: int64(height), DeviceScaleFactor: 1, Mobile: mobile})
		if err == nil {
			_, err = chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
		}
		return err
	}))
	p.Until(fmt.Sprintf("innerWidth === %d", width), "the window is %d wide", width)
}
