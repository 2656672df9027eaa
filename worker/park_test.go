package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/stream"
)

// poisoned refuses every offer that holds one event of one topic, and counts the offers of that topic.
type poisoned struct {
	*breakable
	real    stream.Stream
	topic   string
	offset  int64
	offered atomic.Int64
}

func poison(s stream.Stream, topic string, offset int64) *poisoned {
	p := &poisoned{breakable: &breakable{Stream: s}, real: s, topic: topic, offset: offset}
	p.set(p.publishAll)
	return p
}

var errPoison = errors.New("NOPERM not this one")

func (p *poisoned) publishAll(ctx context.Context, offers []stream.Offer) ([]stream.Answer, error) {
	answers := make([]stream.Answer, len(offers))
	for i, o := range offers {
		if o.Topic == p.topic {
			p.offered.Add(1)
			if o.First <= p.offset && p.offset <= o.Last() {
				answers[i].Err = errPoison
				continue
			}
		}
		a, err := p.real.Publish(ctx, offers[i:i+1])
		if err != nil {
			return nil, err
		}
		answers[i] = a[0]
	}
	return answers, nil
}

// job is what River shows of a topic's newest republish job.
type job struct {
	state            string
	attempt, snoozes int
	errors           int
}

func (b *bench) job(topic string) (j job) {
	b.t.Helper()
	if err := b.pool.QueryRow(context.Background(), `SELECT state::text, attempt, coalesce((metadata->>'snoozes')::int, 0),
		coalesce(array_length(errors, 1), 0) FROM commitcast.river_job WHERE kind = 'topic_republish' AND args->>'topic' = $1
		ORDER BY id DESC LIMIT 1`, topic).Scan(&j.state, &j.attempt, &j.snoozes, &j.errors); err != nil {
		b.t.Fatal(err)
	}
	return j
}

const setAsideSQL = `SELECT EXISTS (SELECT FROM commitcast.parked WHERE topic = $1)`

// G7: a topic that the stream refuses is set aside: its neighbours, and the partition's watermark, flow past it; the
// events behind the refused one cost no attempts; and once it is not refused all of it is published.
func TestRefusedTopicIsSetAside(t *testing.T) {
	const behind = 10_000
	b := newBench(t)
	bad, good := topicIn(9, 0), topicIn(9, 1)
	s := poison(b.stream, bad, 5)
	sub := b.subscribe(b.stream, b.epoch(), bad, good)
	b.runOn(s, Config{})
	for i := range int64(8) {
		b.append(bad, `1`)
		b.append(good, `1`)
		testkit.Eventually(t, 5*time.Second, func() bool { return sub.reached(good) == i+1 }, "event %d of the neighbour", i+1)
	}
	testkit.Eventually(t, 5*time.Second, func() bool { return scalar[bool](b, setAsideSQL, bad) }, "set aside")
	for i := range int64(20) {
		b.exec(`INSERT INTO commitcast.outbox (partition, topic, type, data) SELECT 9, $1, 'e', to_json(i) FROM generate_series(1, $2) i`, bad, behind/20)
		b.append(good, `1`)
		testkit.Eventually(t, 5*time.Second, func() bool { return sub.reached(good) == i+9 }, "event %d of the neighbour", i+9)
	}
	b.published(10 * time.Second) // the watermark passes what was set aside
	if n := sub.reached(bad); n != 4 {
		t.Errorf("the refused topic got to %d, not up to the event before the refused one", n)
	}
	testkit.Eventually(t, 10*time.Second, func() bool { return b.job(bad).errors >= 2 }, "two failed attempts")
	offered, attempts := s.offered.Load(), int64(b.job(bad).errors+1)
	// One by the drain for each event before it was set aside, and by each attempt one for each halving of a piece.
	if most := 8 + attempts*12; offered > most {
		t.Errorf("%d offers of the refused topic in %d attempts", offered, attempts)
	}
	t.Logf("%d events behind a refused one: %d offers in %d attempts", behind, offered, attempts)
	s.set(nil)
	testkit.Eventually(t, 30*time.Second, func() bool { return !scalar[bool](b, setAsideSQL, bad) }, "not set aside any more")
	b.append(bad, `"after"`)
	testkit.Eventually(t, 10*time.Second, func() bool { return sub.reached(bad) == behind+9 }, "all events of the refused topic")
	b.published(5 * time.Second)
	b.checkStream(b.journal(), fromStart)
	sub.noHoles(t)
	testkit.Eventually(t, 5*time.Second, func() bool { return b.job(bad).state == "completed" }, "its job completed")
}

