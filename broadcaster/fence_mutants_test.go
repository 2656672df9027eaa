package broadcaster_test

import (
	"testing"

	"github.com/commitcast/commitcast/internal/testkit"
)

// Each rule of a fence, taken out, is missed by TestSpliceSchedules.
func TestFenceMutants(t *testing.T) {
	testkit.Mutants(t, "TestSpliceSchedules", []testkit.Mutation{
		{Name: "a fence in the log marks nobody", File: "fence.go",
			Old: "r.at, r.id = f.Offset, f.ID", New: "",
			Caught: "no replay before a fence"},
		{Name: "the log is read past a mark", File: "fence.go", Cond: true,
			After: "func (r *reader) limit() int64 {", Old: "r.at > 0", New: "false",
			Caught: "nothing is shown from a fence on"},
		{Name: "a replay passes a fence", File: "splice.go", Cond: true,
			After: "for len(r.chunk) > 0 {", Old: "r.meets(f)", New: "false",
			Caught: "nothing is shown from a fence on"},
		{Name: "who joins is not asked about", File: "fence.go", Cond: true,
			Old: "p.Revoked || r.id > p.Changed", New: "r.id > p.Changed",
			Caught: "who is revoked does not join"},
		{Name: "a mark that comes while joining is lost", File: "fence.go", Cond: true,
			Old: "p.Revoked || r.id > p.Changed", New: "p.Revoked",
			Caught: "nothing is shown from a fence on"},
		{Name: "who joins keeps the first mark", File: "fence.go", Cond: true,
			Old: "r.at > 0 && r.state != subLive && f.ID <= r.id", New: "r.at > 0 && r.state != subLive",
			Caught: "no replay before a fence"},
		{Name: "marks outlive their history", File: "fence.go", Cond: true,
			After: "func (r *reader) admitted() {", Old: "r.state == subJoining", New: "false",
			Caught: "no end is needless"},
		{Name: "an old fence ends who was restored", File: "fence.go", Cond: true,
			Old: "f.ID <= r.known", New: "false",
			Caught: "no end is needless"},
		{Name: "a replay goes on before a fence", File: "splice.go", Cond: true,
			Old: "r.at > 0 && (r.replaying || r.holds())", New: "false",
			Caught: "no replay before a fence"},
		{Name: "nobody is asked about again when the log has skipped", File: "splice.go", Cond: true,
			Old: "r.subject != \"\" && r.cleared < log.since()", New: "false",
			Caught: "no replay before a fence"},
	}, "-schedules=200000")
}
