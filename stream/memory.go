package stream

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Defaults of MemoryConfig.
const (
	// DefaultMaxTopicBytes holds 10,000 events of 800 bytes.
	DefaultMaxTopicBytes = 8 << 20
	// DefaultMaxTotalBytes is a share of memory that a process of this kind can spare.
	DefaultMaxTotalBytes = 256 << 20
	// DefaultMaxQueueRuns and DefaultMaxQueueBytes are some tenths of a second of a busy system.
	DefaultMaxQueueRuns  = 4_096
	DefaultMaxQueueBytes = 32 << 20
)

// What the bounds count beside the bytes of frames: slice headers, map and list entries.
const (
	frameOverhead = 24
	topicOverhead = 512
)

// errSlow is why a subscription of a Memory goes down.
var errSlow = errors.New("the handler fell behind the publishers")

// errClosed is what a closed Memory answers.
var errClosed = errors.New("the in-process stream is closed")

// MemoryConfig tunes a [Memory]. The zero value works.
type MemoryConfig struct {
	// MaxLen is how many events of a topic are kept. Default DefaultMaxLen. Too small: slow subscribers are served
	// from the journal. Too big: nothing, within the byte limits.
	MaxLen int
	// MaxTopicBytes bounds the events kept of one topic. Default DefaultMaxTopicBytes. The newest event is always kept.
	MaxTopicBytes int
	// MaxTotalBytes bounds all events kept; the topics that were quiet the longest go first. Default
	// DefaultMaxTotalBytes. Too small: replays come from the journal. Too big: memory of the process.
	MaxTotalBytes int
	// MaxAge is how long after its last event a topic is dropped. Default DefaultMaxAge.
	MaxAge time.Duration
	// MaxQueueRuns and MaxQueueBytes bound what waits for one subscription's handler. When there is more, the
	// subscription goes down and is confirmed again, as if a connection had been lost. Defaults
	// DefaultMaxQueueRuns and DefaultMaxQueueBytes.
	MaxQueueRuns  int
	MaxQueueBytes int
	// Logger gets what operators should know. Default slog.Default().
	Logger *slog.Logger
	// Registerer gets the metrics. Default none.
	Registerer prometheus.Registerer
}

// Memory is the stream for a worker and a broadcaster in one process: what they hold ends with it. Publishers never
// wait for subscribers.
type Memory struct {
	cfg     MemoryConfig
	metrics *metrics
	log     *slog.Logger

	mu        sync.Mutex // of all below, and of every memorySubscription; nothing slow happens under it
	closed    bool
	topics    map[Channel]*memoryTopic
	recent    list.List // of *memoryTopic, the quietest in front
	bytes     int
	listeners map[Channel]map[*memorySubscription]struct{}
}

var _ Stream = (*Memory)(nil)

// memoryTopic is what is kept of one channel.
type memoryTopic struct {
	ch       Channel
	first    int64    // the offset of frames[0]
	frames   [][]byte // never empty while the topic is in the map
	bytes    int      // with overheads
	appended time.Time
	place    *list.Element
}

// next is the offset the topic takes next.
func (t *memoryTopic) next() int64 { return t.first + int64(len(t.frames)) }

// NewMemory makes an empty stream.
func NewMemory(cfg MemoryConfig) *Memory {
	if cfg.MaxLen <= 0 {
		cfg.MaxLen = DefaultMaxLen
	}
	if cfg.MaxTopicBytes <= 0 {
		cfg.MaxTopicBytes = DefaultMaxTopicBytes
	}
	if cfg.MaxTotalBytes <= 0 {
		cfg.MaxTotalBytes = DefaultMaxTotalBytes
	}
	if cfg.MaxAge <= 0 {
		cfg.MaxAge = DefaultMaxAge
	}
	if cfg.MaxQueueRuns <= 0 {
		cfg.MaxQueueRuns = DefaultMaxQueueRuns
	}
	if cfg.MaxQueueBytes <= 0 {
		cfg.MaxQueueBytes = DefaultMaxQueueBytes
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Memory{
		cfg:       cfg,
		metrics:   newMetrics(cfg.Registerer),
		log:       cfg.Logger,
		topics:    make(map[Channel]*memoryTopic),
		listeners: make(map[Channel]map[*memorySubscription]struct{}),
	}
}

// Publish implements [Stream].
func (m *Memory) Publish(ctx context.Context, offers []Offer) (answers []Answer, err error) {
	if len(offers) == 0 {
		return nil, nil
	}
	start := time.Now()
	defer func() { m.metrics.published(start, len(offers), answers, err) }()
	if err := ctx.Err(); err != nil {
		return nil, unavailable("publish", err)
	}
	answers = make([]Answer, len(offers))
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, unavailable("publish", errClosed)
	}
	m.expire(start)
	for i, o := range offers {
		if err := o.check(); err != nil {
			answers[i].Err = err
			continue
		}
		for j, part := range o.parts() {
			a := m.take(part, start)
			if j > 0 {
				a = answers[i].merge(a)
			}
			answers[i] = a
		}
	}
	return answers, nil
}

