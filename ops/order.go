package ops

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

// The actions of an Order.
const (
	Pause      = "pause"         // a partition
	Resume     = "resume"        // a partition
	Park       = "park"          // a topic
	Redrive    = "redrive"       // a topic that is set aside, or parked; or a range of one that is not
	RedriveAll = "redrive all"   // every topic that is given up
	GoFirst    = "redrive first" // the clients of a subject are sent ahead of the redrive of a topic that is set aside
	Discard    = "discard"       // dead letters of a topic
	Drain      = "drain"         // a broadcaster
	Undrain    = "undrain"       // a broadcaster
	Disconnect = "disconnect"    // a subject
	BumpEpoch  = "epoch bump"
)

// Order is what an operator wants done.
type Order struct {
	Action    string  `json:"action"`
	Partition int     `json:"partition"`
	Topic     string  `json:"topic,omitempty"`
	From      int64   `json:"from,omitempty"`    // of a redrive: retained events from here on
	To        int64   `json:"to,omitempty"`      // 0: the head
	Offsets   []int64 `json:"offsets,omitempty"` // to discard; none: all, up to MaxPage
	Lose      bool    `json:"lose,omitempty"`    // discard also what was not redriven
	Node      string  `json:"node,omitempty"`    // a broadcaster's name, or the address of its ops listener
	Subject   string  `json:"subject,omitempty"`
	Why       string  `json:"why,omitempty"`
}

// Proposal is an order, and what it was seen to be about. What it says has changed nothing yet.
type Proposal struct {
	Order
	What string // it would …
	Plan *Plan  // of a redrive

	since time.Time    // of the pause
	dead  []DeadLetter // to be discarded
	epoch string
	node  string // its address
}

