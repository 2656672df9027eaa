package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/migrations"
	"github.com/commitcast/commitcast/outbox"
)

// kindSQL is a writer that only knows SQL: nobody says after its commit that there are events.
const kindSQL = "SQL only"

// pipelineResult is commit to socket, through everything: one subscriber, an open load of transactions.
type pipelineResult struct {
	Kind         string  `json:"kind"`
	Rate         float64 `json:"rate"`
	Events       int     `json:"events"`
	AckP50       float64 `json:"ack_p50_ms"` // from the acknowledged commit
	AckP99       float64 `json:"ack_p99_ms"`
	IntendedP50  float64 `json:"intended_p50_ms"` // from when the transaction was meant to begin
	IntendedP99  float64 `json:"intended_p99_ms"`
	WriterMedian float64 `json:"writer_p50_ms"` // the transaction itself

	// Commitcast alone: from the acknowledged commit to sequencing, from there to the socket.
	SequenceP50 float64 `json:"sequence_p50_ms,omitempty"`
	SequenceP99 float64 `json:"sequence_p99_ms,omitempty"`
	SocketP50   float64 `json:"socket_p50_ms,omitempty"`
	SocketP99   float64 `json:"socket_p99_ms,omitempty"`
}

const (
	benchAccounts = 1000
	benchUpdate   = "UPDATE bench_account SET n = n + 1 WHERE id = $1"
	benchTables   = `CREATE TABLE bench_account (id int PRIMARY KEY, n bigint NOT NULL) WITH (fillfactor = 50);
		INSERT INTO bench_account SELECT i, 0 FROM generate_series(0, 999) i;
		CREATE TABLE bench_plain (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, topic text NOT NULL, type text NOT NULL, data json NOT NULL);`
)

// freshDatabase makes a migrated database with the tables of the benchmarks on the server of DATABASE_URL.
func freshDatabase(ctx context.Context, name string) (string, error) {
	server := os.Getenv("DATABASE_URL")
	admin, err := pgxpool.New(ctx, server)
	if err != nil {
		return "", err
	}
	defer admin.Close()
	for _, sql := range []string{"DROP DATABASE IF EXISTS " + name + " WITH (FORCE)", "CREATE DATABASE " + name} {
		if _, err := admin.Exec(ctx, sql); err != nil {
			return "", err
		}
	}
	config := admin.Config().ConnConfig
	url := fmt.Sprintf("postgres://%s:%s@%s:%d/%s?sslmode=disable", config.User, config.Password, config.Host, config.Port, name)
	if err := migrations.Up(ctx, url, slog.New(slog.DiscardHandler)); err != nil {
		return "", err
	}
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return "", err
	}
	defer pool.Close()
	_, err = pool.Exec(ctx, benchTables+bareSchema)
	return url, err
}

// process is the commitcast command line, running.
type process struct {
	clients string // address for clients
	ops     string // URL for operators
	pid     int
	stop    func()
}

// node runs the commitcast command line in a process of its own, and returns when it is ready.
func node(ctx context.Context, database string, args ...string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	args = append(append([]string{"commitcast"}, args...), "--ops-listen=127.0.0.1:0", "--log-format=json")
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), "DATABASE_URL="+database)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{pid: cmd.Process.Pid, stop: func() { cmd.Process.Signal(os.Interrupt); cmd.Wait() }}
	lines := bufio.NewScanner(stderr)
	for p.ops == "" || args[1] != "worker" && p.clients == "" {
		if !lines.Scan() {
			cmd.Wait()
			return nil, fmt.Errorf("%v ended before it served", args)
		}
		var line struct{ Msg, URL string }
		json.Unmarshal(lines.Bytes(), &line)
		switch line.Msg {
		case "serving clients":
			p.clients = strings.TrimSuffix(strings.TrimPrefix(line.URL, "ws://"), "/v1/ws")
		case "serving operators":
			p.ops = line.URL
		}
	}
	go func() { // ends with the process
		for lines.Scan() {
		}
	}()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		resp, err := http.Get(p.ops + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return p, nil
			}
		}
		if time.Now().After(deadline) {
			p.stop()
			return nil, fmt.Errorf("%v does not become ready: %v", args, err)
		}
	}
}

