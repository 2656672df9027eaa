package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/outbox"
	"github.com/commitcast/commitcast/wire"
)

const (
	// silence is after how long without a word a client gives a connection up: two heartbeats, and some for a busy
	// machine.
	silence = 2500 * time.Millisecond
	// dialTimeout bounds connecting, and snapshotTimeout one reading of snapshots.
	dialTimeout     = 2 * time.Second
	snapshotTimeout = 2 * time.Second
)

// The habits of clients.
const (
	steady   = iota // stays
	flapping        // comes and goes, from its own cursors
	fresh           // comes and goes, from new snapshots
	rewound         // comes and goes, sometimes from an old resume token, as a tab that was asleep does
	choosy          // stays, but leaves and joins topics
	slow            // reads slowly
	habits
)

var habitNames = [...]string{"steady", "flapping", "fresh", "rewound", "choosy", "slow"}

// habitOf deals habits to clients; at least a quarter of them is steady, for the measurements.
func habitOf(n int) int {
	if n%8 < 2 {
		return steady
	}
	return 1 + (n%8-2)%(habits-1)
}

// client follows topics as docs/protocol.md says, and writes down all that it surfaces.
type client struct {
	w      *world
	name   string
	habit  int
	topics []string
	r      *rand.Rand
	calm   *atomic.Bool // stay as you are: the round is being settled
	anew   *atomic.Bool // begin by a snapshot

	mu    sync.Mutex
	runs  []*passage          // all, in order
	state map[string]*passage // the present run of a topic; nil: needs a snapshot
	nets  int                 // times that only a heartbeat told of a loss

	// Of the goroutine alone.
	saved    map[string]token // an old resume token of a topic
	subs     map[string]*sub
	requests int64
	ws       *websocket.Conn
}

// passage is what a client surfaced of one topic from one starting point on.
type passage struct {
	client  string
	topic   string
	why     string // why it began
	began   time.Time
	base    wire.Cursor
	epoch   string // of the snapshot
	pending map[int64]bool

	cursor  wire.Cursor
	left    map[int64]bool // pending ids that have not come
	totals  map[string]total
	live    time.Time // when it was last said to be subscribed; zero while it is not
	entries []entry
	told    []answer // each time that it was said to be subscribed
	over    string   // why it ended; "" while it goes on
	overAt  time.Time
}

// total is a client's state of one entity.
type total struct{ version, sum int64 }

// entry is one offset that a client has passed.
type entry struct {
	at      time.Time
	offset  int64
	id      int64
	epoch   string
	content string // as contentOf makes it
	pended  bool   // not applied: the snapshot contained it
	skip    bool   // a frame without content
}

// answer is a "subscribed": from the nth entry on, the passage is in an epoch.
type answer struct {
	n     int
	epoch string
}

// token is a resume token: cursor, pending ids and the snapshot's epoch, with the state that they belong to.
type token struct {
	cursor  wire.Cursor
	epoch   string
	pending map[int64]bool
	totals  map[string]total
}

// contentOf is all that an event says, but its place.
func contentOf(typ, key, at string, data, headers []byte) string {
	return typ + "|" + key + "|" + at + "|" + string(data) + "|" + string(headers)
}

// sub is a subscription on the present connection.
type sub struct {
	state  subState
	id     int64
	expect int64 // the offset that must come next
	due    time.Time
	behind int64 // the cursor at the last heartbeat that showed a newer head
}

type subState int

const (
	idle    subState = iota // to be subscribed when due
	asked                   // subscribe was sent
	live                    // subscribed
	leaving                 // unsubscribe was sent
)

func newClient(w *world, n int, topics []string, seed uint64, calm, anew *atomic.Bool) *client {
	habit := habitOf(n)
	return &client{
		w: w, name: fmt.Sprintf("client%d-%s", n, habitNames[habit]), habit: habit, topics: topics, calm: calm, anew: anew,
		r: rand.New(rand.NewPCG(seed, uint64(n))), state: make(map[string]*passage), saved: make(map[string]token),
	}
}

// run follows until ctx ends.
func (c *client) run(ctx context.Context) {
	for ctx.Err() == nil {
		err := c.session(ctx)
		c.mu.Lock()
		for _, r := range c.state {
			r.live = time.Time{}
		}
		c.mu.Unlock()
		if ctx.Err() == nil {
			c.w.log.add(c.name, "disconnected: %v", err)
			time.Sleep(time.Duration(c.r.Int64N(int64(100 * time.Millisecond))))
		}
	}
}

