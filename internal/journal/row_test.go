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
