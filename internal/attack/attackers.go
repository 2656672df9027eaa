package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// attackOrder is what attackers are to do, until they are told to stop or their input ends.
type attackOrder struct {
	Kind, Addr, Epoch string
	Scale             float64
	Past, Live        int
	Tokens            []string
}

// attackReport is what they have done.
type attackReport struct {
	Kind                          string
	Opened, Full, Refused, Frames int64
	Closes                        map[string]int64 // by close code; "cut" without one
	CPU                           float64          // seconds
}

// attackers of each kind: how many, how long each waits before it comes again, and what it does with a connection.
var kinds = []struct {
	name  string
	count int
	again time.Duration
	act   func(*attacker)
}{
	// Connections that say nothing, until they are closed: 1,000 new ones a second.
	{"idle", 5000, 100 * time.Millisecond, (*attacker).idle},
	// A quarter each: garbage without a token, pings, garbage with one, and subscribing and unsubscribing. 20 frames every 100 ms.
	{"flooders", 200, 500 * time.Millisecond, (*attacker).flood},
	// All of the past, again and again.
	{"bombers", 50, 250 * time.Millisecond, (*attacker).bomb},
	// All of the past and the live topics, and not a byte read.
	{"stalled", 50, 500 * time.Millisecond, (*attacker).stall},
}

// attacker is one of them, with one connection at a time.
type attacker struct {
	order  attackOrder
	number int
	stop   <-chan struct{}

	socket *socket
	report attackReport
}

// startAttackers starts a process for each kind.
func startAttackers(order attackOrder) (list []*child, err error) {
	for _, k := range kinds {
		c, err := startChild("attackers")
		if err == nil {
			list = append(list, c)
			order.Kind = k.name
			err = c.tell(order)
		}
		if err != nil {
			for _, c := range list {
				c.kill()
			}
			return nil, err
		}
	}
	return list, nil
}

// attackersMain is the process of one kind. It has the lowest priority: what it costs by being on the machine is not what is
// looked for.
func attackersMain() {
	syscall.Setpriority(syscall.PRIO_PROCESS, 0, 19)
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	var order attackOrder
	if in.Decode(&order) != nil {
		return
	}
	stop := make(chan struct{})
	total := attackReport{Kind: order.Kind, Closes: map[string]int64{}}
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, k := range kinds {
		if k.name != order.Kind {
			continue
		}
		n := max(1, int(order.Scale*float64(k.count)))
		for i := range n {
			all.Go(func() { // ends with stop
				a := &attacker{order: order, number: i, stop: stop, report: attackReport{Closes: map[string]int64{}}}
				a.pause(time.Duration(i) * 5 * time.Second / time.Duration(n)) // one after the other, as after 5 s they are closed
				for !a.stopped() {
					a.connect(k.name == "idle" || k.name == "flooders" && i%4 == 0, k.act)
					a.pause(k.again)
				}
				mu.Lock()
				defer mu.Unlock()
				total.Opened += a.report.Opened
				total.Full += a.report.Full
				total.Refused += a.report.Refused
				total.Frames += a.report.Frames
				for code, n := range a.report.Closes {
					total.Closes[code] += n
				}
			})
		}
	}
	in.Decode(new(struct{}))
	close(stop)
	all.Wait()
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	total.CPU = float64(u.Utime.Sec+u.Stime.Sec) + float64(u.Utime.Usec+u.Stime.Usec)/1e6
	out.Encode(total)
}

func (a *attacker) stopped() bool {
	select {
	case <-a.stop:
		return true
	default:
		return false
	}
}

func (a *attacker) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-a.stop:
	}
}

// connect opens one connection, and acts on it until that ends.
func (a *attacker) connect(nameless bool, act func(*attacker)) {
	token := a.order.Tokens[a.number%len(a.order.Tokens)]
	if nameless {
		token = ""
	}
	var err error
	a.report.Opened++
	if a.socket, err = dial(a.order.Addr, token, a.number, fmt.Sprintf("203.0.113.%d", a.number%200)); err != nil {
		if status, ok := errors.AsType[refused](err); ok && status == 503 {
			a.report.Full++
		} else {
			a.report.Refused++
		}
		return
	}
	defer a.socket.conn.Close()
	gone := make(chan struct{})
	defer close(gone)
	go func() { // ends with the connection
		select {
		case <-a.stop:
			a.socket.conn.Close()
		case <-gone:
		}
	}()
	act(a)
}

// drain reads until the connection ends, and notes how.
func (a *attacker) drain() {
	for {
		if _, err := a.socket.read(); err != nil {
			code, ok := errors.AsType[closed](err)
			switch {
			case a.stopped():
			case ok:
				a.report.Closes[strconv.Itoa(int(code))]++
			default:
				a.report.Closes["cut"]++
			}
			return
		}
	}
}

func (a *attacker) idle() { a.drain() }

// flood sends 20 frames every 100 ms.
func (a *attacker) flood() {
	var batch []byte
	for i := range 20 {
		switch a.number % 4 {
		case 1:
			batch = appendFrame(batch, 0x89, []byte("ping"))
		case 0, 2:
			batch = appendFrame(batch, 0x81, bytes.Repeat([]byte{'['}, 200))
		case 3:
			op := []string{"subscribe", "unsubscribe"}[i%2]
			batch = appendFrame(batch, 0x81, fmt.Appendf(nil, `{"op":%q,"topic":"live:%d"}`, op, (a.number+i/2)%a.order.Live))
		}
	}
	ended := make(chan struct{})
	go func() { // waited for below
		defer close(ended)
		a.drain()
	}()
	for sent := true; sent; {
		_, err := a.socket.conn.Write(batch)
		sent = err == nil
		a.report.Frames += 20
		timer := time.NewTimer(100 * time.Millisecond)
		select {
		case <-timer.C:
		case <-ended:
			sent = false
		}
		timer.Stop()
	}
	a.socket.conn.SetReadDeadline(time.Now().Add(time.Second))
	<-ended
}

// bomb asks for all of the past at once, and leaves after two seconds.
func (a *attacker) bomb() {
	a.socket.conn.SetDeadline(time.Now().Add(2 * time.Second))
	if a.subscribe() == nil {
		a.drain()
	}
}

// stall asks for all there is, and reads nothing: it notices the end by a write that fails.
func (a *attacker) stall() {
	if a.subscribe() != nil {
		return
	}
	for i := range a.order.Live {
		if a.socket.send(fmt.Appendf(nil, `{"op":"subscribe","topic":"live:%d"}`, i)) != nil {
			return
		}
		a.report.Frames++
	}
	for !a.stopped() {
		a.pause(time.Second)
		if a.socket.send([]byte(`{"op":"unsubscribe","topic":"live:0"}`)) != nil {
			a.report.Closes["cut"]++
			return
		}
		a.report.Frames++
	}
}

func (a *attacker) subscribe() error {
	var all []byte
	for i := 1; i <= a.order.Past; i++ {
		all = appendFrame(all, 0x81, fmt.Appendf(nil, `{"op":"subscribe","topic":"past:%d","after":"%s:0"}`, i, a.order.Epoch))
		a.report.Frames++
	}
	_, err := a.socket.conn.Write(all)
	return err
}
