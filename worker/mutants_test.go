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
			Caught: "published is what"},
		{Name: "a settled topic stays open", File: "watermark.go",
			Old: "delete(w.open, topic)", New: "",
			Caught: "it comes to rest"},
		{Name: "a topic is set aside in memory only", File: "park.go",
			Old: "err = p.ledger.park(ctx, p.partition, refusals)", New: "_ = refusals",
			Caught: "published is what the stream took"},
		{Name: "a stream that refuses everything is not asked with a canary", File: "park.go", Cond: true,
			Old: "!others", New: "false",
			Caught: "trouble of the stream sets nothing aside"},
		{Name: "the watermark stops at what is set aside", File: "park.go",
			Old: "p.mark.settle(r.topic)", New: "",
			Caught: "it comes to rest"},
		{Name: "a topic that was set aside goes on lagging", File: "park.go",
			Old: "delete(p.laggards, r.topic)", New: "",
			Caught: "what is set aside is left to its job"},
		{Name: "a topic is believed to be set aside for ever", File: "park.go",
			Old: "delete(p.parked, r.topic)\n\t\t\tamong = append(among, r.topic)", New: "",
			Caught: "published is what the stream took"},
		{Name: "a drain offers what is set aside", File: "publisher.go", Cond: true,
			After: "for _, r := range b.runs {\n\t\tif _, ok := p.parked[r.topic]; ", Old: "ok", New: "false && ok",
			Caught: "what is set aside is left to its job"},
		{Name: "a topic is unparked without being published", File: "republish.go", Cond: true,
			Old: "err != nil || parkedFrom == nil && at.orderedFrom == nil", New: "parkedFrom == nil && at.orderedFrom == nil",
			Caught: "published is what the stream took"},
		{Name: "an attempt passes the event that was refused", File: "republish.go",
			Old: "r.next = first", New: "r.next = first + 1",
			Caught: "published is what the stream took"},
		{Name: "a republished piece is passed though only a part was taken", File: "republish.go",
			Old: "r.next = from", New: "_ = from",
			Caught: "it comes to rest"},
	}, "-schedules=200000")
}

// Each bound on the sequencer's rests, taken out, is missed.
func TestPaceMutants(t *testing.T) {
	testkit.Mutants(t, "(TestRestByRate|TestRestGoesOn|TestBurstDoesNotRest|TestFullBatchNeverWaits)", []testkit.Mutation{
		{Name: "it rests at low rates too", File: "pace.go", Cond: true,
			Old: "float64(p.events) > restAbove*window.Seconds()", New: "p.events > 0", Caught: "400 events/s"},
		{Name: "a somewhat lower rate ends rests", File: "pace.go", Cond: true,
			Old: "p.rest > 0 && p.events > 0", New: "false", Caught: "events/s it rests: false"},
		{Name: "it rests where rounds are short", File: "pace.go", Cond: true,
			Old: "events*(rest+p.took/rounds) >= restLeast*window", New: "true", Caught: "800 events/s of 32 partitions, rounds of 750"},
		{Name: "a burst counts as load", File: "pace.go", Cond: true,
			Old: "next.busy >= paceWindows", New: "next.busy > 0", Caught: "in window"},
		{Name: "it rests on after the load", File: "pace.go",
			Old: "*p = next", New: "next.rest, next.busy = max(next.rest, p.rest), max(next.busy, p.busy)\n*p = next", Caught: "had ended"},
		{Name: "a hot partition rests like many", File: "pace.go",
			Old: "rest = min(rest, window*restEnough*time.Duration(p.partitions)/rounds/events)", New: "", Caught: "8000 events/s"},
		{Name: "a full batch waits", File: "sequencer.go", Cond: true,
			Old: "!slices.ContainsFunc(waiting, (*turn).full)", New: "true", Caught: "late false: it waits for the rest"},
		{Name: "a full batch that comes during a rest waits", File: "sequencer.go",
			Old: "resting = !t.full()", New: "resting = true", Caught: "late true: it waits for the rest"},
		{Name: "no rest", File: "sequencer.go", Cond: true,
			After: "rest := time.Until(s.next); ", Old: "rest > 0", New: "false", Caught: "before the rest was over"},
	})
}
