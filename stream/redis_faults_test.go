package stream

import (
	"context"
	"errors"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/commitcast/commitcast/internal/services"
	"github.com/commitcast/commitcast/internal/testkit"
)

// private is a server that the test may break, a client to break it with, and a stream on it.
func private(t *testing.T, cfg RedisConfig, lines ...string) (*services.Redis, *redis.Client, *Redis) {
	t.Helper()
	server := testkit.Redis(t, lines...)
	client := redis.NewClient(server.Options())
	t.Cleanup(func() { client.Close() })
	return server, client, newRedisStream(t, server.URL(), cfg)
}

func TestRedisFlushed(t *testing.T) {
	t.Parallel()
	_, client, s := private(t, RedisConfig{})
	ch := channel(newEpoch(), "t")
	offer(t, s, Offer{Run: run(ch, 1, 5)}, Appended, 6)
	client.FlushAll(t.Context())
	client.ScriptFlush(t.Context())
	wantRange(t, s, ch, 0, 0)
	wantRange(t, s, ch, 4, 4)
	offer(t, s, Offer{Run: run(ch, 6, 7)}, Appended, 8)
	wantRange(t, s, ch, 5, 7)
	wantRange(t, s, ch, 0, 0) // not 6 and 7: the run after 0 begins with 1
}

