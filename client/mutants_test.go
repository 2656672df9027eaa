package client

import (
	"testing"

	"github.com/commitcast/commitcast/internal/testkit"
)

// Each rule of the machine, taken out, is missed: by the model, which must end with what the database holds, or, where
// another rule heals it in the end, by a test of what is done at once.
func TestMachineMutants(t *testing.T) {
	const model = "TestRandomSchedulesLeaveNoStateWrong"
	testkit.Mutants(t, model, []testkit.Mutation{
		{Name: "pending ids are ignored", File: "machine.go", Cond: true,
			Old: "i >= 0", New: "i >= 0 && false",
			Caught: "wrong state"},
		{Name: "a hole is applied", File: "machine.go", Cond: true,
			Old: "f.Offset != at.Cursor.Offset+1 || foreign(f.Epoch, at.Cursor.Epoch)", New: "foreign(f.Epoch, at.Cursor.Epoch)",
			Caught: "wrong state"},
		{Name: "what is held is applied again", File: "machine.go", Cond: true,
			After: "at := m.held.Token\n\tif ", Old: "f.Offset <= at.Cursor.Offset", New: "f.Offset <= at.Cursor.Offset && func() bool { f.Offset = at.Cursor.Offset + 1; return false }()",
			Caught: "wrong state"},
		{Name: "pending ids outlive their epoch", File: "machine.go", Cond: true,
			Old: "len(at.Pending) == 0 || epoch == at.Epoch", New: "true",
			Caught: "wrong state"},
		{Name: "the cursor does not follow the event's epoch", File: "machine.go",
			After: "m.again(stepRead, 0)\n\t\t\treturn\n\t\t}\n\t\tapplied = true\n\t}\n\t", Old: "m.held = &next", New: "next.Token.Cursor.Epoch = at.Cursor.Epoch\n\tm.held = &next",
			Caught: "wrong state"},
		{Name: "the cursor passes an event that apply refused", File: "machine.go",
			After: "next.State, err = ", Old: "m.again(stepRead, 0)\n\t\t\treturn", New: "next.State = m.held.State",
			Caught: "wrong state"},
		{Name: "a snapshot's state with the old token", File: "machine.go",
			After: "func (m *machine[S]) snapshot(", Old: "m.held = held", New: "if m.held != nil {\n\t\theld.Token = m.held.Token\n\t}\n\tm.held = held",
			Caught: "not current"},
		{Name: "a skipped event does not move the cursor", File: "machine.go", Cond: true,
			Old: "m.ports.rereadSkipped", New: "true",
			Caught: "healed without a fault"},
		{Name: "every heartbeat heals", File: "machine.go", Cond: true,
			Old: "m.stuck == offset", New: "true",
			Caught: "healed without a fault"},
		{Name: "no heartbeat heals", File: "machine.go",
			Old: "m.again(stepSubscribe, 0) // two heartbeats, and not an event: something was lost, or the subscription was", New: "",
			Caught: "not current"},
		{Name: "no subscription after a reconnect", File: "machine.go",
			After: "func (m *machine[S]) up() {", Old: "m.subscribe()", New: "",
			Caught: "no"},
	})
	testkit.Mutants(t, "TestMachine[^M].*|TestMachineMixesNoHistories", []testkit.Mutation{
		{Name: "what is held counts as a hole", File: "machine.go", Cond: true,
			After: "at := m.held.Token\n\tif ", Old: "f.Offset <= at.Cursor.Offset", New: "false",
			Caught: "TestMachineDropsWhatItHolds"},
		{Name: "an event of another history is applied", File: "machine.go", Cond: true,
			Old: "f.Offset != at.Cursor.Offset+1 || foreign(f.Epoch, at.Cursor.Epoch)", New: "f.Offset != at.Cursor.Offset+1",
			Caught: "TestMachineMixesNoHistories"},
		{Name: "another history with the same ordinal is the same", File: "machine.go", Cond: true,
			Old: "a < b || a == b && epoch != at", New: "a < b",
			Caught: "TestMachineMixesNoHistories"},
		{Name: "the snapshot is never the way out", File: "machine.go", Cond: true,
			Old: "attempt > resubscribes", New: "false",
			Caught: "TestMachineHealsWithoutAStorm"},
		{Name: "healing does not pause", File: "machine.go", Cond: true,
			Old: "ms > 0 || attempt > 1", New: "ms > 0",
			Caught: "TestMachineHealsWithoutAStorm"},
		{Name: "an old subscription's reset counts", File: "machine.go", Cond: true,
			Old: "m.phase != phaseAsked && m.phase != phaseLive || m.leaving != 0", New: "m.phase != phaseAsked && m.phase != phaseLive",
			Caught: "TestMachineHealsAHole"},
		{Name: "pending ids meet another epoch in subscribed", File: "machine.go", Cond: true,
			Old: "m.phase != phaseAsked || id != m.asked || m.void(epoch)", New: "m.phase != phaseAsked || id != m.asked",
			Caught: "TestMachinePendingIDsDieWithTheirEpoch"},
		{Name: "a reader who was slow counts as trouble", File: "machine.go",
			After: "func (m *machine[S]) lagged() {", Old: "m.resume()", New: "m.again(stepSubscribe, 0)",
			Caught: "TestMachineLagged"},
		{Name: "a reset is not heard", File: "machine.go",
			After: "m.phase = phaseIdle // the server has ended the subscription\n\t", Old: "m.again(stepRead, ms)", New: "m.phase = phaseLive",
			Caught: "TestMachineReset"},
		{Name: "frames that were thrown away are not asked for again", File: "machine.go",
			After: "func (m *machine[S]) lagged() {", Old: "m.leave()", New: "return",
			Caught: "TestMachineLagged"},
		{Name: "an old subscription's events count", File: "machine.go", Cond: true,
			After: "func (m *machine[S]) event(", Old: "m.phase != phaseLive", New: "false",
			Caught: "TestMachineHealsAHole"},
	})
}
