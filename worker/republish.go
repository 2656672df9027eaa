package worker

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"

	"github.com/commitcast/commitcast/internal/journal"
	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

var (
	//go:embed topic.sql
	topicTemplate string
	topicSQL      = strings.ReplaceAll(topicTemplate, "{columns}", journal.Columns)
	//go:embed attempt.sql
	attemptSQL string
	//go:embed redrive.sql
	redriveSQL string
)

const (
	// republishAttempts is how often a topic that is set aside is tried before it is a dead letter: with the waits
	// below for about half an hour.
	republishAttempts = 16
	// republishLeast and republishMost are the waits between attempts: the second comes within a second, and an
	// operator who has removed the cause need not wait long.
	republishLeast = 500 * time.Millisecond
	republishMost  = 5 * time.Minute
	// awayLeast and awayMost are the waits while stream or database are away, which count as no attempt.
	awayLeast = 100 * time.Millisecond
	awayMost  = 30 * time.Second
	// republishSlice is for how long one job publishes until it lets another have its place.
	republishSlice = 20 * time.Second
	// republishTimeout ends a job that hangs.
	republishTimeout = time.Minute
	// republishSlots is how many topics one process republishes at once: few, since their events are old already.
	republishSlots = 4
	// maxRefits is how often in a row the stream may answer that a piece does not fit.
	maxRefits = 4
	// redriveMost is how many topics one redrive takes up.
	redriveMost = 10_000
)

// RepublishArgs are the arguments of topic_republish, the job of a topic that is set aside.
type RepublishArgs struct {
	Topic string `json:"topic" river:"unique"`
	Term  int64  `json:"term" river:"unique"` // above 0: the job of the term before died with its process
}

// Kind implements river.JobArgs.
func (RepublishArgs) Kind() string { return "topic_republish" }

// InsertOpts implements river.JobArgsWithInsertOpts. A topic whose job was given up may have another.
func (RepublishArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: queueRepublish, MaxAttempts: republishAttempts, UniqueOpts: uniqueWhileAlive}
}

type republishWorker struct {
	river.WorkerDefaults[RepublishArgs]
	w *Worker
}

func (*republishWorker) Timeout(*river.Job[RepublishArgs]) time.Duration { return republishTimeout }

func (*republishWorker) NextRetry(job *river.Job[RepublishArgs]) time.Time {
	return time.Now().Add(jitter(backoff(len(job.Errors), republishLeast, republishMost)))
}

// Work publishes what the stream lacks of a topic, and ends its being set aside. Only a refusal by a stream that takes
// other topics is a failed attempt; everything else is waited for.
func (rw *republishWorker) Work(ctx context.Context, job *river.Job[RepublishArgs]) error {
	w, topic := rw.w, job.Args.Topic
	if !wire.ValidTopic(topic) {
		return river.JobCancel(fmt.Errorf("%.144q is not a topic", topic))
	}
	r := &republisher{w: w, topic: topic, partition: int16(wire.Partition(topic)), rows: refillRows}
	alive, err := w.holdJob(ctx, job.ID)
	if err == nil {
		defer releaseJob(alive)
		r.ledger = database{w, alive} // which shows that the job is worked on
		err = r.run(ctx)
	}
	var refused *refusedError
	switch {
	case err == nil:
		err = r.complete(ctx, job)
	case errors.As(err, &refused):
		last := job.Attempt >= job.MaxAttempts
		if _, rerr := w.pool.Exec(ctx, attemptSQL, topic, r.partition, r.next, job.Attempt, err.Error(), last, job.ID); rerr == nil {
			w.metrics.refused.Inc()
			if last {
				w.metrics.dead.Inc()
				w.log.ErrorContext(ctx, "a topic is given up: the stream refuses it; redrive it when the cause is gone",
					append([]any{"topic", topic, "from", r.next, "attempts", job.Attempt, "error", err}, joins(refused.sampled)...)...)
			}
			return err
		}
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errGoOn):
		return river.JobSnooze(0)
	}
	w.log.DebugContext(ctx, "a topic that is set aside waits for stream and database", "topic", topic, "error", err)
	return river.JobSnooze(jitter(backoff(snoozes(job.JobRow), awayLeast, awayMost)))
}

// snoozes is how often a job was put off.
func snoozes(job *rivertype.JobRow) int {
	var m struct {
		Snoozes int `json:"snoozes"`
	}
	_ = json.Unmarshal(job.Metadata, &m) // River's own; without it the wait is a short one
	return m.Snoozes
}

// errGoOn ends a job that has more to do.
var errGoOn = errors.New("to be continued")

// refusedError is a topic's refusal by a stream that takes others.
type refusedError struct {
	offset  int64
	err     error
	sampled []wire.Span // the event, if it is
}

func (e *refusedError) Error() string { return fmt.Sprintf("offset %d: %v", e.offset, e.err) }
func (e *refusedError) Unwrap() error { return e.err }

