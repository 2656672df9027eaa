package worker

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/stream"
)

// A worker in a process of its own, for tests that kill or stop one: this binary, run again with childEnv set to the
// database and the Redis, separated by a space.
const childEnv = "COMMITCAST_WORKER_TEST_CHILD"

func child() {
	if err := childRun(); err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(1)
	}
}

func childRun() error {
	database, redis, _ := strings.Cut(os.Getenv(childEnv), " ")
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, database)
	if err != nil {
		return err
	}
	s, err := stream.NewRedis(ctx, redis, stream.RedisConfig{MaxLen: 1 << 20})
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w, err := New(pool, s, Config{Node: fmt.Sprintf("child-%d", os.Getpid()), Logger: log})
	if err != nil {
		return err
	}
	go func() { // ends with the process
		for w.Ready() != nil {
			time.Sleep(time.Millisecond)
		}
		fmt.Println("ready")
	}()
	return w.Run(ctx)
}

// process is a child that runs a worker.
type process struct {
	t   testing.TB
	cmd *exec.Cmd
}

// spawn starts a child and waits until its worker runs. It is killed at the test's end.
func (b *bench) spawn() *process {
	b.t.Helper()
	self, err := os.Executable()
	if err != nil {
		b.t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childEnv+"="+testkit.As(b.t, b.url, "worker")+" "+b.redis)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	ready := make(chan struct{})
	var reading sync.WaitGroup
	reading.Go(func() { // ends when the child does
		once := sync.OnceFunc(func() { close(ready) })
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if lines.Text() == "ready" {
				once()
			} else {
				b.t.Logf("child %d: %s", cmd.Process.Pid, lines.Text())
			}
		}
	})
	p := &process{t: b.t, cmd: cmd}
	b.t.Cleanup(func() {
		p.signal(syscall.SIGKILL)
		reading.Wait()
		cmd.Wait()
	})
	select {
	case <-ready:
	case <-time.After(20 * time.Second):
		b.t.Fatal("the child's worker is not ready")
	}
	return p
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && s != syscall.SIGKILL {
		p.t.Fatal(err)
	}
}
