package console

import (
	"time"

	"github.com/commitcast/commitcast/ops"
)

// Unknown is the level of a hop of which nothing can be known now.
const unknown ops.Level = "unknown"

// view is what the page of the pipeline shows.
type view struct {
	*ops.Watched
	Now  time.Time            `json:"now"`  // of this answer, by the clock of At
	Hops map[string]ops.Level `json:"hops"` // how each hop is
}

func newView(w *ops.Watched) view {
	hops := map[string]ops.Level{
		"writers":      ops.Good,
		"outbox":       w.Worst("outbox", "operator", "worker"),
		"journal":      w.Worst("journal"),
		"redis":        w.Worst("redis"),
		"broadcasters": w.Worst("broadcaster", "node"),
		"subscribers":  w.Worst("broadcaster"),
	}
	if !w.Database.Up {
		hops["writers"], hops["outbox"], hops["journal"] = unknown, unknown, ops.Problem
	}
	if w.Redis.Configured && !w.Redis.Up {
		hops["redis"] = ops.Problem
	}
	answered := false
	for _, n := range w.Nodes {
		answered = answered || n.Identity != nil && n.Identity.Broadcaster != nil
	}
	if !answered {
		hops["subscribers"] = unknown
	}
	return view{w, time.Now(), hops}
}
