package services

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// installTimeout bounds an installation: a Chromium over a slow line.
const installTimeout = 15 * time.Minute

//go:embed install_debian.sh
var installDebian string

// need is something that must be there, and how to get it.
type need struct {
	what    string // as in "Postgres 14 or later"
	instead string // the environment variable that makes it unnecessary, "" = none
	find    func() error
	debian  []string                          // packages
	brew    []string                          // formulae
	cask    bool                              // of brew
	unpack  func() (folder string, err error) // where the programs of the one Debian package go, which is not installed; nil = it is
}

var (
	postgresNeed = need{
		what: fmt.Sprintf("Postgres %d or later", minPostgres), instead: "DATABASE_URL",
		find: finds(findPostgres), debian: []string{"postgresql"}, brew: []string{"postgresql@17"},
	}
	// redis-tools has the server too, without the service that redis-server would start on the machine.
	redisNeed = need{
		what: fmt.Sprintf("Redis %d.0 or later", minRedis), instead: "REDIS_URL",
		find: finds(findRedis), debian: []string{"redis-tools"}, brew: []string{"redis"},
	}
	chromiumNeed = need{
		what: "Chromium or Chrome", instead: "CHROME_BIN",
		find: finds(FindChromium), debian: []string{"chromium"}, brew: []string{"chromium"}, cask: true,
	}
	nodeNeed = need{
		what: fmt.Sprintf("Node.js %d or later with npm", minNode),
		find: finds(findNode), debian: []string{"nodejs", "npm"}, brew: []string{"node"},
	}
	// Not nginx-light and its like: Debian's nginx has all that is needed, and no more.
	nginxNeed     = need{what: "nginx", find: finds(findProgram("nginx")), debian: []string{"nginx"}, brew: []string{"nginx"}}
	haproxyNeed   = need{what: "HAProxy", find: finds(findProgram("haproxy")), debian: []string{"haproxy"}, brew: []string{"haproxy"}}
	caddyNeed     = need{what: "Caddy", instead: "CADDY_BIN", find: finds(findProgram("caddy")), brew: []string{"caddy"}}
	pgbouncerNeed = need{what: "PgBouncer", find: finds(findProgram("pgbouncer")), debian: []string{"pgbouncer"}, brew: []string{"pgbouncer"}}
	compilerNeed  = need{
		what: "a C compiler", find: finds(findCompiler), debian: []string{"gcc", "libc6-dev"},
	}
)

func finds[T any](find func() (T, error)) func() error {
	return func() error { _, err := find(); return err }
}

// MissingError says that programs are missing and could not be installed. Its text is one line.
type MissingError struct {
	needs  []need
	found  []string // why each was not good enough
	reason string   // why it was not installed
}

func (e *MissingError) Error() string {
	var whats, instead, debian, brew []string
	cask := ""
	for _, n := range e.needs {
		whats = append(whats, n.what)
		debian = append(debian, n.debian...)
		brew = append(brew, n.brew...)
		if n.instead != "" {
			instead = append(instead, n.instead)
		}
		if n.cask {
			cask = "--cask "
		}
	}
	how := ""
	if _, err := exec.LookPath("apt-get"); err == nil {
		how = " (apt-get install " + strings.Join(debian, " ") + ")"
	} else if runtime.GOOS == "darwin" && len(brew) > 0 {
		how = " (brew install " + cask + strings.Join(brew, " ") + ")"
	}
	s := fmt.Sprintf("%s (%s): install %s%s", strings.Join(e.found, ", "), e.reason, strings.Join(whats, " and "), how)
	if len(instead) > 0 {
		s += " or set " + strings.Join(instead, " and ")
	}
	return oneLine(s)
}

// only says whether n alone is missing.
func (e *MissingError) only(n need) bool { return len(e.needs) == 1 && e.needs[0].what == n.what }

// lacking returns those needs that are not met and why.
func lacking(needs []need) *MissingError {
	e := &MissingError{}
	for _, n := range needs {
		if err := n.find(); err != nil {
			e.needs = append(e.needs, n)
			e.found = append(e.found, err.Error())
		}
	}
	if len(e.needs) == 0 {
		return nil
	}
	return e
}

