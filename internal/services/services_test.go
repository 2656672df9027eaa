package services

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

func TestStartProvidesBothAndCloseLeavesNothing(t *testing.T) {
	private(t)
	var out bytes.Buffer
	s, err := Start(t.Context(), Config{Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := checkDatabase(t.Context(), s.DatabaseURL); err != nil {
		t.Error(err)
	}
	if err := checkRedis(t.Context(), s.RedisURL); err != nil {
		t.Error(err)
	}
	if lines := strings.Count(out.String(), "\n"); lines != 2 {
		t.Errorf("want a line for each server, got %q", out.String())
	}
	for _, secret := range []string{s.postgres.password, s.redis.password} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("a password was printed: %q", out.String())
		}
	}
	pids := []int{s.postgres.proc.pid, s.redis.proc.pid, s.postgres.folder.keeper.Process.Pid, s.redis.folder.keeper.Process.Pid}
	s.Close()
	s.Close()
	for _, pid := range pids {
		if err := gone(pid); err != nil {
			t.Error(err)
		}
	}
	for _, f := range []*folder{s.postgres.folder, s.redis.folder} {
		if err := absent(f.path); err != nil {
			t.Error(err)
		}
	}
	for _, addr := range []string{s.postgres.Addr(), s.redis.Addr()} {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			t.Errorf("somebody listens on %s", addr)
		}
	}
	if err := s.postgres.Start(t.Context()); !errors.Is(err, errClosed) {
		t.Errorf("start after close: %v", err)
	}
}

func TestNothingIsLeftWhenTheOwnerIsKilled(t *testing.T) {
	private(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), ownerVariable+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Errorf("owner: %v", err)
	}
	var pids [2]int
	var paths [2]string
	_, err = fmt.Sscan(line, &pids[0], &pids[1], &paths[0], &paths[1])
	if err != nil {
		t.Errorf("owner says %q", line)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if t.Failed() {
		return
	}
	for i := range pids {
		eventually(t, "after the owner's end", func() error { return gone(pids[i]) })
		eventually(t, "after the owner's end", func() error { return absent(paths[i]) })
	}
}

