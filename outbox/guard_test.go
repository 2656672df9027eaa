package outbox_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/outbox"
)

func TestParseSaw(t *testing.T) {
	for header, want := range map[string]outbox.Saw{
		"3-7d0a41c2:1041":             {Cursor: "3-7d0a41c2:1041"},
		"3-7d0a41c2:1041;17":          {Cursor: "3-7d0a41c2:1041", Value: "17"},
		" 3-7d0a41c2:0 ; 0.53 ":       {Cursor: "3-7d0a41c2:0", Value: "0.53"},
		"17":                          {Value: "17"},
		"3-7d0a41c2:01041":            {Value: "3-7d0a41c2:01041"},
		"3-7d0a41c2:9007199254740992": {Value: "3-7d0a41c2:9007199254740992"},
	} {
		if got, err := outbox.ParseSaw(header); err != nil || got != want {
			t.Errorf("%q: %+v, %v", header, got, err)
		}
	}
	for _, header := range []string{"17;18", ";17", "3-zz:1;17", strings.Repeat("1", 257)} {
		if _, err := outbox.ParseSaw(header); err == nil {
			t.Errorf("%q: no error", header)
		} else if p, _ := outbox.ProblemOf(err); p.Status != 400 {
			t.Errorf("%q: %v", header, err)
		}
	}
	r := must(http.NewRequest("POST", "/", nil))
	if _, err := outbox.GuardOf(r, "a"); err == nil {
		t.Error("no header, no error")
	} else if p, _ := outbox.ProblemOf(err); p.Status != 428 {
		t.Error(err)
	}
}

