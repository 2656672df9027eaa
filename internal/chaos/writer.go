package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/commitcast/commitcast/outbox"
)

const (
	writerCount = 6
	// writerPause is the mean time between two transactions of a writer.
	writerPause = 30 * time.Millisecond
	// abortShare of the transactions are rolled back.
	abortShare = 0.3
	// opTimeout bounds a transaction; one whose COMMIT is under way then is unknown.
	opTimeout = 3 * time.Second
)

type outcome byte

const (
	unknown outcome = iota // COMMIT was sent, and no answer came
	ok                     // acknowledged
	failed                 // told that it did not happen
)

func (o outcome) String() string { return [...]string{"unknown", "ok", "failed"}[o] }

// op is one transaction as its writer saw it.
type op struct {
	id           int64
	how          string
	events       []told
	began, ended time.Time
	outcome      outcome
	err          error
	versions     map[string]int64 // of "topic entity", as the transaction's own UPDATE returned it
	mayBeLost    bool             // acknowledged by a primary that was to lose it
}

// told is one event of an op. Everything a subscriber must see of it follows from it.
type told struct {
	topic, typ, key, headers string
	data                     payload
}

// payload is an event's data.
type payload struct {
	Op     int64  `json:"op"`
	N      int    `json:"n"`
	Entity string `json:"entity"`
	Delta  int64  `json:"delta"`
	Change int64  `json:"change"` // 1: this event stands for one UPDATE of the entity
}

func (e told) event() outbox.Event {
	ev := outbox.Event{Topic: e.topic, Type: e.typ, Key: e.key, Data: e.data}
	if e.headers != "" {
		if err := json.Unmarshal([]byte(e.headers), &ev.Headers); err != nil {
			panic(err)
		}
	}
	return ev
}

// opIDs never repeat within a process.
var opIDs atomic.Int64

var errAbort = errors.New("aborted on purpose")

// writers is what a generation's writers do, and their log.
type writers struct {
	w      *world
	topics []string

	lossy atomic.Bool // what is acknowledged now may be lost: the standby does not get it

	mu  sync.Mutex
	ops []*op
}

// entities of each topic.
var entities = [...]string{"a", "b"}

// run writes until ctx ends, and returns when every transaction has ended.
func (ws *writers) run(ctx context.Context, seed uint64, pause time.Duration) {
	var all sync.WaitGroup
	for i := range writerCount {
		all.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i)+1))
			for ctx.Err() == nil {
				ws.do(ws.draw(r))
				select {
				case <-ctx.Done():
				case <-time.After(pause/2 + time.Duration(r.Int64N(int64(pause)))):
				}
			}
		})
	}
	all.Wait()
}

// plan is what an op is going to do.
type plan struct {
	op    *op
	abort bool
	hold  time.Duration // left open for so long before COMMIT
	sql   bool          // by commitcast.append, in the order of the statements; else outbox.Tx
	early bool          // outbox.Tx: Publish is called before the domain writes
	wake  bool
}

// topic draws one: the first few are hot, the last two quiet.
func (ws *writers) topic(r *rand.Rand) string {
	n := len(ws.topics)
	switch x := r.Float64(); {
	case x < 0.5:
		return ws.topics[r.IntN(min(3, n))]
	case x < 0.97:
		return ws.topics[r.IntN(max(1, n-2))]
	default:
		return ws.topics[n-1-r.IntN(min(2, n))]
	}
}

func (ws *writers) draw(r *rand.Rand) plan {
	p := plan{op: &op{id: opIDs.Add(1)}}
	topics := []string{ws.topic(r)}
	if r.Float64() < 0.2 {
		topics = append(topics, ws.topic(r), ws.topic(r))
	}
	slices.Sort(topics) // rows are locked in this order
	topics = slices.Compact(topics)
	for _, topic := range topics {
		n := len(p.op.events)
		entity := entities[r.IntN(len(entities))]
		p.op.events = append(p.op.events, told{topic: topic, typ: "change", key: entity,
			data: payload{Op: p.op.id, N: n, Entity: entity, Delta: r.Int64N(100) + 1, Change: 1}})
		if r.Float64() < 0.2 {
			p.op.events = append(p.op.events, told{topic: topic, typ: "note", headers: fmt.Sprintf(`{"trace":"%d"}`, p.op.id),
				data: payload{Op: p.op.id, N: n + 1, Entity: entity, Delta: r.Int64N(100) + 1}})
		}
	}
	p.abort = r.Float64() < abortShare
	if r.Float64() < 0.08 {
		p.hold = 50*time.Millisecond + time.Duration(r.Int64N(int64(400*time.Millisecond)))
	}
	p.sql, p.early, p.wake = r.Float64() < 0.35, r.Float64() < 0.5, r.Float64() < 0.5
	return p
}

