package main

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

// dummyReport says where it listens.
type dummyReport struct{ Addr string }

// dummyMain is the control: it says yes to every handshake, drops what it is sent, and closes after as long as a broadcaster
// waits for a token. So attackers cost the machine what they cost, and nobody else.
func dummyMain() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return
	}
	json.NewEncoder(os.Stdout).Encode(dummyReport{l.Addr().String()})
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() { // ends after five seconds
			defer c.Close()
			c.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := http.ReadRequest(bufio.NewReaderSize(c, 1<<10)); err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
			io.Copy(io.Discard, c)
		}()
	}
}
