package services

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
)

// checkTimeout bounds the look at a server that was given by its URL.
const checkTimeout = 10 * time.Second

// checkDatabase says in one line why the server of DATABASE_URL cannot be used.
func checkDatabase(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("DATABASE_URL is set, but its server cannot be used: %s", oneLine(err.Error()))
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var version string
	if err := conn.QueryRow(ctx, "SHOW server_version_num").Scan(&version); err != nil {
		return fmt.Errorf("DATABASE_URL is set, but its server cannot be used: %s", oneLine(err.Error()))
	}
	if n, err := strconv.Atoi(version); err != nil || n < minPostgres*10_000 {
		return fmt.Errorf("DATABASE_URL is set, but its server is Postgres %s: %d or later is needed",
			conn.PgConn().ParameterStatus("server_version"), minPostgres)
	}
	return nil
}

// checkRedis says in one line why the server of REDIS_URL cannot be used.
func checkRedis(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	opts, err := redis.ParseURL(url)
	if err != nil {
		// The error of a URL that cannot be parsed quotes it, password and all.
		return fmt.Errorf("REDIS_URL is set, but is not a URL such as redis://127.0.0.1:6379/0")
	}
	info, err := redisInfo(ctx, opts)
	if err != nil {
		return fmt.Errorf("REDIS_URL is set, but its server %s cannot be used: %s", opts.Addr, oneLine(err.Error()))
	}
	if v := info["redis_version"]; major(v) < minRedis {
		return fmt.Errorf("REDIS_URL is set, but its server is Redis %s: %d.0 or later is needed", v, minRedis)
	}
	return nil
}

// redisInfo asks a server about itself, over a connection of its own.
func redisInfo(ctx context.Context, opts *redis.Options) (map[string]string, error) {
	o := *opts
	o.ContextTimeoutEnabled = true
	o.MaxRetries = -1
	o.DialerRetries = 1
	o.PoolSize = 1
	c := redis.NewClient(&o)
	defer c.Close()
	text, err := c.Info(ctx, "server").Result()
	if err != nil {
		return nil, err
	}
	info := map[string]string{}
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[k] = v
		}
	}
	return info, nil
}

// major is the first number of a version, 0 if there is none.
func major(version string) int {
	first, _, _ := strings.Cut(version, ".")
	n, _ := strconv.Atoi(first)
	return n
}

// oneLine joins the lines of a message.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
