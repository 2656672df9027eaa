package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/internal/journal"
	"github.com/commitcast/commitcast/wire"
)

// row is one row of the journal.
type row struct {
	wire.Event
	partition int
	seq       int64
	content   string
	payload   payload
}

// evidence is what the database says after a round, when everything has settled.
type evidence struct {
	rows    map[string][]row // by topic, in order of offset
	heads   map[string]int64
	epochs  map[string]int // name → ordinal
	current string
	commits map[int64]bool // ids of the transactions that are there
	totals  map[string]map[string]total
}

// gather reads it. from is the first op of the generation.
func (g *generation) gather() (*evidence, error) {
	ev := &evidence{rows: make(map[string][]row), heads: make(map[string]int64), epochs: make(map[string]int),
		commits: make(map[int64]bool), totals: make(map[string]map[string]total)}
	rows, err := query(g.w, func(r pgx.CollectableRow) (row, error) {
		var x row
		var key, headers *string
		var data string
		err := r.Scan(&x.Topic, &x.Offset, &x.Epoch, &x.partition, &x.seq, &x.ID, &x.Type, &key, &data, &headers, &x.At)
		if key != nil {
			x.Key = *key
		}
		x.Data = json.RawMessage(data)
		if headers != nil {
			x.Headers = json.RawMessage(*headers)
		}
		return x, err
	}, `SELECT topic, "offset", epoch, partition::bigint, seq, id, type, key, data::text, headers::text, created_at
		FROM commitcast.journal WHERE topic = ANY ($1) ORDER BY topic, "offset"`, g.topics)
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		r.content = contentOf(r.Type, r.Key, r.At.UTC().Format("2006-01-02T15:04:05.000000Z"), compact(r.Data), compact(r.Headers))
		json.Unmarshal(r.Data, &r.payload)
		ev.rows[r.Topic] = append(ev.rows[r.Topic], r)
	}
	type head struct {
		Topic string
		Head  int64
	}
	heads, err := query(g.w, pgx.RowToStructByPos[head], "SELECT topic, head FROM commitcast.topic WHERE topic = ANY ($1)", g.topics)
	if err != nil {
		return nil, err
	}
	for _, h := range heads {
		ev.heads[h.Topic] = h.Head
	}
	epochs, err := query(g.w, pgx.RowTo[string], "SELECT name FROM commitcast.epoch ORDER BY ordinal")
	if err != nil {
		return nil, err
	}
	for i, e := range epochs {
		ev.epochs[e], ev.current = i, e
	}
	commits, err := query(g.w, pgx.RowTo[int64], "SELECT id FROM chaos.op WHERE id >= $1", g.firstOp)
	if err != nil {
		return nil, err
	}
	for _, id := range commits {
		ev.commits[id] = true
	}
	type entity struct {
		Topic, Entity  string
		Version, Total int64
	}
	all, err := query(g.w, pgx.RowToStructByPos[entity], "SELECT topic, entity, version, total FROM chaos.entity WHERE topic = ANY ($1)", g.topics)
	for _, e := range all {
		if ev.totals[e.Topic] == nil {
			ev.totals[e.Topic] = make(map[string]total)
		}
		ev.totals[e.Topic][e.Entity] = total{e.Version, e.Total}
	}
	return ev, err
}

func compact(src []byte) []byte {
	var b bytes.Buffer
	if len(src) > 0 && json.Compact(&b, src) != nil {
		return src
	}
	return b.Bytes()
}

// verify holds what everybody saw against what the database says.
func (g *generation) verify(ev *evidence) {
	ops := make(map[int64]*op)
	for _, o := range g.writers.log() {
		ops[o.id] = o
	}
	g.atomicity(ev, ops)
	g.offsets(ev)
	g.order(ev, ops)
	for _, c := range g.clients {
		c.mu.Lock()
		runs := slices.Clone(c.runs)
		present := make(map[*passage]bool)
		for _, r := range c.state {
			present[r] = true
		}
		for _, r := range runs {
			g.surfaced(ev, r, present[r])
		}
		c.mu.Unlock()
	}
	g.sequence()
	g.cached(ev)
}

