package app

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

var (
	anyFlag     = regexp.MustCompile(`--[a-z][a-z0-9-]*`)
	anyVariable = regexp.MustCompile(`\b(?:COMMITCAST_[A-Z_]+|DATABASE_URL|REDIS_URL)\b`)
	anyCommand  = regexp.MustCompile(`(?:args: \[|command: \[|bin/commitcast )([a-z, ]+)`)
)

// Every flag, variable and command of commitcast that files of ops/deploy and docs/deploying.md name is there.
func TestDeployedFlagsExist(t *testing.T) {
	parser, err := kong.New(&cli{}, capacityDefaults())
	if err != nil {
		t.Fatal(err)
	}
	flags, variables, commands := map[string]bool{}, map[string]bool{}, map[string]bool{}
	var walk func(n *kong.Node, path string)
	walk = func(n *kong.Node, path string) {
		for _, f := range n.Flags {
			flags["--"+f.Name] = true
			for _, e := range f.Envs {
				variables[e] = true
			}
		}
		for _, c := range n.Children {
			at := strings.TrimSpace(path + " " + c.Name)
			commands[at] = true
			walk(c, at)
		}
	}
	walk(parser.Model.Node, "")

	files := []string{"../../docs/deploying.md"}
	err = filepath.WalkDir("../../ops/deploy", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && slices.Contains([]string{"check", "prometheus", "grafana"}, d.Name()) {
			return filepath.SkipDir
		}
		if err == nil && !d.IsDir() {
			files = append(files, path)
		}
		return err
	})
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	seen := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			for _, v := range anyVariable.FindAllString(line, -1) {
				if seen++; !variables[v] {
					t.Errorf("%s: there is no variable %s", file, v)
				}
			}
			// Flags of others stand on their lines alone.
			if !strings.Contains(line, "redis-server") && !strings.Contains(line, "docker ") {
				for _, f := range anyFlag.FindAllString(line, -1) {
					if seen++; !flags[f] && f != "--help" {
						t.Errorf("%s: there is no flag %s", file, f)
					}
				}
			}
			if m := anyCommand.FindStringSubmatch(line); m != nil && !strings.Contains(line, "redis-server") {
				if seen++; !commands[strings.Join(strings.FieldsFunc(m[1], func(r rune) bool { return r == ',' || r == ' ' }), " ")] {
					t.Errorf("%s: there is no command %q", file, m[1])
				}
			}
		}
	}
	if seen < 50 {
		t.Errorf("%d names were looked at only", seen)
	}
}
