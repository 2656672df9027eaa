package services

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

const (
	// npmTimeout bounds an `npm ci`: a compiler over a slow line.
	npmTimeout = 10 * time.Minute
	// npmStamp is the file in node_modules that says from what they were installed.
	npmStamp = ".commitcast"
)

// NPM sees to Node.js and to the packages of a folder: it runs `npm ci` there, unless node_modules are what the lock
// file says. Processes that ask for the same folder at once wait for each other.
func NPM(ctx context.Context, out io.Writer, dir string) error {
	if err := EnsureNode(ctx, out); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, npmTimeout)
	defer cancel()
	unlock, err := lockFile(ctx, filepath.Join(dir, "package-lock.json"), os.O_RDONLY)
	if err != nil {
		return err
	}
	defer unlock()

	hash := sha256.New()
	for _, name := range []string{"package.json", "package-lock.json", ".npmrc"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return fmt.Errorf("npm ci: %w", err)
		}
		fmt.Fprintf(hash, "%s %d\n", name, len(text))
		hash.Write(text)
	}
	want := runtime.GOOS + " " + runtime.GOARCH + " " + hex.EncodeToString(hash.Sum(nil)) + "\n"
	stamp := filepath.Join(dir, "node_modules", npmStamp)
	if have, err := os.ReadFile(stamp); err == nil && string(have) == want {
		return nil
	}
	cmd := exec.CommandContext(ctx, "npm", "ci", "--no-audit", "--no-fund")
	cmd.Dir = dir
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("npm ci in %s: %w\n%s", dir, err, output)
	}
	return os.WriteFile(stamp, []byte(want), 0o644)
}
