package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/commitcast/commitcast/wire"
)

// socket is a WebSocket client as cheap as can be, so that what is measured is the server.
type socket struct {
	conn net.Conn
	r    *bufio.Reader
	buf  []byte
}

// refused is a handshake that was answered with another status than 101.
type refused int

func (r refused) Error() string { return fmt.Sprint("refused with ", int(r)) }

// closed is the code of a close frame.
type closed int

func (c closed) Error() string { return fmt.Sprint("closed with ", int(c)) }

// dial connects as a proxy does for a client at an address, with a token in the header; "" brings none. It does so from one of
// some addresses of this machine, since one has too few ports.
func dial(addr, token string, from int, client string) (*socket, error) {
	dialer := net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+from%200))}}
	conn, err := dialer.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	c := &socket{conn: conn, r: bufio.NewReaderSize(conn, 4<<10)}
	if token != "" {
		token = "Authorization: Bearer " + token + "\r\n"
	}
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(conn, "GET /v1/ws HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: %s\r\nX-Forwarded-For: %s\r\n%s\r\n", addr, wire.Protocol, client, token)
	resp, err := http.ReadResponse(c.r, nil)
	if err == nil && resp.StatusCode != http.StatusSwitchingProtocols {
		err = refused(resp.StatusCode)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	conn.SetDeadline(time.Time{})
	return c, nil
}

// send sends a text frame.
func (c *socket) send(p []byte) error { _, err := c.conn.Write(appendFrame(nil, 0x81, p)); return err }

// appendFrame appends a frame as a client must send it, with the mask 0.
func appendFrame(dst []byte, op byte, p []byte) []byte {
	if len(p) < 126 {
		dst = append(dst, op, 0x80|byte(len(p)))
	} else {
		dst = append(dst, op, 0x80|126, byte(len(p)>>8), byte(len(p)))
	}
	return append(append(dst, 0, 0, 0, 0), p...)
}

// read reads one text message, valid until the next. The end of the connection is a closed, if it says so.
func (c *socket) read() ([]byte, error) {
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
		if n > 1<<20 {
			return nil, fmt.Errorf("a frame of %d bytes", n)
		}
		if uint64(cap(c.buf)) < n {
			c.buf = make([]byte, n)
		}
		p := c.buf[:n]
		if _, err := io.ReadFull(c.r, p); err != nil {
			return nil, err
		}
		switch {
		case op == 1:
			return p, nil
		case op == 8 && n >= 2:
			return nil, closed(binary.BigEndian.Uint16(p))
		}
	}
}
