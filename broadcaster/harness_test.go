package broadcaster_test

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/internal/journal"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// rig is a broadcaster on a real database. There is no worker: the test itself appends, sequences and publishes, each
// step when it wants to.
type rig struct {
	t       *testing.T
	pool    *pgxpool.Pool
	journal *hookJournal
	stream  *hookStream
	b       *broadcaster.Broadcaster
	URL     string
	stop    context.CancelFunc // ends the broadcaster, before cleanup does
	done    chan struct{}      // it has ended

	mu   sync.Mutex // of append, sequence, publish
	sent map[string]int64
}

// newRig starts a broadcaster on a stream; nil means the one in memory.
func newRig(t *testing.T, s stream.Stream, config broadcaster.Config) *rig {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), testkit.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if s == nil {
		s = stream.NewMemory(stream.MemoryConfig{})
	}
	r := &rig{t: t, pool: pool, sent: make(map[string]int64)}
	r.journal = &hookJournal{Journal: journal.New(pool)}
	r.stream = &hookStream{Stream: s}
	if config.Drain == 0 {
		config.Drain = time.Millisecond
	}
	if config.HeadPoll == 0 {
		config.HeadPoll = 100 * time.Millisecond
	}
	config.ResetSpread = time.Millisecond
	t.Cleanup(func() { s.Close() })
	r.b, r.URL, r.stop, r.done = start(t, r.journal, r.stream, config)
	t.Cleanup(func() {
		r.journal.clear()
		r.stream.clear()
	})
	testkit.Eventually(t, 10*time.Second, r.b.Ready, "the broadcaster is ready")
	return r
}

// start runs a broadcaster until the test ends.
func start(t *testing.T, j broadcaster.Journal, s stream.Stream, config broadcaster.Config) (b *broadcaster.Broadcaster, url string, stop context.CancelFunc, done chan struct{}) {
	t.Helper()
	b, err := broadcaster.New(j, s, config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done = make(chan struct{})
	go func() { // ends at cleanup
		defer close(done)
		b.Run(ctx)
	}()
	server := httptest.NewServer(b.Handler())
	t.Cleanup(func() {
		stop()
		<-done
		server.Close()
	})
	return b, server.URL, stop, done
}

// epoch is the database's.
func (r *rig) epoch() string {
	r.t.Helper()
	var epoch string
	r.query(&epoch, "SELECT name FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1")
	return epoch
}

func (r *rig) query(to any, sql string, args ...any) {
	r.t.Helper()
	if err := r.pool.QueryRow(context.Background(), sql, args...).Scan(to); err != nil {
		r.t.Fatalf("%s: %v", sql, err)
	}
}

func (r *rig) exec(sql string, args ...any) {
	r.t.Helper()
	if _, err := r.pool.Exec(context.Background(), sql, args...); err != nil {
		r.t.Fatalf("%s: %v", sql, err)
	}
}

// sequence appends n events to a topic and gives them offsets, without publishing them.
func (r *rig) sequence(topic string, n int) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.exec(`SELECT commitcast.append($1, 'test', json_build_object('n', i)) FROM generate_series(1, $2) i`, topic, n)
	r.exec(`SELECT commitcast.sequence($1::smallint, 0, 100000, NULL, NULL)`, wire.Partition(topic))
}

// publish offers to the stream what it does not have of a topic yet, as a worker does.
func (r *rig) publish(topic string) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		epoch, frames, err := journal.New(r.pool).Range(context.Background(), topic, r.sent[topic], 1000)
		if err != nil {
			r.t.Fatal(err)
		}
		if len(frames) == 0 {
			return
		}
		offer := stream.Offer{Run: stream.Run{
			Channel: stream.Channel{Epoch: epoch, Partition: wire.Partition(topic), Topic: topic},
			First:   r.sent[topic] + 1, Frames: frames}}
		answers, err := r.stream.Publish(context.Background(), []stream.Offer{offer})
		if err != nil || answers[0].Err != nil || answers[0].Outcome == stream.Gap {
			r.t.Fatalf("publish %s from %d: %+v %v", topic, offer.First, answers, err)
		}
		r.sent[topic] += int64(len(frames))
	}
}

// commit appends, sequences and publishes n events.
func (r *rig) commit(topic string, n int) {
	r.t.Helper()
	r.sequence(topic, n)
	r.publish(topic)
}

// lose commits n events whose message reaches nobody, though the stream holds them.
func (r *rig) lose(topic string, n int) {
	r.t.Helper()
	r.stream.deaf.Store(&topic)
	r.commit(topic, n)
	testkit.Eventually(r.t, 10*time.Second, func() error {
		if r.stream.deaf.Load() != nil && r.stream.listening(topic) {
			return errors.New("the message has not come yet")
		}
		return nil
	}, "a message of %s is lost", topic)
	r.stream.deaf.Store(nil)
}

