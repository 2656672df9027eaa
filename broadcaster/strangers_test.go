package broadcaster_test

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/internal/testkit"
)

// While connections that say nothing have all the seats of strangers, who brings its token in the handshake comes in at once, and who
// brings it in a frame soon. Many that come together, and mean well, do not wait for anybody's patience.
func TestStrangersMakeRoom(t *testing.T) {
	t.Parallel() // it mostly waits
	registry := prometheus.NewRegistry()
	const seats = 4
	r := newRig(t, nil, broadcaster.Config{Verifier: plain{}, TrustedHops: 1, MaxStrangers: seats, AuthTimeout: 20 * time.Second, Registerer: registry})
	from := func(address string) *websocket.DialOptions {
		return &websocket.DialOptions{HTTPHeader: http.Header{"X-Forwarded-For": {address}}}
	}

	var all sync.WaitGroup
	began := time.Now()
	for range 100 { // at a second's patience for each it would be 25 s
		all.Go(func() {
			c, _, err := testkit.Open(t, r.URL, from("192.0.2.1"))
			if err != nil {
				t.Error(err)
				return
			}
			c.Auth(plainToken("7", time.Hour, "**"))
		})
	}
	all.Wait()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("100 that mean well took %v", took)
	}
	if hits(t, registry, "unauthenticated") > 0 {
		t.Error("one of them had to leave")
	}

	var idle []*testkit.Client
	for range seats {
		idle = append(idle, open(t, r.URL, from("192.0.2.66")))
	}
	began = time.Now()
	known := from("192.0.2.2")
	known.HTTPHeader.Set("Authorization", "Bearer "+plainToken("8", time.Hour, "**"))
	open(t, r.URL, known).Expect("hello")
	if hits(t, registry, "unauthenticated") > 0 {
		t.Error("somebody had to leave for one with a token in the handshake")
	}
	late := open(t, r.URL, from("192.0.2.2"))
	if took := time.Since(began); took < 800*time.Millisecond || took > 10*time.Second {
		t.Errorf("it came in after %v", took)
	}
	late.Auth(plainToken("8", time.Hour, "**"))
	ends := make(chan websocket.StatusCode, seats)
	for _, c := range idle {
		go func() { // ends with its connection
			_, err := c.Read(time.Minute)
			ends <- websocket.CloseStatus(err)
		}()
	}
	if code := <-ends; code != 4400 {
		t.Errorf("one of those that said nothing was closed with %d", code)
	}
	if hits(t, registry, "unauthenticated") != 1 {
		t.Error("the metric does not say so")
	}

	const more = 3 * seats
	answers := make(chan int, more)
	for range more {
		go func() { // ends with the answer
			_, resp, _ := testkit.Open(t, r.URL, from("192.0.2.66"))
			if resp != nil {
				answers <- resp.StatusCode
				return
			}
			answers <- 0
		}()
	}
	testkit.Eventually(t, 10*time.Second, func() bool { return gauge(t, registry, "unauthenticated") > seats }, "some wait")
	r.stop()
	away := 0
	for range more {
		select {
		case status := <-answers:
			if status == http.StatusServiceUnavailable {
				away++
			}
		case <-time.After(5 * time.Second):
			t.Fatal("at shutdown, those at the door go on waiting")
		}
	}
	if away == 0 {
		t.Error("at shutdown, nobody at the door was told")
	}
}

// gauge is the value of a metric without labels.
func gauge(t *testing.T, registry *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "commitcast_broadcaster_"+name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}
