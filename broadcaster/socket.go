package broadcaster

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coder/websocket"

	"github.com/commitcast/commitcast/wire"
)

// headerRoom is what a WebSocket header of a server takes at most: 2 bytes and a length of 8. Messages are built
// behind that much room, so that header and payload leave in one write.
const headerRoom = 10

// socketBuffer is the kernel's write buffer of a connection, in bytes. Small, so that a client that stopped reading
// is noticed after little: the default took 3.8 MB before a write blocked.
const socketBuffer = 64 << 10

// receiveBuffer is what the kernel keeps of what a client has sent and nobody has read, in bytes; it takes twice that. More than
// a frame, so that no client that means well waits; little, since one that is read slowly fills it.
const receiveBuffer = 16 << 10

// readBuffer and writeBuffer are those of the library, in bytes: of requests, which are small, and of control frames, which
// must fit whole (125 and a header). net/http gives 4 KiB for each, most of what an idle connection takes.
const readBuffer, writeBuffer = 1 << 10, 256

// socket is one WebSocket connection. coder/websocket shakes hands, reads, and answers control frames; text messages
// are written here, straight to the connection, since a message is finished bytes for many clients and needs nothing
// but a header in front. Both hold meter.writing for a whole frame.
type socket struct {
	ws    *websocket.Conn
	conn  net.Conn
	raw   syscall.RawConn // of conn; nil: it can only be written to by waiting
	meter *meter
}

var errStalled = errors.New("write made no progress")

// accept upgrades a request. It has answered the client when it fails.
// The page's origin has been checked: the library does not look at its scheme.
func accept(w http.ResponseWriter, r *http.Request, pings *pings) (*socket, error) {
	meter := &meter{}
	meter.message()
	capture := &hijackCapture{ResponseWriter: w, meter: meter}
	// It must not hold on to capture, and so to all that net/http has for the request: 10 KiB.
	pong := func(ctx context.Context, p []byte) bool {
		meter.forgive(p)
		return pings.wait(ctx) == nil
	}
	ws, err := websocket.Accept(capture, r, &websocket.AcceptOptions{
		Subprotocols:       []string{wire.Protocol},
		InsecureSkipVerify: true,
		CompressionMode:    websocket.CompressionDisabled,
		OnPingReceived:     pong,
		OnPongReceived:     func(ctx context.Context, p []byte) { pong(ctx, p) },
	})
	if err != nil {
		if capture.refused != 0 { // said here: the library quotes what it did not like, which may be a token
			problem(w, capture.refused, wire.CodeBadRequest, "this is not the handshake of a WebSocket, version 13, with GET over HTTP/1.1")
		}
		return nil, err
	}
	ws.SetReadLimit(wire.MaxClientFrame)
	if tcp := tcpBelow(capture.conn); tcp != nil {
		tcp.SetWriteBuffer(socketBuffer)
		tcp.SetReadBuffer(receiveBuffer)
		tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3})
	}
	return &socket{ws, capture.conn, rawBelow(capture.conn), meter}, nil
}

// rawBelow is what a connection can be written to without waiting; nil if there is nothing. That it says so itself matters: what is below
// TLS must not be written to.
func rawBelow(c net.Conn) syscall.RawConn {
	if c, ok := c.(syscall.Conn); ok && canWriteOnce {
		if raw, err := c.SyscallConn(); err == nil {
			return raw
		}
	}
	return nil
}

// tcpBelow is the TCP connection below TLS and listeners that count; nil if there is none.
func tcpBelow(c net.Conn) *net.TCPConn {
	for {
		switch below := c.(type) {
		case *net.TCPConn:
			return below
		case interface{ NetConn() net.Conn }:
			c = below.NetConn()
		default:
			return nil
		}
	}
}

// hijackCapture keeps the connection that a handler takes over, and has it read through a meter.
type hijackCapture struct {
	http.ResponseWriter
	conn    net.Conn
	meter   *meter
	refused int // status with which the library refuses the handshake; its text is dropped
}

// WriteHeader ends the connection of a handshake that is refused: the library would ask for another one.
func (h *hijackCapture) WriteHeader(status int) {
	if status != http.StatusSwitchingProtocols {
		h.Header().Set("Connection", "close")
		h.refused = status
		return
	}
	h.ResponseWriter.WriteHeader(status)
}

func (h *hijackCapture) Write(p []byte) (int, error) {
	if h.refused != 0 {
		return len(p), nil
	}
	return h.ResponseWriter.Write(p)
}

func (h *hijackCapture) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	h.conn, h.meter.Conn = conn, conn
	if err == nil {
		r := rw.Reader
		if r.Buffered() == 0 {
			r = bufio.NewReaderSize(conn, readBuffer)
		}
		rw = bufio.NewReadWriter(r, bufio.NewWriterSize(h.meter, writeBuffer))
	}
	return h.meter, rw, err // the library reads from what it is given here, also through rw
}

