package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/commitcast/commitcast/wire"
)

// The swarm is the generator's side of a fan-out: many WebSocket clients in a process of their own, as cheap as they
// can be, so that what is measured is the server. Each checks that offsets are contiguous and takes the latency from
// the time that stands in the event ("t", Unix nanoseconds: when it was meant to be sent).

// swarmOrder is what the parent asks for, one JSON line on standard input.
type swarmOrder struct {
	Addr    string `json:"addr"`
	Clients int    `json:"clients"`
	Topic   string `json:"topic"`
	Topics  int    `json:"topics"` // more than 0: clients are spread over so many, whose names begin with Topic
	After   string `json:"after"`
	Events  int64  `json:"events"`  // each client ends at this offset
	Stalled int    `json:"stalled"` // the first so many clients subscribe and never read
	// Sample keeps one latency in so many: 0 or 1 keeps all.
	Sample int `json:"sample"`
}

// topic is which one a client follows.
func (o swarmOrder) topic(client int) string {
	if o.Topics == 0 {
		return o.Topic
	}
	return fmt.Sprint(o.Topic, ":", client%o.Topics)
}

// swarmDials is how many clients of a swarm connect at the same time. With few, a mass reconnect would measure how long one
// client takes, not what the server can do.
const swarmDials = 256

// swarmStop ends a swarm before its last event.
type swarmStop struct {
	Stop bool `json:"stop"`
}

// swarmReport is one line on standard output: Ready when all clients are subscribed, then Progress about every 20 ms,
// then one that is Done.
type swarmReport struct {
	Ready     bool    `json:"ready,omitempty"`
	Slowest   int64   `json:"slowest,omitempty"` // the lowest offset of any client that reads
	Done      bool    `json:"done,omitempty"`
	Error     string  `json:"error,omitempty"`
	Events    int64   `json:"events,omitempty"`   // received, summed over clients
	Messages  int64   `json:"messages,omitempty"` // WebSocket messages, summed
	Received  int64   `json:"received,omitempty"` // bytes, of frames of WebSocket
	Latencies []int64 `json:"latencies,omitempty"`
	FirstNS   int64   `json:"first_ns,omitempty"`
	LastNS    int64   `json:"last_ns,omitempty"`
	CPU       float64 `json:"cpu,omitempty"` // seconds of this process
}

type swarmClient struct {
	conn   net.Conn
	bytes  atomic.Int64
	r      *bufio.Reader
	at     atomic.Int64
	events int64
	msgs   int64
	lat    []int64
}

func swarmMain() {
	var order swarmOrder
	in := json.NewDecoder(os.Stdin)
	if err := in.Decode(&order); err != nil {
		fatal(err)
	}
	out := json.NewEncoder(os.Stdout)
	stopped, over := make(chan struct{}), make(chan struct{})
	go func() { // ends with standard input
		defer close(over)
		var stop swarmStop
		if in.Decode(&stop) == nil && stop.Stop {
			close(stopped)
			in.Decode(&stop)
		}
	}()
	if err := swarm(order, stopped, over, out); err != nil {
		out.Encode(swarmReport{Done: true, Error: err.Error()})
		os.Exit(1)
	}
}

// swarm connects, reads and reports; its connections stay open until over, so that a server that is measured then has them.
func swarm(order swarmOrder, stopped, over <-chan struct{}, out *json.Encoder) error {
	clients := make([]*swarmClient, order.Clients)
	var wg sync.WaitGroup
	dials := make(chan struct{}, swarmDials)
	errs := make(chan error, order.Clients)
	for i := range clients {
		wg.Add(1)
		go func() { // ends when connected
			defer wg.Done()
			dials <- struct{}{}
			defer func() { <-dials }()
			c, err := swarmDial(order, order.topic(i))
			if err != nil {
				errs <- err
				return
			}
			clients[i] = c
		}()
	}
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
	}
	out.Encode(swarmReport{Ready: true})
	began := time.Now()
	var first, last atomic.Int64
	done := make(chan struct{})
	for i, c := range clients {
		if i < order.Stalled {
			continue
		}
		wg.Add(1)
		go func() { // ends at the last event
			defer wg.Done()
			if err := c.run(order, &first); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				errs <- fmt.Errorf("client %d at %d: %w", i, c.at.Load(), err)
			}
			last.Store(time.Now().UnixNano())
		}()
	}
	go func() { wg.Wait(); close(done) }()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-stopped:
			stopped = nil
			for _, c := range clients {
				c.conn.SetReadDeadline(time.Unix(1, 0))
			}
		case err := <-errs:
			return err
		case <-ticker.C:
			slowest, received := int64(1<<62), int64(0)
			for _, c := range clients[order.Stalled:] {
				slowest, received = min(slowest, c.at.Load()), received+c.bytes.Load()
			}
			out.Encode(swarmReport{Slowest: slowest, Received: received})
			if time.Since(began) > 3*time.Minute {
				return fmt.Errorf("stuck at %d of %d", slowest, order.Events)
			}
		}
	}
	report := swarmReport{Done: true, FirstNS: first.Load(), LastNS: last.Load(), CPU: cpuSeconds()}
	for _, c := range clients {
		report.Events += c.events
		report.Messages += c.msgs
		report.Received += c.bytes.Load()
		report.Latencies = append(report.Latencies, c.lat...)
	}
	if err := out.Encode(report); err != nil {
		return err
	}
	<-over
	for _, c := range clients {
		c.conn.Close()
	}
	return nil
}