// ensure installs what is missing, after saying so. The error is a *MissingError.
func ensure(ctx context.Context, out io.Writer, needs ...need) error {
	if lacking(needs) == nil {
		return nil
	}
	if out == nil {
		out = os.Stderr
	}
	// Test binaries of several packages may find the same thing missing at once; one installs, the others look again.
	unlock, err := lockInstall(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	missing := lacking(needs)
	if missing == nil {
		return nil
	}
	reason := install(ctx, out, missing.needs)
	after := lacking(needs)
	if after == nil {
		return nil
	}
	after.reason = "installed what there is"
	if reason != nil {
		after.reason = reason.Error()
	}
	return after
}

// install runs the system's package manager.
func install(ctx context.Context, out io.Writer, needs []need) error {
	ctx, cancel := context.WithTimeout(ctx, installTimeout)
	defer cancel()
	if _, err := exec.LookPath("apt-get"); err == nil {
		rest := needs[:0:0]
		for _, n := range needs {
			if n.unpack == nil {
				rest = append(rest, n)
			} else if err := unpack(ctx, out, n); err != nil {
				return err
			}
		}
		if needs = rest; len(needs) == 0 {
			return nil
		}
	}

	var packages []string
	var commands []*exec.Cmd
	by := ""
	if _, err := exec.LookPath("apt-get"); err == nil {
		for _, n := range needs {
			packages = append(packages, n.debian...)
		}
		if slices.Contains(packages, "chromium") && isUbuntu() {
			return errors.New("on Ubuntu it is a snap, which does not run everywhere")
		}
		by = "apt-get"
		argv := append([]string{"sh", "-c", installDebian, "install"}, packages...)
		if os.Geteuid() != 0 {
			by = "sudo apt-get"
			if exec.CommandContext(ctx, "sudo", "-n", "true").Run() != nil {
				return errors.New("installing it needs root or a sudo that asks no password")
			}
			argv = append([]string{"sudo", "-n"}, argv...)
		}
		commands = append(commands, exec.CommandContext(ctx, argv[0], argv[1:]...))
	} else if _, err := exec.LookPath("brew"); err == nil {
		by = "brew"
		for _, n := range needs {
			if len(n.brew) == 0 {
				continue
			}
			argv := []string{"install", "--quiet"}
			if n.cask {
				argv = append(argv, "--cask")
			}
			packages = append(packages, n.brew...)
			commands = append(commands, exec.CommandContext(ctx, "brew", append(argv, n.brew...)...))
		}
	}
	if len(packages) == 0 {
		return errors.New("there is no apt-get or brew to install it with")
	}

	fmt.Fprintf(out, "commitcast: installing %s with %s\n", strings.Join(packages, ", "), by)
	for _, cmd := range commands {
		if err := runInstall(cmd, by); err != nil {
			return err
		}
	}
	return nil
}

func runInstall(cmd *exec.Cmd, by string) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupted apt-get leaves packages half configured
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s failed: %s", by, installFailure(string(output), err))
	}
	return nil
}

// unpack takes the programs of a Debian package into a folder of this user.
func unpack(ctx context.Context, out io.Writer, n need) error {
	folder, err := n.unpack()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "commitcast: unpacking %s from the Debian package into %s, without installing it\n", n.debian[0], folder)
	return runInstall(exec.CommandContext(ctx, "sh", "-c", extractDebian, "extract", n.debian[0], folder), "apt-get")
}

// lockInstall waits until no other process of this user installs.
func lockInstall(ctx context.Context) (unlock func(), err error) {
	path := filepath.Join(os.TempDir(), fmt.Sprintf("commitcast-install-%d.lock", os.Geteuid()))
	return lockFile(ctx, path, os.O_RDWR|os.O_CREATE)
}

// lockFile waits until no other process holds a file locked.
func lockFile(ctx context.Context, path string, flag int) (unlock func(), err error) {
	f, err := os.OpenFile(path, flag, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the installation: %w", err)
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("waiting for another installation: %w", ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func isUbuntu() bool {
	text, err := os.ReadFile("/etc/os-release")
	return err == nil && strings.Contains(string(text), "\nID=ubuntu")
}

// installFailure is the line of a package manager's output that says most: that something cannot be fetched explains
// the errors that follow.
func installFailure(output string, err error) string {
	for _, sign := range []string{"Failed to fetch", "E: ", "Error: "} {
		for line := range strings.Lines(output) {
			if strings.Contains(line, sign) {
				return oneLine(line)
			}
		}
	}
	return lastLine(output, err.Error())
}

// lastLine is the last line of a program's output that is not empty, or other.
func lastLine(output, other string) string {
	lines := strings.Split(strings.TrimSpace(output), "\n")
	if last := oneLine(lines[len(lines)-1]); last != "" {
		return last
	}
	return other
}

// EnsurePostgres, EnsureRedis, EnsureChromium, EnsureNode and EnsureCompiler see to it that the programs are there: they install
// what is missing, after saying so on out (nil = os.Stderr). The error is a [MissingError].

// EnsurePostgres sees to what StartPostgres needs.
func EnsurePostgres(ctx context.Context, out io.Writer) error { return ensure(ctx, out, postgresNeed) }

// EnsureRedis sees to what StartRedis needs.
func EnsureRedis(ctx context.Context, out io.Writer) error { return ensure(ctx, out, redisNeed) }

// EnsureChromium sees to a Chromium or Chrome and returns its path.
func EnsureChromium(ctx context.Context, out io.Writer) (string, error) {
	if err := ensure(ctx, out, chromiumNeed); err != nil {
		return "", err
	}
	return FindChromium()
}

// EnsureNode sees to Node.js with npm, which the TypeScript package is checked and tested with.
func EnsureNode(ctx context.Context, out io.Writer) error { return ensure(ctx, out, nodeNeed) }

// EnsureCompiler sees to a C compiler, which Go's race detector needs.
func EnsureCompiler(ctx context.Context, out io.Writer) error { return ensure(ctx, out, compilerNeed) }
