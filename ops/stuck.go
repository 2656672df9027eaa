package ops

import (
	"cmp"
	"context"
	_ "embed"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/broadcaster"
)

var (
	//go:embed jobs.sql
	jobsSQL string
	//go:embed parked.sql
	parkedSQL string
)

const (
	// stuckAfter is how old the oldest event of a hop may be before it counts as stuck: a hundred times what is usual.
	stuckAfter = 5 * time.Second
	// appenderLong is for how long a transaction that has appended may be open before it is told: outbox.Tx appends with COMMIT, so
	// that milliseconds are usual. Workers look every 5 s: this is the third look.
	appenderLong = 8 * time.Second
	// diskFull is the SQLSTATE of a disk without space.
	diskFull = "53100"
	// redisYoung is for how long it is told that Redis was started, and lacked something: as long as the alert.
	redisYoung = 10 * time.Minute
	// certificateSoon is how long before its end a certificate is told of.
	certificateSoon = 7 * 24 * time.Hour
	// tokensAmiss is how many tokens may be refused, or expire without a newer one, in a minute before it is told: as the alerts have it.
	tokensAmiss = 20
	// clientsSlow is how many clients of a node, and more than 1%, may be slow before it is told: as the alert has it.
	clientsSlow = 5
	// findingsOfAKind bounds how many topics are named; the rest are counted.
	findingsOfAKind = 10
	// clockOff is how far the clock of a node may be from the database's.
	clockOff = 2 * time.Second
)

// Finding is something that is not as it should be.
type Finding struct {
	Level   Level      `json:"level"`
	Hop     string     `json:"hop"` // where: database, outbox, journal, redis, broadcaster, operator
	What    string     `json:"what"`
	Why     string     `json:"why,omitempty"`
	Since   *time.Time `json:"since,omitempty"`
	Affects string     `json:"affects,omitempty"`
	Help    string     `json:"help,omitempty"` // the command, or what to do
	Do      *Order     `json:"do,omitempty"`   // the same, where it is an action
}

func since(s float64) *time.Time {
	t := time.Now().Add(-seconds(s))
	return &t
}

// job is one of River's.
type job struct {
	ID          int64
	Kind, State string
	Attempt     int
	Max         int
	ScheduledAt time.Time
	Error       string
	Of          string // topic or partition
}

// findings says what is stuck, why, since when and what helps, the worst first.
func (c *Console) findings(ctx context.Context, s *Status) []Finding {
	list := []Finding{}
	add := func(f Finding) { list = append(list, f) }
	d := &s.Database
	if !d.Up {
		add(Finding{Level: Problem, Hop: "database", What: "the database does not answer, or cannot be worked with", Why: d.Error,
			Affects: "everybody: nothing can be appended, sequenced or replayed; what is connected stays, and hears nothing new",
			Help:    "bring Postgres back; then everything goes on by itself, and: commitcast ops status"})
	}
	if d.Up && d.Replica {
		add(Finding{Level: Problem, Hop: "database", What: "this is a replica: workers cannot work here", Help: "give --database-url of the primary"})
	}
	workers, broadcasters := 0, 0
	for _, n := range s.Nodes {
		if n.Identity != nil && n.Identity.Worker != nil {
			workers++
		}
		if n.Identity != nil && n.Identity.Broadcaster != nil {
			broadcasters++
		}
	}
	findRedis(s, add)
	findTokens(s, add)
	if d.Up {
		// What all partitions share is said once, and first.
		nobody := workers == 0 && !slices.ContainsFunc(s.Partitions, func(p Partition) bool { return p.Owner != nil })
		if nobody {
			f := Finding{Level: Warning, Hop: "outbox", What: "no worker was found", Affects: "every topic: committed events get no offsets",
				Why: "none is connected to this database with an ops listener that answers, and none drains a partition", Help: "start one: commitcast worker"}
			if s.Waiting > 0 {
				f.Level, f.Since = Problem, since(s.WaitingFor)
				f.Affects += ", and nobody sees them; " + waits(s.Waiting)
			}
			add(f)
		}
		c.findPartitions(ctx, s, nobody, add)
		c.findParked(ctx, s, add)
		if age := seconds(d.OldestAppender); age > appenderLong {
			add(Finding{Level: Warning, Hop: "outbox", What: "a transaction has appended events and does not end", Since: since(d.OldestAppender), Why: d.Appender,
				Affects: "its own events only, and how fast sweeps are", Help: "ask its owner, or end it: SELECT pg_terminate_backend(PID)"})
		}
	}
	for _, n := range s.Nodes { // last: what is wrong there often comes from the above
		c.findNode(s, n, add)
	}
	if !slices.ContainsFunc(list, func(f Finding) bool { return f.Level == Problem }) {
		findCanaries(s, add) // nothing else says why
	}
	if broadcasters == 0 && (d.Up || len(c.cfg.Nodes) > 0) {
		add(Finding{Level: Warning, Hop: "broadcaster", What: "no broadcaster was found", Affects: "every client",
			Why: "none is connected to this database with an ops listener that answers", Help: "start one: commitcast broadcaster; or name it with --node=HOST:PORT"})
	}
	rank := map[Level]int{Problem: 0, Warning: 1}
	slices.SortStableFunc(list, func(a, b Finding) int { return cmp.Compare(rank[a.Level], rank[b.Level]) })
	return list
}

