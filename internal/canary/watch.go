package canary

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"

	"github.com/commitcast/commitcast/wire"
)

// track is what has arrived so far.
type track struct {
	epoch  string
	offset int64 // of the last event; 0: begin anew, from the head
	n      int64 // its number; 0: unknown
}

// errReset ends a socket whose cursor is not good any more.
var errReset = errors.New("a reset came")

// watch holds a socket until ctx ends.
func (c *Canary) watch(ctx context.Context) {
	// No connection is kept by it: each socket is one of its own. Nor is a proxy asked, whatever the environment says.
	transport := &http.Transport{TLSClientConfig: c.cfg.TLS, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	pause := pauseLeast
	for ctx.Err() == nil {
		opened, err := c.socket(ctx, client)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errReset) {
			c.track = track{}
		}
		c.mu.Lock()
		c.wsErr = err
		c.mu.Unlock()
		if opened {
			pause = pauseLeast
		} else if !c.cfg.Held() {
			c.metrics.sockets.WithLabelValues(socketFailed).Inc()
		}
		if err == nil {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause/2 + rand.N(pause)):
			pause = min(2*pause, pauseMost)
		}
	}
}

// socket opens one, and takes what comes until it is old, which is no error. opened: it was subscribed.
func (c *Canary) socket(ctx context.Context, client *http.Client) (opened bool, err error) {
	octx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	ws, _, err := websocket.Dial(octx, c.cfg.URL, &websocket.DialOptions{HTTPClient: client, Subprotocols: []string{wire.Protocol},
		HTTPHeader: http.Header{"Origin": {origin(c.cfg.URL)}}})
	if err != nil {
		return false, fmt.Errorf("connecting: %w", err)
	}
	defer ws.CloseNow()
	var say []byte
	if c.cfg.Key != nil {
		say = append(wire.AppendRequest(say, wire.Request{Op: wire.OpAuth, Token: c.cfg.Key.token}), '\n')
	}
	ask := wire.Request{Op: wire.OpSubscribe, ID: 1, Topic: c.cfg.Topic}
	if c.track.offset > 0 {
		ask.After = wire.Cursor{Epoch: c.track.epoch, Offset: c.track.offset}.String()
	}
	if err := ws.Write(octx, websocket.MessageText, wire.AppendRequest(say, ask)); err != nil {
		return false, fmt.Errorf("subscribing: %w", err)
	}
	openBy, until := time.Now().Add(openTimeout), time.Now().Add(socketFor)
	for {
		by := openBy
		if opened {
			if by = time.Now().Add(silence); until.Before(by) {
				by = until
			}
		}
		message, err := readBy(ctx, ws, by)
		switch {
		case err == nil:
		case !opened:
			return false, fmt.Errorf("subscribing: %w", err)
		case !time.Now().Before(until):
			return true, nil
		case !time.Now().Before(by):
			return true, fmt.Errorf("nothing came for %v", silence)
		default:
			return true, fmt.Errorf("reading: %w", err)
		}
		for line := range wire.Lines(message) {
			m, err := wire.ParseMessage(line)
			if err != nil {
				return opened, fmt.Errorf("a frame that cannot be read: %w", err)
			}
			switch m.Op {
			case "subscribed":
				if !opened {
					if c.track.offset == 0 {
						c.track = track{epoch: m.Epoch, offset: m.After}
					}
					opened = true
					c.metrics.sockets.WithLabelValues(socketOpened).Inc()
					c.mu.Lock()
					c.wsErr = nil
					c.mu.Unlock()
				}
			case "event":
				c.heard(&m, time.Now())
			case "reset":
				c.metrics.resets.Inc()
				return opened, fmt.Errorf("%w: %s", errReset, m.Reason)
			case "error":
				return opened, fmt.Errorf("refused: %s: %s", m.Code, m.Message)
			case "reconnect":
				return opened, errors.New("the node sends its clients away")
			}
		}
	}
}

func readBy(ctx context.Context, ws *websocket.Conn, by time.Time) ([]byte, error) {
	ctx, cancel := context.WithDeadline(ctx, by)
	defer cancel()
	_, message, err := ws.Read(ctx)
	return message, err
}

// heard takes an event.
func (c *Canary) heard(m *wire.Message, now time.Time) {
	t := &c.track
	var data struct{ N int64 }
	ours := !m.Skip && m.Type == "canary" && json.Unmarshal(m.Data, &data) == nil && data.N > 0
	lost, again := t.missing(m.Epoch, m.Offset, data.N)
	c.metrics.lost.Add(float64(lost))
	if again {
		c.metrics.disordered.Inc()
		return
	}
	if !ours {
		return // the doctor's, or one that somebody else has put there
	}
	at, err := time.Parse(time.RFC3339Nano, m.At)
	if err != nil {
		return
	}
	c.metrics.arrived.Inc()
	c.mu.Lock()
	defer c.mu.Unlock()
	delay := max(0, now.Add(c.ahead).Sub(at))
	c.metrics.delay.Observe(delay.Seconds())
	c.arrived, c.delay, c.n = now, delay, data.N
}

// missing notes an event, and tells how many are missing before it, and whether it is one of those that have come. n is 0 for an event
// that is not the canary's.
func (t *track) missing(epoch string, offset, n int64) (lost int64, again bool) {
	if t.offset > 0 && offset <= t.offset {
		return 0, true
	}
	if t.offset > 0 {
		lost = offset - t.offset - 1
	}
	if epoch != t.epoch {
		t.n = 0 // it counts in another history of the database
	}
	if n > 0 {
		if t.n > 0 && lost == 0 { // where offsets have a hole, that is the one in the numbers, too
			switch {
			case n <= t.n:
				again = true
			default:
				lost = n - t.n - 1
			}
		}
		t.n = n
	}
	t.epoch, t.offset = epoch, offset
	return lost, again
}

// origin is the page that would be this node's own.
func origin(url string) string {
	url, _, _ = strings.Cut("http"+strings.TrimPrefix(url, "ws"), "/v1/")
	return url
}