// The first retry comes within a second.
func TestFirstRetryIsSoon(t *testing.T) {
	b := newBench(t)
	bad := topicIn(3, 0)
	s := poison(b.stream, bad, 1)
	b.runOn(s, Config{})
	b.append(bad, `1`)
	testkit.Eventually(t, 10*time.Second, func() bool { return s.offered.Load() >= 1 }, "refused once")
	start := time.Now()
	s.set(nil)
	testkit.Eventually(t, 10*time.Second, func() bool {
		return scalar[bool](b, `SELECT count(*) = 1 FROM commitcast.river_job WHERE kind = 'topic_republish' AND state = 'completed'`)
	}, "published by its job")
	if took := time.Since(start); took > 3*time.Second { // a second, and the machine's own slowness
		t.Errorf("the first retry came after %v", took)
	}
}

// After the last attempt the topic is a dead letter, in River and in the database; new events of it and of its
// neighbours are no attempts; redrive publishes all of it in order while new events keep coming.
func TestDeadLetterAndRedrive(t *testing.T) {
	b := newBench(t)
	bad, good := topicIn(9, 0), topicIn(9, 1)
	s := poison(b.stream, bad, 3)
	sub := b.subscribe(b.stream, b.epoch(), bad, good)
	_, stop := b.runOn(s, Config{RepublishAttempts: 2})
	for i := range 6 {
		b.append(bad, fmt.Sprint(i+1))
	}
	const diedSQL = `SELECT EXISTS (SELECT FROM commitcast.parked WHERE topic = $1 AND died_at IS NOT NULL)`
	testkit.Eventually(t, 20*time.Second, func() bool { return scalar[bool](b, diedSQL, bad) }, "given up")
	testkit.Eventually(t, 5*time.Second, func() bool { return b.job(bad) == job{"discarded", 2, 0, 2} }, "its job discarded")
	var data, why string
	var offset int64
	var attempts int
	if err := b.pool.QueryRow(t.Context(), `SELECT "offset", data::text, error, attempts FROM commitcast.dead_letter WHERE topic = $1`, bad).
		Scan(&offset, &data, &why, &attempts); err != nil {
		t.Fatal(err)
	}
	if offset != 3 || data != "3" || why != "offset 3: "+errPoison.Error() || attempts != 2 {
		t.Errorf("dead letter: offset %d, data %s, error %q, %d attempts", offset, data, why, attempts)
	}
	stop() // another worker must know, too
	_, stop = b.runOn(s, Config{})
	before := s.offered.Load()
	for range 50 {
		b.append(bad, `1`)
		b.append(good, `1`)
	}
	b.published(10 * time.Second)
	if n := s.offered.Load() - before; n != 0 {
		t.Errorf("%d offers of a topic that was given up", n)
	}
	if sub.reached(good) != 50 || sub.reached(bad) != 2 {
		t.Errorf("the neighbour got to %d, the dead topic to %d", sub.reached(good), sub.reached(bad))
	}

	// A redrive whose cause is not gone fails as before, and leaves the topic set aside.
	operator := openPool(t, testkit.As(t, b.url, "operator"))
	if taken, err := Redrive(t.Context(), operator, bad, "never:was"); err != nil || len(taken) != 1 || taken[0] != bad {
		t.Fatalf("redrive: %v, %v", taken, err)
	}
	testkit.Eventually(t, 20*time.Second, func() bool { return b.job(bad).errors >= 2 }, "tried again, in vain")
	if !scalar[bool](b, setAsideSQL, bad) || scalar[bool](b, diedSQL, bad) || sub.reached(bad) != 2 {
		t.Error("a redrive that fails does not leave the topic set aside")
	}
	b.exec(`UPDATE commitcast.parked SET died_at = now()`) // as after its last attempt, half an hour later
	b.exec(`UPDATE commitcast.river_job SET state = 'discarded', finalized_at = now() WHERE kind = 'topic_republish' AND state <> 'discarded'`)

	s.set(nil)
	ctx, cancel := context.WithCancel(t.Context())
	writing := make(chan int64, 1)
	go func() { // ends with cancel, for whose result we wait
		n := int64(0)
		for ctx.Err() == nil {
			if _, err := b.pool.Exec(context.Background(), appendSQL, bad, `1`); err != nil {
				t.Error(err)
			}
			n++
		}
		writing <- n
	}()
	if taken, err := Redrive(t.Context(), operator); err != nil || len(taken) != 1 {
		t.Fatalf("redrive: %v, %v", taken, err)
	}
	testkit.Eventually(t, 60*time.Second, func() bool { return !scalar[bool](b, setAsideSQL, bad) }, "redriven")
	testkit.Eventually(t, 10*time.Second, func() bool { return sub.reached(bad) > 100 }, "new events flow")
	cancel()
	n := <-writing
	testkit.Eventually(t, 10*time.Second, func() bool { return sub.reached(bad) == 56+n }, "every event of the redriven topic")
	b.published(5 * time.Second)
	b.checkStream(b.journal(), fromStart)
	sub.noHoles(t)
	if n := scalar[int](b, `SELECT count(*) FROM commitcast.dead_letter WHERE redriven_at IS NOT NULL`); n != 1 {
		t.Errorf("%d dead letters are marked as redriven", n)
	}
	stop()
}