// TestRedisRolledBack is a server that lost its newest writes.
func TestRedisRolledBack(t *testing.T) {
	t.Parallel()
	server, client, s := private(t, RedisConfig{})
	ch := channel(newEpoch(), "t")
	h := newRecorder()
	sub, _ := subscribe(t, s, h)
	sub.Add(ch)
	h.waitConfirmed(t, ch)
	offer(t, s, Offer{Run: run(ch, 1, 5)}, Appended, 6)
	if err := client.Save(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	offer(t, s, Offer{Run: run(ch, 6, 10)}, Appended, 11)
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.waitDown(t, 1)
	h.waitConfirmed(t, ch)
	testkit.Eventually(t, patience, func() error { return s.Ping(t.Context()) }, "redis is back")
	wantRange(t, s, ch, 0, 5)
	wantRange(t, s, ch, 7, 7)
	offer(t, s, Offer{Run: run(ch, 11, 11)}, Gap, 6)
	offer(t, s, Offer{Run: run(ch, 6, 11)}, Appended, 12)
	wantRange(t, s, ch, 0, 11)
	h.waitLast(t, ch, 11)
}

// TestRedisDamaged has other hands in the stream's keys. The next run is taken in each case, and what is missing is
// never skipped over.
func TestRedisDamaged(t *testing.T) {
	t.Parallel()
	_, client, s := private(t, RedisConfig{})
	for _, c := range []struct {
		name   string
		damage []any // the key comes second
	}{
		{"tail deleted", []any{"XDEL", "5-0"}},
		{"all deleted", []any{"XDEL", "1-0", "2-0", "3-0", "4-0", "5-0"}},
		{"trimmed to nothing", []any{"XTRIM", "MAXLEN", "0"}},
		{"raised id", []any{"XSETID", "9-0"}},
		{"wrong type", []any{"SET", "x"}},
		{"ids of a clock", []any{"XADD", "*", "f", "x"}},
		{"id with a sequence", []any{"XADD", "6-1", "f", "x"}},
		{"id beyond 2^53", []any{"XADD", "9007199254740993-0", "f", "x"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ch := channel(newEpoch(), "t")
			offer(t, s, Offer{Run: run(ch, 1, 5)}, Appended, 6)
			if err := client.Do(t.Context(), append([]any{c.damage[0], ch.key()}, c.damage[1:]...)...).Err(); err != nil {
				t.Fatal(err)
			}
			offer(t, s, Offer{Run: run(ch, 5, 6)}, Appended, 7)
			wantRange(t, s, ch, 4, 6)
			wantRange(t, s, ch, 0, 0)
			offer(t, s, Offer{Run: run(ch, 7, 7)}, Appended, 8)
		})
	}
	t.Run("empty with a group", func(t *testing.T) {
		ch := channel(newEpoch(), "t")
		if err := client.XGroupCreateMkStream(t.Context(), ch.key(), "g", "$").Err(); err != nil {
			t.Fatal(err)
		}
		wantRange(t, s, ch, 0, 0)
		offer(t, s, Offer{Run: run(ch, 5, 6)}, Appended, 7)
	})
	t.Run("hole", func(t *testing.T) {
		ch := channel(newEpoch(), "t")
		offer(t, s, Offer{Run: run(ch, 1, 9)}, Appended, 10)
		client.XDel(t.Context(), ch.key(), "4-0")
		wantRange(t, s, ch, 0, 3) // cut at the first hole
		wantRange(t, s, ch, 3, 3)
		wantRange(t, s, ch, 4, 9)
		offer(t, s, Offer{Run: run(ch, 9, 10)}, Appended, 11)
		wantRange(t, s, ch, 8, 10)
		wantRange(t, s, ch, 0, 0) // began anew
	})
	t.Run("wrong type read", func(t *testing.T) {
		ch := channel(newEpoch(), "t")
		client.Set(t.Context(), ch.key(), "x", 0)
		wantRange(t, s, ch, 0, 0)
	})
}

func TestRedisScriptFlush(t *testing.T) {
	t.Parallel()
	_, client, s := private(t, RedisConfig{})
	a, b := channel(newEpoch(), "a"), channel(newEpoch(), "b")
	for n := int64(1); n <= 3; n++ {
		client.ScriptFlush(t.Context())
		answers := publish(t, s, Offer{Run: run(a, n, n)}, Offer{Run: run(b, n, n)}, Offer{Run: run(b, n, n)})
		if answers[0].Outcome != Appended || answers[1].Outcome != Appended || answers[2].Outcome != Duplicate {
			t.Fatalf("%+v", answers)
		}
		client.ScriptFlush(t.Context())
		wantRange(t, s, a, 0, n)
	}
}

func TestRedisExpiry(t *testing.T) {
	t.Parallel()
	_, client, s := private(t, RedisConfig{MaxAge: 300 * time.Millisecond})
	ch := channel(newEpoch(), "t")
	offer(t, s, Offer{Run: run(ch, 1, 5)}, Appended, 6)
	if ttl := client.PTTL(t.Context(), ch.key()).Val(); ttl <= 0 || ttl > 300*time.Millisecond {
		t.Fatalf("the key lives for %v", ttl)
	}
	testkit.Eventually(t, patience, func() bool {
		return client.Exists(t.Context(), ch.key()).Val() == 0
	}, "an idle topic is dropped")
	offer(t, s, Offer{Run: run(ch, 6, 6)}, Appended, 7)
}

// userURL makes a user with rules and returns the URL with its password.
func userURL(t *testing.T, server *services.Redis, client *redis.Client, rules ...any) string {
	t.Helper()
	setUser(t, client, append([]any{"reset", "on", ">pass"}, rules...)...)
	u, err := url.Parse(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("worker", "pass")
	return u.String()
}

func setUser(t *testing.T, client *redis.Client, rules ...any) {
	t.Helper()
	if err := client.Do(t.Context(), append([]any{"ACL", "SETUSER", "worker"}, rules...)...).Err(); err != nil {
		t.Fatal(err)
	}
}

// TestRedisAnnounceRefused: what was stored and not announced must not look like success when it is repeated.
func TestRedisAnnounceRefused(t *testing.T) {
	t.Parallel()
	server, client, listening := private(t, RedisConfig{})
	s := newRedisStream(t, userURL(t, server, client, "~*", "&*", "+@all", "-spublish"), RedisConfig{})
	ch := channel(newEpoch(), "t")
	h := newRecorder()
	sub, _ := subscribe(t, listening, h)
	sub.Add(ch)
	h.waitConfirmed(t, ch)
	for _, announce := range []bool{false, true, true} {
		answers, err := s.Publish(t.Context(), []Offer{{Run: run(ch, 1, 2), Announce: announce}})
		if err != nil || answers[0].Err == nil || answers[0].Outcome != 0 {
			t.Fatalf("announce %v: %+v, %v; want the run's error", announce, answers, err)
		}
		// 7.0 says that the user can't run this command, later versions NOPERM, Valkey 8 an ACL failure.
		if text := answers[0].Err.Error(); !strings.Contains(text, "NOPERM") && !strings.Contains(text, "ACL failure") && !strings.Contains(text, "can't run") {
			t.Errorf("error %v does not say why", answers[0].Err)
		}
	}
	setUser(t, client, "+spublish")
	offer(t, s, Offer{Run: run(ch, 1, 2), Announce: true}, Duplicate, 3)
	h.waitLast(t, ch, 2)
}

// TestRedisRightsByTopic: one run is refused, its neighbours flow.
func TestRedisRightsByTopic(t *testing.T) {
	t.Parallel()
	server, client, _ := private(t, RedisConfig{})
	epoch := newEpoch()
	a, b, c := channel(epoch, "a"), channel(epoch, "b"), channel(epoch, "c")
	s := newRedisStream(t, userURL(t, server, client, "~"+a.key(), "~"+b.key(), "&"+a.key(), "+@all"), RedisConfig{})
	answers, err := s.Publish(t.Context(), []Offer{{Run: run(a, 1, 1)}, {Run: run(b, 1, 1)}, {Run: run(c, 1, 1)}, {Run: run(a, 2, 2)}})
	if err != nil {
		t.Fatal(err)
	}
	if answers[0].Err != nil || answers[3].Err != nil || answers[3].Next != 3 {
		t.Errorf("permitted: %+v, %+v", answers[0], answers[3])
	}
	if answers[1].Err == nil || answers[2].Err == nil {
		t.Errorf("no right to a channel: %+v; no right to a key: %+v", answers[1], answers[2])
	}
	// No right to scripts at all says nothing about any run.
	setUser(t, client, "-evalsha")
	if _, err := s.Publish(t.Context(), []Offer{{Run: run(a, 3, 3)}}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("without EVALSHA: %v", err)
	}
}

func TestRedisOutOfMemory(t *testing.T) {
	t.Parallel()
	_, client, s := private(t, RedisConfig{}, "maxmemory-policy noeviction")
	ch := channel(newEpoch(), "t")
	h := newRecorder()
	sub, _ := subscribe(t, s, h)
	sub.Add(ch)
	h.waitConfirmed(t, ch)
	offer(t, s, Offer{Run: run(ch, 1, 2)}, Appended, 3)
	client.ConfigSet(t.Context(), "maxmemory", "100kb")
	for _, o := range []Offer{{Run: run(ch, 3, 4)}, {Run: run(ch, 9, 9), Restart: true}} {
		if _, err := s.Publish(t.Context(), []Offer{o}); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "OOM") {
			t.Fatalf("at maxmemory: %v", err)
		}
	}
	wantRange(t, s, ch, 0, 2) // reading goes on, and nothing was dropped for the restart
	client.ConfigSet(t.Context(), "maxmemory", "0")
	offer(t, s, Offer{Run: run(ch, 3, 4), Announce: true}, Appended, 5)
	h.waitLast(t, ch, 4)
	if n := len(h.heard(ch)); n != 2 {
		t.Errorf("%d runs delivered, want 2: what is not stored is not announced", n)
	}
}

func TestRedisReadOnly(t *testing.T) {
	t.Parallel()
	_, client, s := private(t, RedisConfig{})
	ch := channel(newEpoch(), "t")
	offer(t, s, Offer{Run: run(ch, 1, 2)}, Appended, 3)
	client.ReplicaOf(t.Context(), "127.0.0.1", "1")
	if _, err := s.Publish(t.Context(), []Offer{{Run: run(ch, 3, 3)}}); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "READONLY") {
		t.Fatalf("on a replica: %v", err)
	}
	client.ReplicaOf(t.Context(), "NO", "ONE")
	offer(t, s, Offer{Run: run(ch, 3, 3), Announce: true}, Appended, 4)
}

