package services

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
)

// query runs one statement over a connection of its own and returns its value.
func query[T any](t *testing.T, url, sql string) (v T, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return v, err
	}
	defer conn.Close(context.Background())
	err = conn.QueryRow(ctx, sql).Scan(&v)
	return v, err
}

func mustQuery[T any](t *testing.T, url, sql string) T {
	t.Helper()
	v, err := query[T](t, url, sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

const (
	makeTable = "CREATE TABLE x (n) AS SELECT 1"
	countRows = "SELECT count(*) FROM x"
)

// exec runs statements that return nothing.
func exec1(t *testing.T, url, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func startPostgres(t *testing.T) *Postgres {
	t.Helper()
	pg, err := StartPostgres(t.Context(), PostgresConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pg.Close)
	return pg
}

func TestPostgresKeepsItsCommitsOverStopKillAndCrash(t *testing.T) {
	pg := startPostgres(t)
	url := pg.URL("postgres")
	exec1(t, url, makeTable)
	for i, end := range []func(){
		pg.Stop,
		pg.Kill,
		func() { // not by us
			pg.proc.signal(9)
			<-pg.proc.done
		},
	} {
		exec1(t, url, "INSERT INTO x VALUES (2)")
		end()
		if _, err := query[int](t, url, countRows); err == nil {
			t.Fatal("it still answers")
		}
		if err := pg.Start(t.Context()); err != nil {
			// The children of a killed server need a moment to notice.
			eventually(t, "start after a crash", func() error { return pg.Start(t.Context()) })
		}
		if n := mustQuery[int](t, url, countRows); n != i+2 {
			t.Errorf("%d rows after end %d, want %d", n, i, i+2)
		}
	}
	before := mustQuery[time.Time](t, url, "SELECT pg_postmaster_start_time()")
	if err := pg.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if at := mustQuery[time.Time](t, url, "SELECT pg_postmaster_start_time()"); !at.Equal(before) {
		t.Error("Start restarted a server that ran")
	}
	if err := pg.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if at := mustQuery[time.Time](t, url, "SELECT pg_postmaster_start_time()"); at.Equal(before) {
		t.Error("Restart did not restart")
	}
}

func TestPostgresGoesBackInTime(t *testing.T) {
	pg := startPostgres(t)
	url := pg.URL("postgres")
	exec1(t, url, makeTable)
	if err := pg.Save(t.Context(), "early"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		exec1(t, url, "INSERT INTO x VALUES (2)")
		if n := mustQuery[int](t, url, countRows); n != 2 {
			t.Fatalf("%d rows, want 2", n)
		}
		if err := pg.Restore(t.Context(), "early"); err != nil {
			t.Fatal(err)
		}
		if n := mustQuery[int](t, url, countRows); n != 1 {
			t.Fatalf("%d rows after going back, want 1", n)
		}
	}
	if err := pg.Restore(t.Context(), "never"); err == nil {
		t.Error("restored what was not saved")
	}
}

func TestPostgresReplicaFollowsAndTakesOver(t *testing.T) {
	pg := startPostgres(t)
	exec1(t, pg.URL("postgres"), makeTable)
	replica, err := pg.Replica(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer replica.Close()
	url := replica.URL("postgres")
	exec1(t, pg.URL("postgres"), "INSERT INTO x VALUES (2)")
	eventually(t, "replica", func() error {
		if n := mustQuery[int](t, url, countRows); n != 2 {
			return fmt.Errorf("%d rows, want 2", n)
		}
		return nil
	})
	if !mustQuery[bool](t, url, "SELECT pg_is_in_recovery()") {
		t.Error("the replica is a primary")
	}
	pg.Kill()
	if err := replica.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	exec1(t, url, "INSERT INTO x VALUES (3)")
	if n := mustQuery[int](t, url, countRows); n != 3 {
		t.Errorf("%d rows, want 3", n)
	}
}

func startRedis(t *testing.T, cfg RedisConfig) (*Redis, *redis.Client) {
	t.Helper()
	r, err := StartRedis(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	opts, err := redis.ParseURL(r.URL())
	if err != nil {
		t.Fatal(err)
	}
	opts.ContextTimeoutEnabled = true
	c := redis.NewClient(opts)
	t.Cleanup(func() { c.Close() })
	return r, c
}

func TestRedisLosesAllWhenKilledAndLoadsADump(t *testing.T) {
	r, c := startRedis(t, RedisConfig{Lines: []string{"maxmemory 50mb"}})
	ctx := t.Context()
	if got := c.ConfigGet(ctx, "maxmemory").Val()["maxmemory"]; got != "52428800" {
		t.Errorf("maxmemory %s: Lines did not arrive", got)
	}
	if err := c.Set(ctx, "k", "1", 0).Err(); err != nil {
		t.Fatal(err)
	}
	pid := r.PID()
	r.Kill()
	if err := gone(pid); err != nil {
		t.Error(err)
	}
	if r.PID() != 0 {
		t.Error("a killed Redis has a pid")
	}
	if err := r.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if n := c.DBSize(ctx).Val(); n != 0 || r.PID() == pid {
		t.Errorf("%d keys after a restart, want 0", n)
	}

	if err := c.Set(ctx, "k", "2", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if err := c.Save(ctx).Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(r.Dir(), "dump.rdb")); err != nil {
		t.Error(err)
	}
	if err := c.Set(ctx, "k", "3", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if err := r.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if got := c.Get(ctx, "k").Val(); got != "2" {
		t.Errorf("k is %q after a restart with a dump, want 2", got)
	}
	r.Stop()
	if err := c.Ping(ctx).Err(); err == nil {
		t.Error("a stopped Redis answers")
	}
}

func TestRedisPauses(t *testing.T) {
	r, c := startRedis(t, RedisConfig{})
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := c.Ping(ctx).Err(); err == nil {
		t.Error("a paused Redis answers")
	}
	if err := r.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := c.Ping(t.Context()).Err(); err != nil {
		t.Error(err)
	}
	r.Kill()
	if err := r.Pause(); err == nil {
		t.Error("paused a Redis that does not run")
	}
}

func TestPrivateServersDoNotMeet(t *testing.T) {
	a, ca := startRedis(t, RedisConfig{})
	b, cb := startRedis(t, RedisConfig{})
	if a.Addr() == b.Addr() || a.Dir() == b.Dir() {
		t.Fatalf("both have %s, %s", a.Addr(), a.Dir())
	}
	if err := ca.Set(t.Context(), "k", "1", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if n := cb.DBSize(t.Context()).Val(); n != 0 {
		t.Errorf("%d keys in the other", n)
	}
	r := &Redis{program: a.program, folder: b.folder, dir: b.dir, password: b.password, port: a.port}
	if err := r.start(t.Context()); err == nil {
		r.stop(9)
		t.Error("started on a port that another server has")
	}
}
