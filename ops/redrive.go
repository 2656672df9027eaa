package ops

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/wire"
	"github.com/commitcast/commitcast/worker"
)

// Redriving is a redrive that is under way, or has ended.
type Redriving struct {
	Topic   string    `json:"topic"`
	First   int64     `json:"first"`
	Last    int64     `json:"last"`
	Next    int64     `json:"next"`   // the first offset that the stream has not confirmed
	Record  int64     `json:"record"` // of commitcast.audit
	Ordered time.Time `json:"ordered"`
	Who     string    `json:"who"`
	Result  string    `json:"result,omitempty"` // "": under way
}

// Done is how many events of all are published.
func (r *Redriving) Done() (done, all int64) { return r.Next - r.First, r.Last - r.First + 1 }

// Redriving looks at the redrive of a topic that is under way.
func (c *Console) Redriving(ctx context.Context, topic string) (*Redriving, error) {
	return c.redriving(ctx, `WHERE r.topic = $1`, topic)
}

func (c *Console) redriving(ctx context.Context, where string, arg any) (*Redriving, error) {
	var r Redriving
	err := c.pool.QueryRow(ctx, `SELECT r.topic, r.first, r.last, r.next, r.audit, r.ordered_at, a.who
		FROM commitcast.redrive r JOIN commitcast.audit a ON a.id = r.audit `+where, arg).
		Scan(&r.Topic, &r.First, &r.Last, &r.Next, &r.Record, &r.Ordered, &r.Who)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("%w: nothing is being redriven", ErrNotFound)
	}
	return &r, wrap("looking at the redrive", err)
}

// Await follows a redrive until it has ended, and calls each with how far it is, a few times a second. It may be given up at any
// time: workers go on.
func (c *Console) Await(ctx context.Context, r *Redriving, each func(*Redriving)) (*Redriving, error) {
	for {
		now, ended, err := c.Progress(ctx, r)
		if err != nil {
			return nil, err
		}
		if !ended || now.Result == "done" {
			each(now)
		}
		if ended {
			return now, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(tailEvery):
		}
	}
}

// Progress is how far a redrive is now, and whether it has ended.
func (c *Console) Progress(ctx context.Context, r *Redriving) (now *Redriving, ended bool, err error) {
	now, err = c.Redriving(ctx, r.Topic)
	if err == nil && now.Record == r.Record {
		return now, false, nil
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, false, err
	}
	end := *r
	if err := c.pool.QueryRow(ctx, `SELECT coalesce(result, '') FROM commitcast.audit WHERE id = $1`, r.Record).Scan(&end.Result); err != nil {
		return nil, false, wrap("reading the result", err)
	}
	if end.Result == "done" {
		end.Next = end.Last + 1
	}
	return &end, true, nil
}

// Plan is what a redrive would do, and what it was seen to be about.
type Plan struct {
	Topic   string  `json:"topic"`
	First   int64   `json:"first"`
	Last    int64   `json:"last"`
	Events  int64   `json:"events"`
	Parked  *Parked `json:"parked,omitempty"` // as it was seen
	Range   bool    `json:"range"`            // named by the operator; else what the stream lacks of a topic that is set aside
	Retries bool    `json:"retries"`          // a job is at it, and is only told to try now
}

// PlanRedrive says what a redrive of a topic would do. With from 0 it is what the stream lacks of a topic that is set aside; else
// the events from an offset to another (0: the head).
func (c *Console) PlanRedrive(ctx context.Context, topic string, from, to int64) (*Plan, error) {
	switch {
	case !wire.ValidTopic(topic):
		return nil, fmt.Errorf("%w: %.144q is not the name of a topic", ErrInvalid, topic)
	case from < 0 || to < 0 || from == 0 && to > 0:
		return nil, fmt.Errorf("%w: a range begins at an offset, from 1 on", ErrInvalid)
	}
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	t, err := c.Topic(ctx, topic)
	if err != nil {
		return nil, err
	}
	if t.Redrive != nil {
		return nil, fmt.Errorf("%w: a redrive of %q, ordered by %s at %s, is under way (%d to %d, at %d)", ErrConflict, topic, t.Redrive.Who,
			t.Redrive.Ordered.Format(time.TimeOnly), t.Redrive.First, t.Redrive.Last, t.Redrive.Next)
	}
	p := &Plan{Topic: topic, Parked: t.Parked, Last: t.Head}
	switch {
	case from == 0 && t.Parked == nil:
		return nil, fmt.Errorf("%w: topic %q is not set aside, so there is nothing to redrive; to publish retained events again, name them with --from (%d to %d)",
			ErrConflict, topic, t.First, t.Head)
	case from == 0:
		p.First, p.Retries = t.Parked.From, t.Parked.DiedAt == nil
	case t.Parked != nil:
		return nil, fmt.Errorf("%w: topic %q is set aside from offset %d on: redrive it without a range", ErrConflict, topic, t.Parked.From)
	case t.First == 0 || from < t.First:
		return nil, fmt.Errorf("%w: offset %d of %q is past retention: the journal has %d to %d", ErrInvalid, from, topic, t.First, t.Head)
	case from > t.Head || to > t.Head:
		return nil, fmt.Errorf("%w: the head of %q is %d", ErrInvalid, topic, t.Head)
	case to > 0 && to < from:
		return nil, fmt.Errorf("%w: the range %d to %d is empty", ErrInvalid, from, to)
	default:
		p.First, p.Range = from, true
		if to > 0 {
			p.Last = to
		}
	}
	p.Events = max(0, p.Last-p.First+1)
	return p, nil
}

