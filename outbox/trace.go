package outbox

import (
	"context"
	"encoding/hex"

	"go.opentelemetry.io/otel/trace"
)

// traceHeader is the header with which an event takes part in a trace: the one of W3C Trace Context.
const traceHeader = "traceparent"

// traceparentLen is the length of a traceparent of version 00.
const traceparentLen = len("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")

// traceparent is the header's value for the span of a context; "" if there is none. The state of a tracing system (tracestate)
// is left behind: events are shown to browsers.
func traceparent(ctx context.Context) string {
	span := trace.SpanContextFromContext(ctx)
	if !span.IsValid() {
		return ""
	}
	return "00-" + span.TraceID().String() + "-" + span.SpanID().String() + "-" + (span.TraceFlags() & trace.FlagsSampled).String()
}

// validTraceparent reports whether a text is a traceparent. Package wire reads the same ones; a test holds them together. A later
// version may say more after a dash.
func validTraceparent(s string) bool {
	if len(s) < traceparentLen || s[:2] == "00" && len(s) > traceparentLen || len(s) > traceparentLen && s[traceparentLen] != '-' || s[:2] == "ff" {
		return false
	}
	var id trace.TraceID
	var span trace.SpanID
	var other [1]byte
	return s[2] == '-' && s[35] == '-' && s[52] == '-' &&
		lowerHex(other[:], s[:2]) && lowerHex(id[:], s[3:35]) && lowerHex(span[:], s[36:52]) && lowerHex(other[:], s[53:55]) &&
		id.IsValid() && span.IsValid()
}

// lowerHex decodes hexadecimal digits, which the standard wants in lower case.
func lowerHex(dst []byte, s string) bool {
	for i := range len(s) {
		if s[i] >= 'A' && s[i] <= 'F' {
			return false
		}
	}
	_, err := hex.Decode(dst, []byte(s))
	return err == nil
}

// headersIn is what is stored as an event's headers: its own and, if there is room, the writer's traceparent. An event is never
// refused for a header that it was given here.
func (r *row) headersIn(traceparent string) string {
	switch {
	case traceparent == "" || r.traced || r.isFence():
		return r.headers
	case r.headers == "":
		return `{"` + traceHeader + `":"` + traceparent + `"}`
	}
	with := `{"` + traceHeader + `":"` + traceparent + `",` + r.headers[1:]
	if len(with) > MaxHeaders {
		return r.headers
	}
	return with
}
