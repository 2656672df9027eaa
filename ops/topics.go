package ops

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/internal/journal"
	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

var (
	//go:embed topics_name.sql
	topicsByNameSQL string
	//go:embed topics_lag.sql
	topicsByLagSQL string
	//go:embed topic.sql
	topicSQL string
)

const (
	// lagMost is where the lag of one topic stops being counted.
	lagMost = 1000
	// lagLook is how many events of a partition, and topics that are set aside, a list by lag looks at.
	lagLook = 2000
)

// TopicLine is a topic in a list.
type TopicLine struct {
	Topic       string     `json:"topic"`
	Partition   int16      `json:"partition"`
	Head        int64      `json:"head"`
	Unpublished int64      `json:"unpublished"` // sequenced and not confirmed by Redis, or held back because it is set aside
	Waiting     int64      `json:"waiting"`     // not sequenced; by lag only
	For         float64    `json:"for_s"`       // age of the oldest of these, in seconds; by lag only
	ParkedFrom  *int64     `json:"parked_from,omitempty"`
	DiedAt      *time.Time `json:"died_at,omitempty"`
	LastAt      *time.Time `json:"last_at,omitempty"` // of the newest event, if it is retained; by name only
}

// Lag is by how many events a topic is behind, as lists by lag order it.
func (l *TopicLine) Lag() int64 { return l.Waiting + l.Unpublished }

// TopicsQuery chooses a page of topics.
type TopicsQuery struct {
	Prefix string // by name only
	After  string // the last name of the page before
	Lag    int64  // its lag; by lag only
	Limit  int
}

// TopicsByName lists topics in the order of their names. Lag is counted up to 1,000.
func (c *Console) TopicsByName(ctx context.Context, q TopicsQuery) ([]TopicLine, error) {
	after, before := q.After, "\x7f" // above every character of a name
	if q.Prefix != "" {
		if !wire.ValidTopic(q.Prefix) {
			return nil, fmt.Errorf("%w: %.144q is not the beginning of a topic", ErrInvalid, q.Prefix)
		}
		before = q.Prefix + "\x7f"
		if p := q.Prefix[:len(q.Prefix)-1] + string(q.Prefix[len(q.Prefix)-1]-1) + "\x7f"; after < p {
			after = p // nothing lies between it and the prefix
		}
	}
	return c.topics(ctx, topicsByNameSQL, after, before, page(q.Limit), lagMost)
}

// TopicsByLag lists the topics that are behind, those with most events first. Of each partition the oldest 2,000 events are
// looked at.
func (c *Console) TopicsByLag(ctx context.Context, q TopicsQuery) ([]TopicLine, error) {
	if q.Prefix != "" {
		return nil, fmt.Errorf("%w: a list by lag has no prefix", ErrInvalid)
	}
	var lag any // none: from the beginning on
	if q.After != "" {
		lag = q.Lag
	}
	return c.topics(ctx, topicsByLagSQL, page(q.Limit), lag, lagLook, q.After)
}

func (c *Console) topics(ctx context.Context, sql string, args ...any) ([]TopicLine, error) {
	rows, err := c.pool.Query(ctx, sql, args...)
	if err == nil {
		var list []TopicLine
		if list, err = pgx.CollectRows(rows, pgx.RowToStructByPos[TopicLine]); err == nil {
			return list, nil
		}
	}
	return nil, wrap("listing topics", err)
}

