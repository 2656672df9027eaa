package testkit

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// Eventually fails the test unless cond becomes true, or returns nil, in time. It asks at once and then every few
// milliseconds, from the test's own goroutine. format and args say what was waited for.
func Eventually[F func() bool | func() error](t testing.TB, timeout time.Duration, cond F, format string, args ...any) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		var err error
		switch cond := any(cond).(type) {
		case func() error:
			err = cond()
		case func() bool:
			if !cond() {
				err = errNotYet
			}
		}
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			message := fmt.Sprintf(format, args...)
			if err == errNotYet {
				t.Fatalf("not within %v: %s", timeout, message)
			}
			t.Fatalf("not within %v: %s: %v", timeout, message, err)
		}
		time.Sleep(wait)
	}
}

var errNotYet = errors.New("not yet")
