package worker

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/wire"
)

// State is what a worker knows of itself.
type State struct {
	Node       string  `json:"node"`
	Ready      string  `json:"ready,omitempty"` // why not; "" if it is
	Database   bool    `json:"database"`
	Epoch      string  `json:"epoch,omitempty"` // of the drain that began last; "" before the first
	Partitions []int16 `json:"partitions"`      // that it drains now
}

// State tells. Safe for concurrent use.
func (w *Worker) State() State {
	s := State{Node: w.cfg.Node, Database: w.dbUp.Load(), Partitions: []int16{}}
	if err := w.Ready(); err != nil {
		s.Ready = err.Error()
	}
	if e := w.epoch.Load(); e != nil {
		s.Epoch = *e
	}
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	for p, d := range w.hub.drains {
		if d != nil {
			s.Partitions = append(s.Partitions, int16(p))
		}
	}
	return s
}

// Owner is a session that drains a partition.
type Owner struct {
	Term int64 `json:"term"`
	// Silent is for how many seconds Postgres has waited for it; nil: this role may not know.
	Silent *float64 `json:"silent_s,omitempty"`
}

// Owners looks for the living owner of each partition; Term is 0 where there is none.
func Owners(ctx context.Context, pool *pgxpool.Pool) (owners [wire.Partitions]Owner, err error) {
	found, err := livingOwners(ctx, pool)
	for i, o := range found {
		owners[i] = Owner{o.term, o.silent}
	}
	return owners, err
}
