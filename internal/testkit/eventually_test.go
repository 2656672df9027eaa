package testkit

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
)

// recorder is a testing.TB that keeps what it is told.
type recorder struct {
	testing.TB
	fatal string
}

func (r *recorder) Helper() {}

func (r *recorder) Fatalf(format string, args ...any) {
	r.fatal = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// fatalOf is what fn's Fatalf said, "" if nothing.
func fatalOf(fn func(testing.TB)) string {
	r := &recorder{}
	done := make(chan struct{})
	go func() { // ends with fn, for which we wait
		defer close(done)
		fn(r)
	}()
	<-done
	return r.fatal
}

func TestEventually(t *testing.T) {
	n := 0
	Eventually(t, time.Minute, func() bool { n++; return n == 3 }, "three")
	if n != 3 {
		t.Errorf("asked %d times, want 3", n)
	}
	got := fatalOf(func(t testing.TB) {
		Eventually(t, 0, func() bool { return false }, "the %s", "thing")
	})
	if !strings.Contains(got, "the thing") {
		t.Errorf("said %q", got)
	}
	got = fatalOf(func(t testing.TB) {
		Eventually(t, 0, func() error { return errors.New("why") }, "the thing")
	})
	if !strings.Contains(got, "the thing: why") {
		t.Errorf("said %q", got)
	}
}
