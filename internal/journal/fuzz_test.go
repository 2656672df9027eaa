package journal

import (
	"bytes"
	"testing"
	"unicode/utf8"

	"github.com/commitcast/commitcast/wire"
)

// FuzzScan: whatever the server sends as a row is refused, or becomes a frame of one line that fills its offset.
func FuzzScan(f *testing.F) {
	f.Add(11, []byte("market:42"), int8Value(7), []byte("1-0badc0de"), []byte("trade"), []byte("k"), []byte("{\n \"a\": 1e400}"), []byte(nil), int8Value(1_000_000))
	f.Add(11, []byte("t"), []byte("7"), []byte(""), []byte("\xff"), []byte("\n"), []byte("\"\\ud800\""), []byte("{}"), int8Value(-1<<63))
	f.Add(11, []byte("t"), int8Value(1<<62), []byte("1-0000"), []byte("x"), []byte(""), []byte("\xff"), []byte("x"), int8Value(1<<63-1))
	f.Add(10, []byte{}, []byte{}, []byte{}, []byte{}, []byte{}, []byte{}, []byte{}, []byte{})
	f.Fuzz(func(t *testing.T, columns int, topic, offset, epoch, typ, key, data, headers, at []byte) {
		values := [][]byte{topic, offset, epoch, int8Value(99), int8Value(1234), typ, key, data, headers, at, at}
		if columns < 0 || columns > len(values) {
			return
		}
		var s Scanner
		var row Row
		err := s.Scan(&row, values[:columns])
		if whole := columns == len(values) && len(offset) == 8 && len(at) == 8; (err == nil) != whole {
			t.Fatalf("%q: %v", values[:columns], err)
		}
		if err != nil {
			return
		}
		frame, skipped := AppendFrame(nil, &row.Event)
		m, err := wire.ParseMessage(frame)
		if e := row.Event; !wire.ValidTopic(e.Topic) || !wire.ValidEpoch(e.Epoch) || e.Offset < 1 || e.Offset > wire.MaxInteger || e.Type == "" {
			m, err = wire.Message{Offset: e.Offset, ID: e.ID, Skip: skipped}, nil // which no database holds, and no reader lets in
		}
		if err != nil || bytes.IndexByte(frame, '\n') >= 0 || !utf8.Valid(frame) {
			t.Fatalf("frame %q: %v", frame, err)
		}
		if m.Offset != row.Offset || m.ID != 1234 || m.Skip != skipped {
			t.Fatalf("frame %q of %+v", frame, row)
		}
	})
}
