package e2e

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/commitcast/commitcast/internal/testkit"
)

// oldRedis answers INFO like a server of version 6.
func oldRedis(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends when l is closed
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the connection
				defer c.Close()
				for lines := bufio.NewScanner(c); lines.Scan(); {
					switch strings.ToLower(lines.Text()) {
					case "hello":
						fmt.Fprint(c, "-ERR unknown command `hello`\r\n")
					case "client", "ping", "select":
						fmt.Fprint(c, "+OK\r\n")
					case "info":
						info := "# Server\r\nredis_version:6.2.14\r\nredis_mode:standalone\r\n"
						fmt.Fprintf(c, "$%d\r\n%s\r\n", len(info), info)
					}
				}
			}()
		}
	}()
	return "redis://" + l.Addr().String()
}

// What an operator gets wrong is one line that says what, and a code that is not zero. No password is printed.
func TestCommandLineMistakes(t *testing.T) {
	database, redis := testkit.Database(t), testkit.RedisURL(t)
	empty := testkit.EmptyDatabase(t)
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	port := busy.Addr().String()
	for _, c := range []struct {
		name string
		env  []string
		args string
		says string
		code int
	}{
		{"no database", nil, "all --auth=off --listen=127.0.0.1:0 --ops-listen=", "--database-url", 2},
		{"no redis for a worker", []string{"DATABASE_URL=" + database}, "worker", "--redis-url", 2},
		{"not a URL", []string{"DATABASE_URL=postgres://u:sesame@h:port/x"}, "all --auth=off --listen=127.0.0.1:0 --ops-listen=", "database", 1},
		{"nobody there", []string{"DATABASE_URL=postgres://u:sesame@127.0.0.1:1/x"}, "all --auth=off --listen=127.0.0.1:0 --ops-listen=", "refused", 1},
		{"not migrated", []string{"DATABASE_URL=" + empty}, "all --auth=off --listen=127.0.0.1:0 --ops-listen=", "commitcast migrate up", 1},
		{"redis URL", []string{"DATABASE_URL=" + database, "REDIS_URL=http://:sesame@h"}, "worker --ops-listen=", "redis", 1},
		{"redis too old", []string{"DATABASE_URL=" + database, "REDIS_URL=" + oldRedis(t)}, "worker --ops-listen=", "7.0", 1},
		{"clients' port in use", []string{"DATABASE_URL=" + database}, "all --auth=off --ops-listen= --listen=" + port, "address already in use", 1},
		{"operators' port in use", []string{"DATABASE_URL=" + database, "REDIS_URL=" + redis}, "worker --ops-listen=" + port, "address already in use", 1},
		{"no word about authentication", []string{"DATABASE_URL=" + database}, "all", "--auth=off", 2},
		{"open to everybody", []string{"DATABASE_URL=" + database}, "all --auth=off --listen=0.0.0.0:0", "--allow-public", 2},
		{"heartbeat", []string{"DATABASE_URL=" + database}, "all --auth=off --heartbeat=1ms", "--heartbeat", 2},
		{"a shard without a pattern", []string{"DATABASE_URL=" + database}, "all --auth=off --shard=postgres://u:sesame@h/x", "--shard, number 1: want PATTERN=URL", 2},
		{"a shard without a pattern, whose URL has a =", []string{"DATABASE_URL=" + database}, "all --auth=off --shard=postgres://u:sesame@h/x?sslmode=disable", "--shard, number 1: before the first =", 2},
		{"a shard of no pattern", []string{"DATABASE_URL=" + database, "COMMITCAST_SHARDS=a:*=postgres://u:sesame@h/x b*=postgres://u:sesame@h/x"}, "all --auth=off", "--shard, number 2: before", 2},
		{"a shard of a claim", []string{"DATABASE_URL=" + database}, "all --auth=off --shard=user:{sub}=postgres://u:sesame@h/x", "{claim} is for tokens", 2},
		{"a shard of everything", []string{"DATABASE_URL=" + database}, "all --auth=off --shard=**=postgres://u:sesame@h/x", "commitcast/canary", 2},
		{"a shard that another covers", []string{"DATABASE_URL=" + database}, "all --auth=off --shard=a:**=postgres://u:sesame@h/x --shard=a:*=postgres://u:sesame@g/x", "put the narrower pattern first", 2},
		{"a shard of no URL", []string{"DATABASE_URL=" + database}, "all --auth=off --shard=a:*=sesame", "postgres://user:password@host", 2},
		{"a shard of a URL that cannot be read", []string{"DATABASE_URL=" + database, "REDIS_URL=" + redis}, "broadcaster --auth=off --listen=127.0.0.1:0 --ops-listen= --shard=a:*=postgres://u:sesame@h:port/x", "--shard a:*: its URL cannot be read", 2},
		{"a shard that is not migrated", []string{"DATABASE_URL=" + database, "REDIS_URL=" + redis}, "broadcaster --auth=off --listen=127.0.0.1:0 --ops-listen= --shard=a:*=" + empty, "--shard a:*: ", 1},
		{"a shard without redis", []string{"DATABASE_URL=" + database}, "all --auth=off --shard=a:*=" + database, "--redis-url", 2},
		{"unknown command", nil, "dance", "dance", 2},
		{"down without a word", []string{"DATABASE_URL=" + database}, "migrate down", "--yes", 2},
	} {
		_, stderr, code := command(t, c.env, strings.Fields(c.args)...)
		last := strings.TrimSpace(stderr)
		if code != c.code || !strings.Contains(last, c.says) || !strings.Contains(last, "commitcast: ") {
			t.Errorf("%s: code %d, %s", c.name, code, last)
		}
		if strings.Contains(stderr, "sesame") || strings.Contains(stderr, "goroutine") {
			t.Errorf("%s prints a secret or a stack: %s", c.name, stderr)
		}
		for _, line := range strings.Split(last, "\n") {
			if strings.HasPrefix(line, "commitcast: ") && strings.Count(last, "commitcast: ") > 1 && !strings.Contains(line, c.says) {
				t.Errorf("%s: more than one line: %s", c.name, last)
			}
		}
	}
}

// The schema by the command line: up twice, status, down, up again.
func TestMigrateCommands(t *testing.T) {
	env := []string{"DATABASE_URL=" + testkit.EmptyDatabase(t)}
	for _, c := range []struct {
		args, says string
	}{
		{"migrate status", ""}, {"migrate up", ""}, {"migrate up", ""}, {"migrate status", "up to date"},
		{"migrate down --yes", ""}, {"migrate up", ""}, {"version", "commitcast"}, {"--help", "migrate up"},
	} {
		stdout, stderr, code := command(t, env, strings.Fields(c.args)...)
		if code != 0 || !strings.Contains(stdout, c.says) {
			t.Errorf("%s: code %d\n%s%s", c.args, code, stdout, stderr)
		}
	}
}

// `all` without Redis: one process, Postgres only, from commit to socket.
func TestAllWithoutRedis(t *testing.T) {
	database := testkit.Database(t)
	n := start(t, database, "", "all")
	c := testkit.Dial(t, n.URL)
	c.Subscribe(1, "t", "")
	c.Expect("subscribed")
	exec1(t, database, `SELECT commitcast.append('t', 'hello', json_build_object('n', i)) FROM generate_series(1, 100) i`)
	c.ExpectEvents("t", 1, 100)
}
