package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// The reasons of a reset.
const (
	ReasonTrimmed = "trimmed" // the events after the cursor are past retention
	ReasonAhead   = "ahead"   // the cursor lies beyond the head: the database went back
	ReasonEpoch   = "epoch"   // the cursor belongs to a history this database does not have
)

// Request is one message from a client.
type Request struct {
	Op    string
	ID    int64  // chosen by the client, echoed in the answer; 0 if absent
	Topic string // subscribe, unsubscribe
	After string // subscribe: a cursor; "" means live only, from the head
	Token string // auth

	Conflate bool // subscribe: when behind, only the latest event of each key is wanted
}

// The ops of a client.
const (
	OpAuth        = "auth"
	OpSubscribe   = "subscribe"
	OpUnsubscribe = "unsubscribe"
)

// ParseRequest reads one line of a client's message. Unknown fields are ignored, so that newer clients can talk to
// older servers. The error is an [*Error]; the Request then holds the id, if it could be read, for the answer.
func ParseRequest(line []byte) (Request, error) {
	var raw struct {
		Op    *string      `json:"op"`
		ID    *json.Number `json:"id"`
		Topic *string      `json:"topic"`
		After *string      `json:"after"`
		Token *string      `json:"token"`

		Conflate bool `json:"conflate"`
	}
	if err := json.Unmarshal(line, &raw); err != nil {
		return Request{}, &Error{CodeBadRequest, "not a JSON object of strings, an integer id and a boolean conflate: " + err.Error()}
	}
	var r Request
	if raw.ID != nil {
		id, err := parseInteger(raw.ID.String())
		if err != nil {
			return r, &Error{CodeBadRequest, "id must be an integer from 0 to 2^53-1"}
		}
		r.ID = id
	}
	if raw.Op == nil {
		return r, &Error{CodeBadRequest, `"op" is missing`}
	}
	r.Op = *raw.Op
	r.Topic, r.After, r.Token, r.Conflate = deref(raw.Topic), deref(raw.After), deref(raw.Token), raw.Conflate
	switch r.Op {
	case OpAuth:
		if raw.Token == nil {
			return r, &Error{CodeBadRequest, `auth needs "token"`}
		}
	case OpSubscribe, OpUnsubscribe:
		if raw.Topic == nil {
			return r, &Error{CodeBadRequest, r.Op + ` needs "topic"`}
		}
		if err := CheckTopic(r.Topic); err != nil {
			return r, err
		}
	default:
		return r, &Error{CodeUnknownOp, fmt.Sprintf("unknown op %q; this server knows auth, subscribe, unsubscribe", clip(r.Op))}
	}
	return r, nil
}

// AppendRequest appends r as a client writes it: one line, without what is absent.
func AppendRequest(dst []byte, r Request) []byte {
	dst = append(dst, `{"op":`...)
	dst = appendString(dst, r.Op)
	if r.ID != 0 {
		dst = append(dst, `,"id":`...)
		dst = strconv.AppendInt(dst, r.ID, 10)
	}
	for _, field := range []struct{ name, value string }{{"topic", r.Topic}, {"after", r.After}} {
		if field.value != "" {
			dst = append(append(append(dst, `,"`...), field.name...), `":`...)
			dst = appendString(dst, field.value)
		}
	}
	if r.Conflate {
		dst = append(dst, `,"conflate":true`...)
	}
	if r.Op == OpAuth {
		dst = append(dst, `,"token":`...)
		dst = appendString(dst, r.Token)
	}
	return append(dst, '}')
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// Lines yields the non-empty lines of a message.
func Lines(message []byte) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for line := range bytes.SplitSeq(message, []byte{'\n'}) {
			if line = bytes.TrimSpace(line); len(line) > 0 && !yield(line) {
				return
			}
		}
	}
}

// AppendHello appends the first frame of a server.
func AppendHello(dst []byte, node, session, epoch string, heartbeatMS int64) []byte {
	dst = append(dst, `{"op":"hello","protocol":"`+Protocol+`","node":`...)
	dst = appendString(dst, node)
	dst = append(dst, `,"session":`...)
	dst = appendString(dst, session)
	dst = append(dst, `,"epoch":`...)
	dst = appendString(dst, epoch)
	dst = append(dst, `,"heartbeat_ms":`...)
	dst = strconv.AppendInt(dst, heartbeatMS, 10)
	return append(dst, '}')
}

