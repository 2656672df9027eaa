package migrations_test

import (
	"fmt"
	"testing"
)

func TestCursorReason(t *testing.T) {
	db := migrated(t)
	conn := connect(t, db)
	p, names := topics(t, conn, 2)
	a := names[0]
	add := func(n int) {
		for range n {
			one[int64](t, conn, `SELECT commitcast.append($1, 't', '1')`, a)
		}
		sequence(t, conn, p, 1, 100, nil, nil)
	}
	e1 := one[string](t, conn, `SELECT commitcast.check_epoch()`)
	add(3) // 1..3 in e1
	e2 := one[string](t, conn, `SELECT commitcast.begin_epoch(NULL, 'test')`)
	check := func(when string, want map[string]string) {
		t.Helper()
		for cursor, reason := range want {
			var topic, epoch string
			var offset int64
			fmt.Sscan(cursor, &topic, &epoch, &offset)
			got := one[string](t, conn, `SELECT coalesce(commitcast.cursor_reason($1, $2, $3), '')`, topic, epoch, offset)
			if got != reason {
				t.Errorf("%s: cursor %s: %q, want %q", when, cursor, got, reason)
			}
		}
	}
	at := func(topic, epoch string, offset int) string { return fmt.Sprint(topic, " ", epoch, " ", offset) }
	check("epoch begun", map[string]string{
		at(a, e1, 0): "", at(a, e1, 2): "", at(a, e1, 3): "", at(a, e2, 3): "", at(a, e1, 4): "ahead",
		at(a, "9-00000000", 1): "epoch", at(names[1], e1, 0): "", at(names[1], e2, 1): "ahead",
	})
	add(2) // 4, 5 in e2
	check("gone on", map[string]string{
		at(a, e1, 3): "", at(a, e1, 4): "epoch", at(a, e1, 5): "epoch", at(a, e2, 4): "", at(a, e2, 5): "", at(a, e2, 6): "ahead",
	})
	exec(t, db, `DELETE FROM commitcast.journal WHERE "offset" <= 3`) // as retention does, leaf by leaf
	check("trimmed", map[string]string{
		at(a, e1, 0): "trimmed", at(a, e2, 2): "trimmed", at(a, e2, 3): "", at(a, e1, 3): "trimmed", at(a, e2, 4): "", at(a, e1, 4): "epoch",
	})
	exec(t, db, `DELETE FROM commitcast.journal`)
	check("all trimmed", map[string]string{
		at(a, e2, 5): "", at(a, e1, 5): "epoch", at(a, e2, 4): "trimmed", at(a, e1, 0): "trimmed",
	})
}

// Leaves cover UTC days, whatever zone and date style the session that makes them has.
func TestLeavesAreDaysInUTC(t *testing.T) {
	for _, settings := range []string{
		"SET TimeZone = 'Pacific/Kiritimati'", // 14 hours ahead: another day already
		"SET TimeZone = 'Asia/Kolkata'; SET DateStyle = 'SQL, DMY'",
		"SET TimeZone = 'America/St_Johns'; SET DateStyle = 'German'",
	} {
		db := migrated(t)
		conn := connect(t, db)
		if _, err := conn.Exec(t.Context(), settings); err != nil {
			t.Fatal(err)
		}
		if made := one[int](t, conn, `SELECT commitcast.ensure_leaves(12)`); made != 9 {
			t.Errorf("%s: made %d leaves, want the 9 that Up did not make", settings, made)
		}
		if made := one[int](t, conn, `SELECT commitcast.ensure_leaves(12)`); made != 0 {
			t.Errorf("%s: made %d leaves again", settings, made)
		}
		conn.Exec(t.Context(), "SET TimeZone = 'UTC'; SET DateStyle = 'ISO'")
		wrong := one[string](t, conn, `
			SELECT coalesce(string_agg(relname || ' ' || pg_get_expr(relpartbound, oid), '; '), '') FROM pg_class
			WHERE relispartition AND relnamespace = 'commitcast'::regnamespace AND relkind = 'r'
			AND pg_get_expr(relpartbound, oid) <> format('FOR VALUES FROM (%L) TO (%L)',
				to_timestamp(right(relname, 8), 'YYYYMMDD'), to_timestamp(right(relname, 8), 'YYYYMMDD') + interval '1 day')`)
		if wrong != "" {
			t.Errorf("%s: %s", settings, wrong)
		}
		if n := one[int](t, conn, `SELECT count(*) FROM pg_inherits WHERE inhparent = 'commitcast.journal'::regclass`); n != 14 {
			t.Errorf("%s: %d leaves, want yesterday, today and 12 more", settings, n)
		}
	}
}

// A clock that was ahead for a while does not stop sequencing once it is right again.
func TestLeavesFollowAClockThatWasAhead(t *testing.T) {
	db := migrated(t)
	conn := connect(t, db)
	p, names := topics(t, conn, 1)
	exec(t, db, `UPDATE commitcast.partition SET last_sequenced_at = now() + interval '30 days' WHERE id = $1`, p)
	one[int](t, conn, `SELECT commitcast.ensure_leaves(1)`)
	one[int64](t, conn, `SELECT commitcast.append($1, 't', '1')`, names[0])
	if s := sequence(t, conn, p, 1, 10, nil, nil); s.sequenced != 1 {
		t.Errorf("%+v", s)
	}
}