// findRedis says what is wrong with Redis as a whole.
func findRedis(s *Status, add func(Finding)) {
	if s.Redis.Configured && !s.Redis.Up {
		f := Finding{Level: Warning, Hop: "redis", What: "Redis does not answer, or does not let us in", Why: s.Redis.Error,
			Affects: "every subscriber: events come by polling the journal, a quarter of a second later",
			Help:    "bring Redis back; nothing is lost meanwhile, and push returns by itself"}
		if s.UnpublishedFor > 0 {
			f.Since = since(s.UnpublishedFor)
		}
		add(f)
	}
	if r := s.Redis.Server; s.Redis.Up && r.Uptime < int64(redisYoung.Seconds()) && s.Refilled() > 0 {
		add(Finding{Level: Warning, Hop: "redis", What: "Redis lacked events that it had confirmed, and was refilled from the journal", Since: since(float64(r.Uptime)),
			Why: "it was started " + Age(seconds(float64(r.Uptime))) + " ago, empty or from an old dump", Affects: "nobody: what it lacks is read from the journal",
			Help: "nothing, once; if it starts again and again, see why: memory, its log"})
	}
}

// findTokens says what is wrong with the tokens of clients, on all nodes together: who expired at one comes back to another.
func findTokens(s *Status, add func(Finding)) {
	var t broadcaster.Tokens
	for _, n := range s.Nodes {
		if n.Identity != nil && n.Identity.Broadcaster != nil {
			of := n.Identity.Broadcaster.Tokens
			t.Accepted, t.Refused, t.Unavailable, t.Expired = t.Accepted+of.Accepted, t.Refused+of.Refused, t.Unavailable+of.Unavailable, t.Expired+of.Expired
		}
	}
	counts := fmt.Sprintf("in the last minute %s ended with their token, %d newer ones were accepted, %d refused, %d could not be checked", plural(t.Expired, "session"), t.Accepted, t.Refused, t.Unavailable)
	if gone := t.Expired - t.Accepted; gone > tokensAmiss {
		add(Finding{Level: Problem, Hop: "broadcasters", What: "tokens of clients have expired and are not renewed", Why: counts,
			Affects: plural(gone, "client") + ", who see nothing new until they have a newer token",
			Help:    "whoever issues tokens: the identity provider, and the token callback of the page; clients come back by themselves"})
	}
	if t.Unavailable > tokensAmiss {
		add(Finding{Level: Problem, Hop: "broadcasters", What: "tokens of clients cannot be checked", Why: counts, Affects: "who connects, and who brings a newer token",
			Help: "see whether the nodes reach --jwks-url, and their logs"})
	}
	if t.Refused > tokensAmiss {
		add(Finding{Level: Warning, Hop: "broadcasters", What: "tokens of clients are refused", Why: counts, Affects: "who connects with one of these",
			Help: "keys that were rotated (--jwt-key-file), the audience, clocks (commitcast ops doctor), or one client that tries again and again"})
	}
}

