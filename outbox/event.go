package outbox

import (
	"bytes"
	"crypto/md5"
	"encoding/binary"
	"encoding/json"
	"strings"
	"unicode/utf8"
)

// Event is something that happened to a topic.
type Event struct {
	// Topic is what subscribers subscribe to, such as "market:42". Must match TopicPattern.
	Topic string
	// Type says what happened, such as "trade". 1 to MaxLabelLen bytes. Types that begin with "commitcast." are refused: they
	// are the system's own.
	Type string
	// Key names the thing it happened to, if that is not the topic itself: a client that only wants the latest state
	// of each key may skip earlier events of the same one. At most MaxLabelLen bytes; "" means none.
	Key string
	// Data is the event's content. A json.RawMessage is stored to the letter; anything else goes through
	// encoding/json (so a []byte becomes base64). At most MaxData bytes of JSON text. nil is refused, since it is a
	// forgotten field more often than a wish: use json.RawMessage("null") for an event without data.
	Data any
	// Headers are for metadata. At most MaxHeaders bytes as a JSON object; empty means none.
	//
	// One of them, "traceparent" of W3C Trace Context, makes the event part of a distributed trace. It is set by itself, in what
	// is stored and not in this map, from the OpenTelemetry span of the context that Tx, Once, Append or an Action's request has,
	// if there is one. A traceparent in the map is kept instead, and refused if it is malformed.
	Headers map[string]string
}

// row is a checked and encoded Event: what an outbox row is made of.
type row struct {
	topic, typ, key string
	data, headers   string // JSON; headers may be ""
	traced          bool   // the headers have a traceparent
}

func (r *row) size() int { return len(r.data) + len(r.headers) }

// encode checks an event against its limits. The error is an ErrInvalidEvent, with the same message as that of
// commitcast.append, in the same order of checks.
func encode(e Event) (row, error) {
	r := row{topic: e.Topic, typ: e.Type, key: e.Key}
	if !validTopic(e.Topic) {
		return r, badTopic(e.Topic)
	}
	if n := len(e.Type); n < 1 || n > MaxLabelLen {
		return r, invalidf("type must have 1 to %d bytes, not %d", MaxLabelLen, n)
	}
	if r.isFence() {
		return r, errReserved
	}
	if n := len(e.Key); n > MaxLabelLen {
		return r, invalidf("key must have 1 to %d bytes, not %d", MaxLabelLen, n)
	}
	if !validText(e.Type) {
		return r, invalidf("type must be UTF-8 without NUL")
	}
	if !validText(e.Key) {
		return r, invalidf("key must be UTF-8 without NUL")
	}
	var err error
	if r.data, err = encodeData(e.Data); err != nil {
		return r, err
	}
	if len(r.data) > MaxData {
		return r, tooLong(len(r.data))
	}
	if len(e.Headers) > 0 {
		var own string
		if own, r.traced = e.Headers[traceHeader]; r.traced && !validTraceparent(own) {
			return r, invalidf(`header %s "%s" is not one of W3C Trace Context`, traceHeader, clip(own, 2*traceparentLen))
		}
		if r.headers, err = marshal(e.Headers); err != nil {
			return r, invalidf("headers cannot be encoded: %v", err)
		}
		if len(r.headers) > MaxHeaders {
			return r, invalidf("headers have %d bytes, more than the limit of %d", len(r.headers), MaxHeaders)
		}
	}
	return r, nil
}

func tooLong(n int) error {
	return invalidf("data has %d bytes, more than the limit of %d", n, MaxData)
}

func encodeData(data any) (string, error) {
	raw, ok := data.(json.RawMessage)
	switch {
	case data == nil || ok && len(raw) == 0:
		return "", invalidf("data is missing; use the JSON value null for an event without data")
	case ok && len(raw) > MaxData:
		return "", tooLong(len(raw)) // before anything reads it all
	case ok:
		if !utf8.Valid(raw) {
			return "", invalidf("data is not valid JSON: it is not UTF-8")
		}
		if !json.Valid(raw) {
			var v any
			return "", invalidf("data is not valid JSON: %v", json.Unmarshal(raw, &v))
		}
		return string(raw), nil
	}
	s, err := marshal(data)
	if err != nil {
		return "", invalidf("data cannot be encoded: %v", err)
	}
	return s, nil
}

// marshal is json.Marshal without escaping for HTML, which would only make data longer.
func marshal(v any) (string, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return "", err
	}
	return strings.TrimSuffix(buf.String(), "\n"), nil
}

// validTopic reports whether name matches TopicPattern.
func validTopic(name string) bool {
	if len(name) == 0 || len(name) > MaxTopicLen {
		return false
	}
	for i := 0; i < len(name); i++ {
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && (c == '.' || c == '_' || c == ':' || c == '/' || c == '-'):
		default:
			return false
		}
	}
	return true
}

func badTopic(name string) error {
	return invalidf(`topic "%s" does not match %s`, clip(name, 144), TopicPattern)
}

func validText(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

// clip returns the first n characters of s, for an error message.
func clip(s string, n int) string {
	for i := range s {
		if n--; n < 0 {
			return s[:i]
		}
	}
	return s
}

// partitionOf is commitcast.partition_of.
func partitionOf(topic string) int {
	sum := md5.Sum([]byte(topic))
	return int(binary.BigEndian.Uint16(sum[:2])) % 32
}
