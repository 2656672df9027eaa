package broadcaster_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/internal/testkit"
)

// A client that does not read costs a cursor: the others go on, and when it reads again it gets every event, from log,
// stream or journal.
func TestStalledSubscriberLosesNothing(t *testing.T) {
	registry := prometheus.NewRegistry()
	r := newRig(t, nil, broadcaster.Config{LogEvents: 50, WriteTimeout: time.Minute, Registerer: registry})
	slow, quick := testkit.Dial(t, r.URL), testkit.Dial(t, r.URL)
	for _, c := range []*testkit.Client{slow, quick} {
		c.Subscribe(1, "big", "")
		c.Expect("subscribed")
	}
	const batches, perBatch = 40, 25
	for i := range batches {
		r.exec(`SELECT commitcast.append('big', 'test', json_build_object('n', i, 'pad', repeat('x', 20000))) FROM generate_series(1, $1) i`, perBatch)
		r.sequence("big", 0)
		r.publish("big")
		quick.ExpectEvents("big", int64(i*perBatch+1), int64((i+1)*perBatch))
	}
	counted := func() float64 { return gauge(t, registry, "clients_slow") }
	testkit.Eventually(t, 20*time.Second, func() bool { return counted() == 1 }, "one client counts as slow")
	slow.ExpectEvents("big", 1, batches*perBatch)
	testkit.Eventually(t, 20*time.Second, func() bool { return counted() == 0 }, "no client counts as slow")
}

// A client that takes nothing for a whole write timeout is closed; one that takes a little is not.
func TestWriteTimeout(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{WriteTimeout: 300 * time.Millisecond})
	c := testkit.Dial(t, r.URL)
	c.Subscribe(1, "big", "")
	c.Expect("subscribed")
	for range 40 {
		r.exec(`SELECT commitcast.append('big', 'test', json_build_object('n', i, 'pad', repeat('x', 200000))) FROM generate_series(1, 5) i`)
		r.sequence("big", 0)
		r.publish("big")
	}
	testkit.Eventually(t, 20*time.Second, func() bool { return r.b.Connections() == 0 }, "the stalled client is gone")
}

// A connection on which nothing was said for longer than the write timeout is as good as new: its pings are answered, and it
// is closed with a code.
func TestQuietConnectionOutlivesTheWriteTimeout(t *testing.T) {
	const timeout = 200 * time.Millisecond
	r := newRig(t, nil, broadcaster.Config{WriteTimeout: timeout, Heartbeat: time.Hour})
	c := testkit.Dial(t, r.URL)
	closed := make(chan error, 1)
	go func() { // ends with the connection
		_, err := c.Read(20 * time.Second)
		closed <- err
	}()
	for began := time.Now(); time.Since(began) < 3*timeout; time.Sleep(timeout / 4) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		err := c.WS.Ping(ctx)
		cancel()
		if err != nil {
			t.Fatalf("after %v: %v", time.Since(began), err)
		}
	}
	c.WS.Write(t.Context(), websocket.MessageBinary, []byte("{}"))
	if err := <-closed; websocket.CloseStatus(err) != 1003 {
		t.Errorf("closed with %v", err)
	}
}

// Many clients of one topic, coming and going at random cursors while events flow, all see them without a hole.
func TestHerd(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{LogEvents: 64})
	r.commit("herd", 300)
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Add(1)
	go func() { // ends when stop is closed
		defer writer.Done()
		for {
			select {
			case <-stop:
				return
			default:
				r.commit("herd", 3)
			}
		}
	}()
	var readers sync.WaitGroup
	errs := make(chan error, 40)
	epoch := r.epoch()
	for i := range 40 {
		readers.Add(1)
		go func() { // ends after four connections
			defer readers.Done()
			at := int64(i * 7)
			for range 4 {
				c, err := testkit.DialErr(t, r.URL)
				if err != nil {
					errs <- err
					return
				}
				c.Subscribe(1, "herd", fmt.Sprintf("%s:%d", epoch, at))
				for want := at + 150; at < want; {
					m, err := c.Read(10 * time.Second)
					if err != nil || m.Op == "event" && m.Offset != at+1 || m.Op == "reset" || m.Op == "error" {
						errs <- fmt.Errorf("after %d: %+v %v", at, m, err)
						return
					}
					if m.Op == "event" {
						at = m.Offset
					}
				}
				c.WS.CloseNow()
			}
		}()
	}
	readers.Wait()
	close(stop)
	writer.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
}