// The kernel's "die with the parent" must not hide a keeper that does nothing.
func TestKeeperEndsServersByItself(t *testing.T) {
	r, err := StartRedis(t.Context(), RedisConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	pid := r.PID()
	r.folder.keeperStop.Close()
	eventually(t, "keeper", func() error { return gone(pid) })
	eventually(t, "keeper", func() error { return absent(r.folder.path) })
}

func TestGivenServersAreUsed(t *testing.T) {
	private(t)
	own, err := Start(t.Context(), Config{Stdout: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	t.Setenv("DATABASE_URL", own.DatabaseURL)
	t.Setenv("REDIS_URL", own.RedisURL)
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	s, err := Start(t.Context(), Config{Stdout: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	if s.DatabaseURL != own.DatabaseURL || s.RedisURL != own.RedisURL {
		t.Errorf("given %s and %s, used %s and %s", own.DatabaseURL, own.RedisURL, s.DatabaseURL, s.RedisURL)
	}
	if s.Postgres() != nil || s.Redis() != nil || len(folders(t, temp)) > 0 {
		t.Error("servers were started although some were given")
	}
	s.Close()
	if err := checkDatabase(t.Context(), own.DatabaseURL); err != nil {
		t.Errorf("after Close: %v", err)
	}
}

func TestAGivenServerThatCannotBeUsedIsOneClearLine(t *testing.T) {
	pg, err := StartPostgres(t.Context(), PostgresConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer pg.Close()
	for _, c := range []struct{ name, variable, value, want string }{
		{"nobody listens", "DATABASE_URL", "postgres://u:hunter2@127.0.0.1:1/db", "connection refused"},
		{"not a URL", "DATABASE_URL", "postgres://u:hunter2@%zz/db", "DATABASE_URL"},
		{"no such database", "DATABASE_URL", pg.URL("absent"), `"absent" does not exist`},
		{"wrong password", "DATABASE_URL", "postgres://postgres:hunter2@" + pg.Addr() + "/postgres", "password authentication failed"},
		{"nobody listens", "REDIS_URL", "redis://:hunter2@127.0.0.1:1", "connection refused"},
		{"not a URL", "REDIS_URL", "hunter2", "REDIS_URL"},
		{"not a Redis", "REDIS_URL", "redis://:hunter2@" + pg.Addr(), "REDIS_URL"},
	} {
		t.Run(c.variable+" "+c.name, func(t *testing.T) {
			private(t)
			temp := t.TempDir()
			t.Setenv("TMPDIR", temp)
			t.Setenv(c.variable, c.value)
			cfg := Config{Stdout: io.Discard, WithoutPostgres: c.variable != "DATABASE_URL", WithoutRedis: c.variable != "REDIS_URL"}
			s, err := Start(t.Context(), cfg)
			if err == nil {
				s.Close()
				t.Fatal("no error")
			}
			text := err.Error()
			if !strings.Contains(text, c.variable) || !strings.Contains(text, c.want) {
				t.Errorf("the error does not say %s and %q: %s", c.variable, c.want, text)
			}
			if strings.Contains(text, "\n") || strings.Contains(text, "hunter2") || strings.Contains(text, pg.password) {
				t.Errorf("the error has lines or a password: %q", text)
			}
			if left := folders(t, temp); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// withoutRedis leaves only Postgres to be found, and nothing to install the rest with.
func withoutRedis(t *testing.T) {
	pg, err := findPostgres()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(pg.path, filepath.Join(dir, "postgres")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
}

func TestAMissingServerIsOneLineThatSaysWhatToInstall(t *testing.T) {
	private(t)
	withoutRedis(t)
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	s, err := Start(t.Context(), Config{Stdout: io.Discard})
	if err == nil {
		s.Close()
		t.Fatal("no error")
	}
	var missing *MissingError
	if !errors.As(err, &missing) {
		t.Fatalf("want a MissingError: %v", err)
	}
	for _, want := range []string{"no Redis server found", "install Redis 7.0 or later", "REDIS_URL"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("want %q in %q", want, err)
		}
	}
	if strings.Contains(err.Error(), "Postgres") || strings.Contains(err.Error(), "\n") {
		t.Errorf("want one line about Redis alone: %q", err)
	}
	if left := folders(t, temp); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestRedisCanBeOptional(t *testing.T) {
	private(t)
	withoutRedis(t)
	s, err := Start(t.Context(), Config{Stdout: io.Discard, RedisOptional: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.RedisURL != "" || !strings.Contains(s.RedisReason, "no Redis server found") {
		t.Errorf("URL %q, reason %q", s.RedisURL, s.RedisReason)
	}
	if err := checkDatabase(t.Context(), s.DatabaseURL); err != nil {
		t.Error(err)
	}
}

func TestStartEndsWithItsContext(t *testing.T) {
	private(t)
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if s, err := Start(ctx, Config{Stdout: io.Discard}); err == nil {
		s.Close()
		t.Error("no error")
	}
	if left := folders(t, temp); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestInstanceIsPrivate(t *testing.T) {
	pg, err := StartPostgres(t.Context(), PostgresConfig{Settings: map[string]string{"work_mem": "5MB"}})
	if err != nil {
		t.Fatal(err)
	}
	defer pg.Close()
	conn, err := pgx.Connect(t.Context(), pg.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for name, want := range map[string]string{
		"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "max_connections": "400",
		"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "work_mem": "5MB", "server_encoding": "UTF8",
	} {
		var got string
		if err := conn.QueryRow(t.Context(), "SELECT current_setting($1)", name).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %q, want %q (%v)", name, got, want, err)
		}
	}
	if c, err := pgx.Connect(t.Context(), "postgres://postgres@"+pg.Addr()+"/postgres?sslmode=disable"); err == nil {
		c.Close(context.Background())
		t.Error("anyone may connect")
	}
}