// A topic that is unparked while its events pour in loses none of them to a drain that still thinks it set aside: many
// times over, with the drain held up where it knows the least.
func TestUnparkWhileEventsPourIn(t *testing.T) {
	b := newBench(t)
	topic := topicIn(9, 0)
	s := &breakable{Stream: b.stream}
	var refuse atomic.Bool
	s.set(func(ctx context.Context, offers []stream.Offer) ([]stream.Answer, error) {
		if refuse.Load() && offers[0].Topic == topic {
			return []stream.Answer{{Err: errPoison}}, nil
		}
		return b.stream.Publish(ctx, offers)
	})
	sub := b.subscribe(b.stream, b.epoch(), topic)
	b.runOn(s, Config{})
	n := int64(0)
	for round := range 15 {
		refuse.Store(true)
		testkit.Eventually(t, 10*time.Second, func() bool {
			b.append(topic, `1`)
			n++
			return scalar[bool](b, setAsideSQL, topic)
		}, "set aside in round %d", round)
		refuse.Store(false)
		testkit.Eventually(t, 20*time.Second, func() bool {
			b.append(topic, `1`)
			n++
			return !scalar[bool](b, setAsideSQL, topic)
		}, "unparked in round %d", round)
		testkit.Eventually(t, 5*time.Second, func() bool { return sub.reached(topic) == n }, "all %d events in round %d", n, round)
	}
	b.published(5 * time.Second)
	b.checkStream(b.journal(), fromStart)
	sub.noHoles(t)
}

// However long a stream is not there, it is no attempt of anybody.
func TestTroubleOfTheStreamIsNoAttempt(t *testing.T) {
	for name, trouble := range map[string]func() ([]stream.Answer, error){
		"away":            func() ([]stream.Answer, error) { return nil, fmt.Errorf("%w: LOADING", stream.ErrUnavailable) },
		"refuses us all":  func() ([]stream.Answer, error) { return []stream.Answer{{Err: errPoison}}, nil },
		"answers nothing": func() ([]stream.Answer, error) { return nil, nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			bad, other := topicIn(9, 0), topicIn(9, 1)
			s := poison(b.stream, bad, 1)
			b.runOn(s, Config{RepublishAttempts: 3})
			b.append(bad, `1`)
			testkit.Eventually(t, 10*time.Second, func() bool { return scalar[bool](b, setAsideSQL, bad) }, "set aside")
			s.set(func(_ context.Context, offers []stream.Offer) ([]stream.Answer, error) {
				answers, err := trouble()
				for len(answers) > 0 && len(answers) < len(offers) {
					answers = append(answers, answers[0])
				}
				return answers, err
			})
			b.append(other, `1`)
			testkit.Eventually(t, 60*time.Second, func() bool { return b.job(bad).snoozes >= 5 }, "put off more often than it may fail")
			if j := b.job(bad); j.errors > 2 || j.state == "discarded" {
				t.Errorf("%+v: trouble of the stream counts as attempts", j)
			}
			if scalar[bool](b, setAsideSQL, other) {
				t.Error("a topic was set aside because of the stream")
			}
			s.set(nil)
			b.published(20 * time.Second)
			testkit.Eventually(t, 60*time.Second, func() bool { return !scalar[bool](b, setAsideSQL, bad) }, "published at last")
			b.checkStream(b.journal(), fromStart)
			if n := scalar[int](b, `SELECT count(*) FROM commitcast.dead_letter`); n != 0 {
				t.Errorf("%d dead letters", n)
			}
		})
	}
}