// atomicity: what committed has its events, each once and as told; what did not has none (G1).
func (g *generation) atomicity(ev *evidence, ops map[int64]*op) {
	found := make(map[int64][]*row)
	for topic := range ev.rows {
		for i := range ev.rows[topic] {
			r := &ev.rows[topic][i]
			found[r.payload.Op] = append(found[r.payload.Op], r)
		}
	}
	for id, rows := range found {
		if ops[id] == nil {
			g.w.violate("event-invented", "%s:%d tells of op %d, which no writer began", rows[0].Topic, rows[0].Offset, id)
		}
	}
	for id, o := range ops {
		there := ev.commits[id]
		switch {
		case o.outcome == ok && !there && o.mayBeLost:
			g.lost++
		case o.outcome == ok && !there:
			g.w.violate("committed-absent", "op %d (%s) was acknowledged and is not there", id, o.how)
		case o.outcome == failed && there:
			g.w.violate("failed-present", "op %d (%s) was told to have failed (%v) and is there", id, o.how, o.err)
		}
		rows := found[id]
		if !there {
			if len(rows) > 0 {
				g.w.violate("event-of-nothing", "op %d (%s, %v) is not there, but its event %s:%d is", id, o.how, o.outcome, rows[0].Topic, rows[0].Offset)
			}
			continue
		}
		seen := make([]int, len(o.events))
		for _, r := range rows {
			n := r.payload.N
			if n < 0 || n >= len(o.events) || !o.events[n].is(r) {
				g.w.violate("event-changed", "%s:%d is not what op %d told: %s", r.Topic, r.Offset, id, r.content)
				continue
			}
			seen[n]++
		}
		for n, count := range seen {
			switch {
			case count == 0:
				g.w.violate("event-lost", "op %d (%s) is there, but its event %d to %s has no offset", id, o.how, n, o.events[n].topic)
			case count > 1:
				g.w.violate("event-doubled", "op %d (%s) is there once, but its event %d to %s has %d offsets", id, o.how, n, o.events[n].topic, count)
			}
		}
	}
}

// is says whether a journal row is the event.
func (e told) is(r *row) bool {
	return r.Topic == e.topic && r.Type == e.typ && r.Key == e.key && r.payload == e.data && string(compact(r.Headers)) == e.headers
}

// offsets: 1 to head without a hole (G3).
func (g *generation) offsets(ev *evidence) {
	for _, topic := range g.topics {
		rows := ev.rows[topic]
		for i, r := range rows {
			if r.Offset != int64(i)+1 {
				g.w.violate("offset-hole", "%s has offset %d after %d", topic, r.Offset, i)
				break
			}
			if i > 0 && ev.epochs[r.Epoch] < ev.epochs[rows[i-1].Epoch] {
				g.w.violate("epoch-order", "%s:%d is of epoch %s, the one before of %s", topic, r.Offset, r.Epoch, rows[i-1].Epoch)
			}
			if _, known := ev.epochs[r.Epoch]; !known {
				g.w.violate("epoch-unknown", "%s:%d is of epoch %s, which this database does not have", topic, r.Offset, r.Epoch)
			}
		}
		if head := ev.heads[topic]; head != int64(len(rows)) {
			g.w.violate("head-wrong", "%s has head %d and %d events", topic, head, len(rows))
		}
	}
}

