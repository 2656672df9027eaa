package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/commitcast/commitcast/ops"
)

type opsDead struct {
	List    deadList    `cmd:"" help:"Those that wait for somebody, the newest first; or all of a topic."`
	Show    deadShow    `cmd:"" help:"One, with its data and error."`
	Retry   deadRetry   `cmd:"" help:"Have topics that are given up tried again: one, or all."`
	Discard deadDiscard `cmd:"" help:"Remove dead letters of a topic."`
}

type deadList struct {
	opsFlags
	Topic string `help:"Of this topic, redriven or not, by offset."`
	After string `placeholder:"TOPIC@OFFSET" help:"Begin after this one."`
	Limit int    `default:"50" help:"How many (${default}, at most 1000)."`
}

func (c *deadList) Run(ctx context.Context, s *streams) error {
	return c.with(ctx, func(console *ops.Console) error {
		q := ops.DeadQuery{Topic: c.Topic, Limit: c.Limit}
		if c.After != "" {
			var topic string
			var offset int64
			if i := strings.LastIndexByte(c.After, '@'); i > 0 {
				topic = c.After[:i]
				fmt.Sscan(c.After[i+1:], &offset)
			}
			if topic == "" || offset < 1 {
				return usageError{fmt.Errorf("--after=%s is not TOPIC@OFFSET", c.After)}
			}
			d, err := console.DeadLetter(ctx, topic, offset)
			if err != nil {
				return err
			}
			q.After = d
		}
		list, err := console.DeadLetters(ctx, q)
		if err != nil {
			return err
		}
		return c.show(s, list, func(p *page) {
			t := newTable("TOPIC", ">OFFSET", "TYPE", ">SIZE", ">DEAD FOR", ">ATTEMPTS", "REDRIVEN", "ERROR")
			for _, d := range list {
				redriven := ""
				if d.RedrivenAt != nil {
					redriven = ago(d.RedrivenAt) + " ago"
				}
				t.add(d.Topic, d.Offset, d.Type, ops.Bytes(int64(d.Bytes)), ago(&d.DiedAt), d.Attempts, redriven, short(d.Error, 80))
			}
			p.print(t)
			if len(list) == 0 {
				p.line("No dead letters.")
			} else if len(list) == c.Limit {
				last := list[len(list)-1]
				p.line("%s", p.paint(dim, fmt.Sprintf("more: --after=%s@%d", last.Topic, last.Offset)))
			}
		})
	})
}

type deadShow struct {
	opsFlags
	Topic  string `arg:""`
	Offset int64  `arg:""`
}

func (c *deadShow) Run(ctx context.Context, s *streams) error {
	return c.with(ctx, func(console *ops.Console) error {
		d, err := console.DeadLetter(ctx, c.Topic, c.Offset)
		if err != nil {
			return err
		}
		return c.show(s, d, func(p *page) {
			p.line("%s  offset %d, epoch %s, event %d, type %s", p.paint(bold, d.Topic), d.Offset, d.Epoch, d.ID, d.Type)
			p.line("dead for %s after %d attempts: %s", ago(&d.DiedAt), d.Attempts, d.Error)
			if d.RedrivenAt != nil {
				p.line("redriven %s ago", ago(d.RedrivenAt))
			}
			if d.Key != "" {
				p.line("key      %s", d.Key)
			}
			if d.Headers != nil {
				p.line("headers  %s", *d.Headers)
			}
			if d.Data != nil {
				p.line("data     %s", *d.Data)
			}
		})
	})
}

type deadRetry struct {
	opsFlags
	actFlags
	Topic string `arg:"" optional:""`
	All   bool   `help:"Every topic that is given up, up to 10,000 at once."`
}

func (c *deadRetry) Run(ctx context.Context, s *streams) error {
	if c.All == (c.Topic != "") {
		return usageError{errors.New("name a topic, or say --all")}
	}
	if !c.All {
		r := opsRedrive{opsFlags: c.opsFlags, actFlags: c.actFlags, Topic: c.Topic}
		return r.Run(ctx, s)
	}
	return c.order(ctx, s, &c.actFlags, ops.Order{Action: ops.RedriveAll})
}

type deadDiscard struct {
	opsFlags
	actFlags
	Topic   string  `arg:""`
	Offsets []int64 `arg:"" optional:"" help:"These; else all of the topic, up to 1,000 at once."`
	Lose    bool    `help:"Also those that were not redriven, although they may be the last that there is of an event."`
}

func (c *deadDiscard) Run(ctx context.Context, s *streams) error {
	return c.order(ctx, s, &c.actFlags, ops.Order{Action: ops.Discard, Topic: c.Topic, Offsets: c.Offsets, Lose: c.Lose})
}

type opsRedrive struct {
	opsFlags
	actFlags
	Topic  string `arg:""`
	From   int64  `help:"Publish retained events again from this offset on."`
	To     int64  `help:"To this one (the head)."`
	First  string `placeholder:"SUBJECT" help:"Have the clients with tokens of this subject sent the events first, then ask; with --yes or --json it ends there, and says how to go on."`
	NoWait bool   `help:"Order it, and do not wait until it is done."`
}