// AppendSubscribed appends the answer to subscribe: events follow from after+1; head is the newest offset known.
func AppendSubscribed(dst []byte, id int64, topic, epoch string, after, head int64) []byte {
	dst = append(dst, `{"op":"subscribed","id":`...)
	dst = strconv.AppendInt(dst, id, 10)
	dst = append(dst, `,"topic":`...)
	dst = appendString(dst, topic)
	dst = append(dst, `,"epoch":`...)
	dst = appendString(dst, epoch)
	dst = append(dst, `,"after":`...)
	dst = strconv.AppendInt(dst, after, 10)
	dst = append(dst, `,"head":`...)
	dst = strconv.AppendInt(dst, head, 10)
	return append(dst, '}')
}

// AppendUnsubscribed appends the answer to unsubscribe. No event of the topic follows it.
func AppendUnsubscribed(dst []byte, id int64, topic string) []byte {
	dst = append(dst, `{"op":"unsubscribed","id":`...)
	dst = strconv.AppendInt(dst, id, 10)
	dst = append(dst, `,"topic":`...)
	dst = appendString(dst, topic)
	return append(dst, '}')
}

// AppendReset appends the end of a subscription that cannot go on from its cursor: the client re-reads its snapshot
// and subscribes again, not before inMS milliseconds.
func AppendReset(dst []byte, topic, epoch string, head int64, reason string, inMS int64) []byte {
	dst = append(dst, `{"op":"reset","topic":`...)
	dst = appendString(dst, topic)
	dst = append(dst, `,"epoch":`...)
	dst = appendString(dst, epoch)
	dst = append(dst, `,"head":`...)
	dst = strconv.AppendInt(dst, head, 10)
	dst = append(dst, `,"reason":`...)
	dst = appendString(dst, reason)
	dst = append(dst, `,"in_ms":`...)
	dst = strconv.AppendInt(dst, inMS, 10)
	return append(dst, '}')
}

// Head is the newest offset of one topic, in a heartbeat, and the epoch that the topic is in.
type Head struct {
	Topic  string
	Offset int64
	Epoch  string // "": that of the heartbeat
}

// AppendHeartbeat appends a heartbeat: the newest offset of each topic that the session is subscribed to, and the epoch of those
// that are in another than the heartbeat itself.
func AppendHeartbeat(dst []byte, epoch string, heads []Head) []byte {
	dst = append(dst, `{"op":"heartbeat","epoch":`...)
	dst = appendString(dst, epoch)
	dst = append(dst, `,"heads":{`...)
	for i, h := range heads {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(dst, h.Topic)
		dst = append(dst, ':')
		dst = strconv.AppendInt(dst, h.Offset, 10)
	}
	dst = append(dst, '}')
	before := `,"epochs":{`
	for _, h := range heads {
		if h.Epoch == "" || h.Epoch == epoch {
			continue
		}
		dst = append(dst, before...)
		dst = appendString(dst, h.Topic)
		dst = append(dst, ':')
		dst = appendString(dst, h.Epoch)
		before = ","
	}
	if before == "," {
		dst = append(dst, '}')
	}
	return append(dst, '}')
}

// AppendError appends the refusal of one request. id is that of the request, 0 if it could not be read.
func AppendError(dst []byte, id int64, e *Error) []byte {
	dst = append(dst, `{"op":"error","id":`...)
	dst = strconv.AppendInt(dst, id, 10)
	dst = append(dst, `,"code":`...)
	dst = appendString(dst, e.Code)
	dst = append(dst, `,"message":`...)
	dst = appendString(dst, e.Message)
	return append(dst, '}')
}

// AppendReconnect appends the notice that the server is about to close: come back in inMS milliseconds.
func AppendReconnect(dst []byte, inMS int64) []byte {
	dst = append(dst, `{"op":"reconnect","in_ms":`...)
	dst = strconv.AppendInt(dst, inMS, 10)
	return append(dst, '}')
}

