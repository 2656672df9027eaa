package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/commitcast/commitcast/ops"
)

// Exit codes of the command.
const (
	exitOK      = 0
	exitFailure = 1 // the command ran and failed; one line on stderr says why
	exitUsage   = 2 // the command line is wrong, or asks for what cannot be; nothing was changed
	exitWarning = 3 // ops status, stuck, doctor: it works, and something should be looked at
	exitProblem = 4 // ops status, stuck, doctor: somebody is not served
	exitRefused = 5 // ops: things are not, or no longer, as the operator took them to be; nothing was changed
)

// cli is the command line. Every flag has an environment variable; there is no configuration file.
type cli struct {
	Migrate     migrateCommand     `cmd:"" help:"Create, upgrade, remove or show the schema in the database."`
	Worker      workerCommand      `cmd:"" help:"Run a worker: gives events their offsets and publishes them."`
	Broadcaster broadcasterCommand `cmd:"" help:"Run a broadcaster: serves WebSocket clients."`
	All         allCommand         `cmd:"" help:"Run a worker and a broadcaster in one process. Without --redis-url it needs Postgres only."`
	Ops         opsCommand         `cmd:"" help:"For operators: see whether events flow, where they are held up and who is affected, and act."`
	Version     versionCommand     `cmd:"" help:"Show the version."`
}

// streams are what a command prints to.
type streams struct{ out, err io.Writer }

// Main runs the command line and returns the exit code. SIGINT and SIGTERM end a running command in order; a second
// one ends it at once.
func Main(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // the second signal takes its default course
	return Run(ctx, args, stdout, stderr)
}

// Run is Main under a given context.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	exited := -1
	parser, err := kong.New(&cli{},
		kong.Name("commitcast"),
		kong.Description("Carries every Postgres commit to every connected screen."),
		kong.UsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { exited = code }),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(&streams{stdout, stderr}),
		capacityDefaults(),
	)
	if err != nil {
		panic(err) // the struct tags above are wrong: a bug, found by any test
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	command, err := parser.Parse(args)
	if exited >= 0 { // --help
		return exited
	}
	if err != nil {
		fmt.Fprintf(stderr, "commitcast: %s\nTry: commitcast --help\n", visible(oneLine(err)))
		return exitUsage
	}
	if err := command.Run(); err != nil && !(errors.Is(err, context.Canceled) && ctx.Err() != nil) {
		var said exitCode
		if errors.As(err, &said) {
			return int(said)
		}
		fmt.Fprintf(stderr, "commitcast: %s\n", visible(oneLine(err)))
		var usage usageError
		switch {
		case errors.As(err, &usage), errors.Is(err, ops.ErrInvalid):
			return exitUsage
		case errors.Is(err, ops.ErrConflict):
			return exitRefused
		}
		return exitFailure
	}
	return exitOK
}

// exitCode is the end of a command that has said everything.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// usageError is a combination of flags that cannot be.
type usageError struct{ error }

// oneLine folds an error into one line: drivers put one address a line.
func oneLine(err error) string {
	lines := strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\t' || r == '\r' })
	return strings.Join(lines, " ")
}

type versionCommand struct{}

func (versionCommand) Run(s *streams) error {
	_, err := fmt.Fprintf(s.out, "commitcast %s %s %s/%s\n", buildVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}