func TestRedisDown(t *testing.T) {
	t.Parallel()
	server, _, s := private(t, RedisConfig{Timeout: 500 * time.Millisecond})
	ch := channel(newEpoch(), "t")
	offer(t, s, Offer{Run: run(ch, 1, 2)}, Appended, 3)

	// Frozen: a context's deadline counts, and without one the configured timeout.
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	for _, limit := range []time.Duration{100 * time.Millisecond, time.Minute} {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		start := time.Now()
		_, err := s.Publish(ctx, []Offer{{Run: run(ch, 3, 3)}})
		cancel()
		if d := time.Since(start); !errors.Is(err, ErrUnavailable) || d > 3*time.Second {
			t.Errorf("frozen, context of %v: %v after %v", limit, err, d)
		}
	}
	if err := server.Resume(); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, patience, func() error { return s.Ping(t.Context()) }, "redis answers")
	a := publish(t, s, Offer{Run: run(ch, 3, 3), Announce: true})[0] // taken at the first, the second or this time
	if a.Next != 4 {
		t.Errorf("after the pause: %+v", a)
	}

	server.Stop()
	_, publishErr := s.Publish(t.Context(), []Offer{{Run: run(ch, 4, 4)}})
	_, rangeErr := s.Range(t.Context(), ch, 0, MaxRangeFrames)
	for _, err := range []error{publishErr, rangeErr, s.Ping(t.Context()), s.Tick(t.Context())} {
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("stopped: %v", err)
		}
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, patience, func() error { return s.Ping(t.Context()) }, "redis answers")
	offer(t, s, Offer{Run: run(ch, 4, 4), Announce: true}, Appended, 5)
}

