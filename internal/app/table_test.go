package app

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"unicode"

	"github.com/commitcast/commitcast/ops"
)

// evil changes the window's title, clears the screen, goes back to the line's beginning and turns text round.
const evil = "a\x1b]0;t\x07\x1b[2J\rb\u202ec\u2066\u009b\n\x80z"

func TestVisible(t *testing.T) {
	for in, want := range map[string]string{
		"":                         "",
		"orders/7 “é” → 木 ✓":       "orders/7 “é” → 木 ✓",
		"\x1b[31m":                 `\x1b[31m`,
		"\u009b2J\x7f\t\r\n":       `\x9b2J\x7f\x09\x0d\x0a`,
		"\u202e\u2066\u200f\u061c": `\u202e\u2066\u200f\u061c`,
		"\xff|":                    "\ufffd|",
	} {
		if got := visible(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := visible(evil); visible(got) != got {
		t.Errorf("not stable: %q", got)
	}
}

// Whatever comes from elsewhere is shown, and never obeyed: only our own colours reach a terminal.
func TestNothingFromElsewhereCommandsTheTerminal(t *testing.T) {
	var out strings.Builder
	p := &page{&out, false}
	aligned := newTable("A", "B")
	aligned.add("\x1b", "|")
	aligned.add("long", "|")
	p.print(aligned)
	if want := "A     B\n\\x1b  |\nlong  |\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
	p.colours = true
	list := newTable("A", ">B", "C")
	list.add(evil, cell{evil, red}, errors.New(evil))
	p.print(list)
	p.line("%s %s %d", evil, p.paint(bold, evil), 1)
	showFindings(p, []ops.Finding{{Level: ops.Problem, Hop: evil, What: evil, Why: evil, Affects: evil, Help: evil}})
	showTopic(p, &ops.Topic{Topic: evil, Epoch: evil, HeadEpoch: evil, HeldError: evil, Redrive: &ops.Redriving{Who: evil}, Nodes: []ops.TopicNode{{Node: evil, Error: evil}}})
	showTrace(p, &ops.Trace{Topic: evil, Type: evil, Epoch: evil, Nodes: []ops.TraceNode{{Node: evil, Error: evil}}, Unknown: []string{evil}})
	showStatus(p, &ops.Status{Nodes: []*ops.Node{{Address: evil, Error: evil}}, Database: ops.Database{Error: evil}})
	s := &streams{&out, &out}
	(&actFlags{DryRun: true}).confirm(s, strings.NewReader(""), evil)
	tell(s, evil)
	(&opsFlags{}).show(s, nil, func(p *page) { p.line("%s", evil) })
	Run(context.Background(), []string{"ops", evil}, io.Discard, &out)
	text := out.String()
	for _, c := range []colour{bold, dim, red, green, yellow} {
		text = strings.ReplaceAll(text, "\x1b["+string(c)+"m", "")
	}
	text = strings.ReplaceAll(text, "\x1b[0m", "")
	for line := range strings.Lines(text) {
		if i := strings.IndexFunc(strings.TrimSuffix(line, "\n"), func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("%q", line)
		}
	}
	if strings.Count(text, `\x1b]0;t`) < 20 {
		t.Errorf("it is not shown:\n%s", text)
	}
}
