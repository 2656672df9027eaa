package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/ops"
)

// One client first: the clients of a subject, at two broadcasters, have the events of a topic that is set aside before it is redriven for
// all. What cannot be is refused and changes nothing; the record says who, what and to whom; and everybody sees each event once.
func TestRedriveToOneClientFirst(t *testing.T) {
	t.Parallel()
	server := testkit.Redis(t)
	admin := redis.NewClient(server.Options())
	t.Cleanup(func() { admin.Close() })
	database, url := testkit.Database(t), server.URL()
	issuer := testkit.NewIssuer(t)
	start(t, database, url, "worker")
	flags := []string{"--auth=jwt", "--jwt-alg=EdDSA", "--jwt-key-file=" + issuer.File(t), "--jwt-audience=" + testkit.Audience}
	b1 := start(t, database, url, append([]string{"broadcaster", "--node=b1"}, flags...)...)
	b2 := start(t, database, url, append([]string{"broadcaster", "--node=b2"}, flags...)...)
	ann1, ann2, bob := followAs(t, b1, issuer, "ann"), followAs(t, b2, issuer, "ann"), followAs(t, b2, issuer, "bob")
	everybody := []*testkit.Client{ann1, ann2, bob}
	exec1(t, database, `SELECT commitcast.append('t', 'test', '1') FROM generate_series(1, 5)`)
	for _, c := range everybody {
		c.ExpectEvents("t", 1, 5)
	}

	refused := func(code int, says string, args ...string) {
		t.Helper()
		out, stderr, got := operate(t, database, url, append([]string{"redrive"}, args...)...)
		if got != code || !strings.Contains(stderr, says) || out != "" {
			t.Errorf("%v: code %d, %s%s; want %d, %q", args, got, out, stderr, code, says)
		}
	}
	refused(5, "is not set aside", "t", "--first=ann", "--yes")
	refused(2, "one client first is for a topic that is set aside", "t", "--first=ann", "--from=1", "--yes")
	refused(1, "nope", "nope", "--first=ann", "--yes")
	if _, stderr, code := operate(t, database, url, "park", "t", "--yes"); code != 0 {
		t.Fatalf("park: %d, %s", code, stderr)
	}
	exec1(t, database, `SELECT commitcast.append('t', 'test', '1') FROM generate_series(1, 2000)`)
	records := func() []ops.Record {
		t.Helper()
		list, _ := look[[]ops.Record](t, database, url, "audit")
		return list
	}
	before := len(records())
	refused(1, `no client with a token of the subject "eve" follows "t", at any of 2 broadcasters`, "t", "--first=eve", "--yes")
	refused(5, "redrive it without a range", "t", "--first=ann", "--from=1", "--yes")
	if n := len(records()); n != before {
		t.Errorf("%d records of what was not done", n-before)
	}
	if _, stderr, code := operate(t, testkit.As(t, database, "reader"), url, "redrive", "t", "--first=ann", "--yes"); code == 0 || !strings.Contains(stderr, "commitcast_operator") {
		t.Errorf("a reader: code %d, %s", code, stderr)
	}
	if _, stderr, code := operate(t, database, url, "redrive", "t", "--first=ann", "--dry-run"); code != 0 || !strings.Contains(stderr, "2 subscriptions of ann") || !strings.Contains(stderr, "2,000 events of t, 6 to 2005") {
		t.Errorf("dry run: code %d, %s", code, stderr)
	}

	out, stderr, code := operate(t, database, url, "redrive", "t", "--first=ann", "--yes")
	if code != 0 || strings.Count(out, "has been sent everything up to 2005") != 2 || !strings.Contains(out, "b1: session ") || !strings.Contains(out, "b2: session ") ||
		!strings.Contains(out, "For all, now: commitcast ops redrive t\n") {
		t.Fatalf("first: code %d, %s%s", code, out, stderr)
	}
	ann1.ExpectEvents("t", 6, 2005)
	ann2.ExpectEvents("t", 6, 2005)
	if h := heldByRedis(t, admin, "t"); len(h) != 5 {
		t.Errorf("Redis has %d events before the redrive for all", len(h))
	}
	f, code := look[ops.First](t, database, url, "redrive", "t", "--first=ann") // --json asks nobody
	if code != 0 || f.Subject != "ann" || f.First != 6 || f.Last != 2005 || f.Next != "commitcast ops redrive t" || len(f.Nodes) != 2 {
		t.Errorf("as JSON: code %d, %+v", code, f)
	}
	if topic, _ := look[ops.Topic](t, database, url, "topic", "t"); topic.Parked == nil {
		t.Error("the topic is no longer set aside")
	}
	var detail struct {
		Subject     string
		First, Last int64
	}
	r := records()[0]
	if json.Unmarshal(r.Detail, &detail); r.Action != "redrive first" || r.Who != "alice" || r.Target != "t" || detail.Subject != "ann" || detail.First != 6 || detail.Last != 2005 ||
		r.Result != "done: 2 subscriptions at 2005 or later" {
		t.Errorf("the record: %+v %s", r, r.Detail)
	}

	// While a broadcaster cannot be asked, nobody says that all are there.
	if err := b2.Cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	_, stderr, code = operate(t, database, url, "redrive", "t", "--first=ann", "--yes")
	if err := b2.Cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if code != 1 || !strings.Contains(stderr, "cannot be asked") || strings.Contains(stderr, "database") {
		t.Errorf("with a node that hangs: code %d, %s", code, stderr)
	}

	// What another operator has redriven meanwhile is refused.
	pool, err := pgxpool.New(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	console := ops.New(pool, nil, ops.Config{})
	t.Cleanup(console.Close)
	plan, err := console.PlanRedrive(t.Context(), "t", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if out, stderr, code := operate(t, database, url, "redrive", "t", "--yes"); code != 0 || !strings.Contains(out, "2,000 of 2,000 events published: done") {
		t.Errorf("for all: code %d, %s%s", code, out, stderr)
	}
	testkit.Eventually(t, 20*time.Second, func() error {
		if _, err := console.GoFirst(t.Context(), plan, "ann", func(*ops.First) {}); !errors.Is(err, ops.ErrConflict) {
			return fmt.Errorf("%w", err)
		}
		return nil
	}, "a plan that is no longer so is refused")
	bob.ExpectEvents("t", 6, 2005)
	exec1(t, database, `SELECT commitcast.append('t', 'test', '1')`)
	for _, c := range everybody {
		c.ExpectEvents("t", 2006, 2006) // and nothing twice before it
	}
	if h := heldByRedis(t, admin, "t"); len(h) != 2006 {
		t.Errorf("Redis has %d events", len(h))
	}
}
