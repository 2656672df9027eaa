package stream

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/commitcast/commitcast/internal/testkit"
)

// benchFrame is about as long as the frame of a small event.
func benchFrame(size int) []byte {
	return append(append([]byte(`{"op":"event","data":"`), bytes.Repeat([]byte("x"), size-24)...), '"', '}')
}

func benchRun(ch Channel, first int64, n, size int) Run {
	r := Run{Channel: ch, First: first}
	for range n {
		r.Frames = append(r.Frames, benchFrame(size))
	}
	return r
}

// BenchmarkPublishBatch is a drain job under load: 500 events over 50 topics in one round trip.
func BenchmarkPublishBatch(b *testing.B) {
	for name, s := range map[string]Stream{
		"redis":  newRedisStream(b, testkit.Redis(b).URL(), RedisConfig{}),
		"memory": NewMemory(MemoryConfig{Logger: quiet}),
	} {
		b.Run(name, func(b *testing.B) {
			const topics, each = 50, 10
			epoch := newEpoch()
			offers := make([]Offer, topics)
			for i := range offers {
				offers[i].Run = benchRun(channel(epoch, fmt.Sprintf("t%d", i)), 1, each, 300)
			}
			for b.Loop() {
				publish(b, s, offers...)
				for i := range offers {
					offers[i].First += each
				}
			}
			b.ReportMetric(float64(topics*each*b.N)/b.Elapsed().Seconds(), "events/s")
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/batch")
		})
	}
}

// BenchmarkPublishOne is one event of a quiet topic, next to a bare SPUBLISH of the same bytes and to the largest event.
func BenchmarkPublishOne(b *testing.B) {
	s := newRedisStream(b, testkit.Redis(b).URL(), RedisConfig{})
	ch := channel(newEpoch(), "t")
	bare := benchFrame(300)
	b.Run("spublish", func(b *testing.B) {
		for b.Loop() {
			if err := s.client.SPublish(b.Context(), ch.key(), bare).Err(); err != nil {
				b.Fatal(err)
			}
		}
	})
	for _, size := range []int{300, 256 << 10} {
		b.Run(fmt.Sprintf("publish/%dB", size), func(b *testing.B) {
			o := Offer{Run: benchRun(channel(newEpoch(), "t"), 1, 1, size)}
			for b.Loop() {
				publish(b, s, o)
				o.First++
				if size > 1000 && o.First%200 == 0 { // not to fill the memory
					o.Restart = true
				} else {
					o.Restart = false
				}
			}
		})
	}
}

// BenchmarkDelivery is the way from Publish to Deliver and back to the publisher.
func BenchmarkDelivery(b *testing.B) {
	for name, s := range map[string]Stream{
		"redis":  newRedisStream(b, testkit.Redis(b).URL(), RedisConfig{ProbeTimeout: time.Hour}),
		"memory": NewMemory(MemoryConfig{Logger: quiet}),
	} {
		b.Run(name, func(b *testing.B) {
			ch := channel(newEpoch(), "t")
			h := &waiter{confirmed: make(chan Channel, 1), delivered: make(chan Run, 1)}
			sub, stop := subscribe(b, s, h)
			sub.Add(ch)
			<-h.confirmed
			o := Offer{Run: benchRun(ch, 1, 1, 300)}
			for b.Loop() {
				publish(b, s, o)
				<-h.delivered
				o.First++
			}
			stop()
		})
	}
}

// waiter is a Handler that hands over one thing at a time.
type waiter struct {
	confirmed chan Channel
	delivered chan Run
}

func (w *waiter) Confirmed(ch Channel)   { w.confirmed <- ch }
func (w *waiter) Deliver(r Run)          { w.delivered <- r }
func (w *waiter) Down(Partitions, error) {}

// BenchmarkRange reads 1,000 events of 300 bytes.
func BenchmarkRange(b *testing.B) {
	s := newRedisStream(b, testkit.Redis(b).URL(), RedisConfig{})
	ch := channel(newEpoch(), "t")
	publish(b, s, Offer{Run: benchRun(ch, 1, MaxRangeFrames, 300)})
	for b.Loop() {
		if r, err := s.Range(b.Context(), ch, 0, MaxRangeFrames); err != nil || len(r.Frames) != MaxRangeFrames {
			b.Fatalf("%d frames, %v", len(r.Frames), err)
		}
	}
}

func BenchmarkDecodeMessage(b *testing.B) {
	payload := message(benchRun(channel(newEpoch(), "t"), 1, 10, 300))
	b.SetBytes(int64(len(payload)))
	for b.Loop() {
		if _, err := decodeMessage(payload); err != nil {
			b.Fatal(err)
		}
	}
}
