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
	return c.with(ctx, func(console *ops.Console) error {
		return c.act(s, "have every topic that is given up tried again", func() (string, error) {
			taken, err := console.RedriveAll(ctx)
			return fmt.Sprintf("%s topics are tried again, by workers; see: commitcast ops stuck", count(int64(len(taken)))), err
		})
	})
}

type deadDiscard struct {
	opsFlags
	actFlags
	Topic   string  `arg:""`
	Offsets []int64 `arg:"" optional:"" help:"These; else all of the topic, up to 1,000 at once."`
	Lose    bool    `help:"Also those that were not redriven, although they may be the last that there is of an event."`
}

func (c *deadDiscard) Run(ctx context.Context, s *streams) error {
	return c.with(ctx, func(console *ops.Console) error {
		var seen []ops.DeadLetter
		if len(c.Offsets) == 0 {
			list, err := console.DeadLetters(ctx, ops.DeadQuery{Topic: c.Topic, Limit: ops.MaxPage})
			if err != nil {
				return err
			}
			if len(list) == 0 {
				return fmt.Errorf("%w: topic %q has no dead letters", ops.ErrNotFound, c.Topic)
			}
			seen = list
		}
		for _, o := range c.Offsets {
			d, err := console.DeadLetter(ctx, c.Topic, o)
			if err != nil {
				return err
			}
			seen = append(seen, *d)
		}
		lost := 0
		for _, d := range seen {
			if d.RedrivenAt == nil {
				lost++
			}
		}
		return c.act(s, fmt.Sprintf("remove %d dead letters of %s, of which %d were never published", len(seen), c.Topic, lost), func() (string, error) {
			return fmt.Sprintf("%d removed", len(seen)), console.Discard(ctx, c.Topic, seen, c.Lose)
		})
	})
}

type opsRedrive struct {
	opsFlags
	actFlags
	Topic  string `arg:""`
	From   int64  `help:"Publish retained events again from this offset on."`
	To     int64  `help:"To this one (the head)."`
	NoWait bool   `help:"Order it, and do not wait until it is done."`
}

func (c *opsRedrive) Run(ctx context.Context, s *streams) error {
	return c.with(ctx, func(console *ops.Console) error {
		plan, err := console.PlanRedrive(ctx, c.Topic, c.From, c.To)
		if err != nil {
			return err
		}
		what := fmt.Sprintf("publish %s events of %s, %d to %d, in order", count(plan.Events), c.Topic, plan.First, plan.Last)
		if plan.Retries {
			what = fmt.Sprintf("have topic %s, which is being tried now and then, tried at once", c.Topic)
		}
		if c.DryRun && c.JSON {
			return c.show(s, plan, nil)
		}
		if ok, err := c.confirm(s, os.Stdin, what); err != nil || !ok {
			return err
		}
		r, err := console.Redrive(ctx, plan)
		if err != nil {
			return err
		}
		if r == nil {
			return c.show(s, map[string]string{"topic": c.Topic, "result": "tried now"}, func(p *page) {
				p.line("Its job runs now; see: commitcast ops topic %s", c.Topic)
			})
		}
		if c.NoWait || plan.Events == 0 {
			return c.show(s, r, func(p *page) {
				p.line("Ordered, as record %d; workers do it. See: commitcast ops topic %s", r.Record, c.Topic)
			})
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
	return c.with(ctx, func(console *ops.Console) error {
		if _, err := console.Topic(ctx, c.Topic); err != nil {
			return err
		}
		return c.act(s, fmt.Sprintf("set topic %s aside: nothing of it goes to Redis, and its subscribers are served from the journal, about a second late", c.Topic), func() (string, error) {
			from, err := console.Park(ctx, c.Topic, c.Why)
			return fmt.Sprintf("%s is parked from offset %d on; end it with: commitcast ops release %s", c.Topic, from, c.Topic), err
		})
	})
}

type opsPause struct {
	opsFlags
	actFlags
	Partition int    `arg:"" help:"0 to 31; commitcast ops topic NAME says which one a topic is in."`
	Why       string `help:"For those who come after you."`
}

func (c *opsPause) Run(ctx context.Context, s *streams) error {
	return c.with(ctx, func(console *ops.Console) error {
		return c.act(s, fmt.Sprintf("pause partition %d: nothing new of a thirty-second of all topics reaches anybody until it is resumed", c.Partition), func() (string, error) {
			return fmt.Sprintf("partition %d is paused; end it with: commitcast ops resume %d", c.Partition, c.Partition), console.Pause(ctx, c.Partition, c.Why)
		})
	})
}

type opsResume struct {
	opsFlags
	actFlags
	Partition int `arg:""`
}

func (c *opsResume) Run(ctx context.Context, s *streams) error {
	return c.with(ctx, func(console *ops.Console) error {
		since, err := console.Paused(ctx, c.Partition)
		if err != nil {
			return err
		}
		return c.act(s, fmt.Sprintf("resume partition %d, which was paused %s ago", c.Partition, ago(&since)), func() (string, error) {
			return fmt.Sprintf("partition %d goes on", c.Partition), console.Resume(ctx, c.Partition, since)
		})
	})
}

type opsDrain struct {
	opsFlags
	actFlags
	Name string `arg:"" help:"The broadcaster's name, or the address of its ops listener."`
	Undo bool   `help:"Let it take clients again."`
}

func (c *opsDrain) Run(ctx context.Context, s *streams) error {
	return c.with(ctx, func(console *ops.Console) error {
		n, err := console.Broadcaster(ctx, c.Name)
		if err != nil {
			return err
		}
		what := fmt.Sprintf("send the %d clients of %s elsewhere, and let it take no more", n.Identity.Broadcaster.Connections, n.Name())
		if c.Undo {
			what = fmt.Sprintf("let %s take clients again", n.Name())
		}
		return c.act(s, what, func() (string, error) {
			a, err := console.Drain(ctx, n.Address, c.Undo)
			if c.Undo {
				return a.Node + " takes clients again", err
			}
			return fmt.Sprintf("%s is drained: %d clients were sent away. End it with: commitcast ops drain --undo %s", a.Node, a.Clients, a.Node), err
		})
	})
}

type opsDisconnect struct {
	opsFlags
	actFlags
	Subject string `arg:"" help:"The subject of the token (sub)."`
}

func (c *opsDisconnect) Run(ctx context.Context, s *streams) error {
	return c.with(ctx, func(console *ops.Console) error {
		return c.act(s, fmt.Sprintf("close every connection of %s; it may come back: its token stays good", c.Subject), func() (string, error) {
			acted, err := console.Disconnect(ctx, c.Subject)
			var lines []string
			for _, a := range acted {
				if a.Error != "" {
					lines = append(lines, visible(fmt.Sprintf("%s: %s", a.Node, a.Error)))
				} else {
					lines = append(lines, visible(fmt.Sprintf("%s: %d closed", a.Node, a.Clients)))
				}
			}
			if err != nil && len(lines) > 0 {
				fmt.Fprintln(s.out, strings.Join(lines, "\n"))
			}
			return strings.Join(lines, "\n"), err
		})
	})
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
	return c.with(ctx, func(console *ops.Console) error {
		list, err := console.Epochs(ctx, 1)
		if err != nil {
			return err
		}
		return c.act(s, fmt.Sprintf("end epoch %s and begin a new one: every subscriber's cursor is looked at again", list[0].Name), func() (string, error) {
			epoch, err := console.BumpEpoch(ctx, list[0].Name, c.Why)
			return "the epoch is " + epoch, err
		})
	})
}
