package broadcaster

import (
	"encoding/json"
	"log/slog"
	"testing"
	"time"

	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

// A run may overlap what the log has: an event that it had already has its span.
func TestSpansOfAnOverlap(t *testing.T) {
	var spans []int64
	b := &Broadcaster{cfg: Config{Trace: func(s wire.Span) { spans = append(spans, s.Offset) }}, log: slog.New(slog.DiscardHandler)}
	r := stream.Run{First: 4}
	for offset := r.First; offset < 7; offset++ {
		frame, err := wire.AppendEvent(nil, &wire.Event{Topic: "t", Epoch: "1-0000", Offset: offset, ID: offset, Type: "e", Data: json.RawMessage("1"),
			Headers: json.RawMessage(`{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}`)})
		if err != nil {
			t.Fatal(err)
		}
		r.Frames = append(r.Frames, frame)
	}
	b.traced(r, 5, time.Now(), 1)
	if len(spans) != 1 || spans[0] != 6 {
		t.Errorf("spans of offsets %v, want of 6 alone", spans)
	}
}
