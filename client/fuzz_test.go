package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/commitcast/commitcast/wire"
)

// FuzzToken: a token that was kept is read or refused, and what is read can be gone on from and says the same when it is
// written again.
func FuzzToken(f *testing.F) {
	for _, seed := range []string{`{"cursor":"3-7d0a41c2:1041","pending":[7,8],"epoch":"3-7d0a41c2"}`, `{"cursor":"1-0000:0","pending":[],"epoch":"1-0000"}`,
		`{"cursor":"1-0000:0","pending":null,"epoch":"1-0000"}`, `{"cursor":"1-0000:0","pending":[-1],"epoch":"1-0000"}`, `{"cursor":"1-0000:9007199254740992","pending":[1e3],"epoch":"x"}`, `null`, ``} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var token Token
		if json.Unmarshal(text, &token) != nil || token.Epoch == "" { // null leaves it as it is
			if token.check() == nil {
				t.Fatalf("%q was refused, and left %+v", text, token)
			}
			return
		}
		if err := token.check(); err != nil {
			t.Fatalf("%q was read as %+v: %v", text, token, err)
		}
		written, err := json.Marshal(token)
		var again Token
		if err != nil || json.Unmarshal(written, &again) != nil || !reflect.DeepEqual(token, again) {
			t.Fatalf("%+v became %+v (%s, %v)", token, again, written, err)
		}
	})
}

// answering is an http.RoundTripper that always says the same.
type answering struct {
	status int
	header http.Header
	body   string
}

func (a answering) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: a.status, Status: http.StatusText(a.status), Header: a.header, Body: io.NopCloser(strings.NewReader(a.body))}, nil
}

// FuzzSnapshot: whatever answers in the place of a snapshot, it is one with a token that is in order, or an error that says
// whether there is use in trying again.
func FuzzSnapshot(f *testing.F) {
	for _, seed := range []string{`{"state":{"n":1},"cursor":"3-7d0a41c2:1041","pending":[],"epoch":"3-7d0a41c2"}`, `{"state":null,"cursor":"1-0000:0","pending":[1],"epoch":"1-0000"}`,
		`{"cursor":"1-0000:0","pending":[],"epoch":"1-0000"}`, `{"state":7,"cursor":"1-0000:0","pending":[],"epoch":"1-0000"}`, `<html>`, `[]`} {
		f.Add(200, "7", seed)
	}
	f.Add(503, "99999999999999999999", "")
	f.Add(302, "-1", "")
	f.Fuzz(func(t *testing.T, status int, retry, body string) {
		read := SnapshotURL[map[string]any](&http.Client{Transport: answering{status, http.Header{"Retry-After": {retry}}, body}}, "http://snapshot.test")
		held, err := read(context.Background())
		if err == nil {
			if err := held.Token.check(); err != nil || status != 200 {
				t.Fatalf("%d %q was read as %+v: %v", status, body, held, err)
			}
			return
		}
		var said *SnapshotError
		if errors.As(err, &said) && (said.RetryAfter < 0 || said.RetryAfter > hintCap) {
			t.Fatalf("%q: come back in %v", retry, said.RetryAfter)
		}
	})
}

// FuzzMachine: a server that says anything at all, in any order, breaks nothing: offsets go up by one within a history, or a
// snapshot is read.
func FuzzMachine(f *testing.F) {
	frameOf := func(offset int64, epoch string) []byte {
		p, _ := wire.AppendEvent(nil, &wire.Event{Topic: "t", Epoch: epoch, Offset: offset, ID: offset, Type: "x", Data: []byte(`1`)})
		return append(p, '\n')
	}
	calm := append(wire.AppendSubscribed(nil, 1, "t", "1-0000", 0, 2), '\n')
	f.Add(slices.Concat(calm, frameOf(1, "1-0000"), frameOf(2, "1-0000")))
	f.Add(slices.Concat(calm, frameOf(2, "1-0000"), frameOf(1, "2-0000")))
	f.Add(slices.Concat(wire.AppendReset(nil, "t", "1-0000", 9, "ahead", 5), []byte("\n"), wire.AppendHeartbeat(nil, "2-0000", []wire.Head{{Topic: "t", Offset: 4}})))
	f.Add(slices.Concat(calm, wire.AppendError(nil, 1, &wire.Error{Code: "unavailable"})))
	f.Add(slices.Concat(calm, wire.AppendConflated(nil, bytes.TrimSpace(frameOf(3, "1-0000")), 2, true), []byte("\n"), wire.AppendConflated(nil, bytes.TrimSpace(frameOf(5, "1-0000")), 1, false)))
	f.Fuzz(func(t *testing.T, server []byte) {
		ids := int64(0)
		request := func() int64 { ids++; return ids }
		var m machine[int]
		before := wire.Cursor{}
		m.ports = ports[int]{
			subscribe: func(wire.Cursor) int64 { return request() }, unsubscribe: request, wait: func(int64, int) {},
			apply: func(n int, e *event) (int, error) { return n + 1, nil },
			changed: func(e *event, applied bool) {
				if e == nil {
					before = m.held.Token.Cursor
					return
				}
				if e.Offset-1-e.conflated != before.Offset || foreign(e.Epoch, before.Epoch) {
					t.Fatalf("%v became %d", before, e.Offset)
				}
				if before = (wire.Cursor{Epoch: e.Epoch, Offset: e.Offset}); e.more == (before == m.held.Token.Cursor) {
					t.Fatalf("%v is told of at %v", before, m.held.Token.Cursor)
				}
			},
		}
		m.start(nil)
		m.snapshot(&Held[int]{Token: Token{Cursor: wire.Cursor{Epoch: "1-0000"}, Pending: []int64{2}, Epoch: "1-0000"}})
		m.up()
		for line := range wire.Lines(server) {
			frame, err := wire.ParseMessage(line)
			if err != nil {
				continue
			}
			switch frame.Op {
			case "event":
				m.event(&event{Event: wire.Event{Topic: frame.Topic, Epoch: frame.Epoch, Offset: frame.Offset, ID: frame.ID, Type: frame.Type, Data: frame.Data}, skip: frame.Skip, conflated: frame.Conflated, more: frame.More})
			case "subscribed":
				m.subscribed(frame.ID, frame.Epoch, frame.Head)
			case "unsubscribed":
				m.unsubscribed(frame.ID)
			case "reset":
				m.reset(frame.InMS)
			case "heartbeat":
				head, ok := frame.Heads["t"]
				if !ok {
					head = -1
				}
				m.heartbeat(frame.EpochOf("t"), head)
			case "error":
				m.refused(frame.ID, frame.Code)
			}
			if m.phase == phaseWaiting {
				m.due()
			}
			if m.phase == phaseReading {
				m.snapshot(&Held[int]{Token: Token{Cursor: wire.Cursor{Epoch: "1-0000", Offset: 5}, Epoch: "1-0000"}})
			}
		}
	})
}