func (r *rig) cursor(offset int64) string { return fmt.Sprintf("%s:%d", r.epoch(), offset) }

// hooks run a function once, before or after a named step.
type hooks struct {
	mu sync.Mutex
	on map[string]func()
}

func (h *hooks) set(step string, f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.on == nil {
		h.on = make(map[string]func())
	}
	h.on[step] = f
}

// clear takes the hooks away, and says how many had not run.
func (h *hooks) clear() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := len(h.on)
	h.on = nil
	return n
}

func (h *hooks) at(step string) {
	h.mu.Lock()
	f := h.on[step]
	delete(h.on, step)
	h.mu.Unlock()
	if f != nil {
		f()
	}
}

// hookJournal lets a test act around each read of the real journal. "positions" steps are those with a cursor or for
// the topic under test, not the background's looks at heads.
type hookJournal struct {
	broadcaster.Journal
	hooks
	frames  atomic.Int64 // that Range has read
	mu      sync.Mutex
	ranges  int
	failing error
	hanging context.Context // until it ends, every read waits; nil: none does
}

func (j *hookJournal) fail(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.failing = err
}

func (j *hookJournal) failure(ctx context.Context) error {
	j.mu.Lock()
	failing, hanging := j.failing, j.hanging
	j.mu.Unlock()
	if hanging != nil {
		select {
		case <-hanging.Done():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return failing
}

func (j *hookJournal) Positions(ctx context.Context, q []wire.Question) (string, []wire.Position, error) {
	if err := j.failure(ctx); err != nil {
		return "", nil, err
	}
	j.at("before positions")
	epoch, p, err := j.Journal.Positions(ctx, q)
	j.at("after positions")
	return epoch, p, err
}

func (j *hookJournal) Seqs(ctx context.Context) (string, [wire.Partitions]int64, error) {
	if err := j.failure(ctx); err != nil {
		return "", [wire.Partitions]int64{}, err
	}
	return j.Journal.Seqs(ctx)
}

func (j *hookJournal) Range(ctx context.Context, topic string, after int64, limit int) (string, [][]byte, error) {
	if err := j.failure(ctx); err != nil {
		return "", nil, err
	}
	j.mu.Lock()
	j.ranges++
	j.mu.Unlock()
	j.at("before range")
	epoch, frames, err := j.Journal.Range(ctx, topic, after, limit)
	j.frames.Add(int64(len(frames)))
	j.at("after range")
	return epoch, frames, err
}

func (j *hookJournal) Ranges(ctx context.Context, after []wire.Question) (string, [][][]byte, error) {
	if err := j.failure(ctx); err != nil {
		return "", nil, err
	}
	j.mu.Lock()
	j.ranges++
	j.mu.Unlock()
	j.at("before range")
	epoch, frames, err := j.Journal.Ranges(ctx, after)
	j.at("after range")
	return epoch, frames, err
}

// hookStream does the same for the stream.
type hookStream struct {
	stream.Stream
	hooks
	frames atomic.Int64           // that Range has read
	deaf   atomic.Pointer[string] // the topic whose next message is lost
	heard  sync.Map               // topics whose channel is confirmed
	held   atomic.Pointer[func()] // runs within each read of a range
}

func (s *hookStream) listening(topic string) bool {
	_, ok := s.heard.Load(topic)
	return ok
}

func (s *hookStream) Range(ctx context.Context, ch stream.Channel, after int64, limit int) (stream.Run, error) {
	s.at("before range")
	if held := s.held.Load(); held != nil {
		(*held)()
	}
	run, err := s.Stream.Range(ctx, ch, after, limit)
	s.frames.Add(int64(len(run.Frames)))
	s.at("after range")
	return run, err
}

func (s *hookStream) NewSubscription(h stream.Handler) stream.Subscription {
	return s.Stream.NewSubscription(&hookHandler{h, s})
}

type hookHandler struct {
	stream.Handler
	s *hookStream
}

func (h *hookHandler) Confirmed(ch stream.Channel) {
	h.s.at("before confirmed")
	h.s.heard.Store(ch.Topic, true)
	h.Handler.Confirmed(ch)
	h.s.at("after confirmed")
}

func (h *hookHandler) Deliver(r stream.Run) {
	if deaf := h.s.deaf.Load(); deaf != nil && *deaf == r.Topic {
		h.s.deaf.Store(nil)
		return
	}
	h.Handler.Deliver(r)
}
