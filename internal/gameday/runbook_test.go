package gameday

import (
	"os"
	"strings"
	"testing"
)

// section is what the runbook says about one alert.
type section struct {
	t     *testing.T
	alert string
	look  string // its "Look at"
	do    string // its "Do"
}

func runbook(t *testing.T, alert string) section {
	t.Helper()
	text, err := os.ReadFile("../../docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	_, body, ok := strings.Cut(string(text), "\n## "+alert+"\n")
	if !ok {
		t.Fatalf("the runbook has no section %s", alert)
	}
	body, _, _ = strings.Cut(body, "\n## ")
	part := func(from, to string) string {
		_, rest, ok := strings.Cut(body, "- **"+from)
		rest, _, end := strings.Cut(rest, "- **"+to)
		if !ok || !end {
			t.Fatalf("%s does not say %q and then %q", alert, from, to)
		}
		return rest
	}
	return section{t, alert, part("Look at.**", "Do.**"), part("Do.**", "It worked when**")}
}

// looksAt fails unless the section says to look at that.
func (b section) looksAt(command string) {
	b.t.Helper()
	if !strings.Contains(b.look, "`"+command+"`") {
		b.t.Fatalf("%s does not say to look at `%s`: %s", b.alert, command, b.look)
	}
}

// says fails unless the section says to do that, in these words.
func (b section) says(words string) {
	b.t.Helper()
	if !strings.Contains(b.do, words) {
		b.t.Fatalf("%s does not say %q: %s", b.alert, words, b.do)
	}
}

// command is one that the section says to run, with its capitals replaced: ("commitcast ops redrive TOPIC", "TOPIC", "market:42").
func (b section) command(command string, with ...string) string {
	b.t.Helper()
	b.says("`" + command + "`")
	return strings.NewReplacer(with...).Replace(command)
}
