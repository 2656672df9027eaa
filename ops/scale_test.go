package ops_test

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/ops"
)

// With 100,000 topics, 50,000 dead letters, 20,000 topics that are set aside and as many events in each hop, every list comes by
// pages and by an index.
func TestListsByIndex(t *testing.T) {
	d := newDesk(t)
	testkit.Fill(t, d.pool)
	rows, err := d.pool.Query(t.Context(), `SELECT relname FROM pg_class WHERE relnamespace = 'commitcast'::regnamespace AND relkind = 'r' AND reltuples >= 10000`)
	if err != nil {
		t.Fatal(err)
	}
	large, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(large) != 7 { // those written above, and one leaf of the journal
		t.Fatalf("large tables: %v, %v", large, err)
	}

	ctx := t.Context()
	last := ops.DeadLetter{}
	plan := &ops.Plan{}
	for _, c := range []struct {
		name string
		look func() (int, error)
		want int
	}{
		{"status", func() (int, error) { st, err := d.console.Status(ctx, 0); return len(st.Partitions), err }, 32},
		{"topics by name", func() (int, error) {
			l, err := d.console.TopicsByName(ctx, ops.TopicsQuery{Limit: 50})
			return len(l), err
		}, 50},
		{"topics by name, later", func() (int, error) {
			l, err := d.console.TopicsByName(ctx, ops.TopicsQuery{Limit: 50, After: "market:55", Prefix: "market:5"})
			if err == nil && (l[0].Topic != "market:550" || l[0].Head != 3) {
				t.Errorf("after market:55 comes %+v", l[0])
			}
			return len(l), err
		}, 50},
		{"topics by prefix", func() (int, error) {
			l, err := d.console.TopicsByName(ctx, ops.TopicsQuery{Prefix: "market:9999"})
			return len(l), err
		}, 11},
		{"topics by lag", func() (int, error) {
			l, err := d.console.TopicsByLag(ctx, ops.TopicsQuery{Limit: 50})
			return len(l), err
		}, 50},
		{"topics by lag, later", func() (int, error) {
			l, err := d.console.TopicsByLag(ctx, ops.TopicsQuery{Limit: 50, Lag: 2, After: "market:5"})
			if err == nil && (l[0].Lag() != 2 || l[0].Topic <= "market:5") {
				t.Errorf("after a lag of 2 and market:5 comes %+v", l[0])
			}
			return len(l), err
		}, 50},
		{"topic", func() (int, error) { s, err := d.console.Topic(ctx, "market:77"); return int(s.Head), err }, 3},
		{"dead letters", func() (int, error) {
			l, err := d.console.DeadLetters(ctx, ops.DeadQuery{Limit: 50})
			if err == nil {
				last = l[49]
			}
			return len(l), err
		}, 50},
		{"dead letters, later", func() (int, error) {
			l, err := d.console.DeadLetters(ctx, ops.DeadQuery{Limit: 50, After: &last})
			if err == nil && !l[0].DiedAt.Before(last.DiedAt) {
				t.Errorf("after one of %v comes one of %v", last.DiedAt, l[0].DiedAt)
			}
			return len(l), err
		}, 50},
		{"dead letters of a topic", func() (int, error) {
			l, err := d.console.DeadLetters(ctx, ops.DeadQuery{Topic: "market:7"})
			return len(l), err
		}, 3},
		{"a dead letter", func() (int, error) { l, err := d.console.DeadLetter(ctx, "market:7", 20007); return int(l.Offset), err }, 20007},
		{"a dead letter's history", func() (int, error) {
			h, err := d.console.DeadHistory(ctx, "market:7", 20007)
			return len(h.Attempted), err
		}, 2},
		{"a shared look", func() (int, error) {
			w := d.console.Watch()
			defer w.Close()
			l, err := w.Look(ctx, 0, 0)
			return len(l.Partitions), err
		}, 32},
		{"where to follow from", func() (int, error) { r, err := d.console.Retained(ctx, "market:77"); return int(r.Head), err }, 3},
		{"rights", func() (int, error) {
			may, err := d.console.May(ctx)
			if !may.Act {
				t.Error("the owner may not act")
			}
			return 0, err
		}, 0},
		{"epochs", func() (int, error) { l, err := d.console.Epochs(ctx, 20); return len(l), err }, 1},
		{"set aside", func() (int, error) { l, err := d.console.Parked(ctx, "market:5", 50); return len(l), err }, 50},
		{"trace", func() (int, error) { l, err := d.console.Trace(ctx, "market:77", 2, 0); return int(l.Offset), err }, 2},
		{"audit", func() (int, error) { l, err := d.console.Audit(ctx, 10000, 50); return len(l), err }, 50},
		{"plan", func() (int, error) {
			var err error
			plan, err = d.console.PlanRedrive(ctx, "market:2", 0, 0)
			return int(plan.Events), err
		}, 3},
		{"redrive", func() (int, error) { r, err := d.console.Redrive(ctx, plan); return int(r.Last), err }, 3},
	} {
		d.asked.mu.Lock()
		d.asked.list = nil
		d.asked.mu.Unlock()
		start := time.Now()
		got, err := c.look()
		took := time.Since(start)
		if err != nil || got != c.want {
			t.Fatalf("%s: %d, want %d: %v", c.name, got, c.want, err)
		}
		t.Logf("%-24s %v", c.name, took.Round(100*time.Microsecond))
		if took > 5*time.Second { // 300 ms on a quiet machine: docs/operations.md
			t.Errorf("%s took %v", c.name, took)
		}
		d.asked.mu.Lock()
		list := slices.Clone(d.asked.list)
		d.asked.mu.Unlock()
		for _, q := range list {
			if verb, _, _ := strings.Cut(strings.TrimSpace(withoutComments(q.SQL)), " "); !slices.Contains([]string{"SELECT", "WITH", "UPDATE", "DELETE", "INSERT"}, strings.ToUpper(verb)) {
				continue
			}
			var text []byte
			if err := d.pool.QueryRow(context.Background(), "EXPLAIN (FORMAT JSON) "+q.SQL, q.Args...).Scan(&text); err != nil {
				if !strings.Contains(err.Error(), "to_regclass") { // a check of the schema
					t.Errorf("%s: %v in %.200s", c.name, err, q.SQL)
				}
				continue
			}
			var plans []map[string]any
			if err := json.Unmarshal(text, &plans); err != nil {
				t.Fatal(err)
			}
			for _, name := range scanned(plans[0]["Plan"], nil) {
				if slices.Contains(large, name) {
					t.Errorf("%s reads all of %s: %.300s", c.name, name, q.SQL)
				}
			}
		}
	}
}

func withoutComments(sql string) string {
	var b strings.Builder
	for line := range strings.Lines(sql) {
		if !strings.HasPrefix(strings.TrimSpace(line), "--") {
			b.WriteString(line)
		}
	}
	return strings.Join(strings.Fields(b.String()), " ")
}

// scanned are the relations that a plan reads as a whole, from the beginning on.
func scanned(plan any, names []string) []string {
	node, ok := plan.(map[string]any)
	if !ok {
		return names
	}
	if node["Node Type"] == "Seq Scan" {
		names = append(names, node["Relation Name"].(string))
	}
	children, _ := node["Plans"].([]any)
	for _, c := range children {
		names = scanned(c, names)
	}
	return names
}
