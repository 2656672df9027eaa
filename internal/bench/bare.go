package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/commitcast/commitcast/wire"
)

// The bare pipeline: the same hops as Commitcast's and nothing else. A writer inserts an event in its transaction and
// wakes a worker by NOTIFY; the worker moves it from outbox to journal in one statement, appends it to a Redis stream
// and publishes it; a broadcaster writes it to its sockets. No retries, no partitions, no offsets, no River: the least
// that any program with these hops can take.

const bareSchema = `
CREATE TABLE bare_outbox (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, topic text, data json);
CREATE TABLE bare_journal (topic text, id bigint, data json, PRIMARY KEY (topic, id));`

func bareWorkerMain() {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		fatal(err)
	}
	listener, err := pgx.Connect(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		fatal(err)
	}
	if _, err := listener.Exec(ctx, "LISTEN bare"); err != nil {
		fatal(err)
	}
	options, err := redis.ParseURL(os.Getenv("REDIS_URL"))
	if err != nil {
		fatal(err)
	}
	r := redis.NewClient(options)
	fmt.Println(`{}`)
	for {
		if _, err := listener.WaitForNotification(ctx); err != nil {
			fatal(err)
		}
		rows, err := conn.Query(ctx, `WITH taken AS (DELETE FROM bare_outbox RETURNING topic, id, data)
			INSERT INTO bare_journal SELECT topic, id, data FROM taken RETURNING topic, id, data`)
		if err != nil {
			fatal(err)
		}
		pipe := r.Pipeline()
		var topic string
		var id int64
		var data json.RawMessage
		if _, err := pgx.ForEachRow(rows, []any{&topic, &id, &data}, func() error {
			frame := bareFrame(topic, id, data)
			pipe.XAdd(ctx, &redis.XAddArgs{Stream: topic, MaxLen: 1000, Approx: true, Values: []any{"f", frame}})
			pipe.Publish(ctx, topic, frame)
			return nil
		}); err != nil {
			fatal(err)
		}
		if pipe.Len() > 0 {
			if _, err := pipe.Exec(ctx); err != nil {
				fatal(err)
			}
		}
	}
}

func bareFrame(topic string, id int64, data json.RawMessage) []byte {
	frame, err := wire.AppendEvent(nil, &wire.Event{Topic: topic, Epoch: benchEpoch, Offset: id, ID: id, Type: "bench", At: time.Now(), Data: data})
	if err != nil {
		fatal(err)
	}
	return frame
}

func bareBroadcasterMain() {
	ctx := context.Background()
	options, err := redis.ParseURL(os.Getenv("REDIS_URL"))
	if err != nil {
		fatal(err)
	}
	sub := redis.NewClient(options).Subscribe(ctx, "bench")
	if _, err := sub.Receive(ctx); err != nil {
		fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fatal(err)
	}
	var mu sync.Mutex
	var conns []net.Conn
	go func() { // ends with the process
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if bareHandshake(c, "bench") == nil {
				mu.Lock()
				conns = append(conns, c)
				mu.Unlock()
			}
		}
	}()
	json.NewEncoder(os.Stdout).Encode(fanReport{Addr: l.Addr().String()})
	for {
		m, err := sub.ReceiveMessage(ctx)
		if err != nil {
			fatal(err)
		}
		frame := textFrame([]byte(m.Payload))
		mu.Lock()
		for _, c := range conns {
			c.Write(frame)
		}
		mu.Unlock()
	}
}

// bareWriter commits an event the way outbox.Tx does, with its own hands.
type bareWriter struct {
	pool *pgxpool.Pool
	wake chan struct{}
}

func newBareWriter(ctx context.Context, pool *pgxpool.Pool) (*bareWriter, error) {
	conn, err := pgx.ConnectConfig(ctx, pool.Config().ConnConfig.Copy())
	if err != nil {
		return nil, err
	}
	w := &bareWriter{pool: pool, wake: make(chan struct{}, 1)}
	go func() { // ends when ctx does
		defer conn.Close(context.Background())
		for {
			select {
			case <-ctx.Done():
				return
			case <-w.wake:
			}
			conn.Exec(ctx, "SELECT set_config('synchronous_commit', 'off', true), pg_notify('bare', '')")
		}
	}()
	return w, nil
}

func (w *bareWriter) write(ctx context.Context, account int, data []byte) error {
	tx, err := w.pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx)
	if _, err := tx.Exec(ctx, benchUpdate, account); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "INSERT INTO bare_outbox (topic, data) VALUES ('bench', $1)", data); err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		return err
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
	return nil
}
