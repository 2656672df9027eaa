package wire_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/commitcast/commitcast/wire"
)

// vectors reads a file of golden vectors. Every implementation of the protocol runs the same files.
func vectors[T any](t *testing.T, name string) T {
	t.Helper()
	text, err := os.ReadFile("testdata/" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var v T
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return v
}

// some fails if a list of vectors is empty: a test of nothing passes always.
func some[T any](t *testing.T, what string, list []T) []T {
	t.Helper()
	if len(list) == 0 {
		t.Fatalf("no vectors: %s", what)
	}
	return list
}

func TestVectorsServer(t *testing.T) {
	v := vectors[struct {
		About  string
		Frames []struct {
			Name, Line string
			Frame      json.RawMessage
		}
		Data []struct {
			Name, Data, Line string
		}
		Tolerated []struct {
			Name, Line string
			Frame      json.RawMessage
		}
		Bad []string
	}](t, "server")
	seen := map[string]bool{}
	for _, c := range some(t, "frames", v.Frames) {
		want := message(t, c.Frame)
		seen[want.Op] = true
		got, err := wire.ParseMessage([]byte(c.Line))
		if err != nil {
			t.Errorf("%s: %v", c.Name, err)
			continue
		}
		if !reflect.DeepEqual(compact(t, got), compact(t, want)) {
			t.Errorf("%s: read %+v, want %+v", c.Name, got, want)
		}
		if line := encode(t, want); line != c.Line {
			t.Errorf("%s: written\n%s, want\n%s", c.Name, line, c.Line)
		}
	}
	for _, op := range []string{"hello", "subscribed", "event", "unsubscribed", "reset", "heartbeat", "error", "reconnect"} {
		if !seen[op] {
			t.Errorf("no vector for op %q", op)
		}
	}
	for _, c := range some(t, "data", v.Data) {
		got, err := wire.AppendEvent(nil, &wire.Event{Topic: "t", Epoch: "3-7d0a41c2", Offset: 7, ID: 7, Type: "x",
			At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Data: json.RawMessage(c.Data)})
		if err != nil || string(got) != c.Line {
			t.Errorf("%s: written\n%s (%v), want\n%s", c.Name, got, err, c.Line)
		}
	}
	for _, c := range some(t, "tolerated", v.Tolerated) {
		got, err := wire.ParseMessage([]byte(c.Line))
		if want := message(t, c.Frame); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: read %+v (%v), want %+v", c.Name, got, err, want)
		}
	}
	for _, line := range some(t, "bad", v.Bad) {
		if m, err := wire.ParseMessage([]byte(line)); err == nil {
			t.Errorf("%s was read: %+v", line, m)
		}
	}
	if m, err := wire.ParseMessage([]byte(`{"op":"later","id":-1}`)); err != nil || m.Op != "later" {
		t.Errorf("an op of a later server: %+v, %v", m, err)
	}
}

func message(t *testing.T, text json.RawMessage) (m wire.Message) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return m
}

// compact brings the parts that are kept as text to one spelling.
func compact(t *testing.T, m wire.Message) wire.Message {
	t.Helper()
	for _, p := range []*json.RawMessage{&m.Data, &m.Headers} {
		if *p == nil {
			continue
		}
		var v any
		if err := json.Unmarshal(*p, &v); err != nil {
			t.Fatal(err)
		}
		*p, _ = json.Marshal(v)
	}
	return m
}

// encode writes m as the server does.
func encode(t *testing.T, m wire.Message) string {
	t.Helper()
	switch m.Op {
	case "hello":
		return string(wire.AppendHello(nil, m.Node, m.Session, m.Epoch, m.HeartbeatMS))
	case "subscribed":
		return string(wire.AppendSubscribed(nil, m.ID, m.Topic, m.Epoch, m.After, m.Head))
	case "event":
		if m.Conflated > 0 || m.More {
			plain := m
			plain.Conflated, plain.More = 0, false
			return string(wire.AppendConflated(nil, []byte(encode(t, plain)), m.Conflated, m.More))
		}
		if m.Skip {
			return string(wire.AppendSkip(nil, m.Topic, m.Epoch, m.Offset, m.ID))
		}
		at, err := time.Parse(time.RFC3339Nano, m.At)
		if err != nil {
			t.Fatal(err)
		}
		p, err := wire.AppendEvent(nil, &wire.Event{Topic: m.Topic, Epoch: m.Epoch, Offset: m.Offset, ID: m.ID,
			Type: m.Type, Key: m.Key, At: at, Data: m.Data, Headers: m.Headers})
		if err != nil {
			t.Fatal(err)
		}
		return string(p)
	case "unsubscribed":
		return string(wire.AppendUnsubscribed(nil, m.ID, m.Topic))
	case "reset":
		return string(wire.AppendReset(nil, m.Topic, m.Epoch, m.Head, m.Reason, m.InMS))
	case "heartbeat":
		heads := []wire.Head{}
		for _, topic := range []string{"market:42", "orders:7", "orders:8", "a"} {
			if head, ok := m.Heads[topic]; ok {
				heads = append(heads, wire.Head{Topic: topic, Offset: head, Epoch: m.EpochOf(topic)})
			}
		}
		return string(wire.AppendHeartbeat(nil, m.Epoch, heads))
	case "error":
		return string(wire.AppendError(nil, m.ID, &wire.Error{Code: m.Code, Message: m.Message}))
	case "reconnect":
		return string(wire.AppendReconnect(nil, m.InMS))
	}
	t.Fatalf("no encoder for op %q", m.Op)
	return ""
}

