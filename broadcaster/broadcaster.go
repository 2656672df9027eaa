package broadcaster

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/commitcast/commitcast/auth"
	"github.com/commitcast/commitcast/stream"
	"github.com/commitcast/commitcast/wire"
)

// Config of a Broadcaster. The zero Config works.
type Config struct {
	// Node names this process to clients, logs and operators. Default: host name and four random digits.
	Node string
	// Heartbeat is how often a client hears the heads of its topics. A client that missed the last message of a
	// quiet topic finds out within one. Default 15 s; below 1 s the heartbeats themselves become the load.
	Heartbeat time.Duration
	// HeadPoll is how often heads are read from the database while events are pushed: the time after which a lost
	// message is noticed. Default 1 s.
	HeadPoll time.Duration
	// DegradedPoll is the same while the stream is down: the freshness that is left then. Default 250 ms.
	DegradedPoll time.Duration
	// LogEvents and LogBytes bound the log of one topic in memory. What is older is replayed from the stream.
	// Default 1,024 events, 1 MiB.
	LogEvents, LogBytes int
	// LogMemory bounds the logs of all topics together, in bytes. Default 256 MiB.
	LogMemory int
	// MaxConnections is how many clients this node takes; further ones get 503. Default 50,000.
	MaxConnections int
	// MaxSubscriptions is how many topics one connection may follow. Default 1,000.
	MaxSubscriptions int
	// WriteTimeout is how long a client may take not a single byte of what it is sent. Default 10 s.
	WriteTimeout time.Duration
	// ResetSpread is the window over which clients are told to come back after a reset. Default 1 s.
	ResetSpread time.Duration
	// Drain is the window over which clients are closed at shutdown, each of which is told to come back within 250 ms. Default 5 s.
	Drain time.Duration
	// Verifier checks the tokens of clients. Default: none, authentication is off, and everybody may read every topic.
	Verifier auth.Verifier
	// Authorizer decides which topics a client may read: when it subscribes, at each page of a replay, and when its token is
	// renewed. Default auth.Claims: those that its token names. Not used while authentication is off.
	Authorizer auth.Authorizer
	// AuthTimeout is how long a connection may take to bring its token, and checking that token may take. Default 5 s.
	AuthTimeout time.Duration
	// AuthGrace is how long a session goes on after its token has expired, for a newer one to arrive. Default 10 s.
	AuthGrace time.Duration
	// MaxPerAddress is how many connections one address may have (of IPv6, a /64); further ones get 503. Connections from this
	// machine are not counted: a proxy's are. Default: no limit but MaxConnections.
	MaxPerAddress int
	// MaxPerUser is how many connections the subject of a token may have; further ones get 503, or are closed with 1013.
	// Default 200.
	MaxPerUser int
	// MaxStrangers is how many WebSockets may be open at once whose clients have yet to say who they are: those that bring their
	// token in a frame and not in the handshake. Further ones wait for a place. Default 256: too few, and clients that come back
	// all together wait for each other; too many, and connections of attackers take memory. Not while authentication is off.
	MaxStrangers int
	// MaxRequests is how many requests a second of one connection are read, beyond ten times as many at once. What comes
	// faster waits. To unsubscribe costs nothing, nor does to subscribe to more topics than ever before. Default 20.
	MaxRequests int
	// MaxReplays is how many subscriptions of one connection, and of all connections of one user, are read for at once that are
	// behind. Default 4.
	MaxReplays int
	// MaxReplayRate is how many events a second are read for all subscriptions of one user that are behind, beyond five times
	// as many at once; more wait. Default 2,000: ten screens of 20 topics, each 50 events behind, come back at once. Not while
	// authentication is off.
	MaxReplayRate int
	// TrustedHops is how many proxies in a row stand before this server and add to X-Forwarded-For: 1 for one. Default 0:
	// the header is not looked at.
	TrustedHops int
	// Hosts are the names of this server, as patterns; requests to others are refused (421). Addresses and localhost are always
	// among them. Default: with a Verifier any name; without, no other, since a page on a name that was pointed here could read
	// everything. "*" is any name.
	Hosts []string
	// Origins are the pages on other origins that may connect, as patterns with their scheme, for example
	// "https://*.example.com" (path.Match); without one, https is meant. Default: none but the server's own.
	Origins []string
	// RequireOrigin refuses WebSockets without an Origin: all but browsers.
	RequireOrigin bool
	// Logger receives a line for each change of state. Default slog.Default().
	Logger *slog.Logger
	// Trace receives the spans of sampled events, as they are delivered to this node's subscribers; it must not wait. Default: none
	// are made.
	Trace func(wire.Span)
	// Registerer receives the metrics. Default: none.
	Registerer prometheus.Registerer
	// Shards are further databases, and the topics that they hold. Default: none, the Journal given to New holds every topic.
	Shards []Shard
}

