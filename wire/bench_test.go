package wire_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/commitcast/commitcast/wire"
)

var benchEvent = wire.Event{Topic: "market:42", Epoch: "4-9f3c01b7", Offset: 1042, ID: 981, Type: "trade", Key: "42",
	At: time.Unix(1_700_000_000, 0), Data: json.RawMessage(`{"price":"0.53","amount":120,"side":"yes","account":"a-1234567"}`)}

// BenchmarkAppendEvent is what a worker does once for each event.
func BenchmarkAppendEvent(b *testing.B) {
	p := make([]byte, 0, 1<<10)
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if p, err = wire.AppendEvent(p[:0], &benchEvent); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(int64(len(p)))
}

// BenchmarkParseRequest is what a broadcaster does for each request of a client.
func BenchmarkParseRequest(b *testing.B) {
	line := []byte(`{"op":"subscribe","id":1,"topic":"market:42","after":"4-9f3c01b7:1041"}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := wire.ParseRequest(line); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkParseMessage is what a client does for each event.
func BenchmarkParseMessage(b *testing.B) {
	line, err := wire.AppendEvent(nil, &benchEvent)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := wire.ParseMessage(line); err != nil {
			b.Fatal(err)
		}
	}
}
