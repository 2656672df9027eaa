package app

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/commitcast/commitcast/ops"
	"github.com/commitcast/commitcast/wire"
)

// countMost is where package ops stops counting what should be few.
const countMost = 1000

type opsStatus struct {
	opsFlags
	Over time.Duration `default:"1s" help:"Over how long rates are measured (${default}); 0: not at all."`
}

func (c *opsStatus) Run(ctx context.Context, s *streams) error {
	if c.Over < 0 || c.Over > time.Minute {
		return usageError{fmt.Errorf("--over=%v: must be 0 to 1m", c.Over)}
	}
	return c.with(ctx, func(console *ops.Console) error {
		st, err := console.Status(ctx, c.Over)
		if err != nil {
			return err
		}
		if err := c.show(s, st, func(p *page) { showStatus(p, st) }); err != nil {
			return err
		}
		return byLevel(st.Level)
	})
}

func showStatus(p *page, st *ops.Status) {
	head := map[ops.Level]string{ops.Good: "Events flow.", ops.Warning: "Events flow, and something should be looked at.", ops.Problem: "Somebody is not served."}[st.Level]
	p.line("%s  %s", p.paint(levelColour(st.Level), strings.ToUpper(string(st.Level))), p.paint(bold, head))
	p.line("")
	hops := newTable("HOP", "STATE", ">RATE", ">WAITING", ">OLDEST", "")
	perSecond := func(v float64) string {
		if st.Rates.Over == 0 || !st.Database.Up {
			return ""
		}
		return rate(v)
	}
	unknown := cell{"unknown", dim}
	d := &st.Database
	if d.Up {
		hops.add("database", st.Worst("database"), "", "", "", fmt.Sprintf("Postgres %s, answers in %s, epoch %s for %s, %d of %d connections", d.Version, age(d.Took), d.Epoch, ago(d.EpochBegan), d.Connections, d.MaxConnections))
		hops.add("writers → outbox", st.Worst("outbox"), perSecond(st.Rates.Appended), upTo(st.Waiting, countMost), ageSeconds(st.WaitingFor), "")
		hops.add("outbox → journal", st.Worst("outbox", "operator"), perSecond(st.Rates.Sequenced), count(st.Unpublished), ageSeconds(st.UnpublishedFor), "")
	} else {
		hops.add("database", cell{"down", red}, "", "", "", short(d.Error, 100))
		hops.add("writers → outbox", unknown, "", "", "", "")
		hops.add("outbox → journal", unknown, "", "", "", "")
	}
	switch r := &st.Redis; {
	case !r.Configured:
		hops.add("journal → stream", st.Worst("journal"), perSecond(st.Rates.Published), "", "", "no --redis-url: the stream is within the process, or was not looked at")
	case !r.Up:
		hops.add("journal → Redis", cell{"down", red}, perSecond(st.Rates.Published), "", "", short(r.Error, 100))
	default:
		says := fmt.Sprintf("Redis %s, answers in %s, %s", r.Server.Version, age(r.Server.Took), ops.Bytes(r.Server.UsedMemory))
		if up := r.Server.Uptime; up > 0 {
			says += ", up " + ageSeconds(float64(up))
		}
		if n := st.Refilled(); n > 0 {
			says += ", refilled " + things(int(n), "time")
		}
		if st.SetAside > 0 {
			says += fmt.Sprintf(", %s topics set aside", upTo(st.SetAside, countMost))
		}
		hops.add("journal → Redis", st.Worst("redis", "journal"), perSecond(st.Rates.Published), "", "", says)
	}
	var nodes, clients, subs int
	var resets, stalled float64
	var canaries int
	var oldest *ops.Node // whose canary is the oldest
	list := newTable("NODE", "KIND", "STATE", ">CLIENTS", ">SUBSCRIPTIONS", ">TOPICS", ">PARTITIONS", ">UP", "OPS LISTENER")
	for _, n := range st.Nodes {
		id := n.Identity
		if id == nil {
			list.add(n.Address, "?", cell{"no answer", red}, "", "", "", "", "", short(n.Error, 60))
			continue
		}
		state := cell{"good", green}
		var c, sub, t, parts any = "", "", "", ""
		if w := id.Worker; w != nil {
			parts = len(w.Partitions)
			if w.Ready != "" {
				state = cell{short(w.Ready, 40), red}
			}
		}
		if b := id.Broadcaster; b != nil {
			nodes++
			if k := id.Canary; k != nil {
				canaries++
				if oldest == nil || k.Age > oldest.Identity.Canary.Age {
					oldest = n
				}
			}
			clients, subs = clients+b.Connections, subs+b.Subscriptions
			resets += n.Counters["commitcast_broadcaster_resets_total"]
			stalled += n.Counters["commitcast_broadcaster_clients_stalled_total"]
			c, sub, t = b.Connections, b.Subscriptions, b.Topics
			switch {
			case b.Drained:
				state = cell{"drained", yellow}
			case b.Polling:
				state = cell{"polling", yellow}
			case b.Ready != "":
				state = cell{short(b.Ready, 40), red}
			}
		}
		list.add(n.Name(), n.Kind(), state, c, sub, t, parts, age(time.Since(id.Started)), n.Address)
	}
	delivered := ""
	if st.Rates.Over > 0 && nodes > 0 {
		delivered = rate(st.Rates.Delivered)
	}
	hops.add("broadcasters", st.Worst("broadcaster", "node"), delivered, "", "", fmt.Sprintf("%s, %s, %s, %s and %s since they run",
		things(nodes, "node"), things(clients, "client"), things(subs, "subscription"), things(int(resets), "reset"), things(int(stalled), "stalled client")))
	if oldest != nil {
		state := any(ops.Good)
		if oldest.Identity.Canary.Why != "" {
			state = ops.Problem
		}
		hops.add("→ sockets", state, "", "", ageSeconds(oldest.Identity.Canary.Age), fmt.Sprintf("the newest event of the canary at a client, of %s, seen last at %s", things(canaries, "node"), oldest.Name()))
	}
	p.print(hops)
	if st.DeadLetters > 0 || st.GivenUp > 0 || st.Redrives > 0 {
		p.line("\n%s topics given up, %s dead letters, %s redrives under way", upTo(st.GivenUp, countMost), upTo(st.DeadLetters, countMost), upTo(st.Redrives, countMost))
	}
	if len(st.Nodes) > 0 {
		p.line("")
		p.print(list)
	}
	if len(st.Findings) > 0 {
		p.line("")
		showFindings(p, st.Findings)
	}
}

