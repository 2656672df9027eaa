package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/commitcast/commitcast/internal/services"
	"github.com/commitcast/commitcast/internal/testkit"
)

const prometheusFolder, grafanaFolder = "../../ops/deploy/prometheus/", "../../ops/deploy/grafana/"

// rulesFile is what is read of alerts.yml.
type rulesFile struct {
	Groups []struct {
		Rules []struct {
			Alert, Record, Expr string
			Labels, Annotations map[string]string
		}
	}
}

func readRules(t *testing.T) (all rulesFile) {
	t.Helper()
	text, err := os.ReadFile(prometheusFolder + "alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	return all
}

// Each alert says how bad it is, has a section of the runbook and no section is of none; has a unit test that sees it fire and one that
// sees it keep quiet; and all of these pass.
func TestAlerts(t *testing.T) {
	promtool, err := services.EnsurePrometheus(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	tests := ""
	for _, name := range []string{"alerts_test.yml", "slo_test.yml"} {
		text, err := os.ReadFile(prometheusFolder + name)
		if err != nil {
			t.Fatal(err)
		}
		tests += string(text)
	}
	runbook, err := os.ReadFile("../../docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	var alerts []string
	for _, g := range readRules(t).Groups {
		for _, r := range g.Rules {
			if r.Alert == "" {
				continue
			}
			alerts = append(alerts, r.Alert)
			if s := r.Labels["severity"]; s != "page" && s != "ticket" {
				t.Errorf("%s: severity %q", r.Alert, s)
			}
			if r.Annotations["runbook_url"] != "docs/runbook.md#"+strings.ToLower(r.Alert) || r.Annotations["summary"] == "" {
				t.Errorf("%s: %v", r.Alert, r.Annotations)
			}
			for _, which := range []string{"fires", "keeps quiet"} {
				if strings.Count(tests, "- name: "+r.Alert+" "+which+"\n") != 1 {
					t.Errorf("%s has no unit test in which it %s", r.Alert, which)
				}
			}
		}
	}
	var sections []string
	for _, m := range regexp.MustCompile(`(?m)^## (\w+)$`).FindAllStringSubmatch(string(runbook), -1) {
		sections = append(sections, m[1])
	}
	slices.Sort(sections)
	slices.Sort(alerts)
	if !slices.Equal(alerts, sections) {
		t.Errorf("alerts %v\nand sections of the runbook %v", alerts, sections)
	}
	for _, part := range []string{"**What it means.**", "**Look at.**", "**Do.**", "**It worked when**"} {
		if n := strings.Count(string(runbook), part); n != len(alerts) {
			t.Errorf("%d sections say %s, not %d", n, part, len(alerts))
		}
	}
	cmd := exec.CommandContext(t.Context(), promtool, "test", "rules", "alerts_test.yml", "slo_test.yml")
	cmd.Dir = prometheusFolder
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool: %v\n%s", err, out)
	}
	if out, err := exec.CommandContext(t.Context(), promtool, "check", "config", prometheusFolder+"prometheus.yml").CombinedOutput(); err != nil {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

// Every command that the runbook tells to type is one.
func TestRunbookCommands(t *testing.T) {
	text, err := os.ReadFile("../../docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, m := range regexp.MustCompile("`commitcast ((?:ops )?[a-z]+(?: (?:list|show|retry|discard|bump))?)((?: [^`]*)?)`").FindAllStringSubmatch(string(text), -1) {
		words := strings.Fields(m[1])
		help, stderr, code := command(t, nil, append(words, "--help")...)
		if code != 0 {
			t.Errorf("commitcast %s: exit code %d, %s", m[1], code, stderr)
		}
		for _, flag := range regexp.MustCompile(`--[a-z-]+`).FindAllString(m[2], -1) {
			if !strings.Contains(help, flag) {
				t.Errorf("commitcast %s has no %s", m[1], flag)
			}
		}
		seen[m[1]] = true
	}
	if len(seen) < 10 {
		t.Errorf("%d commands only: the test does not see them", len(seen))
	}
}

// Every query of every panel, and each metric of every alert, finds something in a Prometheus that has scraped a worker and a
// broadcaster; and of the alerts none fires while all is well.
func TestQueriesFindSomething(t *testing.T) {
	if _, err := services.EnsurePrometheus(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	issuer, authority := testkit.NewIssuer(t), testkit.NewAuthority(t)
	database, redis := testkit.Database(t), testkit.RedisURL(t)
	cert, key := authority.IssueUntil(time.Now().Add(30*24*time.Hour), "127.0.0.1")
	w := start(t, database, redis, "worker")
	b := start(t, database, redis, "broadcaster", "--canary", canaryReady, "--auth=jwt", "--jwt-alg=EdDSA", "--jwt-key-file="+issuer.File(t), "--jwt-audience="+testkit.Audience,
		"--authorize-url=http://127.0.0.1:1/", "--tls-cert="+testkit.File(t, "cert.pem", cert), "--tls-key="+testkit.File(t, "key.pem", key))
	green(t, b)
	rules, err := os.ReadFile(prometheusFolder + "alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf("global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [alerts.yml]\nscrape_configs:\n  - job_name: commitcast\n    static_configs: [{targets: [%q, %q]}]\n",
		strings.TrimPrefix(w.Ops, "http://"), strings.TrimPrefix(b.Ops, "http://"))
	p, err := services.StartPrometheus(t.Context(), services.PrometheusConfig{Config: config, Rules: map[string]string{"alerts.yml": string(rules)}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ask := func(expr string) int {
		t.Helper()
		var answer struct {
			Status, Error string
			Data          struct{ Result []json.RawMessage }
		}
		getJSON(t, p.URL()+"/api/v1/query?query="+url.QueryEscape(expr), &answer)
		if answer.Status != "success" {
			t.Fatalf("%s: %s", expr, answer.Error)
		}
		return len(answer.Data.Result)
	}
	found := func(what, expr string) {
		t.Helper()
		expr = strings.ReplaceAll(expr, "$__rate_interval", "1m") // as Grafana does
		testkit.Eventually(t, 30*time.Second, func() error {
			if ask(expr) == 0 {
				return fmt.Errorf("%s finds nothing: %s", what, expr)
			}
			return nil
		}, "data")
	}
	files, err := filepath.Glob(grafanaFolder + "dashboards/*.json")
	if err != nil || len(files) < 3 {
		t.Fatalf("%d dashboards, %v", len(files), err)
	}
	queries := 0
	for _, name := range files {
		var d struct {
			Title  string
			Panels []struct {
				Title   string
				Targets []struct{ Expr string }
			}
		}
		text, err := os.ReadFile(name)
		if err == nil {
			err = json.Unmarshal(text, &d)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, panel := range d.Panels {
			for _, target := range panel.Targets {
				found(d.Title+": "+panel.Title, target.Expr)
				queries++
			}
		}
	}
	if queries < 60 {
		t.Errorf("%d queries only", queries)
	}
	// What an alert compares has data; the comparison has none while all is well.
	selector := regexp.MustCompile(`commitcast[_:][a-z0-9_:]+(?:\{[^}]*\})?`)
	for _, g := range readRules(t).Groups {
		for _, r := range g.Rules {
			if strings.Contains(r.Expr, "absent(") {
				continue // of what is there
			}
			for _, s := range selector.FindAllString(r.Expr, -1) {
				found(r.Alert+r.Record, s)
			}
		}
	}
	var alerts struct {
		Data struct {
			Alerts []struct{ Labels map[string]string }
		}
	}
	getJSON(t, p.URL()+"/api/v1/alerts", &alerts)
	for _, a := range alerts.Data.Alerts {
		// A busy machine may be late indeed. Then the alert is right, if the canary itself says so, whatever the rules make of it.
		if a.Labels["alertname"] == "CommitcastLatencyBudgetBurns" &&
			ask(`sum(commitcast_canary_delay_seconds_bucket{le="0.25"}) < (1 - 14.4 * 0.01) * sum(commitcast_canary_delay_seconds_count)`) > 0 {
			t.Logf("fires, and rightly: %v", a.Labels)
			continue
		}
		t.Errorf("fires although all is well: %v", a.Labels)
	}
	var all struct {
		Data struct {
			Groups []struct {
				Rules []struct{ Name, Health, LastError string }
			}
		}
	}
	getJSON(t, p.URL()+"/api/v1/rules", &all)
	for _, g := range all.Data.Groups {
		for _, r := range g.Rules {
			if r.Health != "ok" {
				t.Errorf("%s: %s %s", r.Name, r.Health, r.LastError)
			}
		}
	}
}

func getJSON(t *testing.T, url string, to any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil {
		err = json.Unmarshal(text, to)
	}
	if err != nil {
		t.Fatalf("%s: %v", url, err)
	}
}
