package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/internal/services"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/outbox"
	"github.com/commitcast/commitcast/wire"
)

const (
	revokeTopics = 4
	revokeRound  = 60 // revocations in one round
	revokeFor    = 5 * time.Second
)

// TestRevocations revokes the right to read of subjects with two connections each, while events are written and the broadcasters
// and Redis are killed. Then every offset that was shown is held to the fence's offset in the journal.
//
//	REVOKE=1000 go test ./internal/e2e -run TestRevocations -v
//	REVOKE_SEED=4711 go test ./internal/e2e -run TestRevocations
func TestRevocations(t *testing.T) {
	number := func(name string, otherwise uint64) uint64 {
		if text := os.Getenv(name); text != "" {
			n, err := strconv.ParseUint(text, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		return otherwise
	}
	all, seed := int(number("REVOKE", revokeRound)), number("REVOKE_SEED", rand.Uint64())
	t.Logf("REVOKE_SEED=%d", seed)
	w := &revoking{t: t, rng: rand.New(rand.NewPCG(seed, 1)), redis: testkit.Redis(t), database: testkit.Database(t)}
	w.issuer = testkit.NewIssuer(t)
	w.key = w.issuer.File(t)
	pool, err := pgxpool.New(t.Context(), w.database)
	if err != nil {
		t.Fatal(err)
	}
	w.pool = pool
	t.Cleanup(func() { outbox.Flush(context.Background(), pool); pool.Close() })
	w.worker = start(t, w.database, w.redis.URL(), "worker")
	for i := range w.nodes {
		w.nodes[i] = w.broadcaster()
	}
	for done := 0; done < all; done += revokeRound {
		w.round(done/revokeRound, min(revokeRound, all-done))
		if t.Failed() {
			break
		}
	}
	t.Logf("%d revocations, %d restored; %d events shown in %d subscriptions, %d refused; %d ended exactly at the fence; %d events beyond a fence; killed: %d broadcasters, %d times Redis, %d workers",
		w.revoked, w.restored, w.shown, w.lives, w.refused, w.exact, w.beyond, w.kills[0], w.kills[1], w.kills[2])
	if w.exact == 0 || w.refused == 0 {
		t.Error("nobody was ended at a fence, or nobody refused")
	}
}

type revoking struct {
	t        *testing.T
	rng      *rand.Rand
	redis    *services.Redis
	database string
	pool     *pgxpool.Pool
	issuer   *testkit.Issuer
	key      string
	worker   *node

	mu    sync.Mutex
	nodes [2]*node

	revoked, restored, shown, lives, refused, exact, beyond int
	kills                                                   [3]int
}

func (w *revoking) broadcaster() *node {
	return start(w.t, w.database, w.redis.URL(), "broadcaster", "--auth=jwt", "--jwt-alg=EdDSA", "--jwt-key-file="+w.key, "--jwt-audience="+testkit.Audience)
}

func (w *revoking) url(i int) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nodes[i%len(w.nodes)].URL
}

// upTo is a random time.
func upTo(rng *rand.Rand, most time.Duration) time.Duration {
	return time.Duration(rng.Int64N(int64(most)))
}

// reading is one connection's way: subscriptions of one subject to one topic, one after the other.
type reading struct {
	who  *subject
	mu   sync.Mutex
	past []life
}

// life is one subscription.
type life struct {
	asked       time.Time
	answered    bool
	at          int64 // where it has come to
	first, last int64 // that were shown; 0: none
	forbidden   bool
}

type subject struct {
	name, topic, token string
	readings           [2]*reading
	mu                 sync.Mutex
	revoked            time.Time // the transaction had committed
	restoring          time.Time // the transaction that restores was about to begin
	wanted             bool      // it is to be revoked …
	back               bool      // … and restored
}

func (r *reading) now() (l life, ended bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.past) == 0 {
		return life{}, false
	}
	l = r.past[len(r.past)-1]
	return l, l.forbidden
}