func (c Config) withDefaults() (Config, error) {
	if c.Node == "" {
		host, _ := os.Hostname()
		c.Node = host + "-" + newID()[:4]
	}
	setDefault(&c.Heartbeat, 15*time.Second)
	setDefault(&c.HeadPoll, time.Second)
	setDefault(&c.DegradedPoll, 250*time.Millisecond)
	setDefault(&c.LogEvents, 1024)
	setDefault(&c.LogBytes, 1<<20)
	setDefault(&c.LogMemory, 256<<20)
	setDefault(&c.MaxConnections, 50_000)
	setDefault(&c.MaxSubscriptions, 1_000)
	setDefault(&c.WriteTimeout, 10*time.Second)
	setDefault(&c.MaxPerAddress, c.MaxConnections)
	setDefault(&c.MaxPerUser, 200)
	setDefault(&c.MaxStrangers, 256)
	setDefault(&c.MaxRequests, 20)
	setDefault(&c.MaxReplays, 4)
	setDefault(&c.MaxReplayRate, 2_000)
	if c.Hosts == nil && c.Verifier == nil {
		c.Hosts = []string{}
	}
	setDefault(&c.AuthTimeout, 5*time.Second)
	setDefault(&c.AuthGrace, 10*time.Second)
	if c.Authorizer == nil {
		c.Authorizer = auth.Claims{}
	}
	setDefault(&c.ResetSpread, time.Second)
	setDefault(&c.Drain, 5*time.Second)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	for name, v := range map[string]int64{"Heartbeat": int64(c.Heartbeat), "HeadPoll": int64(c.HeadPoll),
		"DegradedPoll": int64(c.DegradedPoll), "LogEvents": int64(c.LogEvents), "LogBytes": int64(c.LogBytes), "LogMemory": int64(c.LogMemory),
		"MaxConnections": int64(c.MaxConnections), "MaxSubscriptions": int64(c.MaxSubscriptions),
		"WriteTimeout": int64(c.WriteTimeout), "AuthTimeout": int64(c.AuthTimeout), "AuthGrace": int64(c.AuthGrace), "ResetSpread": int64(c.ResetSpread), "Drain": int64(c.Drain),
		"MaxPerAddress": int64(c.MaxPerAddress), "MaxPerUser": int64(c.MaxPerUser), "MaxStrangers": int64(c.MaxStrangers), "MaxRequests": int64(c.MaxRequests),
		"MaxReplays": int64(c.MaxReplays), "MaxReplayRate": int64(c.MaxReplayRate), "TrustedHops": int64(c.TrustedHops)} {
		if v < 0 {
			return c, fmt.Errorf("broadcaster: Config.%s is negative", name)
		}
	}
	for _, p := range c.Hosts {
		if _, err := path.Match(p, ""); err != nil || p == "" {
			return c, fmt.Errorf("broadcaster: host %q is not a pattern like *.example.com", p)
		}
	}
	return c, checkOrigins(c.Origins)
}

