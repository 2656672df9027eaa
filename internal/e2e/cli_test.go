package e2e

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/commitcast/commitcast/internal/testkit"
)

// command runs the binary to its end and returns what it printed and its exit code.
func command(t *testing.T, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return commandOf(t, binary, env, args...)
}

// commandOf is command with another version of the binary.
func commandOf(t *testing.T, binary string, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, args...)
	cmd.Env = append(os.Environ(), "DATABASE_URL=", "REDIS_URL=")
	cmd.Env = append(cmd.Env, env...)
	var out, err strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &err
	timer := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	defer timer.Stop()
	cmd.Run()
	return out.String(), err.String(), cmd.ProcessState.ExitCode()
}

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