// Topic is everything that is known of one.
type Topic struct {
	Topic       string       `json:"topic"`
	Partition   int16        `json:"partition"`
	Epoch       string       `json:"epoch"` // the current one
	Head        int64        `json:"head"`
	HeadEpoch   string       `json:"head_epoch"`
	PausedAt    *time.Time   `json:"paused_at,omitempty"` // its partition
	First       int64        `json:"first"`               // the oldest that the journal retains; 0: none
	FirstAt     *time.Time   `json:"first_at,omitempty"`
	LastAt      *time.Time   `json:"last_at,omitempty"`
	Unpublished int64        `json:"unpublished"` // counted up to 1,000, as are the next two
	Waiting     int64        `json:"waiting"`     // not sequenced, among the oldest 1,000 of its partition
	DeadLetters int64        `json:"dead_letters"`
	Parked      *Parked      `json:"parked,omitempty"`
	Redrive     *Redriving   `json:"redrive,omitempty"`
	Held        *stream.Held `json:"held,omitempty"` // by Redis
	HeldError   string       `json:"held_error,omitempty"`
	Nodes       []TopicNode  `json:"nodes"`
	Subscribers int          `json:"subscribers"`
	Behind      int          `json:"behind"`
}

// TopicNode is what one broadcaster has of a topic; State is nil if it follows it for nobody.
type TopicNode struct {
	Node    string                  `json:"node"`
	Address string                  `json:"address"`
	Error   string                  `json:"error,omitempty"`
	State   *broadcaster.TopicState `json:"state,omitempty"`
}

// Topic tells where one stands, at every hop.
func (c *Console) Topic(ctx context.Context, name string) (*Topic, error) {
	if !wire.ValidTopic(name) {
		return nil, fmt.Errorf("%w: %.144q is not the name of a topic", ErrInvalid, name)
	}
	t := &Topic{Nodes: []TopicNode{}}
	err := c.pool.QueryRow(ctx, topicSQL, name, lagMost).Scan(&t.Topic, &t.Partition, &t.Head, &t.HeadEpoch, &t.PausedAt,
		&t.First, &t.FirstAt, &t.LastAt, &t.Unpublished, &t.Waiting, &t.DeadLetters)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, c.noTopic(ctx, name)
	}
	if err != nil {
		return nil, wrap("looking at the topic", err)
	}
	if t.Epoch, err = c.epoch(ctx); err != nil {
		return nil, err
	}
	rows, err := c.pool.Query(ctx, strings.Replace(parkedSQL, "p.topic > $1", "p.topic = $1", 1), name, 1)
	if err == nil {
		t.Parked, err = pgx.CollectOneRow(rows, pgx.RowToAddrOfStructByPos[Parked])
	}
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return nil, wrap("looking whether it is set aside", err)
	}
	if t.Redrive, err = c.Redriving(ctx, name); err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	if c.redis != nil {
		rctx, cancel := context.WithTimeout(ctx, lookTimeout)
		held, err := c.redis.Inspect(rctx, stream.Channel{Epoch: t.Epoch, Partition: wire.Partition(name), Topic: name})
		cancel()
		if err != nil {
			t.HeldError = err.Error()
		} else {
			t.Held = &held
		}
	}
	t.Nodes = c.topicNodes(ctx, name)
	for _, n := range t.Nodes {
		if n.State != nil {
			t.Subscribers += n.State.Subscribers
			t.Behind += n.State.Behind
		}
	}
	return t, nil
}

// Retained is what the journal holds of a topic: from where it can be followed.
type Retained struct {
	Epoch string `json:"epoch"` // the current one
	First int64  `json:"first"` // the oldest offset; 0: none
	Head  int64  `json:"head"`
}

// Retained tells from where a topic can be followed, at the least cost. A topic that has no event yet can be followed from 0.
func (c *Console) Retained(ctx context.Context, name string) (r Retained, err error) {
	if !wire.ValidTopic(name) {
		return r, fmt.Errorf("%w: %.144q is not the name of a topic", ErrInvalid, name)
	}
	if r.Epoch, err = c.epoch(ctx); err != nil {
		return r, err
	}
	err = c.pool.QueryRow(ctx, `SELECT t.head, coalesce((SELECT j."offset" FROM commitcast.journal j WHERE j.topic = t.topic ORDER BY j."offset" LIMIT 1), 0)
		FROM commitcast.topic t WHERE t.topic = $1`, name).Scan(&r.Head, &r.First)
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	return r, wrap("reading the head", err)
}