// read subscribes again and again until ctx ends. The error is what must not happen.
func (r *reading) read(ctx context.Context, w *revoking, rng *rand.Rand, beginning string) error {
	cursor := beginning
	for attempt := 0; ctx.Err() == nil; attempt++ {
		_, forbidden := r.now()
		pause := 20 * time.Millisecond
		if forbidden { // asks for all of it, or for what it lacks
			pause = 150 * time.Millisecond
			if attempt%2 == 0 {
				cursor = beginning
			}
		}
		time.Sleep(upTo(rng, pause)) // the pace of a client that comes back
		var err error
		if cursor, err = r.connection(ctx, w.url(rng.IntN(2)), cursor); err != nil {
			return fmt.Errorf("%s: %w", r.who.name, err)
		}
	}
	return nil
}

// connection is one subscription; it returns where it has come to.
func (r *reading) connection(ctx context.Context, url, cursor string) (string, error) {
	dialing, cancel := context.WithTimeout(ctx, 2*time.Second)
	ws, answer, err := websocket.Dial(dialing, url+"/v1/ws", &websocket.DialOptions{Subprotocols: []string{wire.Protocol},
		HTTPHeader: http.Header{"Authorization": {"Bearer " + r.who.token}}})
	cancel()
	if err != nil {
		if answer != nil && answer.StatusCode != http.StatusServiceUnavailable {
			return cursor, err
		}
		return cursor, nil // it was killed
	}
	defer ws.CloseNow()
	ws.SetReadLimit(4 << 20)
	r.mu.Lock()
	r.past = append(r.past, life{asked: time.Now()})
	r.mu.Unlock()
	request := wire.AppendRequest(nil, wire.Request{Op: wire.OpSubscribe, ID: 1, Topic: r.who.topic, After: cursor})
	if ws.Write(ctx, websocket.MessageText, request) != nil {
		return cursor, nil
	}
	last := int64(-1)
	for {
		_, message, err := ws.Read(ctx)
		if err != nil {
			return cursor, nil
		}
		for line := range wire.Lines(message) {
			m, err := wire.ParseMessage(line)
			if err != nil {
				return cursor, err
			}
			r.mu.Lock()
			l := &r.past[len(r.past)-1]
			switch {
			case m.Op == "subscribed":
				l.answered, last, l.at = true, m.After, m.After
			case m.Op == "event" && (l.forbidden || m.Offset != last+1):
				err = fmt.Errorf("offset %d after %d, forbidden %v", m.Offset, last, l.forbidden)
			case m.Op == "event":
				if l.first == 0 {
					l.first = m.Offset
				}
				last, l.last, l.at = m.Offset, m.Offset, m.Offset
				cursor = wire.Cursor{Epoch: m.Epoch, Offset: m.Offset}.String()
			case m.Op == "error" && m.Code == wire.CodeForbidden && m.ID == 1:
				l.forbidden = true
			case m.Op == "error" && m.Code == wire.CodeUnavailable:
				r.mu.Unlock()
				return cursor, nil
			case m.Op == "hello", m.Op == "heartbeat", m.Op == "reconnect":
			default:
				err = fmt.Errorf("%s", line)
			}
			ended := l.forbidden
			r.mu.Unlock()
			if err != nil {
				return cursor, err
			}
			if ended && rand.IntN(2) == 0 {
				return cursor, nil
			} // else it listens on: nothing may come
		}
		if _, ended := r.now(); ended {
			waiting, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
			_, more, err := ws.Read(waiting)
			cancel()
			if err == nil && strings.Contains(string(more), `"event"`) {
				return cursor, fmt.Errorf("after the end: %s", more)
			}
			return cursor, nil
		}
	}
}

