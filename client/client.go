package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/commitcast/commitcast/wire"
)

const (
	// retryBase and retryCap are the first and the longest pause before another attempt to connect.
	retryBase = 500 * time.Millisecond
	retryCap  = 30 * time.Second
	// stable is how long a good connection stands: after it, the next failure counts as the first.
	stable = 5 * time.Second
	// helloWithin is how long token, handshake and hello may take together.
	helloWithin = 10 * time.Second
	// writeWithin is how long a request may take to be written: longer means that nobody reads.
	writeWithin = 5 * time.Second
	// hintCap is the longest time that a server may ask to stay away.
	hintCap = 5 * time.Minute
	// overloadAttempt is the attempt that a connection counts as which ended with 1013.
	overloadAttempt = 4
	// minHeartbeat is the shortest heartbeat that is believed.
	minHeartbeat = 500 * time.Millisecond
	// readLimit is far more than a server sends in a message: one event of the largest size, and what is due before it.
	readLimit = 4 << 20
)

// Config says how a [Client] connects. The zero Config connects without a token.
type Config struct {
	// Token returns what is sent first on each connection; refused says that the server has refused the last one, and the
	// same again is final. nil: nothing is sent.
	Token func(ctx context.Context, refused bool) (string, error)

	// OnError receives every error that is being healed; those that are Final are returned by Run and Follow. It must not
	// block. Default: nobody does.
	OnError func(*Error)

	// OnConnection is called when a connection stands (true), and when it has ended (false). It must not block.
	OnConnection func(up bool)

	// HTTPClient makes connections. Default http.DefaultClient.
	HTTPClient *http.Client

	// Header is sent with the handshake.
	Header http.Header
}

// Client is one connection for any number of topics. Make one with [New], and call [Client.Run]. Safe for concurrent use.
type Client struct {
	url string
	cfg Config

	mu       sync.Mutex
	conn     *websocket.Conn // after hello
	gen      uint64          // of conn, from 1 on
	inboxes  map[string]*inbox
	requests map[int64]*inbox // that are not answered, of this connection
	left     map[string]bool  // topics given up in this connection: what still comes of them is no surprise
	said     map[Kind]bool    // kinds of bad frames that were reported in this connection
	lastID   int64
	failed   *Error
}

// New checks a URL of /v1/ws (ws:, wss:, http: or https:). Nothing is connected before Run.
func New(rawURL string, cfg Config) (*Client, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	if u.Host == "" || !strings.Contains(" ws wss http https ", " "+u.Scheme+" ") {
		return nil, fmt.Errorf("client: %q is not the URL of a broadcaster, such as wss://example.org/v1/ws", rawURL)
	}
	return &Client{url: u.String(), cfg: cfg, inboxes: map[string]*inbox{}}, nil
}

