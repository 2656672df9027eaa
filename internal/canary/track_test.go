package canary

import "testing"

// What comes is held to what came before: each loss and each repetition is told once, and a new history of the database is no loss.
func TestMissing(t *testing.T) {
	type heard struct {
		epoch     string
		offset, n int64
		lost      int64
		again     bool
	}
	for name, all := range map[string][]heard{
		"in order":                   {{"1-a", 1, 1, 0, false}, {"1-a", 2, 2, 0, false}, {"1-a", 3, 3, 0, false}},
		"the first is any":           {{"1-a", 70, 900, 0, false}, {"1-a", 71, 901, 0, false}},
		"others' events in between":  {{"1-a", 1, 1, 0, false}, {"1-a", 2, 0, 0, false}, {"1-a", 3, 2, 0, false}},
		"offsets passed":             {{"1-a", 1, 1, 0, false}, {"1-a", 4, 4, 2, false}, {"1-a", 5, 5, 0, false}},
		"numbers passed":             {{"1-a", 1, 1, 0, false}, {"1-a", 2, 4, 2, false}, {"1-a", 3, 5, 0, false}},
		"twice":                      {{"1-a", 1, 1, 0, false}, {"1-a", 1, 1, 0, true}, {"1-a", 2, 2, 0, false}},
		"after a later one":          {{"1-a", 5, 5, 0, false}, {"1-a", 7, 7, 1, false}, {"1-a", 6, 6, 0, true}, {"1-a", 8, 8, 0, false}},
		"a number again":             {{"1-a", 1, 1, 0, false}, {"1-a", 2, 1, 0, true}, {"1-a", 3, 2, 0, false}},
		"another epoch counts anew":  {{"1-a", 9, 9, 0, false}, {"2-b", 10, 4, 0, false}, {"2-b", 11, 5, 0, false}},
		"another epoch has offsets":  {{"1-a", 9, 9, 0, false}, {"2-b", 12, 4, 2, false}},
		"others' offsets are passed": {{"1-a", 1, 1, 0, false}, {"1-a", 3, 0, 1, false}, {"1-a", 4, 2, 0, false}},
	} {
		var tr track
		for i, h := range all {
			if lost, again := tr.missing(h.epoch, h.offset, h.n); lost != h.lost || again != h.again {
				t.Errorf("%s: event %d: %d lost, again %v; want %d, %v", name, i, lost, again, h.lost, h.again)
			}
		}
	}
}