// noTopic says why there is none: perhaps its first event waits to be sequenced.
func (c *Console) noTopic(ctx context.Context, name string) error {
	var waits bool
	err := c.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM (SELECT o.topic FROM commitcast.partition p JOIN commitcast.outbox o
		ON o.partition = p.id AND o.id > p.floor WHERE p.id = $1 ORDER BY o.id LIMIT $3) AS w WHERE w.topic = $2)`,
		wire.Partition(name), name, lagMost).Scan(&waits)
	if err == nil && waits {
		return fmt.Errorf("%w: topic %q has events, and none is sequenced yet; see: commitcast ops stuck", ErrNotFound, name)
	}
	return fmt.Errorf("%w: no event of a topic %q was ever sequenced", ErrNotFound, name)
}

func (c *Console) epoch(ctx context.Context) (epoch string, err error) {
	err = c.pool.QueryRow(ctx, `SELECT name FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1`).Scan(&epoch)
	return epoch, wrap("reading the epoch", err)
}

// topicNodes asks every broadcaster about a topic.
func (c *Console) topicNodes(ctx context.Context, name string) []TopicNode {
	nodes, _ := c.Nodes(ctx)
	list := []TopicNode{}
	at := make(map[*Node]int)
	for _, n := range nodes {
		if n.Identity == nil || n.Identity.Broadcaster != nil {
			at[n] = len(list)
			list = append(list, TopicNode{Node: n.Name(), Address: n.Address, Error: n.Error})
		}
	}
	c.each(nodes, func(n *Node) {
		i, ok := at[n]
		if !ok || n.Identity == nil {
			return
		}
		var states []broadcaster.TopicState
		if err := c.get(ctx, n.Address, PathTopics+"?topic="+name, &states); err != nil {
			list[i].Error = err.Error()
		} else if len(states) == 1 {
			list[i].State = &states[0]
		}
	})
	return list
}

// tailEvery is how often Tail asks for what is new.
const tailEvery = 200 * time.Millisecond

// Tail hands over the frames of a topic as they are sequenced, from an offset on; 0 from the newest on, and below 0 so many
// before it. It ends with ctx, and returns its error then; or after the newest if follow is not set.
func (c *Console) Tail(ctx context.Context, topic string, from int64, follow bool, each func(frame []byte) error) error {
	if !wire.ValidTopic(topic) {
		return fmt.Errorf("%w: %.144q is not the name of a topic", ErrInvalid, topic)
	}
	if err := c.ready(ctx); err != nil {
		return err
	}
	var head, first int64
	err := c.pool.QueryRow(ctx, `SELECT t.head, coalesce((SELECT j."offset" FROM commitcast.journal j WHERE j.topic = t.topic ORDER BY j."offset" LIMIT 1), t.head + 1)
		FROM commitcast.topic t WHERE t.topic = $1`, topic).Scan(&head, &first)
	switch {
	case errors.Is(err, pgx.ErrNoRows) && (from > 0 || !follow):
		return c.noTopic(ctx, topic)
	case err != nil && !errors.Is(err, pgx.ErrNoRows):
		return wrap("reading the head", err)
	}
	after := from - 1
	if from <= 0 {
		after = max(0, head+from)
	}
	switch {
	case from > head+1:
		return fmt.Errorf("%w: offset %d does not exist yet: the head is %d", ErrInvalid, from, head)
	case from > 0 && from < first:
		return fmt.Errorf("%w: offset %d is past retention: the journal has %d to %d", ErrInvalid, from, first, head)
	case after+1 < first:
		after = first - 1
	}
	reader := journal.New(c.pool)
	for {
		_, frames, err := reader.Range(ctx, topic, after, 100)
		if err != nil {
			return wrap("reading the journal", err)
		}
		for _, f := range frames {
			if err := each(f); err != nil {
				return err
			}
			after++
		}
		if len(frames) > 0 {
			continue
		}
		if !follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(tailEvery):
		}
	}
}
