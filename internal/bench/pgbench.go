package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"regexp"
	"strconv"
	"time"

	"github.com/coder/websocket"
	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/internal/services"
	"github.com/commitcast/commitcast/wire"
)

// pgbenchResult is Postgres' own benchmark, unmodified, with a trigger on the table it writes last.
type pgbenchResult struct {
	Kind         string  `json:"kind"`
	PerSecond    float64 `json:"per_second"`
	Transactions int64   `json:"transactions"`
	// Commitcast alone: how long after the load the last event arrived, and from append to socket at a moderate rate.
	CaughtUpMS float64 `json:"caught_up_ms,omitempty"`
	SocketP50  float64 `json:"socket_p50_ms,omitempty"`
	SocketP99  float64 `json:"socket_p99_ms,omitempty"`
}

const (
	pgbenchScale   = 20
	pgbenchClients = 16
	// pgbenchWarmUp is for how many seconds the load runs before it counts: plans, caches, the first drains.
	pgbenchWarmUp = 2
	// pgbenchModerate is the rate, in transactions a second, at which the time to the socket is measured: as fast as it goes, it
	// only says how long the queues for two cores are.
	pgbenchModerate = 400
	// plainTrigger is the limit: the same trigger, into a plain table of the same content.
	plainTrigger = `CREATE FUNCTION publish_history() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			INSERT INTO bench_plain (topic, type, data) VALUES ('branch:' || NEW.bid, 'history',
				json_build_object('teller', NEW.tid, 'account', NEW.aid, 'delta', NEW.delta));
			RETURN NULL;
		END $$;
		CREATE TRIGGER publish_history AFTER INSERT ON pgbench_history FOR EACH ROW EXECUTE FUNCTION publish_history();`
	commitcastTrigger = `CREATE FUNCTION publish_history() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			PERFORM commitcast.append('branch:' || NEW.bid, 'history',
				json_build_object('teller', NEW.tid, 'account', NEW.aid, 'delta', NEW.delta));
			RETURN NULL;
		END $$;
		CREATE TRIGGER publish_history AFTER INSERT ON pgbench_history FOR EACH ROW EXECUTE FUNCTION publish_history();`
)

// ledger adds up deltas.
type ledger struct{ branch, teller, account map[int64]int64 }

// pgbench runs the load for a time. With Commitcast, two workers and two broadcasters run beside it, and a subscriber
// on each that adds up the deltas must end with the balances of the tables.
func pgbench(ctx context.Context, kind, database string, seconds float64) (pgbenchResult, error) {
	result := pgbenchResult{Kind: kind}
	program, err := services.PostgresProgram("pgbench")
	if err != nil {
		return result, err
	}
	if out, err := exec.CommandContext(ctx, program, "-i", "-q", "-s", fmt.Sprint(pgbenchScale), database).CombinedOutput(); err != nil {
		return result, fmt.Errorf("pgbench -i: %w\n%s", err, out)
	}
	conn, err := pgx.Connect(ctx, database)
	if err != nil {
		return result, err
	}
	defer conn.Close(ctx)
	trigger := plainTrigger
	var subscribers []*adder
	if kind == kindCommitcast {
		trigger = commitcastTrigger
		for range 2 {
			worker, err := node(ctx, database, "worker")
			if err != nil {
				return result, err
			}
			defer worker.stop()
		}
		for range 2 {
			broadcaster, err := node(ctx, database, "broadcaster", "--listen=127.0.0.1:0", "--auth=off", "--drain=10ms")
			if err != nil {
				return result, err
			}
			defer broadcaster.stop()
			a, err := newAdder(ctx, broadcaster.clients)
			if err != nil {
				return result, err
			}
			defer a.ws.CloseNow()
			subscribers = append(subscribers, a)
		}
	}
	if _, err := conn.Exec(ctx, trigger); err != nil {
		return result, err
	}
	load := func(seconds float64, more ...string) ([]byte, error) {
		args := append([]string{"-n", "-c", fmt.Sprint(pgbenchClients), "-j", "2", "-T", fmt.Sprint(int(seconds))}, more...)
		out, err := exec.CommandContext(ctx, program, append(args, database)...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("pgbench: %w\n%s", err, out)
		}
		return out, err
	}
	if _, err := load(pgbenchWarmUp); err != nil {
		return result, err
	}
	out, err := load(seconds)
	if err != nil {
		return result, err
	}
	ended := time.Now()
	m := regexp.MustCompile(`(?m)^tps = ([0-9.]+)`).FindSubmatch(out)
	if m == nil {
		return result, fmt.Errorf("pgbench does not say its rate:\n%s", out)
	}
	result.PerSecond, _ = strconv.ParseFloat(string(m[1]), 64)
	awaitAll := func() error {
		if err := conn.QueryRow(ctx, "SELECT count(*) FROM pgbench_history").Scan(&result.Transactions); err != nil {
			return err
		}
		for _, a := range subscribers {
			if err := a.await(result.Transactions); err != nil {
				return err
			}
		}
		return nil
	}
	if err := awaitAll(); err != nil || kind != kindCommitcast {
		return result, err
	}
	for _, a := range subscribers {
		result.CaughtUpMS = max(result.CaughtUpMS, float64(a.last.Sub(ended))/1e6)
	}
	loaded := result.Transactions
	if _, err := load(seconds/pgbenchStretch, "-R", fmt.Sprint(pgbenchModerate)); err != nil {
		return result, err
	}
	if err := awaitAll(); err != nil {
		return result, err
	}
	var lags []int64
	for _, a := range subscribers {
		lags = append(lags, a.lags[loaded:]...)
		for table, got := range map[[3]string]map[int64]int64{
			{"pgbench_branches", "bid", "bbalance"}: a.sums.branch,
			{"pgbench_tellers", "tid", "tbalance"}:  a.sums.teller,
			{"pgbench_accounts", "aid", "abalance"}: a.sums.account,
		} {
			if err := compare(ctx, conn, table, got); err != nil {
				return result, err
			}
		}
	}
	result.SocketP50, result.SocketP99 = percentile(lags, 0.5), percentile(lags, 0.99)
	return result, nil
}

