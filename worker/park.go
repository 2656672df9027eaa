package worker

import (
	"cmp"
	"context"
	_ "embed"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"

	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

//go:embed park.sql
var parkSQL string

// maxParked bounds the topics of one partition that are set aside. With more, the partition waits: the stream is then
// in trouble as a whole, and an operator is needed.
const maxParked = 10_000

// refusal is a topic that the stream refuses, from an offset on.
type refusal struct {
	topic string
	first int64
	err   error

	sampled []wire.Span // of the events that were refused
}

// canary is what is offered to a stream that has refused a topic and has shown no other to tell the two apart: its
// refusal says that the trouble is the stream's. No database has an epoch of that name: theirs have eight digits.
func canary(partition int16) stream.Offer {
	return stream.Offer{
		Run: stream.Run{
			Channel: stream.Channel{Epoch: "1-cafe", Partition: int(partition), Topic: "canary"},
			First:   1, Frames: [][]byte{[]byte("{}")},
		},
		Restart: true,
	}
}

// refusesAll asks whether the stream refuses everything now: nil if it takes other topics than the one it refused.
func (w *Worker) refusesAll(ctx context.Context, partition int16, why error) error {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	answers, err := w.stream.Publish(ctx, []stream.Offer{canary(partition)})
	switch {
	case err != nil:
		return err
	case len(answers) != 1 || answers[0].Err != nil:
		return fmt.Errorf("%w: it refuses every topic: %w", stream.ErrUnavailable, why)
	}
	return nil
}

// park sets topics aside that were refused, so that the partition flows on without them. False: they could not be,
// because the stream takes nothing at all or the database is gone, and everything is offered again. others says that
// the stream has taken something of another topic.
func (p *publisher) park(ctx context.Context, refusals []refusal, others bool) bool {
	var err error
	if !others {
		err = p.w.refusesAll(ctx, p.partition, refusals[0].err)
	}
	if err == nil && len(p.parked)+len(refusals) > maxParked {
		err = fmt.Errorf("%d topics of the partition are set aside already", len(p.parked))
	}
	if err == nil {
		err = p.ledger.park(ctx, p.partition, refusals)
	}
	if err != nil {
		if p.failures == 0 {
			p.log.WarnContext(ctx, "topics were refused and cannot be set aside; the partition waits", "topic", refusals[0].topic, "error", err)
		}
		p.giveUp(ctx, err)
		return false
	}
	now := time.Now()
	for _, r := range refusals {
		p.w.metrics.parked.Inc()
		p.log.WarnContext(ctx, "the stream refuses a topic; it is set aside and tried again by a job of its own",
			append([]any{"topic", r.topic, "from", r.first, "error", r.err}, joins(r.sampled)...)...)
		p.traced(ctx, r.sampled, now, r.err)
		p.parked[r.topic] = struct{}{}
		delete(p.laggards, r.topic)
		p.mark.settle(r.topic)
	}
	return true
}

// park sets topics aside durably, each with a job. Topics that are set aside already keep what they have.
func (w *Worker) park(ctx context.Context, partition int16, refusals []refusal) error {
	// In one order, so that two drains of a partition do not wait for each other.
	slices.SortStableFunc(refusals, func(a, b refusal) int { return cmp.Or(cmp.Compare(a.topic, b.topic), cmp.Compare(a.first, b.first)) })
	refusals = slices.CompactFunc(refusals, func(a, b refusal) bool { return a.topic == b.topic })
	topics, firsts, errs := make([]string, len(refusals)), make([]int64, len(refusals)), make([]string, len(refusals))
	for i, r := range refusals {
		topics[i], firsts[i], errs[i] = r.topic, r.first, r.err.Error()
	}
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	err := pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, parkSQL, partition, topics, firsts, errs); err != nil {
			return err
		}
		_, err := w.river.InsertManyTx(ctx, tx, republishJobs(topics, w.cfg.RepublishAttempts))
		return err
	})
	if err != nil {
		return fmt.Errorf("setting %d topics aside: %w", len(topics), err)
	}
	return nil
}

func republishJobs(topics []string, attempts int) []river.InsertManyParams {
	params := make([]river.InsertManyParams, len(topics))
	for i, topic := range topics {
		params[i] = republishJob(RepublishArgs{Topic: topic}, attempts)
	}
	return params
}

func republishJob(args RepublishArgs, attempts int) river.InsertManyParams {
	return river.InsertManyParams{Args: args, InsertOpts: &river.InsertOpts{MaxAttempts: attempts}}
}

// lookForParked asks which topics are set aside: at the beginning, with nil, all of the partition; then those of a
// batch that this drain believes to be. These are asked about anew for each batch: a topic may be set aside no more,
// and what unparked it has looked for events up to that moment only.
func (p *publisher) lookForParked(ctx context.Context, runs []run) error {
	var among []string
	for _, r := range runs {
		if _, ok := p.parked[r.topic]; ok {
			delete(p.parked, r.topic)
			among = append(among, r.topic)
		}
	}
	if runs != nil && among == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	aside, err := p.ledger.parked(ctx, p.partition, among)
	if err != nil {
		aside = among
		err = fmt.Errorf("asking which topics are set aside: %w", err)
	}
	for _, topic := range aside {
		p.parked[topic] = struct{}{}
	}
	return err
}
