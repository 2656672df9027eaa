package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/outbox"
)

// writersResult is how many transactions a second a number of writers commit.
type writersResult struct {
	Kind      string  `json:"kind"`
	Writers   int     `json:"writers"`
	PerSecond float64 `json:"per_second"`
}

const (
	kindOneTopic   = "one topic"
	kindManyTopics = "10,000 topics"
	kindPlainTable = "plain table" // the limit: UPDATE and INSERT into a table, no outbox
)

// writers commits as fast as it can, for a time, while a worker drains.
func writers(ctx context.Context, kind, database string, n int, seconds float64) (writersResult, error) {
	result := writersResult{Kind: kind, Writers: n}
	config, err := pgxpool.ParseConfig(database)
	if err != nil {
		return result, err
	}
	config.MaxConns = int32(n + 2)
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return result, err
	}
	defer pool.Close()
	data := json.RawMessage(`{"price":0.53,"volume":1200}`)
	transaction := func() error {
		account := rand.IntN(benchAccounts)
		if kind == kindPlainTable {
			tx, err := pool.Begin(ctx)
			if err != nil {
				return err
			}
			defer tx.Rollback(ctx)
			if _, err := tx.Exec(ctx, benchUpdate, account); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, "INSERT INTO bench_plain (topic, type, data) VALUES ('t', 'bench', $1)", data); err != nil {
				return err
			}
			return tx.Commit(ctx)
		}
		topic := "hot"
		if kind == kindManyTopics {
			topic = fmt.Sprint("topic:", rand.IntN(10_000))
		}
		return outbox.Tx(ctx, pool, func(tx *outbox.Transaction) error {
			if _, err := tx.Exec(ctx, benchUpdate, account); err != nil {
				return err
			}
			return tx.Publish(outbox.Event{Topic: topic, Type: "bench", Data: data})
		})
	}
	var committed atomic.Int64
	var counting, stop atomic.Bool
	var wg sync.WaitGroup
	errs := make(chan error, n)
	for range n {
		wg.Add(1)
		go func() { // ends when stop is set
			defer wg.Done()
			for !stop.Load() {
				if err := transaction(); err != nil {
					errs <- err
					return
				}
				if counting.Load() {
					committed.Add(1)
				}
			}
		}()
	}
	time.Sleep(time.Second) // connections and plans
	counting.Store(true)
	began := time.Now()
	time.Sleep(time.Duration(seconds * float64(time.Second)))
	counting.Store(false)
	took := time.Since(began)
	stop.Store(true)
	wg.Wait()
	select {
	case err := <-errs:
		return result, err
	default:
	}
	result.PerSecond = float64(committed.Load()) / took.Seconds()
	return result, nil
}