// The same with a real server in each of its moods, from the first event on.
func TestRedisInTroubleMakesNoDeadLetter(t *testing.T) {
	r := testkit.Redis(t, "maxmemory-policy noeviction")
	b := benchOn(t, testkit.Database(t), r.URL())
	c := b.redisClient()
	s := &breakable{Stream: b.stream}
	var failed atomic.Int64
	s.set(func(ctx context.Context, offers []stream.Offer) ([]stream.Answer, error) {
		answers, err := b.stream.Publish(ctx, offers)
		if err != nil || answers[0].Err != nil {
			failed.Add(1)
		}
		return answers, err
	})
	b.runOn(s, Config{RepublishAttempts: 1})
	b.append("t:0", `0`)
	b.published(10 * time.Second)
	do := func(args ...any) {
		t.Helper()
		if err := c.Do(t.Context(), args...).Err(); err != nil {
			t.Fatalf("%v: %v", args, err)
		}
	}
	for _, mood := range []struct {
		name       string
		failures   int64 // to wait for; while nothing is connected, publishing is not even tried
		begin, end func()
	}{
		{"OOM", 5, func() { do("CONFIG", "SET", "maxmemory", "100kb") }, func() { do("CONFIG", "SET", "maxmemory", "0") }},
		{"READONLY", 5, func() { do("REPLICAOF", "127.0.0.1", "1") }, func() { do("REPLICAOF", "NO", "ONE") }},
		{"no right to announce", 5, func() { do("ACL", "SETUSER", "default", "-spublish") }, func() { do("ACL", "SETUSER", "default", "+@all") }},
		{"no right to store", 5, func() { do("ACL", "SETUSER", "default", "-xadd") }, func() { do("ACL", "SETUSER", "default", "+@all") }},
		{"gone", 1, func() { r.Kill() }, func() {
			if err := r.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		mood.begin()
		failed.Store(0)
		for i := range 5 {
			b.append(fmt.Sprintf("t:%d", i), `1`)
		}
		testkit.Eventually(t, 20*time.Second, func() bool { return failed.Load() >= mood.failures }, "%s: publications failed", mood.name)
		mood.end()
		b.published(20 * time.Second)
		if n := scalar[int](b, `SELECT (SELECT count(*) FROM commitcast.parked) + (SELECT count(*) FROM commitcast.dead_letter)`); n != 0 {
			t.Errorf("%s: %d topics were set aside", mood.name, n)
		}
	}
}

// What an hour without Redis adds up to, in less time: as often as the waits of a hour allow, the job of a topic that is
// set aside is put off, and the drain hands its partition on. That costs no attempt and no dead letter, and nothing grows with
// it but the journal. By default a sixth of the hour; all of it with COMMITCAST_WHOLE_HOUR=1.
func TestAnHourWithoutRedis(t *testing.T) {
	t.Parallel()
	putOff, terms := int(time.Hour/awayMost)/6, 10 // a term lasts for a minute, of which this test makes half a second
	if os.Getenv("COMMITCAST_WHOLE_HOUR") != "" {
		putOff, terms = 6*putOff, 6*terms
	}
	r := testkit.Redis(t)
	b := benchOn(t, testkit.Database(t), r.URL())
	bad, other := topicIn(9, 0), topicIn(9, 1)
	b.exec(`INSERT INTO commitcast.parked (topic, partition, parked_from, error) VALUES ($1, 9, 1, 'before')`, bad)
	b.append(bad, `1`)
	r.Kill()
	lines := &lineCounter{t: t}
	b.run(Config{RepublishAttempts: 1, MaxAge: 500 * time.Millisecond, Linger: 100 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(lines, nil))})
	const termSQL = `SELECT term FROM commitcast.partition WHERE id = 9`
	b.append(other, `1`)
	testkit.Eventually(t, 20*time.Second, func() bool { return scalar[int](b, termSQL) > 1 && b.hasJob(bad) && b.job(bad).snoozes > 0 }, "the outage goes on")
	goroutines, said, events := runtime.NumGoroutine(), lines.n.Load(), int64(1)
	testkit.Eventually(t, 4*time.Minute, func() error {
		// River looks every 5 s for jobs whose time has come; here it comes at once.
		b.exec(`UPDATE commitcast.river_job SET state = 'available', scheduled_at = now() WHERE kind = 'topic_republish' AND state = 'scheduled'`)
		b.append(other, `1`)
		events++
		if j, n := b.job(bad), scalar[int](b, termSQL); j.snoozes < putOff || n < terms {
			return fmt.Errorf("put off %d times, %d terms", j.snoozes, n)
		}
		return nil
	}, "as much has happened as in the hour")
	j := b.job(bad)
	t.Logf("%+v after %d terms, %d events wait, %d lines were logged, %d goroutines more", j, scalar[int](b, termSQL), events, lines.n.Load()-said, runtime.NumGoroutine()-goroutines)
	if j.errors > 0 || j.attempt > 1 || j.state == "discarded" {
		t.Errorf("%+v: the outage counts as attempts", j)
	}
	if n := lines.n.Load() - said; n > 5 {
		t.Errorf("%d lines were logged of one outage", n)
	}
	if n := scalar[int](b, `SELECT count(*) FROM commitcast.river_job WHERE kind <> 'outbox_drain'`); n > 3 {
		t.Errorf("%d jobs beside the drains'", n)
	}
	if n := scalar[int](b, `SELECT count(*) FROM commitcast.river_job WHERE kind = 'outbox_drain'`) - scalar[int](b, termSQL); n > 2 {
		t.Errorf("%d drains more than terms", n)
	}
	if scalar[bool](b, setAsideSQL, other) || scalar[bool](b, `SELECT EXISTS (SELECT FROM commitcast.dead_letter)`) {
		t.Error("the outage set a topic aside, or made a dead letter")
	}
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 60*time.Second, func() bool {
		b.exec(`UPDATE commitcast.river_job SET state = 'available', scheduled_at = now() WHERE kind = 'topic_republish' AND state = 'scheduled'`)
		return !scalar[bool](b, setAsideSQL, bad)
	}, "what was set aside is published")
	b.published(20 * time.Second)
	// The test's own client tells for a moment what its last attempt to connect said.
	testkit.Eventually(t, 20*time.Second, func() error { return b.stream.Ping(t.Context()) }, "the stream answers the test, too")
	b.checkStream(b.journal(), fromStart)
}

