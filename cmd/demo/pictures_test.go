package main

import (
	"bytes"
	"context"
	"flag"
	"image"
	"image/color"
	"image/png"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/commitcast/commitcast/internal/testkit"
)

var retake = flag.Bool("pictures", false, "take the pictures of README.md again (on a machine that is otherwise idle, for they show latencies)")

// maxPicture is the largest picture, in bytes: README.md should open at once.
const maxPicture = 150 << 10

// TestPictures sees to the pictures of README.md: they are there and small. `make pictures` takes them again, in real time, of a
// demo as `make demo` runs it.
func TestPictures(t *testing.T) {
	schemes := []string{"light", "dark"}
	file := func(scheme string) string { return filepath.Join("../../docs/images", "demo-"+scheme+".png") }
	if *retake {
		d := startDemo(t, testkit.RedisURL(t), 24, 40)
		p := openTab(t, d.url)
		p.Until("window.__demo?.status().connection === 'open'", "the page is live")
		begun := time.Now()
		p.Until("document.querySelector('#ticket .go') && !document.querySelector('#ticket .go').disabled", "one can trade")
		p.Click("#ticket .go")
		for p.Until("document.querySelector('.result.done, .result.refused .again')", "there is an answer"); !in[bool](p, "!!document.querySelector('.result.done')"); {
			p.Click(".result.refused .again") // the market had moved
			p.Until("document.querySelector('.result.done, .result.refused .again')", "there is an answer")
		}
		p.Until("document.querySelectorAll('#tape tr').length >= 12 && document.querySelectorAll('#positions li').length === 1", "tape and account show something")
		p.verified("the trade")
		for time.Since(begun) < 40*time.Second { // a chart needs its minute
			p.Until("window.__demo.status().verify.kind === 'equal'", "the page equals the database")
			time.Sleep(time.Second)
		}
		p.Until("window.__demo.status().latency.p50 < 10", "the machine is idle")
		for _, scheme := range schemes {
			p.Do(chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
				// So high that it ends between two panels.
				if _, err := chromedp.Call(ctx, emulation.SetDeviceMetricsOverride,
					emulation.SetDeviceMetricsOverrideParams{Width: 1440, Height: 737, DeviceScaleFactor: 1}); err != nil {
					return err
				}
				_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
					Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
				return err
			}))
			p.verified("the change of colours")
			picture, err := reduced(p.Picture())
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file(scheme), picture, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		p.unharmed()
	}
	for _, scheme := range schemes {
		if info, err := os.Stat(file(scheme)); err != nil {
			t.Error(err)
		} else if info.Size() > maxPicture {
			t.Errorf("%s has %d bytes", file(scheme), info.Size())
		}
	}
}

// reduced is a PNG in the 256 colours that it has most of, which is a third of the size and looks the same.
func reduced(picture []byte) ([]byte, error) {
	from, err := png.Decode(bytes.NewReader(picture))
	if err != nil {
		return nil, err
	}
	area := from.Bounds()
	counts := map[color.Color]int{}
	for y := area.Min.Y; y < area.Max.Y; y++ {
		for x := area.Min.X; x < area.Max.X; x++ {
			counts[from.At(x, y)]++
		}
	}
	colours := slices.SortedFunc(maps.Keys(counts), func(a, b color.Color) int { return counts[b] - counts[a] })
	to := image.NewPaletted(area, color.Palette(colours[:min(len(colours), 256)]))
	index := map[color.Color]uint8{}
	for _, c := range colours {
		index[c] = uint8(to.Palette.Index(c))
	}
	for y := area.Min.Y; y < area.Max.Y; y++ {
		for x := area.Min.X; x < area.Max.X; x++ {
			to.SetColorIndex(x, y, index[from.At(x, y)])
		}
	}
	var small bytes.Buffer
	err = (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&small, to)
	return small.Bytes(), err
}
