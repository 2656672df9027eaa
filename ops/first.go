package ops

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/commitcast/commitcast/broadcaster"
)

// Before a topic that is set aside is redriven for all, the clients of one subject may be sent ahead: their broadcasters read its events
// from the journal for them at once. That is no more than they would be given anyway, and sooner: nobody is held back, nothing is
// published, and the topic stays set aside (docs/adr/0027).

const (
	// firstEvery is how often nodes are asked how far the clients of the one subject are.
	firstEvery = 250 * time.Millisecond
	// firstStalls is how long nothing may move, before it is given up: a client that comes back needs a few seconds, and a node that
	// reads slowly brings a page in less.
	firstStalls = 15 * time.Second
)

// Advance orders a node to send a subject ahead: the body of PathAdvance.
type Advance struct {
	Topic   string `json:"topic"`
	Subject string `json:"subject"`
	To      int64  `json:"to"`
}

// NodeFollowers are the subscriptions of a topic by tokens of a subject at one broadcaster.
type NodeFollowers struct {
	Node      string                 `json:"node"`
	Address   string                 `json:"address"`
	Error     string                 `json:"error,omitempty"` // why it could not be asked: they may be there
	Followers []broadcaster.Follower `json:"followers"`
}

// First is how far the clients of one subject are that go ahead of a redrive.
type First struct {
	Topic   string          `json:"topic"`
	Subject string          `json:"subject"`
	First   int64           `json:"first"` // the events of the redrive, as planned
	Last    int64           `json:"last"`
	Nodes   []NodeFollowers `json:"nodes"`
	Next    string          `json:"next"` // the command that redrives it for all
}

// Followers finds the subscriptions of a topic by tokens of a subject, on every broadcaster.
func (c *Console) Followers(ctx context.Context, topic, subject string) ([]NodeFollowers, error) {
	return c.followers(ctx, Advance{Topic: topic, Subject: subject})
}

// followers asks every broadcaster; with an offset, it sends the subject there.
func (c *Console) followers(ctx context.Context, a Advance) ([]NodeFollowers, error) {
	nodes, err := c.Nodes(ctx)
	if err != nil && len(nodes) == 0 {
		return nil, err
	}
	list := []NodeFollowers{}
	var mu sync.Mutex
	c.each(nodes, func(n *Node) {
		if n.Identity != nil && n.Identity.Broadcaster == nil {
			return
		}
		f := NodeFollowers{Node: n.Name(), Address: n.Address, Error: n.Error, Followers: []broadcaster.Follower{}}
		if f.Error == "" {
			if err := c.askFollowers(ctx, n.Address, a, &f.Followers); err != nil {
				f.Error = err.Error()
			}
		}
		mu.Lock()
		defer mu.Unlock()
		list = append(list, f)
	})
	slices.SortFunc(list, func(x, y NodeFollowers) int {
		return cmp.Or(cmp.Compare(x.Node, y.Node), cmp.Compare(x.Address, y.Address))
	})
	return list, nil
}

