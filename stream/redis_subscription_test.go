package stream

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/commitcast/commitcast/internal/testkit"
)

// noticed is how soon a dead subscription must be noticed, with the default configuration.
const noticed = 4 * time.Second

// TestRedisBlackhole takes every packet away from a subscription and closes nothing, with workers that tick and
// without.
func TestRedisBlackhole(t *testing.T) {
	t.Parallel()
	for _, ticking := range []bool{true, false} {
		t.Run(fmt.Sprintf("ticking=%v", ticking), func(t *testing.T) {
			t.Parallel()
			server, client, worker := private(t, RedisConfig{})
			downs := 0
			if ticking {
				tick(t, worker, time.Second)
			}
			proxy := testkit.NewProxy(t, server.URL())
			s := newRedisStream(t, proxy.URL(server.URL()), RedisConfig{})
			ch := channel(newEpoch(), "t")
			h := newRecorder()
			sub, _ := subscribe(t, s, h)
			sub.Add(ch)
			h.waitConfirmed(t, ch)
			if !ticking {
				// After one connection without a tick it is patient with the next one: only pings can tell now.
				h.waitDown(t, 1)
				downs = 1
				h.waitConfirmed(t, ch)
			}
			offer(t, worker, Offer{Run: run(ch, 1, 1)}, Appended, 2)
			h.waitLast(t, ch, 1)

			proxy.Blackhole()
			start := time.Now()
			offer(t, worker, Offer{Run: run(ch, 2, 2)}, Appended, 3)
			err := h.waitDown(t, downs+1)
			if d := time.Since(start); d > noticed {
				t.Errorf("noticed after %v", d)
			} else {
				t.Logf("noticed after %v: %v", d, err)
			}
			if n := client.PubSubShardNumSub(t.Context(), ch.key()).Val()[ch.key()]; n != 1 {
				t.Errorf("redis sees %d subscribers, want the dead one", n)
			}
			proxy.Cut()
			proxy.Resume()
			h.waitConfirmed(t, ch)
			offer(t, worker, Offer{Run: run(ch, 3, 3)}, Appended, 4)
			h.waitLast(t, ch, 3)
			if n := h.downCount() - downs; n != 1 {
				t.Errorf("down %d times", n)
			}
			if !ticking && !strings.Contains(err.Error(), "pinged") {
				t.Errorf("noticed by another way: %v", err)
			}
		})
	}
}

// TestRedisNoTicks: the connection is well, but nothing comes through it. It is built anew, less and less often, until
// a tick comes; with ticks it stays.
func TestRedisNoTicks(t *testing.T) {
	t.Parallel()
	const probe = 300 * time.Millisecond
	server := testkit.Redis(t)
	reg := prometheus.NewRegistry()
	s := newRedisStream(t, server.URL(), RedisConfig{ProbeTimeout: probe, Registerer: reg})
	ch := channel(newEpoch(), "t")
	h := newRecorder()
	sub, _ := subscribe(t, s, h)
	sub.Add(ch)
	h.waitConfirmed(t, ch)
	at := []time.Time{time.Now()}
	for n := 1; n <= 3; n++ {
		if err := h.waitDown(t, n); !strings.Contains(err.Error(), "tick") {
			t.Fatalf("down: %v", err)
		}
		at = append(at, time.Now())
		h.waitConfirmed(t, ch)
	}
	if second, third := at[2].Sub(at[1]), at[3].Sub(at[2]); second < 2*probe*9/10 || third < 4*probe*9/10 {
		t.Errorf("down after %v, then %v: it must wait longer each time", second, third)
	}
	if n := metricValue(t, reg, "commitcast_stream_subscription_rebuilds_total", reasonProbe); n != 3 {
		t.Errorf("%v rebuilds counted, want 3", n)
	}
	stop := tick(t, s, probe/10)
	testkit.Eventually(t, patience, func() bool { return metricValue(t, reg, "commitcast_stream_subscriptions_up_count", "") == 1 }, "up")
	// With ticks it outlives what it would be given without any.
	connected := time.Now()
	testkit.Eventually(t, patience, func() bool { return time.Since(connected) > 12*probe }, "time passes")
	if n := h.downCount(); n != 3 {
		t.Errorf("down %d times with ticks", n-3)
	}
	// The ticks end, and that is noticed as soon as at first.
	stop()
	ended := time.Now()
	h.waitDown(t, 4)
	if d := time.Since(ended); d > 10*probe {
		t.Errorf("noticed after %v that ticks ended", d)
	}
}

