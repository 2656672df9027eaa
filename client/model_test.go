package client

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/commitcast/commitcast/wire"
)

// sim is a model of everything around one machine: a database that commits, sequences and goes back in time, replicas that
// lag, a server that checks cursors, a network that loses, and a service that restarts from what it stored. Random, but a
// function of the seed.
type sim struct {
	rand      *rand.Rand
	faults    map[string]int
	faultless bool // every fifth schedule has no faults, and nothing to heal
	conflates bool // every third
	calm      bool

	m     machine[sum]
	kept  *Held[sum]
	timer bool
	read  *database // of the snapshot under way
	reads int
	subs  int

	db      database
	past    []database
	ordinal int
	lastID  int64

	up    bool
	queue []item // to the client
	sub   *simSub
}

// sum is what the events add up to: applied twice, or not at all, it is wrong for good. In a schedule with a client that
// conflates, it is the latest value of each key instead.
type sum struct {
	total, count int64
	latest       [simKeys]int64
}

const simKeys = 3

func (s *sum) apply(r simRow, conflates bool) {
	switch {
	case r.value == 0:
	case conflates:
		s.latest[r.value%simKeys] = r.value
	default:
		s.total += r.value
		s.count++
	}
}

type simRow struct {
	id, value int64  // value 0: nothing to apply, shown as skip
	epoch     string // of the sequencing
}

// database is the database at one moment. Its slices are never changed.
type database struct {
	rows, outbox []simRow
	lastID       int64
	epochs       []string // the lineage; the last is current
}

type simSub struct {
	epoch  string
	offset int64
	db     database // the history that the node believes in
	window []item   // what is yet to be sent of what belongs together; offset is before it
}

func (d *database) epoch() string { return d.epochs[len(d.epochs)-1] }

func (d *database) truth(conflates bool) (s sum) {
	for _, r := range slices.Concat(d.rows, d.outbox) {
		s.apply(r, conflates)
	}
	return s
}

func newSim(seed uint64) *sim {
	s := &sim{
		rand: rand.New(rand.NewPCG(seed, 1)), faults: map[string]int{}, faultless: seed%5 == 0, conflates: seed%3 == 0, ordinal: 1,
		db: database{epochs: []string{"1-aaaa"}},
	}
	s.restart(nil)
	return s
}

func (s *sim) restart(kept *Held[sum]) {
	s.timer, s.read, s.sub, s.queue, s.up = false, nil, nil, nil, false
	s.m = machine[sum]{ports: ports[sum]{
		subscribe: s.subscribe,
		unsubscribe: func() int64 {
			s.lastID++
			if s.sub != nil {
				s.queue = append(s.queue, item{op: opUnsubscribed, id: s.lastID})
			} else {
				s.queue = append(s.queue, item{op: opRefused, id: s.lastID, code: wire.CodeNotSubscribed})
			}
			s.sub = nil
			return s.lastID
		},
		wait: func(int64, int) { s.timer = true },
		apply: func(state sum, e *event) (sum, error) {
			if s.fault("apply fails", 0.03) {
				return sum{}, errors.New("no")
			}
			value, err := strconv.ParseInt(string(e.Data), 10, 64)
			state.apply(simRow{value: value}, s.conflates)
			return state, err
		},
		changed: func(*event, bool) {},
	}}
	s.m.start(kept)
}

func (s *sim) p(chance float64) bool { return s.rand.Float64() < chance }

func (s *sim) fault(name string, chance float64) bool {
	if s.calm || !s.p(chance) {
		return false
	}
	s.faults[name]++
	return true
}

// ---- the database

func (s *sim) set(d database) {
	s.past = append(s.past, s.db)
	if len(s.past) > 14 {
		s.past = s.past[1:]
	}
	s.db = d
}

func (s *sim) commit() {
	d := s.db
	d.lastID++
	value := 1 + s.rand.Int64N(1e6)
	if s.p(0.1) {
		value = 0
	}
	d.outbox = append(slices.Clone(d.outbox), simRow{id: d.lastID, value: value})
	s.set(d)
}

func (s *sim) sequence(most int) {
	d := s.db
	n := min(most, len(d.outbox))
	if n == 0 {
		return
	}
	d.rows = slices.Clone(d.rows)
	for _, r := range d.outbox[:n] {
		r.epoch = d.epoch()
		d.rows = append(d.rows, r)
	}
	d.outbox = slices.Clone(d.outbox[n:])
	s.set(d)
}

func (s *sim) goBack() {
	if len(s.past) == 0 {
		return
	}
	d := s.past[s.rand.IntN(len(s.past))]
	s.ordinal++
	d.epochs = append(slices.Clone(d.epochs), fmt.Sprintf("%d-%04x", s.ordinal, 0x1000+s.rand.IntN(0xefff)))
	s.set(d)
}

// ---- the server

