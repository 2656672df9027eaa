package ops

import (
	"context"
	_ "embed"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
	"github.com/commitcast/commitcast/worker"
)

var (
	//go:embed partitions.sql
	partitionsSQL string
	//go:embed database.sql
	databaseSQL string
)

// countMost is where counts of what should be few stop: what is more is "more".
const countMost = 1000

// Level is how bad it is.
type Level string

// The levels.
const (
	Good    Level = "good"
	Warning Level = "warning" // it works, and will not for ever, or works later than it should
	Problem Level = "problem" // somebody is not served
)

func worse(a, b Level) Level {
	rank := map[Level]int{Good: 0, Warning: 1, Problem: 2}
	if rank[b] > rank[a] {
		return b
	}
	return a
}

// Partition is where one stands.
type Partition struct {
	ID             int16         `json:"id"`
	Seq            int64         `json:"seq"`       // sequenced
	Published      int64         `json:"published"` // confirmed by the stream
	Term           int64         `json:"term"`
	PausedAt       *time.Time    `json:"paused_at,omitempty"`
	PausedBy       string        `json:"paused_by,omitempty"`
	PausedWhy      string        `json:"paused_why,omitempty"`
	Waiting        int64         `json:"waiting"`         // in the outbox; stops counting at 1,000
	WaitingFor     float64       `json:"waiting_s"`       // age of the oldest of these, in seconds
	UnpublishedFor float64       `json:"unpublished_s"`   // age of the oldest that is sequenced and not published
	Owner          *worker.Owner `json:"owner,omitempty"` // the session that drains it
}

// Unpublished is how many events are sequenced and not confirmed by the stream.
func (p *Partition) Unpublished() int64 { return p.Seq - p.Published }

// Database is what it says of itself.
type Database struct {
	Up             bool          `json:"up"`
	Error          string        `json:"error,omitempty"`
	Took           time.Duration `json:"took_ns"`
	Clock          time.Time     `json:"clock"`
	Version        string        `json:"version,omitempty"`
	Replica        bool          `json:"replica"`
	Epoch          string        `json:"epoch,omitempty"`
	EpochBegan     *time.Time    `json:"epoch_began,omitempty"`
	EpochReason    string        `json:"epoch_reason,omitempty"`
	Connections    int           `json:"connections"`
	MaxConnections int           `json:"max_connections"`
	OldestAppender float64       `json:"oldest_appender_s"`    // the longest transaction that has appended and is open
	Appender       string        `json:"appender,omitempty"`   // whose that is
	OldestTx       float64       `json:"oldest_transaction_s"` // the longest of all
}

// Redis is what it says of itself.
type Redis struct {
	Configured bool           `json:"configured"`
	Up         bool           `json:"up"`
	Error      string         `json:"error,omitempty"`
	Server     *stream.Server `json:"server,omitempty"`
}

// Rates are events a second, between two looks.
type Rates struct {
	Over      time.Duration `json:"over_ns"`  // between the looks; 0: there was one only
	Appended  float64       `json:"appended"` // ids drawn: rolled back ones count
	Sequenced float64       `json:"sequenced"`
	Published float64       `json:"published"`
	Delivered float64       `json:"delivered"` // summed over subscribers, of the broadcasters that answered
}

// Status is the whole way of an event, hop by hop.
type Status struct {
	At             time.Time   `json:"at"`
	Level          Level       `json:"level"`
	Database       Database    `json:"database"`
	Redis          Redis       `json:"redis"`
	Rates          Rates       `json:"rates"`
	Waiting        int64       `json:"waiting"` // in the outbox
	WaitingFor     float64     `json:"waiting_s"`
	Unpublished    int64       `json:"unpublished"`
	UnpublishedFor float64     `json:"unpublished_s"`
	SetAside       int64       `json:"set_aside"`    // topics, given up or not; counts stop at 1,000
	GivenUp        int64       `json:"given_up"`     // of these, until redrive
	DeadLetters    int64       `json:"dead_letters"` // that were not redriven
	Redrives       int64       `json:"redrives"`     // under way
	Partitions     []Partition `json:"partitions"`
	Nodes          []*Node     `json:"nodes"`
	Findings       []Finding   `json:"findings"` // what is not as it should be, worst first
}

// Refilled is how often Redis lacked what it had confirmed, counted by the workers that answered, since each runs.
func (s *Status) Refilled() (n int64) {
	for _, node := range s.Nodes {
		n += int64(node.Counters[answered+"/gap"])
	}
	return n
}

// Worst is the level of a hop: that of the worst finding whose hop begins with one of these names.
func (s *Status) Worst(hops ...string) Level {
	worst := Good
	for _, f := range s.Findings {
		for _, h := range hops {
			if strings.HasPrefix(f.Hop, h) {
				worst = worse(worst, f.Level)
			}
		}
	}
	return worst
}