// findNode says what is wrong with one process.
func (c *Console) findNode(s *Status, n *Node, add func(Finding)) {
	if n.Identity == nil {
		level, what := Warning, "a process is connected to the database, and its ops listener cannot be asked"
		if !n.Connected {
			level, what = Problem, "a node that was named, or was connected before, does not answer"
		}
		add(Finding{Level: level, Hop: "node " + n.Address, What: what, Why: n.Error,
			Help: "see whether it runs, and whether --ops-listen (or --ops-advertise) can be reached from here; --ops-token-file, if it wants a token"})
		return
	}
	for _, listener := range slices.Sorted(maps.Keys(n.Identity.Certificates)) {
		end := n.Identity.Certificates[listener]
		f := Finding{Level: Warning, Hop: "node " + n.Name(), What: fmt.Sprintf("its certificate for %s expires in %s", listener, Age(time.Until(end))),
			Affects: "nobody yet", Help: "put a new one into the files of --tls-cert and --tls-key (--ops-tls-… for operators); they are read again within 2 seconds"}
		switch left := time.Until(end); {
		case left > certificateSoon:
			continue
		case left <= 0:
			f.Level, f.What, f.Since = Problem, fmt.Sprintf("its certificate for %s has expired", listener), &end
			f.Affects = "everybody who connects now; who is connected stays"
		}
		add(f)
	}
	if w := n.Identity.Worker; w != nil && w.Ready != "" {
		add(Finding{Level: Problem, Hop: "worker " + w.Node, What: "a worker does not work", Why: w.Ready, Help: "see its log"})
	}
	b := n.Identity.Broadcaster
	if b == nil {
		return
	}
	hop := "broadcaster " + b.Node
	switch {
	case b.Drained:
		add(Finding{Level: Warning, Hop: hop, What: "it was drained and takes no clients", Help: "commitcast ops drain --undo " + b.Node,
			Do: &Order{Action: Undrain, Node: n.Address}})
	case b.Polling && s.Database.Up:
		add(Finding{Level: Warning, Hop: hop, What: "it hears nothing from Redis and polls the journal", Why: b.Ready,
			Affects: plural(b.Connections, "client") + ": events are a quarter of a second late", Help: "see whether Redis answers there; push returns by itself"})
	case len(b.Away()) > 0:
		add(Finding{Level: Problem, Hop: hop, What: "not every database answers it", Why: b.Ready, Affects: "subscribers of " + strings.Join(b.Away(), ", "), Help: "docs/runbook.md, CommitcastDatabaseAway"})
	case b.Ready != "":
		add(Finding{Level: Problem, Hop: hop, What: "it is not ready", Why: b.Ready, Affects: plural(b.Connections, "client"), Help: "see its log"})
	}
	if s.Database.Up && b.Epoch != "" && s.Database.Epoch != "" && !b.In(s.Database.Epoch) {
		add(Finding{Level: Warning, Hop: hop, What: "it is in epoch " + b.Epoch + ", the database in " + s.Database.Epoch, Affects: plural(b.Connections, "client"),
			Help: "it moves within a second; if it does not, it reads another database"})
	}
	if b.Slow > clientsSlow && b.Slow*100 > b.Connections {
		add(Finding{Level: Warning, Hop: hop, What: plural(b.Slow, "client") + " have taken nothing of what they are sent for a second or more", Affects: "these clients; nobody else waits for them",
			Help: "see who: commitcast ops clients --behind --only=" + b.Node + "; one subject or network: its owner, or commitcast ops disconnect SUBJECT"})
	}
	if b.Behind > 0 {
		add(Finding{Level: Warning, Hop: hop, What: plural(b.Behind, "topic") + " are behind what exists", Affects: "their subscribers there",
			Help: "they heal from Redis or the journal; if this stays, see its log, and commitcast ops topic NAME"})
	}
	if off := clockOffset(s, n); off > clockOff || off < -clockOff {
		add(Finding{Level: Warning, Hop: hop, What: fmt.Sprintf("its clock is %v from the database's", off.Round(time.Millisecond)),
			Affects: "latencies in metrics, and how long tokens are good", Help: "let it keep time (NTP)"})
	}
}

