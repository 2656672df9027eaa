package wire_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/commitcast/commitcast/wire"
)

const (
	sampled   = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	unsampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
)

func TestParseTrace(t *testing.T) {
	for text, want := range map[string]string{
		sampled:                      "true",
		unsampled:                    "false",
		sampled[:53] + "03":          "true", // flags of later versions are kept apart
		"cc" + sampled[2:]:           "true",
		"cc" + sampled[2:] + "-more": "true",
		"cc" + sampled[2:] + "more":  "",
		sampled + "-more":            "",
		"ff" + sampled[2:]:           "",
		"0g" + sampled[2:]:           "",
		sampled[:54]:                 "",
		"":                           "",
		strings.ToUpper(sampled):     "",
		sampled[:53] + "0A":          "",
		strings.Replace(sampled, "-00f", "_00f", 1):                                              "",
		strings.Replace(sampled, "4bf92f3577b34da6a3ce929d0e0e4736", strings.Repeat("0", 32), 1): "",
		strings.Replace(sampled, "00f067aa0ba902b7", strings.Repeat("0", 16), 1):                 "",
	} {
		got := ""
		if tr, ok := wire.ParseTrace([]byte(text)); ok {
			got = fmt.Sprint(tr.Sampled)
			if tr.String() != "4bf92f3577b34da6a3ce929d0e0e4736" || fmt.Sprintf("%x", tr.Parent) != "00f067aa0ba902b7" {
				t.Errorf("%q: %v %x", text, tr, tr.Parent)
			}
		}
		if got != want {
			t.Errorf("%q: sampled %q, want %q", text, got, want)
		}
	}
}