// pipeline measures commit to socket at a rate of transactions, through outbox.Tx, through commitcast.append alone, or through the bare hops.
func pipeline(ctx context.Context, kind, database string, rate float64, seconds float64) (pipelineResult, error) {
	result := pipelineResult{Kind: kind, Rate: rate, Events: int(rate * seconds)}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pool, err := pgxpool.New(ctx, database+"&pool_max_conns=16")
	if err != nil {
		return result, err
	}
	defer pool.Close()
	var addr string
	var write func(ctx context.Context, account int, data []byte) error
	switch kind {
	case kindCommitcast, kindSQL:
		worker, err := node(ctx, database, "worker")
		if err != nil {
			return result, err
		}
		defer worker.stop()
		broadcaster, err := node(ctx, database, "broadcaster", "--listen=127.0.0.1:0", "--auth=off", "--drain=10ms")
		if err != nil {
			return result, err
		}
		defer broadcaster.stop()
		addr = broadcaster.clients
		write = func(ctx context.Context, account int, data []byte) error {
			if kind == kindSQL {
				return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
					if _, err := tx.Exec(ctx, benchUpdate, account); err != nil {
						return err
					}
					_, err := tx.Exec(ctx, "SELECT commitcast.append('bench', 'bench', $1)", json.RawMessage(data))
					return err
				})
			}
			return outbox.Tx(ctx, pool, func(tx *outbox.Transaction) error {
				if _, err := tx.Exec(ctx, benchUpdate, account); err != nil {
					return err
				}
				return tx.Publish(outbox.Event{Topic: "bench", Type: "bench", Data: json.RawMessage(data)})
			})
		}
	case kindLimit:
		w, err := startChild("bareworker", "DATABASE_URL="+database)
		if err != nil {
			return result, err
		}
		defer w.kill()
		b, err := startChild("barebroadcaster")
		if err != nil {
			return result, err
		}
		defer b.kill()
		var ready fanReport
		if err := w.out.Decode(&ready); err != nil {
			return result, err
		}
		if err := b.out.Decode(&ready); err != nil {
			return result, err
		}
		addr = ready.Addr
		bare, err := newBareWriter(ctx, pool)
		if err != nil {
			return result, err
		}
		write = bare.write
	}
	client, err := swarmDial(swarmOrder{Addr: addr}, "bench")
	if err != nil {
		return result, err
	}
	defer client.conn.Close()

	warmUp := int(rate) // the first second is not counted: plans, connections, the first drain
	n := result.Events + warmUp
	intended, acked, received := make([]time.Time, n), make([]time.Time, n), make([]time.Time, n)
	reading := make(chan error, 1)
	go func() { // ends with the last event
		seen := 0
		for seen < n {
			message, err := client.read(nil)
			if err != nil {
				reading <- err
				return
			}
			now := time.Now()
			for rest := message; ; {
				i := strings.Index(string(rest), `"n":`)
				if i < 0 {
					break
				}
				rest = rest[i+4:]
				received[integer(rest)] = now
				seen++
			}
		}
		reading <- nil
	}()
	var writers sync.WaitGroup
	errs := make(chan error, n)
	began := time.Now()
	for i := range n {
		intended[i] = began.Add(time.Duration(float64(i) / rate * float64(time.Second)))
		time.Sleep(time.Until(intended[i]))
		writers.Add(1)
		go func() { // ends with its transaction
			defer writers.Done()
			if err := write(ctx, i%benchAccounts, fmt.Appendf(nil, `{"n":%d}`, i)); err != nil {
				errs <- err
			}
			acked[i] = time.Now()
		}()
	}
	writers.Wait()
	select {
	case err := <-errs:
		return result, err
	case err := <-reading:
		if err != nil {
			return result, err
		}
	case <-time.After(20 * time.Second):
		return result, fmt.Errorf("%s: events are missing", kind)
	}
	var ack, meant, writer []int64
	for i := warmUp; i < n; i++ {
		ack = append(ack, int64(received[i].Sub(acked[i])))
		meant = append(meant, int64(received[i].Sub(intended[i])))
		writer = append(writer, int64(acked[i].Sub(intended[i])))
	}
	result.AckP50, result.AckP99 = percentile(ack, 0.5), percentile(ack, 0.99)
	result.IntendedP50, result.IntendedP99 = percentile(meant, 0.5), percentile(meant, 0.99)
	result.WriterMedian = percentile(writer, 0.5)
	if kind != kindLimit {
		err = result.stages(ctx, pool, acked, received, warmUp)
	}
	return result, err
}

// stages tells where the time went: from the acknowledged commit to when the sequencing statement had the partition's
// lock, and from there to the socket.
func (r *pipelineResult) stages(ctx context.Context, pool *pgxpool.Pool, acked, received []time.Time, from int) error {
	rows, err := pool.Query(ctx, `SELECT (data->>'n')::int, sequenced_at FROM commitcast.journal WHERE topic = 'bench'`)
	if err != nil {
		return err
	}
	var toSequence, toSocket []int64
	var n int
	var at time.Time
	_, err = pgx.ForEachRow(rows, []any{&n, &at}, func() error {
		if n >= from {
			toSequence = append(toSequence, int64(at.Sub(acked[n])))
			toSocket = append(toSocket, int64(received[n].Sub(at)))
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.SequenceP50, r.SequenceP99 = percentile(toSequence, 0.5), percentile(toSequence, 0.99)
	r.SocketP50, r.SocketP99 = percentile(toSocket, 0.5), percentile(toSocket, 0.99)
	return nil
}
