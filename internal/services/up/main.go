// Up runs a command with Postgres and Redis:
//
//	go run ./internal/services/up [--browser] [--node] [--compiler] -- go test ./...
//
// It provides the servers (installing what is missing after saying so; DATABASE_URL and REDIS_URL, when set, are used
// as they are), sets DATABASE_URL and REDIS_URL for the command, ends everything afterwards, also when interrupted,
// and exits with the command's code. So the tests of all packages share one Postgres.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/commitcast/commitcast/internal/services"
)

// grace is how long an interrupted command may take to end before it is killed.
const grace = 10 * time.Second

func main() { os.Exit(run()) }

func run() int {
	browser := flag.Bool("browser", false, "see to a Chromium, too, and set CHROME_BIN to it")
	node := flag.Bool("node", false, "see to Node.js and npm, too")
	compiler := flag.Bool("compiler", false, "see to a C compiler, too: go test -race needs one")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "usage: up [--browser] [--node] [--compiler] -- command [argument…]")
		return 2
	}

	// From here on a signal ends what is under way, and then everything in order.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	ctx, cancel := context.WithCancelCause(context.Background())
	go func() { // ends with the program
		s := <-signals
		cancel(interrupted{s.(syscall.Signal)})
	}()

	code, err := up(ctx, *browser, *node, *compiler, flag.Args())
	var sig interrupted
	switch {
	case errors.As(context.Cause(ctx), &sig):
		return 128 + int(sig.Signal)
	case err != nil:
		fmt.Fprintln(os.Stderr, "commitcast:", err)
		return 1
	}
	return code
}

// interrupted is why the context ended.
type interrupted struct{ syscall.Signal }

func (i interrupted) Error() string { return i.Signal.String() }

func up(ctx context.Context, browser, node, compiler bool, argv []string) (code int, err error) {
	env := os.Environ()
	if compiler {
		if err := services.EnsureCompiler(ctx, os.Stderr); err != nil {
			return 0, err
		}
	}
	if node {
		if err := services.EnsureNode(ctx, os.Stderr); err != nil {
			return 0, err
		}
	}
	if browser {
		path, err := services.EnsureChromium(ctx, os.Stderr)
		if err != nil {
			return 0, err
		}
		env = append(env, "CHROME_BIN="+path)
	}
	s, err := services.Start(ctx, services.Config{Stdout: os.Stderr})
	if err != nil {
		return 0, err
	}
	defer s.Close()

	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(env, "DATABASE_URL="+s.DatabaseURL, "REDIS_URL="+s.RedisURL)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// A process group of its own, so that nothing of the command outlives us. It cannot read a terminal then.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	group := -cmd.Process.Pid
	defer syscall.Kill(group, syscall.SIGKILL) // what the command has left behind
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends with the command

	select {
	case err = <-ended:
	case <-ctx.Done():
		syscall.Kill(group, context.Cause(ctx).(interrupted).Signal)
		select {
		case err = <-ended:
		case <-time.After(grace):
			syscall.Kill(group, syscall.SIGKILL)
			err = <-ended
		}
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return 0, err
	}
	if status := exit.Sys().(syscall.WaitStatus); status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return exit.ExitCode(), nil
}