// republisher publishes one topic from the journal, beside the drain of its partition. That does no harm: the stream
// takes what fits.
type republisher struct {
	w         *Worker
	ledger    ledger
	topic     string
	partition int16
	scanner   journal.Scanner

	from   int64  // everything before is published
	to     int64  // everything after is; 0: up to the head
	parked bool   // the topic was set aside when the job looked
	epoch  string // of the channel that is published to
	next   int64  // the first offset that the stream has not confirmed, in epoch
	rows   int    // to offer at once
}

// run publishes up to the head, then ends the topic's being set aside, and then publishes what came meanwhile: events
// that a drain has skipped before it could know. So an attempt that fails leaves the topic set aside throughout.
func (r *republisher) run(ctx context.Context) error {
	at, err := r.ledger.position(ctx, r.topic)
	parkedFrom := at.parkedFrom
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil // a topic without events
	case err != nil:
		return err
	case parkedFrom != nil && at.orderedFrom != nil:
		r.from = min(*parkedFrom, *at.orderedFrom)
	case parkedFrom != nil:
		r.from = *parkedFrom
	case at.orderedFrom != nil:
		r.from, r.to = *at.orderedFrom, *at.orderedTo
	default:
		r.from = at.head // an earlier run may have been cut off before its second look
	}
	r.parked = parkedFrom != nil
	until := time.Now().Add(republishSlice)
	if err := r.offer(ctx, until); err != nil || parkedFrom == nil && at.orderedFrom == nil {
		return err
	}
	if err := r.ledger.unpark(ctx, r.topic, r.next, r.parked); err != nil {
		return err
	}
	if parkedFrom == nil {
		r.w.log.InfoContext(ctx, "what was ordered of a topic has been published again", "topic", r.topic, "up to", r.next-1)
		return nil
	}
	if err := r.offer(ctx, until); err != nil {
		return err
	}
	r.w.log.InfoContext(ctx, "a topic that was set aside is complete in the stream again", "topic", r.topic, "offset", r.next-1)
	return nil
}

// offer publishes up to the topic's head.
func (r *republisher) offer(ctx context.Context, until time.Time) error {
	startAnew := false
	for refits := 0; ; {
		at, err := r.ledger.position(ctx, r.topic)
		if err != nil {
			return err
		}
		epoch, head := at.epoch, at.head
		if r.to > 0 {
			head = min(head, r.to)
		}
		if epoch != r.epoch {
			r.epoch, r.next = epoch, r.from
		}
		if r.next > head {
			return nil
		}
		if r.stopping() || time.Now().After(until) {
			return errGoOn
		}
		first, frames, _, err := r.ledger.readTopic(ctx, &r.scanner, r.topic, r.next, min(head, r.next+int64(r.rows)-1))
		if err != nil {
			return err
		}
		if len(frames) == 0 { // past retention, all of it or what was looked at
			r.next = min(head, r.next+int64(r.rows)-1) + 1
			continue
		}
		o := stream.Offer{
			Run: stream.Run{Channel: stream.Channel{Epoch: epoch, Partition: int(r.partition), Topic: r.topic},
				First: first, Frames: frames},
			Restart:  startAnew || first > r.next,
			Announce: true,
		}
		pctx, cancel := context.WithTimeout(ctx, publishTimeout)
		answers, err := r.w.stream.Publish(pctx, []stream.Offer{o})
		cancel()
		if err == nil && len(answers) != 1 {
			err = fmt.Errorf("%w: %d answers to one offer", stream.ErrUnavailable, len(answers))
		}
		if err != nil {
			return err
		}
		v, from := decide(o, answers[0])
		switch {
		case v == confirmed:
			r.next, startAnew, refits = o.Last()+1, false, 0
			// What is done need not be done again by whoever goes on.
			if err := r.ledger.progress(ctx, r.topic, r.next, epoch, r.parked); err != nil {
				return err
			}
		case v == refused && len(frames) > 1:
			r.rows = len(frames) / 2 // up to the event that is refused
		case v == refused:
			r.next = first
			if err := r.w.refusesAll(ctx, r.partition, reason(answers[0])); err != nil {
				return err
			}
			e := &refusedError{offset: first, err: reason(answers[0])}
			if s, ok := wire.EventSpan(frames[0]); ok {
				e.sampled = []wire.Span{s}
			}
			return e
		case refits == maxRefits:
			return &refusedError{offset: first, err: errors.New("the stream does not take what it asks for")}
		default:
			refits++
			if startAnew = v == restart; v == refill {
				r.next = from
			}
		}
	}
}

func (r *republisher) stopping() bool {
	select {
	case <-r.w.stopping:
		return true
	default:
		return false
	}
}

