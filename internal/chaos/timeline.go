package main

import (
	"bufio"
	"cmp"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"
)

// maxLines bounds a timeline; beyond it the oldest half goes.
const maxLines = 200_000

// timeline is what happened, told to a person who looks for the cause of a violation.
type timeline struct {
	start time.Time

	mu    sync.Mutex
	lines []line
}

type line struct {
	at        time.Time
	who, what string
}

func newTimeline() *timeline { return &timeline{start: time.Now()} }

func (t *timeline) add(who, format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.lines) >= maxLines {
		t.lines = slices.Clone(t.lines[maxLines/2:])
	}
	t.lines = append(t.lines, line{time.Now(), who, fmt.Sprintf(format, args...)})
}

// forget drops what happened before.
func (t *timeline) forget() {
	t.mu.Lock()
	t.lines = nil
	t.mu.Unlock()
}

// write puts the lines and more, in order of time, into a file.
func (t *timeline) write(path string, head []string, more []line) error {
	t.mu.Lock()
	all := slices.Concat(t.lines, more)
	t.mu.Unlock()
	slices.SortStableFunc(all, func(a, b line) int { return cmp.Compare(a.at.UnixNano(), b.at.UnixNano()) })
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	for _, s := range head {
		fmt.Fprintln(w, s)
	}
	for _, l := range all {
		fmt.Fprintf(w, "%10.4f  %-14s %s\n", l.at.Sub(t.start).Seconds(), l.who, l.what)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}
