package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

// The server's side of a fan-out, in a process of its own: a broadcaster, or what it is compared with.
const (
	kindCommitcast = "commitcast" // package broadcaster on the in-process stream
	kindLimit      = "limit"      // bare socket writes of a finished frame, one after the other: no log, no cursors
	kindQueues     = "queues"     // one queue and one goroutine for each connection, one message an event
)

// fanOrder is what the parent asks for, one JSON line on standard input; progress lines follow.
type fanOrder struct {
	Kind   string  `json:"kind"`
	Topic  string  `json:"topic"`
	Events int64   `json:"events"`
	Rate   float64 `json:"rate"`   // events a second, open loop; 0: as fast as the slowest client follows
	Window int64   `json:"window"` // with Rate 0: events that may be on their way
	Bytes  int     `json:"bytes"`  // of padding in each event
}

type fanProgress struct {
	Start   bool  `json:"start,omitempty"`
	Slowest int64 `json:"slowest,omitempty"`
	Quit    bool  `json:"quit,omitempty"`
}

type fanReport struct {
	Addr string  `json:"addr,omitempty"`
	CPU  float64 `json:"cpu,omitempty"` // seconds, from start to quit
	RSS  int64   `json:"rss,omitempty"` // bytes, at quit

	// Of the RSS: the heap in use after a collection, and the stacks of goroutines.
	Heap   int64 `json:"heap,omitempty"`
	Stacks int64 `json:"stacks,omitempty"`
}

func fanserverMain() {
	in := json.NewDecoder(os.Stdin)
	var order fanOrder
	if err := in.Decode(&order); err != nil {
		fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fatal(err)
	}
	send := map[string]func(net.Listener, fanOrder) func(wire.Event){
		kindCommitcast: fanCommitcast, kindLimit: fanLimit, kindQueues: fanQueues}[order.Kind](l, order)
	out := json.NewEncoder(os.Stdout)
	out.Encode(fanReport{Addr: l.Addr().String()})

	var slowest atomic.Int64
	start, quit := make(chan struct{}), make(chan struct{})
	go func() { // ends at quit
		defer close(quit)
		for {
			var p fanProgress
			if err := in.Decode(&p); err != nil || p.Quit {
				return
			}
			if p.Start {
				close(start)
			}
			slowest.Store(max(slowest.Load(), p.Slowest))
		}
	}()
	<-start
	cpu := cpuSeconds()
	padding := make([]byte, order.Bytes)
	for i := range padding {
		padding[i] = 'x'
	}
	began := time.Now()
	for n := int64(1); n <= order.Events; n++ {
		intended := time.Now()
		if order.Rate > 0 {
			intended = began.Add(time.Duration(float64(n) / order.Rate * float64(time.Second)))
			time.Sleep(time.Until(intended))
		} else {
			for n-slowest.Load() > order.Window {
				time.Sleep(200 * time.Microsecond)
			}
		}
		send(wire.Event{Topic: order.Topic, Epoch: benchEpoch, Offset: n, ID: n, Type: "bench", Key: "k", At: intended,
			Data: fmt.Appendf(nil, `{"t":%d,"pad":%q}`, intended.UnixNano(), padding)})
	}
	<-quit
	report := fanReport{CPU: cpuSeconds() - cpu, RSS: rss(os.Getpid())}
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	report.Heap, report.Stacks = int64(m.HeapAlloc), int64(m.StackInuse)
	heapProfile("fanserver")
	out.Encode(report)
}

const benchEpoch = "1-beefbeef"

// benchJournal is a database that knows only how much was sent: the fan-out is measured without one.
type benchJournal struct{ head *atomic.Int64 }

func (j benchJournal) Positions(_ context.Context, q []wire.Question) (string, []wire.Position, error) {
	p := make([]wire.Position, len(q))
	for i := range p {
		p[i].Head = j.head.Load()
	}
	return benchEpoch, p, nil
}

func (j benchJournal) Seqs(context.Context) (string, [wire.Partitions]int64, error) {
	return benchEpoch, [wire.Partitions]int64{}, nil
}

func (j benchJournal) Range(context.Context, string, int64, int) (string, [][]byte, error) {
	return benchEpoch, nil, nil
}