// order: offsets follow real time, and the versions of each entity (G3).
func (g *generation) order(ev *evidence, ops map[int64]*op) {
	for _, topic := range g.topics {
		rows := ev.rows[topic]
		// From the end: the earliest acknowledgement among what comes later.
		var earliest *op
		for _, r := range slices.Backward(rows) {
			o := ops[r.payload.Op]
			if o == nil {
				continue
			}
			if earliest != nil && earliest.ended.Before(o.began) {
				g.w.violate("real-time-order", "%s: op %d began %v after op %d was acknowledged, and has offset %d, before it",
					topic, o.id, o.began.Sub(earliest.ended), earliest.id, r.Offset)
			}
			if o.outcome == ok && (earliest == nil || o.ended.Before(earliest.ended)) {
				earliest = o
			}
		}
		last := make(map[string]int64)
		for _, r := range rows {
			o := ops[r.payload.Op]
			if o == nil {
				continue
			}
			entity := r.payload.Entity
			version := o.versions[topic+" "+entity]
			if version != last[entity]+r.payload.Change {
				g.w.violate("version-order", "%s:%d of op %d leaves entity %s at version %d, after version %d", topic, r.Offset, o.id, entity, version, last[entity])
			}
			last[entity] = version
		}
	}
}

// surfaced: what a client was shown is what the journal holds, without a hole, and adds up.
func (g *generation) surfaced(ev *evidence, r *passage, present bool) {
	w := g.w
	rows := ev.rows[r.topic]
	at := func(n int64) *row {
		if n < 1 || n > int64(len(rows)) {
			return nil
		}
		return &rows[n-1]
	}
	forked, told := false, r.told
	// Whoever has seen something that only the present history has must see nothing of a lost one any more, however
	// late somebody still publishes it.
	ofPresent := func(epoch string) bool {
		ordinal, known := ev.epochs[epoch]
		return g.forked && known && ordinal >= g.shared
	}
	here := ofPresent(r.epoch)
	for i, e := range r.entries {
		for len(told) > 0 && told[0].n <= i {
			here = here || ofPresent(told[0].epoch)
			told = told[1:]
		}
		if want := r.base.Offset + int64(i) + 1; e.offset != want {
			w.violate("surfaced-hole", "%s surfaced %s:%d where %d comes next", r.client, r.topic, e.offset, want)
			return
		}
		j := at(e.offset)
		same := j != nil && j.ID == e.id && j.Epoch == e.epoch && j.content == e.content
		switch {
		case same:
			here = here || ofPresent(e.epoch)
		case here:
			w.violate("history-returned", "%s surfaced %s:%d id %d epoch %s %s, of a lost history, after the present one",
				r.client, r.topic, e.offset, e.id, e.epoch, e.content)
		}
		switch {
		case same && forked:
			w.violate("histories-mixed", "%s surfaced %s:%d, after events that are not in this history", r.client, r.topic, e.offset)
		case !same && (present || !g.forked):
			w.violate("surfaced-differs", "%s surfaced %s:%d id %d epoch %s %s; the journal has %s", r.client, r.topic, e.offset, e.id, e.epoch, e.content, j.tell())
		case !same && !forked:
			forked = true
			g.astray++
		}
		if e.skip {
			w.violate("surfaced-skip", "%s was told to skip %s:%d", r.client, r.topic, e.offset)
		}
	}
	if strings.HasPrefix(r.over, "reset") {
		g.resets++
	}
	if strings.HasPrefix(r.over, "reset") && !forked {
		cursor, j := r.cursor, at(r.cursor.Offset)
		ordinal, known := ev.epochs[cursor.Epoch]
		if known && (cursor.Offset == 0 || j != nil && ev.epochs[j.Epoch] <= ordinal) {
			w.violate("needless-reset", "%s was reset (%s) at %s:%s, which is in this history", r.client, r.over, r.topic, cursor)
		}
	}
	if present {
		for entity, want := range ev.totals[r.topic] {
			if got := r.totals[entity]; got != want {
				w.violate("state-differs", "%s has %s/%s at version %d, sum %d; the table has %d, %d (run from %s by %s, %d pending of which %d did not come)",
					r.client, r.topic, entity, got.version, got.sum, want.version, want.sum, r.base, r.why, len(r.pending), len(r.left))
			}
		}
	}
}

