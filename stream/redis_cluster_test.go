package stream

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/commitcast/commitcast/internal/services"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/wire"
)

// The whole suite on a cluster, with the users of ops/deploy, who may do nothing else. Then, on the same one, what only a cluster
// does: a slot moves, a master dies.
func TestRedisCluster(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(usersFile)
	if err != nil {
		t.Fatal(err)
	}
	c := testkit.RedisCluster(t, strings.TrimPrefix(string(text), "user default off\n"))
	login := func(name string) string {
		_, hosts, _ := strings.Cut(c.URL(), "@")
		return "redis+cluster://" + url.UserPassword("commitcast-"+name, "CHANGE-ME-"+name).String() + "@" + hosts
	}
	t.Run("conform", func(t *testing.T) {
		conform(t, func(t testing.TB, maxLen int) Stream {
			cfg := RedisConfig{MaxLen: maxLen, ProbeTimeout: time.Minute}
			return split{newRedisStream(t, login("worker"), cfg), newRedisStream(t, login("broadcaster"), cfg)}
		})
	})
	t.Run("kinds", func(t *testing.T) { testKinds(t, c) })
	t.Run("slot moves", func(t *testing.T) { testSlotMoves(t, c, login) })
	t.Run("master dies", func(t *testing.T) { testMasterDies(t, c, login) })
}

// testKinds: a URL of one kind for servers of another is refused with the word that helps.
func testKinds(t *testing.T, c *services.RedisCluster) {
	node := c.Nodes()[0]
	for u, want := range map[string]string{
		node.URL(): "use redis+cluster://",
		"redis+cluster" + strings.TrimSuffix(strings.TrimPrefix(testkit.Redis(t).URL(), "redis"), "/0"): "use redis://",
	} {
		s, err := NewRedis(t.Context(), u, RedisConfig{Logger: quiet})
		if err == nil {
			s.Close()
		}
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
	s := newRedisStream(t, c.URL(), RedisConfig{})
	ch := channel(newEpoch(), "inspected")
	offer(t, s, Offer{Run: run(ch, 1, 3)}, Appended, 4)
	if held, err := s.Inspect(t.Context(), ch); err != nil || held.First != 1 || held.Last != 3 {
		t.Errorf("inspected: %+v, %v", held, err)
	}
	if server, err := s.Server(t.Context()); err != nil || server.Mode != "cluster" || server.Role != "master" || server.UsedMemory == 0 {
		t.Errorf("server: %+v, %v", server, err)
	}
	if err := s.Rights(t.Context()); err != nil {
		t.Error(err)
	}
}

// everyPartition is a channel in each partition.
func everyPartition(epoch string) []Channel {
	chs := make([]Channel, wire.Partitions)
	for i, found := 0, 0; found < len(chs); i++ {
		if ch := channel(epoch, fmt.Sprint("topic:", i)); chs[ch.Partition].Topic == "" {
			chs[ch.Partition] = ch
			found++
		}
	}
	return chs
}

// talker publishes to every channel, one event after the other, until stopped; it repeats what was not answered, as workers do, and
// ends only when it knows what became of the last. next is then one past what each stream holds.
func talker(t *testing.T, s *Redis, chs []Channel, next []int64) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for i, ch := range chs {
		all.Go(func() { // owned by the test: stop waits for it
			announce, end := false, time.Time{}
			for ctx.Err() == nil || announce {
				if ctx.Err() != nil && end.IsZero() {
					end = time.Now().Add(patience)
				} else if ctx.Err() != nil && time.Now().After(end) {
					t.Errorf("%s: nobody says what became of offset %d", ch.Topic, next[i])
					return
				}
				pctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
				answers, err := s.Publish(pctx, []Offer{{Run: run(ch, next[i], next[i]), Announce: announce}})
				cancel()
				switch {
				case err != nil:
					announce = true
				case answers[0].Err != nil:
					t.Errorf("%s: %v", ch.Topic, answers[0].Err)
					return
				case answers[0].Outcome == Gap: // a new master lacks what the old one had: from there on
					next[i] = answers[0].Next
					announce = true
				default:
					next[i] = answers[0].Next
					announce = false
				}
				time.Sleep(20 * time.Millisecond) // the pace of the load
			}
		})
	}
	return func() { cancel(); all.Wait() }
}

