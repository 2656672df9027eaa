package outbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/outbox"
)

// bank is a database whose accounts change with events that are not idempotent: each says by how much.
type bank struct {
	pool   *pgxpool.Pool
	topics []string // of account 1 and so on
}

func newBank(t *testing.T, accounts int) *bank {
	b := &bank{pool: fresh(t, func(c *pgxpool.Config) { c.MaxConns = 16 })}
	for i := range accounts {
		b.topics = append(b.topics, fmt.Sprint("account:", i+1))
	}
	return b
}

// deposit is one writer's transaction.
func (b *bank) deposit(ctx context.Context, account, by int) error {
	return outbox.Tx(ctx, b.pool, func(tx *outbox.Transaction) error {
		_, err := tx.Exec(ctx, `UPDATE account SET balance = balance + $2 WHERE id = $1`, account, by)
		return errors.Join(err, tx.Publish(outbox.Event{Topic: b.topics[account-1], Type: "deposit", Data: by}))
	})
}

// sequence sequences a few events of each topic's partition.
func (b *bank) sequence(ctx context.Context, batch int) error {
	for _, topic := range b.topics {
		if _, err := b.pool.Exec(ctx, `SELECT commitcast.sequence(commitcast.partition_of($1), 1, $2, NULL, NULL)`, topic, batch); err != nil {
			return err
		}
	}
	return nil
}

// view is what one reader saw.
type view struct {
	balances  []int64
	positions []outbox.Position
}

func (b *bank) view(ctx context.Context, db outbox.Beginner) (v view, err error) {
	v.positions, err = outbox.Snapshot(ctx, db, b.topics, func(tx pgx.Tx) error {
		rows, _ := tx.Query(ctx, `SELECT balance FROM account WHERE id <= $1 ORDER BY id`, len(b.topics))
		v.balances, err = pgx.CollectRows(rows, pgx.RowTo[int64])
		return err
	})
	return v, err
}

// follow applies the events after a view's cursors, all of them or those that are not pending.
func (b *bank) follow(t *testing.T, v view, skipPending bool) (balances []int64) {
	t.Helper()
	for i, p := range v.positions {
		pending := p.Pending
		if !skipPending {
			pending = []int64{}
		}
		epoch, offset, _ := strings.Cut(p.Cursor, ":")
		n, err := strconv.ParseInt(offset, 10, 64)
		if err != nil || !strings.HasPrefix(epoch, "1-") || p.Epoch != epoch || p.Topic != b.topics[i] {
			t.Fatalf("position %+v", p)
		}
		sum := one[int64](t, b.pool, `SELECT coalesce(sum(data::text::bigint), 0)::bigint FROM commitcast.journal
			WHERE topic = $1 AND "offset" > $2 AND id <> ALL ($3)`, p.Topic, n, pending)
		balances = append(balances, v.balances[i]+sum)
	}
	return balances
}

