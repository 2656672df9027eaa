package stream

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/wire"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const patience = 20 * time.Second // of a test, on a busy machine

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// newEpoch is an epoch that no other test uses: the server may be shared.
func newEpoch() string {
	var b [6]byte
	rand.Read(b[:])
	return "1-" + hex.EncodeToString(b[:])
}

func channel(epoch, topic string) Channel {
	return Channel{Epoch: epoch, Partition: wire.Partition(topic), Topic: topic}
}

// frame is what stands at an offset of a topic; its content tells which.
func frame(topic string, offset int64) []byte {
	return fmt.Appendf(nil, `{"op":"event","topic":%q,"offset":%d}`, topic, offset)
}

// run is a run of such frames.
func run(ch Channel, first, last int64) Run {
	r := Run{Channel: ch, First: first}
	for n := first; n <= last; n++ {
		r.Frames = append(r.Frames, frame(ch.Topic, n))
	}
	return r
}

// publish offers runs and fails the test unless the stream is there and no run has an error.
func publish(t testing.TB, s Stream, offers ...Offer) []Answer {
	t.Helper()
	answers, err := s.Publish(t.Context(), offers)
	if err != nil {
		t.Fatal(err)
	}
	for i, a := range answers {
		if a.Err != nil {
			t.Fatalf("offer %d: %v", i, a.Err)
		}
	}
	return answers
}

// offer publishes one run and compares the answer.
func offer(t testing.TB, s Stream, o Offer, outcome Outcome, next int64) {
	t.Helper()
	if got := publish(t, s, o)[0]; got.Outcome != outcome || got.Next != next {
		t.Fatalf("offer %d..%d: %v, next %d; want %v, next %d", o.First, o.Last(), got.Outcome, got.Next, outcome, next)
	}
}

// wantRange reads after an offset and compares: the frames first…last, or nothing if last < first.
func wantRange(t testing.TB, s Stream, ch Channel, after, last int64) {
	t.Helper()
	r, err := s.Range(t.Context(), ch, after, MaxRangeFrames)
	if err != nil {
		t.Fatal(err)
	}
	wantRun(t, r, ch, after+1, last)
}

func wantRun(t testing.TB, r Run, ch Channel, first, last int64) {
	t.Helper()
	if r.Channel != ch || r.First != first || r.Last() != last {
		t.Fatalf("run %+v %d..%d; want %+v %d..%d", r.Channel, r.First, r.Last(), ch, first, last)
	}
	for i, f := range r.Frames {
		if want := frame(ch.Topic, first+int64(i)); string(f) != string(want) {
			t.Fatalf("frame of offset %d is %.80q; want %q", first+int64(i), f, want)
		}
	}
}

// recorder is a Handler that remembers, and notices what a Handler must never see.
type recorder struct {
	block chan struct{} // if not nil, Deliver waits for it

	mu        sync.Mutex
	confirmed map[Channel]int // how often, since the last Down
	runs      map[Channel][]Run
	total     int
	downs     []error
	broken    []string
}

func newRecorder() *recorder {
	return &recorder{confirmed: map[Channel]int{}, runs: map[Channel][]Run{}}
}

func (r *recorder) Confirmed(ch Channel) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.confirmed[ch]++
}

func (r *recorder) Deliver(run Run) {
	r.mu.Lock()
	if r.confirmed[run.Channel] == 0 {
		r.broken = append(r.broken, fmt.Sprintf("a run of %v, which is not confirmed", run.Channel))
	}
	r.runs[run.Channel] = append(r.runs[run.Channel], run)
	r.total++
	block := r.block
	r.mu.Unlock()
	if block != nil {
		<-block
	}
}

func (r *recorder) Down(of Partitions, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !errors.Is(err, ErrUnavailable) {
		r.broken = append(r.broken, fmt.Sprintf("down: %v", err))
	}
	maps.DeleteFunc(r.confirmed, func(ch Channel, _ int) bool { return of.Has(ch.Partition) })
	r.downs = append(r.downs, err)
}

func (r *recorder) isConfirmed(chs ...Channel) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ch := range chs {
		if r.confirmed[ch] == 0 {
			return false
		}
	}
	return true
}

func (r *recorder) times(ch Channel) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.confirmed[ch]
}

func (r *recorder) heard(ch Channel) []Run {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Run(nil), r.runs[ch]...)
}

func (r *recorder) downCount() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.downs)
}

// waitConfirmed waits until all channels are confirmed.
func (r *recorder) waitConfirmed(t testing.TB, chs ...Channel) {
	t.Helper()
	testkit.Eventually(t, patience, func() bool { return r.isConfirmed(chs...) }, "%d channels confirmed", len(chs))
}

// waitLast waits until the last run of a channel ends at an offset.
func (r *recorder) waitLast(t testing.TB, ch Channel, last int64) {
	t.Helper()
	testkit.Eventually(t, patience, func() bool {
		runs := r.heard(ch)
		return len(runs) > 0 && runs[len(runs)-1].Last() == last
	}, "offset %d of %s delivered", last, ch.Topic)
}

// waitDown waits until Down was called for the n-th time and returns its error.
func (r *recorder) waitDown(t testing.TB, n int) error {
	t.Helper()
	testkit.Eventually(t, patience, func() bool { return r.downCount() >= n }, "down %d times", n)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.downs[n-1]
}

// check fails the test if the handler saw what it must not.
func (r *recorder) check(t testing.TB) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.broken) > 0 {
		t.Errorf("the handler was given %s", strings.Join(r.broken, "; "))
	}
}

// subscribe runs a subscription until the test ends, or until stop is called.
func subscribe(t testing.TB, s Stream, h Handler) (sub Subscription, stop func()) {
	t.Helper()
	sub = s.NewSubscription(h)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- sub.Run(ctx) }() // owned by the test: stop waits for it
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Run ended with %v", err)
			}
		case <-time.After(patience):
			t.Error("Run does not end")
		}
		if r, ok := h.(*recorder); ok {
			r.check(t)
		}
	})
	t.Cleanup(stop)
	return sub, stop
}

// newRedisStream is a stream on a server, closed at the test's end.
func newRedisStream(t testing.TB, url string, cfg RedisConfig) *Redis {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = quiet
	}
	s, err := NewRedis(context.Background(), url, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// tick publishes a probe every interval until the test ends or stop is called, as workers do.
func tick(t testing.TB, s Stream, interval time.Duration) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // owned by the test: stop waits for it
		defer close(done)
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			s.Tick(ctx)
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return stop
}