// errLeave ends a connection by the client's own will.
var errLeave = errors.New("its own wish")

// session is one connection.
func (c *client) session(ctx context.Context) error {
	nodes := c.w.of("broadcaster")
	node := nodes[c.r.IntN(len(nodes))]
	dctx, cancel := context.WithTimeout(ctx, dialTimeout)
	ws, _, err := websocket.Dial(dctx, "ws://"+node.clients.Addr+"/v1/ws", &websocket.DialOptions{Subprotocols: []string{wire.Protocol}})
	cancel()
	if err != nil {
		return err
	}
	defer ws.CloseNow()
	ws.SetReadLimit(64 << 20)
	c.ws = ws
	c.subs = make(map[string]*sub)
	c.w.log.add(c.name, "connected to %s", node.name)
	c.begin()

	messages := make(chan []byte, 64)
	failed := make(chan error, 1)
	rctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() { // owned by session: ends with its context or the connection
		for {
			_, b, err := ws.Read(rctx)
			if err != nil {
				failed <- err
				return
			}
			select {
			case messages <- b:
			case <-rctx.Done():
				return
			}
		}
	}()

	life := time.Hour
	if c.habit == flapping || c.habit == fresh || c.habit == rewound {
		life = 150*time.Millisecond + time.Duration(c.r.Int64N(int64(600*time.Millisecond)))
	}
	born, heard := time.Now(), time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := c.subscribeDue(ctx); err != nil {
			return err
		}
		select {
		case b := <-messages:
			heard = time.Now()
			if err := c.handle(b); err != nil {
				return err
			}
			if c.habit == slow && !c.calm.Load() {
				time.Sleep(time.Duration(c.r.Int64N(int64(40 * time.Millisecond)))) // the habit itself
			}
		case err := <-failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case now := <-tick.C:
			if len(messages) == 0 && now.Sub(heard) > silence {
				return errors.New("nothing heard for two heartbeats")
			}
			if now.Sub(born) > life && !c.calm.Load() {
				return errLeave
			}
			if c.habit == choosy && !c.calm.Load() && c.r.Float64() < 0.05 {
				if err := c.leave(c.topics[c.r.IntN(len(c.topics))]); err != nil {
					return err
				}
			}
		}
	}
}

// begin decides where each topic goes on from on a new connection.
func (c *client) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, topic := range c.topics {
		c.subs[topic] = &sub{state: idle}
		r := c.state[topic]
		if r == nil {
			continue
		}
		switch {
		case c.anew.Load() || c.habit == fresh && !c.calm.Load():
			c.end(r, "choice: a new snapshot")
		case c.habit == rewound && !c.calm.Load():
			old, have := c.saved[topic]
			if !have || c.r.Float64() < 0.2 {
				c.saved[topic] = token{r.cursor, r.epoch, maps.Clone(r.left), maps.Clone(r.totals)}
			}
			if have && c.r.Float64() < 0.6 {
				c.end(r, "choice: back to an old token")
				c.start(topic, "old token", old)
			}
		}
	}
}

// start begins a run. Called with mu held.
func (c *client) start(topic, why string, t token) {
	r := &passage{
		client: c.name, topic: topic, why: why, began: time.Now(), base: t.cursor, cursor: t.cursor, epoch: t.epoch,
		pending: maps.Clone(t.pending), left: maps.Clone(t.pending), totals: maps.Clone(t.totals),
	}
	c.state[topic] = r
	c.runs = append(c.runs, r)
}

// end ends a run: the topic needs a snapshot. Called with mu held.
func (c *client) end(r *passage, why string) {
	r.over, r.overAt, r.live = why, time.Now(), time.Time{}
	delete(c.state, r.topic)
	if strings.HasPrefix(why, "reset") {
		delete(c.saved, r.topic)
	}
}

// subscribeDue reads the snapshots that are missing and subscribes to what is due.
func (c *client) subscribeDue(ctx context.Context) error {
	now := time.Now()
	var need []string
	for _, topic := range c.topics {
		if s := c.subs[topic]; s.state == idle && !now.Before(s.due) && c.state[topic] == nil {
			need = append(need, topic)
		}
	}
	if len(need) > 0 {
		if err := c.snapshot(ctx, need); err != nil {
			c.w.log.add(c.name, "no snapshot: %v", err)
			for _, topic := range need {
				c.subs[topic].due = now.Add(100 * time.Millisecond)
			}
		}
	}
	for _, topic := range c.topics {
		s := c.subs[topic]
		r := c.state[topic]
		if s.state != idle || now.Before(s.due) || r == nil {
			continue
		}
		c.requests++
		s.state, s.id, s.expect, s.behind = asked, c.requests, r.cursor.Offset+1, -1
		if err := c.send(ctx, `{"op":"subscribe","id":%d,"topic":%q,"after":%q}`, s.id, topic, r.cursor.String()); err != nil {
			return err
		}
	}
	return nil
}