// lineCounter counts lines of a log.
type lineCounter struct {
	t testing.TB
	n atomic.Int64
}

func (c *lineCounter) Write(p []byte) (int, error) {
	c.n.Add(1)
	c.t.Logf("%s", p)
	return len(p), nil
}

func (b *bench) hasJob(topic string) bool {
	return scalar[bool](b, `SELECT EXISTS (SELECT FROM commitcast.river_job WHERE kind = 'topic_republish' AND args->>'topic' = $1)`, topic)
}

// What a job notes of a range that was ordered says nothing of a topic that is set aside meanwhile.
func TestProgressOfARangeLeavesWhatIsSetAside(t *testing.T) {
	b := newBench(t)
	epoch := scalar[string](b, `SELECT name FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1`)
	b.exec(`INSERT INTO commitcast.parked (topic, partition, parked_from, error) VALUES ('x', commitcast.partition_of('x'), 3, 'x')`)
	b.exec(`INSERT INTO commitcast.redrive (topic, first, last, next, audit) VALUES ('x', 1, 9, 1, 1)`)
	d := database{&Worker{pool: b.pool}, b.pool}
	for _, c := range []struct {
		parked     bool
		epoch      string
		next       int64
		from, goOn int64
	}{{false, "1-beef", 5, 3, 1}, {false, epoch, 5, 3, 5}, {true, epoch, 6, 6, 6}} {
		if err := d.progress(t.Context(), "x", c.next, c.epoch, c.parked); err != nil {
			t.Fatal(err)
		}
		from, next := scalar[int64](b, `SELECT parked_from FROM commitcast.parked`), scalar[int64](b, `SELECT next FROM commitcast.redrive`)
		if from != c.from || next != c.goOn {
			t.Errorf("%+v: set aside from %d, redrive at %d", c, from, next)
		}
	}
}

