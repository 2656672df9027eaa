package broadcaster_test

import (
	"testing"

	"github.com/commitcast/commitcast/internal/testkit"
)

// Each rule of the shared flushers, taken out, is missed by a test.
func TestFlushMutants(t *testing.T) {
	testkit.Mutants(t, "Test(PongOfStalledClientHoldsUpNobody|PongWaitsForTheRestOfAFrame|SharedFlusherTakesTurns)", []testkit.Mutation{
		{Name: "a shared flusher waits for the pong of a stalled client", File: "socket.go",
			After: "frame := textFrame(p)", Old: "s.meter.writing.TryLock()", New: "(func() bool { s.meter.writing.Lock(); return true })()", Cond: true,
			Caught: "only when the pong had given up"},
		{Name: "the library goes around the lock of frames", File: "socket.go",
			Old: "rw = bufio.NewReadWriter(r, bufio.NewWriterSize(h.meter, writeBuffer))", New: "rw = bufio.NewReadWriter(r, bufio.NewWriterSize(conn, writeBuffer))",
			Caught: "ping: ", Args: []string{"-test.run=^TestPongOfStalledClientHoldsUpNobody$"}},
		{Name: "the library goes into a frame", File: "socket.go",
			Old: "m.writing.Lock()\n\tdefer m.writing.Unlock()", New: "",
			Caught: "the pong waits", Args: []string{"-test.run=^TestPongWaitsForTheRestOfAFrame$"}},
		{Name: "part of a frame leaves the connection to others", File: "socket.go",
			Old: "return rest, true", New: "s.meter.writing.Unlock()\n\t\treturn rest, false",
			Caught: "the pong waits", Args: []string{"-test.run=^TestPongWaitsForTheRestOfAFrame$"}},
		{Name: "a shared flusher stays with a session", File: "flush.go",
			Old: "f.b.due.add(f.b, s)", New: "buffer = f.flush(s, buffer)",
			Caught: "another session's"},
		{Name: "a session that has ended is written to", File: "flush.go", Cond: true,
			After: "func (f *flusher) flush(", Old: "len(p) == headerRoom || s.closed", New: "len(p) == headerRoom",
			Caught: "that has ended was written to"},
	})
}
