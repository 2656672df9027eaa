package testkit

import (
	"testing"

	"github.com/commitcast/commitcast/internal/services"
)

// Redis returns a private, empty server for a test that flushes it, kills it, pauses it or fills it. lines are added to
// its configuration, as in "maxmemory 10mb". It ends with the test. A start takes about 40 ms.
func Redis(t testing.TB, lines ...string) *services.Redis {
	t.Helper()
	if err := services.EnsureRedis(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	r, err := services.StartRedis(t.Context(), services.RedisConfig{Lines: lines})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// RedisURL returns the URL of a server that other tests use, too, even those of other packages at the same time: only
// names of the test's own epoch are safe there, and nothing may be flushed.
func RedisURL(t testing.TB) string {
	t.Helper()
	return sharedRedis.get(t).RedisURL
}

// RedisCluster returns a private cluster of three masters with a replica each, for a test that kills them and moves their slots.
// It ends with the test. A start takes about 3 s.
func RedisCluster(t testing.TB, lines ...string) *services.RedisCluster {
	t.Helper()
	if err := services.EnsureRedis(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	c, err := services.StartRedisCluster(t.Context(), services.RedisClusterConfig{Masters: 3, Lines: lines})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// RedisSentinels returns a private master with a replica, watched by three Sentinels. It ends with the test. A start takes about
// 3 s.
func RedisSentinels(t testing.TB) *services.RedisSentinels {
	t.Helper()
	if err := services.EnsureRedis(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	s, err := services.StartRedisSentinels(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}