// TestRedisLostReply: the offer was taken, and its publisher cannot know.
func TestRedisLostReply(t *testing.T) {
	t.Parallel()
	server, client, listening := private(t, RedisConfig{})
	proxy := testkit.NewProxy(t, server.URL())
	s := newRedisStream(t, proxy.URL(server.URL()), RedisConfig{})
	ch := channel(newEpoch(), "t")
	h := newRecorder()
	sub, _ := subscribe(t, listening, h)
	sub.Add(ch)
	h.waitConfirmed(t, ch)
	offer(t, s, Offer{Run: run(ch, 1, 1)}, Appended, 2)
	proxy.HoldReplies()
	result := make(chan error, 1)
	go func() { // owned by the test, which receives its result
		_, err := s.Publish(context.Background(), []Offer{{Run: run(ch, 2, 3)}})
		result <- err
	}()
	testkit.Eventually(t, patience, func() bool { return client.XLen(t.Context(), ch.key()).Val() == 3 }, "stored")
	proxy.Cut()
	proxy.Resume()
	if err := <-result; !errors.Is(err, ErrUnavailable) {
		t.Fatalf("lost reply: %v", err)
	}
	h.waitLast(t, ch, 3)
	if n := len(h.heard(ch)); n != 2 {
		t.Fatalf("%d runs delivered, want 2: nothing is repeated by itself", n)
	}
	offer(t, s, Offer{Run: run(ch, 2, 3), Announce: true}, Duplicate, 4)
	testkit.Eventually(t, patience, func() bool { return len(h.heard(ch)) == 3 }, "announced again")
	wantRun(t, h.heard(ch)[2], ch, 2, 3)
}

// TestRedisCutInTheMidstOfReplies: wherever the answers break off, that is no run's own fault.
func TestRedisCutInTheMidstOfReplies(t *testing.T) {
	t.Parallel()
	server, client, _ := private(t, RedisConfig{})
	proxy := testkit.NewProxy(t, server.URL())
	s := newRedisStream(t, proxy.URL(server.URL()), RedisConfig{})
	epoch := newEpoch()
	offers := func(n int) (all []Offer) {
		for i := range 3 {
			ch := channel(epoch, "t"+strconv.Itoa(n)+"/"+strconv.Itoa(i))
			all = append(all, Offer{Run: run(ch, 1, 2)}, Offer{Run: run(ch, 9, 9)}) // the second is a gap
		}
		return all
	}
	whole := false
	for n := 0; !whole; n++ {
		testkit.Eventually(t, patience, func() error { // a pipeline, which has connections of its own
			_, err := s.Publish(t.Context(), offers(-1))
			return err
		}, "connected")
		if n%2 == 0 {
			client.ScriptFlush(t.Context()) // the answers of the first pipeline only say so
		}
		proxy.CutAfter(n)
		answers, err := s.Publish(t.Context(), offers(n))
		switch {
		case n > 1000:
			t.Fatal("it is never cut")
		case err != nil && !errors.Is(err, ErrUnavailable):
			t.Fatalf("cut after %d bytes: %v", n, err)
		}
		for i, a := range answers {
			if a.Err != nil || a.Outcome != [...]Outcome{Appended, Gap}[i%2] {
				t.Fatalf("cut after %d bytes, offer %d: %+v", n, i, a)
			}
		}
		whole = err == nil
		if whole && n < 60 {
			t.Fatalf("whole after %d bytes", n)
		}
	}
}

// TestRedisRefusesConnections: a server that lets nobody in says so with an error reply, which is no run's own fault.
func TestRedisRefusesConnections(t *testing.T) {
	t.Parallel()
	for name, set := range map[string][]any{
		"too many clients": {"CONFIG", "SET", "maxclients", "1"},
		"another password": {"CONFIG", "SET", "requirepass", "secret"},
		"user turned off":  {"ACL", "SETUSER", "worker", "off"},
		"no right to EVAL": {"ACL", "SETUSER", "worker", "-evalsha"},
		"user is gone":     {"ACL", "DELUSER", "worker"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, client, _ := private(t, RedisConfig{})
			url := server.URL()
			if strings.Contains(name, "user") || strings.Contains(name, "right") {
				url = userURL(t, server, client, "~*", "&*", "+@all")
			}
			proxy := testkit.NewProxy(t, url)
			s := newRedisStream(t, proxy.URL(url), RedisConfig{})
			epoch := newEpoch()
			offer(t, s, Offer{Run: run(channel(epoch, "t"), 1, 1)}, Appended, 2)
			proxy.Cut()
			testkit.Eventually(t, patience, func() bool { return client.Ping(t.Context()).Err() == nil }, "the breaker is connected")
			if err := client.Do(t.Context(), set...).Err(); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				answers, err := s.Publish(t.Context(), []Offer{{Run: run(channel(epoch, "t"), 2, 2)}, {Run: run(channel(epoch, "u"), 1, 1)}})
				if !errors.Is(err, ErrUnavailable) {
					t.Fatalf("answers %+v, error %v", answers, err)
				}
				t.Log(err)
			}
		})
	}
}
