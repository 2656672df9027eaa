package worker_test

import (
	"testing"

	"github.com/commitcast/commitcast/internal/testkit"
)

// Each rule of publishing, taken out, is missed by TestPublishSchedules.
func TestPublishMutants(t *testing.T) {
	testkit.Mutants(t, "TestPublishSchedules", []testkit.Mutation{
		{Name: "a part that was taken counts as the whole", File: "publish.go", Cond: true,
			Old: "a.Next > 0 && a.Next <= o.Last()", New: "false",
			Caught: "published is what the stream took"},
		{Name: "a gap is skipped", File: "publish.go",
			Old: "return refill, a.Next", New: "return confirmed, 0",
			Caught: "published is what the stream took"},
		{Name: "a duplicate is no success", File: "publish.go", Cond: true,
			Old: "a.Outcome == stream.Appended || a.Outcome == stream.Duplicate", New: "a.Outcome == stream.Appended",
			Caught: "it comes to rest"},
		{Name: "an error after storing counts as success", File: "publish.go", Cond: true,
			After: "switch {\n\tcase ", Old: "a.Err != nil", New: "false",
			Caught: "published is what was announced"},
		{Name: "a hole is filled from the offer on", File: "publish.go",
			Old: "return refill, a.Next", New: "return refill, o.First",
			Caught: "it comes to rest"},
		{Name: "a hole too wide to fill is not restarted", File: "publish.go",
			Old: "return restart, 0", New: "return refused, 0",
			Caught: "it comes to rest"},
		{Name: "the watermark passes what is unconfirmed", File: "watermark.go",
			Old: "s = min(s, first-1)", New: "_ = first",
			Caught: "published is what the stream took"},
		{Name: "the watermark runs ahead of what was read", File: "watermark.go",
			Old: "w.taken = max(w.taken, seq)", New: "w.taken = max(w.taken, seq) + 1",
			Caught: "published is what the stream took"},
		{Name: "what was open stays open in another generation", File: "watermark.go",
			Old: "w.open = make(map[string]int64)", New: "if w.open == nil {\n\t\tw.open = make(map[string]int64)\n\t}",
			Caught: "it comes to rest"},
		{Name: "a settled topic stays open", File: "watermark.go",
			Old: "delete(w.open, topic)", New: "",
			Caught: "it comes to rest"},
	}, "-schedules=200000")
}
