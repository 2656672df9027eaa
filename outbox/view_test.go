package outbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/outbox"
)

func TestSnapshotHandler(t *testing.T) {
	pool := fresh(t)
	epoch := one[string](t, pool, `SELECT commitcast.check_epoch()`)
	h := accountView(t, pool).SnapshotHandler()
	got := ask(h, "GET", "/account?id=1", "")
	want := fmt.Sprintf(`{"state":{"balance":0},"topic":"account:1","cursor":"%s:0","epoch":"%s","pending":[]}`, epoch, epoch)
	if got.status != 200 || got.text != want || got.header.Get("Content-Type") != "application/json" ||
		got.header.Get("Cache-Control") != "private, no-cache" || got.header.Get("Vary") != "Authorization, Cookie" {
		t.Errorf("%d %v %s, want %s", got.status, got.header, got.text, want)
	}
	tag := got.header.Get("ETag")
	for _, seen := range []string{tag, `"x", ` + strings.TrimPrefix(tag, "W/")} {
		if same := ask(h, "GET", "/account?id=1", "", "If-None-Match", seen); same.status != 304 || same.text != "" || same.header.Get("ETag") != tag {
			t.Errorf("If-None-Match %s: %d %s", seen, same.status, same.text)
		}
	}
	// A change, and then its offset, make another snapshot each.
	depositIn(t, pool, 1)
	pending := ask(h, "GET", "/account?id=1", "", "If-None-Match", tag)
	if pending.status != 200 || fmt.Sprint(pending.body["pending"]) != fmt.Sprint(one[[]int64](t, pool, `SELECT array_agg(id) FROM commitcast.outbox`)) {
		t.Errorf("pending: %d %s", pending.status, pending.text)
	}
	sequenceAll(t, pool)
	if after := ask(h, "GET", "/account?id=1", "", "If-None-Match", pending.header.Get("ETag")); after.status != 200 || after.body["cursor"] != epoch+":1" {
		t.Errorf("sequenced: %d %s", after.status, after.text)
	}
	ask(h, "GET", "/account?id=0", "").is(t, 404, "")
	ask(h, "GET", "/account?id=no+topic", "").is(t, 500, "")
	ask(h, "GET", "/account?id=1&page=x", "").is(t, 400, outbox.ProblemBadRequest)
	ask(h, "POST", "/account?id=1", "").is(t, 405, "")
	if head := ask(h, "HEAD", "/account?id=1", ""); head.status != 200 || head.header.Get("ETag") == "" {
		t.Errorf("HEAD: %d %v", head.status, head.header)
	}
	// Unsequenced events in the way of a position.
	exec(t, pool, `INSERT INTO commitcast.outbox (partition, topic, type, data) SELECT commitcast.partition_of('account:1'), 'account:1', 't', '1' FROM generate_series(1, $1)`, outbox.MaxPending+1)
	ask(h, "GET", "/account?id=1", "").is(t, 503, outbox.ProblemBehind)
	exec(t, pool, `UPDATE commitcast.outbox SET born = born + interval '1 second'`)
	exec(t, pool, `DELETE FROM commitcast.outbox WHERE id % 100 <> 0`)
	ask(h, "GET", "/account?id=1", "").is(t, 503, outbox.ProblemEpoch)
}

// A database that is away is 503, and the client learns nothing of it but that.
func TestSnapshotHandlerWithoutDatabase(t *testing.T) {
	direct := fresh(t)
	target := direct.Config().ConnString()
	proxy := testkit.NewProxy(t, target)
	pool := open(t, proxy.URL(target))
	h := accountView(t, pool, func(c *outbox.ViewConfig) { c.Timeout = 300 * time.Millisecond }).SnapshotHandler()
	proxy.Refuse()
	refused := ask(h, "GET", "/account?id=1", "")
	refused.is(t, 503, "")
	proxy.Blackhole()
	hung := ask(h, "GET", "/account?id=1", "")
	hung.is(t, 503, "")
	if strings.Contains(refused.text+hung.text, "127.0.0.1") {
		t.Errorf("tells of the inside: %s %s", refused.text, hung.text)
	}
	proxy.Resume()
	testkit.Eventually(t, 20*time.Second, func() bool { return ask(h, "GET", "/account?id=1", "").status == 200 }, "the database is back")
}