func showFindings(p *page, list []ops.Finding) {
	for i, f := range list {
		if i > 0 {
			p.line("")
		}
		since := ""
		if f.Since != nil {
			since = " (for " + ago(f.Since) + ")"
		}
		p.line("%s  %s: %s%s", p.paint(levelColour(f.Level), fmt.Sprintf("%-7s", f.Level)), p.paint(bold, f.Hop), f.What, since)
		for _, part := range [][2]string{{"why", f.Why}, {"affects", f.Affects}, {"do", f.Help}} {
			if part[1] != "" {
				p.line("         %s  %s", p.paint(dim, fmt.Sprintf("%-7s", part[0])), part[1])
			}
		}
	}
}

type opsStuck struct{ opsFlags }

func (c *opsStuck) Run(ctx context.Context, s *streams) error {
	return c.with(ctx, func(console *ops.Console) error {
		st, err := console.Status(ctx, 0)
		if err != nil {
			return err
		}
		if st.Findings == nil {
			st.Findings = []ops.Finding{}
		}
		err = c.show(s, st.Findings, func(p *page) {
			if len(st.Findings) == 0 {
				p.line("Nothing is stuck.")
			}
			showFindings(p, st.Findings)
		})
		if err != nil {
			return err
		}
		return byLevel(st.Level)
	})
}

type opsTopics struct {
	opsFlags
	Order  string `enum:"name,lag" default:"name" help:"By name, or those that are behind first: lag (${default})."`
	Prefix string `help:"Only names that begin so; by name."`
	After  string `placeholder:"TOPIC" help:"Begin after this name; by lag, among those that are as far behind as --lag says."`
	Lag    int64  `help:"By lag: begin after those that are further behind than so many events, and after --after."`
	Limit  int    `default:"50" help:"How many (${default}, at most 1000)."`
}

