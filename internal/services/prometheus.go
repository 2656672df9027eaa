package services

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

//go:embed extract_debian.sh
var extractDebian string

var prometheusNeed = need{
	what: "Prometheus with promtool",
	find: finds(findPrometheus), debian: []string{"prometheus"}, brew: []string{"prometheus"}, unpack: prometheusFolder,
}

// prometheusFolder is where the programs of the Debian package are, which is not installed: that would start a server.
func prometheusFolder() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding a folder for Prometheus: %w", err)
	}
	return filepath.Join(cache, "commitcast", "prometheus"), nil
}

// findPrometheus finds the server, with promtool beside it: on PATH, or where it was unpacked.
func findPrometheus() (program, error) {
	var folders []string
	if path, err := exec.LookPath("prometheus"); err == nil {
		folders = append(folders, filepath.Dir(path))
	}
	if folder, err := prometheusFolder(); err == nil {
		folders = append(folders, folder)
	}
	for _, folder := range folders {
		p := program{path: filepath.Join(folder, "prometheus")}
		if _, err := exec.LookPath(filepath.Join(folder, "promtool")); err != nil {
			continue
		}
		text, err := p.ask("--version")
		if err != nil {
			continue
		}
		if p.version = versionNumber.FindString(text); p.version != "" {
			return p, nil
		}
	}
	return program{}, errors.New("no Prometheus found")
}

// EnsurePrometheus sees to what StartPrometheus needs, and returns the path of promtool. On Debian the programs are unpacked into
// the user's cache, after saying so; nothing is installed, and nothing runs.
func EnsurePrometheus(ctx context.Context, out io.Writer) (promtool string, err error) {
	if err := ensure(ctx, out, prometheusNeed); err != nil {
		return "", err
	}
	p, err := findPrometheus()
	return filepath.Join(filepath.Dir(p.path), "promtool"), err
}

// PrometheusConfig says what a private server does.
type PrometheusConfig struct {
	// Config is prometheus.yml.
	Config string
	// Rules are files of rules by name, beside it: "rules.yml". Default: none.
	Rules map[string]string
}

// Prometheus is a private server.
type Prometheus struct {
	folder *folder
	proc   *process
	port   int
}

// StartPrometheus starts a server in a new temporary folder. ctx bounds the start only. It does not install: an error says
// what is missing.
func StartPrometheus(ctx context.Context, cfg PrometheusConfig) (*Prometheus, error) {
	if missing := lacking([]need{prometheusNeed}); missing != nil {
		missing.reason = "tests need it"
		return nil, missing
	}
	found, err := findPrometheus()
	if err != nil {
		return nil, err
	}
	f, err := newFolder("prometheus")
	if err != nil {
		return nil, err
	}
	p := &Prometheus{folder: f}
	if err := p.start(ctx, found, cfg); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func (p *Prometheus) start(ctx context.Context, found program, cfg PrometheusConfig) error {
	data, err := p.folder.private("data")
	if err != nil {
		return err
	}
	file, err := p.folder.secret("prometheus.yml", []byte(cfg.Config))
	if err != nil {
		return err
	}
	for name, text := range cfg.Rules {
		if _, err := p.folder.secret(name, []byte(text)); err != nil {
			return err
		}
	}
	// The servers' user need not be able to reach our cache.
	program := found
	program.path = filepath.Join(p.folder.path, "prometheus")
	if err := copyProgram(found.path, program.path); err != nil {
		return err
	}
	return onFreePort(func(port int) error {
		p.port = port
		proc, err := p.folder.spawn(program, nil, syscall.SIGKILL, "--config.file="+file, "--storage.tsdb.path="+data, "--web.listen-address="+localAddr(port), "--log.level=warn")
		if err != nil {
			return fmt.Errorf("starting a private Prometheus: %w", err)
		}
		err = proc.ready(ctx, "Prometheus", func(ctx context.Context) error {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL()+"/-/ready", nil)
			if err != nil {
				return err
			}
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * time.Second}
			resp, err := client.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("it answers %s", resp.Status)
			}
			return nil
		})
		if err != nil {
			text, _ := os.ReadFile(proc.log)
			proc.end(syscall.SIGKILL)
			if strings.Contains(strings.ToLower(string(text)), "address already in use") {
				return errPortTaken
			}
			return err
		}
		p.proc = proc
		return nil
	})
}

func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// URL is where the server is.
func (p *Prometheus) URL() string {
	return (&url.URL{Scheme: "http", Host: localAddr(p.port)}).String()
}

// Close ends the server for good and removes its folder. Calling it twice is fine.
func (p *Prometheus) Close() {
	if p.folder == nil {
		return
	}
	p.proc.end(syscall.SIGKILL)
	p.folder.remove()
	p.folder = nil
}