func (r *row) tell() string {
	if r == nil {
		return "nothing"
	}
	return fmt.Sprintf("id %d epoch %s %s", r.ID, r.Epoch, r.content)
}

// standing is where a partition stands.
type standing struct {
	ID                  int64
	Seq, Published      int64
	Rows, Lowest, Above int64
}

// sequence: partitions have no holes, and all is published, once a round has settled.
func (g *generation) sequence() {
	all, err := query(g.w, pgx.RowToStructByPos[standing], `SELECT p.id::bigint, p.seq, p.published, count(j.seq), coalesce(min(j.seq), 0), count(*) FILTER (WHERE j.seq > p.seq)
		FROM commitcast.partition p LEFT JOIN commitcast.journal j ON j.partition = p.id AND j.seq > ($1::bigint[])[p.id + 1]
		GROUP BY p.id ORDER BY p.id`, g.w.sequenced[:])
	if err != nil {
		g.w.violate("database", "partitions cannot be read: %v", err)
		return
	}
	for _, s := range all {
		from := g.w.sequenced[s.ID]
		if s.Seq-from != s.Rows || s.Rows > 0 && s.Lowest != from+1 || s.Above > 0 {
			g.w.violate("seq-hole", "partition %d: seq went from %d to %d with %d rows in the journal, the lowest %d", s.ID, from, s.Seq, s.Rows, s.Lowest)
		}
		if s.Published != s.Seq {
			g.w.violate("published-wrong", "partition %d: published %d, seq %d", s.ID, s.Published, s.Seq)
		}
		g.w.sequenced[s.ID] = s.Seq
	}
}

// stored: with everything settled, and nobody having disturbed Redis in this round, what counts as published is in the
// streams. The next event of a topic would have it put right, so this is asked before there is one.
func (g *generation) stored() {
	if g.disturbed() {
		return
	}
	type head struct {
		Topic string
		Head  int64
		Epoch string
	}
	all, err := query(g.w, pgx.RowToStructByPos[head], `SELECT topic, head, head_epoch FROM commitcast.topic
		WHERE topic = ANY ($1) AND head_epoch = (SELECT name FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1)`, g.topics)
	if err != nil {
		g.w.violate("database", "heads cannot be read: %v", err)
	}
	for _, h := range all {
		key := streamKey(h.Topic, h.Epoch)
		newest, err := g.w.cache.XRevRangeN(g.w.ctx, key, "+", "-", 1).Result()
		if err != nil || len(newest) == 0 || newest[0].ID != fmt.Sprintf("%d-0", h.Head) {
			g.w.violate("published-unstored", "everything counts as published, and %s is at %v, not at its head %d (%v)", key, newest, h.Head, err)
		}
	}
}

// disturbed says that what Redis holds in this round is not what it was told.
func (g *generation) disturbed() bool {
	return slices.ContainsFunc(g.faults, func(f *fault) bool { return f.kind.data || f.failed }) ||
		g.tookOver() // with a master goes what had not been copied
}

// tookOver says that another server of Redis is a master than when the round began.
func (g *generation) tookOver() bool {
	return g.w.replicated != nil && g.w.replicated.masters(g.w.ctx) != g.masters
}

func streamKey(topic, epoch string) string {
	return fmt.Sprintf("cc:{p%d}:%s:%s", wire.Partition(topic), epoch, topic)
}

