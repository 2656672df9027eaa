package broadcaster

import (
	"fmt"
	"math"
	"net/netip"
	"testing"
	"time"

	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
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
	s := newSession(&Broadcaster{cfg: cfg, metrics: newMetrics(nil)}, nil, netip.Prefix{})
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

// nowhere takes messages and writes them to nobody.
type nowhere struct{ sink }

func (nowhere) writeText([]byte, time.Duration) error { return nil }

// BenchmarkFlush is one event to one subscriber, from its waking to the socket, without the socket.
func BenchmarkFlush(b *testing.B) {
	cfg, _ := Config{}.withDefaults()
	s := newSession(&Broadcaster{cfg: cfg, metrics: newMetrics(nil)}, nowhere{}, netip.Prefix{})
	t := &topic{name: "t"}
	t.log.maxEvents, t.log.maxBytes = 1024, 1<<20
	t.log.start("1-aaaa", 1)
	t.log.append(benchRun(1))
	sub := &subscription{s: s, t: t}
	sub.state, sub.epoch = subLive, "1-aaaa"
	s.flushing = true // by the benchmark
	b.ReportAllocs()
	for b.Loop() {
		sub.cursor = 0
		s.wake(sub)
		s.flush()
		s.flushing = true
	}
}

// BenchmarkKept is one replay that takes what another one has read, among 1,000 that are kept.
func BenchmarkKept(b *testing.B) {
	k := newKept(keepBytes, replayEvents)
	at := place{new(feed), 1}
	now := time.Unix(0, 0)
	for i := range int64(1000) {
		h := hole{at, stream.Channel{Epoch: "1-aaaa", Topic: "t"}, i * replayEvents}
		r, _ := k.ask(h, now)
		run := stream.Run{Channel: h.channel, First: h.after + 1, Frames: make([][]byte, replayEvents)}
		k.end(r, run, nil, now)
	}
	if len(k.runs[at]) != 1000 {
		b.Fatal(fmt.Sprint(len(k.runs[at]), " kept"))
	}
	var after int64
	b.ReportAllocs()
	for b.Loop() {
		r, mine := k.ask(hole{at, stream.Channel{}, after}, now)
		if run, ok := r.from(after); mine || !ok || run.First != after+1 {
			b.Fatal("not kept")
		}
		after = (after + 7919) % (1000 * replayEvents)
	}
}

// BenchmarkWindow is what one event costs a conflating subscriber that is behind, with 1,000 keys.
func BenchmarkWindow(b *testing.B) {
	frames := make([][]byte, 1000)
	for i := range frames {
		frames[i], _ = wire.AppendEvent(nil, &wire.Event{Topic: "market:42", Epoch: "1-aaaa", Offset: int64(i + 1), ID: int64(i), Type: "price",
			Key: fmt.Sprintf("item-%d", i), At: time.Unix(0, 0), Data: []byte(`{"price":"0.53","amount":120,"side":"yes","account":"a-1234567"}`)})
	}
	w := newWindow(0, 1<<20, &room{most: windowsBytes})
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		w.add(frames[i%len(frames)])
	}
}