// meter bounds what a client sends within one message, in bytes on the wire. The library bounds what a message holds, but
// reads frames that hold nothing without end. And it keeps frames apart that are written.
type meter struct {
	net.Conn // the library's way
	left     atomic.Int64
	writing  sync.Mutex // held for a whole frame; waited for by nobody who must not wait for the client
}

// wireFactor is how many times its largest size a message may take on the wire: one frame for each byte takes 7 times.
const wireFactor = 8

var errFrames = errors.New("frames without end")

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	if m.left.Add(-int64(n)) < 0 {
		return 0, errFrames
	}
	return n, err
}

// message begins the next message.
func (m *meter) message() { m.left.Store(wireFactor * wire.MaxClientFrame) }

// forgive takes a ping or a pong out of the count, which are counted by themselves.
func (m *meter) forgive(payload []byte) { m.left.Add(int64(6 + len(payload))) } // with header and mask

// exceeded reports whether the client has sent too much.
func (m *meter) exceeded() bool { return m.left.Load() < 0 }

// Write is the library's: pongs and close frames, each with one call.
func (m *meter) Write(p []byte) (int, error) {
	m.writing.Lock()
	defer m.writing.Unlock()
	return m.Conn.Write(p)
}

// textFrame makes p[headerRoom:] one text frame, its header in the room before it.
func textFrame(p []byte) []byte {
	n := len(p) - headerRoom
	var start int
	switch {
	case n < 126:
		start = headerRoom - 2
		p[start+1] = byte(n)
	case n < 1<<16:
		start = headerRoom - 4
		p[start+1] = 126
		binary.BigEndian.PutUint16(p[start+2:], uint16(n))
	default:
		start = headerRoom - 10
		p[start+1] = 127
		binary.BigEndian.PutUint64(p[start+2:], uint64(n))
	}
	p[start] = 0x81 // final frame, text
	return p[start:]
}

// writeText sends p[headerRoom:] as one text message.
func (s *socket) writeText(p []byte, timeout time.Duration) error {
	return s.finish(textFrame(p), false, timeout)
}

// tryText is writeText without waiting, neither for the client nor for whoever writes to it: rest is what is left of the frame. held: the
// connection is kept for it, so that no other frame comes into this one; finish lets go. The connection has a raw one.
func (s *socket) tryText(p []byte, with *attempt) (rest []byte, held bool) {
	frame := textFrame(p)
	if !s.meter.writing.TryLock() {
		return frame, false
	}
	if rest = frame[with.do(s.raw, frame):]; len(rest) > 0 {
		return rest, true
	}
	s.meter.writing.Unlock()
	return nil, false
}

// finish writes what is left of a frame. held: the connection is.
func (s *socket) finish(rest []byte, held bool, timeout time.Duration) error {
	if !held {
		s.meter.writing.Lock()
	}
	defer s.meter.writing.Unlock()
	for len(rest) > 0 {
		if err := s.conn.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
			return err
		}
		n, err := s.conn.Write(rest)
		rest = rest[n:]
		if err != nil && !(n > 0 && errors.Is(err, os.ErrDeadlineExceeded)) {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return fmt.Errorf("%w for %v", errStalled, timeout)
			}
			return err
		}
	}
	// The library bounds its own frames itself: the deadline of a message that has left long ago must not fail them.
	return s.conn.SetWriteDeadline(time.Time{})
}

// attempt is one call of write. It is kept, with its function made once: otherwise each would allocate.
type attempt struct {
	call  func(fd uintptr) bool
	frame []byte
	n     int
}

// do writes what the kernel takes at once. Errors are for the write that waits, which meets them, too.
func (a *attempt) do(to syscall.RawConn, frame []byte) int {
	a.frame, a.n = frame, 0
	_ = to.Write(a.call)
	a.frame = nil
	return a.n
}

// write is never called again for the same attempt: it says that it is done even if the socket takes nothing.
func (a *attempt) write(fd uintptr) bool {
	a.n = writeOnce(fd, a.frame)
	return true
}

// close says goodbye and closes; it waits for the client's answer for some seconds. closeNow does not.
func (s *socket) close(c wire.CloseCode) { s.ws.Close(websocket.StatusCode(c.Code), c.Reason) }
func (s *socket) closeNow()              { s.ws.CloseNow() }

// buffers are where messages are assembled; one is held only while a flusher runs.
var buffers = sync.Pool{New: func() any { b := make([]byte, headerRoom, 4<<10); return &b }}

// maxKeptBuffer keeps a rare large message from pinning its buffer in the pool.
const maxKeptBuffer = 128 << 10

func putBuffer(b *[]byte) {
	if cap(*b) <= maxKeptBuffer {
		*b = (*b)[:headerRoom]
		buffers.Put(b)
	}
}
