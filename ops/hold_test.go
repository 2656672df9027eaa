package ops_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/ops"
	"github.com/commitcast/commitcast/wire"
)

// other is a topic of another partition than topic.
func other(topic string) string {
	for i := 0; ; i++ {
		if name := fmt.Sprintf("other%d", i); wire.Partition(name) != wire.Partition(topic) {
			return name
		}
	}
}

// Nothing of a partition that is paused gets an offset, whether it is being drained or not, and whoever orders drains; its
// neighbours flow. Resumed, it goes on where it was.
func TestPauseHoldsAPartition(t *testing.T) {
	d := newDesk(t)
	d.work()
	const topic = "t"
	p, near := wire.Partition(topic), other(topic)
	d.append(topic, 3)
	d.settled()
	var term int64
	if err := d.pool.QueryRow(t.Context(), `SELECT term FROM commitcast.partition WHERE id = $1`, p).Scan(&term); err != nil {
		t.Fatal(err)
	}
	if err := d.console.Pause(t.Context(), p, "a test"); err != nil { // while it is being drained
		t.Fatal(err)
	}
	d.append(topic, 5)
	// Drains that were ordered before sequence in the round trip in which they learn that they may not begin.
	if !d.holds(`SELECT sequenced = 0 FROM commitcast.sequence(ARRAY[$1::int::smallint], ARRAY[$2::bigint], 100, NULL, ARRAY[NULL::bigint], 0)`, p, term+10) {
		t.Error("a drain that was ordered before sequenced a paused partition")
	}
	// A drain that was ordered before, or by a worker that does not know of pauses.
	if d.holds(`SELECT commitcast.begin_drain($1::int::smallint, 1000000)`, p) {
		t.Error("a drain of a paused partition began")
	}
	for range 10 { // each is a sweep, and a drain of another partition
		d.append(near, 1)
		testkit.Eventually(t, 20*time.Second, func() bool {
			return d.holds(`SELECT NOT EXISTS (SELECT FROM commitcast.outbox WHERE topic = $1)`, near)
		}, "the neighbour is sequenced")
	}
	if !d.holds(`SELECT head = 3 FROM commitcast.topic WHERE topic = $1`, topic) ||
		!d.holds(`SELECT count(*) = 5 FROM commitcast.outbox WHERE topic = $1`, topic) {
		t.Error("a paused partition was sequenced")
	}
	if jobs := `SELECT NOT EXISTS (SELECT FROM commitcast.river_job WHERE kind = 'outbox_drain' AND state IN ('available', 'retryable') AND args->>'partition' = $1)`; !d.holds(jobs, fmt.Sprint(p)) {
		t.Error("drains are ordered for a paused partition")
	}
	st, err := d.console.Status(t.Context(), 0)
	if err != nil || st.Level != ops.Problem || !strings.Contains(fmt.Sprint(st.Findings), fmt.Sprintf("commitcast ops resume %d", p)) {
		t.Errorf("status: %v, %v", st.Findings, err)
	}

	// Two operators at once, and one who acts on what has changed.
	if err := d.as("bob", d.pool).Pause(t.Context(), p, ""); !errors.Is(err, ops.ErrConflict) || !strings.Contains(err.Error(), "alice") {
		t.Errorf("paused twice: %v", err)
	}
	if got := d.last(); !strings.HasPrefix(got, "bob | pause | partition ") || !strings.Contains(got, "refused: ") {
		t.Errorf("record: %s", got)
	}
	since, err := d.console.Paused(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.console.Resume(t.Context(), p, since.Add(time.Microsecond)); !errors.Is(err, ops.ErrConflict) {
		t.Errorf("another pause was ended: %v", err)
	}
	if err := d.console.Resume(t.Context(), p, since); err != nil {
		t.Fatal(err)
	}
	d.settled()
	if !d.holds(`SELECT head = 8 FROM commitcast.topic WHERE topic = $1`, topic) || d.held(topic).Last != 8 {
		t.Error("a resumed partition does not go on")
	}
	if got := d.last(); got != fmt.Sprintf("alice | resume | partition %d | done", p) {
		t.Errorf("record: %s", got)
	}
}

// A topic that an operator parks does not go to Redis any more, also while its partition is being drained; released, it is whole.
func TestParkAndRelease(t *testing.T) {
	d := newDesk(t)
	d.work()
	d.append("t", 4)
	d.settled()
	from, err := d.console.Park(t.Context(), "t", "a test")
	if err != nil || from != 5 {
		t.Fatalf("parked from %d: %v", from, err)
	}
	if _, err := d.console.Park(t.Context(), "t", ""); !errors.Is(err, ops.ErrConflict) {
		t.Errorf("parked twice: %v", err)
	}
	d.append("t", 6)
	d.settled()
	if h := d.held("t"); h.Last != 4 {
		t.Errorf("Redis has %+v of a parked topic", h)
	}
	plan, err := d.console.PlanRedrive(t.Context(), "t", 0, 0)
	if err != nil || plan.First != 5 || plan.Last != 10 || plan.Events != 6 {
		t.Fatalf("plan: %+v, %v", plan, err)
	}
	if _, err := d.console.PlanRedrive(t.Context(), "t", 1, 0); !errors.Is(err, ops.ErrConflict) {
		t.Errorf("a range of a parked topic: %v", err)
	}
	// Two operators release it at once: one does.
	var wg sync.WaitGroup
	results := make([]error, 4)
	redriving := make([]*ops.Redriving, 4)
	for i := range results {
		wg.Go(func() { redriving[i], results[i] = d.as(fmt.Sprint("o", i), d.pool).Redrive(t.Context(), plan) })
	}
	wg.Wait()
	var won int
	for i, err := range results {
		switch {
		case err == nil:
			won++
			ended, err := d.console.Await(t.Context(), redriving[i], func(*ops.Redriving) {})
			if err != nil || ended.Result != "done" {
				t.Errorf("redrive: %+v, %v", ended, err)
			}
		case !errors.Is(err, ops.ErrConflict):
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d of 4 operators redrove one topic: %v", won, results)
	}
	if h := d.held("t"); h.First != 1 || h.Last != 10 || h.Length != 10 {
		t.Errorf("Redis has %+v", h)
	}
	if d.holds(`SELECT EXISTS (SELECT FROM commitcast.parked) OR EXISTS (SELECT FROM commitcast.redrive)`) {
		t.Error("something is left of it")
	}
}

// What cannot be, what a role may not, and what is not so: an error that says so, and no change.
func TestWrongInputChangesNothing(t *testing.T) {
	d := newDesk(t)
	d.work()
	d.append("t", 10)
	d.settled()
	d.exec(`DELETE FROM commitcast.journal WHERE topic = 't' AND "offset" < 4`) // as retention does, leaf by leaf
	d.exec(`INSERT INTO commitcast.dead_letter (topic, "offset", epoch, partition, seq, id, type, data, created_at, error, attempts)
		VALUES ('t', 2, '1-cafe', 0, 2, 2, 'test', '1', now(), 'NOPERM', 1)`)
	ctx := t.Context()
	dead, err := d.console.DeadLetter(ctx, "t", 2)
	if err != nil {
		t.Fatal(err)
	}
	reader, operator := d.as("reader", d.connect("commitcast_reader", nil)), d.as("op", d.connect("commitcast_operator", nil))
	gone := *dead
	gone.DiedAt = gone.DiedAt.Add(-time.Second)
	plan := func(c *ops.Console, topic string, from, to int64) func() error {
		return func() error { _, err := c.PlanRedrive(ctx, topic, from, to); return err }
	}
	before := d.fingerprint()
	for name, c := range map[string]struct {
		do   func() error
		is   error
		says string
	}{
		"no such topic":           {plan(d.console, "nope", 0, 0), ops.ErrNotFound, "nope"},
		"not a topic":             {plan(d.console, "no pe", 0, 0), ops.ErrInvalid, "no pe"},
		"past retention":          {plan(d.console, "t", 3, 0), ops.ErrInvalid, "4 to 10"},
		"beyond the head":         {plan(d.console, "t", 5, 11), ops.ErrInvalid, "head of \"t\" is 10"},
		"an empty range":          {plan(d.console, "t", 6, 5), ops.ErrInvalid, "empty"},
		"not set aside":           {plan(d.console, "t", 0, 0), ops.ErrConflict, "not set aside"},
		"no such partition":       {func() error { return d.console.Pause(ctx, 32, "") }, ops.ErrInvalid, "0 to 31"},
		"not paused":              {func() error { return d.console.Resume(ctx, 3, time.Now()) }, ops.ErrConflict, "partition 3"},
		"park no such topic":      {func() error { _, err := d.console.Park(ctx, "nope", ""); return err }, ops.ErrInvalid, "nope"},
		"another epoch":           {func() error { _, err := d.console.BumpEpoch(ctx, "1-cafe", "x"); return err }, ops.ErrConflict, "1-cafe"},
		"an epoch without reason": {func() error { _, err := d.console.BumpEpoch(ctx, "1-cafe", ""); return err }, ops.ErrInvalid, "why"},
		"discard what is left":    {func() error { return d.console.Discard(ctx, "t", []ops.DeadLetter{*dead}, false) }, ops.ErrConflict, "not redriven"},
		"discard what changed":    {func() error { return d.console.Discard(ctx, "t", []ops.DeadLetter{gone}, true) }, ops.ErrConflict, "look again"},
		"no such dead letter":     {func() error { _, err := d.console.DeadLetter(ctx, "t", 1); return err }, ops.ErrNotFound, "offset 1"},
		"trace past retention":    {func() error { _, err := d.console.Trace(ctx, "t", 1, 0); return err }, ops.ErrNotFound, "past retention"},
		"trace beyond the head":   {func() error { _, err := d.console.Trace(ctx, "t", 11, 0); return err }, ops.ErrNotFound, "does not exist yet"},
		"trace no such id":        {func() error { _, err := d.console.Trace(ctx, "t", 0, 99); return err }, ops.ErrNotFound, "99"},
		"trace neither":           {func() error { _, err := d.console.Trace(ctx, "t", 0, 0); return err }, ops.ErrInvalid, ""},
		"tail past retention":     {func() error { return d.console.Tail(ctx, "t", 2, false, nil) }, ops.ErrInvalid, "4 to 10"},
		"a reader pauses":         {func() error { return reader.Pause(ctx, 3, "") }, ops.ErrForbidden, "commitcast_operator"},
		"a reader bumps":          {func() error { _, err := reader.BumpEpoch(ctx, "1-cafe", "x"); return err }, ops.ErrForbidden, ""},
		"a reader discards":       {func() error { return reader.Discard(ctx, "t", []ops.DeadLetter{*dead}, true) }, ops.ErrForbidden, ""},
		"nobody to drain":         {func() error { _, err := d.console.Drain(ctx, "b9", false); return err }, ops.ErrNotFound, ""},
		"nobody to disconnect":    {func() error { _, err := d.console.Disconnect(ctx, ""); return err }, ops.ErrInvalid, ""},
	} {
		if err := c.do(); !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if after := d.fingerprint(); after != before {
		t.Errorf("something has changed:\n%s\n%s", before, after)
	}

	// The role that is for it may do all of it.
	p, err := operator.PlanRedrive(ctx, "t", 5, 8)
	if err != nil {
		t.Fatal(err)
	}
	r, err := operator.Redrive(ctx, p)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := operator.Await(ctx, r, func(*ops.Redriving) {}); err != nil {
		t.Fatal(err)
	}
	if got := d.last(); got != "op | redrive | t | done" {
		t.Errorf("record: %s", got)
	}
	if _, err := operator.Park(ctx, "t", ""); err != nil {
		t.Error(err)
	}
	if p, err = operator.PlanRedrive(ctx, "t", 0, 0); err == nil {
		_, err = operator.Redrive(ctx, p)
	}
	if err != nil {
		t.Error(err)
	}
	if err := operator.Pause(ctx, 3, ""); err != nil {
		t.Error(err)
	}
	if since, err := operator.Paused(ctx, 3); err != nil {
		t.Error(err)
	} else if err := operator.Resume(ctx, 3, since); err != nil {
		t.Error(err)
	}
	if err := operator.Discard(ctx, "t", []ops.DeadLetter{*dead}, true); err != nil {
		t.Error(err)
	}
	epochs, err := operator.Epochs(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	if epoch, err := operator.BumpEpoch(ctx, epochs[0].Name, "a test"); err != nil || !strings.HasPrefix(epoch, fmt.Sprint(epochs[0].Ordinal+1)) {
		t.Errorf("bumped to %q: %v", epoch, err)
	}
	if st, err := operator.Status(ctx, 0); err != nil || !st.Database.Up {
		t.Errorf("an operator's status: %+v, %v", st.Database, err)
	}
}

// fingerprint is what operators could have changed.
func (d *desk) fingerprint() (s string) {
	d.t.Helper()
	err := d.pool.QueryRow(d.t.Context(), `SELECT concat_ws(' ', (SELECT json_agg(p ORDER BY topic) FROM commitcast.parked p)::text, (SELECT count(*) FROM commitcast.redrive),
		(SELECT json_agg(d ORDER BY topic, "offset") FROM commitcast.dead_letter d)::text, (SELECT max(ordinal) FROM commitcast.epoch),
		(SELECT count(*) FROM commitcast.river_job WHERE kind = 'topic_republish'), (SELECT count(*) FROM commitcast.partition WHERE paused_at IS NOT NULL))`).Scan(&s)
	if err != nil {
		d.t.Fatal(err)
	}
	return s
}

// An operator whose network goes away holds nothing for long.
func TestSessionEndsWithItsOperator(t *testing.T) {
	d := newDesk(t)
	if !d.holds(`SELECT current_setting('idle_in_transaction_session_timeout')::interval BETWEEN '1s' AND '5s'`) {
		t.Error("an idle transaction holds its locks")
	}
	config, err := pgx.ParseConfig(d.url)
	if err != nil {
		t.Fatal(err)
	}
	ops.Session(config)
	for _, name := range []string{"tcp_user_timeout", "tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count"} {
		if config.RuntimeParams[name] == "" { // on a socket of this machine Postgres says 0, whatever is asked for
			t.Errorf("%s is not set", name)
		}
	}
}

// The journal is read before the partition's row is held: who waits for the one does not hold up the other.
func TestParkReadsWithoutThePartition(t *testing.T) {
	d := newDesk(t)
	d.exec(`INSERT INTO commitcast.topic VALUES ('t', commitcast.partition_of('t'), 4, '1-cafe')`)
	d.exec(`UPDATE commitcast.partition SET seq = 7, published = 5 WHERE id = commitcast.partition_of('t')`)
	d.exec(`INSERT INTO commitcast.journal SELECT 't', o, '1-cafe', commitcast.partition_of('t'), o + 3, o, 'test', NULL, '1', NULL, now(), now() FROM generate_series(1, 4) o`)
	ctx := t.Context()
	tx, err := d.pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	if _, err := tx.Exec(ctx, `SET LOCAL idle_in_transaction_session_timeout = 0; LOCK TABLE commitcast.journal IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	type parked struct {
		from int64
		err  error
	}
	done := make(chan parked, 1)
	go func() { // waited for below
		var p parked
		p.err = d.pool.QueryRow(ctx, `SELECT commitcast.park_topic('t', 'x')`).Scan(&p.from)
		done <- p
	}()
	testkit.Eventually(t, 20*time.Second, func() bool {
		return d.holds(`SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'commitcast.journal'::regclass AND NOT granted)`)
	}, "parking waits for the journal")
	d.exec(`SELECT FROM commitcast.partition WHERE id = commitcast.partition_of('t') FOR UPDATE NOWAIT`)
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if p := <-done; p.err != nil || p.from != 3 { // offset 2 has seq 5
		t.Errorf("parked from %d: %v", p.from, p.err)
	}
	if !d.holds(`SELECT term = 1 FROM commitcast.partition WHERE id = commitcast.partition_of('t')`) {
		t.Error("the drain that runs was not passed")
	}
}

// What changed between look and act: a topic that was set aside, a range that was ordered, a job that began to run.
func TestRedriveOfWhatChanged(t *testing.T) {
	d := newDesk(t)
	ctx := t.Context()
	d.exec(`INSERT INTO commitcast.topic SELECT topic, commitcast.partition_of(topic), 4, '1-cafe' FROM unnest(ARRAY['a', 'b', 'c']) topic`)
	d.exec(`INSERT INTO commitcast.journal SELECT 'a', o, '1-cafe', commitcast.partition_of('a'), o, o, 'test', NULL, '1', NULL, now(), now() FROM generate_series(1, 4) o`)
	d.exec(`SELECT commitcast.begin_epoch(NULL, 'test')`)
	plan := func(topic string, from int64) *ops.Plan {
		t.Helper()
		p, err := d.console.PlanRedrive(ctx, topic, from, 0)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	ranged := plan("a", 1)
	d.exec(`SELECT commitcast.park_topic('a', 'x')`)
	if _, err := d.console.Redrive(ctx, ranged); !errors.Is(err, ops.ErrConflict) || d.holds(`SELECT EXISTS (SELECT FROM commitcast.redrive)`) {
		t.Errorf("a range of a topic that was set aside: %v", err)
	}

	d.exec(`INSERT INTO commitcast.parked (topic, partition, parked_from, error, died_at) VALUES ('b', commitcast.partition_of('b'), 2, 'x', now())`)
	whole := plan("b", 0)
	d.exec(`INSERT INTO commitcast.redrive (topic, first, last, next, audit) VALUES ('b', 1, 2, 1, 1)`)
	if _, err := d.console.Redrive(ctx, whole); !errors.Is(err, ops.ErrConflict) || d.holds(`SELECT died_at IS NULL FROM commitcast.parked WHERE topic = 'b'`) {
		t.Errorf("a topic with a range under way: %v", err)
	}

	d.exec(`INSERT INTO commitcast.river_job (kind, args, state, max_attempts, priority, queue, errors, attempt)
		VALUES ('topic_republish', '{"topic":"c"}', 'retryable', 9, 1, 'q', NULL, 1)`)
	tx, err := d.pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	if _, err := tx.Exec(ctx, `SET LOCAL idle_in_transaction_session_timeout = 0; UPDATE commitcast.river_job SET state = 'running'`); err != nil {
		t.Fatal(err)
	}
	type retried struct {
		job *int64
		err error
	}
	done := make(chan retried, 1)
	go func() { // waited for below
		var r retried
		r.err = d.pool.QueryRow(ctx, `SELECT commitcast.retry_republish('c')`).Scan(&r.job)
		done <- r
	}()
	testkit.Eventually(t, 20*time.Second, func() bool {
		return d.holds(`SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%retry_republish(''c'')%' AND pid <> pg_backend_pid())`)
	}, "the retry waits for the job")
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if r := <-done; r.err != nil || r.job != nil || !d.holds(`SELECT state = 'running' FROM commitcast.river_job WHERE kind = 'topic_republish'`) {
		t.Errorf("a job that runs was made available: %v, %v", r.job, r.err)
	}
}
