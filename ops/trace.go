package ops

import (
	"context"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

//go:embed trace.sql
var traceSQL string

// traceLook is how many of the newest events of a topic are looked through for an id: ids have no index of their own.
const traceLook = 100_000

// Trace is where one event has been. Times are those that somebody wrote down; what nobody did is said in Unknown.
type Trace struct {
	Topic       string      `json:"topic"`
	ID          int64       `json:"id"`
	Offset      int64       `json:"offset,omitempty"` // 0: not sequenced yet
	Epoch       string      `json:"epoch,omitempty"`
	Partition   int16       `json:"partition"`
	Seq         int64       `json:"seq,omitempty"`
	Type        string      `json:"type"`
	Key         string      `json:"key,omitempty"`
	Bytes       int         `json:"bytes"`
	TraceID     string      `json:"trace_id,omitempty"`     // of the writer's distributed trace
	SpanID      string      `json:"span_id,omitempty"`      // the writer's span
	Sampled     bool        `json:"sampled,omitempty"`      // its spans are recorded, by processes that are told where to
	AppendedAt  time.Time   `json:"appended_at"`            // in the writer's transaction, before its commit
	SequencedAt *time.Time  `json:"sequenced_at,omitempty"` // has an offset; durable
	Published   bool        `json:"published"`              // Redis has confirmed it, in this epoch or one before, or its topic was set aside when its turn came
	InRedis     *bool       `json:"in_redis,omitempty"`     // now; nil: not known
	ParkedFrom  *int64      `json:"parked_from,omitempty"`
	DeadAt      *time.Time  `json:"dead_at,omitempty"`
	RedrivenAt  *time.Time  `json:"redriven_at,omitempty"`
	Nodes       []TraceNode `json:"nodes"`
	Unknown     []string    `json:"unknown"`
}

// TraceNode is what a broadcaster did with an event, as far as it knows now.
type TraceNode struct {
	Node        string `json:"node"`
	Error       string `json:"error,omitempty"`
	Follows     bool   `json:"follows"`     // it has the topic in memory
	Heard       bool   `json:"heard"`       // its log is at or past the event
	Subscribers int    `json:"subscribers"` // live ones
	Sent        int    `json:"sent"`        // of these, at or past the event; a lower bound
	Slowest     int64  `json:"slowest"`
}

// Trace follows one event of a topic: by its offset, or by its id if offset is 0.
func (c *Console) Trace(ctx context.Context, topic string, offset, id int64) (*Trace, error) {
	if !wire.ValidTopic(topic) || offset < 0 || id < 0 || (offset == 0) == (id == 0) {
		return nil, fmt.Errorf("%w: an event is a topic and its offset, or a topic and its id", ErrInvalid)
	}
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	t := &Trace{Topic: topic, Partition: int16(wire.Partition(topic)), Nodes: []TraceNode{}, Unknown: []string{}}
	var at *int64
	var headers string
	if offset > 0 {
		at = &offset
	}
	err := c.pool.QueryRow(ctx, traceSQL, topic, at, id, traceLook).Scan(&t.Offset, &t.Epoch, &t.Partition, &t.Seq, &t.ID, &t.Type, &t.Key, &t.Bytes,
		&t.AppendedAt, &t.SequencedAt, &t.Published, &t.DeadAt, &t.RedrivenAt, &headers)
	if errors.Is(err, pgx.ErrNoRows) {
		return c.traceWaiting(ctx, t, offset, id)
	}
	if err != nil {
		return nil, wrap("looking for the event", err)
	}
	t.join(headers)
	var dead, redriven *time.Time
	err = c.pool.QueryRow(ctx, `SELECT (SELECT parked_from FROM commitcast.parked WHERE topic = $1),
		(SELECT died_at FROM commitcast.dead_letter WHERE topic = $1 AND "offset" = $2), (SELECT redriven_at FROM commitcast.dead_letter WHERE topic = $1 AND "offset" = $2)`,
		topic, t.Offset).Scan(&t.ParkedFrom, &dead, &redriven)
	if err != nil {
		return nil, wrap("looking whether it is set aside", err)
	}
	t.DeadAt, t.RedrivenAt = dead, redriven
	if t.ParkedFrom != nil && t.Offset >= *t.ParkedFrom {
		t.Published = false
	}
	if t.SequencedAt == nil {
		t.Unknown = append(t.Unknown, "when it was sequenced: the journal no longer has it, only the dead letters")
	}
	epoch, err := c.epoch(ctx)
	if err != nil {
		return nil, err
	}
	if c.redis != nil {
		rctx, cancel := context.WithTimeout(ctx, lookTimeout)
		held, err := c.redis.Inspect(rctx, stream.Channel{Epoch: epoch, Partition: wire.Partition(topic), Topic: topic})
		cancel()
		if in := held.First > 0 && t.Offset >= held.First && t.Offset <= held.Last; err == nil {
			t.InRedis = &in
		} else {
			t.Unknown = append(t.Unknown, "whether Redis holds it: "+err.Error())
		}
	} else {
		t.Unknown = append(t.Unknown, "what the stream holds: it is within the process, or --redis-url was not given")
	}
	for _, n := range c.topicNodes(ctx, topic) {
		tn := TraceNode{Node: n.Node, Error: n.Error}
		if s := n.State; s != nil {
			live := s.Subscribers - s.Joining
			tn.Follows, tn.Heard, tn.Subscribers, tn.Slowest = true, s.Epoch == epoch && s.Last >= t.Offset, live, s.Slowest
			if tn.Sent = live - s.Behind; s.Slowest >= t.Offset {
				tn.Sent = live
			}
		}
		t.Nodes = append(t.Nodes, tn)
	}
	t.Unknown = append(t.Unknown,
		"when its transaction committed: appended is before that, sequenced after",
		"when it was published and sent: nobody writes that down for each event",
		"who was connected then and is not now; and what a client did with it")
	return t, nil
}

// join says what distributed trace an event's headers name.
func (t *Trace) join(headers string) {
	var h map[string]json.RawMessage
	var value string
	if json.Unmarshal([]byte(headers), &h) != nil || json.Unmarshal(h[wire.TraceHeader], &value) != nil {
		return
	}
	if tr, ok := wire.ParseTrace([]byte(value)); ok {
		t.TraceID, t.SpanID, t.Sampled = tr.String(), hex.EncodeToString(tr.Parent[:]), tr.Sampled
	}
}

// traceWaiting looks for an event that has no offset yet, and says why there is none.
func (c *Console) traceWaiting(ctx context.Context, t *Trace, offset, id int64) (*Trace, error) {
	if id > 0 {
		var headers string
		err := c.pool.QueryRow(ctx, `SELECT id, type, coalesce(key, ''), octet_length(data::text), created_at, coalesce(headers::text, '') FROM commitcast.outbox
			WHERE partition = $1 AND id = $2 AND topic = $3`, t.Partition, id, t.Topic).Scan(&t.ID, &t.Type, &t.Key, &t.Bytes, &t.AppendedAt, &headers)
		if err == nil {
			t.join(headers)
			t.Unknown = append(t.Unknown, "its offset: it is committed and not sequenced yet; see: commitcast ops stuck")
			return t, nil
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			return nil, wrap("looking in the outbox", err)
		}
		return nil, fmt.Errorf("%w: event %d is neither in the outbox nor among the newest %d of topic %q: it was rolled back, is of another topic, is older, or is past retention",
			ErrNotFound, id, traceLook, t.Topic)
	}
	var head, first int64
	err := c.pool.QueryRow(ctx, `SELECT t.head, coalesce((SELECT j."offset" FROM commitcast.journal j WHERE j.topic = t.topic ORDER BY j."offset" LIMIT 1), t.head + 1)
		FROM commitcast.topic t WHERE t.topic = $1`, t.Topic).Scan(&head, &first)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, c.noTopic(ctx, t.Topic)
	case err != nil:
		return nil, wrap("looking for the event", err)
	case offset > head:
		return nil, fmt.Errorf("%w: offset %d of topic %q does not exist yet: the head is %d", ErrNotFound, offset, t.Topic, head)
	}
	return nil, fmt.Errorf("%w: offset %d of topic %q is past retention: the journal has %d to %d", ErrNotFound, offset, t.Topic, first, head)
}
