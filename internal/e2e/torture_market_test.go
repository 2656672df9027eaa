package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/client/ts"
	"github.com/commitcast/commitcast/internal/services"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/outbox"
)

// The topics of the torture: in one an event says what is, in the other by how much it changed.
const (
	pricesTopic   = "prices"
	accountsTopic = "accounts"
)

const tortureSchema = `
CREATE TABLE price (key text PRIMARY KEY, value bigint NOT NULL, version bigint NOT NULL);
CREATE TABLE account (key text PRIMARY KEY, balance bigint NOT NULL);
CREATE TABLE paid (operation text PRIMARY KEY, key text NOT NULL, by bigint NOT NULL);
INSERT INTO price SELECT 'p' || i, 0, 1 FROM generate_series(1, 8) i;
INSERT INTO account SELECT 'a' || i, 0 FROM generate_series(1, 8) i;`

// values is the state of a topic: value and version of a price, balance of an account.
type values map[string][]int64

// market is the service whose state the tabs show: tables, writers, and its HTTP side with the page.
type market struct {
	t    *testing.T
	pool *pgxpool.Pool
	addr string // of its HTTP side

	writers sync.WaitGroup
	stopped atomic.Bool
	pace    time.Duration // between two transactions of a writer
	failed  chan error
}

// newMarket makes the tables and serves the page. client is the built client, one file of JavaScript.
func newMarket(t *testing.T, database string, issuer *testkit.Issuer, client []byte) *market {
	t.Helper()
	exec1(t, database, tortureSchema)
	pool, err := pgxpool.New(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	m := &market{t: t, pool: pool, pace: 30 * time.Millisecond, failed: make(chan error, 1)}

	mux := http.NewServeMux()
	file := func(path, kind string, text []byte) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			w.Header().Set("Cache-Control", "no-store")
			w.Write(text)
		})
	}
	page := func(name string) []byte {
		text, err := os.ReadFile("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	file("/{$}", "text/html", page("torture.html"))
	file("/torture.js", "text/javascript", page("torture.js"))
	file("/commitcast.js", "text/javascript", client)
	file("/more.js", "text/javascript", bundled(t))
	file("/favicon.ico", "image/x-icon", nil)
	var tokens, reads atomic.Int64
	mux.HandleFunc("GET /token", func(w http.ResponseWriter, r *http.Request) {
		life, _ := strconv.ParseInt(r.URL.Query().Get("life"), 10, 64) // seconds; of a token that has expired, negative
		io.WriteString(w, issuer.Token("trader", []string{"*"}, map[string]any{
			"exp": time.Now().Unix() + life, "jti": strconv.FormatInt(tokens.Add(1), 10)})) // none is the same as the last
	})
	for topic, sql := range map[string]string{
		pricesTopic:   `SELECT json_object_agg(key, json_build_array(value, version)) FROM price`,
		accountsTopic: `SELECT json_object_agg(key, json_build_array(balance)) FROM account`,
	} {
		view, err := outbox.NewView(pool, outbox.ViewConfig{
			Topic: func(*http.Request) (string, error) { return topic, nil },
			State: func(r *http.Request, tx pgx.Tx) (any, error) {
				var state struct {
					Read   int64           `json:"read"` // tells one read from another
					Values json.RawMessage `json:"values"`
				}
				state.Read = reads.Add(1)
				return state, tx.QueryRow(r.Context(), sql).Scan(&state.Values)
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		mux.Handle("GET /view/"+topic, view.SnapshotHandler())
		action, err := outbox.NewAction(pool, outbox.ActionConfig{
			Caller: func(*http.Request) (string, error) { return "trader", nil }, View: view, RequireKey: true,
			Do: func(r *http.Request, tx *outbox.Transaction) (any, error) { return nil, act(topic, r, tx) },
		})
		if err != nil {
			t.Fatal(err)
		}
		mux.Handle("POST /act/"+topic, action)
	}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m.addr = l.Addr().String()
	server := &http.Server{Handler: mux}
	served := make(chan struct{})
	go func() { server.Serve(l); close(served) }() // owned by the test: Close ends it
	t.Cleanup(func() { server.Close(); <-served })
	return m
}

// bundled is what the page uses of the TypeScript package besides dist/commitcast.js.
func bundled(t *testing.T) []byte {
	t.Helper()
	const folder = "../../client/ts"
	if err := services.NPM(t.Context(), os.Stderr, folder); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "node", "--input-type=module", "-e", `
		import { bundle } from "./scripts/bundle.mjs";
		process.stdout.write(await bundle('export { persist } from "./src/persist.ts";\nexport { share } from "./src/share.ts";'));`)
	cmd.Dir = folder
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	text, err := cmd.Output()
	if err != nil {
		t.Fatalf("bundling: %v\n%s", err, &stderr)
	}
	return text
}

// clientJS is the client as it is shipped, or, for the test of the test, with one rule taken out.
func clientJS(t *testing.T, name string) []byte {
	t.Helper()
	text := string(ts.JS)
	if name == "" {
		return ts.JS
	}
	for _, m := range tortureMutants {
		if m.name != name {
			continue
		}
		for i := 0; i < len(m.change); i += 2 {
			if strings.Count(text, m.change[i]) != 1 {
				t.Fatalf("%s: %q stands %d times in dist/commitcast.js", name, m.change[i], strings.Count(text, m.change[i]))
			}
			text = strings.Replace(text, m.change[i], m.change[i+1], 1)
		}
		return []byte(text)
	}
	t.Fatalf("no mutant %q", name)
	return nil
}

// act is what an action of the page does: a price is set by one who saw its version, an account is added to.
func act(topic string, r *http.Request, tx *outbox.Transaction) error {
	var order struct {
		Key string
		N   int64
	}
	if err := json.NewDecoder(r.Body).Decode(&order); err != nil {
		return &outbox.Problem{Status: http.StatusBadRequest, Detail: err.Error()}
	}
	ctx := r.Context()
	if topic == accountsTopic {
		// The primary key refuses to carry one intent out twice.
		if _, err := tx.Exec(ctx, `INSERT INTO paid VALUES ($1, $2, $3)`, r.Header.Get(outbox.KeyHeader), order.Key, order.N); err != nil {
			return err
		}
		return pay(ctx, tx, order.Key, order.N)
	}
	guard, err := outbox.GuardOf(r, topic)
	if err != nil {
		return err
	}
	var version int64
	if err := tx.QueryRow(ctx, `SELECT version FROM price WHERE key = $1 FOR UPDATE`, order.Key).Scan(&version); err != nil {
		return err
	}
	if err := guard.Version(ctx, tx, version); err != nil {
		return err
	}
	return price(ctx, tx, order.Key, order.N)
}

func pay(ctx context.Context, tx *outbox.Transaction, key string, by int64) error {
	if _, err := tx.Exec(ctx, `UPDATE account SET balance = balance + $2 WHERE key = $1`, key, by); err != nil {
		return err
	}
	return tx.Publish(outbox.Event{Topic: accountsTopic, Type: "paid", Key: key, Data: map[string]int64{"by": by}})
}

func price(ctx context.Context, tx *outbox.Transaction, key string, value int64) error {
	var version int64
	err := tx.QueryRow(ctx, `UPDATE price SET value = $2, version = version + 1 WHERE key = $1 RETURNING version`, key, value).Scan(&version)
	if err != nil {
		return err
	}
	return tx.Publish(outbox.Event{Topic: pricesTopic, Type: "price", Key: key, Data: map[string]int64{"value": value, "version": version}})
}

// write runs writers until stop. A tenth of their transactions is rolled back.
func (m *market) write(seed uint64, writers int) {
	m.stopped.Store(false)
	for i := range writers {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		m.writers.Go(func() { // ends with stop
			for !m.stopped.Load() {
				if err := m.transaction(rng); err != nil {
					select {
					case m.failed <- err:
					default:
					}
					return
				}
				time.Sleep(time.Duration(rng.Int64N(int64(2 * m.pace))))
			}
		})
	}
}

var errRolledBack = errors.New("rolled back on purpose")

func (m *market) transaction(rng *rand.Rand) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	what := rng.IntN(10)
	key, other, n := rng.IntN(8)+1, rng.IntN(8)+1, rng.Int64N(2000)-1000
	err := outbox.Tx(ctx, m.pool, func(tx *outbox.Transaction) error {
		var err error
		if what < 4 { // prices before accounts, always: no two transactions deadlock
			err = price(ctx, tx, fmt.Sprint("p", key), n)
		}
		if what > 2 && err == nil {
			err = pay(ctx, tx, fmt.Sprint("a", min(key, other)), n)
		}
		if what > 6 && err == nil && key != other {
			err = pay(ctx, tx, fmt.Sprint("a", max(key, other)), -n)
		}
		if what == 5 && err == nil {
			err = errRolledBack
		}
		return err
	})
	if errors.Is(err, errRolledBack) {
		return nil
	}
	return err
}

// stop ends the writers, and tells how they fared.
func (m *market) stop() error {
	m.stopped.Store(true)
	m.writers.Wait()
	select {
	case err := <-m.failed:
		return fmt.Errorf("a writer failed: %w", err)
	default:
		return nil
	}
}

// tables reads the state of both topics from their tables.
func (m *market) tables(ctx context.Context) (map[string]values, error) {
	state := make(map[string]values)
	for topic, sql := range map[string]string{
		pricesTopic: `SELECT key, ARRAY[value, version] FROM price`, accountsTopic: `SELECT key, ARRAY[balance] FROM account`,
	} {
		rows, err := m.pool.Query(ctx, sql)
		if err != nil {
			return nil, err
		}
		state[topic] = values{}
		var key string
		var value []int64
		if _, err := pgx.ForEachRow(rows, []any{&key, &value}, func() error {
			state[topic][key] = append([]int64(nil), value...)
			return nil
		}); err != nil {
			return nil, err
		}
	}
	return state, nil
}

// row is one event of the journal.
type row struct {
	Epoch  string
	Offset int64
	ID     int64
	Key    string
	Data   struct{ Value, Version, By int64 }
}

// journal reads all events of a topic, the first at index 0. Nothing may be left unsequenced.
func (m *market) journal(ctx context.Context, topic string) ([]row, error) {
	rows, err := m.pool.Query(ctx, `SELECT epoch, "offset", id, key, data FROM commitcast.journal WHERE topic = $1 ORDER BY "offset"`, topic)
	if err != nil {
		return nil, err
	}
	var events []row
	var r row
	var data []byte
	_, err = pgx.ForEachRow(rows, []any{&r.Epoch, &r.Offset, &r.ID, &r.Key, &data}, func() error {
		r.Data = struct{ Value, Version, By int64 }{}
		if err := json.Unmarshal(data, &r.Data); err != nil {
			return err
		}
		events = append(events, r)
		if r.Offset != int64(len(events)) {
			return fmt.Errorf("the journal of %s has offset %d in place %d", topic, r.Offset, len(events))
		}
		return nil
	})
	return events, err
}
