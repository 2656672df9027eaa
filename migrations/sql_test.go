package migrations_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

type standing struct {
	epoch                string
	seq, published, term int64
	sequenced            int
}

func sequence(t *testing.T, conn *pgx.Conn, p, term, batch int, doneEpoch *string, done *int64) standing {
	t.Helper()
	var s standing
	err := conn.QueryRow(t.Context(), `SELECT epoch, seq, published, term, sequenced FROM commitcast.sequence($1::int::smallint, $2, $3, $4, $5)`,
		p, term, batch, doneEpoch, done).Scan(&s.epoch, &s.seq, &s.published, &s.term, &s.sequenced)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// topics returns n topics of one partition.
func topics(t *testing.T, conn *pgx.Conn, n int) (p int, names []string) {
	t.Helper()
	p = one[int](t, conn, `SELECT commitcast.partition_of('topic:0')`)
	for i := 0; len(names) < n; i++ {
		name := fmt.Sprintf("topic:%d", i)
		if one[int](t, conn, `SELECT commitcast.partition_of($1)`, name) == p {
			names = append(names, name)
		}
	}
	return p, names
}

const structureSQL = `
SELECT coalesce(string_agg(format('%s %s..%s of %s', topic, min, max, n), '; '), '') FROM (
    SELECT topic, min("offset"), max("offset"), count(*) AS n FROM commitcast.journal GROUP BY topic
    UNION ALL SELECT 'partition ' || partition, min(seq), max(seq), count(*) FROM commitcast.journal GROUP BY partition
) x WHERE min <> 1 OR max <> n`

func TestSequenceNumbersInOrder(t *testing.T) {
	db := migrated(t)
	conn := connect(t, db)
	p, names := topics(t, conn, 3)
	var want [3][]int64
	for i := range 100 {
		k := (i * i / 2) % 3
		id := one[int64](t, conn, `SELECT commitcast.append($1, 't', $2)`, names[k], fmt.Sprint(i))
		want[k] = append(want[k], id)
	}
	total := 0
	for s := sequence(t, conn, p, 1, 7, nil, nil); ; s = sequence(t, conn, p, 1, 7, nil, nil) {
		total += s.sequenced
		if s.seq != int64(total) || s.published != 0 {
			t.Fatalf("%+v after %d", s, total)
		}
		if s.sequenced == 0 {
			break
		}
	}
	if total != 100 {
		t.Errorf("sequenced %d of 100", total)
	}
	if bad := one[string](t, conn, structureSQL); bad != "" {
		t.Error(bad)
	}
	for k, name := range names {
		got := one[[]int64](t, conn, `SELECT array_agg(id ORDER BY "offset") FROM commitcast.journal WHERE topic = $1`, name)
		if fmt.Sprint(got) != fmt.Sprint(want[k]) {
			t.Errorf("%s: ids by offset %v, want %v", name, got, want[k])
		}
		if head := one[int](t, conn, `SELECT head FROM commitcast.topic WHERE topic = $1`, name); head != len(want[k]) {
			t.Errorf("%s: head %d, want %d", name, head, len(want[k]))
		}
	}
	if left := one[int](t, conn, `SELECT count(*) FROM commitcast.outbox`); left != 0 {
		t.Errorf("%d rows left in the outbox", left)
	}
}

func TestSequenceRecordsPublished(t *testing.T) {
	db := migrated(t)
	conn := connect(t, db)
	p, names := topics(t, conn, 1)
	for range 5 {
		one[int64](t, conn, `SELECT commitcast.append($1, 't', '1')`, names[0])
	}
	s := sequence(t, conn, p, 1, 3, nil, nil)
	other, done, tooFar := "1-00000000", int64(3), int64(99)
	if s := sequence(t, conn, p, 1, 0, &other, &done); s.published != 0 {
		t.Errorf("a report of another epoch counted: %+v", s)
	}
	if s := sequence(t, conn, p, 1, 0, &s.epoch, &done); s.published != 3 {
		t.Errorf("published %d, want 3", s.published)
	}
	done = 2
	if s := sequence(t, conn, p, 1, 10, &s.epoch, &done); s.published != 3 || s.sequenced != 2 {
		t.Errorf("%+v, want published 3 (never back) and 2 sequenced", s)
	}
	if s := sequence(t, conn, p, 1, 10, &s.epoch, &tooFar); s.published != 5 {
		t.Errorf("published %d, want 5: no more than seq", s.published)
	}
	// A drain of an older term stops; a newer one goes on.
	if !one[bool](t, conn, `SELECT commitcast.begin_drain($1::int::smallint, 7)`, p) || one[bool](t, conn, `SELECT commitcast.begin_drain($1::int::smallint, 7)`, p) {
		t.Error("begin_drain must be true once a term")
	}
	one[int64](t, conn, `SELECT commitcast.append($1, 't', '1')`, names[0])
	if s := sequence(t, conn, p, 6, 10, nil, nil); s.sequenced != 0 || s.term != 7 {
		t.Errorf("an old term sequenced: %+v", s)
	}
	if s := sequence(t, conn, p, 7, 10, nil, nil); s.sequenced != 1 {
		t.Errorf("the current term did not sequence: %+v", s)
	}
}

// A batch is shared among the partitions that have events, however many each has.
func TestSequenceSharesABatch(t *testing.T) {
	conn := connect(t, migrated(t))
	for p, n := range map[int]int{3: 100, 5: 100, 8: 100, 9: 4} {
		if _, err := conn.Exec(t.Context(), `INSERT INTO commitcast.outbox (partition, topic, type, data)
			SELECT $1::int, (SELECT 'p' || i FROM generate_series(1, 1000) i WHERE commitcast.partition_of('p' || i) = $1 LIMIT 1), 't', '1'
			FROM generate_series(1, $2)`, p, n); err != nil {
			t.Fatal(err)
		}
	}
	rows, err := conn.Query(t.Context(), `SELECT partition::text || ': ' || sequenced || ' ' || more
		FROM commitcast.sequence(ARRAY[9,8,5,4,3]::smallint[], ARRAY[1,1,1,1,1], 40, NULL, ARRAY[NULL,NULL,NULL,NULL,NULL]::bigint[], 0) ORDER BY partition`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if want := "[3: 10 true 4: 0 false 5: 10 true 8: 10 true 9: 4 false]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("%v (%v), want %s", got, err, want)
	}
	if bad := one[string](t, conn, structureSQL); bad != "" {
		t.Error(bad)
	}
}

// Two sequencers of one partition while writers write: no event is missed, numbered twice, or out of order.
// One event of one partition has statements of its own: they do what the one for any number does, which a partition meets that is
// asked about together with another.
func TestSequenceOneIsLikeMany(t *testing.T) {
	conn := connect(t, migrated(t))
	const alone, together, beside = 3, 5, 8
	topic := func(p int) string {
		return one[string](t, conn, `SELECT 'p' || i FROM generate_series(1, 1000) i WHERE commitcast.partition_of('p' || i) = $1 LIMIT 1`, p)
	}
	names := map[int]string{alone: topic(alone), together: topic(together)}
	epoch := one[string](t, conn, `SELECT commitcast.check_epoch()`)
	random := rand.New(rand.NewPCG(1, 1))
	ones := 0
	var events, seq int64
	if _, err := conn.Exec(t.Context(), `UPDATE commitcast.partition SET term = 1`); err != nil {
		t.Fatal(err)
	}
	for step := range 400 {
		for range random.IntN(3) { // about as many as are taken
			events++
			for _, p := range []int{alone, together} { // the pair has ids 2n-1 and 2n
				if _, err := conn.Exec(t.Context(), `INSERT INTO commitcast.outbox (partition, topic, type, data) VALUES ($1, $2, 't', to_json($3::bigint))`,
					p, names[p], events); err != nil {
					t.Fatal(err)
				}
			}
		}
		told := []any{nil, epoch, epoch, "1-00000000"}[random.IntN(4)]
		var done any
		if random.IntN(4) > 0 {
			done = max(0, seq+1-random.Int64N(4)) // sometimes more than there is
		}
		term, batch, safe := random.IntN(4), random.IntN(4), 2*max(0, events-random.Int64N(4))
		said := func(ps ...int) (got string) {
			terms, dones := make([]int, len(ps)), make([]any, len(ps))
			for i := range ps {
				terms[i], dones[i] = term, done
			}
			if err := conn.QueryRow(t.Context(), `SELECT (epoch, seq, published, term, sequenced, more)::text
				FROM commitcast.sequence($1::int[]::smallint[], $2::int[]::bigint[], $3, $4, $5, $6) WHERE partition = $7`,
				ps, terms, batch, told, dones, safe, ps[0]).Scan(&got); err != nil {
				t.Fatal(err)
			}
			return got
		}
		before := seq
		a, b := said(alone), said(together, beside)
		if a != b {
			t.Fatalf("step %d: alone %s, together %s", step, a, b)
		}
		// Ids and floors of a pair differ by one.
		state := func(p int) string {
			return one[string](t, conn, `SELECT (q.seq, q.published, q.term, (q.floor + 1) / 2, q.last_sequenced_at > '-infinity', (SELECT (head, head_epoch) FROM commitcast.topic WHERE partition = q.id),
				(SELECT array_agg((j."offset", j.epoch, j.seq, (j.id + 1) / 2, j.type, j.key, j.data::text, j.headers::text, j.sequenced_at = q.last_sequenced_at) ORDER BY j.seq)
					FROM commitcast.journal j WHERE j.partition = q.id AND j.seq > $2),
				(SELECT array_agg((o.id + 1) / 2 ORDER BY o.id) FROM commitcast.outbox o WHERE o.partition = q.id))::text FROM commitcast.partition q WHERE q.id = $1`, p, before)
		}
		if a, b := state(alone), state(together); a != b {
			t.Fatalf("step %d: alone\n%s\ntogether\n%s", step, a, b)
		}
		seq = one[int64](t, conn, `SELECT seq FROM commitcast.partition WHERE id = $1`, alone)
		if seq == before+1 {
			ones++
		}
	}
	if ones < 50 {
		t.Errorf("one event alone %d times only", ones)
	}
}

func TestSequenceTwiceAtOnce(t *testing.T) {
	db := migrated(t)
	setup := connect(t, db)
	p, names := topics(t, setup, 4)
	const writers, each = 4, 100
	var writing, sequencing sync.WaitGroup
	for w := range writers {
		conn := connect(t, db)
		writing.Go(func() {
			for i := range each {
				if _, err := conn.Exec(t.Context(), `SELECT commitcast.append($1, 't', $2)`, names[(w+i)%4], fmt.Sprint(i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	written := make(chan struct{})
	go func() { writing.Wait(); close(written) }() // ends with the writers
	for range 3 {
		conn := connect(t, db)
		sequencing.Go(func() {
			for last := false; ; {
				var n *int
				if err := conn.QueryRow(t.Context(), `SELECT sequenced FROM commitcast.sequence($1::int::smallint, 1, 11, NULL, NULL)`, p).Scan(&n); err != nil {
					t.Error(err)
					return
				}
				if n == nil || *n > 0 { // nil: another has the partition just now
					continue
				}
				if last {
					return
				}
				select {
				case <-written:
					last = true
				default:
				}
			}
		})
	}
	sequencing.Wait()
	// Each of them may have seen the other's rows; what is left is for the next pass.
	for sequence(t, setup, p, 1, 100, nil, nil).sequenced > 0 {
	}
	if bad := one[string](t, setup, structureSQL); bad != "" {
		t.Error(bad)
	}
	if n := one[int](t, setup, `SELECT count(DISTINCT id) FROM commitcast.journal`); n != writers*each {
		t.Errorf("%d events in the journal, want %d", n, writers*each)
	}
}

// Sequenced events are on disk before anyone sees them, also where commits do not wait for the disk.
func TestSequencedEventsSurviveACrash(t *testing.T) {
	db := migrated(t)
	exec(t, "postgres", "ALTER DATABASE "+db+" SET synchronous_commit = off")
	conn := connect(t, db)
	p, names := topics(t, conn, 1)
	conn.Close(t.Context())
	for want := 1; want <= 3; want++ {
		conn := connect(t, db)
		one[string](t, conn, `SELECT commitcast.check_epoch()`) // apart: it flushes too
		one[int64](t, conn, `SELECT commitcast.append($1, 't', '1')`, names[0])
		sequence(t, conn, p, 1, 10, nil, nil)
		postgres.Kill()
		if err := postgres.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if head := value[int](t, db, `SELECT coalesce(max(head), 0) FROM commitcast.topic`); head != want {
			t.Fatalf("head %d after the crash, want %d", head, want)
		}
	}
}

func TestEpochFollowsTheServer(t *testing.T) {
	db := migrated(t)
	epochs := []string{value[string](t, db, `SELECT commitcast.check_epoch()`)}
	step := func(what string, changed bool) {
		t.Helper()
		e := value[string](t, db, `SELECT commitcast.check_epoch()`)
		if again := value[string](t, db, `SELECT commitcast.check_epoch()`); again != e {
			t.Errorf("%s: the epoch changed from %s to %s without a reason", what, e, again)
		}
		if (e != epochs[len(epochs)-1]) != changed {
			t.Errorf("%s: epoch %s after %v", what, e, epochs)
		}
		epochs = append(epochs, e)
	}
	step("nothing", false)
	if err := postgres.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	step("restart", true)
	postgres.Kill()
	if err := postgres.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	step("crash", true)
	value[string](t, db, `SELECT commitcast.begin_epoch(NULL, 'operator')`)
	step("bump", true)
	for i, e := range epochs {
		if !strings.HasPrefix(e, fmt.Sprint([]int{1, 1, 2, 3, 4}[i], "-")) {
			t.Errorf("epochs %v", epochs)
		}
	}
}

// A crash of one backend makes the server recover without a new postmaster. Commits that did not wait for the disk are
// lost, and their event ids are given again: that is a new history.
func TestBackendCrashIsAnEpoch(t *testing.T) {
	db := migrated(t)
	before := value[string](t, db, `SELECT commitcast.check_epoch()`)
	conn, witness := connect(t, db), connect(t, db)
	pid := one[int](t, conn, `SELECT pg_backend_pid()`)
	started := one[time.Time](t, conn, `SELECT pg_postmaster_start_time()`)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for witness.Ping(t.Context()) == nil { // ended by the postmaster, once it has noticed
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		c, err := pgx.Connect(t.Context(), postgres.URL(db))
		if err == nil {
			c.Close(context.Background())
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if now := value[time.Time](t, db, `SELECT pg_postmaster_start_time()`); !now.Equal(started) {
		t.Fatal("the postmaster was restarted: this test proves nothing")
	}
	if after := value[string](t, db, `SELECT commitcast.check_epoch()`); after == before {
		t.Errorf("still epoch %s after a crash recovery", after)
	}
}

func TestEpochBeginsOnceForMany(t *testing.T) {
	db := migrated(t)
	exec(t, db, `UPDATE commitcast.epoch SET incarnation = 'another'`)
	got := make([]string, 8)
	var wg sync.WaitGroup
	for i := range got {
		conn := connect(t, db)
		wg.Go(func() {
			if err := conn.QueryRow(t.Context(), `SELECT commitcast.check_epoch()`).Scan(&got[i]); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, e := range got {
		if e != got[0] || !strings.HasPrefix(e, "2-") {
			t.Fatalf("epochs %v", got)
		}
	}
}