// round revokes n subjects and holds what they, and others beside them, were shown to the journal.
func (w *revoking) round(round, n int) {
	t := w.t
	var epoch string
	if err := w.pool.QueryRow(t.Context(), `SELECT name FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1`).Scan(&epoch); err != nil {
		t.Fatal(err)
	}
	subjects := make([]*subject, 0, n+n/4)
	for i := range n + max(1, n/4) {
		s := &subject{name: fmt.Sprintf("s%d-%d", round, i), topic: fmt.Sprintf("t%d:%d", round, i%revokeTopics), wanted: i < n, back: i%4 == 0 && i < n}
		s.token = w.issuer.Token(s.name, []string{"**"}, nil)
		for k := range s.readings {
			s.readings[k] = &reading{who: s}
		}
		subjects = append(subjects, s)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	var failure atomic.Pointer[error]
	fail := func(err error) {
		if err != nil && ctx.Err() == nil {
			failure.CompareAndSwap(nil, &err)
		}
	}
	spawn := func(f func() error) { wg.Go(func() { fail(f()) }) } // waited for below, and at the end by defer
	defer wg.Wait()
	defer cancel()
	for i, s := range subjects {
		for k, r := range s.readings {
			rng := rand.New(rand.NewPCG(w.rng.Uint64(), uint64(i*2+k)))
			spawn(func() error { return r.read(ctx, w, rng, epoch+":0") })
		}
	}
	writing, stopWriting := context.WithCancel(ctx)
	defer stopWriting()
	for topic := range revokeTopics {
		spawn(func() error {
			for i := 0; writing.Err() == nil; i++ {
				if _, err := w.pool.Exec(ctx, `SELECT commitcast.append($1, 'load', to_json($2::int))`, fmt.Sprintf("t%d:%d", round, topic), i); err != nil {
					return err
				}
				time.Sleep(20 * time.Millisecond) // the pace of the load
			}
			return nil
		})
	}
	orders := w.rng.Perm(n)
	spawn(func() error {
		for _, i := range orders {
			time.Sleep(revokeFor / time.Duration(n)) // the pace of the revocations
			if err := w.change(ctx, subjects[i], false); err != nil {
				return err
			}
		}
		return nil
	})
	for _, s := range subjects {
		if s.back {
			spawn(func() error {
				for ; ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
					_, a := s.readings[0].now()
					_, b := s.readings[1].now()
					if a && b {
						return w.change(ctx, s, true)
					}
				}
				return nil
			})
		}
	}
	for until := time.Now().Add(revokeFor); time.Now().Before(until) && failure.Load() == nil; {
		w.breakdown()
	}
	testkit.Eventually(t, 60*time.Second, func() error {
		if err := failure.Load(); err != nil {
			t.Fatal(*err)
		}
		for _, s := range subjects[:n] {
			s.mu.Lock()
			revoked, restoring := s.revoked, s.restoring
			s.mu.Unlock()
			if revoked.IsZero() || s.back && restoring.IsZero() {
				a, _ := s.readings[0].now()
				b, _ := s.readings[1].now()
				return fmt.Errorf("%s: revoked at %v, restored at %v; its subscriptions: %+v %+v", s.name, revoked, restoring, a, b)
			}
		}
		return nil
	}, "all are revoked, and some restored")
	stopWriting()
	heads := make(map[string]int64)
	testkit.Eventually(t, 30*time.Second, func() error {
		rows, _ := w.pool.Query(ctx, `SELECT topic, head FROM commitcast.topic WHERE NOT EXISTS (SELECT FROM commitcast.outbox)`)
		var topic string
		var head int64
		_, err := pgx.ForEachRow(rows, []any{&topic, &head}, func() error { heads[topic] = head; return nil })
		if err == nil && len(heads) == 0 {
			err = errors.New("events wait for an offset")
		}
		return err
	}, "everything is sequenced")
	testkit.Eventually(t, 60*time.Second, func() error {
		if err := failure.Load(); err != nil {
			t.Fatal(*err)
		}
		for _, s := range subjects {
			for _, r := range s.readings {
				switch l, ended := r.now(); {
				case s.wanted && !s.back && !ended:
					return fmt.Errorf("%s is not ended, at %d", s.name, l.last)
				case (!s.wanted || s.back) && l.at < heads[s.topic]:
					return fmt.Errorf("%s is at %d of %d", s.name, l.at, heads[s.topic])
				}
			}
		}
		return nil
	}, "all are ended, or have everything")
	cancel()
	wg.Wait()
	if err := failure.Load(); err != nil {
		t.Fatal(*err)
	}
	for _, s := range subjects {
		w.verify(s)
	}
	w.everywhere(subjects, epoch, heads)
}

