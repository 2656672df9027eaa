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