// TestRedisSlowHandlerIsNotSilence holds the handler up for longer than the probe.
func TestRedisSlowHandlerIsNotSilence(t *testing.T) {
	t.Parallel()
	const probe = 300 * time.Millisecond
	server, _, s := private(t, RedisConfig{ProbeTimeout: probe})
	ticker := newRedisStream(t, server.URL(), RedisConfig{})
	tick(t, ticker, probe/10)
	ch := channel(newEpoch(), "t")
	h := newRecorder()
	h.block = make(chan struct{})
	sub, _ := subscribe(t, s, h)
	sub.Add(ch)
	h.waitConfirmed(t, ch)
	offer(t, s, Offer{Run: run(ch, 1, 1)}, Appended, 2)
	h.waitLast(t, ch, 1)
	busy := time.Now()
	testkit.Eventually(t, patience, func() bool { return time.Since(busy) > 5*probe }, "time passes")
	close(h.block)
	offer(t, s, Offer{Run: run(ch, 2, 2)}, Appended, 3)
	h.waitLast(t, ch, 2)
	if n := h.downCount(); n != 0 {
		t.Errorf("down %d times: %v", n, h.waitDown(t, 1))
	}
}

func TestRedisConnectionKilled(t *testing.T) {
	t.Parallel()
	_, client, s := private(t, RedisConfig{})
	tick(t, s, time.Second)
	ch := channel(newEpoch(), "t")
	h := newRecorder()
	sub, _ := subscribe(t, s, h)
	sub.Add(ch)
	for n := int64(1); n <= 5; n++ {
		h.waitConfirmed(t, ch)
		offer(t, s, Offer{Run: run(ch, n, n)}, Appended, n+1)
		h.waitLast(t, ch, n)
		if killed, err := client.ClientKillByFilter(t.Context(), "TYPE", "pubsub").Result(); err != nil || killed != 1 {
			t.Fatalf("%d connections killed, %v", killed, err)
		}
		h.waitDown(t, int(n))
	}
	h.waitConfirmed(t, ch)
	names := client.ClientList(t.Context()).Val()
	if !strings.Contains(names, "name=commitcast-subscription") || !strings.Contains(names, "name=commitcast ") {
		t.Errorf("connections cannot be told by their names: %s", names)
	}
}

func TestRedisRestarted(t *testing.T) {
	t.Parallel()
	server, _, s := private(t, RedisConfig{})
	tick(t, s, 500*time.Millisecond)
	ch, later := channel(newEpoch(), "t"), channel(newEpoch(), "later")
	h := newRecorder()
	sub, _ := subscribe(t, s, h)
	sub.Add(ch)
	h.waitConfirmed(t, ch)
	offer(t, s, Offer{Run: run(ch, 1, 5)}, Appended, 6)
	server.Kill()
	h.waitDown(t, 1)
	sub.Add(later) // wanted while there is no connection
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.waitConfirmed(t, ch, later)
	testkit.Eventually(t, patience, func() error { return s.Ping(t.Context()) }, "redis is back")
	offer(t, s, Offer{Run: run(ch, 6, 6)}, Appended, 7)
	h.waitLast(t, ch, 6)
	if h.downCount() != 1 {
		t.Errorf("down %d times, want once an outage", h.downCount())
	}
}

// TestRedisUnsubscribedByServer: a slot moved away. A standalone server never does that.
func TestRedisUnsubscribedByServer(t *testing.T) {
	t.Parallel()
	ch := channel(newEpoch(), "t")
	rounds := 0
	server := fakeRedis(t, func(args []string) string {
		switch strings.ToUpper(args[0]) {
		case "INFO":
			return infoReply("7.2.0")
		case "HELLO":
			return "-ERR unknown command\r\n"
		case "PING":
			return "+PONG\r\n"
		case "SSUBSCRIBE":
			var out strings.Builder
			for i, key := range args[1:] {
				fmt.Fprintf(&out, "*3\r\n$10\r\nssubscribe\r\n$%d\r\n%s\r\n:%d\r\n", len(key), key, i+1)
				if key == ch.key() {
					if rounds++; rounds == 1 {
						fmt.Fprintf(&out, "*3\r\n$12\r\nsunsubscribe\r\n$%d\r\n%s\r\n:1\r\n", len(key), key)
					}
				}
			}
			return out.String()
		}
		return "+OK\r\n"
	})
	reg := prometheus.NewRegistry()
	s := newRedisStream(t, server, RedisConfig{Registerer: reg})
	h := newRecorder()
	sub, _ := subscribe(t, s, h)
	sub.Add(ch)
	h.waitDown(t, 1)
	h.waitConfirmed(t, ch)
	if n := metricValue(t, reg, "commitcast_stream_subscription_rebuilds_total", reasonUnsubscribe); n != 1 {
		t.Errorf("%v rebuilds counted, want 1", n)
	}
}

