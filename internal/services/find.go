package services

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The oldest versions that Commitcast works with.
const (
	minPostgres = 14
	minRedis    = 7
)

// minNode is the oldest Node.js that runs the tests of the TypeScript package: Debian 12 and Ubuntu 24.04 have it.
const minNode = 18

// program is an executable that was found.
type program struct {
	path    string
	argv0   string // what it must be called, "" = its path
	version string // as in 15.4
}

// askTimeout bounds asking a program for its version.
const askTimeout = 10 * time.Second

var versionNumber = regexp.MustCompile(`\d+(\.\d+)*`)

// ask runs a program with an argument and returns what it prints.
func (p program) ask(arg string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.path, arg)
	if p.argv0 != "" {
		cmd.Args[0] = p.argv0
	}
	out, err := cmd.Output()
	return string(out), err
}

// findPostgres finds a folder with postgres and initdb of a version that will do: the one on PATH if possible, else
// the newest of the usual places.
func findPostgres() (program, error) {
	var first, rest []string // folders
	if path, err := exec.LookPath("postgres"); err == nil {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			first = append(first, filepath.Dir(real)) // with its other programs beside it
		}
		first = append(first, filepath.Dir(path))
	}
	if path, err := exec.LookPath("pg_config"); err == nil {
		if dir, err := (program{path: path}).ask("--bindir"); err == nil {
			first = append(first, oneLine(dir))
		}
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin",         // Debian, Ubuntu
		"/usr/pgsql-*/bin",                  // Red Hat, from postgresql.org
		"/opt/homebrew/opt/postgresql*/bin", // macOS, Apple silicon
		"/usr/local/opt/postgresql*/bin",    // macOS, Intel
		"/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",
		"/usr/local/pgsql/bin", // from source
	} {
		dirs, _ := filepath.Glob(pattern)
		rest = append(rest, dirs...)
	}
	// Newest first, by the number in the path.
	number := func(dir string) int { n, _ := strconv.Atoi(versionNumber.FindString(dir)); return n }
	slices.SortStableFunc(rest, func(a, b string) int { return cmp.Compare(number(b), number(a)) })

	old := ""
	for _, dir := range append(first, rest...) {
		p := program{path: filepath.Join(dir, "postgres")}
		if _, err := os.Stat(filepath.Join(dir, "initdb")); err != nil {
			continue
		}
		text, err := p.ask("--version")
		if err != nil {
			continue
		}
		p.version = versionNumber.FindString(text)
		if major(p.version) >= minPostgres {
			return p, nil
		}
		old = p.version
	}
	if old != "" {
		return program{}, fmt.Errorf("the Postgres here is %s", old)
	}
	return program{}, fmt.Errorf("no Postgres server found")
}

// findRedis finds redis-server. Debian's redis-check-rdb is the same program: called redis-server it is one, and its
// package does not bring a service of the system.
func findRedis() (program, error) {
	old := ""
	for _, name := range []string{"redis-server", "/opt/homebrew/bin/redis-server", "/usr/local/bin/redis-server", "redis-check-rdb"} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		p := program{path: path, argv0: "redis-server"}
		text, err := p.ask("--version")
		if err != nil {
			continue
		}
		p.version = versionNumber.FindString(text)
		if major(p.version) >= minRedis {
			return p, nil
		}
		old = p.version
	}
	if old != "" {
		return program{}, fmt.Errorf("the Redis here is %s", old)
	}
	return program{}, fmt.Errorf("no Redis server found")
}

// FindChromium returns the path of a Chromium or Chrome: the environment variable CHROME_BIN if set, else the first
// of the usual names. Nothing is installed.
func FindChromium() (string, error) {
	if path := os.Getenv("CHROME_BIN"); path != "" {
		if _, err := exec.LookPath(path); err != nil {
			return "", fmt.Errorf("CHROME_BIN is set, but cannot be used: %w", err)
		}
		return path, nil
	}
	for _, name := range []string{
		"chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "headless-shell",
		"/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
		"/Applications/Chromium.app/Contents/MacOS/Chromium",
	} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		// Ubuntu's is a script that asks for a snap.
		if _, err := (program{path: path}).ask("--version"); err == nil || name != "chromium-browser" {
			return path, nil
		}
	}
	return "", fmt.Errorf("no Chromium found")
}

// findNode finds Node.js, with npm.
func findNode() (program, error) {
	path, err := exec.LookPath("node")
	if err != nil {
		return program{}, fmt.Errorf("no Node.js found")
	}
	p := program{path: path}
	text, err := p.ask("--version")
	if err != nil {
		return program{}, fmt.Errorf("%s --version: %w", path, err)
	}
	p.version = versionNumber.FindString(text)
	if major(p.version) < minNode {
		return program{}, fmt.Errorf("the Node.js here is %s", p.version)
	}
	if _, err := exec.LookPath("npm"); err != nil {
		return program{}, fmt.Errorf("no npm found beside Node.js %s", p.version)
	}
	return p, nil
}

// findCompiler finds a C compiler, which Go's race detector needs.
func findCompiler() (program, error) {
	for _, name := range []string{cmp.Or(os.Getenv("CC"), "cc"), "gcc", "clang"} {
		if path, err := exec.LookPath(name); err == nil {
			return program{path: path}, nil
		}
	}
	return program{}, fmt.Errorf("no C compiler found")
}

// findProgram finds a program on PATH, or where those are that only root runs.
func findProgram(name string) func() (program, error) {
	return func() (program, error) {
		for _, path := range []string{os.Getenv(strings.ToUpper(name) + "_BIN"), name, "/usr/sbin/" + name, "/opt/homebrew/bin/" + name, "/usr/local/bin/" + name} {
			if path, err := exec.LookPath(path); err == nil {
				return program{path: path}, nil
			}
		}
		return program{}, fmt.Errorf("no %s found", name)
	}
}