// findCanaries tells of broadcasters at whose clients nothing new arrives, although all seems well.
func findCanaries(s *Status, add func(Finding)) {
	for _, n := range s.Nodes {
		if n.Identity == nil || n.Identity.Canary == nil || n.Identity.Broadcaster == nil || n.Identity.Broadcaster.Drained {
			continue
		}
		if k := n.Identity.Canary; seconds(k.Age) > stuckAfter {
			add(Finding{Level: Problem, Hop: "broadcaster " + n.Name(), What: "what is committed does not arrive at its clients", Why: k.Why, Since: since(k.Age),
				Affects: plural(n.Identity.Broadcaster.Connections, "client"), Help: "docs/runbook.md, CommitcastCanaryStale"})
		}
	}
}

// clockOffset is how far a node's clock is ahead of the database's, as far as can be seen from here.
func clockOffset(s *Status, n *Node) time.Duration {
	if s.Database.Clock.IsZero() || n.Identity.Now.IsZero() {
		return 0
	}
	return n.Identity.Now.Sub(s.Database.Clock).Truncate(time.Second)
}

// findPartitions says which are stuck, and why; not what is said already: that nobody drains any, or that Redis is away.
func (c *Console) findPartitions(ctx context.Context, s *Status, nobody bool, add func(Finding)) {
	var jobs []job
	jctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	if rows, err := c.pool.Query(jctx, jobsSQL, 100); err == nil {
		jobs, _ = pgx.CollectRows(rows, pgx.RowToStructByPos[job])
	}
	failing := func(kind, of string) string {
		for _, j := range jobs {
			if j.Kind == kind && (of == "" || j.Of == of) {
				return fmt.Sprintf("job %d (%s) fails: %s", j.ID, kind, j.Error)
			}
		}
		return ""
	}
	if why := failing("journal_upkeep", ""); why != "" {
		add(Finding{Level: Warning, Hop: "journal", What: "the journal's leaves are not looked after", Why: why,
			Affects: "nobody yet: leaves are made three days ahead", Help: "see the worker's log"})
	}
	for i := range s.Partitions {
		p := &s.Partitions[i]
		where := fmt.Sprintf("partition %d", p.ID)
		if p.PausedAt != nil {
			level := Warning
			if p.Waiting > 0 || p.Unpublished() > 0 {
				level = Problem
			}
			why := p.PausedBy
			if p.PausedWhy != "" {
				why += ": " + p.PausedWhy
			}
			add(Finding{Level: level, Hop: "operator", What: where + " is paused", Why: why, Since: p.PausedAt,
				Affects: "its topics, a thirty-second of all; " + waits(p.Waiting+p.Unpublished()),
				Help:    fmt.Sprintf("commitcast ops resume %d", p.ID), Do: &Order{Action: Resume, Partition: int(p.ID)}})
			continue
		}
		if nobody {
			continue
		}
		owner := ""
		switch {
		case p.Owner == nil:
			owner = "no session drains it"
		case p.Owner.Silent != nil && *p.Owner.Silent > stuckAfter.Seconds():
			owner = fmt.Sprintf("the session that drains it has been silent for %v", seconds(*p.Owner.Silent).Round(time.Second))
		}
		// What makes one drain fail mostly makes all fail, and not each waits for its next try now.
		reason := strings.TrimPrefix(cmp.Or(failing("outbox_drain", fmt.Sprint(p.ID)), failing("outbox_drain", ""))+"; "+owner, "; ")
		reason = strings.TrimSuffix(reason, "; ")
		help := "see the worker's log; another worker takes over by itself: commitcast worker"
		if strings.Contains(reason, diskFull) {
			help = "free space on the disk of Postgres; it goes on by itself. Then see --retention-bytes"
		}
		if seconds(p.WaitingFor) > stuckAfter {
			add(Finding{Level: Problem, Hop: "outbox", What: fmt.Sprintf("%s is not sequenced: %s", where, waits(p.Waiting)),
				Why: reason, Since: since(p.WaitingFor), Affects: "subscribers of its topics see nothing new", Help: help})
		}
		if seconds(p.UnpublishedFor) > stuckAfter && !(s.Redis.Configured && !s.Redis.Up) {
			add(Finding{Level: Problem, Hop: "journal", What: fmt.Sprintf("%s is not published: %s for Redis", where, waits(p.Unpublished())),
				Why: reason, Since: since(p.UnpublishedFor), Affects: "subscribers of its topics, who are served from the journal, about a second late", Help: help})
		}
	}
}