// TestRedisRefusesSubscription: the handler is told, and the subscription goes on trying.
func TestRedisRefusesSubscription(t *testing.T) {
	t.Parallel()
	server, client, worker := private(t, RedisConfig{})
	s := newRedisStream(t, userURL(t, server, client, "~*", "&*", "+@all", "-ssubscribe"), RedisConfig{})
	ch := channel(newEpoch(), "t")
	h := newRecorder()
	sub, _ := subscribe(t, s, h)
	sub.Add(ch)
	if err := h.waitDown(t, 1); !strings.Contains(err.Error(), "NOPERM") {
		t.Errorf("down: %v", err)
	}
	setUser(t, client, "+ssubscribe")
	h.waitConfirmed(t, ch)
	offer(t, worker, Offer{Run: run(ch, 1, 1)}, Appended, 2)
	h.waitLast(t, ch, 1)
}

// TestRedisGarbage: whatever stands in a channel, what comes after it is delivered.
func TestRedisGarbage(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	s := newRedisStream(t, testkit.RedisURL(t), RedisConfig{Registerer: reg, ProbeTimeout: time.Minute})
	ch := channel(newEpoch(), "t")
	h := newRecorder()
	sub, _ := subscribe(t, s, h)
	sub.Add(ch)
	h.waitConfirmed(t, ch)
	garbage := []string{
		"", "x", "\n", "1 " + ch.Epoch + " 1 1 t", "2 " + ch.Epoch + " 1 1 t\nframe",
		"1 " + ch.Epoch + " 1 2 t\nframe", "1 " + newEpoch() + " 1 1 t\nframe", "1 " + ch.Epoch + " 1 1 other\nframe",
		strings.Repeat("\x00", MaxMessageBytes),
	}
	for _, g := range garbage {
		if err := s.client.SPublish(t.Context(), ch.key(), g).Err(); err != nil {
			t.Fatal(err)
		}
	}
	offer(t, s, Offer{Run: run(ch, 1, 1)}, Appended, 2)
	h.waitLast(t, ch, 1)
	if n := metricValue(t, reg, "commitcast_stream_garbage_total", ""); n != float64(len(garbage)) {
		t.Errorf("%v messages counted as garbage, want %d", n, len(garbage))
	}
	if n := len(h.heard(ch)); n != 1 || h.downCount() != 0 {
		t.Errorf("%d runs delivered, down %d times", n, h.downCount())
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	for i, s := range []Stream{
		NewMemory(MemoryConfig{Registerer: reg, Logger: quiet}),
		newRedisStream(t, testkit.RedisURL(t), RedisConfig{Registerer: reg}), // shares them
	} {
		ch := channel(newEpoch(), "t")
		s.Publish(t.Context(), []Offer{{Run: run(ch, 1, 1)}, {Run: run(ch, 1, 1)}, {Run: run(ch, 5, 5)}, {}})
		for _, outcome := range []string{"appended", "duplicate", "gap", "error"} {
			if n := metricValue(t, reg, "commitcast_stream_answers_total", outcome); n != float64(i+1) {
				t.Errorf("%s: %v, want %d", outcome, n, i+1)
			}
		}
		s.Close()
		s.Publish(t.Context(), []Offer{{Run: run(ch, 1, 1)}})
	}
	if n := metricValue(t, reg, "commitcast_stream_answers_total", "unavailable"); n != 2 {
		t.Errorf("unavailable: %v, want 2", n)
	}
	if n := metricValue(t, reg, "commitcast_stream_publish_seconds", ""); n != 4 {
		t.Errorf("%v publishes timed, want 4", n)
	}
}

// metricValue is the value of a counter or gauge, or the count of a histogram, with the given label value if not "".
func metricValue(t testing.TB, reg *prometheus.Registry, name, label string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if label != "" && !slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetValue() == label }) {
				continue
			}
			return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return 0
}
