package gameday

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/commitcast/commitcast/internal/services"
	"github.com/commitcast/commitcast/internal/testkit"
)

// watch is a Prometheus with the shipped configuration and rules: only the targets are ours, and without -all the pace.
type watch struct {
	t      *testing.T
	url    string
	window string            // four looks: what is not seen in it is over
	exprs  map[string]string // of alerts that are no objectives
}

// objectives look at minutes to days; they burn in a system that is minutes old whenever something is broken.
const objectives = "commitcast-slo"

func startWatch(t *testing.T, targets ...string) *watch {
	t.Helper()
	const folder = "../../ops/deploy/prometheus/"
	config, err := os.ReadFile(folder + "prometheus.yml")
	if err != nil {
		t.Fatal(err)
	}
	rules, err := os.ReadFile(folder + "alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	shipped := regexp.MustCompile(`targets: \[.*\]`)
	if len(shipped.FindAll(config, -1)) != 1 {
		t.Fatal("the shipped prometheus.yml has no line of targets, or several")
	}
	w := &watch{t: t, exprs: map[string]string{}, window: "20s"}
	if pace := "_interval: 5s"; strings.Count(string(config), pace) != 2 {
		t.Fatal("the shipped prometheus.yml does not look every 5 s")
	} else if !*all {
		config, w.window = bytes.ReplaceAll(config, []byte(pace), []byte("_interval: 1s")), "4s"
	}
	config = shipped.ReplaceAll(config, []byte("targets: ['"+strings.Join(targets, "', '")+"']"))
	var parsed struct {
		Groups []struct {
			Name  string
			Rules []struct{ Alert, Expr string }
		}
	}
	if err := yaml.Unmarshal(rules, &parsed); err != nil {
		t.Fatal(err)
	}
	for _, g := range parsed.Groups {
		for _, r := range g.Rules {
			if r.Alert != "" && g.Name != objectives {
				w.exprs[r.Alert] = r.Expr
			}
		}
	}
	if _, err := services.EnsurePrometheus(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	p, err := services.StartPrometheus(t.Context(), services.PrometheusConfig{Config: string(config), Rules: map[string]string{"alerts.yml": string(rules)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	w.url = p.URL()
	return w
}

// ask asks Prometheus.
func (w *watch) ask(path string, into any) error {
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url+path, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(into)
}

// finds is how many series an expression has now.
func (w *watch) finds(expr string) (int, error) {
	var answer struct {
		Status, Error string
		Data          struct{ Result []json.RawMessage }
	}
	err := w.ask("/api/v1/query?query="+url.QueryEscape(expr), &answer)
	if err == nil && answer.Status != "success" {
		err = fmt.Errorf("%s: %s", expr, answer.Error)
	}
	return len(answer.Data.Result), err
}

// alerts are the names of those in a state: "firing", "pending", or "" for both. Objectives are left out.
func (w *watch) alerts(state string) ([]string, error) {
	var answer struct {
		Data struct {
			Alerts []struct {
				State  string
				Labels map[string]string
			}
		}
	}
	err := w.ask("/api/v1/alerts", &answer)
	var names []string
	for _, a := range answer.Data.Alerts {
		if name := a.Labels["alertname"]; (state == "" || a.State == state) && w.exprs[name] != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), err
}

// fires waits until an alert does, and fails after a moment.
func (w *watch) fires(alert string, until time.Time) {
	w.t.Helper()
	testkit.Eventually(w.t, time.Until(until), func() error {
		names, err := w.alerts("firing")
		if err == nil && !slices.Contains(names, alert) {
			err = fmt.Errorf("firing: %v", names)
		}
		return err
	}, "%s fires", alert)
}

// minutes is a window of a rule, or an offset.
var minutes = regexp.MustCompile(`\[\d+m\]|offset \d+m`)

// over tells whether what an alert is about is over: it does not fire, or if it looks back over minutes, the same over the last four
// looks is false.
func (w *watch) over(alert string) error {
	expr := minutes.ReplaceAllStringFunc(w.exprs[alert], func(window string) string {
		if strings.HasPrefix(window, "offset") {
			return "offset " + w.window
		}
		return "[" + w.window + "]"
	})
	if expr == w.exprs[alert] {
		firing, err := w.alerts("")
		if err == nil && slices.Contains(firing, alert) {
			err = fmt.Errorf("%s still fires", alert)
		}
		return err
	}
	n, err := w.finds(expr)
	if err == nil && n > 0 {
		err = fmt.Errorf("%s is still true over %s", alert, w.window)
	}
	return err
}
