package outbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/outbox"
)

// BenchmarkWriters compares a transaction that updates a row and publishes an event with one that updates a row and
// inserts into a plain table of the same content, and with one that only updates. Run with -benchtime 3s on a quiet machine.
func BenchmarkWriters(b *testing.B) {
	const accounts = 10_000
	data := json.RawMessage(`{"price":"0.53","amount":120,"side":"yes","account":"a-1234567"}`)
	update := func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE account SET balance = balance + 1 WHERE id = $1`, rand.IntN(accounts)+1)
		return err
	}
	kinds := []struct {
		name string
		tx   func(ctx context.Context, pool *pgxpool.Pool) error
	}{
		{"update", func(ctx context.Context, pool *pgxpool.Pool) error {
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return update(ctx, tx) })
		}},
		{"update+insert", func(ctx context.Context, pool *pgxpool.Pool) error {
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, `INSERT INTO plain (topic, type, data) VALUES ($1, 'trade', $2)`, fmt.Sprint("market:", rand.IntN(1000)), data)
				return errors.Join(err, update(ctx, tx))
			})
		}},
		{"Tx", func(ctx context.Context, pool *pgxpool.Pool) error {
			return outbox.Tx(ctx, pool, func(tx *outbox.Transaction) error {
				err := tx.Publish(outbox.Event{Topic: fmt.Sprint("market:", rand.IntN(1000)), Type: "trade", Data: data})
				return errors.Join(err, update(ctx, tx))
			})
		}},
		{"Tx without events", func(ctx context.Context, pool *pgxpool.Pool) error {
			return outbox.Tx(ctx, pool, func(tx *outbox.Transaction) error { return update(ctx, tx) })
		}},
	}
	for _, writers := range []int{1, 8, 32} {
		for _, k := range kinds {
			b.Run(fmt.Sprintf("%s/writers=%d", k.name, writers), func(b *testing.B) {
				pool := fresh(b, func(c *pgxpool.Config) { c.MaxConns = int32(writers) })
				exec(b, pool, `INSERT INTO account SELECT generate_series(9, $1)`, accounts)
				exec(b, pool, `CREATE TABLE plain (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, topic text NOT NULL, type text NOT NULL,
					data json NOT NULL, created_at timestamptz NOT NULL DEFAULT clock_timestamp())`)
				ctx := b.Context()
				b.ResetTimer()
				next := make(chan struct{}, 1024)
				done := make(chan error)
				for range writers {
					go func() { // ends with the benchmark's last transaction
						var err error
						for range next {
							err = errors.Join(err, k.tx(ctx, pool))
						}
						done <- err
					}()
				}
				for range b.N {
					next <- struct{}{}
				}
				close(next)
				for range writers {
					if err := <-done; err != nil {
						b.Error(err)
					}
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tx/s")
			})
		}
	}
}
