package testkit

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/commitcast/commitcast/wire"
)

// Client is a WebSocket client that shows every frame as it came: for tests of the server's side.
type Client struct {
	t       testing.TB
	WS      *websocket.Conn
	Hello   wire.Message
	pending []wire.Message
}

// Dial connects to a broadcaster ("ws://host:port", "http://…") and reads hello. It closes at the test's end.
func Dial(t testing.TB, url string) *Client {
	t.Helper()
	c, err := DialErr(t, url)
	if err != nil {
		t.Fatalf("dial %s: %v", url, err)
	}
	return c
}

// DialErr is Dial for tests in which it may fail.
func DialErr(t testing.TB, url string) (*Client, error) {
	c, _, err := Open(t, url, nil)
	if err != nil {
		return nil, err
	}
	if c.Hello, err = c.Read(10 * time.Second); err != nil {
		return nil, err
	}
	if c.Hello.Op != "hello" {
		return nil, fmt.Errorf("first frame is %q, not hello", c.Hello.Op)
	}
	return c, nil
}

// Open is Dial that does not wait for hello; options may be nil. The response is that of the handshake, if there was one.
func Open(t testing.TB, url string, options *websocket.DialOptions) (*Client, *http.Response, error) {
	url = "ws" + strings.TrimPrefix(strings.TrimPrefix(strings.TrimSuffix(url, "/"), "ws"), "http")
	if options == nil {
		options = &websocket.DialOptions{}
	}
	options.Subprotocols = append([]string{wire.Protocol}, options.Subprotocols...)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	ws, response, err := websocket.Dial(ctx, url+"/v1/ws", options)
	if err != nil {
		return nil, response, err
	}
	ws.SetReadLimit(64 << 20)
	t.Cleanup(func() { ws.CloseNow() })
	return &Client{t: t, WS: ws}, response, nil
}

// Auth sends a token and reads hello.
func (c *Client) Auth(token string) {
	c.t.Helper()
	c.Send(fmt.Sprintf(`{"op":"auth","token":%q}`, token))
	c.Hello = c.Expect("hello")
}

// ExpectClose reads until the connection has ended, and fails unless it ended with the code, within ten seconds of the
// last frame. It returns the reason.
func (c *Client) ExpectClose(code int) (reason string) {
	c.t.Helper()
	for {
		if _, err := c.Read(10 * time.Second); err != nil {
			var closed websocket.CloseError
			if errors.As(err, &closed); int(closed.Code) != code {
				c.t.Errorf("closed with %d %q (%v), want %d", closed.Code, closed.Reason, err, code)
			}
			return closed.Reason
		}
	}
}

// Send sends one text message as it is.
func (c *Client) Send(message string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := c.WS.Write(ctx, websocket.MessageText, []byte(message)); err != nil {
		c.t.Fatalf("send %.80s: %v", message, err)
	}
}

// Subscribe asks for a topic, from a cursor or, with "", from the head. It does not wait for the answer.
func (c *Client) Subscribe(id int, topic, after string) {
	c.t.Helper()
	if after != "" {
		after = fmt.Sprintf(`,"after":%q`, after)
	}
	c.Send(fmt.Sprintf(`{"op":"subscribe","id":%d,"topic":%q%s}`, id, topic, after))
}

// Read returns the next frame, or the error that ended the connection, or a timeout (which ends it, too).
func (c *Client) Read(timeout time.Duration) (wire.Message, error) {
	for len(c.pending) == 0 {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		typ, message, err := c.WS.Read(ctx)
		cancel()
		if err != nil {
			return wire.Message{}, err
		}
		if typ != websocket.MessageText {
			return wire.Message{}, errors.New("a binary message from the server")
		}
		for line := range wire.Lines(message) {
			m, err := wire.ParseMessage(line)
			if err != nil {
				return wire.Message{}, fmt.Errorf("%w in %.200s", err, line)
			}
			c.pending = append(c.pending, m)
		}
	}
	m := c.pending[0]
	c.pending = c.pending[1:]
	return m, nil
}

// Expect returns the next frame that is not a heartbeat, and fails unless it has the op, within ten seconds.
func (c *Client) Expect(op string) wire.Message {
	c.t.Helper()
	for {
		m, err := c.Read(10 * time.Second)
		if err != nil {
			c.t.Fatalf("waiting for %s: %v", op, err)
		}
		if m.Op == "heartbeat" && op != "heartbeat" {
			continue
		}
		if m.Op != op {
			c.t.Fatalf("waiting for %s: got %+v", op, m)
		}
		return m
	}
}

// ExpectEvents reads the events from…to of a topic, each once and in order, and nothing else but heartbeats.
func (c *Client) ExpectEvents(topic string, from, to int64) []wire.Message {
	c.t.Helper()
	var events []wire.Message
	for n := from; n <= to; n++ {
		m := c.Expect("event")
		if m.Topic != topic || m.Offset != n {
			c.t.Fatalf("waiting for %s offset %d: got %s offset %d", topic, n, m.Topic, m.Offset)
		}
		events = append(events, m)
	}
	return events
}
