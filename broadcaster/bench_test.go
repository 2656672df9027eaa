package broadcaster

import (
	"math"
	"testing"

	"github.com/commitcast/commitcast/stream"
)

// What one event costs the hot path: into the log once, out of it once for each subscriber.

func benchRun(first int64) stream.Run {
	return stream.Run{Channel: stream.Channel{Epoch: "1-aaaa", Topic: "t"}, First: first, Frames: [][]byte{make([]byte, 200)}}
}

func BenchmarkLogAppend(b *testing.B) {
	l := &sharedLog{maxEvents: 1024, maxBytes: 1 << 20}
	l.start("1-aaaa", 1)
	r := benchRun(1)
	b.ReportAllocs()
	for b.Loop() {
		l.append(r)
		r.First++
	}
}

func BenchmarkLogRead(b *testing.B) {
	l := &sharedLog{maxEvents: 1024, maxBytes: 1 << 20}
	l.start("1-aaaa", 1)
	l.append(benchRun(1))
	p := make([]byte, headerRoom, 4<<10)
	b.ReportAllocs()
	for b.Loop() {
		p, _, _, _ = l.read(p[:headerRoom], "1-aaaa", 0, math.MaxInt64, maxMessage)
	}
}

func BenchmarkCollect(b *testing.B) {
	cfg, _ := Config{}.withDefaults()
	s := &session{b: &Broadcaster{cfg: cfg, metrics: newMetrics(nil)}}
	t := &topic{name: "t"}
	t.log.maxEvents, t.log.maxBytes = 1024, 1<<20
	t.log.start("1-aaaa", 1)
	t.log.append(benchRun(1))
	sub := &subscription{s: s, t: t}
	sub.state, sub.epoch = subLive, "1-aaaa"
	p := make([]byte, headerRoom, 4<<10)
	b.ReportAllocs()
	for b.Loop() {
		sub.cursor = 0
		p, _ = sub.collect(p[:headerRoom], maxMessage)
	}
}