// cached: each Stream in Redis is a contiguous piece of the journal that ends at the head, and has lost nothing if
// nobody made it.
func (g *generation) cached(ev *evidence) {
	disturbed := g.disturbed()
	for _, topic := range g.topics {
		rows := ev.rows[topic]
		if len(rows) == 0 {
			continue
		}
		key := streamKey(topic, ev.current)
		entries, err := g.w.cache.XRange(g.w.ctx, key, "-", "+").Result()
		if err != nil {
			g.w.violate("stream-unreadable", "%s: %v", key, err)
			continue
		}
		first := firstOf(rows, ev.current)
		if len(entries) == 0 {
			if first > 0 { // the canary of this round is one of them
				g.w.violate("stream-missing", "%s is empty; the journal has %d events of this epoch", key, int64(len(rows))-first+1)
			}
			continue
		}
		var low, last int64
		for i, e := range entries {
			var n, zero int64
			if _, err := fmt.Sscanf(e.ID, "%d-%d", &n, &zero); err != nil || zero != 0 || i > 0 && n != last+1 || n < 1 || n > int64(len(rows)) {
				g.w.violate("stream-hole", "%s has %s after offset %d; the journal ends at %d", key, e.ID, last, len(rows))
				break
			}
			if i == 0 {
				low = n
			}
			last = n
			if want := string(journal.Encode(&rows[n-1].Event)); e.Values["f"] != want {
				g.w.violate("stream-differs", "%s:%s is %v; the journal has %s", key, e.ID, e.Values["f"], want)
				break
			}
		}
		if last != int64(len(rows)) {
			g.w.violate("stream-behind", "%s ends at %d, the journal at %d", key, last, len(rows))
		}
		before, had := g.lowest[key]
		if !had && first > 0 {
			before, had = first, true
		}
		if had && !disturbed && low > before {
			g.w.violate("stream-forgot", "%s begins at %d; it had or must have had %d, and Redis was not disturbed", key, low, before)
		}
		g.lowest[key] = low
	}
}

// firstOf is the first offset of an epoch, 0 if there is none.
func firstOf(rows []row, epoch string) int64 {
	for _, r := range rows {
		if r.Epoch == epoch {
			return r.Offset
		}
	}
	return 0
}

// arrivals says when each event was surfaced first, by any client, and last, by those that are steady.
func (g *generation) arrivals() (first, last map[string]map[int64]time.Time) {
	first, last = make(map[string]map[int64]time.Time), make(map[string]map[int64]time.Time)
	for _, topic := range g.topics {
		first[topic], last[topic] = make(map[int64]time.Time), make(map[int64]time.Time)
	}
	for _, c := range g.clients {
		c.mu.Lock()
		for _, r := range c.runs {
			for _, e := range r.entries {
				if t, have := first[r.topic][e.id]; !have || e.at.Before(t) {
					first[r.topic][e.id] = e.at
				}
				if c.habit == steady && last[r.topic][e.id].Before(e.at) {
					last[r.topic][e.id] = e.at
				}
			}
		}
		c.mu.Unlock()
	}
	return first, last
}

// waits are, for the ops acknowledged in a span of time, how long each waited until the first client had all of it, and
// until the last of the steady ones had.
func (g *generation) waits(ev *evidence, from, to time.Time) (first, last []time.Duration) {
	ids := make(map[int64][]*row)
	for topic := range ev.rows {
		for i := range ev.rows[topic] {
			r := &ev.rows[topic][i]
			ids[r.payload.Op] = append(ids[r.payload.Op], r)
		}
	}
	firstAt, lastAt := g.arrivals()
	for _, o := range g.writers.log() {
		if o.outcome != ok || o.ended.Before(from) || o.ended.After(to) || len(ids[o.id]) == 0 {
			continue
		}
		var soon, late time.Duration
		for _, r := range ids[o.id] {
			if t, have := firstAt[r.Topic][r.ID]; have {
				soon = max(soon, t.Sub(o.ended))
			}
			if t, have := lastAt[r.Topic][r.ID]; have {
				late = max(late, t.Sub(o.ended))
			}
		}
		first, last = append(first, soon), append(last, late)
	}
	slices.Sort(first)
	slices.Sort(last)
	return first, last
}

