package wire

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"time"
)

// TraceHeader is the header with which an event takes part in a distributed trace: that of W3C Trace Context. It names the
// writer's span.
const TraceHeader = "traceparent"

// Trace is the writer's span, as an event's header names it.
type Trace struct {
	ID      [16]byte
	Parent  [8]byte // the writer's span
	Sampled bool    // spans are recorded
}

// String is the id of the trace, as logs and tracing systems show it.
func (t Trace) String() string { return hex.EncodeToString(t.ID[:]) }

// traceparentLen is the length of a traceparent of version 00.
const traceparentLen = len("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")

// ParseTrace reads a traceparent. One of a later version may say more after a dash, which is not looked at.
func ParseTrace(text []byte) (t Trace, ok bool) {
	switch {
	case len(text) < traceparentLen, len(text) > traceparentLen && (text[traceparentLen] != '-' || string(text[:2]) == "00"):
		return Trace{}, false
	}
	var version, flags [1]byte
	ok = text[2] == '-' && text[35] == '-' && text[52] == '-' &&
		lowerHex(version[:], text[:2]) && lowerHex(t.ID[:], text[3:35]) && lowerHex(t.Parent[:], text[36:52]) && lowerHex(flags[:], text[53:55]) &&
		version[0] != 0xff && t.ID != [16]byte{} && t.Parent != [8]byte{}
	if !ok {
		return Trace{}, false
	}
	t.Sampled = flags[0]&1 != 0
	return t, true
}

// lowerHex decodes hexadecimal digits, which the standard wants in lower case.
func lowerHex(dst, digits []byte) bool {
	for i := range dst {
		hi, lo := unhex(digits[2*i]), unhex(digits[2*i+1])
		if hi|lo > 0xf {
			return false
		}
		dst[i] = hi<<4 | lo
	}
	return true
}

func unhex(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	}
	return 0xff
}

var (
	traceMark   = []byte(TraceHeader + `":"`)
	headersMark = []byte(`,"headers":{`)
)

// maxTraceLook is where headers are looked for: in as many bytes from the end of a frame as they can take there.
const maxTraceLook = 4<<10 + 64

// maxHeadersNested bounds how often an object that is no frame's headers is taken for them.
const maxHeadersNested = 4

// EventSpan finds the trace of a sampled event in its finished frame, without decoding it, and what a span says about the event. False:
// it has none, it is not sampled, or its header is malformed; that costs some nanoseconds, and no memory.
func EventSpan(frame []byte) (s Span, ok bool) {
	end := len(frame)
	if end < 3 || frame[end-1] != '}' || frame[end-2] != '}' {
		return s, false // headers come last, and are an object
	}
	tail := frame[max(0, end-maxTraceLook):]
	if !bytes.Contains(tail, headersMark[len(`,"`):]) || !bytes.Contains(tail, traceMark) { // a search for "h" is a fast one
		return s, false
	}
	if s.Trace, ok = headerTrace(tail); !ok || !s.Trace.Sampled {
		return s, false
	}
	rest, ok := bytes.CutPrefix(frame, []byte(`{"op":"event","topic":`))
	if !ok {
		return s, false
	}
	topic := rest[:valueLen(rest)]
	for _, to := range [...]struct {
		field string
		value *int64
	}{{`,"epoch":`, nil}, {`,"offset":`, &s.Offset}, {`,"id":`, &s.Event}} {
		if rest, ok = bytes.CutPrefix(rest[valueLen(rest):], []byte(to.field)); !ok {
			return s, false
		}
		if to.value != nil {
			*to.value, _ = strconv.ParseInt(string(rest[:valueLen(rest)]), 10, 64) // else 0, as no frame has it
		}
	}
	if len(topic) < 3 || s.Offset < 1 {
		return s, false
	}
	s.Topic = string(topic[1 : len(topic)-1]) // which never needs escapes
	return s, true
}

// headerTrace reads the header in what may be a frame's last bytes. What a writer chose as data may hold the same text; headers are
// the object that ends where the frame does.
func headerTrace(tail []byte) (t Trace, ok bool) {
	before := len(tail)
	for range maxHeadersNested {
		if before = bytes.LastIndex(tail[:before], headersMark); before < 0 {
			break
		}
		value, found, whole := lastMember(tail[before+len(headersMark):len(tail)-1], TraceHeader)
		if whole {
			if !found || len(value) < 2 || value[0] != '"' {
				break
			}
			return ParseTrace(value[1 : len(value)-1])
		}
	}
	return Trace{}, false
}

// lastMember finds a name in a compact JSON object, of which p is all but the first brace: the last one, as parsers do. whole says
// that the object ends where p does.
func lastMember(p []byte, name string) (value []byte, found, whole bool) {
	for len(p) > 0 && p[0] == '"' {
		n := valueLen(p)
		if n == 0 || n == len(p) || p[n] != ':' {
			break
		}
		is := string(p[1:n-1]) == name
		p = p[n+1:]
		if n = nestedLen(p); n == 0 || n == len(p) {
			break
		}
		if is {
			value, found = p[:n], true
		}
		if p[n] == '}' {
			return value, found, n+1 == len(p)
		}
		p = p[n+1:]
	}
	return nil, false, false
}

// nestedLen is the length of the value that compact JSON text begins with.
func nestedLen(p []byte) int {
	depth := 0
	for i := 0; i < len(p); i++ {
		switch p[i] {
		case '"':
			n := valueLen(p[i:])
			if n == 0 || i+n > len(p) {
				return 0
			}
			i += n - 1
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i
			}
			depth--
		case ',':
			if depth == 0 {
				return i
			}
		}
	}
	return 0
}

// The hops of an event, each a span of its trace: the writer's span is the parent of the first, and each of the next.
const (
	HopSequence = "commitcast.sequence" // from appended to having an offset
	HopPublish  = "commitcast.publish"  // from there to confirmed by the stream
	HopDeliver  = "commitcast.deliver"  // from heard by a broadcaster to handed to those who write to its subscribers
)

// Span is one hop of one sampled event.
type Span struct {
	Trace      Trace
	Hop        string
	Node       string // HopDeliver: of a broadcaster
	Topic      string
	Offset     int64
	Event      int64 // its id
	Start, End time.Time

	Subscribers int    // HopDeliver: who was subscribed
	Error       string // HopPublish: why the stream refused it; "": it did not
}

// IDs are the span's id and that of its parent. They follow from the event, so that whoever has its frame knows them: a broadcaster
// knows the worker's span, and a hop that two have carried out, or one twice, is one span.
func (s *Span) IDs() (id, parent [8]byte) {
	switch s.Hop {
	case HopSequence:
		return s.hop(HopSequence, ""), s.Trace.Parent
	case HopPublish:
		return s.hop(HopPublish, ""), s.hop(HopSequence, "")
	default:
		return s.hop(s.Hop, s.Node), s.hop(HopPublish, "")
	}
}

func (s *Span) hop(name, node string) (id [8]byte) {
	text := make([]byte, 0, 256)
	text = append(append(text, s.Trace.ID[:]...), s.Trace.Parent[:]...)
	text = append(strconv.AppendInt(text, s.Event, 10), ' ')
	text = append(append(append(text, name...), ' '), node...)
	sum := sha256.Sum256(text)
	copy(id[:], sum[:])
	if id == [8]byte{} { // which no span has
		id[7] = 1
	}
	return id
}
