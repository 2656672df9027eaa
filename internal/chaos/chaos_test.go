package main

import (
	"context"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/commitcast/commitcast/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// tryTimeout bounds one run of the checker.
const tryTimeout = 4 * time.Minute

// checker runs a build of this program and returns what it said, and the names of the violations it found.
func checker(t *testing.T, binary string, args ...string) (said string, found []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), tryTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, append(args, "-v", "-out", t.TempDir())...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	out, err := cmd.CombinedOutput()
	said = string(out)
	for _, m := range regexp.MustCompile(`(?m)^violated: (\S+) `).FindAllStringSubmatch(said, -1) {
		found = append(found, m[1])
	}
	if code := cmd.ProcessState.ExitCode(); code != 0 && code != 1 {
		t.Fatalf("the checker did not come to an end: %v\n%s", err, said)
	}
	return said, found
}

// The product survives rounds of faults, and failovers that lose commits.
func TestRounds(t *testing.T) {
	binary, err := bug{}.build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"faults":   {"-rounds", "10", "-seed", "20", "-for", "40s"},
		"failover": {"-standby", "-rounds", "1", "-seed", "3"},
		"hosts":    {"-hosts", "-rounds", "7", "-seed", "2", "-for", "40s"},
		"cluster":  {"-hosts", "-redis", redisCluster, "-rounds", "1", "-seed", "1", "-faults", "net-apart-master", "-hold", "4s"},
		"sentinel": {"-hosts", "-redis", redisSentinel, "-rounds", "1", "-seed", "1", "-faults", "net-apart-master", "-hold", "4s"},
	} {
		t.Run(name, func(t *testing.T) {
			if (name == "cluster" || name == "sentinel") && os.Getenv("CHAOS") != "all" {
				t.Skip("a server of Redis takes its time to take over: CHAOS=all")
			}
			if slices.Contains(args, "-hosts") && (runtime.GOOS != "linux" || os.Geteuid() != 0) {
				t.Skip("hosts of one machine take Linux, and root")
			}
			if said, found := checker(t, binary, args...); len(found) > 0 {
				t.Errorf("violated: %v\n%s", found, said)
			}
		})
	}
}

// Every patch of a seeded bug still fits the source.
func TestBugsAreNotStale(t *testing.T) {
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[string]bool)
	for _, b := range bugs {
		if _, err := b.mutate(root, t.TempDir()); err != nil {
			t.Error(err)
		}
		if names[b.name] || len(b.caughtAs) == 0 || len(b.patches) == 0 {
			t.Errorf("bug %s is listed twice, or says too little", b.name)
		}
		names[b.name] = true
		if b.faults != "" {
			if _, err := parseKinds(b.faults, false, redisOne); err != nil {
				t.Errorf("bug %s: %v", b.name, err)
			}
		}
	}
	if len(bugs) < 20 {
		t.Errorf("%d bugs only", len(bugs))
	}
}

// tries is with how many seeds a bug must be caught: processes interleave as they like.
const tries = 3

// Every seeded bug is caught, and by its name. CHAOS=all for all of them, about half a minute each; only those that are
// caught within seconds otherwise.
func TestSeededBugs(t *testing.T) {
	for _, b := range bugs {
		if !b.fast && os.Getenv("CHAOS") != "all" {
			continue
		}
		t.Run(b.name, func(t *testing.T) {
			binary, err := b.build(t.Context(), t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			var last string
			for try := range tries {
				said, found := checker(t, binary, b.args(1+100*try)...)
				for _, name := range found {
					if slices.Contains(b.caughtAs, name) {
						t.Logf("caught as %s in try %d", strings.Join(found, ", "), try+1)
						return
					}
				}
				last = said
				t.Logf("try %d found %v", try+1, found)
			}
			t.Errorf("not caught as any of %v:\n%s", b.caughtAs, last)
		})
	}
}

// The schedule of a round follows from its seed, whatever came before.
func TestScheduleFollowsFromTheSeed(t *testing.T) {
	for seed := range uint64(200) {
		a, b := schedule(nil, seed, kinds, nil, 0), schedule(nil, seed, kinds, nil, 0)
		if (len(a) == 0) != (seed%quietEvery == 0) || len(a) != len(b) {
			t.Fatalf("seed %d: %d and %d faults", seed, len(a), len(b))
		}
		for i := range a {
			if a[i].kind.name != b[i].kind.name || a[i].at != b[i].at || a[i].hold != b[i].hold || a[i].r.Uint64() != b[i].r.Uint64() {
				t.Errorf("seed %d: fault %d differs", seed, i)
			}
		}
	}
}

func TestKindsAreDistinct(t *testing.T) {
	seen := make(map[string]bool)
	for _, k := range slices.Concat(kinds, networkKinds, replicatedKinds, clusterKinds, sentinelKinds) {
		if seen[k.name] || k.name == "" || strings.ContainsAny(k.name, ", ") {
			t.Errorf("kind %q", k.name)
		}
		seen[k.name] = true
	}
}