// recovery is how long after a moment the first client, and the last of the steady ones, had an event of a transaction
// that began later, but before until; 0 if there was none.
func (g *generation) recovery(ev *evidence, from, until time.Time) (first, all time.Duration) {
	began := make(map[int64]bool)
	for _, o := range g.writers.log() {
		began[o.id] = o.began.After(from) && o.began.Before(until)
	}
	type place struct { // an id alone may be that of a history that is gone
		topic, epoch string
		offset, id   int64
	}
	later := make(map[place]bool)
	for topic, rows := range ev.rows {
		for i := range rows {
			if r := &rows[i]; began[r.payload.Op] {
				later[place{topic, r.Epoch, r.Offset, r.ID}] = true
			}
		}
	}
	for _, c := range g.clients {
		var soonest time.Duration
		c.mu.Lock()
		for _, r := range c.runs {
			for _, e := range r.entries {
				if d := e.at.Sub(from); later[place{r.topic, e.epoch, e.offset, e.id}] && (soonest == 0 || d < soonest) {
					soonest = d
				}
			}
		}
		c.mu.Unlock()
		if soonest > 0 && (first == 0 || soonest < first) {
			first = soonest
		}
		if c.habit == steady {
			all = max(all, soonest)
		}
	}
	return first, all
}

// pushes are, for steady clients and ops acknowledged in a span of time, how long each event took to each client.
func (g *generation) pushes(ev *evidence, from, to time.Time) []time.Duration {
	acks := make(map[int64]time.Time)
	for _, o := range g.writers.log() {
		if o.outcome == ok && o.ended.After(from) && o.ended.Before(to) {
			acks[o.id] = o.ended
		}
	}
	var all []time.Duration
	for _, c := range g.clients {
		if c.habit != steady {
			continue
		}
		c.mu.Lock()
		for topic, r := range c.state {
			for _, e := range r.entries {
				rows := ev.rows[topic]
				if e.offset < 1 || e.offset > int64(len(rows)) || r.live.IsZero() {
					continue
				}
				if ack, have := acks[rows[e.offset-1].payload.Op]; have && r.live.Before(ack) {
					all = append(all, max(0, e.at.Sub(ack)))
				}
			}
		}
		c.mu.Unlock()
	}
	slices.Sort(all)
	return all
}

// quantile of sorted durations.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	i := int(math.Ceil(q*float64(len(sorted)))) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}

// lines tell of ops and clients in a timeline.
func (g *generation) lines() []line {
	var all []line
	for _, o := range g.writers.log() {
		var what []string
		for _, e := range o.events {
			what = append(what, fmt.Sprintf("%s/%s %+d", e.topic, e.data.Entity, e.data.Delta))
		}
		all = append(all, line{o.began, "writer", fmt.Sprintf("op %d begins by %s: %s", o.id, o.how, strings.Join(what, ", "))},
			line{o.ended, "writer", fmt.Sprintf("op %d is %v %v, versions %v", o.id, o.outcome, o.err, o.versions)})
	}
	for _, c := range g.clients {
		c.mu.Lock()
		for _, r := range c.runs {
			all = append(all, line{r.began, c.name, fmt.Sprintf("%s from %s by %s, epoch %s, pending %v", r.topic, r.base, r.why, r.epoch, keys(r.pending))})
			for _, e := range r.entries {
				how := "event"
				if e.pended {
					how = "passes over"
				}
				all = append(all, line{e.at, c.name, fmt.Sprintf("%s %s:%d id %d epoch %s %s", how, r.topic, e.offset, e.id, e.epoch, e.content)})
			}
			if r.over != "" {
				all = append(all, line{r.overAt, c.name, fmt.Sprintf("%s at %s is over: %s", r.topic, r.cursor, r.over)})
			}
		}
		c.mu.Unlock()
	}
	return all
}

func keys[K cmp.Ordered, V any](m map[K]V) []K {
	all := make([]K, 0, len(m))
	for k := range m {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}
