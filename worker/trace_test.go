package worker

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

const (
	tracedSQL   = `SELECT commitcast.append($1, 'e', '1', headers => json_build_object('traceparent', '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-' || $2))`
	sampledID   = "4bf92f3577b34da6a3ce929d0e0e4736"
	sampledFlag = "01"
)

// tracing keeps spans and what is logged.
type tracing struct {
	mu    sync.Mutex
	spans []wire.Span
	log   bytes.Buffer
}

func (r *tracing) take(s wire.Span) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.spans = append(r.spans, s)
}

func (r *tracing) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(p)
}

func (r *tracing) all() []wire.Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]wire.Span(nil), r.spans...)
}

// logged is the line with a message; "" if there is none.
func (r *tracing) logged(message string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for line := range strings.Lines(r.log.String()) {
		if strings.Contains(line, message) {
			return line
		}
	}
	return ""
}

func (r *tracing) config() Config {
	return Config{Trace: r.take, Logger: slog.New(slog.NewTextHandler(r, &slog.HandlerOptions{Level: slog.LevelDebug}))}
}

// hops checks that a sampled event has been sequenced and published, each once, in this order and at sane times.
func hops(t *testing.T, spans []wire.Span, topic string, offset int64) (publish wire.Span) {
	t.Helper()
	var of []wire.Span
	for _, s := range spans {
		if s.Topic == topic && s.Offset == offset {
			of = append(of, s)
		}
	}
	if len(of) != 2 || of[0].Hop != wire.HopSequence || of[1].Hop != wire.HopPublish {
		t.Fatalf("%s %d: %+v", topic, offset, of)
	}
	for _, s := range of {
		if s.Trace.String() != sampledID || s.Event == 0 || s.End.Before(s.Start) || time.Since(s.Start) > time.Minute || s.End.After(time.Now().Add(time.Second)) {
			t.Errorf("%+v", s)
		}
	}
	if !of[0].End.Equal(of[1].Start) {
		t.Errorf("sequenced until %v, published from %v", of[0].End, of[1].Start)
	}
	return of[1]
}

// Sampled events, and only they, have spans of being sequenced and published; also those that the stream had lost what is before,
// and those that it takes late.
func TestSpansOfSampledEvents(t *testing.T) {
	b := benchOn(t, testkit.Database(t), testkit.Redis(t).URL())
	var r tracing
	b.run(r.config())
	topic := topicIn(3, 0)
	b.exec(tracedSQL, topic, sampledFlag)
	b.exec(tracedSQL, topic, "00")
	b.append(topic, `{"headers":{"traceparent":"00-`+sampledID+`-00f067aa0ba902b7-01"}}`)
	b.exec(tracedSQL, topic, sampledFlag)
	b.published(10 * time.Second)
	hops(t, r.all(), topic, 1)
	if p := hops(t, r.all(), topic, 4); p.Error != "" {
		t.Errorf("%+v", p)
	}
	if n := len(r.all()); n != 4 {
		t.Errorf("%d spans: %+v", n, r.all())
	}
	if line := r.logged("an event was published"); !strings.Contains(line, "trace_id="+sampledID) || !strings.Contains(line, "event_id=") {
		t.Errorf("logged %q", line)
	}

	// The stream forgets: what is not confirmed yet waits for what is before it.
	if err := b.redisClient().FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	ch := stream.Channel{Epoch: b.epoch(), Partition: wire.Partition(topic), Topic: topic}
	first := stream.Offer{Run: stream.Run{Channel: ch, First: 1, Frames: [][]byte{b.journal()[topic][0].frame}}}
	if _, err := b.stream.Publish(t.Context(), []stream.Offer{first}); err != nil {
		t.Fatal(err)
	}
	b.exec(tracedSQL, topic, sampledFlag)
	b.published(10 * time.Second)
	hops(t, r.all(), topic, 5)
	if n := len(r.all()); n != 6 { // what is refilled was published before
		t.Errorf("%d spans: %+v", n, r.all())
	}
	if line := r.logged("refilled from the journal"); !strings.Contains(line, "trace_id="+sampledID) {
		t.Errorf("logged %q", line)
	}
}

// A refusal is an error of the span, and its log line names the trace.
func TestSpansOfRefusedEvents(t *testing.T) {
	b := newBench(t)
	bad, good := topicIn(9, 0), topicIn(9, 1)
	s := poison(b.stream, bad, 1)
	var r tracing
	cfg := r.config()
	cfg.RepublishAttempts = 1
	b.runOn(s, cfg)
	b.append(good, `1`)
	b.exec(tracedSQL, bad, sampledFlag)
	testkit.Eventually(t, 10*time.Second, func() bool { return r.logged("a topic is given up") != "" }, "given up")
	if p := hops(t, r.all(), bad, 1); !strings.Contains(p.Error, errPoison.Error()) {
		t.Errorf("%+v", p)
	}
	for _, message := range []string{"the stream refuses a topic", "a topic is given up"} {
		if line := r.logged(message); !strings.Contains(line, "trace_id="+sampledID) || !strings.Contains(line, "event_id=") {
			t.Errorf("logged %q", line)
		}
	}
}
