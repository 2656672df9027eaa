package testkit

import (
	_ "embed"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
)

//go:embed fill.sql
var fillSQL string

// Fill makes a database with the schema as full as operators may find one: fill.sql says of what. It takes some seconds.
func Fill(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), fillSQL); err != nil {
		t.Fatal(err)
	}
}
