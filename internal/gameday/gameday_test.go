package gameday

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
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
	// alert has to fire, and its section of the runbook is gone by.
	alert  string
	breaks func(s *system)
	// shows are commands of the section's "Look at", and what they have to say about the cause.
	shows []look
	// screen is what the console's first page has to say.
	screen string
	cure   func(s *system, book section)
	// after is checked when all is green again.
	after func(s *system)
}

// look is a command, as the runbook has it, and parts of its answer.
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
		t.Log("\n| fault | alert | s to fire | s to cure | others that fired |\n|---|---|---|---|---|\n" + strings.Join(report, "\n"))
	})
}

// play goes through one fault and returns its line of the report.
func play(t *testing.T, f fault) string {
	book := runbook(t, f.alert)
	s := start(t, f.setUp)
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
				if !strings.Contains(out, part) {
					return fmt.Errorf("it does not say %q:\n%s", part, out)
				}
			}
			return nil
		}, "%s names the cause", l.command)
	}
	if s.tab != nil {
		s.tab.Until(fmt.Sprintf(`document.getElementById('page').innerText.includes(%q)`, f.screen), "the console says: %s", f.screen)
		picture := s.tab.Picture()
		if *pictures != "" {
			if err := os.WriteFile(filepath.Join(*pictures, "gameday-"+f.name+".png"), picture, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}

	curing := time.Now()
	f.cure(s, book)
	others := s.cured(f.alert)
	cured := time.Since(curing)
	s.arrives()
	if f.after != nil {
		f.after(s)
	}
	s.exact(f.setUp.standby)
	t.Logf("cured in %.1f s", cured.Seconds())
	return fmt.Sprintf("| %s | %s | %.0f | %.0f | %s |", f.name, f.alert, fired.Seconds(), cured.Seconds(), strings.Join(others, ", "))
}
