package worker

import (
	"context"
	"encoding/json"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/internal/testkit"
)

func TestHorizonWaitsForThoseWhoWrote(t *testing.T) {
	var h horizon
	for i, step := range []struct {
		epoch   string
		newest  int64
		writers []string
		safe    int64
	}{
		{"1-aaaaaaaa", 10, []string{"3/1", "4/7"}, 0},
		{"1-aaaaaaaa", 20, []string{"4/7", "5/1"}, 0},
		{"1-aaaaaaaa", 30, []string{"3/2", "5/1"}, 10}, // 3/1 and 4/7 have ended; 30 is the next candidate
		{"1-aaaaaaaa", 40, []string{"5/1"}, 10},
		{"1-aaaaaaaa", 50, nil, 50}, // nobody writes
		{"2-bbbbbbbb", 45, []string{"3/1"}, 0},
		{"2-bbbbbbbb", 46, nil, 46},
	} {
		h.see(step.epoch, step.newest, step.writers)
		if got := h.in(step.epoch); got != step.safe {
			t.Errorf("step %d: safe %d, want %d", i, got, step.safe)
		}
		if h.in("1-cccccccc") != 0 {
			t.Error("a horizon counts in another epoch")
		}
	}
}

// reader opens a transaction that keeps vacuum from removing what dies from here on.
func (b *bench) reader() {
	b.t.Helper()
	conn, err := pgx.Connect(b.t.Context(), b.url)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { conn.Close(context.Background()) })
	for _, sql := range []string{"BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT count(*) FROM commitcast.outbox"} {
		if _, err := conn.Exec(b.t.Context(), sql); err != nil {
			b.t.Fatal(err)
		}
	}
}

const floorSQL = `SELECT floor FROM commitcast.partition WHERE id = $1::int`

// No event is left below the floor: neither one whose transaction is open, nor one whose INSERT has drawn the id and
// has not even a transaction id yet. The floor waits; events of others do not.
func TestFloorWaitsForOpenWriters(t *testing.T) {
	for _, held := range []string{"in its transaction", "in its INSERT"} {
		t.Run(held, func(t *testing.T) {
			b := newBench(t)
			slow, fast := topicIn(7, 0), topicIn(7, 1)
			b.run(Config{})
			b.append(fast, `0`)
			b.published(5 * time.Second)
			testkit.Eventually(t, 5*time.Second, func() bool { return scalar[int64](b, floorSQL, 7) >= 1 }, "the floor at the first event")

			writer, err := pgx.Connect(t.Context(), b.url)
			if err != nil {
				t.Fatal(err)
			}
			defer writer.Close(context.Background())
			var release func()
			done := make(chan error, 1)
			if held == "in its INSERT" {
				b.exec(`CREATE FUNCTION public.hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
					IF NEW.data::text = '"slow"' THEN PERFORM pg_advisory_xact_lock_shared(77); END IF; RETURN NEW; END $$`)
				b.exec(`CREATE TRIGGER hold BEFORE INSERT ON commitcast.outbox FOR EACH ROW EXECUTE FUNCTION public.hold()`)
				gate, err := b.pool.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer gate.Rollback(context.Background())
				if _, err := gate.Exec(t.Context(), `SELECT pg_advisory_xact_lock(77)`); err != nil {
					t.Fatal(err)
				}
				// Every 32nd id is written to the log, which takes a transaction id: not this one.
				for scalar[int64](b, `SELECT log_cnt FROM commitcast.outbox_id_seq`) == 0 {
					b.exec(`SELECT nextval('commitcast.outbox_id_seq')`)
				}
				pid := writer.PgConn().PID()
				go func() { // ends when the gate opens; we wait for its result
					_, err := writer.Exec(context.Background(), appendSQL, slow, `"slow"`)
					done <- err
				}()
				testkit.Eventually(t, 10*time.Second, func() bool {
					return scalar[bool](b, `SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND locktype = 'advisory' AND NOT granted)`, pid)
				}, "the INSERT is held up")
				if scalar[bool](b, `SELECT backend_xid IS NOT NULL FROM pg_stat_activity WHERE pid = $1`, pid) {
					t.Log("a checkpoint came in between: the writer has a transaction id, and this run proves less than it should")
				}
				release = func() { gate.Rollback(context.Background()) }
			} else {
				if _, err := writer.Exec(t.Context(), `BEGIN`); err != nil {
					t.Fatal(err)
				}
				if _, err := writer.Exec(t.Context(), appendSQL, slow, `"slow"`); err != nil {
					t.Fatal(err)
				}
				release = func() {
					_, err := writer.Exec(context.Background(), `COMMIT`)
					done <- err
				}
			}
			id := scalar[int64](b, `SELECT last_value FROM commitcast.outbox_id_seq`)
			for start := time.Now(); time.Since(start) < 4*horizonEvery; { // the time in which a floor would pass it
				b.append(fast, `1`)
				b.published(2 * time.Second)
			}
			if floor := scalar[int64](b, floorSQL, 7); floor >= id {
				t.Errorf("floor %d passed event %d, which is not committed", floor, id)
			}
			release()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			testkit.Eventually(t, 5*time.Second, func() bool {
				return scalar[bool](b, `SELECT EXISTS (SELECT FROM commitcast.journal WHERE id = $1)`, id)
			}, "the slow writer's event %d is sequenced", id)
			testkit.Eventually(t, 5*time.Second, func() bool {
				b.append(fast, `1`)
				return scalar[int64](b, floorSQL, 7) > id
			}, "the floor goes on")
		})
	}
}