// change revokes or restores a subject's right, with events before and after in the same transaction.
func (w *revoking) change(ctx context.Context, s *subject, restore bool) error {
	if restore {
		s.mu.Lock()
		s.restoring = time.Now()
		s.mu.Unlock()
	}
	e := outbox.Event{Topic: s.topic, Type: "beside", Data: s.name}
	err := outbox.Tx(ctx, w.pool, func(tx *outbox.Transaction) error {
		if restore {
			return errors.Join(tx.Publish(e), tx.Restore(s.name, s.topic))
		}
		return errors.Join(tx.Publish(e), tx.Revoke(s.name, s.topic), tx.Publish(e))
	})
	if err == nil && !restore {
		s.mu.Lock()
		s.revoked = time.Now()
		s.mu.Unlock()
	}
	return err
}

// breakdown kills something, and starts it again.
func (w *revoking) breakdown() {
	time.Sleep(upTo(w.rng, 300*time.Millisecond)) // it works for a while
	kill := func() {
		i := w.rng.IntN(len(w.nodes))
		w.nodes[i].Cmd.Process.Kill()
		<-w.nodes[i].Done
		n := w.broadcaster()
		w.mu.Lock()
		w.nodes[i] = n
		w.mu.Unlock()
		w.kills[0]++
	}
	switch w.rng.IntN(5) {
	case 0, 1:
		kill()
	case 2:
		w.worker.Cmd.Process.Kill()
		<-w.worker.Done
		w.worker = start(w.t, w.database, w.redis.URL(), "worker")
		w.kills[2]++
	default:
		w.redis.Kill()
		w.kills[1]++
		if w.rng.IntN(2) == 0 {
			kill() // and one more that begins without it
		}
		time.Sleep(upTo(w.rng, 400*time.Millisecond)) // it is away for a while
		if err := w.redis.Start(w.t.Context()); err != nil {
			w.t.Fatal(err)
		}
	}
}

// verify holds what one subject was shown to the journal.
func (w *revoking) verify(s *subject) {
	var fence int64
	err := w.pool.QueryRow(w.t.Context(), `SELECT coalesce(max("offset"), 0) FROM commitcast.journal
		WHERE topic = $1 AND type = 'commitcast.revoke' AND data->>'subject' = $2`, s.topic, s.name).Scan(&fence)
	if err != nil || (fence > 0) != s.wanted {
		w.t.Fatalf("%s: fence %d, %v", s.name, fence, err)
	}
	if fence > 0 {
		w.revoked++
	}
	if s.back {
		w.restored++
	}
	for _, r := range s.readings {
		for _, l := range r.past {
			w.lives++
			if l.last > 0 {
				w.shown += int(l.last - l.first + 1)
			}
			if l.forbidden {
				w.refused++
			}
			again := s.back && l.asked.After(s.restoring)
			switch {
			case fence == 0 && l.forbidden:
				w.t.Errorf("%s was never revoked, and is refused", s.name)
			case fence == 0 || again:
			case l.last >= fence:
				w.beyond += int(l.last - max(fence, l.first) + 1)
				w.t.Errorf("%s was shown offsets %d to %d; its fence is %d", s.name, l.first, l.last, fence)
			case l.answered && l.asked.After(s.revoked):
				w.t.Errorf("%s subscribed %v after it was revoked", s.name, l.asked.Sub(s.revoked))
			case l.forbidden && l.last == fence-1:
				w.exact++
			}
		}
	}
}

// everywhere asks each node for the whole topic, as each subject.
func (w *revoking) everywhere(subjects []*subject, epoch string, heads map[string]int64) {
	for _, s := range subjects {
		for i := range w.nodes {
			c, _, err := testkit.Open(w.t, w.url(i), &websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {"Bearer " + s.token}}})
			if err != nil {
				w.t.Fatal(err)
			}
			c.Expect("hello")
			c.Subscribe(1, s.topic, epoch+":0")
			if s.wanted && !s.back {
				if m := c.Expect("error"); m.Code != wire.CodeForbidden {
					w.t.Errorf("%s: %+v", s.name, m)
				}
			} else {
				c.Expect("subscribed")
				c.ExpectEvents(s.topic, 1, heads[s.topic])
			}
			c.WS.CloseNow()
		}
	}
}