func (c *client) send(ctx context.Context, format string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return c.ws.Write(ctx, websocket.MessageText, fmt.Appendf(nil, format, args...))
}

// snapshot reads the state of topics with their positions.
func (c *client) snapshot(ctx context.Context, topics []string) error {
	ctx, cancel := context.WithTimeout(ctx, snapshotTimeout)
	defer cancel()
	state := make(map[string]map[string]total)
	positions, err := outbox.Snapshot(ctx, c.w.readers, topics, func(tx pgx.Tx) error {
		clear(state)
		for _, topic := range topics {
			state[topic] = make(map[string]total)
		}
		rows, err := tx.Query(ctx, "SELECT topic, entity, version, total FROM chaos.entity WHERE topic = ANY ($1)", topics)
		if err != nil {
			return err
		}
		var topic, entity string
		var t total
		_, err = pgx.ForEachRow(rows, []any{&topic, &entity, &t.version, &t.sum}, func() error {
			state[topic][entity] = t
			return nil
		})
		return err
	})
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range positions {
		cursor, err := wire.ParseCursor(p.Cursor)
		if err != nil {
			return err
		}
		pending := make(map[int64]bool)
		for _, id := range p.Pending {
			pending[id] = true
		}
		c.start(p.Topic, "snapshot", token{cursor, p.Epoch, pending, state[p.Topic]})
	}
	return nil
}

// handle deals with one message of the server.
func (c *client) handle(message []byte) error {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for l := range wire.Lines(message) {
		m, err := wire.ParseMessage(l)
		if err != nil {
			c.w.violate("wire-garbage", "%s: %v in %.200s", c.name, err, l)
			return err
		}
		if err := c.frame(m, now); err != nil {
			return err
		}
	}
	return nil
}

// frame deals with one frame. Called with mu held. An error ends the connection.
func (c *client) frame(m wire.Message, now time.Time) error {
	s, r := c.subs[m.Topic], c.state[m.Topic]
	if m.Topic != "" && s == nil {
		c.w.violate("wire-stranger", "%s: %s of topic %q, which it never asked for", c.name, m.Op, m.Topic)
		return errors.New("a stranger's topic")
	}
	switch m.Op {
	case "hello":
	case "subscribed":
		if s.state == leaving {
			return nil
		}
		if s.state != asked || m.ID != s.id || m.After != s.expect-1 {
			c.w.violate("wire-answer", "%s: subscribed %s id %d after %d, asked id %d after %d", c.name, m.Topic, m.ID, m.After, s.id, s.expect-1)
			return errors.New("a wrong answer")
		}
		s.state, r.live = live, now
		r.told = append(r.told, answer{len(r.entries), m.Epoch})
		return c.sees(r, m.Epoch)
	case "event":
		if s.state == leaving {
			return nil
		}
		if s.state != live || r == nil {
			c.w.violate("wire-unsubscribed", "%s: event %s:%d while not subscribed", c.name, m.Topic, m.Offset)
			return errors.New("an event out of order")
		}
		return c.event(m, s, r, now)
	case "reset":
		s.state, s.due = idle, now.Add(time.Duration(m.InMS)*time.Millisecond)
		if r != nil {
			c.w.log.add(c.name, "reset of %s at %s: %s, head %d of epoch %s", m.Topic, r.cursor, m.Reason, m.Head, m.Epoch)
			c.end(r, "reset: "+m.Reason)
		}
	case "unsubscribed":
		s.state = idle
	case "heartbeat":
		return c.heartbeat(m)
	case "error":
		return c.refused(m, now)
	case "reconnect":
		return errors.New("told to reconnect")
	default:
		c.w.violate("wire-garbage", "%s: op %q", c.name, m.Op)
	}
	return nil
}

