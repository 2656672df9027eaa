package wire_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"regexp"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/commitcast/commitcast/wire"
)

// What comes from outside: each is read or refused with an error that the peer can be told, and what is read is what
// was said. The corpus is in testdata/fuzz; go test runs it. To look further:
//
//	go test ./wire -run XXX -fuzz FuzzParseRequest

func FuzzParseRequest(f *testing.F) {
	for _, line := range []string{
		`{"op":"subscribe","id":1,"topic":"market:42","after":"3-7d0a41c2:1041"}`, `{"op":"auth","token":"\ud800"}`,
		`{"op":"unsubscribe","id":9007199254740991,"topic":"t"}`, `{"id":1e0,"op":"auth"}`, `{"op":"dance","id":3}`,
		`{"op":null,"id":null}`, `{"OP":"auth","token":""}`, "{\"op\":\"auth\",\"token\":\"\xff\"}", `[[[[`, ``,
	} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := wire.ParseRequest(line)
		if r.ID < 0 || r.ID > wire.MaxInteger {
			t.Fatalf("id %d", r.ID)
		}
		if err != nil {
			var refusal *wire.Error
			if !errors.As(err, &refusal) || refusal.Code == "" {
				t.Fatalf("%v is not for the peer", err)
			}
			answer := wire.AppendError(nil, r.ID, refusal)
			if m, err := wire.ParseMessage(answer); err != nil || m.Code != refusal.Code || m.ID != r.ID || bytes.IndexByte(answer, '\n') >= 0 {
				t.Fatalf("the answer %q reads as %+v, %v", answer, m, err)
			}
			if len(answer) > 4*wire.MaxClientFrame {
				t.Fatalf("an answer of %d bytes to %d", len(answer), len(line))
			}
			return
		}
		switch r.Op {
		case wire.OpAuth:
		case wire.OpSubscribe, wire.OpUnsubscribe:
			if !wire.ValidTopic(r.Topic) {
				t.Fatalf("topic %q", r.Topic)
			}
		default:
			t.Fatalf("op %q", r.Op)
		}
	})
}

// FuzzEventKey: of a frame of this package the key is found, whatever stands before and behind it, and marks can be added; of
// anything else it is found, or not, without a panic.
func FuzzEventKey(f *testing.F) {
	for _, seed := range [][3]string{{"trade", "42", `{"key":"x"}`}, {`a","key":"b`, "\\", `1`}, {"\"", "", `"more\":true}"`}, {"\u2028", "\x00", `null`}} {
		f.Add(seed[0], seed[1], []byte(seed[2]))
	}
	f.Fuzz(func(t *testing.T, typ, key string, data []byte) {
		wire.EventKey(data)
		wire.HasMore(data)
		if !utf8.ValidString(typ) || !utf8.ValidString(key) || typ == "" {
			return
		}
		frame, err := wire.AppendEvent(nil, &wire.Event{Topic: "t", Epoch: "1-0000", Offset: 7, ID: 8, Type: typ, Key: key, Data: data})
		if err != nil {
			return
		}
		var found string
		if raw := wire.EventKey(frame); raw != nil {
			if err := json.Unmarshal([]byte(`"`+string(raw)+`"`), &found); err != nil {
				t.Fatalf("%q of %q: %v", raw, frame, err)
			}
		}
		if found != key || wire.HasMore(frame) {
			t.Fatalf("key %q of %q, more %v", found, frame, wire.HasMore(frame))
		}
		for _, more := range []bool{true, false} {
			marked := wire.AppendConflated(nil, frame, 3, more)
			if m, err := wire.ParseMessage(marked); err != nil || m.Conflated != 3 || m.More != more || wire.HasMore(marked) != more || !bytes.Equal(wire.EventKey(marked), wire.EventKey(frame)) {
				t.Fatalf("%q reads as %+v, %v", marked, m, err)
			}
		}
	})
}

func FuzzParseCursor(f *testing.F) {
	for _, s := range []string{"3-7d0a41c2:1041", "1-0000:0", "1-0000:9007199254740991", "1-0000:9007199254740992", "0-0000:1", "1-000g:1", ":", "1-0000:01", "1-0000:+1", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := wire.ParseCursor(s)
		if err != nil {
			var refusal *wire.Error
			if !errors.As(err, &refusal) || refusal.Code != wire.CodeBadCursor {
				t.Fatalf("%v", err)
			}
			return
		}
		if c.String() != s || c.Offset < 0 || c.Offset > wire.MaxInteger || !wire.ValidEpoch(c.Epoch) || c.IsZero() {
			t.Fatalf("%q was read as %+v", s, c)
		}
	})
}