func TestViewsThatCannotBe(t *testing.T) {
	pool := fresh(t)
	page := func(*http.Request, pgx.Tx, string) (any, string, error) { return nil, "", nil }
	digest := func(*http.Request) (outbox.DigestQuery, error) { return outbox.DigestQuery{}, nil }
	for name, c := range map[string]outbox.ViewConfig{
		"nothing":                {},
		"no state":               {Topic: accountTopic},
		"both":                   {Topic: accountTopic, State: accountState, Page: page, Pages: outbox.HeldPages},
		"pages without a reason": {Topic: accountTopic, Page: page},
		"a reason without pages": {Topic: accountTopic, State: accountState, Pages: outbox.VersionedPages},
		"a digest of pages":      {Topic: accountTopic, Page: page, Pages: outbox.HeldPages, Digest: digest},
	} {
		if _, err := outbox.NewView(pool, c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := outbox.NewView(nil, outbox.ViewConfig{Topic: accountTopic, State: accountState}); err == nil {
		t.Error("no database: no error")
	}
}

// pagesOf makes a view of all accounts in pages of three, and reads its pages; between is called after each.
func pagesOf(t *testing.T, pool outbox.Database, pages outbox.Pages, size int) (v *outbox.View, read func(between func()) (balances []int64, all []reply)) {
	t.Helper()
	v = accountView(t, pool, func(c *outbox.ViewConfig) {
		c.Topic = func(*http.Request) (string, error) { return "accounts", nil }
		c.State, c.Pages = nil, pages
		c.Page = func(r *http.Request, tx pgx.Tx, after string) (any, string, error) {
			last, _ := strconv.Atoi(after)
			rows, _ := tx.Query(r.Context(), `SELECT balance FROM account WHERE id > $1 ORDER BY id LIMIT $2`, last, size)
			balances, err := pgx.CollectRows(rows, pgx.RowTo[int64])
			next := ""
			if last+size < 8 {
				next = strconv.Itoa(last + size)
			}
			return balances, next, err
		}
	})
	return v, func(between func()) (balances []int64, all []reply) {
		t.Helper()
		for next := ""; ; {
			got := ask(v.SnapshotHandler(), "GET", "/accounts?page="+next, "")
			all = append(all, got)
			var body struct {
				State []int64
				Next  string
			}
			if err := json.Unmarshal([]byte(got.text), &body); err != nil || got.status != 200 {
				return balances, all
			}
			balances = append(balances, body.State...)
			if next = body.Next; next == "" {
				return balances, all
			}
			between()
		}
	}
}

// move takes from account 1 and gives to account 8, with an event.
func move(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	if err := outbox.Tx(context.Background(), pool, func(tx *outbox.Transaction) error {
		_, err := tx.Exec(context.Background(), `UPDATE account SET balance = balance + CASE id WHEN 8 THEN 1 ELSE -1 END WHERE id IN (1, 8)`)
		return errors.Join(err, tx.Publish(event("accounts")))
	}); err != nil {
		t.Error(err)
	}
}

// Held pages are one moment, whatever happens between them, and fit one cursor. Versioned ones are not one moment, and
// name the cursor of the first.
func TestPages(t *testing.T) {
	pool := fresh(t)
	epoch := one[string](t, pool, `SELECT commitcast.check_epoch()`)
	move(t, pool)
	sequenceAll(t, pool)
	between := func() { move(t, pool); sequenceAll(t, pool) }

	held, read := pagesOf(t, pool, outbox.HeldPages, 3)
	balances, all := read(between)
	if fmt.Sprint(balances) != "[-1 0 0 0 0 0 0 1]" || len(all) != 3 {
		t.Errorf("held: %v, %d pages", balances, len(all))
	}
	for _, page := range all {
		if page.body["cursor"] != epoch+":1" || page.body["pages"] != "held" {
			t.Errorf("held: %s", page.text)
		}
	}
	if n := one[int](t, pool, `SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()`); n != 0 {
		t.Errorf("%d transactions are open after the last page", n)
	}

	_, readVersioned := pagesOf(t, pool, outbox.VersionedPages, 3)
	balances, all = readVersioned(between)
	if fmt.Sprint(balances) != "[-3 0 0 0 0 0 0 5]" {
		t.Errorf("versioned: %v", balances) // the client applies events 4 and 5 again, by version
	}
	for _, page := range all {
		if page.body["cursor"] != epoch+":3" || page.body["pages"] != "versioned" || fmt.Sprint(page.body["pending"]) != "[]" {
			t.Errorf("versioned: %s", page.text)
		}
	}

	// What does not fit is refused.
	h := held.SnapshotHandler()
	first := ask(h, "GET", "/accounts", "")
	next := fmt.Sprint(first.body["next"])
	ask(h, "GET", "/accounts?page=nonsense", "").is(t, 400, outbox.ProblemBadRequest)
	other := accountView(t, pool, func(c *outbox.ViewConfig) {
		c.State, c.Pages = nil, outbox.HeldPages
		c.Page = func(*http.Request, pgx.Tx, string) (any, string, error) { return 1, "", nil }
	})
	ask(other.SnapshotHandler(), "GET", "/account?id=1&page="+next, "").is(t, 400, outbox.ProblemBadRequest)
	held.Close()
	ask(h, "GET", "/accounts?page="+next, "").is(t, 410, outbox.ProblemPages)
	ask(h, "GET", "/accounts", "").is(t, 503, outbox.ProblemBehind)

	versioned, _ := pagesOf(t, pool, outbox.VersionedPages, 3)
	next = fmt.Sprint(ask(versioned.SnapshotHandler(), "GET", "/accounts", "").body["next"])
	exec(t, pool, `UPDATE commitcast.topic SET head = head - 1`) // as a replica that is behind shows it
	ask(versioned.SnapshotHandler(), "GET", "/accounts?page="+next, "").is(t, 503, outbox.ProblemBehind)
	exec(t, pool, `SELECT commitcast.begin_epoch(NULL, 'test')`)
	ask(versioned.SnapshotHandler(), "GET", "/accounts?page="+next, "").is(t, 410, outbox.ProblemPages)
}

// Readers who never ask for the next page hold a bounded number of connections.
func TestHeldPagesAreBounded(t *testing.T) {
	pool := fresh(t, func(c *pgxpool.Config) { c.MaxConns = 20 })
	v, _ := pagesOf(t, pool, outbox.HeldPages, 3)
	for range outbox.MaxHeldPages {
		if got := ask(v.SnapshotHandler(), "GET", "/accounts", ""); got.status != 200 {
			t.Fatalf("%d %s", got.status, got.text)
		}
	}
	ask(v.SnapshotHandler(), "GET", "/accounts", "").is(t, 503, outbox.ProblemBehind)
	v.Close()
	if n := pool.Stat().AcquiredConns(); n != 0 {
		t.Errorf("%d connections are held after Close", n)
	}
}

// handOff races the snapshot handler against writers whose events are sequenced late, and returns how many snapshots were
// taken and how many of them met unsequenced events. Each is checked: the state, and the events that follow its cursor
// without those that it names as pending, make the final state.
func handOff(t *testing.T, b *bank, db outbox.Database, most int, atMost time.Duration) (taken, pending int) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute+atMost)
	defer cancel()
	h := accountView(t, db).SnapshotHandler()
	var writing, rest sync.WaitGroup
	enough := make(chan struct{})
	stop := func() { close(enough) }
	open := func() bool {
		select {
		case <-enough:
			return false
		default:
			return true
		}
	}
	for w := range 2 {
		writing.Go(func() {
			for i := 0; open(); i++ {
				if err := b.deposit(ctx, 1, 1+w+i%7); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	rest.Go(func() { // the sequencer: a few events, then a pause of some reads
		for open() {
			if err := b.sequence(ctx, 5); err != nil {
				t.Error(err)
				return
			}
		}
	})
	type sight struct {
		balance, offset int64
		pending         []int64
	}
	sights := make([][]sight, 2)
	deadline := time.Now().Add(atMost)
	var readers sync.WaitGroup
	for r := range sights {
		readers.Go(func() {
			for len(sights[r]) < most/len(sights) && time.Now().Before(deadline) && open() {
				got := ask(h, "GET", "/account?id=1", "")
				if got.status == 503 && got.body["type"] == outbox.ProblemBehind {
					_ = b.sequence(ctx, 1000)
					continue
				}
				var body struct {
					State   struct{ Balance int64 }
					Cursor  string
					Pending []int64
				}
				if err := json.Unmarshal([]byte(got.text), &body); err != nil || got.status != 200 {
					t.Errorf("%d %s %v", got.status, got.text, err)
					return
				}
				_, digits, _ := strings.Cut(body.Cursor, ":")
				offset, _ := strconv.ParseInt(digits, 10, 64)
				sights[r] = append(sights[r], sight{body.State.Balance, offset, body.Pending})
			}
		})
	}
	readers.Wait()
	stop()
	writing.Wait()
	rest.Wait()
	if err := b.sequence(ctx, 1_000_000); err != nil {
		t.Fatal(err)
	}
	final := balance(t, b.pool)
	rows, _ := b.pool.Query(ctx, `SELECT id, data::text::bigint FROM commitcast.journal WHERE topic = 'account:1' ORDER BY "offset"`)
	type deposit struct{ ID, By int64 }
	journal, err := pgx.CollectRows(rows, pgx.RowToStructByPos[deposit])
	if err != nil {
		t.Fatal(err)
	}
	after := make([]int64, len(journal)+1) // the sum of what follows an offset
	by := map[int64]int64{}
	for i := len(journal) - 1; i >= 0; i-- {
		after[i] = after[i+1] + journal[i].By
		by[journal[i].ID] = journal[i].By
	}
	for _, s := range slices.Concat(sights...) {
		taken++
		sum := s.balance + after[s.offset]
		for _, id := range s.pending {
			sum -= by[id]
		}
		if sum != final {
			t.Fatalf("snapshot %+v and the events after it make %d, want %d", s, sum, final)
		}
		if len(s.pending) > 0 {
			pending++
			if s.balance+after[s.offset] == final {
				t.Fatalf("snapshot %+v fits without its pending ids, too: they do nothing", s)
			}
		}
	}
	t.Logf("%d snapshots, %d with pending events, %d events", taken, pending, len(journal))
	return taken, pending
}

// races is how many snapshots are taken, or as many as fit in a time that the whole suite can spare on a busy machine;
// COMMITCAST_RACE_TIME=2m is enough for all of them.
const races = 10_000

func raceTime(t *testing.T) time.Duration {
	s := os.Getenv("COMMITCAST_RACE_TIME")
	if s == "" {
		return 10 * time.Second
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestSnapshotHandlerHandsOffExactly(t *testing.T) {
	b := newBank(t, 1)
	taken, pending := handOff(t, b, b.pool, races, raceTime(t))
	if taken < 100 || pending == 0 {
		t.Errorf("%d snapshots, %d with pending events: the test proves nothing", taken, pending)
	}
}

// The same read from a streaming replica.
func TestSnapshotHandlerOnAReplica(t *testing.T) {
	server := testkit.Postgres(t)
	testkit.Migrate(t, server.URL("postgres"))
	replica, err := server.Replica(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer replica.Close()
	b := &bank{pool: open(t, server.URL("postgres")), topics: []string{"account:1"}}
	exec(t, b.pool, `CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL DEFAULT 0)`)
	exec(t, b.pool, `INSERT INTO account SELECT generate_series(1, 8)`)
	one[string](t, b.pool, `SELECT commitcast.check_epoch()`)
	standby := open(t, replica.URL("postgres"), func(c *pgxpool.Config) { c.MaxConns = 12 })
	testkit.Eventually(t, 20*time.Second, func() bool {
		var there bool
		err := standby.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM account) AND EXISTS (SELECT FROM commitcast.epoch)`).Scan(&there)
		return err == nil && there
	}, "the replica has the tables")
	taken, pending := handOff(t, b, standby, races, raceTime(t))
	if taken < 100 || pending == 0 {
		t.Errorf("%d snapshots, %d with pending events: the test proves nothing", taken, pending)
	}
	// Held pages, too.
	v, read := pagesOf(t, standby, outbox.HeldPages, 3)
	defer v.Close()
	balances, all := read(func() { move(t, b.pool) })
	if len(all) != 3 || len(balances) != 8 {
		t.Errorf("pages on a replica: %v %+v", balances, all)
	}
}