func (c *opsTopics) Run(ctx context.Context, s *streams) error {
	return c.with(ctx, func(console *ops.Console) error {
		q := ops.TopicsQuery{Prefix: c.Prefix, After: c.After, Lag: c.Lag, Limit: c.Limit}
		look := console.TopicsByName
		if c.Order == "lag" {
			look = console.TopicsByLag
		}
		list, err := look(ctx, q)
		if err != nil {
			return err
		}
		return c.show(s, list, func(p *page) {
			t := newTable("TOPIC", ">PARTITION", ">HEAD", ">WAITING", ">UNPUBLISHED", ">OLDEST", ">LAST EVENT", "STATE")
			for _, l := range list {
				waiting := ""
				if c.Order == "lag" {
					waiting = count(l.Waiting)
				}
				state := cell{}
				switch {
				case l.DiedAt != nil:
					state = cell{"given up, or parked", red}
				case l.ParkedFrom != nil:
					state = cell{"set aside", yellow}
				}
				t.add(l.Topic, l.Partition, l.Head, waiting, l.Unpublished, ageSeconds(l.For), ago(l.LastAt), state)
			}
			p.print(t)
			switch {
			case len(list) == 0 && c.Order == "lag" && c.After == "":
				p.line("No topic is behind.")
			case len(list) == 0:
				p.line("No more topics.")
			case len(list) == c.Limit && c.Order == "lag":
				last := list[len(list)-1]
				p.line("%s", p.paint(dim, fmt.Sprintf("more: --order=lag --lag=%d --after=%s", last.Lag(), last.Topic)))
			case len(list) == c.Limit:
				p.line("%s", p.paint(dim, "more: --after="+list[len(list)-1].Topic))
			}
		})
	})
}

type opsTopic struct {
	opsFlags
	Topic string `arg:""`
}

func (c *opsTopic) Run(ctx context.Context, s *streams) error {
	return c.with(ctx, func(console *ops.Console) error {
		t, err := console.Topic(ctx, c.Topic)
		if err != nil {
			return err
		}
		return c.show(s, t, func(p *page) { showTopic(p, t) })
	})
}

func showTopic(p *page, t *ops.Topic) {
	p.line("%s  partition %d, epoch %s", p.paint(bold, t.Topic), t.Partition, t.Epoch)
	p.line("")
	field := func(name, format string, args ...any) {
		p.line("%s  "+format, append([]any{p.paint(dim, fmt.Sprintf("%-12s", name))}, args...)...)
	}
	field("head", "%s, in epoch %s, %s ago", count(t.Head), t.HeadEpoch, orUnknown(ago(t.LastAt)))
	if t.First > 0 {
		field("journal", "%s to %s, the oldest from %s ago", count(t.First), count(t.Head), ago(t.FirstAt))
	} else {
		field("journal", "nothing is retained")
	}
	switch h := t.Held; {
	case t.HeldError != "":
		field("Redis", "%s", p.paint(red, short(t.HeldError, 100)))
	case h == nil:
		field("Redis", "not looked at: no --redis-url")
	case h.First == 0:
		field("Redis", "nothing (it forgets a topic an hour after its last event); %d nodes listen", h.Hears)
	default:
		field("Redis", "%s to %s, %s; %d nodes listen", count(h.First), count(h.Last), ops.Bytes(h.Bytes), h.Hears)
	}
	field("waiting", "%s not sequenced, %s not published", upTo(t.Waiting, 1000), upTo(t.Unpublished, 1000))
	if t.PausedAt != nil {
		field("paused", "%s", p.paint(yellow, fmt.Sprintf("its partition, for %s: commitcast ops resume %d", ago(t.PausedAt), t.Partition)))
	}
	if k := t.Parked; k != nil {
		what := "set aside"
		if k.DiedAt != nil {
			what = "given up"
		}
		if k.ByOperator() {
			what = "parked"
		}
		field(what, "%s", p.paint(red, fmt.Sprintf("from offset %s on, for %s, %d attempts: %s", count(k.From), ago(&k.At), k.Attempts, short(k.Error, 100))))
	}
	if r := t.Redrive; r != nil {
		field("redrive", "%s to %s, at %s, by %s", count(r.First), count(r.Last), count(r.Next), r.Who)
	}
	if t.DeadLetters > 0 {
		field("dead letters", "%s: commitcast ops dead list --topic=%s", upTo(t.DeadLetters, 1000), t.Topic)
	}
	field("subscribers", "%s, %s of them behind", count(int64(t.Subscribers)), count(int64(t.Behind)))
	if len(t.Nodes) > 0 {
		p.line("")
	}
	list := newTable("NODE", ">SUBSCRIBERS", ">JOINING", ">BEHIND", ">SLOWEST AT", ">KNOWS HEAD", "LOG", "PUSH")
	for _, n := range t.Nodes {
		switch st := n.State; {
		case n.Error != "":
			list.add(n.Node, "", "", "", "", "", cell{short(n.Error, 60), red}, "")
		case st == nil:
			list.add(n.Node, 0, "", "", "", "", "", "")
		default:
			log := "empty"
			if st.Last >= st.First {
				log = count(st.First) + " to " + count(st.Last)
			}
			push := cell{"yes", green}
			if !st.Confirmed {
				push = cell{"no", yellow}
			}
			list.add(n.Node, st.Subscribers, st.Joining, st.Behind, st.Slowest, st.Head, log, push)
		}
	}
	p.print(list)
	late := newTable("FURTHEST BEHIND", "NODE", "SESSION", ">AT")
	for _, n := range t.Nodes {
		if n.State == nil {
			continue
		}
		for _, f := range n.State.Laggards {
			who := f.Subject
			if who == "" {
				who = "no subject"
			}
			late.add(who, n.Node, f.Session, f.Cursor)
		}
	}
	if t.Behind > 0 {
		p.line("")
		p.print(late)
	}
}

