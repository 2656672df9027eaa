package e2e

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/migrations"
)

var versionsBefore = flag.String("versions.before", "", "a commit with an older schema, to run beside this source in TestVersionsSideBySide; needs the history of this repository")

// A release with a new schema, under load: the schema moves on beneath running processes of the version before, which go on, in
// sessions that they had and in new ones; then they are replaced by the new version, beside which they have worked. Nobody misses
// an event or gets one twice. A process that starts with a schema that is not its own says what to do.
//
// The next version is this source with one more migration. With -versions.before, this source is the next version of a real older one.
func TestVersionsSideBySide(t *testing.T) {
	t.Run("next", func(t *testing.T) { sideBySide(t, testkit.Binary(t), nextVersion(t)) })
	if *versionsBefore != "" {
		t.Run("before", func(t *testing.T) { sideBySide(t, versionAt(t, *versionsBefore), testkit.Binary(t)) })
	}
}

func sideBySide(t *testing.T, before, next string) {
	database, redis := testkit.EmptyDatabase(t), testkit.RedisURL(t)
	env := []string{"DATABASE_URL=" + database, "REDIS_URL=" + redis}
	migrate := func(binary string) {
		t.Helper()
		if _, stderr, code := commandOf(t, binary, env, "migrate", "up"); code != 0 {
			t.Fatalf("migrate up: %s", stderr)
		}
	}
	refuses := func(binary, say string) {
		t.Helper()
		for kind, args := range map[string][]string{"worker": {"worker"}, "broadcaster": {"broadcaster", "--auth=off", "--listen=127.0.0.1:0"}} {
			if _, stderr, code := commandOf(t, binary, env, append(args, "--ops-listen=")...); code != 1 || !strings.Contains(stderr, say) {
				t.Errorf("a %s that starts with another schema: code %d, %q, want %q", kind, code, stderr, say)
			}
		}
	}
	migrate(before)
	refuses(next, `run "commitcast migrate up"`)
	balancer := testkit.NewBalancer(t)
	serve := func(binary string) *node {
		n := startOf(t, binary, database, redis, "broadcaster")
		balancer.Add(hostOf(n.URL), n.Ops+"/readyz")
		return n
	}
	oldWorker, oldBroadcaster := startOf(t, before, database, redis, "worker"), serve(before)
	testkit.Eventually(t, 10*time.Second, func() bool { return balancer.Ready() == 1 }, "clients find the broadcaster")
	c := startCrowd(t, database, "ws://"+balancer.Addr+"/v1/ws", 16, 16, 100)
	goesOn := func(what string) {
		t.Helper()
		c.mu.Lock()
		had := len(c.samples)
		c.mu.Unlock()
		testkit.Eventually(t, 10*time.Second, func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return len(c.samples) >= had+100
		}, "events go on coming %s", what)
	}
	goesOn("at first")
	migrate(next)
	refuses(before, "run a newer commitcast")
	goesOn("after the schema has moved on beneath the old processes")
	exec1(t, database, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'commitcast%'`)
	goesOn("in new sessions of the old processes")

	newWorker, newBroadcaster := startOf(t, next, database, redis, "worker"), serve(next)
	goesOn("with both versions side by side")
	terminate(t, oldWorker)
	goesOn("with a new worker and an old broadcaster")
	terminate(t, oldBroadcaster)
	c.allUp()
	goesOn("with the new version")
	_, _ = newWorker, newBroadcaster
	c.stop()
}

// nextVersion builds this source with one more migration.
func nextVersion(t *testing.T) string {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	replace := map[string]string{}
	for _, way := range []string{"up", "down"} {
		replace[filepath.Join(root, "migrations", fmt.Sprintf("%04d_next.%s.sql", migrations.Latest()+1, way))] = filepath.Join(root, "internal/e2e/testdata", "next."+way+".sql")
	}
	overlay, _ := json.Marshal(map[string]any{"Replace": replace})
	return build(t, root, "-overlay="+testkit.File(t, "overlay.json", overlay))
}

// versionAt builds the source as it was at a commit.
func versionAt(t *testing.T, commit string) string {
	dir := t.TempDir()
	for _, args := range [][]string{{"clone", "-q", "--shared", "../..", dir}, {"-C", dir, "checkout", "-q", commit}} {
		if out, err := exec.Command("git", args...).CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	return build(t, dir)
}

func build(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "commitcast")
	cmd := exec.Command("go", append(append([]string{"build", "-o", out}, args...), "./cmd/commitcast")...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOWORK=off")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %v: %v\n%s", args, err, text)
	}
	return out
}