// do runs one op and logs it.
func (ws *writers) do(p plan) *op {
	o := p.op
	o.versions = make(map[string]int64)
	ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
	defer cancel()
	o.began = time.Now()
	if p.sql {
		o.how = "sql"
		o.outcome, o.err = ws.appendSQL(ctx, p)
	} else {
		o.how = "tx"
		o.outcome, o.err = ws.outboxTx(ctx, p)
	}
	o.ended = time.Now()
	o.mayBeLost = ws.lossy.Load()
	ws.mu.Lock()
	ws.ops = append(ws.ops, o)
	ws.mu.Unlock()
	return o
}

// change is the domain's part of the transaction.
func change(ctx context.Context, tx pgx.Tx, o *op) error {
	if _, err := tx.Exec(ctx, "INSERT INTO chaos.op VALUES ($1)", o.id); err != nil {
		return err
	}
	for _, e := range o.events {
		var version int64
		err := tx.QueryRow(ctx, "UPDATE chaos.entity SET version = version + $3, total = total + $4 WHERE topic = $1 AND entity = $2 RETURNING version",
			e.topic, e.data.Entity, e.data.Change, e.data.Delta).Scan(&version)
		if err != nil {
			return err
		}
		o.versions[e.topic+" "+e.data.Entity] = version
	}
	return nil
}

func (ws *writers) outboxTx(ctx context.Context, p plan) (outcome, error) {
	err := outbox.Tx(ctx, ws.w.writers, func(tx *outbox.Transaction) error {
		publish := func() error {
			for _, e := range p.op.events {
				if err := tx.Publish(e.event()); err != nil {
					return err
				}
			}
			return nil
		}
		if p.early {
			if err := publish(); err != nil {
				return err
			}
		}
		if err := change(ctx, tx, p.op); err != nil {
			return err
		}
		if !p.early {
			if err := publish(); err != nil {
				return err
			}
		}
		time.Sleep(p.hold) // the user's own slowness, not synchronisation
		if p.abort {
			return errAbort
		}
		return nil
	})
	switch {
	case err == nil:
		return ok, nil
	case errors.Is(err, outbox.ErrCommitUnknown):
		return unknown, err
	}
	return failed, err
}

// appendSQL does what a writer in another language does.
func (ws *writers) appendSQL(ctx context.Context, p plan) (outcome, error) {
	tx, err := ws.w.writers.Begin(ctx)
	if err != nil {
		return failed, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		tx.Rollback(ctx)
	}()
	if err := change(ctx, tx, p.op); err != nil {
		return failed, err
	}
	for _, e := range p.op.events {
		data, _ := json.Marshal(e.data)
		_, err := tx.Exec(ctx, "SELECT commitcast.append(topic => $1, type => $2, data => $3::text::json, key => nullif($4, ''), headers => nullif($5, '')::json)",
			e.topic, e.typ, string(data), e.key, e.headers)
		if err != nil {
			return failed, err
		}
	}
	time.Sleep(p.hold) // the user's own slowness, not synchronisation
	if p.abort {
		return failed, errAbort
	}
	err = tx.Commit(ctx)
	var pgErr *pgconn.PgError
	switch {
	case err == nil:
		if p.wake {
			topics := make([]string, len(p.op.events))
			for i, e := range p.op.events {
				topics[i] = e.topic
			}
			outbox.Wake(ws.w.writers, topics...)
		}
		return ok, nil
	case errors.Is(err, pgx.ErrTxCommitRollback),
		errors.As(err, &pgErr) && pgErr.SeverityUnlocalized == "ERROR" && !strings.HasPrefix(pgErr.Code, "08"):
		return failed, err
	}
	return unknown, err
}

// each writes one event to every topic, and waits until that is acknowledged.
func (ws *writers) each() error {
	for _, topic := range ws.topics {
		err := ws.w.eventually(20*time.Second, func() error {
			id := opIDs.Add(1)
			o := ws.do(plan{op: &op{id: id, events: []told{{topic: topic, typ: "canary", key: "a",
				data: payload{Op: id, Entity: "a", Delta: 1, Change: 1}}}}})
			if o.outcome != ok {
				return fmt.Errorf("writing to %s: %w", topic, o.err)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (ws *writers) log() []*op {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return slices.Clone(ws.ops)
}
