package journal

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/commitcast/commitcast/wire"
)

func int8Value(n int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }

func values() [][]byte {
	return [][]byte{
		[]byte("market:42"), int8Value(7), []byte("1-0badc0de"), int8Value(99), int8Value(1234), []byte("trade"), []byte("k"),
		[]byte("{\n \"a\": 1e400}"), nil, int8Value(1_000_000), int8Value(2_000_000),
	}
}

func TestScanAndFrame(t *testing.T) {
	var s Scanner
	var row Row
	if err := s.Scan(&row, values()); err != nil {
		t.Fatal(err)
	}
	if row.Seq != 99 || row.SequencedAt != 2_000_000 {
		t.Errorf("seq %d, sequenced_at %d", row.Seq, row.SequencedAt)
	}
	got, skipped := AppendFrame([]byte("x"), &row.Event)
	want := `x{"op":"event","topic":"market:42","epoch":"1-0badc0de","offset":7,"id":1234,"type":"trade","key":"k",` +
		`"at":"2000-01-01T00:00:01.000000Z","data":{"a":1e400}}`
	if string(got) != want || skipped {
		t.Errorf("frame\n%s\nwant\n%s", got, want)
	}
}

// An event that no text frame can hold must still fill its offset: a hole would stop its topic for good.
func TestUnencodableBecomesSkip(t *testing.T) {
	var s Scanner
	var row Row
	v := values()
	v[7] = []byte("\"\xff\"")
	if err := s.Scan(&row, v); err != nil {
		t.Fatal(err)
	}
	got, skipped := AppendFrame(nil, &row.Event)
	m, err := wire.ParseMessage(got)
	if err != nil || !skipped || !m.Skip || m.Offset != 7 || m.ID != 1234 || m.Topic != "market:42" {
		t.Errorf("frame %s, %v, skipped %v", got, err, skipped)
	}
}

// A change of access becomes a frame for broadcasters alone; what another version may know fills its offset.
func TestOwnTypes(t *testing.T) {
	e := wire.Event{Topic: "market:42", Epoch: "1-0badc0de", Offset: 7, ID: 1234, Type: wire.TypeRevoke, Data: []byte(`{"subject": "a\u00e9\"\n"}`)}
	frame, skipped := AppendFrame(nil, &e)
	f, err := wire.ParseFence(frame)
	if want := (wire.Fence{Topic: e.Topic, Epoch: e.Epoch, Offset: 7, ID: 1234, Subject: "aé\"\n", Revoked: true}); err != nil || f != want || skipped || !wire.IsFence(frame) {
		t.Errorf("%s: %+v %v", frame, f, err)
	}
	m, err := wire.ParseMessage(f.AppendSkip(nil))
	if err != nil || m.Op != "event" || !m.Skip || m.Offset != 7 || m.ID != 1234 || strings.Contains(string(f.AppendSkip(nil)), "subject") {
		t.Errorf("shown as %+v %v", m, err)
	}
	e.Type = wire.TypeRestore
	if f, err := wire.ParseFence(Encode(&e)); err != nil || f.Revoked {
		t.Errorf("%+v %v", f, err)
	}
	for _, e := range []wire.Event{{Type: "commitcast.later", Data: []byte(`1`)}, {Type: wire.TypeRevoke, Data: []byte(`{}`)}} {
		e.Topic, e.Epoch, e.Offset, e.ID = "t", "1-0badc0de", 7, 1234
		frame, skipped := AppendFrame(nil, &e)
		if m, err := wire.ParseMessage(frame); err != nil || !m.Skip || !skipped || wire.IsFence(frame) {
			t.Errorf("%s %v", frame, err)
		}
	}
}

func TestScanRefusesOtherShapes(t *testing.T) {
	var s Scanner
	var row Row
	if err := s.Scan(&row, values()[:5]); err == nil {
		t.Error("5 columns were taken")
	}
	v := values()
	v[1] = []byte("7") // the text format
	if err := s.Scan(&row, v); err == nil || !strings.Contains(err.Error(), "column 2") {
		t.Errorf("text format: %v", err)
	}
}

func TestInternTableIsBounded(t *testing.T) {
	var s Scanner
	for i := range int64(3 * maxInterned) {
		s.intern(int8Value(i))
	}
	if len(s.strings) > maxInterned {
		t.Errorf("%d strings", len(s.strings))
	}
}