// complete ends the job, unless the topic was set aside again meanwhile: whoever did that counts on this job for as
// long as its row says that it runs, and waits for that row.
func (r *republisher) complete(ctx context.Context, job *river.Job[RepublishArgs]) error {
	return pgx.BeginFunc(ctx, r.w.pool, func(tx pgx.Tx) error {
		if _, err := river.JobCompleteTx[*riverpgxv5.Driver](ctx, tx, job); err != nil {
			return err
		}
		var again bool
		err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM commitcast.parked WHERE topic = $1 AND died_at IS NULL)
			OR EXISTS (SELECT FROM commitcast.redrive WHERE topic = $1)`, r.topic).Scan(&again)
		if err == nil && again {
			err = errGoOn
		}
		return err
	})
}

// readTopic reads events of a topic from the journal. They are contiguous, and begin at offset from unless that is
// past retention.
func (w *Worker) readTopic(ctx context.Context, sc *journal.Scanner, topic string, from, to int64) (first int64, frames [][]byte, lastSeq int64, err error) {
	rctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	rows, err := w.pool.Query(rctx, topicSQL, pgx.QueryResultFormats{pgx.BinaryFormatCode}, topic, from, to, refillRows, refillBytes)
	if err != nil {
		return 0, nil, 0, fmt.Errorf("reading %q from the journal: %w", topic, err)
	}
	defer rows.Close()
	var row journal.Row
	for rows.Next() {
		if err := sc.Scan(&row, rows.RawValues()); err != nil {
			return 0, nil, 0, err
		}
		if len(frames) == 0 {
			first = row.Offset
		}
		if row.Offset != first+int64(len(frames)) {
			break
		}
		frames = append(frames, journal.Encode(&row.Event))
		lastSeq = row.Seq
	}
	rows.Close()
	if err := rows.Err(); err != nil {
		return 0, nil, 0, fmt.Errorf("reading %q from the journal: %w", topic, err)
	}
	return first, frames, lastSeq, nil
}

// adopt orders the jobs of topics that are set aside and have none: an operator has redriven them, River's row was lost, or its
// process died at the last attempt. Those that have one keep it.
func (w *Worker) adopt(ctx context.Context) error {
	rows, err := w.pool.Query(ctx, `SELECT topic FROM (
			SELECT topic FROM commitcast.parked WHERE died_at IS NULL UNION SELECT topic FROM commitcast.redrive) p
		WHERE NOT EXISTS (
			SELECT FROM commitcast.river_job WHERE kind = 'topic_republish' AND args->>'topic' = p.topic
				AND state NOT IN ('completed', 'cancelled', 'discarded'))
		ORDER BY topic LIMIT $1`, maxParked)
	if err != nil {
		return fmt.Errorf("looking for topics that are set aside: %w", err)
	}
	topics, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err == nil && len(topics) > 0 {
		_, err = w.river.InsertMany(ctx, republishJobs(topics, w.cfg.RepublishAttempts))
	}
	if err != nil {
		return fmt.Errorf("ordering jobs of topics that are set aside: %w", err)
	}
	return nil
}

// Redrive has dead letters tried again, with as many attempts as the first time: of the topics that are named, or of
// all. It returns the topics it has taken up, at most 10,000 at once; workers give them jobs within about a second and publish
// them in order, while new events of the topics keep coming. Topics that are still being tried are left to their jobs, which
// River can be told to run at once. It needs the rights of commitcast_operator.
func Redrive(ctx context.Context, pool *pgxpool.Pool, topics ...string) (taken []string, err error) {
	if len(topics) == 0 {
		topics = nil
	}
	rows, err := pool.Query(ctx, redriveSQL, topics, redriveMost)
	if err == nil {
		taken, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if err != nil {
		return nil, fmt.Errorf("redrive: %w", err)
	}
	return taken, nil
}

// RedriveRange orders the events of a topic from one offset to another to be published again, in tx: what the stream lacks of
// them, it gets, and what it has is announced again, which subscribers who had it drop. A job, which a worker orders within about a
// second, does it beside the drain of the topic's partition. audit is the row of commitcast.audit that learns how it ended.
// False: a redrive of the topic is under way already, or it is set aside, and nothing was ordered.
func RedriveRange(ctx context.Context, tx pgx.Tx, topic string, from, to, audit int64) (ordered bool, err error) {
	tag, err := tx.Exec(ctx, `INSERT INTO commitcast.redrive (topic, first, last, next, audit) SELECT $1, $2, $3, $2, $4
		WHERE NOT EXISTS (SELECT FROM commitcast.parked WHERE topic = $1) ON CONFLICT (topic) DO NOTHING`, topic, from, to, audit)
	return err == nil && tag.RowsAffected() > 0, err
}

// RedriveTx is [Redrive] of some topics in the caller's transaction.
func RedriveTx(ctx context.Context, tx pgx.Tx, topics []string) (taken []string, err error) {
	rows, err := tx.Query(ctx, redriveSQL, topics, redriveMost)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}