func FuzzTopic(f *testing.F) {
	pattern := regexp.MustCompile(wire.TopicPattern)
	for _, s := range []string{"a", "market:42", "A.b_c:d/e-f", ":a", "a\n", "a b", "é", string(make([]byte, 128)), ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		want := pattern.MatchString(s)
		if got := wire.ValidTopic(s); got != want || (wire.CheckTopic(s) == nil) != want {
			t.Fatalf("%q: valid is %v, the pattern says %v", s, got, want)
		}
		if p := wire.Partition(s); p < 0 || p >= wire.Partitions {
			t.Fatalf("%q is in partition %d", s, p)
		}
	})
}

func FuzzLines(f *testing.F) {
	for _, s := range []string{"a\nb", "\n\n", " a \r\n\tb", "", "\u2028\n\x85", "{\"a\":\n1}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		before := bytes.Clone(message)
		var again []byte
		for line := range wire.Lines(message) {
			if len(line) == 0 || bytes.IndexByte(line, '\n') >= 0 || !bytes.Equal(line, bytes.TrimSpace(line)) {
				t.Fatalf("line %q", line)
			}
			again = append(append(again, line...), '\n')
		}
		if !bytes.Equal(message, before) {
			t.Fatal("the message was changed")
		}
		var second []byte
		for line := range wire.Lines(again) {
			second = append(append(second, line...), '\n')
		}
		if !bytes.Equal(second, again) {
			t.Fatalf("%q, then %q", again, second)
		}
		for range wire.Lines(message) {
			break
		}
	})
}

func FuzzParseMessage(f *testing.F) {
	for _, s := range []string{
		`{"op":"event","topic":"t","epoch":"1-0000","offset":1,"id":1,"type":"x","at":"2026-01-02T03:04:05.000000Z","data":{"a":1e400}}`,
		`{"op":"heartbeat","epoch":"1-0000","heads":{"a":1}}`, `{"op":"heartbeat","epoch":"1-0000","heads":{"a":1},"epochs":{"a":"7-abcd"}}`, `{"op":"event","data":"\ud800\u0000"}`, `{"op":1}`, `{}`, `x`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := wire.ParseMessage(line)
		if (err == nil) != (m.Op != "") {
			t.Fatalf("%+v, %v", m, err)
		}
		for _, n := range []int64{m.HeartbeatMS, m.ID, m.After, m.Head, m.Offset, m.InMS} {
			if err == nil && n < 0 {
				t.Fatalf("%q was read as %+v", line, m)
			}
		}
		for topic := range m.Epochs {
			if m.Op == "heartbeat" && !wire.ValidEpoch(m.EpochOf(topic)) {
				t.Fatalf("%q was read as %+v", line, m)
			}
		}
		if _, bad := wire.ParseCursor(wire.Cursor{Epoch: m.Epoch, Offset: m.Offset}.String()); m.Op == "event" && (bad != nil || m.Offset < 1 || !wire.ValidTopic(m.Topic)) {
			t.Fatalf("%q was read as %+v", line, m)
		}
	})
}

// FuzzAppendEvent: whatever data the database holds, a frame is one line of UTF-8 JSON with the data in it as it was,
// or there is none.
func FuzzAppendEvent(f *testing.F) {
	for _, s := range []string{`{"a":1}`, "{\n\t\"a\" : [1e400, \"\\u0000\", \"\\ud800\"]\r\n}", `"` + "\u2028" + `"`, "\"\xff\"", "\"\n\"", "", "1 2", "<script>&"} {
		f.Add("t", "x", "k", []byte(s), []byte(`{"h":1}`))
	}
	f.Add("\"\n", "\u2028", "\xff", []byte(`null`), []byte("{\n}"))
	f.Fuzz(func(t *testing.T, topic, typ, key string, data, headers []byte) {
		prefix := []byte("before\n")
		e := wire.Event{Topic: topic, Epoch: "1-0000", Offset: 7, ID: 8, Type: typ, Key: key, At: time.Unix(0, 0), Data: data, Headers: headers}
		p, err := wire.AppendEvent(bytes.Clone(prefix), &e)
		if err != nil {
			if !bytes.Equal(p, prefix) {
				t.Fatalf("%q is left behind", p)
			}
			p = wire.AppendSkip(p, topic, "1-0000", 7, 8)
		}
		line := p[len(prefix):]
		if bytes.IndexByte(line, '\n') >= 0 || !utf8.Valid(line) {
			t.Fatalf("%q is not a line of UTF-8", line)
		}
		m, perr := wire.ParseMessage(line)
		if !wire.ValidTopic(topic) || typ == "" && err == nil { // which no database lets in, and no reader
			if perr == nil || !json.Valid(line) {
				t.Fatalf("%q reads as %+v, %v", line, m, perr)
			}
			return
		}
		if perr != nil || m.Offset != 7 || m.ID != 8 || m.Skip != (err != nil) {
			t.Fatalf("%q reads as %+v, %v", line, m, perr)
		}
		if err == nil {
			var want bytes.Buffer
			if json.Compact(&want, data) != nil || !bytes.Equal(want.Bytes(), m.Data) {
				t.Fatalf("data %q became %q", data, m.Data)
			}
		}
	})
}
