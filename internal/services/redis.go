package services

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/redis/go-redis/v9"
)

// RedisConfig says how a private Redis runs. The zero RedisConfig is one that keeps nothing on disk.
type RedisConfig struct {
	// Lines are added to the server's configuration, as in "maxmemory 10mb". Default: none.
	Lines []string
	// Password is what clients authenticate with. Default: a random one.
	Password string
	// TLS makes the server serve it, too, on a port of its own: TLSAddr. Default: none.
	TLS *TLS
	// Host is where it runs. Default: here.
	Host Host
}

// redisLines configure every private Redis. Address, dir and port are added.
const redisLines = `
save ""
appendonly no
enable-debug-command yes
daemonize no
`

// Redis is a private server.
type Redis struct {
	program  program
	folder   *folder
	dir      string // its working folder, with its dump
	password string
	cfg      RedisConfig

	mu     sync.Mutex
	port   int
	secure int      // the port of TLS
	proc   *process // nil = stopped
	closed bool
}

// StartRedis starts a server in a new temporary folder. ctx bounds the start only. It does not install: an error says
// what is missing.
func StartRedis(ctx context.Context, cfg RedisConfig) (*Redis, error) {
	if missing := lacking([]need{redisNeed}); missing != nil {
		missing.reason = "tests need it"
		return nil, missing
	}
	found, err := findRedis()
	if err != nil {
		return nil, err
	}
	f, err := newFolder("redis")
	if err != nil {
		return nil, err
	}
	r := &Redis{program: found, folder: f, cfg: cfg, password: cmp.Or(cfg.Password, rand.Text())}
	f.host = cfg.Host
	r.dir, err = f.private("data")
	if err == nil {
		err = onFreePort(func(port int) error {
			r.port = port
			if cfg.TLS == nil {
				return r.start(ctx)
			}
			return onFreePort(func(port int) error {
				r.secure = port
				return r.start(ctx)
			})
		})
	}
	if err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// start needs r.mu, or r to be new.
func (r *Redis) start(ctx context.Context) error {
	if r.closed {
		return errClosed
	}
	if r.proc.running() {
		return nil
	}
	r.stop(syscall.SIGKILL) // tidies up after a crash
	// By standard input: other users can read a command line, with the password. A password, since they can reach the
	// port, and Redis writes files where it is told.
	lines := redisLines + fmt.Sprintf("bind %s\nport %d\ndir %q\nrequirepass %s\n%s\n",
		r.folder.ip(), r.port, r.dir, r.password, strings.Join(r.cfg.Lines, "\n"))
	if r.cfg.TLS != nil {
		certificate, key, clientCA, err := r.cfg.TLS.files(r.folder)
		if err != nil {
			return err
		}
		lines += fmt.Sprintf("tls-port %d\ntls-cert-file %q\ntls-key-file %q\n", r.secure, certificate, key)
		if clientCA == "" {
			lines += "tls-auth-clients no\n"
		} else {
			lines += fmt.Sprintf("tls-ca-cert-file %q\n", clientCA)
		}
	}
	proc, err := r.folder.spawn(r.program, strings.NewReader(lines), syscall.SIGKILL, "-")
	if err != nil {
		return fmt.Errorf("starting a private Redis: %w", err)
	}
	err = proc.ready(ctx, "Redis", func(ctx context.Context) error {
		if conn, err := net.Dial("tcp", r.Addr()); err != nil {
			return err // before go-redis, which logs it
		} else {
			conn.Close()
		}
		info, err := redisInfo(ctx, r.Options())
		if err != nil {
			return err
		}
		if info["process_id"] != strconv.Itoa(proc.pid) {
			return fmt.Errorf("another server is on port %d", r.port)
		}
		return nil
	})
	if err != nil {
		proc.end(syscall.SIGKILL)
		return err
	}
	r.proc = proc
	return nil
}

// URL is where the server is. It stays the same over restarts, and contains the password.
func (r *Redis) URL() string {
	u := url.URL{Scheme: "redis", User: url.UserPassword("default", r.password), Host: r.Addr(), Path: "/0"}
	return u.String()
}

// Options are the URL's, for a go-redis client.
func (r *Redis) Options() *redis.Options {
	return &redis.Options{Addr: r.Addr(), Password: r.password}
}

// Addr is the server's address, host:port.
func (r *Redis) Addr() string { return net.JoinHostPort(r.folder.ip(), strconv.Itoa(r.port)) }

// TLSAddr is where the server serves TLS, host:port.
func (r *Redis) TLSAddr() string { return net.JoinHostPort(r.folder.ip(), strconv.Itoa(r.secure)) }

// Password is what clients and replicas authenticate with.
func (r *Redis) Password() string { return r.password }

// Version is the server's version, as in 7.0.15.
func (r *Redis) Version() string { return r.program.version }

// Dir is the server's working folder: it loads dump.rdb from there when it starts, and SAVE writes it there.
func (r *Redis) Dir() string { return r.dir }

// Log returns what the server has written since it was started last.
func (r *Redis) Log() string {
	text, _ := os.ReadFile(filepath.Join(r.folder.path, "log"))
	return strings.TrimSpace(string(text))
}

// PID is the server's process, 0 if it does not run.
func (r *Redis) PID() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.proc.running() {
		return 0
	}
	return r.proc.pid
}

// Kill ends the server as kill -9 does, and returns when it is gone.
func (r *Redis) Kill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stop(syscall.SIGKILL)
}

// Stop lets the server shut down. Nothing is saved, unless Lines say so.
func (r *Redis) Stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stop(syscall.SIGTERM)
}

func (r *Redis) stop(sig syscall.Signal) {
	r.proc.end(sig)
	r.proc = nil
}

// Start starts the server again after Kill or Stop, on the same port: empty, or with the dump in Dir. It returns when
// the server answers, and does nothing if it runs.
func (r *Redis) Start(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.start(ctx)
}

// Restart is Kill and Start.
func (r *Redis) Restart(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stop(syscall.SIGKILL)
	return r.start(ctx)
}

// Pause freezes the server: connections stay, nothing answers, until Resume.
func (r *Redis) Pause() error { return r.signal(syscall.SIGSTOP) }

// Resume ends Pause.
func (r *Redis) Resume() error { return r.signal(syscall.SIGCONT) }

func (r *Redis) signal(sig syscall.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.proc.running() {
		return fmt.Errorf("%v to a Redis that does not run", sig)
	}
	return r.proc.signal(sig)
}

// Close ends the server for good and removes its folder. Calling it twice is fine.
func (r *Redis) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	r.closed = true
	r.stop(syscall.SIGKILL)
	r.folder.remove()
}