func orUnknown(s string) string {
	if s == "" {
		return "an unknown time"
	}
	return s
}

type opsTail struct {
	opsFlags
	Topic    string `arg:""`
	From     int64  `help:"From this offset on."`
	Newest   int64  `short:"n" default:"10" help:"From so many before the head (${default})."`
	NoFollow bool   `help:"End at the head."`
}

func (c *opsTail) Run(ctx context.Context, s *streams) error {
	if c.From < 0 || c.Newest < 0 {
		return usageError{errors.New("--from and --newest must not be negative")}
	}
	from := c.From
	if from == 0 {
		from = -c.Newest
	}
	p := newPage(s.out)
	return c.with(ctx, func(console *ops.Console) error {
		return console.Tail(ctx, c.Topic, from, !c.NoFollow, func(frame []byte) error {
			if c.JSON {
				_, err := fmt.Fprintf(s.out, "%s\n", frame)
				return err
			}
			m, err := wire.ParseMessage(frame)
			if err != nil {
				return err
			}
			at := m.At
			if t, err := time.Parse(time.RFC3339Nano, m.At); err == nil {
				at = t.Local().Format("15:04:05.000")
			}
			if m.Skip {
				m.Type, m.Data = "(skip)", nil
			}
			_, err = fmt.Fprintf(s.out, "%s  %s  %s  %s  %s\n", p.paint(dim, at), p.paint(bold, fmt.Sprintf("%8d", m.Offset)), visible(m.Type), visible(m.Key), visible(string(m.Data)))
			return err
		})
	})
}

type opsTrace struct {
	opsFlags
	Topic  string `arg:""`
	Offset string `arg:"" optional:"" help:"Offset, or a cursor: 3-7d0a41c2:1041."`
	ID     int64  `name:"id" help:"The event's id instead, as append returned it."`
}

func (c *opsTrace) Run(ctx context.Context, s *streams) error {
	offset := c.Offset
	if _, after, ok := strings.Cut(offset, ":"); ok {
		offset = after
	}
	var n int64
	if offset != "" {
		var err error
		if n, err = strconv.ParseInt(offset, 10, 64); err != nil || n < 1 {
			return usageError{fmt.Errorf("%q is not an offset", c.Offset)}
		}
	}
	return c.with(ctx, func(console *ops.Console) error {
		t, err := console.Trace(ctx, c.Topic, n, c.ID)
		if err != nil {
			return err
		}
		return c.show(s, t, func(p *page) { showTrace(p, t) })
	})
}

