package services

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// startTimeout bounds the start of a server, recovery included; tests on a busy machine need it long.
	startTimeout = time.Minute
	// stopTimeout is how long a server may take to end by itself before it is killed.
	stopTimeout = 15 * time.Second
	// portTries is how often another port is tried when somebody else took the one chosen.
	portTries = 10
)

// Host is where a server runs that does not run in this machine's own network; package network makes such.
type Host interface {
	// IP is its address. The server listens there and nowhere else.
	IP() string
	// Enter takes the calling thread there, for good.
	Enter() error
}

// process is one run of a server.
type process struct {
	pid     int
	log     string        // path of its output
	done    chan struct{} // closed when it has ended and was reaped
	mark    string        // the file that tells the keeper of it
	started chan error
}

// spawn starts a program as the servers' user, in a process group of its own, with its output in a file. death is the
// signal that ends it when we die.
func (f *folder) spawn(p program, stdin io.Reader, death syscall.Signal, args ...string) (*process, error) {
	log := filepath.Join(f.path, "log")
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := f.command(context.Background(), p, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, out, out
	cmd.SysProcAttr.Setpgid = true
	dieWithParent(cmd.SysProcAttr, death)

	proc := &process{log: log, done: make(chan struct{}), started: make(chan error, 1)}
	go proc.attend(cmd, f.host) // owned by proc: ends when the process does
	if err := <-proc.started; err != nil {
		return nil, err
	}
	proc.pid = cmd.Process.Pid
	proc.mark = filepath.Join(f.pids(), strconv.Itoa(proc.pid))
	name := map[syscall.Signal]string{syscall.SIGQUIT: "QUIT", syscall.SIGKILL: "KILL"}[death]
	if err := os.WriteFile(proc.mark, []byte(name), 0o600); err != nil {
		proc.end(syscall.SIGKILL)
		return nil, err
	}
	return proc, nil
}

// attend starts the process and waits for it. The kernel ties "when the parent dies" to the thread that started the
// process, so that thread must live as long.
func (p *process) attend(cmd *exec.Cmd, host Host) {
	runtime.LockOSThread()
	var err error
	if host == nil {
		defer runtime.UnlockOSThread()
	} else {
		err = host.Enter() // the thread ends with the goroutine, which stays locked to it
	}
	if err == nil {
		err = cmd.Start()
	}
	p.started <- err
	if err == nil {
		cmd.Wait()
	}
	close(p.done)
}

// end sends a signal and waits until the process has ended; if that takes too long it is killed.
func (p *process) end(sig syscall.Signal) {
	if p == nil {
		return
	}
	if p.running() {
		p.signal(sig)
		select {
		case <-p.done:
		case <-time.After(stopTimeout):
			p.signal(syscall.SIGKILL)
			<-p.done
		}
	}
	os.Remove(p.mark)
}

// running says whether the process is there; it may have crashed.
func (p *process) running() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// signal reaches the process and what it started in its group. The group cannot be a stranger's: it exists at least
// until the process was reaped.
func (p *process) signal(sig syscall.Signal) error { return syscall.Kill(-p.pid, sig) }

// ready polls until ask succeeds. If the process ends first, the error is its last words.
func (p *process) ready(ctx context.Context, name string, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return p.failed(name)
		case <-ctx.Done():
			return fmt.Errorf("starting a private %s: %w (last: %s)", name, ctx.Err(), oneLine(err.Error()))
		case <-time.After(wait):
		}
	}
}

var errPortTaken = errors.New("port taken")

func (p *process) failed(name string) error {
	text, _ := os.ReadFile(p.log)
	for _, taken := range []string{"Address already in use", "could not create any TCP/IP sockets"} {
		if strings.Contains(string(text), taken) {
			return fmt.Errorf("starting a private %s: %w", name, errPortTaken)
		}
	}
	why := lastLine(string(text), "it ended without a word")
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "FATAL") { // Postgres goes on to talk after the reason
			why = oneLine(line)
			break
		}
	}
	return fmt.Errorf("starting a private %s: it ended at once: %s", name, why)
}

// command prepares a program that runs as the servers' user, in their environment.
func (f *folder) command(ctx context.Context, p program, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, p.path, args...)
	if p.argv0 != "" {
		cmd.Args[0] = p.argv0
	}
	cmd.Dir = f.path
	cmd.Env = []string{"LC_ALL=C", "HOME=" + f.path} // without what would configure another Postgres: PGDATA, PGPORT …
	for _, name := range []string{"PATH", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"} {
		if v, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: f.cred}
	return cmd
}

// freePort picks a port that nobody listens on. It lies below the ports that systems give to outgoing connections:
// such a one could be taken while its server is down for a restart, even by a client that tries to reach it.
func freePort() (int, error) {
	for range 100 {
		port := 20_000 + rand.IntN(12_000)
		l, err := net.Listen("tcp", localAddr(port))
		if err == nil {
			l.Close()
			return port, nil
		}
	}
	return 0, errors.New("no free port from 20000 to 31999 on 127.0.0.1")
}

func localAddr(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// onFreePort calls start with a free port, and again with another one if somebody else was faster.
func onFreePort(start func(port int) error) error {
	for try := 1; ; try++ {
		port, err := freePort()
		if err != nil {
			return err
		}
		if err = start(port); !errors.Is(err, errPortTaken) || try == portTries {
			return err
		}
	}
}
