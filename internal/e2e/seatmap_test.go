package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/internal/services"
	"github.com/commitcast/commitcast/internal/testkit"
)

// The example of a React seat map in two tabs of a real browser: a seat that is taken in one goes grey in the other, and of
// two who take the same seat at once, one gets it, and the other a 409 and the fresh state.
func TestSeatmap(t *testing.T) {
	database := testkit.Database(t)
	n := start(t, database, "", "all")
	page := seatmap(t, database, strings.Replace(n.URL, "ws://", "http://", 1))
	ann, bob := openTab(t, page), openTab(t, page)
	seat := func(id string) string {
		return `document.querySelector("[aria-label^='Seat ` + id + `,']")`
	}
	css := func(id string) string { return `[aria-label^="Seat ` + id + `,"]` }
	for _, p := range []*tab{ann, bob} {
		p.until(`document.querySelector("small.live")`)
		if free := in[int](p, `document.querySelectorAll(".free").length`); free != 48 {
			t.Errorf("%d seats are free at the beginning", free)
		}
	}

	ann.Click(css("B4"))
	bob.until(seat("B4") + `.className === "taken"`)
	if !in[bool](bob, seat("B4")+`.disabled`) || in[string](ann, seat("B4")+`.className`) != "mine" {
		t.Error("B4 is ann's alone")
	}
	bob.until(`document.querySelector("p").innerText === "47 seats are free."`)
	ann.Click(css("B4")) // and back
	bob.until(seat("B4") + `.className === "free"`)

	// At once: the row is locked until both have asked.
	pool, err := pgxpool.New(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT FROM seat WHERE id = 'C5' FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	ann.Click(css("C5"))
	bob.Click(css("C5"))
	testkit.Eventually(t, soon, func() error {
		var waiting int
		err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%FROM seat%'`).Scan(&waiting)
		if err == nil && waiting != 2 {
			err = fmt.Errorf("%d wait", waiting)
		}
		return err
	}, "both wait for the row")
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	const fresh = "Somebody was faster. This is how it is now."
	won, lost := ann, bob
	testkit.Eventually(t, soon, func() error {
		for _, p := range []*tab{ann, bob} {
			if in[string](p, `document.querySelector("p").innerText`) == fresh {
				lost = p
				return nil
			}
		}
		return errors.New("nobody is")
	}, "one of them is told")
	if lost == ann {
		won = bob
	}
	won.until(seat("C5") + `.className === "mine"`)
	lost.until(seat("C5") + `.className === "taken"`)
	if text := in[string](won, `document.querySelector("p").innerText`); text != "47 seats are free." {
		t.Errorf("the other one is told %q", text)
	}
	var holders int
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM seat WHERE holder <> ''`).Scan(&holders); err != nil || holders != 1 {
		t.Errorf("%d seats are held (%v)", holders, err)
	}
}

// seatmap builds, bundles and runs the example, and returns the URL of its page.
func seatmap(t *testing.T, database, broadcaster string) string {
	t.Helper()
	if err := services.NPM(t.Context(), os.Stderr, "../../client/ts"); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{"index.html", "page.tsx"} {
		text, err := os.ReadFile(filepath.Join("../../examples/seatmap", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{
		{"node", "../../client/ts/scripts/example.mjs", dir},
		{"go", "build", "-o", filepath.Join(dir, "seatmap"), "../../examples/seatmap"},
	} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	cmd := exec.Command(filepath.Join(dir, "seatmap"), "-listen", "127.0.0.1:0", "-commitcast", broadcaster, "-dir", dir)
	cmd.Env = append(os.Environ(), "DATABASE_URL="+database)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said, url := make(chan struct{}), make(chan string, 1)
	go func() { // ends with the process
		defer close(said)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			if _, rest, ok := strings.Cut(lines.Text(), "open "); ok {
				url <- strings.TrimSuffix(rest, " in two windows")
			} else {
				t.Log(lines.Text())
			}
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-said
		cmd.Wait()
	})
	select {
	case u := <-url:
		return u
	case <-said:
	case <-time.After(soon):
	}
	t.Fatal("the example does not serve")
	return ""
}
