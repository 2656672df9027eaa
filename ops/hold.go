package ops

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/wire"
)

// parkedBy begins the error of a topic that an operator has parked.
const parkedBy = "parked by "

// Pause stops sequencing of a partition, and within a second its publishing, until it is resumed: committed events wait in the
// outbox. It is for when what would come out is wrong.
func (c *Console) Pause(ctx context.Context, partition int, why string) error {
	if err := checkPartition(partition); err != nil {
		return err
	}
	return c.act(ctx, "pause", fmt.Sprintf("partition %d", partition), map[string]string{"why": why}, func(tx pgx.Tx, _ int64) (string, error) {
		var paused bool
		err := tx.QueryRow(ctx, `SELECT commitcast.pause_partition($1, $2, $3)`, int16(partition), c.cfg.Who, why).Scan(&paused)
		if err == nil && !paused {
			var by string
			var at time.Time
			err = tx.QueryRow(ctx, `SELECT paused_by, paused_at FROM commitcast.partition WHERE id = $1`, int16(partition)).Scan(&by, &at)
			if err == nil {
				err = fmt.Errorf("%w: partition %d is paused already, by %s at %s", ErrConflict, partition, by, at.Format(time.DateTime))
			}
		}
		return "done", err
	})
}

func checkPartition(partition int) error {
	if partition < 0 || partition >= wire.Partitions {
		return fmt.Errorf("%w: partitions are 0 to %d", ErrInvalid, wire.Partitions-1)
	}
	return nil
}

// Resume ends the pause of a partition that was seen to have begun at a time.
func (c *Console) Resume(ctx context.Context, partition int, since time.Time) error {
	return c.act(ctx, "resume", fmt.Sprintf("partition %d", partition), nil, func(tx pgx.Tx, _ int64) (string, error) {
		var resumed bool
		err := tx.QueryRow(ctx, `SELECT commitcast.resume_partition($1, $2)`, int16(partition), since).Scan(&resumed)
		if err == nil && !resumed {
			err = fmt.Errorf("%w: partition %d is not, or no longer, paused as it was seen; look again", ErrConflict, partition)
		}
		return "done", err
	})
}

// Paused is since when a partition is paused.
func (c *Console) Paused(ctx context.Context, partition int) (time.Time, error) {
	if err := checkPartition(partition); err != nil {
		return time.Time{}, err
	}
	if err := c.ready(ctx); err != nil {
		return time.Time{}, err
	}
	var at *time.Time
	err := c.pool.QueryRow(ctx, `SELECT paused_at FROM commitcast.partition WHERE id = $1`, int16(partition)).Scan(&at)
	if err == nil && at == nil {
		return time.Time{}, fmt.Errorf("%w: partition %d is not paused", ErrConflict, partition)
	}
	if err != nil {
		return time.Time{}, wrap("looking at the partition", err)
	}
	return *at, nil
}

// Park sets a topic aside: nothing of it goes to Redis until it is released, and its subscribers are served from the journal. It
// returns the first offset that Redis may lack.
func (c *Console) Park(ctx context.Context, topic, why string) (from int64, err error) {
	if !wire.ValidTopic(topic) {
		return 0, fmt.Errorf("%w: %.144q is not the name of a topic", ErrInvalid, topic)
	}
	reason := parkedBy + c.cfg.Who
	if why != "" {
		reason += ": " + clip(why)
	}
	err = c.act(ctx, "park", topic, map[string]string{"why": why}, func(tx pgx.Tx, _ int64) (string, error) {
		var busy bool
		if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM commitcast.redrive WHERE topic = $1)`, topic).Scan(&busy); err != nil {
			return "", err
		}
		if busy {
			return "", fmt.Errorf("%w: a redrive of %q is under way", ErrConflict, topic)
		}
		var at *int64
		err := tx.QueryRow(ctx, `SELECT commitcast.park_topic($1, $2)`, topic, reason).Scan(&at)
		if err == nil && at == nil {
			err = fmt.Errorf("%w: topic %q is set aside already", ErrConflict, topic)
		}
		if err != nil {
			return "", err
		}
		from = *at
		return fmt.Sprintf("done: from offset %d on", from), nil
	})
	return from, err
}

// BumpEpoch begins a new epoch, if the one that was seen is still the current one: for a database that went back in a way that
// Commitcast cannot see. It costs every subscriber a look at its cursor, and is harmless.
func (c *Console) BumpEpoch(ctx context.Context, seen, why string) (epoch string, err error) {
	if why == "" {
		return "", fmt.Errorf("%w: say why", ErrInvalid)
	}
	err = c.act(ctx, "epoch bump", seen, map[string]string{"why": why}, func(tx pgx.Tx, _ int64) (string, error) {
		if err := tx.QueryRow(ctx, `SELECT commitcast.begin_epoch(NULL, $1)`, "operator: "+clip(why)).Scan(&epoch); err != nil {
			return "", err
		}
		// Behind its lock: nobody else begins one any more.
		var before string
		err := tx.QueryRow(ctx, `SELECT name FROM commitcast.epoch ORDER BY ordinal DESC OFFSET 1 LIMIT 1`).Scan(&before)
		if err == nil && before != seen {
			err = fmt.Errorf("%w: the epoch is %s, not %s", ErrConflict, before, seen)
		}
		return "done: " + epoch, err
	})
	return epoch, err
}

// Epoch is one history of the database.
type Epoch struct {
	Ordinal int       `json:"ordinal"`
	Name    string    `json:"name"`
	BeganAt time.Time `json:"began_at"`
	Reason  string    `json:"reason"`
}

// Epochs lists the newest, newest first.
func (c *Console) Epochs(ctx context.Context, limit int) ([]Epoch, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	rows, err := c.pool.Query(ctx, `SELECT ordinal, name, began_at, reason FROM commitcast.epoch ORDER BY ordinal DESC LIMIT $1`, page(limit))
	if err == nil {
		var list []Epoch
		if list, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Epoch]); err == nil && len(list) == 0 {
			err = errors.New("there is none")
		}
		if err == nil {
			return list, nil
		}
	}
	return nil, wrap("listing epochs", err)
}
