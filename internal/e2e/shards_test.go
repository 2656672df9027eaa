package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/client"
	"github.com/commitcast/commitcast/client/ts"
	"github.com/commitcast/commitcast/internal/services"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/outbox"
	"github.com/commitcast/commitcast/wire"
)

// counted is what a client has of a topic: how many events its state holds. Each event brings its number, and so an event that is
// lost, comes twice or is of another history makes a state wrong for ever.
type counted struct {
	Topic  string `json:"topic"`
	State  int    `json:"state"`
	Cursor string `json:"cursor"`
	Reads  int    `json:"reads"` // of snapshots
	Wrong  string `json:"wrong"`
}

// counts are those of one client, by topic.
type counts struct {
	mu  sync.Mutex
	now map[string]counted
}

func (c *counts) set(v counted) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now[v.Topic] = v
}

func (c *counts) of(topic string) counted {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now[topic]
}

// Two databases with workers of their own feed one Redis and two broadcasters. The Go client and the TypeScript client follow topics of
// both over one connection each. Whatever befalls one database, it is its own topics that are read again or stand still; those of the
// other go on.
func TestShards(t *testing.T) {
	t.Parallel()
	redis := testkit.RedisURL(t)
	markets := testkit.Database(t)
	pg := testkit.Postgres(t)
	testkit.Migrate(t, pg.URL("postgres"))
	standby, err := pg.Replica(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer standby.Close()
	proxy := testkit.NewProxy(t, pg.Addr())
	orders := proxy.URL(pg.URL("postgres"))
	start(t, markets, redis, "worker")
	start(t, orders, redis, "worker")
	flags := []string{"broadcaster", "--heartbeat=1s", "--shard=orders:*=" + testkit.As(t, orders, "reader")}
	one, two := start(t, markets, redis, flags...), start(t, markets, redis, flags...)

	pools := map[string]*pgxpool.Pool{"market:1": connectPool(t, markets), "orders:1": connectPool(t, pg.URL("postgres"))}
	write := func(topic string, n int) {
		t.Helper()
		for range n {
			if _, err := pools[topic].Exec(t.Context(), `SELECT commitcast.append($1, 'test', to_json(1))`, topic); err != nil {
				t.Fatal(err)
			}
		}
	}
	snapshot := func(ctx context.Context, topic string) (outbox.Position, int, error) {
		var n int
		p, err := outbox.Snapshot(ctx, pools[topic], []string{topic}, func(tx pgx.Tx) error {
			return tx.QueryRow(ctx, `SELECT head + (SELECT count(*) FROM commitcast.outbox WHERE topic = $1) FROM commitcast.topic WHERE topic = $1`, topic).Scan(&n)
		})
		if err != nil {
			return outbox.Position{}, 0, err
		}
		return p[0], n, nil
	}
	write("market:1", 1)
	write("orders:1", 1)
	goClient, tsClient := followInGo(t, one.URL, snapshot), followInTypeScript(t, two.URL, snapshot)
	arrive := func(who, topic string, c *counts, n int) counted {
		t.Helper()
		testkit.Eventually(t, 30*time.Second, func() error {
			if v := c.of(topic); v.State != n || v.Wrong != "" {
				return fmt.Errorf("%+v, want %d events", v, n)
			}
			return nil
		}, "%s of %s", topic, who)
		return c.of(topic)
	}
	both := func(topic string, n int) {
		t.Helper()
		arrive("the Go client", topic, goClient, n)
		arrive("the TypeScript client", topic, tsClient, n)
	}
	for range 10 {
		write("market:1", 2)
		write("orders:1", 3)
	}
	both("market:1", 21)
	both("orders:1", 31)

	// One database cannot be reached: its topics stand still, and it is said; a broadcaster that starts now serves the others.
	proxy.Blackhole()
	for _, n := range []*node{one, two} {
		testkit.Eventually(t, 30*time.Second, func() error {
			status, text := readyz(t, n)
			if status != http.StatusOK || !strings.Contains(text, "orders:*") {
				return fmt.Errorf("%d %s", status, text)
			}
			return nil
		}, "readiness says which database is away")
	}
	if up, down := metric(t, one, `commitcast_broadcaster_shard_up{shard="**"}`), metric(t, one, `commitcast_broadcaster_shard_up{shard="orders:*"}`); up != 1 || down != 0 {
		t.Errorf("shard_up is %v and %v", up, down)
	}
	write("market:1", 5)
	both("market:1", 26)
	proxy.Refuse()
	late := start(t, markets, redis, flags...)
	c := testkit.Dial(t, late.URL)
	c.Subscribe(1, "orders:1", "")
	if m := c.Expect("error"); m.Code != wire.CodeUnavailable {
		t.Errorf("%+v", m)
	}
	c.Subscribe(2, "market:1", c.Hello.Epoch+":0")
	c.Expect("subscribed")
	c.ExpectEvents("market:1", 1, 26)
	if log := late.Log(); strings.Contains(log, "postgres://") {
		t.Errorf("a URL is in the log: %s", log)
	}
	write("orders:1", 4) // the database itself is well
	proxy.Resume()
	both("orders:1", 35)
	testkit.Eventually(t, 30*time.Second, func() error {
		c.Subscribe(3, "orders:1", "")
		if m, err := c.Read(10 * time.Second); err != nil || m.Op != "subscribed" {
			return fmt.Errorf("%+v %v", m, err)
		}
		return nil
	}, "the late broadcaster has found the database")
	for _, c := range []*counts{goClient, tsClient} {
		for _, topic := range []string{"market:1", "orders:1"} {
			if v := c.of(topic); v.Reads != 1 {
				t.Errorf("nothing was lost, and %s was read %d times", topic, v.Reads)
			}
		}
	}

	// It fails over to a standby that lacks the last events: who has them reads again, and nobody else does.
	follower := connectPool(t, standby.URL("postgres"))
	at := func(sql string) func() bool {
		return func() (v bool) {
			_ = follower.QueryRow(t.Context(), sql).Scan(&v)
			return v
		}
	}
	testkit.Eventually(t, 20*time.Second, at(`SELECT head = 35 FROM commitcast.topic WHERE topic = 'orders:1'`), "the standby has what there is")
	for _, sql := range []string{"ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()"} {
		if _, err := follower.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Eventually(t, 20*time.Second, func() (v bool) {
		_ = pools["orders:1"].QueryRow(t.Context(), `SELECT count(*) = 0 FROM pg_stat_replication`).Scan(&v)
		return v
	}, "the standby is cut off")
	write("orders:1", 2)
	both("orders:1", 37)
	before := goClient.of("orders:1").Cursor
	pg.Kill()
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	pools["orders:1"] = follower
	proxy.SetTarget(standby.Addr())
	proxy.Cut()
	write("market:1", 5)
	both("market:1", 31)
	testkit.Eventually(t, 30*time.Second, func() error {
		_, err := follower.Exec(t.Context(), `SELECT commitcast.append('orders:1', 'test', to_json(1))`)
		return err
	}, "it is a primary")
	both("orders:1", 36)
	for _, c := range []*counts{goClient, tsClient} {
		m, o := c.of("market:1"), c.of("orders:1")
		if m.Reads != 1 || o.Reads < 2 {
			t.Errorf("after the failover of orders, they were read %d times and markets %d times", o.Reads, m.Reads)
		}
		if epoch, _, _ := strings.Cut(o.Cursor, ":"); strings.HasPrefix(before, epoch+":") {
			t.Errorf("%s follows %s", o.Cursor, before)
		}
	}
}

func readyz(t *testing.T, n *node) (status int, text string) {
	t.Helper()
	resp, err := http.Get(n.Ops + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var states map[string]string
	if err := json.NewDecoder(resp.Body).Decode(&states); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, states["broadcaster"]
}

type snapshotOf func(ctx context.Context, topic string) (outbox.Position, int, error)

// followInGo follows both topics with the Go client, over one connection, until the test ends.
func followInGo(t *testing.T, url string, snapshot snapshotOf) *counts {
	t.Helper()
	c, err := client.New(url+"/v1/ws", client.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	t.Cleanup(func() { cancel(); all.Wait() })
	all.Go(func() { c.Run(ctx) }) // ends with the test
	got := &counts{now: make(map[string]counted)}
	for _, topic := range []string{"market:1", "orders:1"} {
		all.Go(func() { // ends with the test
			v := counted{Topic: topic}
			for change, err := range client.Follow(ctx, c, topic, client.Topic[int]{
				Snapshot: func(ctx context.Context) (held client.Held[int], err error) {
					p, n, err := snapshot(ctx, topic)
					if err != nil {
						return held, err
					}
					v.Reads++
					text, err := json.Marshal(p)
					if err != nil {
						return held, err
					}
					held.State = n
					return held, json.Unmarshal(text, &held.Token)
				},
				Apply: func(n int, e *wire.Event) (int, error) {
					if e.Topic != topic {
						v.Wrong = "an event of " + e.Topic
					}
					return n + 1, nil
				},
			}) {
				if err != nil {
					if ctx.Err() == nil {
						v.Wrong = err.Error()
						got.set(v)
					}
					return
				}
				v.State, v.Cursor = change.State, change.Token.Cursor.String()
				got.set(v)
			}
		})
	}
	return got
}

// followInTypeScript does the same with the TypeScript client in Node.
func followInTypeScript(t *testing.T, url string, snapshot snapshotOf) *counts {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, n, err := snapshot(r.Context(), r.URL.Query().Get("topic"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		json.NewEncoder(w).Encode(map[string]any{"state": n, "cursor": p.Cursor, "pending": p.Pending, "epoch": p.Epoch})
	}))
	t.Cleanup(server.Close)
	const folder = "../../client/ts"
	if err := services.NPM(t.Context(), os.Stderr, folder); err != nil {
		t.Fatal(err)
	}
	library := testkit.File(t, "commitcast.mjs", ts.JS)
	cmd := exec.Command("node", "--input-type=module", "-e", `
		import { WebSocket } from "ws";
		const { connect } = await import(process.env.LIBRARY);
		const feed = connect({ url: process.env.SOCKET, WebSocket, onerror: (e) => console.error(String(e)) });
		for (const topic of ["market:1", "orders:1"]) {
			let reads = 0, wrong = "";
			const t = feed.topic(topic, {
				snapshot: async () => {
					const r = await fetch(process.env.SNAPSHOT + "?topic=" + encodeURIComponent(topic));
					if (!r.ok) throw new Error(await r.text());
					reads++;
					return r.json();
				},
				apply: (n, e) => { if (e.topic !== topic) wrong = "an event of " + e.topic; return n + 1; },
			});
			t.subscribe((v) => { if (v.state !== undefined) console.log(JSON.stringify({ topic, state: v.state, cursor: v.cursor, reads, wrong })); });
		}`)
	cmd.Dir = folder
	cmd.Env = append(os.Environ(), "LIBRARY="+library, "SOCKET="+url+"/v1/ws", "SNAPSHOT="+server.URL)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	got := &counts{now: make(map[string]counted)}
	read := make(chan struct{})
	go func() { // ends with the process
		defer close(read)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var v counted
			if json.Unmarshal(lines.Bytes(), &v) == nil {
				got.set(v)
			}
		}
	}()
	t.Cleanup(func() { cmd.Process.Kill(); <-read; cmd.Wait() })
	return got
}