// Message is one frame from a server, decoded: the union of all ops. Clients and tests read with it.
type Message struct {
	Op          string           `json:"op"`
	Protocol    string           `json:"protocol,omitempty"`
	Node        string           `json:"node,omitempty"`
	Session     string           `json:"session,omitempty"`
	Epoch       string           `json:"epoch,omitempty"`
	HeartbeatMS int64            `json:"heartbeat_ms,omitempty"`
	ID          int64            `json:"id,omitempty"`
	Topic       string           `json:"topic,omitempty"`
	After       int64            `json:"after,omitempty"`
	Head        int64            `json:"head,omitempty"`
	Offset      int64            `json:"offset,omitempty"`
	Type        string           `json:"type,omitempty"`
	Key         string           `json:"key,omitempty"`
	At          string           `json:"at,omitempty"`
	Data        json.RawMessage  `json:"data,omitempty"`
	Headers     json.RawMessage  `json:"headers,omitempty"`
	Skip        bool             `json:"skip,omitempty"`
	Conflated   int64            `json:"conflated,omitempty"`
	More        bool             `json:"more,omitempty"`
	Heads       map[string]int64 `json:"heads,omitempty"`
	Reason      string           `json:"reason,omitempty"`
	InMS        int64            `json:"in_ms,omitempty"`
	Code        string           `json:"code,omitempty"`
	Message     string           `json:"message,omitempty"`

	Epochs map[string]string `json:"epochs,omitempty"` // of those in Heads that are not in Epoch
}

// EpochOf is the epoch that a topic is in, as a heartbeat says.
func (m *Message) EpochOf(topic string) string {
	if epoch, ok := m.Epochs[topic]; ok {
		return epoch
	}
	return m.Epoch
}

// ParseMessage reads one line of a server's message, and refuses a frame in which something is missing or cannot be: fields
// that every frame of its op has (docs/protocol.md), names of topics and epochs, integers from 0 to [MaxInteger]. Unknown
// fields are ignored, and a frame with an op of a later server is read as it is, so that older clients can talk to newer
// servers.
func ParseMessage(line []byte) (Message, error) {
	const missing = -1
	raw := struct {
		Message
		Text *string `json:"message"` // which may be empty, but not missing
	}{Message: Message{HeartbeatMS: missing, ID: missing, After: missing, Head: missing, Offset: missing, InMS: missing}}
	if err := json.Unmarshal(line, &raw); err != nil {
		return Message{}, fmt.Errorf("wire: message from server: %w", err)
	}
	m := raw.Message
	m.Message = deref(raw.Text)
	wrong := ""
	check := func(field string, ok bool) {
		if !ok && wrong == "" {
			wrong = field
		}
	}
	number := func(field string, n int64) { check(field, n >= 0 && n <= MaxInteger) }
	names := func() {
		check("topic", ValidTopic(m.Topic))
		check("epoch", ValidEpoch(m.Epoch))
	}
	switch m.Op {
	case "":
		return Message{}, errors.New("wire: message from server without op")
	case "hello":
		check("epoch", ValidEpoch(m.Epoch))
		number("heartbeat_ms", m.HeartbeatMS)
	case "subscribed":
		names()
		number("id", m.ID)
		number("after", m.After)
		number("head", m.Head)
	case "event":
		names()
		number("offset", m.Offset)
		check("offset", m.Offset > 0)
		number("id", m.ID)
		number("conflated", m.Conflated)
		check("conflated", m.Conflated < m.Offset)
		check("type", m.Skip || m.Type != "")
		check("at", m.Skip || m.At != "")
		check("data", m.Skip || m.Data != nil)
	case "unsubscribed":
		number("id", m.ID)
		check("topic", ValidTopic(m.Topic))
	case "reset":
		names()
		number("head", m.Head)
		check("reason", m.Reason != "")
		number("in_ms", m.InMS)
	case "heartbeat":
		check("epoch", ValidEpoch(m.Epoch))
		check("heads", m.Heads != nil)
		for _, head := range m.Heads {
			number("heads", head)
		}
		for _, epoch := range m.Epochs {
			check("epochs", ValidEpoch(epoch))
		}
	case "error":
		number("id", m.ID)
		check("code", m.Code != "")
		check("message", raw.Text != nil)
	case "reconnect":
		number("in_ms", m.InMS)
	}
	if wrong != "" {
		return Message{}, fmt.Errorf("wire: message from server: %s of %s is missing, or cannot be", wrong, m.Op)
	}
	for _, n := range []*int64{&m.HeartbeatMS, &m.ID, &m.After, &m.Head, &m.Offset, &m.InMS} {
		*n = max(*n, 0)
	}
	return m, nil
}
