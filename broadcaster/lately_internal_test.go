package broadcaster

import (
	"testing"
	"time"
)

// What happened is told for at least 45 s, and not for longer than a minute, whatever the pauses between.
func TestLately(t *testing.T) {
	var l lately
	start := time.Unix(1_000_000, 0)
	for second := range 300 {
		if second < 60 || second == 200 {
			l.add(start.Add(time.Duration(second) * time.Second))
		}
		n := l.sum(start.Add(time.Duration(second) * time.Second))
		least, most := 0, 0
		for was := max(0, second-59); was <= second; was++ {
			if was < 60 || was == 200 {
				most++
				if was > second-45 {
					least++
				}
			}
		}
		if n < least || n > most {
			t.Fatalf("%d at %d s, want %d to %d", n, second, least, most)
		}
	}
	if n := l.sum(start.Add(time.Hour)); n != 0 {
		t.Errorf("%d after an hour", n)
	}
}
