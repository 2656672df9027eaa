package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// asUp makes the test binary behave as up itself.
const asUp = "COMMITCAST_TEST_UP"

func TestMain(m *testing.M) {
	if os.Getenv(asUp) != "" {
		main()
	}
	goleak.VerifyTestMain(m)
}

// upCommand is up with a temporary folder of its own, and without given servers.
func upCommand(t *testing.T, args ...string) (cmd *exec.Cmd, temp string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	temp, err = os.MkdirTemp("", "up-test-") // not TempDir: other users must get through
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(temp) })
	if err := os.Chmod(temp, 0o777); err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command(self, args...)
	cmd.Env = append(os.Environ(), asUp+"=1", "TMPDIR="+temp, "DATABASE_URL=", "REDIS_URL=")
	return cmd, temp
}

func mustBeEmpty(t *testing.T, temp string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(temp, "commitcast-*"))
	if err != nil || len(found) > 0 {
		t.Errorf("left: %v %v", found, err)
	}
}

func TestUpGivesTheCommandServersAndPassesItsCode(t *testing.T) {
	cmd, temp := upCommand(t, "--", "sh", "-c", `echo "$DATABASE_URL $REDIS_URL"; exit 7`)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("want code 7: %v\n%s", err, &errs)
	}
	if !strings.HasPrefix(string(out), "postgres://") || !strings.Contains(string(out), " redis://") {
		t.Errorf("the command saw %q", out)
	}
	mustBeEmpty(t, temp)
}

func TestUpEndsAllWhenInterrupted(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			// The command leaves a child behind, which ignores what the command ends by.
			cmd, temp := upCommand(t, "--", "sh", "-c", `sh -c 'trap "" INT TERM; while :; do sleep 60; done' & echo $!; wait`)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var child int
			if _, err := fmt.Fscan(bufio.NewReader(out), &child); err != nil {
				t.Error(err)
			}
			cmd.Process.Signal(sig)
			go io.Copy(io.Discard, out) // ends with the command
			err = cmd.Wait()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 128+int(sig) {
				t.Errorf("want code %d: %v", 128+int(sig), err)
			}
			mustBeEmpty(t, temp)
			deadline := time.Now().Add(10 * time.Second)
			for child > 0 && alive(child) {
				if time.Now().After(deadline) {
					syscall.Kill(child, syscall.SIGKILL)
					t.Fatal("a process of the command is still there")
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
}

// alive says whether a process runs; one that nobody has reaped does not.
func alive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(state, "Z")
}

func TestUpSaysInOneLineWhatIsWrong(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		env  string
		code int
		want string
	}{
		"no command":     {nil, "", 2, "usage"},
		"unknown":        {[]string{"--", "no-such-command"}, "", 1, "no-such-command"},
		"given database": {[]string{"--", "true"}, "DATABASE_URL=postgres://127.0.0.1:1/x", 1, "DATABASE_URL is set"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd, temp := upCommand(t, c.args...)
			if c.env != "" {
				cmd.Env = append(cmd.Env, c.env)
			}
			var errs bytes.Buffer
			cmd.Stderr = &errs
			err := cmd.Run()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != c.code {
				t.Errorf("want code %d: %v", c.code, err)
			}
			said := strings.Split(strings.TrimSpace(errs.String()), "\n")
			if last := said[len(said)-1]; !strings.Contains(last, c.want) {
				t.Errorf("want %q in the last line of %q", c.want, said)
			}
			mustBeEmpty(t, temp)
		})
	}
}