// frame is a finished one of an event.
func frame(t testing.TB, data, headers string) []byte {
	t.Helper()
	e := wire.Event{Topic: "market:42", Epoch: "4-9f3c01b7", Offset: 1042, ID: 981, Type: `a"},"headers":{`, Key: "42",
		Data: json.RawMessage(data), Headers: json.RawMessage(headers)}
	f, err := wire.AppendEvent(nil, &e)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// The header decides, wherever else the same text stands.
func TestEventSpan(t *testing.T) {
	tp := `"traceparent":"` + sampled + `"`
	for name, c := range map[string]struct {
		data, headers string
		want          bool
	}{
		"alone":                    {`{"a":1}`, `{` + tp + `}`, true},
		"written with white space": {`1`, ` { "traceparent" : "` + sampled + "\" }\n", true},
		"first":                    {`1`, `{` + tp + `,"z":"}}"}`, true},
		"last":                     {`1`, `{"a":{"b":[1,{"c":"]"}]},` + tp + `}`, true},
		"in the middle":            {`1`, `{"a":"\\",` + tp + `,"z":null}`, true},
		"beside other headers":     {`1`, `{"a":1,"headers":{"x":"y"},` + tp + `}`, true},
		"the last of two":          {`1`, `{"traceparent":"` + unsampled + `",` + tp + `}`, true},
		"the last of two, not":     {`1`, `{` + tp + `,"traceparent":"` + unsampled + `"}`, false},
		"after as much data":       {`"` + strings.Repeat("x", 200_000) + `"`, `{"a":"` + strings.Repeat("y", 4000) + `",` + tp + `}`, true},
		"none":                     {`{"a":{"b":1}}`, ``, false},
		"not sampled":              {`1`, `{"traceparent":"` + unsampled + `"}`, false},
		"malformed":                {`1`, `{"traceparent":"` + sampled[1:] + `"}`, false},
		"a number":                 {`1`, `{"traceparent":1,"a":"traceparent\":\""}`, false},
		"only in data":             {`{"a":1,"headers":{` + tp + `}}`, ``, false},
		"in data, others are":      {`{"a":1,"headers":{` + tp + `}}`, `{"a":"b"}`, false},
		"in a string of data":      {`{"a":",\"headers\":{\"traceparent\":\"` + sampled + `\"}"}`, ``, false},
		"nested in headers":        {`1`, `{"a":1,"headers":{` + tp + `}}`, false},
		"as a value in headers":    {`1`, `{"a":{` + tp + `}}`, false},
		"a name that ends like it": {`1`, `{"x-traceparent":"` + sampled + `"}`, false},
	} {
		f := frame(t, c.data, c.headers)
		s, ok := wire.EventSpan(f)
		if ok != c.want || ok && (s.Topic != "market:42" || s.Offset != 1042 || s.Event != 981 || !s.Trace.Sampled || s.Trace.String() != sampled[3:35]) {
			t.Errorf("%s: %v %+v", name, ok, s)
		}
		for n := range f { // nothing that is cut off does harm
			if n < 300 || n > len(f)-300 {
				wire.EventSpan(f[:n])
			}
		}
	}
}

// What is not traced costs no memory, whatever else it has.
func TestEventSpanAllocatesNothing(t *testing.T) {
	for name, f := range untraced(t) {
		if n := testing.AllocsPerRun(100, func() {
			if _, ok := wire.EventSpan(f); ok {
				t.Fatal(name)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func untraced(t testing.TB) map[string][]byte {
	return map[string][]byte{
		"no headers":     frame(t, string(benchEvent.Data), ""),
		"other headers":  frame(t, string(benchEvent.Data), `{"user":"a-1234567","via":"api"}`),
		"not sampled":    frame(t, string(benchEvent.Data), `{"traceparent":"`+unsampled+`"}`),
		"64 KiB of data": frame(t, `{"a":"`+strings.Repeat("traceparen ", 6000)+`"}`, ""),
	}
}

// BenchmarkEventSpan is what a broadcaster that records spans does for each event, and a worker for each with headers.
func BenchmarkEventSpan(b *testing.B) {
	all := untraced(b)
	all["sampled"] = frame(b, string(benchEvent.Data), `{"traceparent":"`+sampled+`"}`)
	for name, f := range all {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				wire.EventSpan(f)
			}
		})
	}
}

// Who has an event's frame knows its spans: the same everywhere, and each another one.
func TestSpanIDs(t *testing.T) {
	s, _ := wire.EventSpan(frame(t, `1`, `{"traceparent":"`+sampled+`"}`))
	seen := map[[8]byte]string{{}: "none", s.Trace.Parent: "the writer"}
	var before = s.Trace.Parent
	for _, hop := range []string{wire.HopSequence, wire.HopPublish, wire.HopDeliver} {
		s.Hop, s.Node = hop, "b1"
		id, parent := s.IDs()
		if parent != before {
			t.Errorf("the parent of %s is %x, not %x", hop, parent, before)
		}
		if hop == wire.HopPublish {
			if s.Node = ""; fmt.Sprintf("%x", id) != fmt.Sprintf("%x", first(s.IDs())) {
				t.Error("a node's name in another hop than deliver")
			}
		}
		if other, ok := seen[id]; ok {
			t.Errorf("%s and %s are one span", hop, other)
		}
		seen[id], before = hop, id
	}
	other := s
	for name, change := range map[string]func(){
		"event": func() { other.Event++ }, "node": func() { other.Node = "b2" },
		"trace": func() { other.Trace.ID[0]++ }, "span": func() { other.Trace.Parent[0]++ },
	} {
		other = s
		if change(); first(other.IDs()) == first(s.IDs()) {
			t.Errorf("another %s, the same span", name)
		}
	}
}

func first(id, _ [8]byte) [8]byte { return id }

// FuzzEventSpan: whatever bytes a frame is said to be, nothing is read beyond them; and what is found in a frame that is one is what a
// parser finds.
func FuzzEventSpan(f *testing.F) {
	for _, headers := range []string{`{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}`, `{"a":"}","traceparent":"x"}`, ``} {
		frame, err := wire.AppendEvent(nil, &wire.Event{Topic: "t", Epoch: "1-0000", Offset: 7, ID: 8, Type: "x", Data: []byte(`{"headers":{"traceparent":"00-"}}`), Headers: []byte(headers)})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(frame)
	}
	f.Add([]byte(`{"op":"event","topic":"t","epoch":"","offset":1,"id":1,"headers":{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}}`))
	f.Add([]byte(`,"headers":{"traceparent":"}}`))
	f.Add([]byte(`{"op":"event","topic":,"headers":{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}}`))
	f.Fuzz(func(t *testing.T, frame []byte) {
		span, ok := wire.EventSpan(frame)
		if !ok {
			return
		}
		if span.Offset < 1 || span.Topic == "" || !span.Trace.Sampled {
			t.Fatalf("%q: %+v", frame, span)
		}
		m, err := wire.ParseMessage(frame)
		if err != nil || m.Op != "event" {
			return // not one of ours
		}
		var headers map[string]json.RawMessage
		var trace string
		if json.Unmarshal(m.Headers, &headers) != nil || json.Unmarshal(headers[wire.TraceHeader], &trace) != nil {
			return
		}
		if want, ok := wire.ParseTrace([]byte(trace)); ok && want != span.Trace {
			t.Fatalf("%q: %v, and a parser finds %v", frame, span.Trace, want)
		}
	})
}
