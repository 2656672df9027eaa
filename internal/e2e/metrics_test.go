package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/commitcast/commitcast/internal/testkit"
)

// family is a metric as a process exports it, or as a document tells it.
type family struct {
	kind   string
	labels map[string]map[string]bool // the values of each; "*" is any
}

// exported reads the families of a text exposition that are ours.
func exported(t *testing.T, ops string, into map[string]*family) {
	t.Helper()
	resp, err := http.Get(ops + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	label := regexp.MustCompile(`([a-z_]+)="((?:[^"\\]|\\.)*)"`)
	for line := range strings.Lines(string(text)) {
		var name, kind string
		if n, _ := fmt.Sscanf(line, "# TYPE %s %s", &name, &kind); n == 2 && strings.HasPrefix(name, "commitcast_") {
			if into[name] == nil {
				into[name] = &family{kind, make(map[string]map[string]bool)}
			}
			continue
		}
		name, labels, ok := strings.Cut(line, "{")
		if !ok || !strings.HasPrefix(name, "commitcast_") {
			continue
		}
		name = strings.TrimSuffix(name, "_bucket")
		f := into[name]
		if f == nil {
			continue // _sum and _count of a histogram
		}
		for _, m := range label.FindAllStringSubmatch(labels, -1) {
			if m[1] == "le" {
				continue
			}
			if f.labels[m[1]] == nil {
				f.labels[m[1]] = make(map[string]bool)
			}
			f.labels[m[1]][m[2]] = true
		}
	}
}

// documented reads the tables of docs/metrics.md.
func documented(t *testing.T) map[string]*family {
	t.Helper()
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	told := make(map[string]*family)
	label := regexp.MustCompile("`([a-z]+)`(?:: ([^;`]*))?")
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(line), "|"), "|"), "|")
		name := strings.Trim(cells[0], " `")
		if !strings.HasPrefix(name, "commitcast_") {
			continue
		}
		if len(cells) != 6 {
			t.Errorf("%s: %d cells, not 6", name, len(cells))
			continue
		}
		if told[name] != nil {
			t.Errorf("%s is told twice", name)
		}
		f := &family{strings.TrimSpace(cells[1]), make(map[string]map[string]bool)}
		for _, m := range label.FindAllStringSubmatch(cells[2], -1) {
			f.labels[m[1]] = make(map[string]bool)
			for v := range strings.SplitSeq(strings.TrimSuffix(m[2], ", "), ",") {
				if v = strings.TrimSpace(v); v == "" {
					v = "*"
				}
				f.labels[m[1]][v] = true
			}
		}
		if strings.TrimSpace(cells[4]) == "" {
			t.Errorf("%s: it is not said what it tells", name)
		}
		told[name] = f
	}
	return told
}

// Every metric that running processes export is in docs/metrics.md, with its type, its labels and all their values; and everything
// there is exported.
func TestMetricsAreDocumented(t *testing.T) {
	issuer, authority := testkit.NewIssuer(t), testkit.NewAuthority(t)
	database, redis := testkit.Database(t), testkit.RedisURL(t)
	hook := httptest.NewServer(http.NotFoundHandler())
	defer hook.Close()
	cert, key := authority.Files("127.0.0.1")
	w := start(t, database, redis, "worker")
	b := start(t, database, redis, "broadcaster", "--canary", "--auth=jwt", "--jwt-alg=EdDSA", "--jwt-key-file="+issuer.File(t), "--jwt-audience="+testkit.Audience,
		"--authorize-url="+hook.URL, "--tls-cert="+cert, "--tls-key="+key,
		"--shard=orders:*="+testkit.As(t, testkit.Database(t), "reader"))
	green(t, b)
	testkit.Eventually(t, greenWithin, func() bool { return metric(t, w, "commitcast_pipeline_journal_days_ahead") > 0 }, "the worker has looked at the pipeline")
	found := make(map[string]*family)
	exported(t, w.Ops, found)
	exported(t, b.Ops, found)
	told := documented(t)
	for name, f := range found {
		doc := told[name]
		if doc == nil {
			t.Errorf("%s is exported, and not in docs/metrics.md", name)
			continue
		}
		if doc.kind != f.kind {
			t.Errorf("%s is a %s, and called a %s", name, f.kind, doc.kind)
		}
		for l, values := range f.labels {
			for v := range values {
				if !doc.labels[l][v] && !doc.labels[l]["*"] {
					t.Errorf("%s{%s=%q} is exported, and not in docs/metrics.md", name, l, v)
				}
			}
		}
	}
	// A part or a listener that this test does not start.
	absent := []string{`commitcast_certificate_expires_timestamp_seconds{listener="operators"}`}
	for name, doc := range told {
		f := found[name]
		if f == nil {
			t.Errorf("%s is in docs/metrics.md, and not exported", name)
			continue
		}
		for l, values := range doc.labels {
			for v := range values {
				series := fmt.Sprintf("%s{%s=%q}", name, l, v)
				if v == "*" && len(f.labels[l]) == 0 || v != "*" && !f.labels[l][v] && !slices.Contains(absent, series) {
					t.Errorf("%s is in docs/metrics.md, and not exported", series)
				}
			}
		}
	}
	if len(found) < 60 {
		t.Errorf("%d metrics only: the test does not see them", len(found))
	}
}