// findParked tells of topics that are set aside.
func (c *Console) findParked(ctx context.Context, s *Status, add func(Finding)) {
	if s.SetAside == 0 {
		return
	}
	pctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	parked, err := c.Parked(pctx, "", findingsOfAKind)
	if err != nil {
		return
	}
	for _, p := range parked {
		f := Finding{Level: Warning, Hop: "redis", What: fmt.Sprintf("topic %s is set aside from offset %d on", p.Topic, p.From), Why: p.Error, Since: &p.At,
			Affects: "its subscribers, who are served from the journal, about a second late", Help: "remove the cause; to try at once: commitcast ops redrive " + p.Topic,
			Do: &Order{Action: Redrive, Topic: p.Topic}}
		if p.DiedAt != nil {
			f.Level = Problem
			f.What = fmt.Sprintf("topic %s is given up from offset %d on", p.Topic, p.From)
			f.Help = "remove the cause; then: commitcast ops redrive " + p.Topic
			if p.ByOperator() {
				f.Level, f.Hop, f.What = Warning, "operator", fmt.Sprintf("topic %s is parked from offset %d on", p.Topic, p.From)
				f.Help = "commitcast ops release " + p.Topic
			}
		}
		add(f)
	}
	if rest := s.SetAside - int64(len(parked)); rest > 0 {
		add(Finding{Level: Warning, Hop: "redis", What: plural(rest, "more topic") + " are set aside", Help: "commitcast ops topics --order=lag; commitcast ops dead list"})
	}
}

// Parked is a topic that is set aside.
type Parked struct {
	Topic     string     `json:"topic"`
	Partition int16      `json:"partition"`
	From      int64      `json:"from"` // the first offset that the stream may lack
	At        time.Time  `json:"at"`
	Attempts  int        `json:"attempts"`
	Error     string     `json:"error"`
	TriedAt   *time.Time `json:"tried_at,omitempty"`
	DiedAt    *time.Time `json:"died_at,omitempty"` // given up: nothing happens until redrive
	Head      *int64     `json:"head,omitempty"`
}

// ByOperator: somebody parked it, and no attempt has failed.
func (p *Parked) ByOperator() bool { return strings.HasPrefix(p.Error, parkedBy) && p.Attempts == 0 }

// Parked lists topics that are set aside, after a name, at most limit.
func (c *Console) Parked(ctx context.Context, after string, limit int) ([]Parked, error) {
	rows, err := c.pool.Query(ctx, parkedSQL, after, page(limit))
	if err == nil {
		var list []Parked
		if list, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Parked]); err == nil {
			return list, nil
		}
	}
	return nil, wrap("listing topics that are set aside", err)
}
