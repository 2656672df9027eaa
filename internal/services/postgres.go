package services

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/jackc/pgx/v5"
)

// PostgresConfig says how a private Postgres runs. The zero PostgresConfig is one as installed, with fsync on and room
// for 400 connections.
type PostgresConfig struct {
	// Settings are added to the server's settings, or replace ours. Default: none.
	Settings map[string]string
	// TLS makes the server speak it to who asks for it; ClientCA is then for who shows a certificate. Default: none.
	TLS *TLS
	// Host is where it runs; other hosts may log in, too. Default: here.
	Host Host
}

// settings are those of every private Postgres. fsync stays on: what is measured here should be true elsewhere.
var settings = map[string]string{
	"unix_socket_directories":        "",
	"max_connections":                "400",
	"max_prepared_transactions":      "10",
	"superuser_reserved_connections": "3",
}

// Postgres is a private server. Its database "postgres" is empty, its user may do everything.
type Postgres struct {
	program  program
	folder   *folder
	password string
	cfg      PostgresConfig

	mu     sync.Mutex
	port   int
	data   string   // the folder of its data
	proc   *process // nil = stopped
	closed bool
}

var errClosed = errors.New("the server was closed")

// StartPostgres makes a database cluster in a new temporary folder and starts it. ctx bounds the start only. It does
// not install: an error says what is missing.
func StartPostgres(ctx context.Context, cfg PostgresConfig) (*Postgres, error) {
	p, err := newPostgres(cfg)
	if err != nil {
		return nil, err
	}
	p.folder.host = cfg.Host
	err = p.initdb(ctx)
	if err == nil && cfg.TLS != nil {
		err = p.secure()
	}
	if err == nil && cfg.Host != nil {
		err = p.open()
	}
	if err == nil {
		err = onFreePort(func(port int) error {
			p.port = port
			return p.start(ctx)
		})
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func newPostgres(cfg PostgresConfig) (*Postgres, error) {
	if missing := lacking([]need{postgresNeed}); missing != nil {
		missing.reason = "tests and the demo need it"
		return nil, missing
	}
	found, err := findPostgres()
	if err != nil {
		return nil, err
	}
	f, err := newFolder("postgres")
	if err != nil {
		return nil, err
	}
	return &Postgres{program: found, folder: f, cfg: cfg, password: rand.Text()}, nil
}

func (p *Postgres) initdb(ctx context.Context) error {
	var err error
	if p.data, err = p.folder.private("data"); err != nil {
		return err
	}
	secret := filepath.Join(p.folder.path, "password")
	if err := os.WriteFile(secret, []byte(p.password+"\n"), 0o600); err != nil {
		return err
	}
	defer os.Remove(secret)
	if err := p.folder.give(secret); err != nil {
		return err
	}
	// A password, since any user of the machine can reach the port; in clear, since it only crosses the loopback and
	// scram would cost each connection milliseconds of computing. No sync: a cluster lost in a crash is no loss.
	return p.tool(ctx, "initdb", "--pgdata="+p.data, "--username=postgres", "--pwfile="+secret, "--auth=password",
		"--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions")
}

// open lets other hosts log in, with the password; initdb lets this one only.
func (p *Postgres) open() error {
	f, err := os.OpenFile(filepath.Join(p.data, "pg_hba.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("host all all " + p.folder.ip() + "/24 password\n")
	return errors.Join(err, f.Close())
}

// secure adds TLS to the settings.
func (p *Postgres) secure() error {
	certificate, key, clientCA, err := p.cfg.TLS.files(p.folder)
	p.cfg.Settings = maps.Clone(p.cfg.Settings)
	if p.cfg.Settings == nil {
		p.cfg.Settings = make(map[string]string)
	}
	p.cfg.Settings["ssl"], p.cfg.Settings["ssl_cert_file"], p.cfg.Settings["ssl_key_file"], p.cfg.Settings["ssl_ca_file"] = "on", certificate, key, clientCA
	return err
}

// tool runs another program of the same Postgres to its end.
func (p *Postgres) tool(ctx context.Context, name string, args ...string) error {
	path := filepath.Join(filepath.Dir(p.program.path), name)
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	cmd := p.folder.command(ctx, program{path: path}, args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s failed: %s", name, lastLine(string(out), err.Error()))
	}
	return nil
}

// start needs p.mu, or p to be new.
func (p *Postgres) start(ctx context.Context) error {
	if p.closed {
		return errClosed
	}
	if p.proc.running() {
		return nil
	}
	p.stop(syscall.SIGKILL) // tidies up after a crash
	all := maps.Clone(settings)
	all["listen_addresses"] = p.folder.ip()
	maps.Copy(all, p.cfg.Settings)
	args := []string{"-D", p.data, "-p", fmt.Sprint(p.port)}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		args = append(args, "-c", name+"="+all[name])
	}
	proc, err := p.folder.spawn(p.program, nil, syscall.SIGQUIT, args...)
	if err != nil {
		return fmt.Errorf("starting a private Postgres: %w", err)
	}
	if err := proc.ready(ctx, "Postgres", p.ask); err != nil {
		proc.end(syscall.SIGQUIT)
		return err
	}
	p.proc = proc
	return nil
}

// ask succeeds when the server on our port is up and ours.
func (p *Postgres) ask(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, p.URL("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var data string
	if err := conn.QueryRow(ctx, "SHOW data_directory").Scan(&data); err != nil {
		return err
	}
	if real, err := filepath.EvalSymlinks(p.data); data != p.data && (err != nil || data != real) {
		return fmt.Errorf("another server is on port %d", p.port)
	}
	return nil
}

// URL is where a database of this server is. It stays the same over restarts, and contains the password.
func (p *Postgres) URL(database string) string {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword("postgres", p.password), Host: p.Addr(),
		Path: "/" + database, RawQuery: "sslmode=disable",
	}
	return u.String()
}

// Addr is the server's address, host:port.
func (p *Postgres) Addr() string { return net.JoinHostPort(p.folder.ip(), strconv.Itoa(p.port)) }

// Version is the server's version, as in 15.4.
func (p *Postgres) Version() string { return p.program.version }

// Log returns what the server has written since it was started last.
func (p *Postgres) Log() string {
	text, _ := os.ReadFile(filepath.Join(p.folder.path, "log"))
	return strings.TrimSpace(string(text))
}

// Stop shuts the server down in order: sessions are ended, a checkpoint is written.
func (p *Postgres) Stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stop(syscall.SIGINT)
}

// Kill ends the server at once, like a crash: the next start recovers from the log. (A SIGKILL to the first process
// would leave its children running for a while, and they would keep the next start from beginning.)
func (p *Postgres) Kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stop(syscall.SIGQUIT)
}

func (p *Postgres) stop(sig syscall.Signal) {
	p.proc.end(sig)
	p.proc = nil
}

// Start starts the server again after Stop or Kill, on the same port with the same data. It returns when the server
// answers, and does nothing if it runs.
func (p *Postgres) Start(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.start(ctx)
}

// Restart is Stop and Start.
func (p *Postgres) Restart(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stop(syscall.SIGINT)
	return p.start(ctx)
}

// Close ends the server for good and removes its data. Calling it twice is fine.
func (p *Postgres) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.closed = true
	p.stop(syscall.SIGQUIT)
	p.folder.remove()
}
