package services

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// Configured is a private server of another program, by a configuration of its caller: nginx, haproxy, pgbouncer or caddy.
type Configured struct {
	folder  *folder
	program program
	args    func(conf string) []string
	conf    string

	mu   sync.Mutex
	proc *process
}

// kinds are the programs: how each is told to stay in the foreground.
var kinds = map[string]struct {
	need need
	args func(conf string) []string
}{
	"nginx":     {nginxNeed, func(c string) []string { return []string{"-c", c, "-e", "stderr", "-g", "daemon off;"} }},
	"haproxy":   {haproxyNeed, func(c string) []string { return []string{"-db", "-f", c} }},
	"caddy":     {caddyNeed, func(c string) []string { return []string{"run", "--config", c, "--adapter", "caddyfile"} }},
	"pgbouncer": {pgbouncerNeed, func(c string) []string { return []string{c} }},
}

// StartConfigured starts one of them and waits until addr accepts connections. By its name it is found, or installed; by an absolute path
// it is there. files are written into its folder, by name, with FOLDER in the texts replaced by its path; the first one is the
// configuration. ctx bounds the start only.
func StartConfigured(ctx context.Context, out io.Writer, name, addr string, files ...[2]string) (*Configured, error) {
	c, err := prepareConfigured(ctx, out, name, files)
	if err != nil {
		return nil, err
	}
	c.proc, err = c.folder.spawn(c.program, nil, syscall.SIGKILL, c.args(c.conf)...)
	if err == nil {
		err = c.proc.ready(ctx, name, func(ctx context.Context) error {
			var d net.Dialer
			conn, err := d.DialContext(ctx, "tcp", addr)
			if err == nil {
				conn.Close()
			}
			return err
		})
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func prepareConfigured(ctx context.Context, out io.Writer, name string, files [][2]string) (*Configured, error) {
	kind, ok := kinds[filepath.Base(name)]
	if !ok {
		return nil, fmt.Errorf("services: %s is not one that can be started", name)
	}
	found := program{path: name}
	if !filepath.IsAbs(name) {
		err := ensure(ctx, out, kind.need)
		if err == nil {
			found, err = findProgram(name)()
		}
		if err != nil {
			return nil, err
		}
	}
	f, err := newFolder(filepath.Base(name))
	if err != nil {
		return nil, err
	}
	c := &Configured{folder: f, program: found, args: kind.args}
	dir, err := f.private("conf")
	for i, file := range files {
		path := filepath.Join(dir, file[0])
		if err == nil {
			err = os.WriteFile(path, []byte(strings.ReplaceAll(file[1], "FOLDER", dir)), 0o600)
		}
		if err == nil {
			err = f.give(path)
		}
		if i == 0 {
			c.conf = path
		}
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// FreePort picks a port of 127.0.0.1 that nobody listens on.
func FreePort() (int, error) { return freePort() }

// Signal sends a signal to the server: as SIGHUP has it read its configuration again.
func (c *Configured) Signal(sig syscall.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.proc.running() {
		return fmt.Errorf("%v to a server that does not run", sig)
	}
	return syscall.Kill(c.proc.pid, sig)
}

// Log returns what the server has written.
func (c *Configured) Log() string {
	text, _ := os.ReadFile(filepath.Join(c.folder.path, "log"))
	return strings.TrimSpace(string(text))
}

// Close ends the server and removes its folder. Calling it twice is fine.
func (c *Configured) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.folder == nil {
		return
	}
	c.proc.end(syscall.SIGKILL)
	c.folder.remove()
	c.folder = nil
}
