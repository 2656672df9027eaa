package testkit

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Mutation takes one rule out of the source of the package under test, to see a test turn red for it. What the
// product does is not changed by any flag: the mutations are made in a copy of the source.
type Mutation struct {
	Name   string   // what is missing
	File   string   // in the package's folder
	After  string   // where Old is looked for: behind this text; anywhere, if empty
	Old    string   // statements that stand there once, or a condition
	New    string   // what stands there instead
	Cond   bool     // Old and New are conditions
	Caught string   // the test fails and says this
	Args   []string // more arguments of the binary
}

// Mutants runs one test of the package under test with each mutation in turn and fails where it stays green. All
// mutations are compiled into one binary, as branches on a variable. args are given to the binary.
func Mutants(t *testing.T, test string, mutations []Mutation, args ...string) {
	t.Helper()
	folder, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	binary := mutated(t, folder, mutations)
	for _, m := range mutations {
		t.Run(strings.ReplaceAll(m.Name, " ", "-"), func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), binary, slices.Concat([]string{"-test.run=^" + test + "$"}, args, m.Args)...)
			cmd.Dir = folder
			cmd.Env = append(os.Environ(), "MUTANT="+m.Name)
			out, err := cmd.CombinedOutput()
			said := strings.SplitN(string(out), "\n", 12)
			switch {
			case err == nil:
				t.Errorf("%s stays green without: %s", test, m.Name)
			case !strings.Contains(string(out), m.Caught):
				t.Errorf("%s is red, but does not say %q:\n%s", test, m.Caught, strings.Join(said, "\n"))
			default:
				for _, line := range said {
					if strings.Contains(line, m.Caught) {
						t.Log(strings.TrimSpace(line))
						break
					}
				}
			}
		})
	}
}

// mutated compiles the test binary of a package with all mutations in it.
func mutated(t *testing.T, folder string, mutations []Mutation) string {
	t.Helper()
	sources := make(map[string]string)
	for _, m := range mutations {
		source, ok := sources[m.File]
		if !ok {
			text, err := os.ReadFile(filepath.Join(folder, m.File))
			if err != nil {
				t.Fatal(err)
			}
			source = string(text)
			if strings.Contains(source, "MUTANT") {
				t.Fatalf("%s reads MUTANT", m.File)
			}
		}
		head, tail, ok := strings.Cut(source, m.After)
		if n := strings.Count(tail, m.Old); !ok || n == 0 || n > 1 && m.After == "" {
			t.Fatalf("%s: %q stands %d times in %s; it must stand there once", m.Name, m.Old, n, m.File)
		}
		branch := "if mutant == %q {\n%s\n} else {\n%s\n}"
		if m.Cond {
			branch = "(mutant == %q && (%s) || mutant != \"" + m.Name + "\" && (%s))"
		}
		sources[m.File] = head + m.After + strings.Replace(tail, m.Old, fmt.Sprintf(branch, m.Name, m.New, m.Old), 1)
	}
	scratch := t.TempDir()
	replace := make(map[string]string)
	write := func(name, text string) {
		path := filepath.Join(scratch, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[filepath.Join(folder, name)] = path
	}
	var pkg string
	for name, text := range sources {
		write(name, text)
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "package ") {
				pkg = line
			}
		}
	}
	write("mutant.go", pkg+"\nimport \"os\"\n\nvar mutant = os.Getenv(\"MUTANT\")\n")
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	overlayFile := filepath.Join(scratch, "overlay.json")
	if err := os.WriteFile(overlayFile, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(scratch, "mutated.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-overlay", overlayFile, "-o", binary, ".")
	build.Dir = folder
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("compiling the mutations: %v\n%s", err, out)
	}
	return binary
}