func setDefault[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

// Broadcaster carries events from a stream to WebSocket clients.
type Broadcaster struct {
	cfg          Config
	log          *slog.Logger
	stream       stream.Stream
	subscription stream.Subscription
	metrics      *metrics
	tokens       tokensLately
	due          due
	slow         atomic.Int64   // clients, as last looked
	shards       []*shard       // the first holds every topic that no other does
	undecided    rate.Sometimes // logs that tokens cannot be checked: each client would cost a line

	mu        sync.RWMutex
	topics    map[string]*topic
	sessions  map[*session]struct{}
	room      room // of the topics' logs
	windows   room // of conflating subscribers
	draining  bool
	held      bool // an operator has drained it
	addresses map[netip.Prefix]*address
	heldUp    map[net.Conn]*time.Timer // requests that wait for their refusal
	strangers []*session               // in seats: those that have yet to say who they are
	atDoor    []*waiter                // those that wait for a seat
	emptied   float64                  // seats that were kept empty at emptiedAt
	emptiedAt time.Time
	later     bool // seatOthers will be called
	users     map[string]*user

	pushUp    push        // the stream's subscription is live
	pushTried atomic.Bool // it has been down: do not wait for it

	ctx       context.Context // of all goroutines; ends after the drain
	cancel    context.CancelFunc
	wg        sync.WaitGroup // of spawn; guarded against late starters by stopped
	stopMu    sync.Mutex
	stopped   bool
	readyOnce sync.Once
	ready     chan struct{} // closed when the epoch is known
}

// New makes a Broadcaster. Nothing happens before Run.
func New(j Journal, s stream.Stream, cfg Config) (*Broadcaster, error) {
	if j == nil || s == nil {
		return nil, errors.New("broadcaster: New needs a journal and a stream")
	}
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	b := &Broadcaster{
		cfg: cfg, log: cfg.Logger, stream: s,
		topics:    make(map[string]*topic),
		sessions:  make(map[*session]struct{}),
		addresses: make(map[netip.Prefix]*address),
		heldUp:    make(map[net.Conn]*time.Timer),
		pushUp:    push{down: stream.AllPartitions},
		users:     make(map[string]*user),
		ready:     make(chan struct{}),
	}
	b.due.most = runtime.GOMAXPROCS(0)
	b.room.most, b.windows.most = int64(cfg.LogMemory), windowsBytes
	b.undecided.Interval = 10 * time.Second
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.metrics = newMetrics(cfg.Registerer)
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(&stateMetrics{b})
	}
	b.room.measure(cfg.Registerer, "log_bytes", "Memory of the logs of all topics, in bytes.")
	b.windows.measure(cfg.Registerer, "window_bytes", "Memory of the windows of conflating subscribers that are behind, in bytes.")
	if b.shards, err = newShards(b, j, cfg.Shards); err != nil {
		return nil, err
	}
	b.subscription = s.NewSubscription(hears{b})
	return b, nil
}

// Run works until ctx ends, then closes all clients, spread over Config.Drain, and returns nil. Call it once.
func (b *Broadcaster) Run(ctx context.Context) error {
	b.spawn(func(ctx context.Context) { b.subscription.Run(ctx) })
	b.spawn(func(ctx context.Context) {
		// A stream that is slow to come up must not keep the first clients waiting for it one by one.
		if err := b.stream.Ping(ctx); err != nil {
			b.pushTried.Store(true)
		}
		for _, sh := range b.shards {
			sh.heads.kick()
			b.spawn(sh.heads.run)
		}
	})
	for _, sh := range b.shards {
		b.spawn(sh.joiner.run)
	}
	b.spawn(b.keepTime)
	<-ctx.Done()
	b.drain()
	b.letAllGo()
	b.stopMu.Lock()
	b.stopped = true
	b.stopMu.Unlock()
	b.cancel()
	b.wg.Wait()
	return nil
}

// beat looks at each session.
func (b *Broadcaster) beat(now time.Time) {
	slow := 0
	b.mu.RLock()
	for s := range b.sessions {
		if s.beat(now) {
			slow++
		}
	}
	b.mu.RUnlock()
	b.metrics.slow.Set(float64(slow))
	b.slow.Store(int64(slow))
}