// Redrive carries a plan out, if the topic is still as it was seen: workers publish the events in order, while new ones of the topic
// keep coming.
func (c *Console) Redrive(ctx context.Context, p *Plan) (*Redriving, error) {
	if p.Retries {
		return nil, c.retryNow(ctx, p)
	}
	r := &Redriving{Topic: p.Topic, First: p.First, Last: p.Last, Next: p.First, Who: c.cfg.Who}
	err := c.act(ctx, "redrive", p.Topic, p, func(tx pgx.Tx, audit int64) (string, error) {
		r.Record = audit
		if p.Range {
			ordered, err := worker.RedriveRange(ctx, tx, p.Topic, p.First, p.Last, audit)
			if err == nil && !ordered {
				err = fmt.Errorf("%w: a redrive of %q is under way already, or it has been set aside; look again", ErrConflict, p.Topic)
			}
			return "", err
		}
		if err := seenParked(ctx, tx, p.Topic, p.Parked); err != nil {
			return "", err
		}
		taken, err := worker.RedriveTx(ctx, tx, []string{p.Topic})
		if err == nil && len(taken) == 0 {
			err = fmt.Errorf("%w: topic %q is no longer given up; look again", ErrConflict, p.Topic)
		}
		if err != nil || p.Events == 0 {
			return "done", err
		}
		tag, err := tx.Exec(ctx, `INSERT INTO commitcast.redrive (topic, first, last, next, audit) VALUES ($1, $2, $3, $2, $4) ON CONFLICT (topic) DO NOTHING`,
			p.Topic, p.First, p.Last, audit)
		if err == nil && tag.RowsAffected() == 0 {
			err = fmt.Errorf("%w: a redrive of %q is under way already; look again", ErrConflict, p.Topic)
		}
		return "", err
	})
	return r, err
}

// rows is what a row is read from: a transaction, or the pool.
type rows interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// seenParked refuses a topic that is not set aside as it was seen to be.
func seenParked(ctx context.Context, tx rows, topic string, seen *Parked) error {
	var at time.Time
	var died *time.Time
	err := tx.QueryRow(ctx, `SELECT parked_at, died_at FROM commitcast.parked WHERE topic = $1`, topic).Scan(&at, &died)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return fmt.Errorf("%w: topic %q is no longer set aside", ErrConflict, topic)
	case err != nil:
		return err
	case !at.Equal(seen.At), (died == nil) != (seen.DiedAt == nil), died != nil && !died.Equal(*seen.DiedAt):
		return fmt.Errorf("%w: topic %q is not as it was seen: somebody was here, or it was tried again; look again", ErrConflict, topic)
	}
	return nil
}

// retryNow has the job of a topic that is being tried run at once.
func (c *Console) retryNow(ctx context.Context, p *Plan) error {
	return c.act(ctx, "redrive", p.Topic, p, func(tx pgx.Tx, _ int64) (string, error) {
		if err := seenParked(ctx, tx, p.Topic, p.Parked); err != nil {
			return "", err
		}
		var job *int64
		err := tx.QueryRow(ctx, `SELECT commitcast.retry_republish($1)`, p.Topic).Scan(&job)
		if err == nil && job == nil {
			err = fmt.Errorf("%w: its job runs this moment, or is ordered anew within a second; look again", ErrConflict)
		}
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("done: job %d is tried now", *job), nil
	})
}

// RedriveAll has up to 10,000 topics that are given up tried again, and returns them. Those that operators parked are not among them.
func (c *Console) RedriveAll(ctx context.Context) ([]string, error) {
	var taken []string
	err := c.act(ctx, "redrive", "every topic that is given up", nil, func(tx pgx.Tx, _ int64) (string, error) {
		rows, err := tx.Query(ctx, `SELECT topic FROM commitcast.parked WHERE died_at IS NOT NULL AND NOT (attempts = 0 AND starts_with(error, $1))
			ORDER BY topic LIMIT 10000`, parkedBy)
		if err != nil {
			return "", err
		}
		topics, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return "", err
		}
		if len(topics) > 0 {
			taken, err = worker.RedriveTx(ctx, tx, topics)
		}
		return fmt.Sprintf("done: %s ordered", plural(len(taken), "topic")), err
	})
	return taken, err
}
