package commitcast_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// The folders are the stages of the architecture, and imports run one way. This test reads what every package imports
// and holds it to the table below (docs/architecture.md tells the reasons).

const module = "github.com/commitcast/commitcast"

// Modules of others, by the prefix of their import paths.
const (
	pgx        = "github.com/jackc/pgx/v5"
	river      = "github.com/riverqueue/river"
	riverui    = "riverqueue.com/riverui"
	goRedis    = "github.com/redis/go-redis/v9"
	websocket  = "github.com/coder/websocket"
	prometheus = "github.com/prometheus/client_golang"
	kong       = "github.com/alecthomas/kong"
	otelTrace  = "go.opentelemetry.io/otel/trace"
	goleak     = "go.uber.org/goleak"
	sync       = "golang.org/x/sync"
	xrate      = "golang.org/x/time"
	xsys       = "golang.org/x/sys"
	jwt        = "github.com/golang-jwt/jwt/v5"
	jwkset     = "github.com/MicahParks/jwkset"
	chromedp   = "github.com/chromedp"
	anything   = "*"
)

// rule says what the code of a package, without its tests, may import besides the standard library.
type rule struct {
	ours   []string // packages of this module, by path in it; "x/..." = x and all below
	theirs []string // modules of others
	never  []string // modules that may not come in by way of our packages either
	by     []string // who may import it; nil = whom their own rules let
}

var rules = map[string]rule{
	"wire":   {},
	"stream": {ours: []string{"wire"}, theirs: []string{goRedis, prometheus}, never: []string{pgx, river}},
	// The API only, which says what span a context has: whoever records spans brings the rest.
	"outbox": {theirs: []string{pgx, otelTrace}, never: []string{river, goRedis}},
	// migrations, since it owns the name of the schema that River's tables are in.
	"worker": {
		ours:   []string{"outbox", "stream", "wire", "migrations", "internal/journal", "internal/pool"},
		theirs: []string{pgx, river, prometheus, sync},
	},
	"broadcaster": {
		ours: []string{"stream", "wire", "auth"}, theirs: []string{websocket, prometheus, sync, xrate},
		never: []string{pgx, river, jwt, jwkset},
	},
	// What a token is made of is known below auth/token only: who brings a Verifier of his own needs none of it.
	"auth":       {ours: []string{"wire"}, theirs: []string{prometheus, sync}, never: []string{jwt, jwkset}},
	"auth/token": {ours: []string{"auth", "wire"}, theirs: []string{jwt, jwkset}, never: []string{pgx, river, goRedis}},
	"client":     {ours: []string{"wire"}, theirs: []string{websocket}, never: []string{pgx, river, goRedis}},
	// The TypeScript package as files; a Go program may serve them.
	"client/ts":  {},
	"migrations": {theirs: []string{pgx, river}},
	"ops": {
		ours:   []string{"outbox", "stream", "wire", "worker", "broadcaster", "migrations", "internal/journal"},
		theirs: []string{pgx, river, prometheus, sync, websocket},
	},
	// What operators see in a browser: it asks package ops, and River's interface for its jobs.
	"ops/console": {ours: []string{"ops", "client/ts", "migrations"}, theirs: []string{pgx, river, riverui, xrate}},

	// As somebody else's program would be.
	"examples/...": {ours: []string{"outbox"}, theirs: []string{pgx}, by: []string{}},

	"internal/journal": {ours: []string{"wire"}, theirs: []string{pgx}},
	"internal/pool":    {theirs: []string{pgx, prometheus}},
	"internal/canary":  {ours: []string{"wire", "auth"}, theirs: []string{pgx, websocket, prometheus}, by: []string{"internal/app"}},
	"internal/app":     {ours: []string{anything}, theirs: []string{anything}},

	// Not the product: what shows, tests and measures it.
	"internal/services": {theirs: []string{pgx, goRedis},
		by: []string{"internal/services/...", "internal/testkit/...", "internal/bench/...", "internal/chaos", "cmd/demo/..."}},
	"internal/network":     {theirs: []string{xsys}, by: []string{"internal/chaos"}},
	"internal/services/up": {ours: []string{"internal/services"}},
	"internal/testkit":     {ours: []string{anything}, theirs: []string{anything}, by: []string{"internal/chaos"}},
	"internal/testkit/...": {ours: []string{"internal/services"}, theirs: []string{chromedp}, by: []string{}},
	"internal/chaos":       {ours: []string{anything}, theirs: []string{anything}, by: []string{}},
	"internal/attack":      {ours: []string{anything}, theirs: []string{anything}, by: []string{}},
	"internal/bench/...":   {ours: []string{anything}, theirs: []string{anything}},
	"internal/e2e/...":     {ours: []string{anything}, theirs: []string{anything}},
	"internal/gameday":     {ours: []string{anything}, theirs: []string{anything}, by: []string{}},

	// Compositions; nothing imports them but what lies below the same command.
	"cmd/commitcast/...": {ours: []string{anything}, theirs: []string{anything}, by: []string{"cmd/commitcast/..."}},
	"cmd/demo/...":       {ours: []string{anything}, theirs: []string{anything}, by: []string{"cmd/demo/..."}},
}