func (s *sim) valid(c wire.Cursor) bool {
	if !slices.Contains(s.db.epochs, c.Epoch) || c.Offset > int64(len(s.db.rows)) {
		return false
	}
	return c.Offset == 0 || ordinal(s.db.rows[c.Offset-1].epoch) <= ordinal(c.Epoch)
}

func (s *sim) subscribe(after wire.Cursor) int64 {
	s.subs++
	s.lastID++
	switch {
	case s.sub != nil:
		s.queue = append(s.queue, item{op: opRefused, id: s.lastID, code: wire.CodeAlreadySubscribed})
	case s.fault("unavailable", 0.05):
		s.queue = append(s.queue, item{op: opRefused, id: s.lastID, code: wire.CodeUnavailable})
	case !s.valid(after):
		s.queue = append(s.queue, item{op: opReset, ms: s.rand.Int64N(2) * 100})
	default:
		s.sub = &simSub{epoch: s.db.epoch(), offset: after.Offset, db: s.db}
		s.queue = append(s.queue, item{op: opSubscribed, id: s.lastID, epoch: s.sub.epoch, head: int64(len(s.db.rows))})
	}
	return s.lastID
}

// hear: the node hears of the database: new rows, or a new history.
func (s *sim) hear() {
	if s.sub == nil {
		return
	}
	if s.sub.db.epoch() != s.db.epoch() {
		if !s.valid(wire.Cursor{Epoch: s.sub.epoch, Offset: s.sub.offset}) {
			s.sub = nil
			s.queue = append(s.queue, item{op: opReset, ms: 100})
			return
		}
		s.sub.epoch = s.db.epoch()
		s.sub.window = nil // it goes on from before that
	}
	s.sub.db = s.db
}

func (s *sim) deliver(most int) {
	for i := 0; i < most && s.sub != nil && (len(s.sub.window) > 0 || s.sub.offset < int64(len(s.sub.db.rows))); i++ {
		if len(s.sub.window) == 0 {
			most := int64(1)
			if s.conflates && s.p(0.3) {
				most = 10
			}
			s.sub.open(s.sub.offset + most)
		}
		it := s.sub.window[0]
		if s.sub.window = s.sub.window[1:]; len(s.sub.window) == 0 {
			s.sub.offset = it.event.Offset
		}
		if !s.fault("frame lost", 0.03) {
			s.queue = append(s.queue, it)
		}
		if s.fault("frame twice", 0.03) {
			s.queue = append(s.queue, it)
		}
	}
}

// open fills the window with what follows, up to an offset: the latest of each key, and what is shown as skip.
func (s *simSub) open(last int64) {
	rows := s.db.rows[s.offset:min(last, int64(len(s.db.rows)))]
	sent := s.offset
	for i, r := range rows {
		if r.value > 0 && slices.ContainsFunc(rows[i+1:], func(o simRow) bool { return o.value > 0 && o.value%simKeys == r.value%simKeys }) {
			continue
		}
		at := s.offset + 1 + int64(i)
		s.window = append(s.window, item{op: opEvent, event: &event{skip: r.value == 0, conflated: at - 1 - sent, more: i < len(rows)-1, Event: wire.Event{
			Topic: "t", Epoch: r.epoch, Offset: at, ID: r.id, Type: "x", Data: strconv.AppendInt(nil, r.value, 10),
		}}})
		sent = at
	}
}

func (s *sim) heartbeat() {
	if !s.up {
		return
	}
	if s.faultless { // a client, a server and a network that are faster than heartbeats
		s.receiveAll()
		s.hear()
		s.deliver(100)
	}
	it := item{op: opHeartbeat, epoch: s.db.epoch(), head: -1}
	if s.sub != nil {
		it.epoch = s.sub.db.epoch()
		if it.epoch == s.db.epoch() {
			it.head = max(int64(len(s.db.rows)), s.sub.offset)
		}
	}
	s.queue = append(s.queue, it)
}

// ---- the client

func (s *sim) receiveAll() {
	for len(s.queue) > 0 {
		s.receive()
	}
}

func (s *sim) receive() {
	if len(s.queue) == 0 {
		return
	}
	it := s.queue[0]
	s.queue = s.queue[1:]
	switch it.op {
	case opSubscribed:
		s.m.subscribed(it.id, it.epoch, it.head)
	case opEvent:
		s.m.event(it.event)
	case opReset:
		s.m.reset(it.ms)
	case opHeartbeat:
		s.m.heartbeat(it.epoch, it.head)
	case opUnsubscribed:
		s.m.unsubscribed(it.id)
	case opRefused:
		s.m.refused(it.id, it.code)
	}
}