func (j benchJournal) Ranges(_ context.Context, after []wire.Question) (string, [][][]byte, error) {
	return benchEpoch, make([][][]byte, len(after)), nil
}

func fanCommitcast(l net.Listener, order fanOrder) func(wire.Event) {
	var head atomic.Int64
	s := stream.NewMemory(stream.MemoryConfig{})
	b, err := broadcaster.New(benchJournal{&head}, s, broadcaster.Config{Node: "bench", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		fatal(err)
	}
	go b.Run(context.Background()) // ends with the process
	go http.Serve(l, b.Handler())  // ends with the process
	ch := stream.Channel{Epoch: benchEpoch, Partition: wire.Partition(order.Topic), Topic: order.Topic}
	for b.Ready() != nil {
		time.Sleep(time.Millisecond)
	}
	return func(e wire.Event) {
		frame, err := wire.AppendEvent(nil, &e)
		if err != nil {
			fatal(err)
		}
		head.Store(e.Offset)
		if _, err := s.Publish(context.Background(), []stream.Offer{{Run: stream.Run{Channel: ch, First: e.Offset, Frames: [][]byte{frame}}}}); err != nil {
			fatal(err)
		}
	}
}

// fanLimit writes each event to every socket, from as many goroutines as there are cores.
func fanLimit(l net.Listener, order fanOrder) func(wire.Event) {
	type lane struct {
		mu    sync.Mutex
		conns []net.Conn
		work  chan []byte
	}
	lanes := make([]*lane, runtime.GOMAXPROCS(0))
	for i := range lanes {
		ln := &lane{work: make(chan []byte, 1024)}
		lanes[i] = ln
		go func() { // ends with the process
			for frame := range ln.work {
				ln.mu.Lock()
				for _, c := range ln.conns {
					c.Write(frame)
				}
				ln.mu.Unlock()
			}
		}()
	}
	go func() { // ends with the process
		for i := 0; ; i++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			ln := lanes[i%len(lanes)]
			go func() { // ends when the client is subscribed
				if bareHandshake(c, order.Topic) == nil {
					ln.mu.Lock()
					ln.conns = append(ln.conns, c)
					ln.mu.Unlock()
				}
			}()
		}
	}()
	return func(e wire.Event) {
		frame, err := wire.AppendEvent(nil, &e)
		if err != nil {
			fatal(err)
		}
		finished := textFrame(frame)
		for _, ln := range lanes {
			ln.work <- finished
		}
	}
}

// bareHandshake speaks just enough WebSocket for the swarm.
func bareHandshake(c net.Conn, topic string) error {
	r := bufio.NewReader(c)
	if _, err := http.ReadRequest(r); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ICX+Yqv66kxgM0FcWaLWlFLwTAI=\r\n\r\n"); err != nil {
		return err
	}
	if _, err := r.ReadByte(); err != nil { // its request, whatever it is
		return err
	}
	_, err := c.Write(textFrame(wire.AppendSubscribed(nil, 1, topic, benchEpoch, 0, 0)))
	return err
}

func textFrame(p []byte) []byte {
	if len(p) < 126 {
		return append([]byte{0x81, byte(len(p))}, p...)
	}
	return append([]byte{0x81, 126, byte(len(p) >> 8), byte(len(p))}, p...)
}

// fanQueues is the usual broadcaster: a queue and a writer goroutine for each connection, a message for each event.
func fanQueues(l net.Listener, order fanOrder) func(wire.Event) {
	var mu sync.Mutex
	var queues []chan []byte
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // ends with the process
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{wire.Protocol}})
		if err != nil {
			return
		}
		ctx := context.Background()
		if _, _, err := c.Read(ctx); err != nil {
			return
		}
		queue := make(chan []byte, 8192)
		mu.Lock()
		queues = append(queues, queue)
		mu.Unlock()
		c.Write(ctx, websocket.MessageText, wire.AppendSubscribed(nil, 1, order.Topic, benchEpoch, 0, 0))
		for frame := range queue {
			if c.Write(ctx, websocket.MessageText, frame) != nil {
				return
			}
		}
	}))
	return func(e wire.Event) {
		frame, err := wire.AppendEvent(nil, &e)
		if err != nil {
			fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, q := range queues {
			q <- frame
		}
	}
}
