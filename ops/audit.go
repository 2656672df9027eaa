package ops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Record is one action of an operator.
type Record struct {
	ID     int64           `json:"id"`
	At     time.Time       `json:"at"`
	Who    string          `json:"who"`  // as the console says
	Role   string          `json:"role"` // as the database knows
	Action string          `json:"action"`
	Target string          `json:"target"`
	Detail json.RawMessage `json:"detail,omitempty"`
	Result string          `json:"result,omitempty"` // "": under way, or nobody knows
	Ended  *time.Time      `json:"ended,omitempty"`
}

const (
	recordSQL = `INSERT INTO commitcast.audit (who, action, target, detail) VALUES ($1, $2, $3, $4) RETURNING id`
	resultSQL = `UPDATE commitcast.audit SET result = $2, ended_at = clock_timestamp() WHERE id = $1`
	// auditTimeout bounds the completion of a record, also of one whose operator has pressed Ctrl-C.
	auditTimeout = 3 * time.Second
	maxResult    = 2000 // bytes of it
)

// act carries an action out in one transaction with its record. do returns the result; "" leaves it to whoever ends what was
// begun. What is refused is recorded, too.
func (c *Console) act(ctx context.Context, action, target string, detail any, do func(tx pgx.Tx, audit int64) (result string, err error)) error {
	if err := c.ready(ctx); err != nil {
		return err
	}
	err := pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT set_config('lock_timeout', '5s', true), set_config('synchronous_commit', 'on', true)`); err != nil {
			return err
		}
		var id int64
		if err := tx.QueryRow(ctx, recordSQL, c.cfg.Who, action, clip(target), c.detail(detail)).Scan(&id); err != nil {
			return err
		}
		result, err := do(tx, id)
		if err != nil || result == "" {
			return err
		}
		_, err = tx.Exec(ctx, resultSQL, id, clip(result))
		return err
	})
	err = wrap(action, err)
	if err != nil && !errors.Is(err, ErrDatabase) {
		c.refused(ctx, action, target, detail, err)
	}
	return err
}

// refused records what was not done. A role that may not even do that is in the database's log.
func (c *Console) refused(ctx context.Context, action, target string, detail any, why error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditTimeout)
	defer cancel()
	c.pool.Exec(ctx, `INSERT INTO commitcast.audit (who, action, target, detail, result, ended_at) VALUES ($1, $2, $3, $4, $5, clock_timestamp())`,
		c.cfg.Who, action, clip(target), c.detail(detail), clip("refused: "+strings.TrimPrefix(why.Error(), ErrConflict.Error()+": ")))
}

// actElsewhere records an action, has it carried out by another process, and records what came of it.
func (c *Console) actElsewhere(ctx context.Context, action, target string, detail any, do func() (result string, err error)) error {
	if err := c.ready(ctx); err != nil {
		return err
	}
	var id int64
	if err := c.pool.QueryRow(ctx, recordSQL, c.cfg.Who, action, clip(target), c.detail(detail)).Scan(&id); err != nil {
		return wrap("recording the action", err)
	}
	result, err := do()
	if err != nil {
		result = "failed: " + err.Error()
	}
	actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditTimeout)
	defer cancel()
	if _, aerr := c.pool.Exec(actx, resultSQL, id, clip(result)); aerr != nil && err == nil {
		return fmt.Errorf("done (%s), and not recorded: %w", result, wrap("recording the result", aerr))
	}
	return err
}

// Audit lists the record, newest first, before an id (0: from the newest on).
func (c *Console) Audit(ctx context.Context, before int64, limit int) ([]Record, error) {
	if before <= 0 {
		before = 1<<63 - 1
	}
	rows, err := c.pool.Query(ctx, `SELECT id, at, who, role, action, target, detail, coalesce(result, ''), ended_at FROM commitcast.audit
		WHERE id < $1 ORDER BY id DESC LIMIT $2`, before, page(limit))
	if err == nil {
		var list []Record
		if list, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Record]); err == nil {
			return list, nil
		}
	}
	return nil, wrap("reading the record", err)
}

// Recorded records an action of an operator that somebody else's code carries out, and what came of it.
func (c *Console) Recorded(ctx context.Context, action, target string, detail any, do func() (result string, err error)) error {
	return c.actElsewhere(ctx, action, target, detail, do)
}

// detail is what is recorded of an action besides its target, with the reason that was given for it.
func (c *Console) detail(detail any) []byte {
	if detail == nil && c.why == "" {
		return nil
	}
	text, err := json.Marshal(detail)
	if err == nil && c.why != "" {
		all := map[string]any{}
		if detail != nil {
			err = json.Unmarshal(text, &all)
		}
		if err == nil {
			all["why"] = c.why
			text, err = json.Marshal(all)
		}
	}
	if err != nil {
		panic(err) // our own structs
	}
	return text
}

func clip(s string) string {
	if len(s) > maxResult {
		s = strings.ToValidUTF8(s[:maxResult], "") + "…"
	}
	return s
}