func showTrace(p *page, t *ops.Trace) {
	p.line("%s  event %d, type %s, %s", p.paint(bold, t.Topic), t.ID, t.Type, ops.Bytes(int64(t.Bytes)))
	switch {
	case t.TraceID != "" && t.Sampled:
		p.line("trace %s, of the writer's span %s", t.TraceID, t.SpanID)
	case t.TraceID != "":
		p.line("trace %s, which is not sampled", t.TraceID)
	}
	p.line("")
	const clock = "2006-01-02 15:04:05.000000"
	l := newTable("HOP", "WHEN", "")
	l.add("appended", t.AppendedAt.Local().Format(clock), "in its transaction")
	switch {
	case t.Offset == 0:
		l.add("sequenced", cell{"not yet", yellow}, "")
	case t.SequencedAt == nil:
		l.add("sequenced", cell{"not known", dim}, fmt.Sprintf("offset %d in epoch %s", t.Offset, t.Epoch))
	default:
		l.add("sequenced", t.SequencedAt.Local().Format(clock), fmt.Sprintf("offset %d in epoch %s, seq %d of partition %d, %s later", t.Offset, t.Epoch, t.Seq, t.Partition,
			max(0, t.SequencedAt.Sub(t.AppendedAt)).Round(10*time.Microsecond)))
	}
	published := cell{"no", yellow}
	if t.Published {
		published = cell{"yes", green}
	}
	says := ""
	switch {
	case t.DeadAt != nil && t.RedrivenAt != nil:
		says = "a dead letter, redriven " + ago(t.RedrivenAt) + " ago"
	case t.DeadAt != nil:
		says = "a dead letter for " + ago(t.DeadAt)
	case t.ParkedFrom != nil:
		says = fmt.Sprintf("its topic is set aside from offset %d on", *t.ParkedFrom)
	}
	if t.Offset > 0 {
		l.add("published", published, says)
		in := cell{"not known", dim}
		if t.InRedis != nil {
			if in = (cell{"yes", green}); !*t.InRedis {
				in = cell{"no", dim}
			}
		}
		l.add("held by Redis", in, "now")
	}
	for _, n := range t.Nodes {
		switch {
		case n.Error != "":
			l.add("node "+n.Node, cell{"no answer", red}, short(n.Error, 80))
		case !n.Follows:
			l.add("node "+n.Node, "", "has no subscriber of it now")
		case !n.Heard:
			l.add("node "+n.Node, cell{"not heard", yellow}, fmt.Sprintf("%d subscribers", n.Subscribers))
		default:
			l.add("node "+n.Node, cell{"heard", green}, fmt.Sprintf("%d of %d subscribers are at or past it", n.Sent, n.Subscribers))
		}
	}
	p.print(l)
	p.line("")
	p.line("%s", p.paint(dim, "Not known:"))
	for _, u := range t.Unknown {
		p.line("%s", p.paint(dim, "- "+u))
	}
}

type opsClients struct {
	opsFlags
	Only    string `placeholder:"NODE" help:"Of one broadcaster: its name, or the address of its ops listener."`
	Subject string `help:"Of one subject of tokens."`
	After   string `placeholder:"SESSION" help:"Begin after this session."`
	Behind  bool   `help:"Those that have most to be sent yet, the furthest behind first, and nobody who has been sent everything."`
	Limit   int    `default:"50" help:"How many of each node (${default}, at most 1000)."`
}

func (c *opsClients) ask(ctx context.Context, console *ops.Console) ([]ops.NodeClients, error) {
	if c.Behind {
		return console.ClientsBehind(ctx, c.Only, c.Limit)
	}
	return console.Clients(ctx, c.Only, c.Subject, c.After, c.Limit)
}

