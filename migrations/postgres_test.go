package migrations

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"
)

// server is a private Postgres of this test binary.
type server struct {
	dir  string
	port int
	cmd  *exec.Cmd
	dbs  atomic.Int64
}

var postgres *server

func TestMain(m *testing.M) {
	var err error
	if postgres, err = startServer(); err != nil {
		fmt.Fprintln(os.Stderr, "postgres:", err)
		os.Exit(1)
	}
	code := m.Run()
	postgres.kill(syscall.SIGINT)
	os.RemoveAll(postgres.dir)
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

const bin = "/usr/lib/postgresql/15/bin/"

func asPostgres(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(bin+name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if os.Getuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGINT
	cmd.Dir = "/"
	return cmd
}

func startServer() (*server, error) {
	dir, err := os.MkdirTemp("", "migrations-test-")
	if err != nil {
		return nil, err
	}
	if os.Getuid() == 0 {
		os.Chown(dir, 65534, 65534)
	}
	s := &server{dir: dir}
	if out, err := asPostgres("initdb", "-D", filepath.Join(dir, "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	os.WriteFile(filepath.Join(dir, "data", "pg_hba.conf"), []byte("host all needs_password 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n"), 0o644)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s.port = l.Addr().(*net.TCPAddr).Port
	l.Close()
	return s, s.start()
}

func (s *server) start() error {
	s.cmd = asPostgres("postgres", "-D", filepath.Join(s.dir, "data"), "-p", strconv.Itoa(s.port),
		"-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "log_min_messages=fatal", "-c", "shared_buffers=64MB")
	if err := s.cmd.Start(); err != nil {
		return err
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		conn, err := pgx.Connect(context.Background(), s.url("postgres"))
		if err == nil {
			return conn.Close(context.Background())
		}
		if time.Now().After(deadline) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// kill ends the server: SIGINT is a fast shutdown, SIGQUIT a crash.
func (s *server) kill(sig syscall.Signal) {
	s.cmd.Process.Signal(sig)
	s.cmd.Wait()
}

func (s *server) url(db string) string {
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/%s?sslmode=disable", s.port, db)
}

// exec runs one statement as superuser.
func (s *server) exec(t *testing.T, db, sql string, args ...any) {
	t.Helper()
	conn := s.connect(t, db)
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func (s *server) connect(t *testing.T, db string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.url(db))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// database creates an empty database and returns its name.
func (s *server) database(t *testing.T, options string) string {
	t.Helper()
	name := fmt.Sprintf("test_%d", s.dbs.Add(1))
	s.exec(t, "postgres", "CREATE DATABASE "+name+" "+options)
	return name
}
