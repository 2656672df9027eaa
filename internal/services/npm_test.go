package services

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// programs puts shell scripts of these names on PATH, and nothing else.
func programs(t *testing.T, scripts map[string]string) {
	t.Helper()
	dir := t.TempDir()
	for name, script := range scripts {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
}

func TestAnOldNodeIsNotGoodEnough(t *testing.T) {
	for _, c := range []struct {
		name    string
		scripts map[string]string
		want    string
	}{
		{"none", nil, "no Node.js found"},
		{"old", map[string]string{"node": "echo v16.20.2", "npm": ""}, "the Node.js here is 16.20.2"},
		{"without npm", map[string]string{"node": "echo v22.1.0"}, "no npm found beside Node.js 22.1.0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			programs(t, c.scripts)
			err := NPM(t.Context(), new(bytes.Buffer), t.TempDir())
			var missing *MissingError
			if !errors.As(err, &missing) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "install Node.js 18 or later with npm") {
				t.Errorf("want a MissingError with %q: %v", c.want, err)
			}
		})
	}
}

// Packages are installed when the lock file has changed, or the last installation failed; not otherwise.
func TestPackagesAreInstalledOnce(t *testing.T) {
	programs(t, map[string]string{"node": "echo v18.19.0", "npm": `
		[ "$1" = ci ] || exit 9
		[ -e fail ] && { echo cannot reach it; exit 1; }
		echo >>runs; [ -d node_modules ] || /bin/mkdir node_modules`})
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	install := func(runs int) {
		t.Helper()
		if err := NPM(t.Context(), nil, dir); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(filepath.Join(dir, "runs")); len(got) != runs {
			t.Errorf("npm ci ran %d times, want %d", len(got), runs)
		}
	}
	write("package.json", "{}")
	write("package-lock.json", "{}")
	write(".npmrc", "")
	write("fail", "")
	if err := NPM(t.Context(), nil, dir); err == nil || !strings.Contains(err.Error(), "cannot reach it") {
		t.Fatalf("a failure must say why: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "fail")); err != nil {
		t.Fatal(err)
	}
	install(1)
	install(1)
	write("package-lock.json", "{ }")
	install(2)
	install(2)
}
