package network

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// ErrUnsupported is what New answers where namespaces cannot be made.
var ErrUnsupported = errors.New("hosts of one machine take Linux, and root")

const (
	// mtu is that of an Ethernet.
	mtu = 1500
	// maxHosts is what fits a /24, with this process's own side as .1.
	maxHosts = 253
	// maxDelayed bounds the packets that a slow link holds; more are lost, as by a full router.
	maxDelayed = 4096
	// tries is how many ranges of addresses are looked at for a free one.
	tries = 50
)

// Fault is what becomes of the packets of one direction of a link. The zero Fault is none.
type Fault struct {
	Lost  float64       // this share of the packets, 0 to 1, chosen at random; 1: all
	Delay time.Duration // of each packet; the order stays
}

// Network is hosts and the switch between them. Safe for concurrent use.
type Network struct {
	prefix  [3]byte
	outside *Host

	mu     sync.Mutex
	hosts  map[byte]*Host // by the last byte of the address
	closed bool
	links  sync.Map // link → *atomic.Pointer[way]
	pumps  sync.WaitGroup
	end    chan struct{}
}

// link is one direction between two hosts, by the last bytes of their addresses.
type link struct{ from, to byte }

// way is a fault in force.
type way struct {
	Fault
	late chan delayed // nil without a delay
	over chan struct{}
}

type delayed struct {
	at     time.Time
	packet []byte
}

// Host is one of them.
type Host struct {
	Name string

	n      *Network
	number byte
	space  *os.File // the namespace; nil for the outside
	tun    *os.File // its end of the cable
}

// New makes a network with nobody in it but this process, whose own side is [Network.Outside].
func New() (*Network, error) {
	n := &Network{hosts: make(map[byte]*Host), end: make(chan struct{})}
	if err := n.choose(); err != nil {
		return nil, err
	}
	h := &Host{Name: "outside", n: n, number: 1}
	var err error
	if h.tun, err = openTun(fmt.Sprintf("cc%d-%d", n.prefix[1]-18, n.prefix[2]), h.addr(), nil); err != nil {
		return nil, fmt.Errorf("making a network: %w", err)
	}
	n.outside = h
	n.plug(h)
	return n, nil
}

// choose picks a range that no interface of this machine has.
func (n *Network) choose() error {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	for range tries {
		n.prefix = [3]byte{198, 18 + byte(rand.IntN(2)), byte(rand.IntN(256))}
		taken := false
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Overlaps(netip.PrefixFrom(netip.AddrFrom4([4]byte{n.prefix[0], n.prefix[1], n.prefix[2], 0}), 24)) {
				taken = true
			}
		}
		if !taken {
			return nil
		}
	}
	return errors.New("no range of addresses in 198.18.0.0/15 is free")
}

// Outside is the side of this process.
func (n *Network) Outside() *Host { return n.outside }

// Host makes another host.
func (n *Network) Host(name string) (*Host, error) {
	n.mu.Lock()
	number := byte(len(n.hosts) + 1)
	full := len(n.hosts) >= maxHosts
	closed := n.closed
	n.mu.Unlock()
	if full || closed {
		return nil, fmt.Errorf("no host more: the network is closed, or has %d", maxHosts)
	}
	h := &Host{Name: name, n: n, number: number}
	if err := h.open(); err != nil {
		return nil, fmt.Errorf("making host %s: %w", name, err)
	}
	n.plug(h)
	return h, nil
}

// plug connects a host to the switch.
func (n *Network) plug(h *Host) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[h.number] = h
	n.pumps.Go(func() { n.pump(h) }) // owned by the network: Close ends it by closing the cable
}

// pump forwards what a host sends.
func (n *Network) pump(h *Host) {
	packet := make([]byte, mtu)
	for {
		size, err := h.tun.Read(packet)
		if err != nil {
			return // closed
		}
		p := packet[:size]
		if size < 20 || p[0]>>4 != 4 || [3]byte(p[16:19]) != n.prefix {
			continue // IPv6 looks for neighbours, and nobody is there
		}
		to := p[19]
		w := n.way(link{h.number, to})
		switch {
		case w == nil:
			n.deliver(to, p)
		case w.Lost > 0 && rand.Float64() < w.Lost:
		case w.late != nil:
			select {
			case w.late <- delayed{time.Now().Add(w.Delay), append([]byte(nil), p...)}:
			default:
			}
		default:
			n.deliver(to, p)
		}
	}
}

func (n *Network) way(l link) *way {
	v, ok := n.links.Load(l)
	if !ok {
		return nil
	}
	return v.(*atomic.Pointer[way]).Load()
}

func (n *Network) deliver(to byte, packet []byte) {
	n.mu.Lock()
	h := n.hosts[to]
	n.mu.Unlock()
	if h != nil {
		h.tun.Write(packet) // a cable that is closed loses it
	}
}

// Break puts a fault on one direction of a link, in place of one that is there, until it is mended. Packets on their way arrive, those that
// wait in a slow link too.
func (n *Network) Break(from, to *Host, f Fault) (mend func()) {
	w := &way{Fault: f, over: make(chan struct{})}
	if f.Delay > 0 {
		w.late = make(chan delayed, maxDelayed)
		n.pumps.Go(func() { n.hold(to.number, w) }) // owned by the network: mend or Close ends it
	}
	v, _ := n.links.LoadOrStore(link{from.number, to.number}, new(atomic.Pointer[way]))
	at := v.(*atomic.Pointer[way])
	if old := at.Swap(w); old != nil {
		close(old.over)
	}
	return func() {
		if at.CompareAndSwap(w, nil) {
			close(w.over)
		}
	}
}

// Part cuts both directions between two hosts.
func (n *Network) Part(a, b *Host) (mend func()) {
	there, back := n.Break(a, b, Fault{Lost: 1}), n.Break(b, a, Fault{Lost: 1})
	return func() { there(); back() }
}

// hold hands packets on when they are due. What waits when the link is mended arrives first.
func (n *Network) hold(to byte, w *way) {
	over := w.over
	for over != nil || len(w.late) > 0 {
		select {
		case d := <-w.late:
			select {
			case <-time.After(time.Until(d.at)):
				n.deliver(to, d.packet)
			case <-n.end:
				return
			}
		case <-over:
			over = nil
		case <-n.end:
			return
		}
	}
}

// Close takes the cables away. Processes that still run on a host keep its namespace, and reach nobody. Calling it twice is fine.
func (n *Network) Close() {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return
	}
	n.closed = true
	close(n.end)
	for _, h := range n.hosts {
		h.tun.Close()
		if h.space != nil {
			h.space.Close()
		}
	}
	n.mu.Unlock()
	n.pumps.Wait()
}

// IP is the host's address.
func (h *Host) IP() string {
	a := h.addr()
	return netip.AddrFrom4(a).String()
}

func (h *Host) addr() [4]byte { return [4]byte{h.n.prefix[0], h.n.prefix[1], h.n.prefix[2], h.number} }