// A snapshot and the events after it make the final state exactly, whenever it was taken.
func TestSnapshotFitsTheEventsThatFollow(t *testing.T) {
	b := newBank(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var writing, rest sync.WaitGroup
	for w := range 4 {
		writing.Go(func() {
			for i := range 150 {
				if err := b.deposit(ctx, 1+(w+i)%3, 1+i); err != nil {
					t.Error(err)
				}
			}
		})
	}
	written := make(chan struct{})
	rest.Go(func() { writing.Wait(); close(written) })
	rest.Go(func() { // the sequencer, slower than the writers, so that some events are pending
		for {
			if err := b.sequence(ctx, 3); err != nil {
				t.Error(err)
				return
			}
			select {
			case <-written:
				return
			default:
			}
		}
	})
	views := make([][]view, 3)
	for r := range views {
		rest.Go(func() {
			for {
				v, err := b.view(ctx, b.pool)
				if err != nil {
					t.Error(err)
					return
				}
				views[r] = append(views[r], v)
				select {
				case <-written:
					return
				default:
				}
			}
		})
	}
	rest.Wait()
	if err := b.sequence(ctx, 10_000); err != nil {
		t.Fatal(err)
	}
	final, err := b.view(ctx, b.pool)
	if err != nil {
		t.Fatal(err)
	}
	var pending, taken int
	for _, v := range slices.Concat(views...) {
		taken++
		if got := b.follow(t, v, true); !slices.Equal(got, final.balances) {
			t.Fatalf("snapshot %+v and the events after it make %v, want %v", v, got, final.balances)
		}
		if n := len(slices.Concat(v.positions[0].Pending, v.positions[1].Pending, v.positions[2].Pending)); n > 0 {
			pending++
			// What a client would see that ignored the pending ids.
			if got := b.follow(t, v, false); slices.Equal(got, final.balances) {
				t.Fatalf("snapshot %+v fits without its pending ids, too: they do nothing", v)
			}
		}
	}
	if pending == 0 {
		t.Errorf("none of %d snapshots met an unsequenced event: the test proves nothing", taken)
	}
	t.Logf("%d snapshots, %d with pending events", taken, pending)
}

func TestSnapshotOfATopicWithoutEvents(t *testing.T) {
	pool := fresh(t)
	epoch := one[string](t, pool, `SELECT commitcast.check_epoch()`)
	positions, err := outbox.Snapshot(t.Context(), pool, []string{"a"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(positions[0])
	if want := fmt.Sprintf(`{"topic":"a","cursor":"%s:0","epoch":"%s","pending":[]}`, epoch, epoch); err != nil || string(got) != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
	if positions, err := outbox.Snapshot(t.Context(), pool, nil, nil); err != nil || len(positions) != 0 {
		t.Errorf("no topics: %v, %v", positions, err)
	}
}

// The cursor carries the epoch of the topic's newest event; the position that of the database.
func TestSnapshotAfterAnEpoch(t *testing.T) {
	b := newBank(t, 2)
	ctx := t.Context()
	e1 := one[string](t, b.pool, `SELECT commitcast.check_epoch()`)
	if err := errors.Join(b.deposit(ctx, 1, 5), b.sequence(ctx, 10), b.deposit(ctx, 1, 6)); err != nil {
		t.Fatal(err)
	}
	e2 := one[string](t, b.pool, `SELECT commitcast.begin_epoch(NULL, 'test')`)
	v, err := b.view(ctx, b.pool)
	if err != nil {
		t.Fatal(err)
	}
	id := one[int64](t, b.pool, `SELECT id FROM commitcast.outbox`)
	want := []outbox.Position{
		{Topic: "account:1", Cursor: e1 + ":1", Epoch: e2, Pending: []int64{id}},
		{Topic: "account:2", Cursor: e2 + ":0", Epoch: e2, Pending: []int64{}},
	}
	if fmt.Sprint(v.positions) != fmt.Sprint(want) {
		t.Errorf("%+v, want %+v", v.positions, want)
	}
}

func TestSnapshotRefuses(t *testing.T) {
	pool := fresh(t)
	ctx := t.Context()
	boom := errors.New("boom")
	if _, err := outbox.Snapshot(ctx, pool, []string{"a"}, func(pgx.Tx) error { return boom }); err != boom {
		t.Errorf("error of read: %v", err)
	}
	for _, topics := range [][]string{{"a", ""}, {"a b"}, slices.Repeat([]string{"a"}, outbox.MaxTopics+1)} {
		if _, err := outbox.Snapshot(ctx, pool, topics, nil); !errors.Is(err, outbox.ErrInvalidEvent) {
			t.Errorf("%d topics: %v", len(topics), err)
		}
	}
	_, err := outbox.Snapshot(ctx, pool, []string{"a"}, func(tx pgx.Tx) error { return deposit(ctx, tx) })
	if pg := (*pgconn.PgError)(nil); !errors.As(err, &pg) || pg.Code != "25006" {
		t.Errorf("a write in read: %v", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := outbox.Snapshot(cancelled, pool, []string{"a"}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestSnapshotWithTooManyPending(t *testing.T) {
	pool := fresh(t)
	ctx := t.Context()
	add := func(topic string, n int) {
		exec(t, pool, `INSERT INTO commitcast.outbox (partition, topic, type, data) SELECT commitcast.partition_of($1), $1, 't', '1' FROM generate_series(1, $2)`, topic, n)
	}
	add("a", outbox.MaxPending)
	positions, err := outbox.Snapshot(ctx, pool, []string{"b", "a"}, nil)
	if err != nil || len(positions[1].Pending) != outbox.MaxPending || !slices.IsSorted(positions[1].Pending) {
		t.Fatalf("%v", err)
	}
	add("a", 1)
	if _, err := outbox.Snapshot(ctx, pool, []string{"b", "a"}, nil); !errors.Is(err, outbox.ErrTooManyPending) {
		t.Errorf("error %v", err)
	}
	// A backlog of the partition's other topics is not searched without end.
	p := one[int](t, pool, `SELECT commitcast.partition_of('a')`)
	exec(t, pool, `DELETE FROM commitcast.outbox`)
	exec(t, pool, `INSERT INTO commitcast.outbox (partition, topic, type, data) SELECT $1, other, 't', '1' FROM generate_series(1, 20001),
		(SELECT 'other:' || i FROM generate_series(1, 1000) i WHERE commitcast.partition_of('other:' || i) = $1 LIMIT 1) AS o (other)`, p)
	if _, err := outbox.Snapshot(ctx, pool, []string{"a"}, nil); !errors.Is(err, outbox.ErrTooManyPending) {
		t.Errorf("error %v", err)
	}
	if _, err := outbox.Snapshot(ctx, pool, []string{"b"}, nil); err != nil {
		t.Errorf("another partition: %v", err)
	}
}

// Between a restart and the first sequencing, a snapshot waits for the new epoch rather than carry the old one; also on
// a replica.
func TestSnapshotWaitsForTheEpoch(t *testing.T) {
	ctx := t.Context()
	server := testkit.Postgres(t)
	testkit.Migrate(t, server.URL("postgres"))
	replica, err := server.Replica(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer replica.Close()
	primary, standby := open(t, server.URL("postgres")), open(t, replica.URL("postgres"))
	add := func() int64 { return one[int64](t, primary, `SELECT commitcast.append('a', 't', '1')`) }
	caughtUp := func() {
		t.Helper()
		lsn := one[string](t, primary, `SELECT pg_current_wal_flush_lsn()::text`)
		testkit.Eventually(t, 20*time.Second, func() bool {
			return one[bool](t, standby, `SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn`, lsn)
		}, "the replica has caught up")
	}
	snapshots := func(want string, pending ...int64) {
		t.Helper()
		caughtUp()
		for name, db := range map[string]*pgxpool.Pool{"primary": primary, "replica": standby} {
			p, err := outbox.Snapshot(ctx, db, []string{"a"}, nil)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			} else if p[0].Epoch != want || !slices.Equal(p[0].Pending, pending) {
				t.Errorf("%s: %+v, want epoch %s, pending %v", name, p[0], want, pending)
			}
		}
	}
	e1 := one[string](t, primary, `SELECT commitcast.check_epoch()`)
	first := add()
	snapshots(e1, first)

	if err := server.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 20*time.Second, func() error { return primary.Ping(ctx) }, "the pool is back")
	primary.Reset()
	snapshots(e1, first) // what was taken in before the restart carries the epoch of then
	second := add()
	caughtUp()
	for name, db := range map[string]*pgxpool.Pool{"primary": primary, "replica": standby} {
		start := time.Now()
		if p, err := outbox.Snapshot(ctx, db, []string{"a"}, nil); !errors.Is(err, outbox.ErrEpochPending) {
			t.Errorf("%s: %+v, %v, want ErrEpochPending", name, p, err)
		}
		if took := time.Since(start); took < time.Second || took > 10*time.Second {
			t.Errorf("%s: gave up after %v", name, took)
		}
	}
	if _, err := outbox.Snapshot(ctx, primary, []string{"other"}, nil); err != nil {
		t.Errorf("a topic without new events waits: %v", err)
	}
	// Once the epoch begins, a waiting snapshot goes on, and calls read once.
	reads := 0
	result := make(chan error, 1)
	var p []outbox.Position
	go func() { // ends when the epoch has begun; the test waits for the answer
		var err error
		p, err = outbox.Snapshot(ctx, primary, []string{"a"}, func(pgx.Tx) error { reads++; return nil })
		result <- err
	}()
	testkit.Eventually(t, 10*time.Second, func() bool { return primary.Stat().AcquireCount() > 0 }, "it waits")
	e2 := one[string](t, primary, `SELECT commitcast.check_epoch()`)
	if err := <-result; err != nil || p[0].Epoch != e2 || reads != 1 {
		t.Errorf("%+v, %v, %d reads, want epoch %s", p, err, reads, e2)
	}
	snapshots(e2, first, second)

	// The replica becomes the primary: what it takes in then is newer than any epoch it knows.
	if err := replica.Promote(ctx); err != nil {
		t.Fatal(err)
	}
	one[int64](t, standby, `SELECT commitcast.append('a', 't', '1')`)
	if p, err := outbox.Snapshot(ctx, standby, []string{"a"}, nil); !errors.Is(err, outbox.ErrEpochPending) {
		t.Errorf("after promotion: %+v, %v, want ErrEpochPending", p, err)
	}
	e3 := one[string](t, standby, `SELECT commitcast.check_epoch()`)
	if p, err := outbox.Snapshot(ctx, standby, []string{"a"}, nil); err != nil || p[0].Epoch != e3 || e3 == e2 || len(p[0].Pending) != 3 {
		t.Errorf("after promotion: %+v, %v, want epoch %s", p, err, e3)
	}
}

// A server that goes away while a snapshot is read does not cost the pool a connection: a pool has few of them.
func TestSnapshotGivesALostConnectionBack(t *testing.T) {
	pool := fresh(t)
	other := open(t, pool.Config().ConnString())
	for range 2 {
		_, err := outbox.Snapshot(t.Context(), pool, []string{"t"}, func(tx pgx.Tx) error {
			exec(t, other, fmt.Sprintf("SELECT pg_terminate_backend(%d)", tx.Conn().PgConn().PID()))
			for { // the connection is lost with one of these
				if _, err := tx.Exec(t.Context(), "SELECT pg_sleep(0.01)"); err != nil && tx.Conn().IsClosed() {
					return err
				}
			}
		})
		if err == nil {
			t.Fatal("a snapshot without a server")
		}
	}
	// The pool closes a broken connection in the background.
	testkit.Eventually(t, 10*time.Second, func() bool { return pool.Stat().AcquiredConns() == 0 }, "no connection is lost to the pool")
}