func (c *opsClients) Run(ctx context.Context, s *streams) error {
	return c.with(ctx, func(console *ops.Console) error {
		if c.Behind && (c.Subject != "" || c.After != "") {
			return usageError{errors.New("--behind goes with --only and --limit alone")}
		}
		nodes, err := c.ask(ctx, console)
		if err != nil {
			return err
		}
		return c.show(s, nodes, func(p *page) {
			for i, n := range nodes {
				if i > 0 {
					p.line("")
				}
				p.line("%s  %s", p.paint(bold, n.Node), things(n.Total, "client"))
				if n.Error != "" {
					p.line("%s", p.paint(red, n.Error))
				}
				t := newTable("SESSION", "SUBJECT", "ADDRESS", ">CONNECTED", ">SUBSCRIPTIONS", ">BEHIND", "")
				for _, k := range n.Clients {
					behind, note := cell{count(k.Behind), plain}, ""
					if k.Slow {
						note = "takes nothing for a second or more"
					} else if k.Waiting {
						note = "being written to"
					}
					address := k.Address
					if address == "" {
						address = "this machine"
					}
					t.add(k.Session, k.Subject, address, ago(&k.Since), k.Subscriptions, behind, note)
				}
				p.print(t)
				if len(n.Clients) == c.Limit && !c.Behind {
					p.line("%s", p.paint(dim, "more: --only="+n.Node+" --after="+n.Clients[len(n.Clients)-1].Session))
				}
			}
			if len(nodes) == 0 {
				p.line("No broadcaster was found.")
			}
		})
	})
}

type opsAudit struct {
	opsFlags
	Before int64 `help:"Begin before this record."`
	Limit  int   `default:"50" help:"How many (${default}, at most 1000)."`
}

func (c *opsAudit) Run(ctx context.Context, s *streams) error {
	return c.with(ctx, func(console *ops.Console) error {
		list, err := console.Audit(ctx, c.Before, c.Limit)
		if err != nil {
			return err
		}
		return c.show(s, list, func(p *page) {
			t := newTable(">ID", "WHEN", "WHO", "ROLE", "ACTION", "TARGET", "RESULT")
			for _, r := range list {
				result := cell{short(r.Result, 80), plain}
				switch {
				case r.Result == "":
					result = cell{"under way", yellow}
				case !strings.HasPrefix(r.Result, "done"):
					result.paint = red
				}
				t.add(strconv.FormatInt(r.ID, 10), r.At.Local().Format(time.DateTime), r.Who, r.Role, r.Action, r.Target, result)
			}
			p.print(t)
			if len(list) == 0 {
				p.line("Nobody has done anything yet.")
			}
		})
	})
}

type opsDoctor struct {
	opsFlags
	NoEvent bool     `help:"Do not send an event of the topic commitcast/canary all the way: then nothing is changed."`
	Token   string   `name:"token-file" placeholder:"FILE" help:"A file with the token of a client that may read commitcast/canary, for --url."`
	URL     []string `name:"url" placeholder:"URL" help:"WebSockets to watch besides the broadcasters' own: wss://live.example.com/v1/ws."`
}

func (c *opsDoctor) Run(ctx context.Context, s *streams) error {
	cfg := ops.DoctorConfig{Event: !c.NoEvent, ClientURLs: c.URL}
	if c.Token != "" {
		text, err := readSmall(c.Token)
		if err != nil {
			return usageError{fmt.Errorf("--token-file=%s: %w", c.Token, err)}
		}
		cfg.ClientToken = strings.TrimSpace(string(text))
	}
	return c.with(ctx, func(console *ops.Console) error {
		d, err := console.Doctor(ctx, cfg)
		if err != nil {
			return err
		}
		err = c.show(s, d, func(p *page) {
			area := ""
			marks := map[ops.Level]string{ops.Good: "✓", ops.Warning: "!", ops.Problem: "✗"}
			width := 0
			for _, k := range d.Checks {
				width = max(width, len(k.Name))
			}
			n := map[ops.Level]int{}
			for _, k := range d.Checks {
				if k.Area != area {
					area = k.Area
					p.line("%s", p.paint(bold, area))
				}
				n[k.Level]++
				p.line("  %s %-*s  %s", p.paint(levelColour(k.Level), marks[k.Level]), width, k.Name, k.Says)
				if k.Fix != "" {
					p.line("    %-*s  %s", width, "", p.paint(dim, "→ "+k.Fix))
				}
			}
			p.line("\n%d good, %d warnings, %d problems", n[ops.Good], n[ops.Warning], n[ops.Problem])
		})
		if err != nil {
			return err
		}
		return byLevel(d.Level)
	})
}
