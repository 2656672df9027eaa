package testkit

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/commitcast/commitcast/internal/services"
)

// sharedStartTimeout bounds the start of a shared server, including an installation.
const sharedStartTimeout = 20 * time.Minute

// shared is a server that the tests of a binary have in common.
type shared struct {
	cfg      services.Config
	once     sync.Once
	services *services.Services
	err      error
}

var (
	sharedPostgres = &shared{cfg: services.Config{WithoutRedis: true}}
	sharedRedis    = &shared{cfg: services.Config{WithoutPostgres: true}}
	inMain         bool
)

// Main runs a package's tests, ends the shared servers, looks for goroutines that were left behind, and exits. It is
// the whole of TestMain. m is the *testing.M, or what wraps it to tidy up after the tests.
func Main(m interface{ Run() int }, options ...goleak.Option) {
	inMain = true
	code := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	for _, s := range []*shared{sharedPostgres, sharedRedis} {
		if s.services != nil {
			s.services.Close()
		}
	}
	if code == 0 {
		// A pool of go-redis that was closed while it could not connect goes on sleeping for up to a second.
		options = append(options, goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial"))
		if err := goleak.Find(options...); err != nil {
			fmt.Fprintf(os.Stderr, "goroutines were left behind: %v\n", err)
			code = 1
		}
	}
	os.Exit(code)
}

func (s *shared) get(t testing.TB) *services.Services {
	t.Helper()
	if !inMain {
		t.Fatal("TestMain must call testkit.Main: it ends the servers")
	}
	s.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), sharedStartTimeout)
		defer cancel()
		s.services, s.err = services.Start(ctx, s.cfg)
	})
	if s.err != nil {
		t.Fatal(s.err)
	}
	return s.services
}