// downs is what a recorder was told of whom.
type downs struct {
	*recorder
	mu sync.Mutex
	of Partitions
}

func (d *downs) Down(of Partitions, err error) {
	d.mu.Lock()
	d.of |= of
	d.mu.Unlock()
	d.recorder.Down(of, err)
}

func (d *downs) told() Partitions {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.of
}

// listening is a subscription to every channel, with a worker that ticks and talks. probe is the subscription's ProbeTimeout.
func listening(t *testing.T, login func(string) string, probe time.Duration) (h *downs, chs []Channel, next []int64, stop func()) {
	worker, reader := newRedisStream(t, login("worker"), RedisConfig{}), newRedisStream(t, login("broadcaster"), RedisConfig{ProbeTimeout: probe})
	chs = everyPartition(newEpoch())
	next = make([]int64, len(chs))
	for i := range next {
		next[i] = 1
	}
	tick(t, worker, 500*time.Millisecond)
	h = &downs{recorder: newRecorder()}
	sub, _ := subscribe(t, reader, h)
	sub.Add(chs...)
	h.waitConfirmed(t, chs...)
	return h, chs, next, talker(t, worker, chs, next)
}

// testSlotMoves: events reach the subscription again, over push alone, soon after their slot has moved; the other partitions do not
// notice. The probe would put it right, too, but later than this test waits: it is the master that says so.
func testSlotMoves(t *testing.T, c *services.RedisCluster, login func(string) string) {
	h, chs, next, stop := listening(t, login, time.Minute)
	moved := chs[7]
	h.waitHeard(t, moved, 5)
	err := c.MoveSlot(t.Context(), moved.key(), nil)
	began := time.Now()
	if err != nil {
		t.Fatal(err)
	}
	h.waitDown(t, 1)
	h.waitConfirmed(t, moved)
	t.Logf("confirmed again %v after the slot has moved", time.Since(began))
	n := h.last(moved)
	h.waitHeard(t, moved, n+5)
	stop()
	if of := h.told(); of != 1<<7 {
		t.Errorf("told down: %b, want partition 7 alone", of)
	}
	for i, ch := range chs {
		h.waitLast(t, ch, next[i]-1)
		if i != 7 {
			h.whole(t, ch)
		}
	}
}

