//go:build !race

package broadcaster

import (
	"io"
	"net"
	"net/netip"
	"runtime"
	"testing"

	"github.com/commitcast/commitcast/stream"
)

// An event that a topic hears costs no memory for each of its subscribers that are caught up, whether they conflate or not: neither to wake them, nor
// to assemble their messages, nor to write these to their sockets. (The race detector has pools forget at random.)
func TestDeliveryAllocatesNothing(t *testing.T) {
	const subscribers = 100
	b := &Broadcaster{metrics: newMetrics(nil)}
	b.cfg, _ = Config{LogEvents: 128}.withDefaults()
	heard := &topic{name: "t"}
	heard.log.maxEvents, heard.log.maxBytes, heard.log.maxMessage = b.cfg.LogEvents, b.cfg.LogBytes, maxMessage
	heard.channel = stream.Channel{Epoch: "1-aaaa", Topic: "t"}
	heard.log.start("1-aaaa", 1)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for i := range subscribers {
		client, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		server, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		go io.CopyBuffer(io.Discard, struct{ io.Reader }{client}, make([]byte, 4<<10)) // ends with the connection
		sub := &subscription{s: newSession(b, &socket{conn: server, raw: rawBelow(server), meter: &meter{}}, netip.Prefix{}), t: heard}
		sub.state, sub.epoch = subLive, "1-aaaa"
		sub.conflate = i%2 == 0
		heard.subs = append(heard.subs, sub)
	}
	next := benchRun(1)
	deliver := func() {
		heard.mu.Lock()
		heard.hear(next)
		heard.wakeLocked()
		heard.mu.Unlock()
		for _, sub := range heard.subs {
			for done := false; !done; runtime.Gosched() {
				sub.s.mu.Lock()
				done = !sub.s.flushing && sub.cursor == next.First
				sub.s.mu.Unlock()
			}
		}
		next.First++
	}
	for range 2 * b.cfg.LogEvents { // the log has its size
		deliver()
	}
	if n := testing.AllocsPerRun(100, deliver); n > 0 {
		t.Errorf("%v allocations for an event to %d subscribers, want none", n, subscribers)
	}
}
