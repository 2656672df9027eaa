package ops

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/commitcast/commitcast/wire"
)

// eventWithin is how long an event may take from commit to a socket before the doctor calls it lost: a poll of the journal and a
// takeover fit in.
const eventWithin = 10 * time.Second

// slow is how long it takes when everything works, on a busy day.
const slow = time.Second

// examineEvent sends an event of CanaryTopic all the way, and watches it on every broadcaster through a real socket.
func (c *Console) examineEvent(ctx context.Context, nodes []*Node, cfg DoctorConfig, add addCheck) {
	const area = "event"
	ctx, cancel := context.WithTimeout(ctx, 2*eventWithin)
	defer cancel()
	type watched struct {
		name, url, token string
		w                *watcher
		err              error
		took             time.Duration
	}
	var all []*watched
	for _, n := range nodes {
		if n.Identity == nil || n.Identity.Broadcaster == nil || n.Identity.ClientURL == "" {
			continue
		}
		switch u := clientURL(n); {
		case slices.Contains(cfg.ClientURLs, u): // below
		case n.Identity.Auth: // a token does not go where a node says
			add(area, n.Name(), Warning, "its clients need a token, so it is not watched at "+u, "--url with its WebSocket, and --token-file with a token that may read "+CanaryTopic)
		default:
			all = append(all, &watched{name: n.Name(), url: u})
		}
	}
	for _, u := range cfg.ClientURLs {
		all = append(all, &watched{name: u, url: u, token: cfg.ClientToken})
	}
	var wg sync.WaitGroup
	for _, w := range all {
		wg.Go(func() { w.w, w.err = watch(ctx, w.url, w.token) }) // waited for below
	}
	wg.Wait()
	defer func() {
		for _, w := range all {
			if w.w != nil {
				w.w.ws.CloseNow()
			}
		}
	}()
	var id int64
	start := time.Now()
	err := c.pool.QueryRow(ctx, `SELECT commitcast.append($1, 'doctor', json_build_object('by', $2::text))`, CanaryTopic, c.cfg.Who).Scan(&id)
	if err = wrap("appending an event of "+CanaryTopic, err); errors.Is(err, ErrForbidden) {
		add(area, "append", Warning, "this role may not append, so no event was sent", "grant it commitcast_writer, or say --no-event")
		return
	} else if err != nil {
		add(area, "append", Problem, oneLine(err), "see the error")
		return
	}
	committed := time.Now()
	add(area, "append", Good, fmt.Sprintf("event %d of %s, committed in %v", id, CanaryTopic, committed.Sub(start).Round(time.Millisecond)), "")
	for _, w := range all {
		if w.err == nil {
			wg.Go(func() {
				w.err = w.w.await(ctx, id)
				w.took = time.Since(committed)
			})
		}
	}
	wg.Wait()
	for _, w := range all {
		switch {
		case w.err != nil:
			add(area, w.name, Problem, oneLine(w.err), "commitcast ops status; commitcast ops trace "+CanaryTopic+fmt.Sprintf(" --id=%d", id))
		case w.took > slow:
			add(area, w.name, Warning, fmt.Sprintf("arrived %v after its commit", w.took.Round(time.Millisecond)), "commitcast ops status says where it waits")
		default:
			add(area, w.name, Good, fmt.Sprintf("arrived %v after its commit", w.took.Round(100*time.Microsecond)), "")
		}
	}
	if len(all) == 0 {
		add(area, "sockets", Warning, "there is no broadcaster to watch", "")
	}
}

// watcher is a client of CanaryTopic.
type watcher struct {
	ws      *websocket.Conn
	pending [][]byte
}

// watch connects and subscribes.
func watch(ctx context.Context, url, token string) (*watcher, error) {
	ctx, cancel := context.WithTimeout(ctx, eventWithin)
	defer cancel()
	ws, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{Subprotocols: []string{wire.Protocol}})
	if err != nil {
		return nil, fmt.Errorf("connecting a client: %w", err)
	}
	ws.SetReadLimit(1 << 20)
	w := &watcher{ws: ws}
	fail := func(err error) (*watcher, error) {
		ws.CloseNow()
		return nil, err
	}
	var say []byte
	if token != "" {
		say = fmt.Appendf(say, `{"op":"auth","token":%q}`+"\n", token)
	}
	say = fmt.Appendf(say, `{"op":"subscribe","id":1,"topic":%q}`, CanaryTopic)
	if err := ws.Write(ctx, websocket.MessageText, say); err != nil {
		return fail(fmt.Errorf("subscribing: %w", err))
	}
	for {
		switch m, err := w.next(ctx); {
		case err != nil:
			return fail(fmt.Errorf("subscribing: %w", err))
		case m.Op == "subscribed":
			return w, nil
		case m.Op == "error":
			return fail(fmt.Errorf("subscribing: %s: %s", m.Code, m.Message))
		}
	}
}

// await waits for an event.
func (w *watcher) await(ctx context.Context, id int64) error {
	ctx, cancel := context.WithTimeout(ctx, eventWithin)
	defer cancel()
	for {
		m, err := w.next(ctx)
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			return fmt.Errorf("the event did not arrive within %v", eventWithin)
		case err != nil:
			return fmt.Errorf("waiting for the event: %w", err)
		case m.Op == "event" && m.ID == id:
			return nil
		case m.Op == "reset":
			return fmt.Errorf("a reset came instead: %s", m.Reason)
		}
	}
}

func (w *watcher) next(ctx context.Context) (wire.Message, error) {
	for len(w.pending) == 0 {
		_, text, err := w.ws.Read(ctx)
		if err != nil {
			return wire.Message{}, err
		}
		for line := range wire.Lines(text) {
			w.pending = append(w.pending, line)
		}
	}
	line := w.pending[0]
	w.pending = w.pending[1:]
	return wire.ParseMessage(line)
}