// testMasterDies: the same when a master is killed. A worker ticks on, and the partitions of others do not notice.
func testMasterDies(t *testing.T, c *services.RedisCluster, login func(string) string) {
	h, chs, next, stop := listening(t, login, 0)
	h.waitHeard(t, chs[3], 5)
	master, err := c.Master(t.Context(), chs[3].key())
	if err != nil {
		t.Fatal(err)
	}
	var lost, kept []Channel
	for _, ch := range chs {
		if m, err := c.Master(t.Context(), ch.key()); err != nil {
			t.Fatal(err)
		} else if m == master {
			lost = append(lost, ch)
		} else {
			kept = append(kept, ch)
		}
	}
	master.Kill()
	began := time.Now()
	h.waitDown(t, 1)
	h.waitConfirmed(t, lost...)
	t.Logf("%d partitions confirmed again %v after the kill", len(lost), time.Since(began))
	for _, ch := range lost {
		n := h.last(ch)
		h.waitHeard(t, ch, n+2)
	}
	took := time.Since(began)
	t.Logf("events of all are pushed %v after the kill", took)
	if took > 8*time.Second {
		t.Errorf("pushed again after %v, more than 8 s", took)
	}
	for _, ch := range kept {
		if h.told().Has(ch.Partition) {
			t.Errorf("partition %d, whose master lives, was told down", ch.Partition)
		}
	}
	stop()
	for i, ch := range chs {
		h.waitLast(t, ch, next[i]-1)
	}
	if err := master.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// waitHeard waits until an offset of a channel, or a later one, was delivered.
func (r *recorder) waitHeard(t testing.TB, ch Channel, offset int64) {
	t.Helper()
	testkit.Eventually(t, patience, func() bool { return r.last(ch) >= offset }, "offset %d of %s delivered", offset, ch.Topic)
}

// last is the newest offset delivered.
func (r *recorder) last(ch Channel) int64 {
	runs := r.heard(ch)
	if len(runs) == 0 {
		return 0
	}
	return runs[len(runs)-1].Last()
}

// whole fails unless every offset was delivered.
func (r *recorder) whole(t testing.TB, ch Channel) {
	t.Helper()
	want := int64(0)
	for _, run := range r.heard(ch) {
		if want != 0 && run.First != want {
			t.Errorf("%s: offset %d delivered, want %d", ch.Topic, run.First, want)
			return
		}
		want = run.Last() + 1
	}
}

// The suite against a master that Sentinels name, and a failover under way.
func TestRedisSentinels(t *testing.T) {
	t.Parallel()
	sentinels := testkit.RedisSentinels(t)
	t.Run("kinds", func(t *testing.T) {
		u, err := url.Parse("redis" + strings.TrimPrefix(strings.SplitN(sentinels.URL(), ",", 2)[0], "redis+sentinel"))
		if err != nil {
			t.Fatal(err)
		}
		_, secret, _ := strings.Cut(sentinels.URL(), "sentinel_password=")
		u.User = url.UserPassword("default", secret)
		s, err := NewRedis(t.Context(), u.String(), RedisConfig{Logger: quiet})
		if err == nil {
			s.Close()
		}
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "use redis+sentinel://") {
			t.Errorf("a Sentinel for a server: %v", err)
		}
		other := newRedisStream(t, strings.Replace(sentinels.URL(), "/main?", "/other?", 1), RedisConfig{})
		if err := other.Ping(t.Context()); !errors.Is(err, ErrUnavailable) {
			t.Errorf("a master that nobody knows: %v", err)
		}
	})
	conform(t, func(t testing.TB, maxLen int) Stream {
		return newRedisStream(t, sentinels.URL(), RedisConfig{MaxLen: maxLen, ProbeTimeout: time.Minute})
	})
	t.Run("master dies", func(t *testing.T) {
		h, chs, next, stop := listening(t, func(string) string { return sentinels.URL() }, 0)
		h.waitHeard(t, chs[3], 5)
		master, err := sentinels.Master(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if t.Failed() {
				t.Log(sentinels.Said())
			}
		})
		before := h.downCount()
		if err := master.Pause(); err != nil { // worse than killed: no connection breaks
			t.Fatal(err)
		}
		began := time.Now()
		h.waitDown(t, before+1)
		h.waitConfirmed(t, chs...)
		t.Logf("confirmed again %v after the master froze", time.Since(began))
		for _, ch := range chs { // each: one that was published to the frozen master alone is published again
			n := h.last(ch)
			h.waitHeard(t, ch, n+2)
		}
		stop()
		for i, ch := range chs {
			h.waitLast(t, ch, next[i]-1)
		}
		now, err := sentinels.Master(t.Context())
		if err != nil || now == master {
			t.Errorf("the master is still the frozen one, %v", err)
		}
		// It wakes up as a master that is none any more, and is made a replica: nobody goes back to it.
		downs := h.downCount()
		if err := master.Resume(); err != nil {
			t.Fatal(err)
		}
		client := redis.NewClient(master.Options())
		defer client.Close()
		testkit.Eventually(t, patience, func() bool {
			role, err := client.Do(t.Context(), "ROLE").Slice()
			return err == nil && role[0] == "slave"
		}, "the old master is a replica")
		if n := h.downCount(); n != downs {
			t.Errorf("down %d times when the old master came back", n-downs)
		}
	})
}