// Run connects, and connects again when the connection ends, until ctx ends, or until that would not help: the error is
// then an *[Error] that is Final. After that, the client is of no use.
func (c *Client) Run(ctx context.Context) error {
	var refused *string // the token that was refused
	for attempt := 0; ; attempt++ {
		end := c.connection(ctx, refused)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if end.err.Final {
			c.fail(end.err)
			return end.err
		}
		c.report(end.err)
		refused = end.refused
		if end.stood > stable {
			attempt = 0
		}
		if end.overload {
			attempt = max(attempt, overloadAttempt)
		}
		pause := end.notBefore
		if pause == 0 {
			pause = jitter(retryBase, attempt, retryCap)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// end is how a connection ended.
type end struct {
	err       *Error
	stood     time.Duration // since hello
	notBefore time.Duration // the server's word; 0: none
	refused   *string
	overload  bool
}

// connection is one connection, from its token to its end.
func (c *Client) connection(parent context.Context, refused *string) (e end) {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	alarm := time.AfterFunc(helloWithin, func() { cancel(errors.New("the server did not say hello")) })
	defer func() { alarm.Stop() }()
	lost := func(kind Kind, final bool, err error) end {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		e.err = &Error{Kind: kind, Final: final && ctx.Err() == nil, Err: err}
		return e
	}

	var token *string
	if c.cfg.Token != nil {
		text, err := c.cfg.Token(ctx, refused != nil)
		if err != nil {
			e.refused = refused
			return lost(KindToken, false, err)
		}
		if refused != nil && text == *refused {
			return lost(KindToken, true, errors.New("the server refused the token, and there is no other"))
		}
		token = &text
	}
	conn, response, err := websocket.Dial(ctx, c.url, &websocket.DialOptions{
		Subprotocols: []string{wire.Protocol}, HTTPClient: c.cfg.HTTPClient, HTTPHeader: c.cfg.Header,
	})
	if err != nil {
		final := false
		if response != nil {
			final = response.StatusCode >= 300 && !passing(response.StatusCode)
			e.notBefore = retryAfter(response)
		}
		return lost(KindConnection, final, err)
	}
	defer conn.CloseNow()
	conn.SetReadLimit(readLimit)
	if token != nil {
		if err := write(ctx, conn, wire.Request{Op: wire.OpAuth, Token: *token}); err != nil {
			return lost(KindConnection, false, err)
		}
	}

	var silence time.Duration // how long is too long; 0 before hello
	var since time.Time
	defer func() {
		if silence > 0 {
			e.stood = time.Since(since)
			c.down()
		}
	}()
	for {
		kind, message, err := conn.Read(ctx)
		if err != nil {
			code := int(websocket.CloseStatus(err))
			e.overload = code == wire.CloseOverload.Code
			if code == wire.CloseUnauthorized.Code {
				e.refused = token
				return lost(KindToken, token == nil, err)
			}
			final := false
			for _, known := range wire.CloseCodes {
				final = final || known.Code == code && !known.Reconnect
			}
			return lost(KindConnection, final, err)
		}
		if silence > 0 {
			alarm.Reset(silence)
		}
		if kind != websocket.MessageText {
			c.once(&Error{Kind: KindGarbage, Err: errors.New("the server sent a binary message")})
			continue
		}
		for line := range wire.Lines(message) {
			m, err := wire.ParseMessage(line)
			switch {
			case err != nil:
				c.once(&Error{Kind: KindGarbage, Err: fmt.Errorf("the server sent what is not a frame: %w: %.200s", err, line)})
			case m.Op == "hello" && silence == 0:
				if m.Protocol != "" && m.Protocol != wire.Protocol {
					return lost(KindConnection, true, fmt.Errorf("the server speaks %s, not %s", m.Protocol, wire.Protocol))
				}
				silence = 2 * max(time.Duration(m.HeartbeatMS)*time.Millisecond, minHeartbeat)
				since = time.Now()
				alarm.Stop()
				alarm = time.AfterFunc(silence, func() { cancel(errors.New("the server fell silent")) })
				c.up(conn)
			case m.Op == "reconnect":
				e.notBefore = max(min(time.Duration(m.InMS)*time.Millisecond, hintCap), 1)
			case silence > 0:
				c.once(c.dispatch(&m))
			}
		}
	}
}

// dispatch hands a frame to whom it is for. The error is about a frame that is for nobody.
func (c *Client) dispatch(m *wire.Message) *Error {
	it := item{id: m.ID, epoch: m.Epoch, head: m.Head, ms: m.InMS, code: m.Code, text: m.Message}
	c.mu.Lock()
	defer c.mu.Unlock()
	box := c.inboxes[m.Topic]
	switch m.Op {
	case "heartbeat":
		for name, box := range c.inboxes {
			head, ok := m.Heads[name]
			if !ok {
				head = -1
			}
			box.put(item{op: opHeartbeat, epoch: m.EpochOf(name), head: head})
		}
		return nil
	case "error":
		box = c.requests[m.ID]
		delete(c.requests, m.ID)
		if box == nil {
			return &Error{Kind: KindRefused, Err: &wire.Error{Code: m.Code, Message: m.Message}}
		}
		it.op = opRefused
	case "subscribed":
		delete(c.requests, m.ID)
		it.op = opSubscribed
	case "unsubscribed":
		delete(c.requests, m.ID)
		it.op = opUnsubscribed
	case "reset":
		it.op = opReset
	case "event":
		at, err := time.Parse(time.RFC3339Nano, m.At)
		if err != nil && !m.Skip {
			return &Error{Kind: KindGarbage, Err: fmt.Errorf("an event's time: %w", err)} // and a hole, which heals
		}
		it.op = opEvent
		it.event = &event{skip: m.Skip, conflated: m.Conflated, more: m.More, Event: wire.Event{
			Topic: m.Topic, Epoch: m.Epoch, Offset: m.Offset, ID: m.ID, Type: m.Type, Key: m.Key, At: at, Data: m.Data, Headers: m.Headers,
		}}
	default:
		return nil
	}
	if box != nil {
		box.put(it)
	} else if !c.left[m.Topic] {
		return &Error{Kind: KindTopic, Topic: m.Topic, Err: fmt.Errorf("the server sent %s, which nobody asked for", m.Op)}
	}
	return nil
}

// up begins a connection: requests may be sent.
func (c *Client) up(conn *websocket.Conn) {
	c.mu.Lock()
	c.conn = conn
	c.gen++
	c.requests, c.left, c.said = map[int64]*inbox{}, map[string]bool{}, map[Kind]bool{}
	for _, box := range c.inboxes {
		box.put(item{op: opUp, gen: c.gen})
	}
	c.mu.Unlock()
	if c.cfg.OnConnection != nil {
		c.cfg.OnConnection(true)
	}
}

func (c *Client) down() {
	c.mu.Lock()
	c.conn = nil
	for _, box := range c.inboxes {
		box.put(item{op: opDown})
	}
	c.mu.Unlock()
	if c.cfg.OnConnection != nil {
		c.cfg.OnConnection(false)
	}
}

// fail ends every Follow, now and later.
func (c *Client) fail(err *Error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed = err
	for _, box := range c.inboxes {
		box.put(item{op: opFailed, err: err})
	}
}

func (c *Client) register(name string) (*inbox, error) {
	if err := wire.CheckTopic(name); err != nil {
		return nil, &Error{KindTopic, name, true, err}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inboxes[name] != nil {
		return nil, &Error{KindTopic, name, true, errors.New("it is followed already by this client")}
	}
	box := newInbox()
	c.inboxes[name] = box
	switch {
	case c.failed != nil:
		box.put(item{op: opFailed, err: c.failed})
	case c.conn != nil:
		box.put(item{op: opUp, gen: c.gen})
	}
	return box, nil
}

func (c *Client) unregister(name string, box *inbox) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.inboxes, name)
	if c.left != nil {
		c.left[name] = true
	}
	for id, asked := range c.requests {
		if asked == box {
			c.requests[id] = newInbox() // its answer is no surprise
		}
	}
}

// request sends a request on the connection gen, if that is still the one, and returns its id.
func (c *Client) request(box *inbox, gen uint64, r wire.Request) int64 {
	c.mu.Lock()
	c.lastID++
	id, conn := c.lastID, c.conn
	if gen != c.gen {
		conn = nil
	}
	if conn != nil {
		c.requests[id] = box
	}
	c.mu.Unlock()
	if conn == nil {
		return id // its end is on the way
	}
	r.ID = id
	if err := write(context.Background(), conn, r); err != nil {
		conn.CloseNow() // whoever reads it reports the end
	}
	return id
}

func write(ctx context.Context, conn *websocket.Conn, r wire.Request) error {
	ctx, cancel := context.WithTimeout(ctx, writeWithin)
	defer cancel()
	return conn.Write(ctx, websocket.MessageText, wire.AppendRequest(nil, r))
}

func (c *Client) report(err *Error) {
	if c.cfg.OnError != nil {
		c.cfg.OnError(err)
	}
}

// once reports the first error of its kind in a connection: a server that sends nonsense sends much of it.
func (c *Client) once(err *Error) {
	if err == nil {
		return
	}
	c.mu.Lock()
	first := !c.said[err.Kind]
	if c.said != nil { // there is one from the first hello on
		c.said[err.Kind] = true
	}
	c.mu.Unlock()
	if first {
		c.report(err)
	}
}
