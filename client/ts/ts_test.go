package ts

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/commitcast/commitcast/internal/services"
)

// within bounds one step, on a machine that is busy with other tests.
const within = 5 * time.Minute

// npm runs a script of package.json and returns what it says.
func npm(t *testing.T, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	cmd := exec.CommandContext(ctx, "npm", "run", "--silent", script)
	cmd.Env = append(os.Environ(), "REPORTER=tap")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // npm passes no signal on
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	output, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("npm run %s: %v\n%s", script, errors.Join(err, ctx.Err()), failures(string(output)))
	}
	return string(output)
}

// failures leaves out what node's tests say of themselves when they pass.
func failures(output string) string {
	var kept []string
	passed := false
	for line := range strings.Lines(output) {
		if strings.HasPrefix(line, "ok ") || strings.HasPrefix(line, "not ok ") {
			passed = strings.HasPrefix(line, "ok ")
		} else if passed && strings.HasPrefix(line, "  ") || strings.HasPrefix(line, "# Subtest: ") {
			continue
		}
		if !passed {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

// TestTypes is the TypeScript compiler over sources and tests.
func TestTypes(t *testing.T) {
	if err := services.NPM(t.Context(), os.Stderr, "."); err != nil {
		t.Fatal(err)
	}
	npm(t, "check")
}

// TestPackage runs the package's own tests: the model with its mutations, golden vectors, connection, persistence,
// React, sizes, and that the committed dist/commitcast.js is what the sources give.
func TestPackage(t *testing.T) {
	if err := services.NPM(t.Context(), os.Stderr, "."); err != nil {
		t.Fatal(err)
	}
	output := npm(t, "test")
	// A runner that finds no files passes, too.
	ran := regexp.MustCompile(`(?m)^# pass (\d{3,})$`).FindStringSubmatch(output)
	if ran == nil || !regexp.MustCompile(`(?m)^# (skipped|todo|cancelled) 0$`).MatchString(output) {
		t.Fatalf("it does not look like all tests:\n%s", output)
	}
	t.Logf("%s tests passed", ran[1])
}
