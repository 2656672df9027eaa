package worker

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/commitcast/commitcast/wire"
)

const (
	// notifyChannel carries wake-ups: its payload lists partitions, separated by commas; empty means any.
	notifyChannel = "commitcast_outbox"
	// listenPing is how long the listener waits in silence before it asks whether its connection still lives.
	listenPing = 15 * time.Second
)

// listen receives wake-ups until ctx ends. They are hints: while the connection is down, sweeps find the work.
func (w *Worker) listen(ctx context.Context) {
	for failures := 0; ctx.Err() == nil; failures++ {
		began := time.Now()
		_ = w.listenOnce(ctx) // the dispatcher reports that the database is gone; this would say it twice
		if time.Since(began) > listenPing {
			failures = 0
		}
		sleep(ctx, jitter(backoff(failures, 50*time.Millisecond, 2*time.Second)))
	}
}

func (w *Worker) listenOnce(ctx context.Context) error {
	cfg, err := w.connConfig(ctx, "commitcast listener")
	if err != nil {
		return err
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer closeConn(conn.PgConn())
	if _, err := conn.Exec(ctx, "LISTEN "+notifyChannel); err != nil {
		return err
	}
	w.hub.wakeAll() // whatever was notified while nobody listened
	for {
		wait, cancel := context.WithTimeout(ctx, listenPing)
		n, err := conn.WaitForNotification(wait)
		cancel()
		switch {
		case err == nil:
			w.wakePayload(n.Payload)
		case ctx.Err() != nil || !pgconn.Timeout(err):
			return err
		default:
			ping, cancel := context.WithTimeout(ctx, connectTimeout)
			err = conn.Ping(ping)
			cancel()
			if err != nil {
				return err
			}
		}
	}
}

func (w *Worker) wakePayload(payload string) {
	for field := range strings.SplitSeq(payload, ",") {
		p, err := strconv.Atoi(field)
		if err != nil || p < 0 || p >= wire.Partitions {
			w.hub.wakeAll() // not understood: look everywhere
			return
		}
		w.hub.wake(p)
	}
}
