package outbox_test

import (
	"context"
	"errors"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/outbox"
)

// A COMMIT whose answer is lost is unknown, however it is lost, although the work is durable.
func TestLostCommitReplyIsUnknown(t *testing.T) {
	for _, c := range []struct {
		name      string
		published bool // with events: INSERT and COMMIT in one round trip; without: a bare COMMIT
		lose      func(ctx context.Context, proxy *testkit.Proxy, cancel func())
	}{
		{"reset", true, func(_ context.Context, p *testkit.Proxy, _ func()) { p.Cut() }},
		{"reset, without events", false, func(_ context.Context, p *testkit.Proxy, _ func()) { p.Cut() }},
		{"silence until the context ends", true, func(_ context.Context, _ *testkit.Proxy, cancel func()) { cancel() }},
		{"silence until the context ends, without events", false, func(_ context.Context, _ *testkit.Proxy, cancel func()) { cancel() }},
	} {
		for _, mode := range modes {
			if mode == pgx.QueryExecModeDescribeExec && c.published {
				continue // describes first, and waits for the answer, before it sends COMMIT
			}
			t.Run(c.name+"/"+mode.String(), func(t *testing.T) {
				direct := fresh(t)
				target := direct.Config().ConnString()
				proxy := testkit.NewProxy(t, target)
				pool := open(t, proxy.URL(target), withMode(mode), func(cfg *pgxpool.Config) { cfg.MaxConns = 1 })
				warm(t, pool)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				result := make(chan error, 1)
				var id int64
				go func() { // ends when the reply is lost; the test waits for the answer
					result <- outbox.Tx(ctx, pool, func(tx *outbox.Transaction) error {
						if err := deposit(ctx, tx); err != nil {
							return err
						}
						if c.published {
							if err := tx.PublishReturning(event("account:1"), &id); err != nil {
								return err
							}
						}
						proxy.HoldReplies()
						return nil
					})
				}()
				testkit.Eventually(t, 10*time.Second, func() bool { return balance(t, direct) == 2 }, "the commit is durable")
				c.lose(ctx, proxy, cancel)
				err := <-result
				if !errors.Is(err, outbox.ErrCommitUnknown) {
					t.Fatalf("error %v, want ErrCommitUnknown", err)
				}
				if pgconn.SafeToRetry(err) {
					t.Error("called safe to retry")
				}
				if errors.Unwrap(err) == nil {
					t.Error("no cause")
				}
				if id != 0 {
					t.Error("an id was returned for an unknown commit")
				}
				// The pool goes on.
				proxy.Resume()
				if err := outbox.Tx(t.Context(), pool, func(tx *outbox.Transaction) error { return deposit(t.Context(), tx) }); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// warm makes one transaction of the same form, so that the next one has nothing to prepare.
func warm(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	for _, publish := range []bool{true, false} {
		if err := outbox.Tx(t.Context(), pool, func(tx *outbox.Transaction) error {
			if publish {
				return tx.Publish(event("account:1"))
			}
			return deposit(t.Context(), tx)
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := outbox.Flush(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
}

// The same with an orderly end of the connection, as a proxy or a pooler that shuts down makes it.
func TestConnectionClosedInsteadOfCommitReply(t *testing.T) {
	direct := fresh(t)
	target := direct.Config().ConnString()
	p := newFinProxy(t, target)
	pool := open(t, p.url(target), func(cfg *pgxpool.Config) { cfg.MaxConns = 1 })
	warm(t, pool)
	err := outbox.Tx(t.Context(), pool, func(tx *outbox.Transaction) error {
		err := errors.Join(deposit(t.Context(), tx), tx.Publish(event("account:1")))
		p.arm()
		return err
	})
	if !errors.Is(err, outbox.ErrCommitUnknown) || pgconn.SafeToRetry(err) {
		t.Errorf("error %v, want ErrCommitUnknown", err)
	}
	if b := balance(t, direct); b != 2 {
		t.Errorf("balance %d: the reply came before the commit?", b)
	}
}

// A connection that is lost before COMMIT is sent is an ordinary failure: nothing was committed, for certain.
func TestConnectionLostBeforeCommit(t *testing.T) {
	direct := fresh(t)
	target := direct.Config().ConnString()
	proxy := testkit.NewProxy(t, target)
	pool := open(t, proxy.URL(target))
	err := outbox.Tx(t.Context(), pool, func(tx *outbox.Transaction) error {
		if err := errors.Join(deposit(t.Context(), tx), tx.Publish(event("account:1"))); err != nil {
			t.Error(err)
		}
		proxy.Cut()
		return deposit(t.Context(), tx)
	})
	if err == nil || errors.Is(err, outbox.ErrCommitUnknown) {
		t.Errorf("error %v", err)
	}
	if b, n := balance(t, direct), events(t, direct); b != 0 || n != 0 {
		t.Errorf("balance %d, %d events", b, n)
	}
}

// A session that an administrator ends while it waits in the last round trip may have been ended anywhere on the way,
// by a pooler too: unknown.
func TestTerminatedInTheLastRoundTrip(t *testing.T) {
	pool := fresh(t)
	exec(t, pool, `CREATE TABLE gate (id int PRIMARY KEY)`)
	exec(t, pool, `CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO gate VALUES (1); RETURN NEW; END'`)
	exec(t, pool, `CREATE CONSTRAINT TRIGGER gate AFTER UPDATE ON account DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait_at_gate()`)
	holder, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Rollback(context.Background())
	if _, err := holder.Exec(t.Context(), `INSERT INTO gate VALUES (1)`); err != nil {
		t.Fatal(err)
	}
	pid, result := make(chan int, 1), make(chan error, 1)
	go func() { // ends when its session is ended; the test waits for the answer
		result <- outbox.Tx(t.Context(), pool, func(tx *outbox.Transaction) error {
			pid <- one[int](t, tx, `SELECT pg_backend_pid()`)
			return errors.Join(deposit(t.Context(), tx), tx.Publish(event("account:1")))
		})
	}()
	victim := <-pid
	testkit.Eventually(t, 10*time.Second, func() bool {
		return one[bool](t, pool, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND wait_event_type = 'Lock')`, victim)
	}, "COMMIT waits at the gate")
	exec(t, pool, `SELECT pg_terminate_backend($1)`, victim)
	if err := <-result; !errors.Is(err, outbox.ErrCommitUnknown) {
		t.Errorf("error %v, want ErrCommitUnknown", err)
	}
}

// finProxy forwards, and once armed closes the client's connection in order instead of forwarding the next reply.
type finProxy struct {
	listener net.Listener
	target   string
	mu       sync.Mutex
	armed    bool
	conns    []net.Conn
	done     sync.WaitGroup
}

func newFinProxy(t *testing.T, target string) *finProxy {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &finProxy{listener: l, target: u.Host}
	p.done.Go(p.accept)
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		for _, c := range p.conns {
			c.Close()
		}
		p.mu.Unlock()
		p.done.Wait()
	})
	return p
}

func (p *finProxy) url(target string) string {
	u, _ := url.Parse(target)
	u.Host = p.listener.Addr().String()
	return u.String()
}

func (p *finProxy) arm() { p.mu.Lock(); p.armed = true; p.mu.Unlock() }

func (p *finProxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.target)
		if err != nil {
			client.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, client, server)
		p.mu.Unlock()
		p.done.Go(func() { p.pump(client, server, false) })
		p.done.Go(func() { p.pump(server, client, true) })
	}
}

func (p *finProxy) pump(from, to net.Conn, reply bool) {
	defer from.Close()
	defer to.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		cut := reply && p.armed
		p.mu.Unlock()
		if err != nil || cut {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}