func (s *sim) snapshot() {
	if s.m.phase != phaseReading {
		s.read = nil
		return
	}
	if s.read == nil {
		s.reads++
		d := s.db
		if len(s.past) > 0 && s.fault("stale snapshot", 0.3) {
			d = s.past[len(s.past)-1-s.rand.IntN(min(6, len(s.past)))]
		}
		s.read = &d
		return
	}
	if s.fault("slow snapshot", 0.2) {
		return
	}
	d := *s.read
	s.read = nil
	if s.fault("snapshot fails", 0.1) {
		s.m.unread(0)
		return
	}
	held := Held[sum]{d.truth(s.conflates), Token{wire.Cursor{Epoch: d.epoch(), Offset: int64(len(d.rows))}, nil, d.epoch()}}
	if n := len(d.rows); n > 0 {
		held.Token.Cursor.Epoch = d.rows[n-1].epoch
	}
	for _, r := range d.outbox {
		held.Token.Pending = append(held.Token.Pending, r.id)
	}
	s.m.snapshot(&held)
}

func (s *sim) due() {
	if s.timer {
		s.timer = false
		s.m.due()
	}
}

func (s *sim) connect() {
	if !s.up {
		s.up = true
		s.m.up()
	}
}

func (s *sim) step() {
	switch {
	case s.fault("connection cut", 0.02):
		if s.up {
			s.up, s.queue, s.sub = false, nil, nil
			s.m.down()
		}
		return
	case s.fault("database goes back", 0.015):
		s.goBack()
		return
	case s.fault("service restarts", 0.01):
		s.restart(s.kept)
		return
	case s.sub != nil && s.fault("subscription lost", 0.005):
		s.sub = nil
		return
	case s.fault("queue full", 0.01):
		if s.up {
			// What the connection brought is thrown away, answers too.
			s.queue = nil
			s.m.lagged()
		}
		return
	}
	if s.p(0.05) {
		s.kept = s.m.held
	}
	switch s.rand.IntN(16) {
	case 0, 1:
		s.commit()
	case 2:
		s.sequence(1 + s.rand.IntN(4))
	case 3:
		s.hear()
	case 4, 5:
		s.deliver(1 + s.rand.IntN(4))
	case 6, 7, 8, 9:
		s.receive()
	case 10, 11, 12:
		s.snapshot()
	case 13:
		if s.p(0.3) {
			s.heartbeat()
		} else {
			s.due()
		}
	case 14:
		s.due()
	default:
		s.connect()
	}
}

// run runs a schedule with two settle points and returns what went wrong.
func (s *sim) run() string {
	for range 2 {
		s.calm = s.faultless
		for range 30 + s.rand.IntN(70) {
			s.step()
		}
		if wrong := s.settle(); wrong != "" {
			return wrong
		}
	}
	if s.faultless && s.subs+s.reads > 2 {
		return fmt.Sprintf("healed without a fault: %d snapshots, %d subscriptions", s.reads, s.subs)
	}
	return ""
}

// settle: faults end, and everything gets its turn. Then the client must hold what the database holds.
func (s *sim) settle() string {
	s.calm = true
	before := s.subs + s.reads
	for round := range 40 {
		s.sequence(100)
		s.connect()
		s.hear()
		s.deliver(100)
		s.receiveAll()
		s.snapshot()
		s.snapshot()
		s.due()
		s.heartbeat()
		s.receiveAll()
		if round > 3 && s.wrong() == "" {
			if healed := s.subs + s.reads - before; healed > 25 {
				return fmt.Sprintf("storm: %d requests to settle", healed)
			}
			return ""
		}
	}
	return s.wrong()
}

func (s *sim) wrong() string {
	held := s.m.held
	if held == nil {
		return "no state"
	}
	if !s.m.current() || held.Token.Cursor.Offset != int64(len(s.db.rows)) {
		return fmt.Sprintf("not current: phase %d at %v, head %d", s.m.phase, held.Token.Cursor, len(s.db.rows))
	}
	if truth := s.db.truth(s.conflates); held.State != truth {
		return fmt.Sprintf("wrong state at %v: %+v, the database holds %+v", held.Token.Cursor, held.State, truth)
	}
	return ""
}

// TestRandomSchedulesLeaveNoStateWrong runs the machine through schedules of faults. (SEEDS: how many.)
func TestRandomSchedulesLeaveNoStateWrong(t *testing.T) {
	seeds := uint64(20_000)
	if given, err := strconv.ParseUint(os.Getenv("SEEDS"), 10, 32); err == nil {
		seeds = given
	}
	faults := map[string]int{}
	for seed := uint64(1); seed <= seeds; seed++ {
		s := newSim(seed)
		if wrong := s.run(); wrong != "" {
			t.Fatalf("seed %d: %s", seed, wrong)
		}
		for name, n := range s.faults {
			faults[name] += n
		}
	}
	for _, name := range []string{
		"connection cut", "database goes back", "service restarts", "subscription lost", "queue full", "unavailable",
		"frame lost", "frame twice", "stale snapshot", "slow snapshot", "snapshot fails", "apply fails",
	} {
		if faults[name] < int(seeds)/100 {
			t.Errorf("the fault %q hardly happened: %d", name, faults[name])
		}
	}
}
