package journal_test

import (
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/internal/journal"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/wire"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// Every cursor of three histories, on topics of which retention has left all, some, or nothing, is judged as the rule says: its epoch is
// known, it is not beyond the head, row n was sequenced no later than in its epoch, and nothing after it is gone. All in one read, each
// asked by several, of whom one is revoked.
func TestPositions(t *testing.T) {
	ctx := t.Context()
	pool, err := pgxpool.New(ctx, testkit.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := pool.Exec(ctx, sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	epochs := []string{"101-a", "102-b", "103-c", "103-x"} // the last is of another database
	for i, name := range epochs[:3] {
		exec(`INSERT INTO commitcast.epoch (ordinal, name, incarnation, born, reason) VALUES ($1, $2, 'a test', now(), 'a test')`, 101+i, name)
	}
	const head = 6
	of := func(n int64) int { return int(n-1) / 2 }                                                                  // rows 1 and 2 are of the first epoch, 3 and 4 of the second, …
	lows := map[string]int64{"t:whole": 1, "t:first-epoch-gone": 3, "t:half": 4, "t:last": head, "t:none": head + 1} // the first that is left
	for topic, low := range lows {
		exec(`INSERT INTO commitcast.topic (topic, partition, head, head_epoch) VALUES ($1, commitcast.partition_of($1), $2, $3)`, topic, head, epochs[of(head)])
		for n := low; n <= head; n++ {
			exec(`INSERT INTO commitcast.journal VALUES ($1, $2, $3, commitcast.partition_of($1), $2, $2, 'x', NULL, '1', NULL, now(), now())`, topic, n, epochs[of(n)])
		}
		exec(`INSERT INTO commitcast.revocation (topic, subject, revoked, event_id) VALUES ($1, 'bob', true, 77)`, topic)
	}
	want := func(topic string, epoch int, n int64) string {
		low := lows[topic]
		switch {
		case epoch == 3:
			return wire.ReasonEpoch
		case n > head:
			return wire.ReasonAhead
		case n == head || n >= low && n > 0: // the row, or what outlives it, tells its epoch
			if of(n) > epoch {
				return wire.ReasonEpoch
			}
		case n+1 < low, n > 0 && of(n+1) > epoch: // what follows is gone, or whether row n was of that epoch cannot be known
			return wire.ReasonTrimmed
		}
		return ""
	}
	var questions []wire.Question
	var reasons []string
	seen := map[string]int{}
	for topic := range lows {
		for epoch, name := range epochs {
			for n := range int64(head + 2) {
				for _, subject := range []string{"", "alice", "bob"} {
					questions = append(questions, wire.Question{Topic: topic, Cursor: wire.Cursor{Epoch: name, Offset: n}, Subject: subject})
					reasons = append(reasons, want(topic, epoch, n))
					seen[want(topic, epoch, n)]++
				}
			}
		}
		questions, reasons = append(questions, wire.Question{Topic: topic}), append(reasons, "")
	}
	if len(seen) != 4 {
		t.Fatalf("the test meets %v only", seen)
	}
	epoch, positions, err := journal.New(pool).Positions(ctx, questions)
	if err != nil || epoch != epochs[2] || len(positions) != len(questions) {
		t.Fatalf("%s, %d answers to %d questions, %v", epoch, len(positions), len(questions), err)
	}
	for i, q := range questions {
		p, bob := positions[i], q.Subject == "bob"
		if p.Reason != reasons[i] || p.Head != head || p.Revoked != bob || (p.Changed == 77) != bob {
			t.Errorf("%+v with rows from %d on: %+v, want reason %q", q, lows[q.Topic], p, reasons[i])
		}
	}
	if _, positions, err := journal.New(pool).Positions(ctx, []wire.Question{{Topic: "unheard-of", Cursor: wire.Cursor{Epoch: epochs[0]}},
		{Topic: "unheard-of", Cursor: wire.Cursor{Epoch: epochs[0], Offset: 1}}}); err != nil || positions[0] != (wire.Position{}) || positions[1].Reason != wire.ReasonAhead {
		t.Errorf("of a topic without events: %+v, %v", positions, err)
	}
}
