package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// patch replaces one piece of a file with another.
type patch struct{ file, old, new string }

// moduleRoot is the folder with go.mod, above the working folder.
func moduleRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if mod := strings.TrimSpace(string(out)); err == nil && filepath.Base(mod) == "go.mod" {
		return filepath.Dir(mod), nil
	}
	return "", fmt.Errorf("seeded bugs need the source: run inside the module (%v)", err)
}

// mutate writes the patched copies of a bug's files into dir, and returns the overlay that puts them in the place of
// the real ones for the go command. A patch must match exactly once: otherwise it is stale, which is an error.
func (b bug) mutate(root, dir string) (overlay string, err error) {
	texts := make(map[string]string)
	for _, p := range b.patches {
		text, have := texts[p.file]
		if !have {
			raw, err := os.ReadFile(filepath.Join(root, p.file))
			if err != nil {
				return "", fmt.Errorf("bug %s is stale: %w", b.name, err)
			}
			text = string(raw)
		}
		if n := strings.Count(text, p.old); n != 1 {
			return "", fmt.Errorf("bug %s is stale: its patch of %s matches %d times, not once: %q", b.name, p.file, n, p.old)
		}
		texts[p.file] = strings.Replace(text, p.old, p.new, 1)
	}
	replace := make(map[string]string)
	for file, text := range texts {
		copied := filepath.Join(dir, strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(copied, []byte(text), 0o644); err != nil {
			return "", err
		}
		replace[filepath.Join(root, file)] = copied
	}
	overlay = filepath.Join(dir, "overlay.json")
	raw, err := json.Marshal(map[string]any{"Replace": replace})
	if err == nil {
		err = os.WriteFile(overlay, raw, 0o644)
	}
	return overlay, err
}

// build builds this program, and so the whole product, with the bug inside. The zero bug is the product as it is.
func (b bug) build(ctx context.Context, dir string) (binary string, err error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	overlay, err := b.mutate(root, dir)
	if err != nil {
		return "", err
	}
	binary = filepath.Join(dir, "chaos")
	cmd := exec.CommandContext(ctx, "go", "build", "-overlay", overlay, "-o", binary, "./internal/chaos")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building with bug %s: %w\n%s", b.name, err, out)
	}
	return binary, nil
}

// args are the flags of a run that should catch the bug.
func (b bug) args(seed int) []string {
	rounds := b.rounds
	if rounds == 0 {
		rounds = 10
	}
	args := []string{"-rounds", fmt.Sprint(rounds), "-seed", fmt.Sprint(seed), "-until", strings.Join(b.caughtAs, ",")}
	if b.standby {
		args = append(args, "-standby")
	}
	if b.renew > 0 {
		args = append(args, "-renew", fmt.Sprint(b.renew))
	}
	if b.hold > 0 {
		args = append(args, "-hold", b.hold.String())
	}
	if b.faults != "" {
		args = append(args, "-faults", b.faults)
	}
	return args
}

// hostRounds is how many rounds of -hosts a bug is given: it was chosen for other faults.
const hostRounds = 40

// runBug is -bug; with hosts, faults are those of the network.
func runBug(ctx context.Context, o options) int {
	name := o.bug
	for _, b := range bugs {
		if name == "list" {
			fmt.Printf("%-26s %s; caught as %s\n", b.name, b.about, strings.Join(b.caughtAs, ", "))
			continue
		}
		if b.name != name {
			continue
		}
		dir, err := os.MkdirTemp("", "commitcast-bug-")
		if err != nil {
			fatal(err)
		}
		defer os.RemoveAll(dir)
		binary, err := b.build(ctx, dir)
		if err != nil {
			fatal(err)
		}
		args := b.args(1)
		if o.hosts {
			b.faults, b.hold, b.rounds, b.standby = o.faults, 0, hostRounds, false
			args = append(b.args(1), "-hosts", "-redis", o.redis)
		}
		cmd := exec.CommandContext(ctx, binary, append(args, "-v")...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.Run()
		return cmd.ProcessState.ExitCode()
	}
	if name != "list" {
		fatal(fmt.Errorf("there is no bug %q; -bug list lists them", name))
	}
	return 0
}
