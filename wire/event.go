package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"time"
	"unicode/utf8"
)

// Event is a sequenced event: one row of the journal.
type Event struct {
	Topic   string
	Epoch   string // the epoch in which it was sequenced
	Offset  int64
	ID      int64
	Type    string
	Key     string          // empty: no key
	At      time.Time       // when the event was appended
	Data    json.RawMessage // any JSON value
	Headers json.RawMessage // a JSON object, or nil
}

// ErrUnencodable is returned for an event whose data or headers cannot stand in a text frame: not JSON to this
// parser (nested deeper than 10,000), or not UTF-8.
var ErrUnencodable = errors.New("wire: data cannot be encoded as one line of UTF-8 JSON")

// AppendEvent appends the event frame of e to dst: one line, no newline in it or after it. Data is compacted, which
// removes raw newlines, and otherwise kept to the letter: "\u0000", lone surrogates and 1e400 pass as they are.
// On [ErrUnencodable] dst is returned unchanged; [AppendSkip] then fills the offset.
func AppendEvent(dst []byte, e *Event) ([]byte, error) {
	start := len(dst)
	dst = append(dst, `{"op":"event","topic":`...)
	dst = appendString(dst, e.Topic)
	dst = append(dst, `,"epoch":`...)
	dst = appendString(dst, e.Epoch)
	dst = append(dst, `,"offset":`...)
	dst = strconv.AppendInt(dst, e.Offset, 10)
	dst = append(dst, `,"id":`...)
	dst = strconv.AppendInt(dst, e.ID, 10)
	dst = append(dst, `,"type":`...)
	dst = appendString(dst, e.Type)
	if e.Key != "" {
		dst = append(dst, `,"key":`...)
		dst = appendString(dst, e.Key)
	}
	dst = append(dst, `,"at":"`...)
	dst = e.At.UTC().AppendFormat(dst, "2006-01-02T15:04:05.000000Z")
	dst = append(dst, `","data":`...)
	var err error
	if dst, err = appendJSON(dst, e.Data); err != nil {
		return dst[:start], err
	}
	if len(e.Headers) > 0 {
		dst = append(dst, `,"headers":`...)
		if dst, err = appendJSON(dst, e.Headers); err != nil {
			return dst[:start], err
		}
	}
	return append(dst, '}'), nil
}

// AppendSkip appends a frame that fills an offset without showing what is there: an event that the subscriber may
// not or need not see, or one that must be fetched from the journal.
func AppendSkip(dst []byte, topic, epoch string, offset, id int64) []byte {
	dst = append(dst, `{"op":"event","topic":`...)
	dst = appendString(dst, topic)
	dst = append(dst, `,"epoch":`...)
	dst = appendString(dst, epoch)
	dst = append(dst, `,"offset":`...)
	dst = strconv.AppendInt(dst, offset, 10)
	dst = append(dst, `,"id":`...)
	dst = strconv.AppendInt(dst, id, 10)
	return append(dst, `,"skip":true}`...)
}

// AppendConflated appends a finished frame of an event for a subscriber that is not shown the conflated events before it.
// more: it is to be applied together with the next frame, or not at all.
func AppendConflated(dst, frame []byte, conflated int64, more bool) []byte {
	dst = append(dst, frame[:len(frame)-1]...)
	if conflated > 0 {
		dst = append(dst, `,"conflated":`...)
		dst = strconv.AppendInt(dst, conflated, 10)
	}
	if more {
		return append(dst, moreMark...)
	}
	return append(dst, '}')
}

// moreMark ends a frame of [AppendConflated], and nothing else: whatever a writer chose stands in braces, brackets or quotes
// of its own.
const moreMark = `,"more":true}`

// HasMore reports whether a finished frame of an event is to be applied together with the next one.
func HasMore(frame []byte) bool { return bytes.HasSuffix(frame, []byte(moreMark)) }

// EventKey finds the key in a finished frame of an event, without decoding it: as it stands there, with what JSON escapes.
// Two of one encoder are equal exactly if the keys are. nil: it has none, or is no frame that package wire has written.
func EventKey(frame []byte) []byte {
	rest, ok := bytes.CutPrefix(frame, []byte(`{"op":"event","topic":`))
	if !ok {
		return nil
	}
	for _, field := range [...]string{`,"epoch":`, `,"offset":`, `,"id":`, `,"type":`, `,"key":`} {
		n := valueLen(rest)
		if rest, ok = bytes.CutPrefix(rest[n:], []byte(field)); !ok || n == 0 {
			return nil
		}
	}
	n := valueLen(rest)
	if n < 3 || rest[0] != '"' {
		return nil
	}
	return rest[1 : n-1]
}

// valueLen is the length of the string or the number that JSON text begins with; 0: neither.
func valueLen(p []byte) int {
	if len(p) > 0 && p[0] == '"' {
		for i := 1; i < len(p); i++ {
			switch p[i] {
			case '\\':
				i++
			case '"':
				return i + 1
			}
		}
		return 0
	}
	n := 0
	for n < len(p) && p[n] >= '0' && p[n] <= '9' {
		n++
	}
	return n
}

// appendJSON appends src without insignificant white space.
func appendJSON(dst []byte, src json.RawMessage) ([]byte, error) {
	if !utf8.Valid(src) {
		return dst, ErrUnencodable
	}
	buf := bytes.NewBuffer(dst)
	if err := json.Compact(buf, src); err != nil {
		return dst, ErrUnencodable
	}
	return buf.Bytes(), nil
}

// appendString appends s as a JSON string. Names are ASCII nearly always; anything else takes the slow path.
func appendString(dst []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' {
			b, _ := json.Marshal(s) // a string always marshals
			return append(dst, b...)
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}