// Status looks at every hop; at the rates, too, if over is more than 0: then it takes that long. It fails only if ctx ends.
func (c *Console) Status(ctx context.Context, over time.Duration) (*Status, error) {
	before := c.look(ctx)
	after := before
	if over > 0 {
		t := time.NewTimer(over)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		after = c.look(ctx)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s := after.status
	if over > 0 {
		s.Rates = rates(before, after)
	}
	s.Findings = c.findings(ctx, s)
	s.Level = Good
	for _, f := range s.Findings {
		s.Level = worse(s.Level, f.Level)
	}
	return s, nil
}

// glance is one look.
type glance struct {
	status *Status
	newest int64 // event id drawn
}

func (c *Console) look(ctx context.Context) *glance {
	g := &glance{status: &Status{At: time.Now(), Partitions: []Partition{}, Nodes: []*Node{}}}
	s := g.status
	var wg sync.WaitGroup
	wg.Go(func() { // waited for below, as are the others
		if err := c.lookAtDatabase(ctx, g); err != nil {
			s.Database.Up, s.Database.Error = false, err.Error()
		}
	})
	wg.Go(func() {
		if c.redis == nil {
			return
		}
		s.Redis.Configured = true
		rctx, cancel := context.WithTimeout(ctx, lookTimeout)
		defer cancel()
		server, err := c.redis.Server(rctx)
		s.Redis.Server = &server
		if s.Redis.Up = err == nil; err != nil {
			s.Redis.Error = err.Error()
		}
	})
	wg.Go(func() {
		if nodes, _ := c.Nodes(ctx); nodes != nil { // that the database is gone is told once
			s.Nodes = nodes
		}
	})
	wg.Wait()
	// When another role's transaction began is not shown to every role; workers tell for how long they have seen one.
	for _, n := range s.Nodes {
		if seen := n.Counters[appending]; s.Database.Appender != "" {
			s.Database.OldestAppender = max(s.Database.OldestAppender, seen)
		}
	}
	return g
}

func (c *Console) lookAtDatabase(ctx context.Context, g *glance) error {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	s, d := g.status, &g.status.Database
	if err := c.ready(ctx); err != nil {
		return err
	}
	start := time.Now()
	if err := c.pool.Ping(ctx); err != nil {
		return wrap("pinging", err)
	}
	d.Took = time.Since(start)
	err := c.pool.QueryRow(ctx, databaseSQL, countMost).Scan(&d.Version, &d.Replica, &d.Clock, &d.Epoch, &d.EpochBegan, &d.EpochReason, &g.newest,
		&s.SetAside, &s.GivenUp, &s.DeadLetters, &s.Redrives, &d.Connections, &d.MaxConnections, &d.OldestAppender, &d.Appender, &d.OldestTx)
	if err != nil {
		return wrap("looking at the database", err)
	}
	rows, err := c.pool.Query(ctx, partitionsSQL, countMost)
	if err != nil {
		return wrap("looking at partitions", err)
	}
	s.Partitions, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (p Partition, err error) {
		err = row.Scan(&p.ID, &p.Seq, &p.Published, &p.Term, &p.PausedAt, &p.PausedBy, &p.PausedWhy, &p.Waiting, &p.WaitingFor, &p.UnpublishedFor)
		return p, err
	})
	if err != nil {
		return wrap("looking at partitions", err)
	}
	owners, err := worker.Owners(ctx, c.pool)
	if err != nil {
		return wrap("looking for owners", err)
	}
	for i := range s.Partitions {
		p := &s.Partitions[i]
		if p.ID >= 0 && p.ID < wire.Partitions && owners[p.ID].Term > 0 {
			p.Owner = &owners[p.ID]
		}
		s.Waiting += p.Waiting
		s.Unpublished += p.Unpublished()
		s.WaitingFor = max(s.WaitingFor, p.WaitingFor)
		s.UnpublishedFor = max(s.UnpublishedFor, p.UnpublishedFor)
	}
	d.Up = true
	return nil
}

// rates compares two looks. What was not seen at both has no rate.
func rates(before, after *glance) Rates {
	r := Rates{Over: after.status.At.Sub(before.status.At)}
	sec := r.Over.Seconds()
	if sec <= 0 {
		return Rates{}
	}
	if before.status.Database.Up && after.status.Database.Up {
		sum := func(g *glance) (seq, published int64) {
			for _, p := range g.status.Partitions {
				seq, published = seq+p.Seq, published+p.Published
			}
			return seq, published
		}
		s0, p0 := sum(before)
		s1, p1 := sum(after)
		r.Appended = max(0, float64(after.newest-before.newest)/sec)
		r.Sequenced, r.Published = max(0, float64(s1-s0)/sec), max(0, float64(p1-p0)/sec)
	}
	was := make(map[string]float64)
	for _, n := range before.status.Nodes {
		was[n.Address+n.Name()] = n.Counters["commitcast_broadcaster_events_delivered_total"]
	}
	for _, n := range after.status.Nodes {
		if v, ok := was[n.Address+n.Name()]; ok && n.Counters != nil {
			r.Delivered += max(0, n.Counters["commitcast_broadcaster_events_delivered_total"]-v) / sec
		}
	}
	return r
}

// seconds is a number of seconds as a duration.
func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// waits says that n events do.
func waits[N int | int64](n N) string {
	if n == 1 {
		return "1 event waits"
	}
	return fmt.Sprintf("%d events wait", n)
}

// plural is n things.
func plural[N int | int64](n N, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
