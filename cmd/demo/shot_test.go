package main

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"

	"github.com/commitcast/commitcast/internal/testkit"
)

func TestShots(t *testing.T) {
	dir := os.Getenv("SHOTS")
	if dir == "" {
		t.Skip()
	}
	d := startDemo(t, testkit.Redis(t).URL(), 24, 60)
	time.Sleep(70 * time.Second)
	p := openTab(t, d.url)
	p.verified("the start")
	p.click("#ticket .go")
	p.until("document.querySelector('.result.done')?.textContent.includes('on this screen')", "push")
	p.click("#b-cut")
	p.until("window.__demo.status().stats.connects === 2", "back")
	p.verified("the cut")
	time.Sleep(10 * time.Second)
	for _, c := range []struct {
		name, theme string
		w, h        int64
		full        bool
	}{{"light", "light", 1280, 860, false}, {"dark", "dark", 1280, 860, false}, {"phone", "light", 390, 2500, true}, {"phone-dark", "dark", 390, 2500, true}} {
		if err := chromedp.Do(p.ctx, chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
			_, err := chromedp.Call(ctx, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: c.w, Height: c.h, DeviceScaleFactor: 1, Mobile: c.w < 500})
			return err
		})); err != nil {
			t.Fatal(err)
		}
		in[bool](p, "document.documentElement.dataset.theme='"+c.theme+"'; dispatchEvent(new Event('resize')); document.getElementById('theme').click(),document.getElementById('theme').click(),document.getElementById('theme').click(), scrollTo(0,0), true")
		time.Sleep(1500 * time.Millisecond)
		if err := chromedp.Do(p.ctx, chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
			r, err := chromedp.Call(ctx, page.CaptureScreenshot, page.CaptureScreenshotParams{Format: "png"})
			if err != nil {
				return err
			}
			return os.WriteFile(dir+"/"+c.name+".png", r.Data, 0o644)
		})); err != nil {
			t.Fatal(err)
		}
	}
}