// swarmDial shakes hands by hand and subscribes; it returns when "subscribed" has come. A server that speaks no
// WebSocket (the limit program) sends its frames at once, after one line.
func swarmDial(order swarmOrder, topic string) (*swarmClient, error) {
	conn, err := net.DialTimeout("tcp", order.Addr, 10*time.Second)
	if err != nil {
		return nil, err
	}
	c := &swarmClient{conn: conn, r: bufio.NewReaderSize(conn, 16<<10)}
	fmt.Fprintf(conn, "GET /v1/ws HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: %s\r\n\r\n", order.Addr, wire.Protocol)
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, fmt.Errorf("upgrade: %s", resp.Status)
	}
	after := ""
	if order.After != "" {
		after = fmt.Sprintf(`,"after":%q`, order.After)
	}
	if err := writeMasked(conn, fmt.Appendf(nil, `{"op":"subscribe","id":1,"topic":%q%s}`, topic, after)); err != nil {
		return nil, err
	}
	for {
		conn.SetReadDeadline(time.Now().Add(30 * time.Second))
		message, err := c.read(nil)
		if err != nil {
			return nil, err
		}
		for line := range wire.Lines(message) {
			m, err := wire.ParseMessage(line)
			if err != nil {
				return nil, err
			}
			switch m.Op {
			case "subscribed":
				conn.SetReadDeadline(time.Time{})
				c.at.Store(m.After)
				return c, c.take(order, message[bytes.Index(message, line)+len(line):], new(atomic.Int64), time.Now())
			case "hello", "heartbeat":
			default:
				return nil, fmt.Errorf("instead of subscribed: %s", line)
			}
		}
	}
}

func (c *swarmClient) run(order swarmOrder, first *atomic.Int64) error {
	buf := make([]byte, 0, 8<<10)
	for c.at.Load() < order.Events {
		message, err := c.read(buf)
		if err != nil {
			return err
		}
		buf = message
		if err := c.take(order, message, first, time.Now()); err != nil {
			return err
		}
	}
	return nil
}

var offsetField, timeField = []byte(`"offset":`), []byte(`"t":`)

// take counts the events of a message.
func (c *swarmClient) take(order swarmOrder, message []byte, first *atomic.Int64, now time.Time) error {
	if first.Load() == 0 {
		first.CompareAndSwap(0, now.UnixNano())
	}
	c.msgs++
	for len(message) > 0 {
		line := message
		if i := bytes.IndexByte(message, '\n'); i >= 0 {
			line, message = message[:i], message[i+1:]
		} else {
			message = nil
		}
		i := bytes.Index(line, offsetField)
		if i < 0 {
			if bytes.Contains(line, []byte(`"op":"heartbeat"`)) || len(line) == 0 {
				continue
			}
			return fmt.Errorf("unexpected %s", line)
		}
		offset := integer(line[i+len(offsetField):])
		if at := c.at.Load(); offset != at+1 {
			return fmt.Errorf("offset %d after %d", offset, at)
		}
		c.at.Store(offset)
		c.events++
		if order.Sample > 1 && offset%int64(order.Sample) != 0 {
			continue
		}
		if j := bytes.Index(line[i:], timeField); j >= 0 {
			c.lat = append(c.lat, now.UnixNano()-integer(line[i+j+len(timeField):]))
		}
	}
	return nil
}

func integer(b []byte) (n int64) {
	for _, d := range b {
		if d < '0' || d > '9' {
			break
		}
		n = n*10 + int64(d-'0')
	}
	return n
}

// read reads one unmasked, unfragmented message into buf.
func (c *swarmClient) read(buf []byte) ([]byte, error) {
	var h [8]byte
	for {
		if _, err := io.ReadFull(c.r, h[:2]); err != nil {
			return nil, err
		}
		op, n := h[0]&0xf, uint64(h[1])
		switch n {
		case 126:
			if _, err := io.ReadFull(c.r, h[:2]); err != nil {
				return nil, err
			}
			n = uint64(binary.BigEndian.Uint16(h[:2]))
		case 127:
			if _, err := io.ReadFull(c.r, h[:8]); err != nil {
				return nil, err
			}
			n = binary.BigEndian.Uint64(h[:8])
		}
		if uint64(cap(buf)) < n {
			buf = make([]byte, n)
		}
		buf = buf[:n]
		if _, err := io.ReadFull(c.r, buf); err != nil {
			return nil, err
		}
		c.bytes.Add(int64(n) + 2)
		switch op {
		case 1:
			return buf, nil
		case 8:
			return nil, fmt.Errorf("closed: %s", strings.TrimSpace(string(buf)))
		}
	}
}

// writeMasked sends a text frame as a client must, with the mask 0.
func writeMasked(w io.Writer, p []byte) error {
	b := []byte{0x81}
	if len(p) < 126 {
		b = append(b, 0x80|byte(len(p)))
	} else {
		b = append(b, 0x80|126, byte(len(p)>>8), byte(len(p)))
	}
	b = append(b, 0, 0, 0, 0)
	_, err := w.Write(append(b, p...))
	return err
}