// keepTime sends heartbeats and forgets unused topics.
func (b *Broadcaster) keepTime(ctx context.Context) {
	// Each session is looked at so often, which costs a fetch from memory: with tens of thousands that are idle, most of what a node does.
	every := min(time.Second, b.cfg.Heartbeat/4, b.cfg.AuthTimeout/4, max(b.cfg.AuthGrace/4, 10*time.Millisecond))
	ticker := time.NewTicker(min(250*time.Millisecond, every))
	defer ticker.Stop()
	sweep, beaten := time.Now(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			if now.Sub(beaten) > every-every/8 { // ticks are not exact
				beaten = now
				b.beat(now)
			}
			for _, sh := range b.shards {
				sh.replayer.forget(now)
			}
			b.relieveLogs()
			if now.Sub(sweep) > topicLinger/3 {
				sweep = now
				b.sweepTopics(now)
				b.sweepUsers(now)
				b.sweepAddresses(now)
			}
		}
	}
}

// Epoch is the epoch that this node is in; "" until the database was asked. With [Config.Shards], that of the first of the databases
// that has answered.
func (b *Broadcaster) Epoch() string {
	for _, sh := range b.shards {
		if epoch := sh.Epoch(); epoch != "" {
			return epoch
		}
	}
	return ""
}

// Node is the name of this node.
func (b *Broadcaster) Node() string { return b.cfg.Node }

// Connections is how many clients are connected.
func (b *Broadcaster) Connections() int {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return len(b.sessions)
}

// ErrPolling is what Ready wraps while events come by polling the journal instead of by push.
var ErrPolling = errors.New("the stream is down: events come by polling the journal")

// ErrPartly is what Ready wraps while some databases answer and others do not: topics of these stand still.
var ErrPartly = errors.New("not every database answers")

// Ready says whether clients should be sent here: nil; or an error that wraps ErrPolling, with which delivery goes on,
// later, or ErrPartly, with which it goes on for other topics; or another error, with which it does not.
func (b *Broadcaster) Ready() error {
	b.mu.RLock()
	draining, held := b.draining, b.held
	b.mu.RUnlock()
	down := b.down()
	switch {
	case draining:
		return errors.New("shutting down")
	case held:
		return errors.New("drained by an operator")
	case b.Epoch() == "":
		return errors.New("the database has not answered yet")
	case len(down) == len(b.shards):
		return errors.New("the database does not answer")
	case len(down) > 0:
		return fmt.Errorf("%w: not that of %s", ErrPartly, strings.Join(down, ", "))
	}
	if b.polling() {
		return ErrPolling
	}
	return nil
}

// polling reports whether the stream is down, so that events come by polling the journal.
func (b *Broadcaster) polling() bool { return !b.pushUp.Load() && b.pushTried.Load() }

// tryPush asks whether a stream that was down is back, when there is no topic whose channel would tell.
func (b *Broadcaster) tryPush(ctx context.Context) {
	b.mu.RLock()
	idle := len(b.topics) == 0
	var used stream.Partitions
	for _, t := range b.topics {
		used |= 1 << t.partition
	}
	b.pushUp.follow(used)
	b.mu.RUnlock()
	if idle && b.polling() && b.stream.Ping(ctx) == nil {
		b.pushTried.Store(false)
	}
}

// spawn runs f in a goroutine that Run waits for. After Run has ended, f is not run: false.
func (b *Broadcaster) spawn(f func(ctx context.Context)) bool {
	b.stopMu.Lock()
	defer b.stopMu.Unlock()
	if b.stopped {
		return false
	}
	b.wg.Add(1)
	go func() { // owned by Run
		defer b.wg.Done()
		f(b.ctx)
	}()
	return true
}

// after runs f once d has passed, unless the broadcaster has stopped by then.
func (b *Broadcaster) after(d time.Duration, f func()) *time.Timer {
	return time.AfterFunc(d, func() { b.spawn(func(context.Context) { f() }) })
}

// jitter is a random duration in [0, d).
func jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return mathrand.N(d)
}

// newID is 16 random hexadecimal digits.
func newID() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
