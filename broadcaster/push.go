package broadcaster

import (
	"sync"

	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

// push is which partitions events are pushed of. Partitions that share a connection go down together, and the first
// channel that is confirmed says that the connection is there again, for all of them. Before anything was confirmed or lost,
// that is one for all.
type push struct {
	mu       sync.Mutex
	down     stream.Partitions
	used     stream.Partitions                  // of which topics are followed here
	together [wire.Partitions]stream.Partitions // with whom each was last told to be down; 0: it never was
}

// Load reports whether events of all partitions are pushed that topics are followed of, or that go together with such a one: of
// others nothing would be confirmed. While nothing is followed, of all; Ping tells more.
func (p *push) Load() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down == 0 || p.used == 0 {
		return p.down == 0
	}
	for i := range p.together {
		if p.down.Has(i) && p.groupLocked(i)&p.used != 0 {
			return false
		}
	}
	return true
}

// use takes note that a topic of a partition is followed.
func (p *push) use(partition int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used |= 1 << partition
}

// confirmed says that a channel of a partition is live.
func (p *push) confirmed(partition int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down &^= p.groupLocked(partition)
}

// groupLocked is with whom a partition is up and down: for as long as it was never told, with all others of which that is true.
func (p *push) groupLocked(partition int) stream.Partitions {
	if g := p.together[partition]; g != 0 {
		return g
	}
	var untold stream.Partitions
	for i, g := range p.together {
		if g == 0 {
			untold |= 1 << i
		}
	}
	return untold
}

// lost says that these are down. It reports whether all were up.
func (p *push) lost(of stream.Partitions) (first bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	first = p.down == 0
	p.down |= of
	for i := range p.together {
		if of.Has(i) {
			p.together[i] = of
		}
	}
	return first
}

// follow says of which partitions topics are followed.
func (p *push) follow(used stream.Partitions) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used = used
}