// A topic that is set aside without a job gets one.
func TestSetAsideWithoutAJob(t *testing.T) {
	b := newBench(t)
	b.exec(`INSERT INTO commitcast.topic VALUES ('x', commitcast.partition_of('x'), 0, '1-00000000')`)
	b.exec(`INSERT INTO commitcast.parked (topic, partition, parked_from, error) VALUES ('x', commitcast.partition_of('x'), 1, 'lost')`)
	b.append("x", `1`)
	b.run(Config{})
	testkit.Eventually(t, 20*time.Second, func() bool { return !scalar[bool](b, setAsideSQL, "x") }, "adopted")
	b.published(5 * time.Second)
	b.checkStream(b.journal(), fromStart)
}

// A topic whose job is killed in its midst is taken over by another process within seconds, long before River would run
// the job again; and once only, although River says for minutes that the killed one runs.
func TestKilledRepublishIsTakenOver(t *testing.T) {
	b := newBench(t)
	topic := topicIn(5, 0)
	b.append(topic, `1`)
	b.exec(`INSERT INTO commitcast.parked (topic, partition, parked_from, error) VALUES ($1, 5, 1, 'before')`, topic)
	tx, err := b.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	// The job publishes, and then waits for this row.
	if _, err := tx.Exec(t.Context(), `SELECT FROM commitcast.parked WHERE topic = $1 FOR UPDATE`, topic); err != nil {
		t.Fatal(err)
	}
	a := b.spawn()
	testkit.Eventually(t, 20*time.Second, func() bool {
		return scalar[bool](b, `SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid)
			WHERE NOT l.granted AND a.application_name = 'commitcast worker' AND a.datname = current_database())`)
	}, "the job in its midst")
	b.run(Config{})
	a.signal(syscall.SIGKILL)
	start := time.Now()
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	terms := `SELECT string_agg(args->>'term' || ' ' || state, ', ' ORDER BY id) FROM commitcast.river_job WHERE kind = 'topic_republish'`
	testkit.Eventually(t, 20*time.Second, func() error {
		if jobs := scalar[string](b, terms); jobs != "0 running, 1 completed" {
			return errors.New(jobs)
		}
		return nil
	}, "taken over")
	t.Logf("taken over within %v", time.Since(start))
	if scalar[bool](b, setAsideSQL, topic) {
		t.Error("the topic is still set aside")
	}
	b.published(10 * time.Second)
	b.checkStream(b.journal(), fromStart)

	// Set aside again, while the killed job still seems to run, it is taken up again.
	b.append(topic, `2`)
	b.published(10 * time.Second)
	b.exec(`INSERT INTO commitcast.parked (topic, partition, parked_from, error) VALUES ($1, 5, 2, 'again')`, topic)
	testkit.Eventually(t, 20*time.Second, func() bool { return !scalar[bool](b, setAsideSQL, topic) }, "published again")
	testkit.Eventually(t, 20*time.Second, func() error {
		if jobs := scalar[string](b, terms); jobs != "0 running, 1 completed, 2 completed" {
			return errors.New(jobs)
		}
		return nil
	}, "one job for it")
}
