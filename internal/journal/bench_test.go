package journal_test

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/internal/journal"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/wire"
)

// What those who come back cost the database: one read for one, and for fifty topics.
func BenchmarkPositions(b *testing.B) {
	ctx := b.Context()
	pool, err := pgxpool.New(ctx, testkit.Database(b))
	if err != nil {
		b.Fatal(err)
	}
	defer pool.Close()
	const epoch = "101-a"
	for _, sql := range []string{
		`INSERT INTO commitcast.epoch (ordinal, name, incarnation, born, reason) VALUES (101, '101-a', 'a test', now(), 'a test')`,
		`INSERT INTO commitcast.topic (topic, partition, head, head_epoch) SELECT 't:' || t, 1, 1000, '101-a' FROM generate_series(1, 50) t`,
		`INSERT INTO commitcast.journal SELECT 't:' || t, n, '101-a', 1, 1000 * t + n, n, 'x', NULL, '1', NULL, now(), now() FROM generate_series(1, 50) t, generate_series(1, 1000) n`,
	} {
		if _, err := pool.Exec(ctx, sql); err != nil {
			b.Fatal(err)
		}
	}
	var questions []wire.Question
	for i := range 50 {
		questions = append(questions, wire.Question{Topic: fmt.Sprint("t:", i+1), Cursor: wire.Cursor{Epoch: epoch}, Subject: "bob"})
	}
	for _, n := range []int{1, 50} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				if _, p, err := journal.New(pool).Positions(ctx, questions[:n]); err != nil || p[n-1].Reason != "" || p[n-1].Head != 1000 {
					b.Fatal(p, err)
				}
			}
		})
	}
}