// compare holds what a subscriber has added up to the balances of a table: name, key and balance column.
func compare(ctx context.Context, conn *pgx.Conn, table [3]string, got map[int64]int64) error {
	rows, err := conn.Query(ctx, fmt.Sprintf("SELECT %[2]s, %[3]s FROM %[1]s WHERE %[3]s <> 0", table[0], table[1], table[2]))
	if err != nil {
		return err
	}
	want := make(map[int64]int64)
	var id, balance int64
	if _, err := pgx.ForEachRow(rows, []any{&id, &balance}, func() error { want[id] = balance; return nil }); err != nil {
		return err
	}
	maps.DeleteFunc(got, func(_, sum int64) bool { return sum == 0 })
	if !maps.Equal(got, want) {
		return fmt.Errorf("the events do not add up to %s", table[0])
	}
	return nil
}

// adder is a subscriber of all branches that adds up what it receives, and counts. One goroutine reads.
type adder struct {
	ws   *websocket.Conn
	sums ledger
	seen chan int64 // how many events there were so far
	done chan error
	last time.Time // read it after await
	lags []int64   // of each event, from its append to here; the same
}

func newAdder(ctx context.Context, addr string) (*adder, error) {
	ws, _, err := websocket.Dial(ctx, "ws://"+addr+"/v1/ws", &websocket.DialOptions{Subprotocols: []string{wire.Protocol}})
	if err != nil {
		return nil, err
	}
	ws.SetReadLimit(4 << 20)
	for b := 1; b <= pgbenchScale; b++ {
		request := fmt.Appendf(nil, `{"op":"subscribe","id":%d,"topic":"branch:%d"}`, b, b)
		if err := ws.Write(ctx, websocket.MessageText, request); err != nil {
			return nil, err
		}
	}
	a := &adder{ws: ws, seen: make(chan int64, 1), done: make(chan error, 1), sums: ledger{map[int64]int64{}, map[int64]int64{}, map[int64]int64{}}}
	live := make(chan struct{})
	go func() { a.done <- a.read(ctx, live) }() // ends with the connection
	select {
	case <-live:
		return a, nil
	case err := <-a.done:
		return nil, err
	case <-time.After(20 * time.Second):
		return nil, errors.New("the subscriptions do not become live")
	}
}

func (a *adder) read(ctx context.Context, live chan<- struct{}) error {
	offsets := make(map[string]int64)
	var n int64
	for subscribed := 0; ; {
		_, message, err := a.ws.Read(ctx)
		if err != nil {
			return err
		}
		before := n
		for line := range wire.Lines(message) {
			var m struct {
				Op, Topic string
				Offset    int64
				At        time.Time
				Data      struct{ Teller, Account, Delta int64 }
			}
			if err := json.Unmarshal(line, &m); err != nil {
				return err
			}
			switch m.Op {
			case "subscribed":
				if subscribed++; subscribed == pgbenchScale {
					close(live)
				}
			case "event":
				if m.Offset != offsets[m.Topic]+1 {
					return fmt.Errorf("%s: offset %d after %d", m.Topic, m.Offset, offsets[m.Topic])
				}
				offsets[m.Topic] = m.Offset
				var branch int64
				fmt.Sscanf(m.Topic, "branch:%d", &branch)
				a.sums.branch[branch] += m.Data.Delta
				a.sums.teller[m.Data.Teller] += m.Data.Delta
				a.sums.account[m.Data.Account] += m.Data.Delta
				a.lags = append(a.lags, int64(time.Since(m.At)))
				n++
			case "hello", "heartbeat":
			default:
				return fmt.Errorf("unexpected: %s", line)
			}
		}
		if n == before {
			continue // whoever has awaited the last event may be looking
		}
		a.last = time.Now()
		select {
		case <-a.seen:
		default:
		}
		a.seen <- n
	}
}

// await waits until n events were received: then sums may be read.
func (a *adder) await(n int64) error {
	late := time.After(30 * time.Second)
	for {
		select {
		case seen := <-a.seen:
			if seen == n {
				return nil
			}
			if seen > n {
				return fmt.Errorf("%d events of %d transactions", seen, n)
			}
		case err := <-a.done:
			return err
		case <-late:
			return fmt.Errorf("events are missing 30 s after the load: of %d transactions", n)
		}
	}
}
