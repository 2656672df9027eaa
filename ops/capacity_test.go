package ops_test

import (
	"errors"
	"math"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/commitcast/commitcast/ops"
)

func TestCapacityOfNonsense(t *testing.T) {
	good := ops.Load{Events: 100, Topics: 10, Subscribers: 1000}
	for name, change := range map[string]func(*ops.Load){
		"no topic":                   func(l *ops.Load) { l.Topics = 0 },
		"negative events":            func(l *ops.Load) { l.Events = -1 },
		"not a number":               func(l *ops.Load) { l.Subscribers = math.NaN() },
		"infinite":                   func(l *ops.Load) { l.Events = math.Inf(1) },
		"busier than a core":         func(l *ops.Load) { l.Busy = 1.5 },
		"hotter than there are":      func(l *ops.Load) { l.Hot = 1001 },
		"more topics than there are": func(l *ops.Load) { l.Subscriptions = 11 },
		"larger than events are":     func(l *ops.Load) { l.Bytes = 300_000 },
	} {
		l := good
		change(&l)
		if _, err := ops.CapacityFor(l); !errors.Is(err, ops.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ops.CapacityFor(good); err != nil {
		t.Error(err)
	}
}

// More of anything never takes less, and each constant matters to some part.
func TestCapacityGrows(t *testing.T) {
	total := func(l ops.Load) (n float64) {
		t.Helper()
		got, err := ops.CapacityFor(l)
		if err != nil {
			t.Fatal(err)
		}
		n = got.Deliveries/1e6 + got.Network/1e9 + got.RedisNetwork/1e9 + got.Journal/1e12
		for _, p := range got.Parts {
			n += float64(p.Count) + p.Cores + p.Memory/float64(1<<30)*float64(p.Count)
			if p.Count < 1 || p.Cores < 0 || p.Why == "" {
				t.Errorf("%+v: %+v", l, p)
			}
		}
		return n
	}
	at := ops.Load{Events: 500, Topics: 1000, Subscribers: 5000, Subscriptions: 3, Within: 1, Kept: 100}
	for name, more := range map[string]func(*ops.Load){
		"events":        func(l *ops.Load) { l.Events *= 2 },
		"subscribers":   func(l *ops.Load) { l.Subscribers *= 2 },
		"subscriptions": func(l *ops.Load) { l.Subscriptions *= 2 },
		"hotter":        func(l *ops.Load) { l.Hot = l.Subscribers },
		"bytes":         func(l *ops.Load) { l.Bytes = 10_000 },
		"kept":          func(l *ops.Load) { l.Kept *= 2 },
		"retention":     func(l *ops.Load) { l.Retention = 1000 },
		"sooner back":   func(l *ops.Load) { l.Within = 0.05 },
		"less busy":     func(l *ops.Load) { l.Busy = 0.01 },
	} {
		last := total(at)
		for l, n := at, 0; n < 6; n++ {
			if more(&l); l.Subscriptions > l.Topics {
				break
			}
			now := total(l)
			if now < last || n == 0 && now == last {
				t.Errorf("%s, %d times: %v, before %v", name, n+1, now, last)
			}
			last = now
		}
	}
	for i := range ops.Constants {
		before := total(at)
		old := ops.Constants[i].Value
		ops.Constants[i].Value *= 3
		if now := total(at); now <= before {
			t.Errorf("%s is of no account", ops.Constants[i].Name)
		}
		ops.Constants[i].Value = old
		if c := ops.Constants[i]; c.Name == "" || c.Unit == "" || c.Source == "" || c.Value <= 0 {
			t.Errorf("%+v says too little", c)
		}
	}
}

// A million subscribers of one topic on one event a second are past nothing that was measured but the number of broadcasters.
func TestCapacityOfAMillion(t *testing.T) {
	got, err := ops.CapacityFor(ops.Load{Events: 1, Topics: 1, Subscribers: 1_000_000})
	if err != nil {
		t.Fatal(err)
	}
	if got.Parts[0].Name != "broadcaster" || got.Parts[0].Count != 125 || !strings.Contains(got.Parts[0].Why, "8,000") || len(got.Beyond) != 0 {
		t.Errorf("%+v, beyond: %v", got.Parts[0], got.Beyond)
	}
	if got, err := ops.CapacityFor(ops.Load{Events: 200_000, Topics: 1000, Subscribers: 1}); err != nil || len(got.Beyond) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}

// The table of docs/scaling.md is what the model says now.
func TestCapacityInDocs(t *testing.T) {
	text, err := os.ReadFile("../docs/scaling.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile(`(?m)^\| [\d,]+ \|.*`).FindAllString(string(text), -1)
	if len(rows) < 5 {
		t.Fatalf("%d rows are found", len(rows))
	}
	for _, row := range rows {
		cells := strings.Split(strings.Trim(strings.ReplaceAll(row, ",", ""), "| "), " | ")
		leading := func(i int) (n float64, places int) {
			word, _, _ := strings.Cut(cells[i], " ")
			_, fraction, _ := strings.Cut(word, ".")
			n, err := strconv.ParseFloat(word, 64)
			if err != nil {
				t.Fatalf("%s: %v", row, err)
			}
			return n, len(fraction)
		}
		l := ops.Load{Topics: 10_000}
		l.Subscribers, _ = leading(0)
		l.Events, _ = leading(1)
		if l.Hot = l.Subscribers; cells[2] != "all" {
			l.Hot, _ = leading(2)
		}
		got, err := ops.CapacityFor(l)
		if err != nil {
			t.Fatal(err)
		}
		network := got.Network / (1 << 20)
		if strings.Contains(cells[6], "GiB") {
			network /= 1 << 10
		}
		says := map[int]float64{6: network}
		for _, p := range got.Parts {
			switch p.Name {
			case "broadcaster":
				says[3], says[5] = float64(p.Count), p.Cores
			case "Postgres":
				says[7] = p.Cores
			case "Redis":
				says[8] = p.Cores
			}
		}
		for i, want := range says {
			if n, places := leading(i); math.Abs(n-want) > 0.5*math.Pow10(-places)+1e-9 {
				t.Errorf("%s: %v in column %d, and the model says %v", row, n, i+1, want)
			}
		}
		if len(cells) != 9 || strings.Contains(cells[4], "clients") != strings.Contains(got.Parts[0].Why, "clients each") {
			t.Errorf("%s: the model says %q", row, got.Parts[0].Why)
		}
	}
}
