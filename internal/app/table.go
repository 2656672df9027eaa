package app

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/commitcast/commitcast/ops"
)

// colour is how text looks on a terminal; elsewhere, and with NO_COLOR, it is text.
type colour string

const (
	plain  colour = ""
	bold   colour = "1"
	dim    colour = "2"
	red    colour = "31"
	green  colour = "32"
	yellow colour = "33"
)

// page is what a command shows to a person.
type page struct {
	w       io.Writer
	colours bool
}

func newPage(w io.Writer) *page {
	_, off := os.LookupEnv("NO_COLOR")
	return &page{w, isTerminal(w) && !off && os.Getenv("TERM") != "dumb"}
}

// isTerminal reports whether a person reads there, or writes.
func isTerminal(f any) bool {
	file, ok := f.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(info, null)
}

// painted is text that is visible, with our own colour.
type painted string

func (p *page) paint(c colour, s string) painted {
	s = visible(s)
	if !p.colours || c == plain || s == "" {
		return painted(s)
	}
	return painted("\x1b[" + string(c) + "m" + s + "\x1b[0m")
}

// line prints a line. Strings among args are made visible.
func (p *page) line(format string, args ...any) {
	for i, a := range args {
		if s, ok := a.(string); ok {
			args[i] = visible(s)
		}
	}
	fmt.Fprintf(p.w, format+"\n", args...)
}

// visible writes out what a terminal would obey instead of showing it: control characters, and those that turn the direction of
// text. Types, keys, errors and names come from writers, clients and other machines.
func visible(s string) string {
	if utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return s
	}
	var b strings.Builder
	for _, r := range s { // what is not UTF-8 comes as U+FFFD
		switch {
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

func levelColour(l ops.Level) colour {
	switch l {
	case ops.Good:
		return green
	case ops.Warning:
		return yellow
	default:
		return red
	}
}

// cell is one of a table.
type cell struct {
	text  string
	paint colour
}

// table lines up columns; those whose title begins with ">" to the right.
type table struct {
	titles []string
	rows   [][]cell
}

func newTable(titles ...string) *table { return &table{titles: titles} }

func (t *table) add(cells ...any) {
	row := make([]cell, len(cells))
	for i, c := range cells {
		switch c := c.(type) {
		case cell:
			row[i] = c
		case string:
			row[i].text = c
		case ops.Level:
			row[i] = cell{string(c), levelColour(c)}
		case int:
			row[i].text = count(int64(c))
		case int16:
			row[i].text = strconv.Itoa(int(c))
		case int64:
			row[i].text = count(c)
		default:
			row[i].text = fmt.Sprint(c)
		}
		row[i].text = visible(row[i].text)
	}
	t.rows = append(t.rows, row)
}

// print shows the table; nothing if it has no rows.
func (p *page) print(t *table) {
	if len(t.rows) == 0 {
		return
	}
	widths := make([]int, len(t.titles))
	right := make([]bool, len(t.titles))
	head := make([]cell, len(t.titles))
	for i, title := range t.titles {
		title, right[i] = strings.CutPrefix(title, ">")
		head[i] = cell{title, dim}
		widths[i] = utf8.RuneCountInString(title)
	}
	for _, row := range t.rows {
		for i, c := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	for _, row := range append([][]cell{head}, t.rows...) {
		var b strings.Builder
		for i, c := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text))
			if i > 0 {
				b.WriteString("  ")
			}
			if right[i] {
				b.WriteString(pad)
			}
			b.WriteString(string(p.paint(c.paint, c.text)))
			if !right[i] {
				b.WriteString(pad)
			}
		}
		fmt.Fprintln(p.w, strings.TrimRight(b.String(), " "))
	}
}

// count is a number with its thousands apart.
func count(n int64) string { return ops.Count(n) }

// things is n of something.
func things(n int, name string) string {
	if n == 1 {
		return "1 " + name
	}
	return count(int64(n)) + " " + name + "s"
}

// upTo is a count that stops somewhere.
func upTo(n, most int64) string {
	if n >= most {
		return count(most) + "+"
	}
	return count(n)
}

// rate is events a second.
func rate(perSecond float64) string {
	switch {
	case perSecond == 0:
		return "0/s"
	case perSecond < 10:
		return strconv.FormatFloat(perSecond, 'f', 1, 64) + "/s"
	}
	return count(int64(perSecond+0.5)) + "/s"
}

// age is a duration as people say it.
func age(d time.Duration) string { return ops.Age(d) }

func ageSeconds(s float64) string { return age(time.Duration(s * float64(time.Second))) }

// ago is how long ago a time was; "" for none.
func ago(t *time.Time) string {
	if t == nil {
		return ""
	}
	return age(max(time.Millisecond, time.Since(*t)))
}

// short cuts a text that would break a table.
func short(s string, most int) string {
	s = strings.Join(strings.Fields(s), " ")
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	return string([]rune(s)[:most-1]) + "…"
}

// bar shows how far something is, on one line of a terminal; elsewhere it says nothing until the end.
type bar struct {
	p     *page
	began time.Time
	first int64
	shown bool
}

func (b *bar) at(done, all int64, what string) {
	if !isTerminal(b.p.w) || all <= 0 {
		return
	}
	if b.began.IsZero() {
		b.began, b.first = time.Now(), done
	}
	const width = 30
	full := int(done * width / all)
	left := ""
	if spent := time.Since(b.began); done > b.first && spent > time.Second && done < all {
		left = ", " + age(time.Duration(float64(spent)*float64(all-done)/float64(done-b.first))) + " left"
	}
	fmt.Fprintf(b.p.w, "\r\x1b[K%s%s %3d%%  %s of %s %s%s", strings.Repeat("█", full), strings.Repeat("░", width-full), done*100/all, count(done), count(all), what, left)
	b.shown = true
}

func (b *bar) end() {
	if b.shown {
		fmt.Fprintln(b.p.w)
	}
}
