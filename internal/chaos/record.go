package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// record is what a run leaves: in full as JSON, and as a page for people.
type record struct {
	At         time.Time      `json:"at"` // when it began
	Took       time.Duration  `json:"took"`
	Machine    string         `json:"machine"`
	Seed       uint64         `json:"seed"`
	Clients    int            `json:"clients"`
	Hosts      bool           `json:"hosts"`
	Redis      string         `json:"redis"`
	Rounds     []result       `json:"rounds"`
	Violations map[string]int `json:"violations"` // by kind
}

func newRecord(o options) *record {
	return &record{At: time.Now(), Seed: o.seed, Clients: o.clients, Hosts: o.hosts, Redis: o.redis, Violations: make(map[string]int),
		Machine: fmt.Sprintf("%d cores, %s/%s, %s", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version())}
}

// write prints the page, and puts both into a folder. It returns the path of the page.
func (rec *record) write(folder string) (path string, err error) {
	rec.Took = time.Since(rec.At)
	page := rec.page()
	fmt.Print(page)
	path = filepath.Join(folder, fmt.Sprintf("results-%d-%d", rec.Seed, os.Getpid()))
	if err := os.WriteFile(path+".md", []byte(page), 0o644); err != nil {
		return "", err
	}
	b, err := json.MarshalIndent(rec, "", " ")
	if err == nil {
		err = os.WriteFile(path+".json", b, 0o644)
	}
	return path + ".md", err
}

func (rec *record) total() (n int) {
	for _, count := range rec.Violations {
		n += count
	}
	return n
}

// failover is what the round of a failover is called among the faults.
const failover = "failover"

// page says what docs/guarantees.md needs to know.
func (rec *record) page() string {
	var b strings.Builder
	counts := make(map[string]int)
	for _, k := range kindsOf(rec.Hosts, rec.Redis) {
		counts[k.name] = 0
	}
	alone := make(map[string][]result)
	var settle, p50, p99 []time.Duration
	quiet, several, events, tookOver := 0, 0, 0, 0
	for _, r := range rec.Rounds {
		events += r.Events
		if r.TookOver {
			tookOver++
		}
		settle = append(settle, r.Settle)
		for _, f := range r.Faults {
			counts[f]++
		}
		switch len(r.Faults) {
		case 0:
			quiet++
			if r.PushP99 > 0 {
				p50, p99 = append(p50, r.PushP50), append(p99, r.PushP99)
			}
		case 1:
			alone[r.Faults[0]] = append(alone[r.Faults[0]], r)
		default:
			several++
		}
	}
	for _, all := range [][]time.Duration{settle, p50, p99} {
		slices.Sort(all)
	}
	fmt.Fprintf(&b, "\n%d rounds in %v, from seed %d, with %d clients, on %s: %d without a fault, %d with several. %d promotions of a standby.\n",
		len(rec.Rounds), rec.Took.Round(time.Second), rec.Seed, rec.Clients, rec.Machine, quiet, several, counts[failover])
	if tookOver > 0 {
		fmt.Fprintf(&b, "In %d rounds another server of Redis became master.\n", tookOver)
	}
	fmt.Fprintf(&b, "\nViolations: %d.\n", rec.total())
	for _, name := range keys(rec.Violations) {
		fmt.Fprintf(&b, "violated: %s × %d\n", name, rec.Violations[name])
	}
	fmt.Fprintf(&b, "\nPush, in rounds without a fault, from the acknowledged commit to each steady client: median of the rounds p50 %s, p99 %s; worst round p99 %s.\n",
		ms(p50, 0.5), ms(p99, 0.5), ms(p99, 1))
	fmt.Fprintf(&b, "Whole again after the last fault and the last write: p50 %s, p99 %s, max %s.\n", ms(settle, 0.5), ms(settle, 0.99), ms(settle, 1))
	b.WriteString(`
Recovery, in rounds with one fault (alone): from its end, or from a kill itself, until a commit that began after that was
with the first client, and with each of the steady ones: in whatever topic, so other partitions may lag. The longest wait is
that of any commit acknowledged since the fault began, until the first client had all of it.

| fault | times | alone | first client p50 | p99 | max | all clients p50 | p99 | max | longest wait p50 | p99 | max |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|
`)
	var never []string
	for _, name := range keys(counts) {
		if counts[name] == 0 {
			never = append(never, name)
			continue
		}
		fmt.Fprintf(&b, "| %s | %d | %d |", name, counts[name], len(alone[name]))
		for _, of := range []func(result) time.Duration{
			func(r result) time.Duration { return r.Again },
			func(r result) time.Duration { return r.AllAgain },
			func(r result) time.Duration { return r.First },
		} {
			var all []time.Duration
			for _, r := range alone[name] {
				if d := of(r); d > 0 {
					all = append(all, d)
				}
			}
			slices.Sort(all)
			fmt.Fprintf(&b, " %s | %s | %s |", ms(all, 0.5), ms(all, 0.99), ms(all, 1))
		}
		b.WriteByte('\n')
	}
	if never != nil {
		fmt.Fprintf(&b, "\nNever: %s.\n", strings.Join(never, ", "))
	}
	b.WriteByte('\n')
	return b.String()
}

func ms(sorted []time.Duration, q float64) string {
	if len(sorted) == 0 {
		return "–"
	}
	return fmt.Sprintf("%d ms", quantile(sorted, q).Milliseconds())
}