// pkg is what `go list -json` says of a package.
type pkg struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func TestImportsRunOneWay(t *testing.T) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var packages []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		packages = append(packages, p)
	}
	if len(packages) < 10 {
		t.Fatalf("go list knows %d packages only", len(packages))
	}
	for _, v := range violations(packages) {
		t.Error(v)
	}
}

// violations holds packages to the rules.
func violations(packages []pkg) []string {
	byPath := map[string]pkg{}
	for _, p := range packages {
		byPath[p.ImportPath] = p
	}
	var found []string
	complain := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }

	for _, p := range packages {
		name := ownName(p.ImportPath)
		if name == "" {
			continue // the root has tests only
		}
		r, ok := ruleOf(name)
		if !ok {
			complain("%s has no rule: add one to imports_test.go", name)
			continue
		}
		for _, path := range p.Imports {
			switch own := ownName(path); {
			case own == "" && !isStandard(path) && !allows(r.theirs, path):
				complain("%s must not import %s", name, path)
			case own != "" && !allows(r.ours, own) && !inside(own, name):
				complain("%s must not import %s", name, own)
			}
		}
		for path, way := range reached(byPath, p.ImportPath) {
			if matches(r.never, path) {
				complain("%s must not depend on %s, by way of %s", name, path, strings.Join(way, " → "))
			}
		}
		for _, path := range p.Imports {
			own := ownName(path)
			if imported, ok := ruleOf(own); own != "" && ok && imported.by != nil && !allows(imported.by, name) {
				complain("%s is not for %s to import", own, name)
			}
		}
		for _, path := range slices.Concat(p.TestImports, p.XTestImports) {
			if own := ownName(path); strings.HasPrefix(own, "cmd/") && !inside(own, name) && !inside(name, own) {
				complain("tests of %s must not import %s", name, own)
			}
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// reached is every package of others that a package depends on through packages of ours, with one way to it.
func reached(byPath map[string]pkg, from string) map[string][]string {
	ways := map[string][]string{}
	seen := map[string]bool{}
	var walk func(path string, way []string)
	walk = func(path string, way []string) {
		if seen[path] {
			return
		}
		seen[path] = true
		for _, next := range byPath[path].Imports {
			if own := ownName(next); own != "" {
				walk(next, append(slices.Clone(way), own))
			} else if !isStandard(next) {
				ways[next] = way
			}
		}
	}
	walk(from, []string{ownName(from)})
	return ways
}

// ruleOf finds the rule of a package: its own, or the nearest one for all below a folder.
func ruleOf(name string) (rule, bool) {
	if r, ok := rules[name]; ok {
		return r, true
	}
	for folder := name; folder != ""; {
		if r, ok := rules[folder+"/..."]; ok {
			return r, true
		}
		folder = folder[:max(strings.LastIndex(folder, "/"), 0)]
	}
	// A part that a package keeps in a folder internal to it goes by the package's rule.
	if outer, _, ok := strings.Cut(name, "/internal/"); ok {
		return ruleOf(outer)
	}
	return rule{}, false
}

// ownName is the path of one of our packages in the module, "" for others and for the root.
func ownName(path string) string {
	name, ok := strings.CutPrefix(path, module+"/")
	if !ok {
		return ""
	}
	return name
}

// inside says whether a package lies in the folder of another.
func inside(inner, outer string) bool { return inner == outer || strings.HasPrefix(inner, outer+"/") }

// isStandard: import paths of others begin with a host name.
func isStandard(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".")
}

// allows says whether a list has a package: itself, a folder with "/...", a module it belongs to, or anything.
func allows(list []string, path string) bool {
	return slices.Contains(list, anything) || matches(list, path)
}

func matches(list []string, path string) bool {
	return slices.ContainsFunc(list, func(entry string) bool {
		if ownEntry, ok := strings.CutSuffix(entry, "/..."); ok {
			return inside(path, ownEntry)
		}
		return path == entry || strings.Contains(entry, ".") && inside(path, entry)
	})
}

func TestViolationsAreFound(t *testing.T) {
	own := func(name string, imports ...string) pkg {
		for i, path := range imports {
			if isStandard(path) && strings.HasPrefix(path, "~") {
				imports[i] = module + "/" + path[1:]
			}
		}
		return pkg{ImportPath: module + "/" + name, Imports: imports}
	}
	clean := []pkg{
		{ImportPath: module, XTestImports: []string{"testing"}},
		own("wire", "encoding/json"),
		own("stream", "~wire", goRedis, prometheus+"/prometheus"),
		own("outbox", pgx, pgx+"/pgxpool"),
		own("worker", "~stream", "~wire", "~internal/journal", river, river+"/rivertype", pgx),
		own("broadcaster", "~stream", "~wire", websocket),
		own("internal/journal", "~wire", pgx),
		own("internal/app", "~broadcaster", "~worker", kong),
		own("internal/services", pgx, goRedis),
		own("internal/testkit", "~internal/services", goleak),
		own("cmd/commitcast", "~internal/app"),
		own("cmd/demo", "~cmd/demo/lmsr", "~internal/services"),
		own("cmd/demo/lmsr"),
	}
	if got := violations(clean); len(got) > 0 {
		t.Fatalf("a clean list is refused: %q", got)
	}

	for _, c := range []struct {
		name  string
		wrong pkg
		want  []string
	}{
		{"third party in wire", own("wire", goRedis), []string{
			"wire must not import " + goRedis,
		}},
		{"pgx in broadcaster", own("broadcaster", "~wire", pgx+"/pgxpool"), []string{
			"broadcaster must not depend on " + pgx + "/pgxpool, by way of broadcaster",
			"broadcaster must not import " + pgx + "/pgxpool",
		}},
		{"pgx in broadcaster by way of stream", own("stream", "~wire", pgx), []string{
			"broadcaster must not depend on " + pgx + ", by way of broadcaster → stream",
			"stream must not depend on " + pgx + ", by way of stream",
			"stream must not import " + pgx,
		}},
		{"River in broadcaster by way of wire", own("wire", river+"/rivertype"), []string{
			"broadcaster must not depend on " + river + "/rivertype, by way of broadcaster → stream → wire",
			"stream must not depend on " + river + "/rivertype, by way of stream → wire",
			"wire must not import " + river + "/rivertype",
		}},
		{"ours in outbox", own("outbox", pgx, "~wire"), []string{"outbox must not import wire"}},
		{"a stage backwards", own("stream", "~worker"), []string{"stream must not import worker"}},
		{"a command", own("worker", "~cmd/commitcast"), []string{
			"cmd/commitcast is not for worker to import", "worker must not import cmd/commitcast",
		}},
		{"a command by the composition root", own("internal/app", "~cmd/demo/lmsr"), []string{
			"cmd/demo/lmsr is not for internal/app to import",
		}},
		{"a command by a test", pkg{ImportPath: module + "/wire", TestImports: []string{module + "/cmd/demo"}}, []string{
			"tests of wire must not import cmd/demo",
		}},
		{"testkit in the product", own("internal/app", "~internal/testkit"), []string{
			"internal/testkit is not for internal/app to import",
		}},
		{"services in the product", own("cmd/commitcast", "~internal/services"), []string{
			"internal/services is not for cmd/commitcast to import",
		}},
		{"a folder without a rule", own("util", "strings"), []string{"util has no rule: add one to imports_test.go"}},
		{"a module whose name begins alike", own("outbox", pgx+"evil"), []string{"outbox must not import " + pgx + "evil"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			list := slices.Clone(clean)
			if i := slices.IndexFunc(list, func(p pkg) bool { return p.ImportPath == c.wrong.ImportPath }); i >= 0 {
				list[i] = c.wrong
			} else {
				list = append(list, c.wrong)
			}
			got := violations(list)
			for _, want := range c.want {
				if !slices.Contains(got, want) {
					t.Errorf("not found: %s\nin %s", want, strings.Join(got, "\n   "))
				}
			}
		})
	}
}
