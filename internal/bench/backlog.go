package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// backlogResult is how fast events that wait in the outbox are drained: by the sequencing statement alone, one session
// calling it until there is nothing left, and by a worker, which also reads and publishes them.
type backlogResult struct {
	Kind      string  `json:"kind"`
	Events    int     `json:"events"`
	Topics    int     `json:"topics"`
	PerSecond float64 `json:"per_second"`
}

const (
	backlogEvents = 200_000
	backlogTopics = 1000
	backlogBatch  = 1000 // as a worker's
)

func backlog(ctx context.Context, kind, database string) (backlogResult, error) {
	result := backlogResult{Kind: kind, Events: backlogEvents, Topics: backlogTopics}
	pool, err := pgxpool.New(ctx, database)
	if err != nil {
		return result, err
	}
	defer pool.Close()
	if kind == kindCommitcast {
		worker, err := node(ctx, database, "worker")
		if err != nil {
			return result, err
		}
		defer worker.stop()
	}
	if _, err := pool.Exec(ctx, `INSERT INTO commitcast.outbox (partition, topic, type, data)
		SELECT commitcast.partition_of(t), t, 'bench', '{"price":0.53,"volume":1200}' FROM (
			SELECT 'topic:' || i % $2 AS t FROM generate_series(1, $1) i) AS x`, backlogEvents, backlogTopics); err != nil {
		return result, err
	}
	began := time.Now() // the transaction has just committed
	if kind == kindLimit {
		err = sequenceAll(ctx, pool)
	} else {
		err = drained(ctx, pool, backlogEvents)
	}
	result.PerSecond = backlogEvents / time.Since(began).Seconds()
	return result, err
}

func sequenceAll(ctx context.Context, pool *pgxpool.Pool) error {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	if _, err := conn.Exec(ctx, `SET enable_seqscan = off; SET jit = off; SET plan_cache_mode = force_generic_plan`); err != nil {
		return err
	}
	for n := 1; n > 0; {
		err := conn.QueryRow(ctx, `SELECT sum(sequenced) FROM commitcast.sequence(
			ARRAY(SELECT generate_series(0, 31)::smallint), array_fill(1::bigint, ARRAY[32]), $1, NULL, array_fill(NULL::bigint, ARRAY[32]), 0)`,
			backlogBatch).Scan(&n)
		if err != nil {
			return err
		}
	}
	return nil
}

// drained waits until the stream has confirmed every event.
func drained(ctx context.Context, pool *pgxpool.Pool, events int64) error {
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		var seq, published int64
		if err := pool.QueryRow(ctx, `SELECT sum(seq), sum(published) FROM commitcast.partition`).Scan(&seq, &published); err != nil {
			return err
		}
		if published == events {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("backlog: %d of %d sequenced, %d published", seq, events, published)
		}
	}
}
