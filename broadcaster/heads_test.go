package broadcaster_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/wire"
)

// Of many topics of partitions that moved, only those are read about that moved themselves; and a message of one that was lost is found all
// the same.
func TestLostMessageAmongManyTopics(t *testing.T) {
	r := newRig(t, nil, broadcaster.Config{})
	c := testkit.Dial(t, r.URL)
	const topics = 60
	var names []string // of one partition
	for i := 0; len(names) < topics; i++ {
		if name := fmt.Sprint("many:", i); wire.Partition(name) == 3 {
			names = append(names, name)
		}
	}
	for i, name := range names {
		c.Subscribe(i+1, name, "")
		c.Expect("subscribed")
	}
	testkit.Eventually(t, 10*time.Second, func() bool { // each has been looked at since its channel is there
		before := r.journal.asked.Load()
		r.commit(names[0], 1)
		c.ExpectEvents(names[0], int64(r.sent[names[0]]), int64(r.sent[names[0]]))
		return r.journal.asked.Load() == before
	}, "nobody asks for the heads of topics that did not move")
	// Once in a while all are asked for; not twice in a row.
	for try := range int64(2) {
		asked, moved := r.journal.asked.Load(), r.journal.moved.Load()
		r.lose(names[7], 1)
		c.ExpectEvents(names[7], try+1, try+1)
		asked, moved = r.journal.asked.Load()-asked, r.journal.moved.Load()-moved
		if asked == 0 && moved > 0 {
			return
		}
		t.Logf("asked for %d heads, and %d times for what moved", asked, moved)
	}
	t.Errorf("the heads of topics that did not move were asked for")
}