// Propose looks at what an order is about, and says what carrying it out would do. An order that cannot be is refused.
func (c *Console) Propose(ctx context.Context, o Order) (*Proposal, error) {
	p := &Proposal{Order: o}
	err := c.propose(ctx, p)
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (c *Console) propose(ctx context.Context, p *Proposal) (err error) {
	switch p.Action {
	case Pause:
		if err := checkPartition(p.Partition); err != nil {
			return err
		}
		p.What = fmt.Sprintf("pause partition %d: nothing new of a thirty-second of all topics reaches anybody until it is resumed", p.Partition)
	case Resume:
		if p.since, err = c.Paused(ctx, p.Partition); err != nil {
			return err
		}
		p.What = fmt.Sprintf("resume partition %d, which was paused %s ago", p.Partition, Age(time.Since(p.since)))
	case Park:
		if _, err := c.Topic(ctx, p.Topic); err != nil {
			return err
		}
		p.What = fmt.Sprintf("set topic %s aside: nothing of it goes to Redis, and its subscribers are served from the journal, about a second late", p.Topic)
	case Redrive:
		if p.Plan, err = c.PlanRedrive(ctx, p.Topic, p.From, p.To); err != nil {
			return err
		}
		p.What = fmt.Sprintf("publish %s events of %s, %d to %d, in order", Count(p.Plan.Events), p.Topic, p.Plan.First, p.Plan.Last)
		if p.Plan.Retries {
			p.What = fmt.Sprintf("have topic %s, which is being tried now and then, tried at once", p.Topic)
		}
	case GoFirst:
		if p.Plan, err = c.PlanRedrive(ctx, p.Topic, p.From, p.To); err != nil {
			return err
		}
		f, err := c.planFirst(ctx, p.Plan, p.Subject)
		if err != nil {
			return err
		}
		all, there, at := f.standing()
		p.What = fmt.Sprintf("have %s of %s sent what %s holds from the journal, up to %d, before it is redriven for all: %d of them had all of it", plural(all, "subscription"), p.Subject, p.Topic, p.Plan.Last, there)
		if there < all && at >= 0 {
			p.What += fmt.Sprintf(", the last is at %d", at)
		}
	case RedriveAll:
		p.What = "have every topic that is given up tried again"
	case Discard:
		return c.proposeDiscard(ctx, p)
	case Drain, Undrain:
		n, err := c.Broadcaster(ctx, p.Node)
		if err != nil {
			return err
		}
		p.node = n.Address
		p.What = fmt.Sprintf("send the %d clients of %s elsewhere, and let it take no more", n.Identity.Broadcaster.Connections, n.Name())
		if p.Action == Undrain {
			p.What = fmt.Sprintf("let %s take clients again", n.Name())
		}
	case Disconnect:
		if p.Subject == "" {
			return fmt.Errorf("%w: the subject is empty", ErrInvalid)
		}
		p.What = fmt.Sprintf("close every connection of %s; it may come back: its token stays good", p.Subject)
	case BumpEpoch:
		list, err := c.Epochs(ctx, 1)
		if err != nil {
			return err
		}
		p.epoch = list[0].Name
		p.What = fmt.Sprintf("end epoch %s and begin a new one: every subscriber's cursor is looked at again", p.epoch)
	default:
		return fmt.Errorf("%w: there is no action %.50q", ErrInvalid, p.Action)
	}
	return nil
}

func (c *Console) proposeDiscard(ctx context.Context, p *Proposal) (err error) {
	if len(p.Offsets) > MaxPage {
		return fmt.Errorf("%w: at most %d at once", ErrInvalid, MaxPage)
	}
	if len(p.Offsets) == 0 {
		if p.dead, err = c.DeadLetters(ctx, DeadQuery{Topic: p.Topic, Limit: MaxPage}); err != nil {
			return err
		}
		if len(p.dead) == 0 {
			return fmt.Errorf("%w: topic %q has no dead letters", ErrNotFound, p.Topic)
		}
	}
	for _, o := range p.Offsets {
		d, err := c.DeadLetter(ctx, p.Topic, o)
		if err != nil {
			return err
		}
		p.dead = append(p.dead, *d)
	}
	lost := 0
	for _, d := range p.dead {
		if d.RedrivenAt == nil {
			lost++
		}
	}
	p.What = fmt.Sprintf("remove %d dead letters of %s, of which %d were never published", len(p.dead), p.Topic, lost)
	return nil
}

// Outcome is what came of an order.
type Outcome struct {
	Says      string     `json:"says"`                // may be several lines
	Redriving *Redriving `json:"redriving,omitempty"` // workers are at it
	First     *First     `json:"first,omitempty"`     // who went ahead, and is there
}

// Carry carries a proposal out, if all is still as it was seen; else it is refused with [ErrConflict]. An outcome may come with an
// error: then a part was done.
func (c *Console) Carry(ctx context.Context, p *Proposal) (out Outcome, err error) {
	c = c.As("", p.Why)
	switch p.Action {
	case Pause:
		out.Says = fmt.Sprintf("partition %d is paused; end it with: commitcast ops resume %d", p.Partition, p.Partition)
		err = c.Pause(ctx, p.Partition, p.Why)
	case Resume:
		out.Says = fmt.Sprintf("partition %d goes on", p.Partition)
		err = c.Resume(ctx, p.Partition, p.since)
	case Park:
		var from int64
		from, err = c.Park(ctx, p.Topic, p.Why)
		out.Says = fmt.Sprintf("%s is parked from offset %d on; end it with: commitcast ops release %s", p.Topic, from, p.Topic)
	case Redrive:
		out.Redriving, err = c.Redrive(ctx, p.Plan)
		switch r := out.Redriving; {
		case err != nil:
		case r == nil:
			out.Says = fmt.Sprintf("Its job runs now; see: commitcast ops topic %s", p.Topic)
		default:
			out.Says = fmt.Sprintf("Ordered, as record %d; workers do it. See: commitcast ops topic %s", r.Record, p.Topic)
			if p.Plan.Events == 0 {
				out.Redriving = nil
			}
		}
	case GoFirst:
		var f *First
		if f, err = c.GoFirst(ctx, p.Plan, p.Subject, func(*First) {}); err == nil {
			out.Says = f.Says() + "For all, now: " + f.Next
			out.First = f
		}
	case RedriveAll:
		var taken []string
		taken, err = c.RedriveAll(ctx)
		out.Says = fmt.Sprintf("%s topics are tried again, by workers; see: commitcast ops stuck", Count(int64(len(taken))))
	case Discard:
		out.Says = fmt.Sprintf("%d removed", len(p.dead))
		err = c.Discard(ctx, p.Topic, p.dead, p.Lose)
	case Drain, Undrain:
		var a Acted
		a, err = c.Drain(ctx, p.node, p.Action == Undrain)
		out.Says = fmt.Sprintf("%s is drained: %d clients were sent away. End it with: commitcast ops drain --undo %s", a.Node, a.Clients, a.Node)
		if p.Action == Undrain {
			out.Says = a.Node + " takes clients again"
		}
	case Disconnect:
		var acted []Acted
		acted, err = c.Disconnect(ctx, p.Subject)
		said := ""
		for _, a := range acted {
			if a.Error != "" {
				said += fmt.Sprintf("%s: %s\n", a.Node, a.Error)
			} else {
				said += fmt.Sprintf("%s: %d closed\n", a.Node, a.Clients)
			}
		}
		return Outcome{Says: said}, err
	case BumpEpoch:
		var epoch string
		epoch, err = c.BumpEpoch(ctx, p.epoch, p.Why)
		out.Says = "the epoch is " + epoch
	default:
		return out, fmt.Errorf("%w: there is no action %.50q", ErrInvalid, p.Action)
	}
	if err != nil {
		return Outcome{}, err
	}
	return out, nil
}

// Count is a number for people, with its thousands apart.
func Count(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// Age is a duration as people say it; "" for none.
func Age(d time.Duration) string {
	switch {
	case d <= 0:
		return ""
	case d < time.Millisecond:
		return "<1ms"
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