// Writers, slow ones among them, abort and commit while the floor rises behind them: none of their rows is left below.
func TestFloorUnderLoad(t *testing.T) {
	const topics = 20
	b := newBench(t)
	b.run(Config{Linger: 50 * time.Millisecond})
	b.run(Config{})
	l := b.load(3, topics, 0.3, 0)
	ctx, cancel := context.WithCancel(t.Context())
	var slow sync.WaitGroup
	for i := range 3 {
		slow.Go(func() { // ends with cancel
			for n := 0; ctx.Err() == nil; n++ {
				tx, err := b.pool.Begin(context.Background())
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := tx.Exec(context.Background(), appendSQL, loadTopics(topics)[i], `"slow"`); err != nil {
					t.Error(err)
				}
				sleep(ctx, jitter(200*time.Millisecond)) // how long it stays open
				if n%3 == 0 {
					tx.Rollback(context.Background())
				} else if err := tx.Commit(context.Background()); err != nil {
					t.Error(err)
				} else {
					l.committed.Add(1)
				}
			}
		})
	}
	floors := make(map[int64]bool)
	testkit.Eventually(t, 30*time.Second, func() bool {
		floors[scalar[int64](b, `SELECT max(floor) FROM commitcast.partition`)] = true
		return len(floors) > 8
	}, "the floor rises")
	cancel()
	slow.Wait()
	l.stop()
	b.published(20 * time.Second) // looks at all rows of the outbox, also below the floor
	if got, want := count(b.journal()), l.committed.Load(); got != want {
		t.Errorf("%d events committed, %d in the journal", want, got)
	}
}

// Behind a reader that keeps dead rows alive, neither a sweep nor a pass looks at them. The cost is counted in pages:
// time would depend on the machine. COMMITCAST_DEAD_ROWS sets how many.
func TestDeadRowsCostNothing(t *testing.T) {
	rows := 30_000
	if n, err := strconv.Atoi(os.Getenv("COMMITCAST_DEAD_ROWS")); err == nil {
		rows = n
	}
	b := newBench(t)
	b.reader()
	topic := topicIn(7, 0)
	b.run(Config{})
	start := time.Now()
	for left := rows; left > 0; left -= 100_000 {
		b.exec(`INSERT INTO commitcast.outbox (partition, topic, type, data) SELECT 7, $1, 'e', to_json(i) FROM generate_series(1, $2) i`,
			topic, min(left, 100_000))
	}
	b.published(10 * time.Minute)
	t.Logf("%d events drained in %v", rows, time.Since(start))
	testkit.Eventually(t, 10*time.Second, func() bool { return scalar[int64](b, floorSQL, 7) >= int64(rows) }, "the floor at the last event")
	testkit.Eventually(t, 10*time.Second, func() bool {
		return scalar[int](b, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`) == 0
	}, "the drain has ended")
	if dead := b.dead(); dead < rows {
		t.Fatalf("only %d dead rows: the test proves nothing", dead)
	}

	pass := `SELECT * FROM commitcast.sequence(7::smallint, 1000000, 1000, NULL, NULL)`
	with, withPass := b.explain(sweepSQL), b.explain(pass)
	b.exec(`UPDATE commitcast.partition SET floor = 0`)
	without, withoutPass := b.explain(sweepSQL), b.explain(pass)
	t.Logf("%d dead rows: sweep %v with the floor, %v without; pass %v with, %v without", rows, with, without, withPass, withoutPass)
	if with.pages > 300 || with.pages*5 > without.pages {
		t.Errorf("a sweep looks at %d pages with the floor, %d without", with.pages, without.pages)
	}
	if withPass.pages > 300 || withPass.pages*5 > withoutPass.pages {
		t.Errorf("a pass looks at %d pages with the floor, %d without", withPass.pages, withoutPass.pages)
	}
}

// dead is how many rows of the outbox vacuum cannot remove.
func (b *bench) dead() (n int) {
	b.t.Helper()
	b.exec(`CREATE EXTENSION IF NOT EXISTS pgstattuple`)
	return scalar[int](b, `SELECT dead_tuple_count FROM pgstattuple('commitcast.outbox')`)
}

type cost struct {
	pages int
	ms    float64
}

// explain runs a statement in a session like an owner's, and once more: the first has to read the catalog.
func (b *bench) explain(sql string) cost {
	b.t.Helper()
	conn, err := b.pool.Acquire(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	defer conn.Release()
	var plan []struct {
		Plan struct {
			Hit  int `json:"Shared Hit Blocks"`
			Read int `json:"Shared Read Blocks"`
		}
		Time float64 `json:"Execution Time"`
	}
	var text string
	for range 2 {
		if _, err = conn.Exec(b.t.Context(), `SET enable_seqscan = off; SET jit = off`); err == nil {
			err = conn.QueryRow(b.t.Context(), "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON)\n"+sql).Scan(&text)
		}
		if err == nil {
			err = json.Unmarshal([]byte(text), &plan)
		}
		if err != nil {
			b.t.Fatal(err)
		}
	}
	return cost{plan[0].Plan.Hit + plan[0].Plan.Read, plan[0].Time}
}