func (c *opsRedrive) Run(ctx context.Context, s *streams) error {
	return c.with(ctx, func(console *ops.Console) error {
		if c.First != "" {
			if on, err := c.first(ctx, s, console); err != nil || !on {
				return err
			}
		}
		p, err := console.Propose(ctx, ops.Order{Action: ops.Redrive, Topic: c.Topic, From: c.From, To: c.To})
		if err != nil {
			return err
		}
		if c.DryRun && c.JSON {
			return c.show(s, p.Plan, nil)
		}
		if ok, err := c.confirm(s, os.Stdin, p.What); err != nil || !ok {
			return err
		}
		out, err := console.Carry(ctx, p)
		if err != nil {
			return err
		}
		r := out.Redriving
		if r == nil || c.NoWait {
			return c.show(s, out, func(p *page) { p.line("%s", out.Says) })
		}
		progress := bar{p: newPage(s.err)}
		ended, err := console.Await(ctx, r, func(r *ops.Redriving) {
			done, all := r.Done()
			progress.at(done, all, "events")
		})
		progress.end()
		if ctx.Err() != nil {
			fmt.Fprintf(s.err, "No longer watched; workers go on. See: commitcast ops topic %s\n", c.Topic)
			return ctx.Err()
		}
		if err != nil {
			return err
		}
		if err := c.show(s, ended, func(p *page) {
			done, all := ended.Done()
			p.line("%s of %s events published: %s", count(done), count(all), ended.Result)
		}); err != nil {
			return err
		}
		if ended.Result != "done" {
			return exitCode(exitProblem)
		}
		return nil
	})
}

// first sends the clients of one subject ahead. It reports whether the redrive for all is to follow.
func (c *opsRedrive) first(ctx context.Context, s *streams, console *ops.Console) (goOn bool, err error) {
	p, err := console.Propose(ctx, ops.Order{Action: ops.GoFirst, Topic: c.Topic, From: c.From, To: c.To, Subject: c.First})
	if err != nil {
		return false, err
	}
	if c.DryRun {
		_, err := c.confirm(s, os.Stdin, p.What)
		return true, err // what follows is said, too
	}
	progress := bar{p: newPage(s.err)}
	f, err := console.GoFirst(ctx, p.Plan, c.First, func(f *ops.First) {
		done, all := f.Done()
		progress.at(done, all, "events")
	})
	progress.end()
	if err != nil {
		return false, err
	}
	if c.JSON {
		return false, c.show(s, f, nil)
	}
	tell(s, f.Says())
	if c.Yes || !isTerminal(os.Stdin) {
		fmt.Fprintf(s.out, "For all, now: %s\n", visible(f.Next))
		return false, nil
	}
	return true, nil
}

type opsRelease struct {
	opsFlags
	actFlags
	Topic string `arg:""`
}

func (c *opsRelease) Run(ctx context.Context, s *streams) error {
	r := opsRedrive{opsFlags: c.opsFlags, actFlags: c.actFlags, Topic: c.Topic}
	return r.Run(ctx, s)
}

type opsPark struct {
	opsFlags
	actFlags
	Topic string `arg:""`
	Why   string `help:"For those who come after you."`
}

func (c *opsPark) Run(ctx context.Context, s *streams) error {
	return c.order(ctx, s, &c.actFlags, ops.Order{Action: ops.Park, Topic: c.Topic, Why: c.Why})
}

type opsPause struct {
	opsFlags
	actFlags
	Partition int    `arg:"" help:"0 to 31; commitcast ops topic NAME says which one a topic is in."`
	Why       string `help:"For those who come after you."`
}

func (c *opsPause) Run(ctx context.Context, s *streams) error {
	return c.order(ctx, s, &c.actFlags, ops.Order{Action: ops.Pause, Partition: c.Partition, Why: c.Why})
}

type opsResume struct {
	opsFlags
	actFlags
	Partition int `arg:""`
}

func (c *opsResume) Run(ctx context.Context, s *streams) error {
	return c.order(ctx, s, &c.actFlags, ops.Order{Action: ops.Resume, Partition: c.Partition})
}

type opsDrain struct {
	opsFlags
	actFlags
	Name string `arg:"" help:"The broadcaster's name, or the address of its ops listener."`
	Undo bool   `help:"Let it take clients again."`
}

func (c *opsDrain) Run(ctx context.Context, s *streams) error {
	o := ops.Order{Action: ops.Drain, Node: c.Name}
	if c.Undo {
		o.Action = ops.Undrain
	}
	return c.order(ctx, s, &c.actFlags, o)
}

type opsDisconnect struct {
	opsFlags
	actFlags
	Subject string `arg:"" help:"The subject of the token (sub)."`
}

func (c *opsDisconnect) Run(ctx context.Context, s *streams) error {
	return c.order(ctx, s, &c.actFlags, ops.Order{Action: ops.Disconnect, Subject: c.Subject})
}

type opsEpoch struct {
	List epochList `cmd:"" help:"The newest, newest first."`
	Bump epochBump `cmd:"" help:"Begin a new one: after the database went back in a way that cannot be seen from inside. Harmless without need."`
}

type epochList struct {
	opsFlags
	Limit int `default:"20" help:"How many (${default}, at most 1000)."`
}

func (c *epochList) Run(ctx context.Context, s *streams) error {
	return c.with(ctx, func(console *ops.Console) error {
		list, err := console.Epochs(ctx, c.Limit)
		if err != nil {
			return err
		}
		return c.show(s, list, func(p *page) {
			t := newTable("EPOCH", "BEGAN", ">AGO", "WHY")
			for _, e := range list {
				t.add(e.Name, e.BeganAt.Local().Format("2006-01-02 15:04:05"), ago(&e.BeganAt), e.Reason)
			}
			p.print(t)
		})
	})
}

type epochBump struct {
	opsFlags
	actFlags
	Why string `required:"" help:"Why: it is kept with the epoch."`
}

func (c *epochBump) Run(ctx context.Context, s *streams) error {
	return c.order(ctx, s, &c.actFlags, ops.Order{Action: ops.BumpEpoch, Why: c.Why})
}
