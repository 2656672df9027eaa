package ops

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"
)

const (
	// ratesOver is about how far apart the looks are that rates compare: less says nothing, more says it late.
	ratesOver = 4 * time.Second
	// looksKept is how old a look may be to be compared with, after nobody has asked for a while.
	looksKept = 30 * time.Second
	// goneFor is for how long a process is told of that was there and is not any more.
	goneFor = 15 * time.Minute
	// goneMost bounds these.
	goneMost = 50
)

// Source is somebody whom a look asks, and whether and when it answered.
type Source struct {
	Name       string     `json:"name"` // database, redis, or a node's
	Kind       string     `json:"kind"` // database, redis, or what the node is
	Up         bool       `json:"up"`
	Error      string     `json:"error,omitempty"`
	AnsweredAt *time.Time `json:"answered_at,omitempty"` // the last time
}

// Gone is a process that was connected and is not any more.
type Gone struct {
	Name    string    `json:"name"`
	Kind    string    `json:"kind"`
	Address string    `json:"address"`
	SeenAt  time.Time `json:"seen_at"`
}

// Watched is the newest look of a [Watch].
type Watched struct {
	*Status
	Took    time.Duration `json:"took_ns"` // Status.At is when it began
	Sources []Source      `json:"sources"`
	Gone    []Gone        `json:"gone"`
}

// Watch looks for many who ask again and again: one look at a time, and rates between looks. It remembers who was there.
type Watch struct {
	c      *Console
	ctx    context.Context
	cancel context.CancelFunc
	looks  sync.WaitGroup

	mu       sync.Mutex
	last     *Watched
	glances  []*glance     // the newest last
	looking  chan struct{} // closed when the look under way has ended; nil if none is
	answered map[string]time.Time
	seen     map[string]Gone // by address
}

// Watch begins to watch. Nothing is asked before somebody asks.
func (c *Console) Watch() *Watch {
	ctx, cancel := context.WithCancel(context.Background())
	return &Watch{c: c, ctx: ctx, cancel: cancel, answered: make(map[string]time.Time), seen: make(map[string]Gone)}
}

// Close ends a look that is under way, and waits for it.
func (w *Watch) Close() {
	w.mu.Lock()
	w.cancel()
	w.mu.Unlock()
	w.looks.Wait()
}

// Look returns a look that is at most fresh old. If there is none it looks, but waits no longer than patience for it if it has an
// older one. It fails if ctx ends, or the Watch is closed, before there was any.
func (w *Watch) Look(ctx context.Context, fresh, patience time.Duration) (*Watched, error) {
	w.mu.Lock()
	last := w.last
	if last != nil && time.Since(last.At) <= fresh {
		w.mu.Unlock()
		return last, nil
	}
	if err := w.ctx.Err(); err != nil {
		w.mu.Unlock()
		return nil, err
	}
	done := w.looking
	if done == nil {
		done = make(chan struct{})
		w.looking = done
		w.looks.Go(func() { // ends with the look; Close waits for it
			w.look()
			close(done)
		})
	}
	w.mu.Unlock()
	var late <-chan time.Time
	if last != nil {
		t := time.NewTimer(patience)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-done:
	case <-late:
		return last, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.last == nil {
		return nil, context.Canceled
	}
	return w.last, nil
}

func (w *Watch) look() {
	began := time.Now()
	g := w.c.look(w.ctx)
	s := g.status
	s.Findings = w.c.findings(w.ctx, s)
	s.Level = Good
	for _, f := range s.Findings {
		s.Level = worse(s.Level, f.Level)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looking = nil
	if w.ctx.Err() != nil {
		return // what did not answer was not asked to the end
	}
	w.glances = slices.DeleteFunc(w.glances, func(old *glance) bool { return s.At.Sub(old.status.At) > looksKept })
	// The look to compare with: the newest of those that are long enough ago, else the oldest.
	if len(w.glances) > 0 {
		before := w.glances[0]
		for _, old := range w.glances {
			if s.At.Sub(old.status.At) >= ratesOver {
				before = old
			}
		}
		s.Rates = rates(before, g)
	}
	w.glances = append(w.glances, g)
	last := &Watched{Status: s, Took: time.Since(began)}
	last.Sources = w.sources(s)
	last.Gone = w.gone(s)
	w.last = last
}

// sources are whom the look asked. mu is held.
func (w *Watch) sources(s *Status) []Source {
	list := []Source{{Name: "database", Kind: "database", Up: s.Database.Up, Error: s.Database.Error}}
	if s.Redis.Configured {
		list = append(list, Source{Name: "redis", Kind: "redis", Up: s.Redis.Up, Error: s.Redis.Error})
	}
	keys := []string{"database", "redis"}[:len(list)]
	for _, n := range s.Nodes {
		name, kind := n.Name(), n.Kind()
		if before, ok := w.seen[n.Address]; ok && n.Identity == nil {
			name, kind = before.Name, before.Kind
		}
		list = append(list, Source{Name: name, Kind: kind, Up: n.Error == "", Error: n.Error})
		keys = append(keys, "node "+n.Address)
	}
	answered := make(map[string]time.Time, len(list))
	for i, key := range keys {
		if list[i].Up {
			answered[key] = s.At
		} else if at, ok := w.answered[key]; ok {
			answered[key] = at
		}
		if at, ok := answered[key]; ok {
			list[i].AnsweredAt = &at
		}
	}
	w.answered = answered
	return list
}

// gone are those that were there. mu is held. While the database is away, nobody is known to be gone.
func (w *Watch) gone(s *Status) []Gone {
	here := make(map[string]bool, len(s.Nodes))
	for _, n := range s.Nodes {
		here[n.Address] = true
		if n.Identity != nil {
			w.seen[n.Address] = Gone{n.Name(), n.Kind(), n.Address, s.At}
		}
	}
	list := []Gone{}
	for address, g := range w.seen {
		switch {
		case here[address]:
		case s.At.Sub(g.SeenAt) > goneFor:
			delete(w.seen, address)
		case s.Database.Up:
			list = append(list, g)
		}
	}
	slices.SortFunc(list, func(a, b Gone) int { return cmp.Or(b.SeenAt.Compare(a.SeenAt), cmp.Compare(a.Address, b.Address)) })
	return list[:min(len(list), goneMost)]
}