// take stores and announces one part of an offer.
func (m *Memory) take(o Offer, now time.Time) Answer {
	t := m.topics[o.Channel]
	if t != nil && o.Restart {
		m.forget(t)
		t = nil
	}
	if t != nil && o.First > t.next() {
		return Answer{Outcome: Gap, Next: t.next()}
	}
	if t != nil && o.Last() < t.next() {
		if o.Announce {
			m.announce(o.Run)
		}
		return Answer{Outcome: Duplicate, Next: t.next()}
	}
	if t == nil {
		t = &memoryTopic{ch: o.Channel, first: o.First, bytes: topicOverhead}
		t.place = m.recent.PushBack(t)
		m.topics[o.Channel] = t
		m.bytes += topicOverhead
	}
	fresh := o.Run.from(t.next())
	size := fresh.size() + frameOverhead*len(fresh.Frames)
	t.frames = append(t.frames, fresh.Frames...)
	t.bytes += size
	m.bytes += size
	t.appended = now
	m.recent.MoveToBack(t.place)
	m.trim(t)
	if o.Announce {
		m.announce(o.Run)
	} else {
		m.announce(fresh)
	}
	return Answer{Outcome: Appended, Next: t.next()}
}

// trim keeps t and all topics together within their bounds.
func (m *Memory) trim(t *memoryTopic) {
	n := 0
	for n < len(t.frames)-1 && (len(t.frames)-n > m.cfg.MaxLen || t.bytes > m.cfg.MaxTopicBytes) {
		size := len(t.frames[n]) + frameOverhead
		t.frames[n] = nil // the array behind the slice lives on until it is full
		t.bytes -= size
		m.bytes -= size
		n++
	}
	t.frames = t.frames[n:]
	t.first += int64(n)
	for m.bytes > m.cfg.MaxTotalBytes {
		oldest := m.recent.Front().Value.(*memoryTopic)
		if oldest == t {
			break // it is within its own bound
		}
		m.forget(oldest)
	}
}

// expire drops the topics that had no event for longer than MaxAge.
func (m *Memory) expire(now time.Time) {
	for e := m.recent.Front(); e != nil; e = m.recent.Front() {
		t := e.Value.(*memoryTopic)
		if now.Sub(t.appended) <= m.cfg.MaxAge {
			return
		}
		m.forget(t)
	}
}

// forget drops a topic. An empty stream takes any offset next.
func (m *Memory) forget(t *memoryTopic) {
	m.bytes -= t.bytes
	m.recent.Remove(t.place)
	delete(m.topics, t.ch)
}

// announce puts a run into the queues of those who listen.
func (m *Memory) announce(r Run) {
	for s := range m.listeners[r.Channel] {
		s.push(r)
	}
}

// Range implements [Stream].
func (m *Memory) Range(ctx context.Context, ch Channel, after int64, limit int) (Run, error) {
	run := Run{Channel: ch, First: after + 1}
	if err := ctx.Err(); err != nil {
		return run, unavailable("read a range", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return run, unavailable("read a range", errClosed)
	}
	m.expire(time.Now())
	t := m.topics[ch]
	if t == nil || run.First < t.first || run.First >= t.next() {
		return run, nil
	}
	rest := t.frames[run.First-t.first:]
	n, size := 0, 0
	limit = max(1, min(limit, MaxRangeFrames))
	for n < len(rest) && n < limit && (n == 0 || size+len(rest[n]) <= MaxRangeBytes) {
		size += len(rest[n])
		n++
	}
	run.Frames = append(make([][]byte, 0, n), rest[:n]...) // trimming writes to the array behind rest
	return run, nil
}

// Tick implements [Stream]. There is no connection that could be dead.
func (m *Memory) Tick(ctx context.Context) error { return m.Ping(ctx) }

// Ping implements [Stream].
func (m *Memory) Ping(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return unavailable("ping", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return unavailable("ping", errClosed)
	}
	return nil
}

// Close implements [Stream]. It drops everything; what is called afterwards answers ErrUnavailable.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	m.topics, m.bytes = nil, 0
	m.recent.Init()
	if n := len(m.listeners); n > 0 {
		return fmt.Errorf("close the in-process stream: %d channels are still listened to", n)
	}
	return nil
}