func (c *Console) askFollowers(ctx context.Context, address string, a Advance, into *[]broadcaster.Follower) error {
	if a.To == 0 {
		return c.get(ctx, address, PathFollowers+"?"+url.Values{"topic": {a.Topic}, "subject": {a.Subject}}.Encode(), into)
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	body, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return c.ask(ctx, "POST", address, PathAdvance, body, into)
}

// planFirst says what sending a subject ahead of a redrive would be about. It is refused if nobody would go.
func (c *Console) planFirst(ctx context.Context, p *Plan, subject string) (*First, error) {
	switch {
	case subject == "":
		return nil, fmt.Errorf("%w: the subject is empty", ErrInvalid)
	case p.Range:
		return nil, fmt.Errorf("%w: who is connected has had retained events; one client first is for a topic that is set aside", ErrInvalid)
	}
	f := &First{Topic: p.Topic, Subject: subject, First: p.First, Last: p.Last, Next: "commitcast ops redrive " + p.Topic}
	var err error
	if f.Nodes, err = c.Followers(ctx, f.Topic, subject); err != nil {
		return nil, err
	}
	if n, _, _ := f.standing(); n == 0 {
		return nil, f.nobody()
	}
	return f, nil
}

// standing counts the subscriptions, and those that have been sent everything; at is the lowest cursor of those that are live.
func (f *First) standing() (all, there int, at int64) {
	at = -1
	for _, n := range f.Nodes {
		for _, s := range n.Followers {
			all++
			if s.Live && (at < 0 || s.Cursor < at) {
				at = s.Cursor
			}
			if s.Live && s.Cursor >= f.Last && !s.Waiting {
				there++
			}
		}
	}
	return all, there, at
}

// Done is how many events of the redrive the slowest subscription has been sent, of all.
func (f *First) Done() (done, all int64) {
	_, _, at := f.standing()
	all = f.Last - f.First + 1
	return min(max(0, at-f.First+1), all), all
}

// unasked are the nodes that could not be asked; "" if there are none.
func (f *First) unasked() string {
	var said []string
	for _, n := range f.Nodes {
		if n.Error != "" {
			said = append(said, fmt.Sprintf("%s cannot be asked: %s", n.Node, n.Error))
		}
	}
	return strings.Join(said, "; ")
}

// nobody is the error that nobody can go ahead.
func (f *First) nobody() error {
	if said := f.unasked(); said != "" {
		return fmt.Errorf("no client of %q is known to follow %q, and %s", f.Subject, f.Topic, said)
	}
	if len(f.Nodes) == 0 {
		return fmt.Errorf("%w: no broadcaster was found to ask", ErrNotFound)
	}
	return fmt.Errorf("%w: no client with a token of the subject %q follows %q, at any of %s; see: commitcast ops clients --subject=%s", ErrNotFound, f.Subject, f.Topic,
		plural(len(f.Nodes), "broadcaster"), f.Subject)
}

// Says is where each subscription stands, a line each.
func (f *First) Says() string {
	var b strings.Builder
	for _, n := range f.Nodes {
		for _, s := range n.Followers {
			switch {
			case !s.Live:
				fmt.Fprintf(&b, "%s: session %s is joining\n", n.Node, s.Session)
			case s.Cursor >= f.Last && !s.Waiting:
				fmt.Fprintf(&b, "%s: session %s has been sent everything up to %d\n", n.Node, s.Session, s.Cursor)
			case s.Cursor >= f.Last:
				fmt.Fprintf(&b, "%s: session %s is being sent what is left up to %d\n", n.Node, s.Session, s.Cursor)
			default:
				fmt.Fprintf(&b, "%s: session %s has been sent up to %d of %d\n", n.Node, s.Session, s.Cursor, f.Last)
			}
		}
	}
	return b.String()
}

// GoFirst sends the clients of a subject ahead of a redrive, and follows them until all have been sent its events, with each called a few times a
// second. Who comes back meanwhile goes on from where he was. It gives up when nothing moves for 15 s, with where they stand.
func (c *Console) GoFirst(ctx context.Context, p *Plan, subject string, each func(*First)) (f *First, err error) {
	if f, err = c.planFirst(ctx, p, subject); err != nil {
		return f, err
	}
	// The record says who, of what, to whom; each node is told as often as it is asked, which changes nothing once it knows.
	err = c.actElsewhere(ctx, "redrive first", p.Topic, map[string]any{"subject": subject, "first": p.First, "last": p.Last}, func() (string, error) {
		if err := c.goFirst(ctx, f, each); err != nil {
			return "", err
		}
		if err := wrap("looking at the topic again", seenParked(ctx, c.pool, p.Topic, p.Parked)); err != nil {
			return "", err
		}
		all, _, at := f.standing()
		return fmt.Sprintf("done: %s at %d or later", plural(all, "subscription"), at), nil
	})
	return f, err
}

func (c *Console) goFirst(ctx context.Context, f *First, each func(*First)) error {
	moved, was := time.Now(), int64(-1)
	for {
		nodes, err := c.followers(ctx, Advance{f.Topic, f.Subject, f.Last})
		if err != nil {
			return err
		}
		f.Nodes = nodes
		all, there, at := f.standing()
		each(f)
		if all > 0 && there == all && f.unasked() == "" {
			return nil
		}
		if at > was {
			moved, was = time.Now(), at
		}
		if time.Since(moved) > firstStalls {
			return f.stuck()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(firstEvery):
		}
	}
}

// stuck is the error that a subject does not get there.
func (f *First) stuck() error {
	all, there, _ := f.standing()
	said := f.unasked()
	switch {
	case all == 0 && said == "":
		return fmt.Errorf("%w: the clients of %q have left", ErrNotFound, f.Subject)
	case all == there && said != "":
		return errors.New(said + "; clients of the subject may be there")
	case said != "":
		said = "; " + said
	}
	return fmt.Errorf("nothing has moved for %s: %s%s", Age(firstStalls), strings.ReplaceAll(strings.TrimSpace(f.Says()), "\n", "; "), said)
}
