package outbox_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/outbox"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// open returns a pool on a database, closed after the test.
func open(t testing.TB, url string, change ...func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range change {
		c(cfg)
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := outbox.Flush(context.Background(), pool); err != nil {
			t.Error(err)
		}
		pool.Close()
	})
	return pool
}

// fresh returns a pool on a fresh database with a table of accounts: id 1 to 8, balance 0.
func fresh(t testing.TB, change ...func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	url := testkit.Database(t)
	pool := open(t, url, change...)
	exec(t, pool, `CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL DEFAULT 0)`)
	exec(t, pool, `INSERT INTO account SELECT generate_series(1, 8)`)
	return pool
}

func withMode(mode pgx.QueryExecMode) func(*pgxpool.Config) {
	return func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode }
}

type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func exec(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(context.Background(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// one runs a query for one value.
func one[T any](t testing.TB, db querier, sql string, args ...any) (v T) {
	t.Helper()
	if err := db.QueryRow(context.Background(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func balance(t testing.TB, db querier) int64 {
	t.Helper()
	return one[int64](t, db, `SELECT balance FROM account WHERE id = 1`)
}

func events(t testing.TB, db querier) int {
	t.Helper()
	return one[int](t, db, `SELECT count(*) FROM commitcast.outbox`)
}

// deposit adds to account 1.
func deposit(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `UPDATE account SET balance = balance + 1 WHERE id = 1`)
	return err
}

func event(topic string) outbox.Event {
	return outbox.Event{Topic: topic, Type: "deposit", Data: map[string]int{"by": 1}}
}
