package network_test

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/commitcast/commitcast/internal/network"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long something may take that has to come.
const patience = 20 * time.Second

func newNetwork(t *testing.T) *network.Network {
	t.Helper()
	n, err := network.New()
	if errors.Is(err, network.ErrUnsupported) && (runtime.GOOS != "linux" || os.Geteuid() != 0) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

func newHost(t *testing.T, n *network.Network, name string) *network.Host {
	t.Helper()
	h, err := n.Host(name)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// on runs f on a host. Sockets that it makes stay there.
func on(t *testing.T, h *network.Host, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		err := h.Enter()
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// echo listens on a host, and returns what is sent to it.
func echo(t *testing.T, h *network.Host) (addr string) {
	t.Helper()
	var l net.Listener
	on(t, h, func() (err error) { l, err = net.Listen("tcp", h.IP()+":0"); return err })
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { // ends with the client's, which a cleanup closes before this one
				defer c.Close()
				io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
	return l.Addr().String()
}

func dial(t *testing.T, from *network.Host, addr string) net.Conn {
	t.Helper()
	var c net.Conn
	on(t, from, func() (err error) { c, err = net.DialTimeout("tcp", addr, patience); return err })
	t.Cleanup(func() { c.Close() })
	return c
}

// say sends a word and waits for it, at most so long.
func say(c net.Conn, within time.Duration) error {
	c.SetDeadline(time.Now().Add(within))
	if _, err := io.WriteString(c, "word"); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 4))
	return err
}

func TestHosts(t *testing.T) {
	n := newNetwork(t)
	a, b := newHost(t, n, "a"), newHost(t, n, "b")
	addr := echo(t, b)
	for _, from := range []*network.Host{a, n.Outside(), b} {
		if err := say(dial(t, from, addr), patience); err != nil {
			t.Errorf("from %s to b: %v", from.Name, err)
		}
	}
	// The loopback of one is not that of another.
	var own net.Listener
	on(t, a, func() (err error) { own, err = net.Listen("tcp", "127.0.0.1:0"); return err })
	defer own.Close()
	if c, err := net.DialTimeout("tcp", own.Addr().String(), time.Second); err == nil {
		c.Close()
		t.Error("the loopback of a host is reached from outside")
	}
}

func TestFaults(t *testing.T) {
	n := newNetwork(t)
	a, b, other := newHost(t, n, "a"), newHost(t, n, "b"), newHost(t, n, "other")
	addr := echo(t, b)
	for name, breaks := range map[string]func() (mend func()){
		"both ways": func() func() { return n.Part(a, b) },
		"there":     func() func() { return n.Break(a, b, network.Fault{Lost: 1}) },
		"back":      func() func() { return n.Break(b, a, network.Fault{Lost: 1}) },
	} {
		t.Run(name, func(t *testing.T) {
			c, unhurt := dial(t, a, addr), dial(t, other, addr)
			if err := say(c, patience); err != nil {
				t.Fatal(err)
			}
			mend := breaks()
			defer mend()
			if err := say(c, 300*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("through a cut: %v", err)
			}
			if err := say(unhurt, patience); err != nil {
				t.Errorf("another host's: %v", err)
			}
			mend()
			c.SetDeadline(time.Now().Add(patience))
			if _, err := io.ReadFull(c, make([]byte, 4)); err != nil { // what TCP has sent again
				t.Errorf("after the cut: %v", err)
			}
		})
	}
	t.Run("slow", func(t *testing.T) {
		c := dial(t, a, addr)
		mend := n.Break(b, a, network.Fault{Delay: 100 * time.Millisecond})
		began := time.Now()
		if err := say(c, patience); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 100*time.Millisecond {
			t.Errorf("an answer after %v", took)
		}
		mend()
	})
	t.Run("lossy", func(t *testing.T) {
		c := dial(t, a, addr)
		defer n.Break(a, b, network.Fault{Lost: 0.3})()
		for range 20 {
			if err := say(c, patience); err != nil {
				t.Fatal(err)
			}
		}
	})
}
