package migrations_test

import (
	"sync"
	"testing"
)

// However many nodes ask at once, one event a second is appended, and its number follows the last one's; also after one that was
// rolled back. A node that stops in the midst of it holds up nobody.
func TestOneCanarySings(t *testing.T) {
	db := migrated(t)
	const nodes = 8
	second := func() (written []int64) {
		t.Helper()
		exec(t, db, `UPDATE commitcast.canary SET at = at - interval '1 s'`)
		var mu sync.Mutex
		var all sync.WaitGroup
		for range nodes {
			conn := connect(t, db)
			all.Go(func() {
				var n *int64
				if err := conn.QueryRow(t.Context(), `SELECT written FROM commitcast.sing()`).Scan(&n); err != nil {
					t.Error(err)
				} else if n != nil {
					mu.Lock()
					defer mu.Unlock()
					written = append(written, *n)
				}
			})
		}
		all.Wait()
		return written
	}
	for want := int64(1); want <= 3; want++ {
		// All of it within 950 ms, or a second node may rightly write: then this machine is too busy to tell.
		if got := second(); len(got) == 0 || got[0] != want || len(got) > 1 {
			t.Fatalf("%d nodes at once have written %v, want %d alone", nodes, got, want)
		}
	}
	exec(t, db, `UPDATE commitcast.canary SET at = at - interval '1 s'`)
	conn := connect(t, db)
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if n := one[int64](t, tx, `SELECT written FROM commitcast.sing()`); n != 4 {
		t.Errorf("the next is %d, not 4", n)
	}
	other := connect(t, db)
	if n := one[*int64](t, other, `SELECT written FROM commitcast.sing()`); n != nil {
		t.Errorf("beside one that has not ended, another wrote %d", *n)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := one[int64](t, other, `SELECT written FROM commitcast.sing()`); n != 4 {
		t.Errorf("after a rollback the next is %d, not 4", n)
	}
	if got := one[string](t, other, `SELECT string_agg(data->>'n', ' ' ORDER BY id) FROM commitcast.outbox WHERE topic = 'commitcast/canary' AND type = 'canary'`); got != "1 2 3 4" {
		t.Errorf("appended: %s", got)
	}
	// A clock that was set back does not silence it.
	exec(t, db, `UPDATE commitcast.canary SET at = now() + interval '1 hour'`)
	if n := one[int64](t, other, `SELECT written FROM commitcast.sing()`); n != 5 {
		t.Errorf("with a clock that was set back, the next is %d, not 5", n)
	}
}
