package broadcaster_test

import (
	"testing"

	"github.com/commitcast/commitcast/internal/testkit"
)

// Each rule of conflation, taken out, is missed by TestSpliceSchedules.
func TestConflateMutants(t *testing.T) {
	testkit.Mutants(t, "TestSpliceSchedules", []testkit.Mutation{
		{Name: "an event without a key is left out", File: "conflate.go", Cond: true,
			After: "windowCost\n\t", Old: "key != nil", New: "true",
			Caught: "what is left out has a later event of its key"},
		{Name: "the latest of a key is left out", File: "conflate.go",
			Old: "e.offset, e.frame = w.last, append(e.frame[:0], frame...)", New: "",
			Caught: "what is left out has a later event of its key"},
		{Name: "nothing is left out", File: "conflate.go", Cond: true,
			After: "e := w.latest[string(key)]; ", Old: "e != nil", New: "false",
			Caught: "one event of a key in a window"},
		{Name: "the cursor moves within a window", File: "conflate.go", Cond: true,
			Old: "!together", New: "true",
			Caught: "the cursor is what was shown"},
		{Name: "the client may apply part of a window", File: "conflate.go", Cond: true,
			Old: "w.leftOut > 0 && len(w.all) > 1", New: "false",
			Caught: "what is left out has a later event of its key"},
		{Name: "a window is sent in the order of its keys", File: "conflate.go",
			Old: "slices.SortFunc(w.all, func(x, y *windowed) int { return cmp.Compare(x.offset, y.offset) })", New: "",
			Caught: "contiguous"},
		{Name: "a window outlives its life", File: "splice.go",
			Old: "r.chunk, r.window, r.replaying = nil, nil, false", New: "r.chunk, r.replaying = nil, false",
			Caught: "no replay beyond a life"},
		{Name: "a window has no end", File: "conflate.go", Cond: true,
			After: "func (w *window) full() bool { return ", Old: "w.bytes > w.most", New: "false",
			Caught: "a window is bounded"},
		{Name: "whoever is not behind has a window", File: "conflate.go", Cond: true,
			Old: "r.at > 0 || log.pending(r.epoch, r.cursor) <= log.maxMessage", New: "r.at > 0",
			Caught: "no window for who is not behind"},
		{Name: "a window takes a fence", File: "conflate.go", Cond: true,
			Old: "r.meets(f)", New: "false",
			Caught: "nothing is shown from a fence on"},
		{Name: "a window is sent before a fence", File: "splice.go", Cond: true,
			Old: "r.at > 0 && (r.replaying || r.holds())", New: "r.at > 0 && (r.replaying || len(r.chunk) > 0)",
			Caught: "fence"},
		{Name: "a window is read for from the cursor", File: "conflate.go", Cond: true,
			After: "func (r *reader) position() int64 {", Old: "r.window != nil", New: "false",
			Caught: "the cursor is what was shown"},
		{Name: "a window takes a log that begins after it", File: "log.go", Cond: true,
			After: "func (l *sharedLog) window(", Old: "w.last+1 < l.first", New: "func() bool { w.last = max(w.last, l.first-1); return false }()",
			Caught: "what is left out has a later event of its key"},
		{Name: "a reader with a place waits for it", File: "conflate.go",
			After: "return true\n\t}\n\t", Old: "r.replaying = false", New: "",
			Caught: "it comes to rest"},
	}, "-schedules=200000")
}