// sees takes note of the epoch of a frame: ids that a snapshot called pending are worth nothing in another one.
func (c *client) sees(r *passage, epoch string) error {
	if epoch == "" || epoch == r.epoch || len(r.left) == 0 {
		return nil
	}
	c.w.log.add(c.name, "%s: epoch %s while %d ids of epoch %s are pending", r.topic, epoch, len(r.left), r.epoch)
	c.end(r, "choice: pending in another epoch")
	return c.leaveLocked(r.topic)
}

// event surfaces one event, or passes over it.
func (c *client) event(m wire.Message, s *sub, r *passage, now time.Time) error {
	switch {
	case m.Offset < s.expect:
		c.w.violate("wire-duplicate", "%s: %s:%d after %d was delivered", c.name, m.Topic, m.Offset, s.expect-1)
	case m.Offset > s.expect:
		c.w.violate("wire-hole", "%s: %s:%d, but %d is next", c.name, m.Topic, m.Offset, s.expect)
	}
	s.expect = m.Offset + 1
	if m.Offset <= r.cursor.Offset {
		return nil
	}
	if m.Offset > r.cursor.Offset+1 {
		return errors.New("a hole")
	}
	if err := c.sees(r, m.Epoch); err != nil || c.state[r.topic] != r {
		return err
	}
	e := entry{at: now, offset: m.Offset, id: m.ID, epoch: m.Epoch, skip: m.Skip}
	if !m.Skip {
		e.content = contentOf(m.Type, m.Key, m.At, m.Data, m.Headers)
	}
	r.cursor = wire.Cursor{Epoch: m.Epoch, Offset: m.Offset}
	if r.left[m.ID] {
		delete(r.left, m.ID)
		e.pended = true
	} else if !m.Skip {
		var p payload
		if err := json.Unmarshal(m.Data, &p); err != nil {
			c.w.violate("wire-garbage", "%s: %s:%d holds %.100s", c.name, m.Topic, m.Offset, m.Data)
		}
		t := r.totals[p.Entity]
		r.totals[p.Entity] = total{t.version + p.Change, t.sum + p.Delta}
	}
	r.entries = append(r.entries, e)
	return nil
}

// heartbeat compares heads. One that stays ahead means that something was missed.
func (c *client) heartbeat(m wire.Message) error {
	for topic, head := range m.Heads {
		s, r := c.subs[topic], c.state[topic]
		if s == nil || s.state != live || r == nil {
			continue
		}
		switch at := r.cursor.Offset; {
		case head <= at:
			s.behind = -1
		case s.behind != at:
			s.behind = at
		default:
			c.nets++
			c.w.log.add(c.name, "%s: heartbeat says %d for the second time, stuck at %d", topic, head, at)
			if err := c.leaveLocked(topic); err != nil {
				return err
			}
		}
	}
	return nil
}

// refused deals with an error frame.
func (c *client) refused(m wire.Message, now time.Time) error {
	for topic, s := range c.subs {
		if s.id != m.ID {
			continue
		}
		switch {
		case m.Code == wire.CodeUnavailable && s.state == asked:
			s.state, s.due = idle, now.Add(100*time.Millisecond+time.Duration(c.r.Int64N(int64(100*time.Millisecond))))
		case m.Code == wire.CodeNotSubscribed && (s.state == leaving || s.state == idle):
			s.state = idle // a reset was faster; it may have been dealt with already
		case s.state == leaving: // the subscribe before it was refused; its own answer follows
		default:
			c.w.violate("wire-refused", "%s: %s refused: %s %s", c.name, topic, m.Code, m.Message)
			return errors.New("refused")
		}
		return nil
	}
	return nil
}

// leave unsubscribes from a topic; it is subscribed to again from where it stood.
func (c *client) leave(topic string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leaveLocked(topic)
}

func (c *client) leaveLocked(topic string) error {
	s := c.subs[topic]
	if s.state != live {
		return nil
	}
	c.requests++
	s.state, s.id = leaving, c.requests
	if r := c.state[topic]; r != nil {
		r.live = time.Time{}
	}
	return c.send(context.Background(), `{"op":"unsubscribe","id":%d,"topic":%q}`, s.id, topic)
}

// behind says which topic is not at its head yet, "" if none.
func (c *client) behind(heads map[string]int64) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, topic := range c.topics {
		r := c.state[topic]
		switch {
		case r == nil:
			return c.name + " reads a snapshot of " + topic
		case r.live.IsZero():
			return c.name + " subscribes to " + topic
		case r.cursor.Offset < heads[topic]:
			return fmt.Sprintf("%s is at %s of %s, whose head is %d", c.name, r.cursor, topic, heads[topic])
		}
	}
	return ""
}