// What was seen in a history that the database does not have is refused, whatever the number says.
func TestGuardRefusesAnotherHistory(t *testing.T) {
	pool := fresh(t)
	ctx := t.Context()
	e1 := one[string](t, pool, `SELECT commitcast.check_epoch()`)
	for range 3 {
		depositIn(t, pool, 1)
	}
	sequenceAll(t, pool)
	check := func(f func(tx pgx.Tx) error) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return f(tx) })
	}
	guard := func(saw string) outbox.Guard {
		return outbox.Guard{Topic: "account:1", Saw: must(outbox.ParseSaw(saw))}
	}
	stale := func(name string, err error, want bool) {
		t.Helper()
		var s *outbox.StaleError
		if errors.As(err, &s) != want || !want && err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	version := func(saw string, current int64) error {
		return check(func(tx pgx.Tx) error { return guard(saw).Version(ctx, tx, current) })
	}
	cursor := func(saw string) error { return check(func(tx pgx.Tx) error { return guard(saw).Cursor(ctx, tx) }) }
	within := func(saw string) error {
		return check(func(tx pgx.Tx) error {
			return outbox.Within(ctx, tx, guard(saw), 50, 52, func(observed, current int) bool { return current-observed <= 2 })
		})
	}
	stale("the version", version(e1+":3;17", 17), false)
	stale("seen earlier, still the version", version(e1+":1;17", 17), false)
	stale("an older version", version(e1+":3;16", 17), true)
	stale("beyond the head", version(e1+":4;17", 17), true)
	stale("unknown epoch", version("9-abcdef01:3;17", 17), true)
	stale("the cursor", cursor(e1+":3"), false)
	stale("an older cursor", cursor(e1+":2"), true)
	stale("within", within(e1+":3"), false)
	stale("within, beyond the head", within(e1+":4"), true)

	// The database goes back by one event, and another third one follows in the next epoch.
	exec(t, pool, `DELETE FROM commitcast.journal WHERE topic = 'account:1' AND "offset" = 3`)
	exec(t, pool, `UPDATE commitcast.topic SET head = 2 WHERE topic = 'account:1'`)
	exec(t, pool, `UPDATE commitcast.partition SET seq = seq - 1 WHERE id = commitcast.partition_of('account:1')`)
	e2 := one[string](t, pool, `SELECT commitcast.begin_epoch(NULL, 'test')`)
	depositIn(t, pool, 1)
	stale("an event that waits", cursor(e1+":2"), true)
	sequenceAll(t, pool)
	stale("the version of the other history", version(e1+":3;17", 17), true)
	stale("the price of the other history", within(e1+":3"), true)
	stale("the cursor of the other history", cursor(e1+":3"), true)
	stale("seen before the fork", version(e1+":2;17", 17), false)
	stale("seen after the fork", version(e2+":3;17", 17), false)
	stale("the cursor after the fork", cursor(e2+":3"), false)

	for name, err := range map[string]error{"no cursor": version("17", 17), "no version": version(e2+":3", 17), "no cursor for a price": within("50")} {
		if p, ours := outbox.ProblemOf(err); err == nil || p.Status != 428 || ours {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// quote is what a market shows.
type quote struct {
	Version int64 `json:"version"`
	Price   int64 `json:"price"`
}

// exchange is a market whose price every order moves, behind an Action with each kind of guard.
// decided is told the version at which each order was decided, by its key.
func exchange(t *testing.T, pool *pgxpool.Pool, decided *sync.Map) (view *outbox.View, orders http.Handler) {
	t.Helper()
	exec(t, pool, `CREATE TABLE market (id int PRIMARY KEY, version bigint NOT NULL, price bigint NOT NULL)`)
	exec(t, pool, `INSERT INTO market VALUES (1, 0, 500000)`)
	exec(t, pool, `CREATE TABLE trade (kind text NOT NULL, observed_version bigint NOT NULL, observed_price bigint NOT NULL, observed_offset bigint NOT NULL,
		tolerance bigint NOT NULL, version bigint PRIMARY KEY, price bigint NOT NULL)`)
	view = must(outbox.NewView(pool, outbox.ViewConfig{
		Topic: func(*http.Request) (string, error) { return "market:1", nil },
		State: func(r *http.Request, tx pgx.Tx) (any, error) {
			var q quote
			err := tx.QueryRow(r.Context(), `SELECT version, price FROM market WHERE id = 1`).Scan(&q.Version, &q.Price)
			return q, err
		},
	}))
	action, err := outbox.NewAction(pool, outbox.ActionConfig{
		Caller: func(r *http.Request) (string, error) { return r.Header.Get("User"), nil },
		View:   view,
		Do: func(r *http.Request, tx *outbox.Transaction) (any, error) {
			var order struct {
				Kind      string
				Seen      quote
				Tolerance int64
			}
			if err := json.NewDecoder(r.Body).Decode(&order); err != nil {
				return nil, err
			}
			guard, err := outbox.GuardOf(r, "market:1")
			if err != nil {
				return nil, err
			}
			ctx := r.Context()
			var now quote
			if err := tx.QueryRow(ctx, `SELECT version, price FROM market WHERE id = 1 FOR UPDATE`).Scan(&now.Version, &now.Price); err != nil {
				return nil, err
			}
			decided.Store(r.Header.Get(outbox.KeyHeader), now.Version)
			switch order.Kind {
			case "version":
				err = guard.Version(ctx, tx, now.Version)
			case "cursor":
				err = guard.Cursor(ctx, tx)
			case "within":
				err = outbox.Within(ctx, tx, guard, order.Seen, now, func(observed, current quote) bool {
					return current.Price-observed.Price <= order.Tolerance
				})
			}
			if err != nil {
				return nil, err
			}
			after := quote{now.Version + 1, now.Price + rand.Int64N(2001) - 1000}
			_, offset, _ := strings.Cut(guard.Saw.Cursor, ":")
			if _, err := tx.Exec(ctx, `INSERT INTO trade VALUES ($1, $2, $3, $4::bigint, $5, $6, $7)`, order.Kind, order.Seen.Version, order.Seen.Price, must(strconv.ParseInt(offset, 10, 64)),
				order.Tolerance, after.Version, now.Price); err != nil {
				return nil, err
			}
			if _, err := tx.Exec(ctx, `UPDATE market SET version = $1, price = $2 WHERE id = 1`, after.Version, after.Price); err != nil {
				return nil, err
			}
			return after, tx.Publish(outbox.Event{Topic: "market:1", Type: "trade", Data: after})
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return view, action
}

// A thousand traders at once, each with a quote that is as old as it happens to be: no order goes through that its author
// would not want, and each refusal brings a state that is no older than the decision.
func TestThousandTraders(t *testing.T) {
	pool := fresh(t, func(c *pgxpool.Config) { c.MaxConns = 16 })
	var decided sync.Map
	view, orders := exchange(t, pool, &decided)
	h := view.SnapshotHandler()
	type sight struct {
		State   quote
		Cursor  string
		Pending []int64
	}
	look := func() (s sight) {
		got := ask(h, "GET", "/", "")
		for got.status == 503 { // so many at once: they are told to come back
			got = ask(h, "GET", "/", "")
		}
		if json.Unmarshal([]byte(got.text), &s) != nil || got.status != 200 {
			t.Errorf("%d %s", got.status, got.text)
		}
		return s
	}
	kinds := []string{"version", "cursor", "within"}
	order := func(kind int, key string, seen sight, tolerance int64) reply {
		saw := seen.Cursor
		if kind == 0 {
			saw = fmt.Sprintf("%s;%d", saw, seen.State.Version)
		}
		for {
			got := ask(orders, "POST", "/orders", fmt.Sprintf(`{"kind":%q,"seen":{"version":%d,"price":%d},"tolerance":%d}`,
				kinds[kind], seen.State.Version, seen.State.Price, tolerance), outbox.SawHeader, saw, outbox.KeyHeader, key, "User", "u")
			if got.status != 503 { // else told to come back, with the same key
				return got
			}
		}
	}
	// In calm, whoever has just looked is served, whatever he goes by.
	for kind := range kinds {
		if got := order(kind, fmt.Sprint("calm", kind), look(), 0); got.status != 200 {
			t.Fatalf("%s: %d %s", kinds[kind], got.status, got.text)
		}
		sequenceAll(t, pool)
	}
	sights := []sight{look()}
	var mu sync.Mutex
	var accepted, refused [3]atomic.Int32
	done := make(chan struct{})
	var sequencer, traders sync.WaitGroup
	apart := open(t, pool.Config().ConnString()) // traders must not keep the sequencer waiting for a connection
	sequencer.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				exec(t, apart, `SELECT commitcast.sequence(commitcast.partition_of('market:1'), 1, 5, NULL, NULL)`)
			}
		}
	})
	start := make(chan struct{})
	for n := range 1000 {
		traders.Go(func() {
			<-start
			seen := look()
			mu.Lock()
			sights = append(sights, seen)
			if n%2 == 0 { // as old as it happens to be
				seen = sights[rand.IntN(len(sights))]
			}
			mu.Unlock()
			kind, tolerance := n%3, rand.Int64N(3000)
			for attempt := range 2 { // a refusal brings what the second attempt goes by
				key := fmt.Sprint(n, "/", attempt)
				got := order(kind, key, seen, tolerance)
				if got.status == 200 {
					accepted[kind].Add(1)
					if got.header.Get(outbox.EventHeader) == "" {
						t.Error("no event id")
					}
					return
				}
				refused[kind].Add(1)
				got.is(t, 409, outbox.ProblemStale)
				seen = sight{}
				if err := json.Unmarshal([]byte(got.text), &seen); err != nil || seen.Cursor == "" || seen.Pending == nil {
					t.Errorf("%s: %v", got.text, err)
					return
				}
				at, _ := decided.Load(key)
				if at == nil || seen.State.Version < at.(int64) {
					t.Errorf("%s: decided at version %v, the fresh state is of version %d", kinds[kind], at, seen.State.Version)
				}
			}
		})
	}
	close(start)
	traders.Wait()
	// However they were scheduled: who saw only what was before them all, and allows only a price that never was, is refused.
	for kind := range kinds {
		order(kind, fmt.Sprint("late", kind), sights[0], math.MinInt32).is(t, 409, outbox.ProblemStale)
		refused[kind].Add(1)
	}
	close(done)
	sequencer.Wait()
	sequenceAll(t, pool)
	// No accepted order was beyond what its author allowed: the database's own record of it.
	bad := one[int](t, pool, `SELECT count(*) FROM trade WHERE
		kind = 'version' AND observed_version <> version - 1 OR
		kind = 'cursor' AND observed_offset <> version - 1 OR
		kind = 'within' AND price - observed_price > tolerance`)
	if bad > 0 {
		t.Errorf("%d orders went through that their authors would not want", bad)
	}
	trades, version, journal := one[int](t, pool, `SELECT count(*) FROM trade`), one[int](t, pool, `SELECT version FROM market`), one[int](t, pool, `SELECT count(*) FROM commitcast.journal`)
	total := len(kinds) + int(accepted[0].Load()+accepted[1].Load()+accepted[2].Load())
	if trades != total || version != total || journal != total {
		t.Errorf("%d accepted, %d trades, version %d, %d events", total, trades, version, journal)
	}
	for kind, name := range kinds {
		t.Logf("%s: %d accepted, %d refused", name, accepted[kind].Load(), refused[kind].Load())
		if refused[kind].Load() == 0 {
			t.Errorf("%s: nobody was refused: the test proves nothing", name)
		}
	}
}
