package gameday

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"image/png"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/commitcast/commitcast/internal/testkit"
)

var (
	all      = flag.Bool("all", false, "break everything, not only what takes seconds")
	pictures = flag.String("pictures", "", "a folder into which the console is drawn while each fault lasts, as PNG")
)

func TestMain(m *testing.M) { testkit.Main(m) }

const (
	// firesWithin is the promise: from the fault to the alert.
	firesWithin = 30 * time.Second
	// curedWithin bounds what it takes until nothing is wrong any more: metrics are looked at every 5 s, three times over.
	curedWithin = 60 * time.Second
)

// fault is one way to break a system, and what is said to help.
type fault struct {
	name  string
	quick bool // it is part of every `go test`
	setUp options
	// opens is done before all is looked at, and found good; nil: nothing.
	opens func(s *system)
	// alert has to fire, and its section of the runbook is gone by.
	alert  string
	breaks func(s *system)
	// shows are commands of the section's "Look at", and what they have to say about the cause.
	shows []look
	// flows: what is committed arrives at subscribers while it lasts.
	flows bool
	// screen is what the console has to say, on its first page unless there is another.
	screen, page string
	cure         func(s *system, book section)
	// after is checked when all is green again.
	after func(s *system)
}

// look is a command, as the runbook has it, and what its answer has to match.
type look struct {
	command string
	says    []string
}

// Every alert fires in time, says what is so, and its section of the runbook cures it.
func TestGameday(t *testing.T) {
	report := make([]string, len(faults))
	for i, f := range faults {
		if !f.quick && !*all {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			if !*all {
				t.Parallel()
			}
			report[i] = play(t, f)
		})
	}
	t.Cleanup(func() {
		report = slices.DeleteFunc(report, func(line string) bool { return line == "" })
		t.Log("\n| fault | alert | s to fire | s until events arrive | s until all is good | others that fired |\n|---|---|---|---|---|---|\n" + strings.Join(report, "\n"))
	})
}

// keep writes a picture, in as few bytes as PNG allows.
func keep(name string, picture []byte) error {
	drawn, err := png.Decode(bytes.NewReader(picture))
	if err != nil {
		return err
	}
	var small bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&small, drawn); err != nil {
		return err
	}
	return os.WriteFile(name, small.Bytes(), 0o644)
}

// play goes through one fault and returns its line of the report.
func play(t *testing.T, f fault) string {
	book := runbook(t, f.alert)
	s := start(t, f.setUp)
	if f.opens != nil {
		f.opens(s)
	}
	s.green()
	s.arrives()

	broken := time.Now()
	f.breaks(s)
	s.watch.fires(f.alert, broken.Add(firesWithin))
	fired := time.Since(broken)
	t.Logf("%s fires %.1f s after the fault", f.alert, fired.Seconds())
	for _, l := range f.shows {
		book.looksAt(l.command)
		testkit.Eventually(t, 10*time.Second, func() error {
			out := s.operator(l.command)
			for _, part := range l.says {
				if !regexp.MustCompile(part).MatchString(out) {
					return fmt.Errorf("it does not say %q:\n%s", part, out)
				}
			}
			return nil
		}, "%s names the cause", l.command)
	}
	if s.tab != nil {
		s.tab.Look(cmp.Or(f.page, "#/"), fmt.Sprintf(`document.getElementById('page').innerText.includes(%q)`, f.screen))
		picture := s.tab.Picture()
		if *pictures != "" {
			s.must(keep(filepath.Join(*pictures, "gameday-"+f.name+".png"), picture))
		}
	}

	if f.flows {
		s.arrives()
	}
	curing := time.Now()
	f.cure(s, book)
	s.arrives()
	delivers := time.Since(curing)
	others := s.cured(f.alert)
	cured := time.Since(curing)
	if f.after != nil {
		f.after(s)
	}
	s.exact(f.setUp.standby)
	t.Logf("events arrive %.1f s after the cure, and nothing is wrong after %.1f s; %s fired, too", delivers.Seconds(), cured.Seconds(), others)
	return fmt.Sprintf("| %s | %s | %.0f | %.1f | %.0f | %s |", f.name, f.alert, fired.Seconds(), delivers.Seconds(), cured.Seconds(), strings.Join(others, ", "))
}
