package ops

import (
	"context"
	_ "embed"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/wire"
)

var (
	//go:embed dead_list.sql
	deadListSQL string
	//go:embed dead_topic.sql
	deadTopicSQL string
	//go:embed dead_attempts.sql
	deadAttemptsSQL string
	//go:embed dead_discard.sql
	deadDiscardSQL string
)

// DeadLetter is an event that could not be published.
type DeadLetter struct {
	Topic      string     `json:"topic"`
	Offset     int64      `json:"offset"`
	Epoch      string     `json:"epoch"`
	ID         int64      `json:"id"`
	Type       string     `json:"type"`
	Key        string     `json:"key,omitempty"`
	Bytes      int        `json:"bytes"`
	CreatedAt  time.Time  `json:"created_at"`
	Error      string     `json:"error"`
	Attempts   int        `json:"attempts"`
	Job        *int64     `json:"job,omitempty"` // River's, with the errors of all attempts
	DiedAt     time.Time  `json:"died_at"`
	RedrivenAt *time.Time `json:"redriven_at,omitempty"`
	Data       *string    `json:"data,omitempty"` // where one is shown
	Headers    *string    `json:"headers,omitempty"`
}

// DeadQuery chooses a page of dead letters.
type DeadQuery struct {
	Topic string      // of one topic, redriven or not, by offset; else of all, not redriven, newest first
	After *DeadLetter // the last of the page before
	Limit int
}

// DeadLetters lists dead letters, without their data.
func (c *Console) DeadLetters(ctx context.Context, q DeadQuery) ([]DeadLetter, error) {
	if q.Topic != "" {
		var after int64
		if q.After != nil {
			after = q.After.Offset
		}
		return c.dead(ctx, deadTopicSQL, q.Topic, after, page(q.Limit), false)
	}
	before := DeadLetter{DiedAt: time.Now().Add(24 * time.Hour)} // no clock is that wrong
	if q.After != nil {
		before = *q.After
	}
	return c.dead(ctx, deadListSQL, before.DiedAt, before.Topic, before.Offset, page(q.Limit))
}

// DeadLetter shows one, with its data.
func (c *Console) DeadLetter(ctx context.Context, topic string, offset int64) (*DeadLetter, error) {
	list, err := c.dead(ctx, deadTopicSQL, topic, offset-1, 1, true)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 || list[0].Offset != offset {
		return nil, fmt.Errorf("%w: topic %q has no dead letter at offset %d; see: commitcast ops dead list", ErrNotFound, topic, offset)
	}
	return &list[0], nil
}

// Attempt is one that failed to publish a topic, as River has kept it.
type Attempt struct {
	At      time.Time `json:"at"`
	Attempt int       `json:"attempt"`
	Error   string    `json:"error"`
}

// DeadHistory is a dead letter with its data, and every attempt that its job has made.
type DeadHistory struct {
	DeadLetter
	Attempted []Attempt `json:"attempted"` // the first one first; empty if River no longer has the job
}

// DeadHistory shows one, and how it came to be.
func (c *Console) DeadHistory(ctx context.Context, topic string, offset int64) (*DeadHistory, error) {
	d, err := c.DeadLetter(ctx, topic, offset)
	if err != nil {
		return nil, err
	}
	h := &DeadHistory{DeadLetter: *d, Attempted: []Attempt{}}
	if d.Job == nil {
		return h, nil
	}
	rows, err := c.pool.Query(ctx, deadAttemptsSQL, *d.Job)
	if err == nil {
		h.Attempted, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Attempt])
	}
	return h, wrap("reading the attempts", err)
}

func (c *Console) dead(ctx context.Context, sql string, args ...any) ([]DeadLetter, error) {
	rows, err := c.pool.Query(ctx, sql, args...)
	if err == nil {
		var list []DeadLetter
		if list, err = pgx.CollectRows(rows, pgx.RowToStructByPos[DeadLetter]); err == nil {
			return list, nil
		}
	}
	return nil, wrap("listing dead letters", err)
}

// Discard removes dead letters of one topic, as they were seen: one that has changed since, or gone, refuses all. Those that
// were not redriven are removed only with lose: where retention has passed them, nothing is left of them then, and a topic
// that is set aside can no longer be published without a hole.
func (c *Console) Discard(ctx context.Context, topic string, seen []DeadLetter, lose bool) error {
	if !wire.ValidTopic(topic) || len(seen) == 0 || len(seen) > MaxPage {
		return fmt.Errorf("%w: discard names a topic, and 1 to %d of its dead letters", ErrInvalid, MaxPage)
	}
	offsets, died := make([]int64, len(seen)), make([]time.Time, len(seen))
	for i, d := range seen {
		if d.Topic != topic {
			return fmt.Errorf("%w: %q is another topic", ErrInvalid, d.Topic)
		}
		if d.RedrivenAt == nil && !lose {
			return fmt.Errorf("%w: offset %d of %q was not redriven; redrive it first, or say that it may be lost", ErrConflict, d.Offset, topic)
		}
		offsets[i], died[i] = d.Offset, d.DiedAt
	}
	return c.act(ctx, "discard", topic, map[string]any{"offsets": offsets, "lose": lose}, func(tx pgx.Tx, _ int64) (string, error) {
		tag, err := tx.Exec(ctx, deadDiscardSQL, topic, offsets, died)
		if err != nil {
			return "", err
		}
		if n := int(tag.RowsAffected()); n != len(seen) {
			return "", fmt.Errorf("%w: %d of %d dead letters are not as they were seen; look again", ErrConflict, len(seen)-n, len(seen))
		}
		return fmt.Sprintf("done: %d removed", len(seen)), nil
	})
}
