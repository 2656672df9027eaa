package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/commitcast/commitcast/wire"
)

// honestOrder is what the honest are to do: each connects with its token and follows one topic.
type honestOrder struct {
	Addr            string
	Clients, Topics int
	Tokens          []string
}

// honestAsk asks what was received since the last time.
type honestAsk struct{}

// honestReport is, first, that all are subscribed; then which events came when, each once for each client that follows it.
type honestReport struct {
	N, At []int64
	Error string
}

// honestMain is the process of the honest clients.
func honestMain() {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	var order honestOrder
	if in.Decode(&order) != nil {
		return
	}
	var mu sync.Mutex
	var got honestReport
	fail := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		if got.Error == "" {
			got.Error = fmt.Sprintf(format, args...)
		}
	}
	var subscribed sync.WaitGroup
	dials := make(chan struct{}, 16)
	for i := range order.Clients {
		subscribed.Add(1)
		go func() { // ends with its connection, or with the process
			once := sync.OnceFunc(subscribed.Done)
			defer once()
			dials <- struct{}{}
			c, err := dial(order.Addr, order.Tokens[i], i, fmt.Sprintf("10.0.%d.%d", i/250, i%250))
			<-dials
			if err != nil {
				fail("client %d: %v", i, err)
				return
			}
			topic := fmt.Sprint("live:", i%order.Topics)
			if err := c.send(fmt.Appendf(nil, `{"op":"subscribe","id":1,"topic":%q}`, topic)); err != nil {
				fail("client %d: %v", i, err)
				return
			}
			var at int64
			for {
				message, err := c.read()
				now := time.Now().UnixNano()
				if err != nil {
					fail("client %d at %d: %v", i, at, err)
					return
				}
				for line := range wire.Lines(message) {
					m, err := wire.ParseMessage(line)
					switch {
					case err != nil, m.Op == "error", m.Op == "reset":
						fail("client %d at %d: %s %v", i, at, line, err)
					case m.Op == "subscribed":
						at = m.After
						once()
					case m.Op == "event":
						if m.Offset != at+1 {
							fail("client %d: offset %d after %d", i, m.Offset, at)
						}
						at = m.Offset
						n := int64(0)
						for _, d := range m.Data[bytes.IndexByte(m.Data, ':')+1:] {
							if d >= '0' && d <= '9' {
								n = n*10 + int64(d-'0')
							}
						}
						mu.Lock()
						got.N, got.At = append(got.N, n), append(got.At, now)
						mu.Unlock()
					}
				}
			}
		}()
	}
	subscribed.Wait()
	for {
		mu.Lock()
		report := got
		got.N, got.At = nil, nil
		mu.Unlock()
		if out.Encode(report) != nil || in.Decode(new(honestAsk)) != nil {
			return
		}
	}
}