func TestVectorsClient(t *testing.T) {
	type frame struct {
		Name, Line string
		Request    struct {
			Op    string `json:"op"`
			ID    int64  `json:"id,omitempty"`
			Topic string `json:"topic,omitempty"`
			After string `json:"after,omitempty"`
			Token string `json:"token,omitempty"`

			Conflate bool `json:"conflate,omitempty"`
		}
	}
	v := vectors[struct {
		About             string
		Frames, Tolerated []frame
		Bad               []struct {
			Line string
			ID   int64
			Code string
		}
	}](t, "client")
	for _, c := range append(some(t, "frames", v.Frames), some(t, "tolerated", v.Tolerated)...) {
		if got, err := wire.ParseRequest([]byte(c.Line)); err != nil || got != wire.Request(c.Request) {
			t.Errorf("%s: read %+v (%v), want %+v", c.Name, got, err, c.Request)
		}
	}
	for _, c := range v.Frames {
		if line := string(wire.AppendRequest(nil, wire.Request(c.Request))); line != c.Line {
			t.Errorf("%s: written\n%s, want\n%s", c.Name, line, c.Line)
		}
	}
	for _, c := range some(t, "bad", v.Bad) {
		got, err := wire.ParseRequest([]byte(c.Line))
		var refusal *wire.Error
		if !errors.As(err, &refusal) || refusal.Code != c.Code || got.ID != c.ID {
			t.Errorf("%s: id %d, %v; want id %d, %s", c.Line, got.ID, err, c.ID, c.Code)
		}
	}
}

func TestVectorsNames(t *testing.T) {
	v := vectors[struct {
		About   string
		Cursors []struct {
			Text, Epoch string
			Offset      int64
		}
		BadCursors []string `json:"bad_cursors"`
		Topics     []string
		BadTopics  []string `json:"bad_topics"`
	}](t, "names")
	for _, c := range some(t, "cursors", v.Cursors) {
		want := wire.Cursor{Epoch: c.Epoch, Offset: c.Offset}
		if got, err := wire.ParseCursor(c.Text); err != nil || got != want {
			t.Errorf("%s: read %+v (%v)", c.Text, got, err)
		}
		if got := want.String(); got != c.Text {
			t.Errorf("written %s, want %s", got, c.Text)
		}
	}
	for _, text := range some(t, "bad cursors", v.BadCursors) {
		var refusal *wire.Error
		if got, err := wire.ParseCursor(text); !errors.As(err, &refusal) || refusal.Code != wire.CodeBadCursor {
			t.Errorf("%q was read: %+v (%v)", text, got, err)
		}
	}
	for _, name := range some(t, "topics", v.Topics) {
		if !wire.ValidTopic(name) {
			t.Errorf("topic %q was refused", name)
		}
	}
	for _, name := range some(t, "bad topics", v.BadTopics) {
		if wire.ValidTopic(name) {
			t.Errorf("topic %q was accepted", name)
		}
	}
}

func TestVectorsMessages(t *testing.T) {
	v := vectors[struct {
		About    string
		Messages []struct {
			Name, Message string
			Lines         []string
		}
	}](t, "messages")
	for _, c := range some(t, "messages", v.Messages) {
		got := []string{}
		for line := range wire.Lines([]byte(c.Message)) {
			got = append(got, string(line))
		}
		if !reflect.DeepEqual(got, c.Lines) {
			t.Errorf("%s: %q, want %q", c.Name, got, c.Lines)
		}
	}
}

func TestVectorsClose(t *testing.T) {
	v := vectors[struct {
		About string
		Codes []wire.CloseCode
	}](t, "close")
	if !reflect.DeepEqual(v.Codes, wire.CloseCodes) {
		t.Errorf("close codes\n%+v, want\n%+v", wire.CloseCodes, v.Codes)
	}
}
