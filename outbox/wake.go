package outbox

import (
	"context"
	_ "embed"
	"math/bits"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

//go:embed wake.sql
var wakeSQL string

// NotifyChannel is the Postgres channel of the wake-ups. A payload is a list of partition numbers, as in "3,17".
const NotifyChannel = "commitcast_outbox"

// Wake tells workers that topics have new events, for callers of [Append] after their commit. It returns at once; the
// wake-up is sent in the background, together with others, and may be lost. [Tx] does this by itself.
func Wake(db *pgxpool.Pool, topics ...string) {
	var set uint32
	for _, topic := range topics {
		set |= 1 << partitionOf(topic)
	}
	wake(db, set)
}

// Flush waits until the wake-ups of a pool that are under way have been sent, or have failed, and closes their
// connection. Call it before db.Close where a connection that lingers for WakeIdle would be in the way, such as before
// DROP DATABASE. The error is that of ctx.
func Flush(ctx context.Context, db *pgxpool.Pool) error {
	wakers.Lock()
	w := wakers.byPool[db]
	wakers.Unlock()
	if w == nil {
		return nil
	}
	for {
		w.mu.Lock()
		if w.sending == nil {
			conn := w.retire()
			w.mu.Unlock()
			closeConn(conn)
			return nil
		}
		sending := w.sending
		w.mu.Unlock()
		select {
		case <-sending:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// wakers holds the waker of each pool that published in the last WakeIdle. So a pool that is gone is not kept.
var wakers = struct {
	sync.Mutex
	byPool map[*pgxpool.Pool]*waker
}{byPool: map[*pgxpool.Pool]*waker{}}

// wake marks a set of partitions, one bit each, to be announced.
func wake(db *pgxpool.Pool, set uint32) {
	for set != 0 {
		wakers.Lock()
		w := wakers.byPool[db]
		if w == nil {
			w = &waker{pool: db}
			wakers.byPool[db] = w
		}
		wakers.Unlock()
		if w.mark(set) {
			return
		}
	}
}

// waker sends the wake-ups of one pool over a connection of its own: a connection of the pool would be missing to a
// writer who waits for one. It is a goroutine only while there is something to send.
type waker struct {
	pool *pgxpool.Pool

	mu        sync.Mutex
	pending   uint32        // partitions to be announced
	sending   chan struct{} // closed when the goroutine ends; nil: there is none
	notBefore time.Time     // of the next wake-up
	takes     time.Duration // a wake-up, as a moving average: a single slow one must not hold up the next
	failed    bool          // the last one failed: until notBefore nothing is taken
	idle      *time.Timer   // closes the connection
	conn      *pgx.Conn     // while sending, the goroutine's
	retired   bool          // no longer in wakers
}

// mark takes a set of partitions to be announced; false if w is retired.
func (w *waker) mark(set uint32) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.retired {
		return false
	}
	if w.failed && time.Now().Before(w.notBefore) {
		return true
	}
	w.pending |= set
	if w.sending == nil {
		w.sending = make(chan struct{})
		if w.idle != nil {
			w.idle.Stop()
		}
		go w.send() // owned by w; ends when nothing is pending; Flush waits for it
	}
	return true
}

// send announces what is pending until nothing is.
func (w *waker) send() {
	for {
		w.mu.Lock()
		if w.pending == 0 {
			w.rest()
			w.mu.Unlock()
			return
		}
		wait := time.Until(w.notBefore)
		w.mu.Unlock()
		if wait > 0 {
			time.Sleep(wait) // at most wakeMaxSpacing; what is marked meanwhile goes along
		}

		w.mu.Lock()
		set := w.pending
		w.pending = 0
		w.mu.Unlock()
		start := time.Now()
		err := w.notify(payload(set))
		end := time.Now()

		w.mu.Lock()
		if w.failed = err != nil; w.failed {
			w.pending = 0
			w.notBefore = end.Add(wakeBackoff)
		} else {
			w.takes += (end.Sub(start) - w.takes) / 8
			w.notBefore = end.Add(min(max(wakeSpacing, wakeDuty*w.takes), wakeMaxSpacing))
		}
		w.mu.Unlock()
	}
}

// rest ends the sending and arms the idle timer. w.mu is held.
func (w *waker) rest() {
	close(w.sending)
	w.sending = nil
	if w.idle == nil {
		w.idle = time.AfterFunc(WakeIdle, w.expire)
	} else {
		w.idle.Reset(WakeIdle)
	}
}

// expire ends w unless it is in use again.
func (w *waker) expire() {
	w.mu.Lock()
	if w.sending != nil || w.retired {
		w.mu.Unlock()
		return
	}
	conn := w.retire()
	w.mu.Unlock()
	closeConn(conn)
}

// retire takes w out of use and returns its connection, to be closed. w.mu is held and nothing is being sent.
func (w *waker) retire() *pgx.Conn {
	if !w.retired {
		w.retired = true
		wakers.Lock() // always after w.mu
		delete(wakers.byPool, w.pool)
		wakers.Unlock()
	}
	if w.idle != nil {
		w.idle.Stop()
	}
	conn := w.conn
	w.conn = nil
	return conn
}

// notify sends one wake-up. A connection that was open before is given a second chance as a new one: it may have been
// closed by the server meanwhile.
func (w *waker) notify(payload string) error {
	ctx, cancel := context.WithTimeout(context.Background(), wakeTimeout)
	defer cancel()
	for {
		fresh := w.conn == nil
		if fresh {
			var err error
			if w.conn, err = w.connect(ctx); err != nil {
				return err
			}
		}
		_, err := w.conn.Exec(ctx, wakeSQL, payload)
		if err == nil {
			return nil
		}
		closeConn(w.conn)
		w.conn = nil
		if fresh {
			return err
		}
	}
}

func (w *waker) connect(ctx context.Context) (*pgx.Conn, error) {
	cfg := w.pool.Config() // a copy
	if cfg.BeforeConnect != nil {
		if err := cfg.BeforeConnect(ctx, cfg.ConnConfig); err != nil {
			return nil, err
		}
	}
	if cfg.ConnConfig.RuntimeParams["application_name"] == "" {
		cfg.ConnConfig.RuntimeParams["application_name"] = "commitcast wake-up"
	}
	return pgx.ConnectConfig(ctx, cfg.ConnConfig)
}

// closeConn closes a connection, which may be nil, without waiting for a silent server.
func closeConn(conn *pgx.Conn) {
	if conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), wakeTimeout)
	defer cancel()
	_ = conn.Close(ctx)
}

// payload lists a set of partitions, as in "3,17".
func payload(set uint32) string {
	var b []byte
	for ; set != 0; set &= set - 1 {
		if len(b) > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, int64(bits.TrailingZeros32(set)), 10)
	}
	return string(b)
}
