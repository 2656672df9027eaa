package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/internal/services"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/wire"
)

const (
	pgbenchScale   = 20
	pgbenchClients = 16
	pgbenchSeconds = 4
)

// historyTrigger is all that the application gets: what docs/adopting.md tells its reader to write.
const historyTrigger = `
CREATE FUNCTION publish_history() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM commitcast.append('branch:' || NEW.bid, 'history',
        json_build_object('teller', NEW.tid, 'account', NEW.aid, 'delta', NEW.delta));
    RETURN NULL;
END $$;
CREATE TRIGGER publish_history AFTER INSERT ON pgbench_history FOR EACH ROW EXECUTE FUNCTION publish_history();`

// ledger adds up deltas.
type ledger struct{ branch, teller, account map[int64]int64 }

func newLedger() ledger {
	return ledger{map[int64]int64{}, map[int64]int64{}, map[int64]int64{}}
}

// Stock pgbench, an application that knows nothing of us, with one trigger: a subscriber that only adds up the deltas
// it received ends with the balances of the tables, with 2 workers and 2 broadcasters, and one subscriber that
// reconnects 50 times during the load sees every event exactly once as well.
func TestPgbenchBalances(t *testing.T) {
	database, redis := testkit.Database(t), testkit.RedisURL(t)
	ctx := t.Context()
	pgbench := findPgbench(t)
	if out, err := exec.CommandContext(ctx, pgbench, "-i", "-q", "-s", fmt.Sprint(pgbenchScale), database).CombinedOutput(); err != nil {
		t.Fatalf("pgbench -i: %v\n%s", err, out)
	}
	conn, err := pgx.Connect(ctx, database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(ctx, historyTrigger); err != nil {
		t.Fatal(err)
	}
	start(t, database, redis, "worker")
	start(t, database, redis, "worker")
	nodes := []*node{start(t, database, redis, "broadcaster"), start(t, database, redis, "broadcaster")}

	// One steady subscriber of all branches on each node.
	steady := []*testkit.Client{testkit.Dial(t, nodes[0].URL), testkit.Dial(t, nodes[1].URL)}
	for _, c := range steady {
		for b := 1; b <= pgbenchScale; b++ {
			c.Subscribe(b, fmt.Sprint("branch:", b), "")
		}
		for range pgbenchScale {
			if m := c.Expect("subscribed"); m.Head != 0 || m.After != 0 {
				t.Fatalf("a topic without events: %+v", m)
			}
		}
	}
	loadCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	load := make(chan error, 1)
	began := time.Now()
	go func() { // ends with pgbench
		out, err := exec.CommandContext(loadCtx, pgbench, "-n", "-c", fmt.Sprint(pgbenchClients), "-j", "2",
			"-T", fmt.Sprint(pgbenchSeconds), database).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("pgbench: %w\n%s", err, out)
		}
		load <- err
	}()

	// One that comes and goes, on both nodes in turn, with its cursor.
	restless := make(chan error, 1)
	restlessAt := make(chan int64, 1)
	stop := make(chan struct{})
	go func() { // ends when stop is closed and its 50 reconnects are done
		restless <- func() error {
			cursor, seen, reconnects := wire.Cursor{Epoch: steady[0].Hello.Epoch}, int64(0), 0
			for ; ; reconnects++ {
				select {
				case <-stop:
					if reconnects >= 50 {
						restlessAt <- seen
						return nil
					}
				default:
				}
				c, err := testkit.DialErr(t, nodes[reconnects%2].URL)
				if err != nil {
					return err
				}
				c.Subscribe(1, "branch:7", cursor.String())
				for until := time.Now().Add(pgbenchSeconds * time.Second / 50); time.Now().Before(until); {
					m, err := c.Read(time.Second)
					if errors.Is(err, context.DeadlineExceeded) {
						break // the load has ended, or this branch is quiet: come back
					}
					if err != nil {
						return fmt.Errorf("reconnect %d: %w", reconnects, err)
					}
					switch m.Op {
					case "event":
						if m.Offset != cursor.Offset+1 {
							return fmt.Errorf("reconnect %d: offset %d after %d", reconnects, m.Offset, cursor.Offset)
						}
						cursor, seen = wire.Cursor{Epoch: m.Epoch, Offset: m.Offset}, seen+1
					case "subscribed", "heartbeat":
					default:
						return fmt.Errorf("reconnect %d: %+v", reconnects, m)
					}
					if m.Op == "subscribed" && m.Head == cursor.Offset {
						break // nothing to wait for
					}
				}
				c.WS.CloseNow()
			}
		}()
	}()
	if err := <-load; err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	close(stop)
	if err := <-restless; err != nil {
		t.Fatal(err)
	}

	var rows int64
	heads := make(map[string]int64)
	r, err := conn.Query(ctx, "SELECT 'branch:' || bid, count(*) FROM pgbench_history GROUP BY 1")
	if err != nil {
		t.Fatal(err)
	}
	var topic string
	var n int64
	if _, err := pgx.ForEachRow(r, []any{&topic, &n}, func() error { heads[topic] = n; rows += n; return nil }); err != nil {
		t.Fatal(err)
	}
	if rows < 500 {
		t.Fatalf("only %d transactions in %v: no load", rows, took)
	}
	for i, c := range steady {
		got := newLedger()
		offsets := make(map[string]int64)
		for seen := int64(0); seen < rows; seen++ {
			m := c.Expect("event")
			if m.Offset != offsets[m.Topic]+1 {
				t.Fatalf("node %d: %s: offset %d after %d", i, m.Topic, m.Offset, offsets[m.Topic])
			}
			offsets[m.Topic] = m.Offset
			var d struct{ Teller, Account, Delta int64 }
			if err := json.Unmarshal(m.Data, &d); err != nil {
				t.Fatal(err)
			}
			var bid int64
			fmt.Sscanf(m.Topic, "branch:%d", &bid)
			got.branch[bid] += d.Delta
			got.teller[d.Teller] += d.Delta
			got.account[d.Account] += d.Delta
		}
		for topic, head := range heads {
			if offsets[topic] != head {
				t.Errorf("node %d: %s ends at %d, %d transactions", i, topic, offsets[topic], head)
			}
		}
		compareLedger(t, conn, "pgbench_branches", "bid", "bbalance", got.branch)
		compareLedger(t, conn, "pgbench_tellers", "tid", "tbalance", got.teller)
		compareLedger(t, conn, "pgbench_accounts", "aid", "abalance", got.account)
	}
	// The restless one goes on to the end from where it is.
	at := <-restlessAt
	last := testkit.Dial(t, nodes[0].URL)
	last.Subscribe(1, "branch:7", wire.Cursor{Epoch: steady[0].Hello.Epoch, Offset: at}.String())
	last.Expect("subscribed")
	last.ExpectEvents("branch:7", at+1, heads["branch:7"])
	t.Logf("%d transactions in %v, every balance equal, no gap, no duplicate", rows, took.Round(time.Millisecond))
}

func compareLedger(t *testing.T, conn *pgx.Conn, table, id, balance string, got map[int64]int64) {
	t.Helper()
	rows, err := conn.Query(t.Context(), fmt.Sprintf("SELECT %s, %s FROM %s WHERE %s <> 0", id, balance, table, balance))
	if err != nil {
		t.Fatal(err)
	}
	var key, value int64
	want := 0
	if _, err := pgx.ForEachRow(rows, []any{&key, &value}, func() error {
		want++
		if got[key] != value {
			t.Errorf("%s %d: events add up to %d, the table says %d", table, key, got[key], value)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for key, value := range got {
		if value != 0 {
			want--
		}
		_ = key
	}
	if want != 0 {
		t.Errorf("%s: %d more rows have a balance in the table than in the events", table, want)
	}
}

func findPgbench(t *testing.T) string {
	t.Helper()
	path, err := services.PostgresProgram("pgbench")
	if err != nil {
		t.Fatal(err)
	}
	return path
}
