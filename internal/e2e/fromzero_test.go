package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/commitcast/commitcast/internal/services"
	"github.com/commitcast/commitcast/internal/testkit"
)

// docs/from-zero.md, followed to the letter in an empty folder, against a fresh Postgres, to a live page in a real browser.
//
// Three things differ: `go install …@latest` has happened, from this tree; the service gets its module from this tree;
// and 127.0.0.1 is another loopback address, so that tests do not meet.
func TestFromZero(t *testing.T) {
	text, err := os.ReadFile("../../docs/from-zero.md")
	if err != nil {
		t.Fatal(err)
	}
	repository, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	psql, err := services.PostgresProgram("psql")
	if err != nil {
		t.Fatal(err)
	}
	home := fmt.Sprintf("127.%d.%d.2", os.Getpid()>>8&0x7f+1, os.Getpid()&0xff)
	g := &guide{
		t: t, dir: t.TempDir(),
		env: append(os.Environ(), "DATABASE_URL="+testkit.EmptyDatabase(t), "REDIS_URL=",
			"PATH="+filepath.Dir(testkit.Binary(t))+":"+filepath.Dir(psql)+":"+os.Getenv("PATH"),
			"COMMITCAST_LISTEN="+home+":8080", "COMMITCAST_OPS_LISTEN="+home+":8081"),
	}
	says := strings.NewReplacer(
		"127.0.0.1", home,
		"go install github.com/commitcast/commitcast/cmd/commitcast@latest", "commitcast version",
		"go get github.com/commitcast/commitcast@latest",
		"go mod edit -require github.com/commitcast/commitcast@v0.0.0 -replace github.com/commitcast/commitcast="+repository+" && cp "+repository+"/go.sum .",
	)
	var page *tab
	blocks := regexp.MustCompile("(?ms)^```(\\w+) ?([\\w.]*)\n(.*?)^```$").FindAllStringSubmatch(string(text), -1)
	for i, block := range blocks {
		language, name, code := block[1], block[2], says.Replace(block[3])
		switch {
		case language == "sh" && name == "terminal":
			g.terminal(code)
			switch {
			case strings.HasPrefix(code, "commitcast all"):
				g.ready("http://" + home + ":8081/readyz")
			case strings.HasPrefix(code, "curl"):
				g.shows("event: subscribed")
			case strings.HasPrefix(code, "go run"):
				g.serves(home + ":8000")
				// The server is stopped and started later, of which a browser complains.
				page = openTab(t, "http://"+home+":8000/", "WebSocket connection", "Failed to load resource")
				page.until(`document.getElementById("status").textContent === "live"`)
				page.until(`document.getElementById("prices").innerText === "ACME 12.55\nGLOBEX 9.90"`)
			default:
				t.Fatalf("nobody waits for %s", code)
			}
		case language == "sh":
			g.run(code)
		case name != "":
			if err := os.WriteFile(filepath.Join(g.dir, name), []byte(code), 0o600); err != nil {
				t.Fatal(err)
			}
		default:
			t.Errorf("block %d is %s, and neither a command nor a file:\n%s", i, language, code)
		}
	}
	if page == nil || len(blocks) < 12 {
		t.Fatalf("%d blocks only", len(blocks))
	}
	g.shows(`"offset":1,`)
	g.shows(`"type":"price","key":"ACME"`)
	g.shows(`"data":{"symbol":"ACME","cents":1255}`)
	page.until(`document.getElementById("prices").innerText === "ACME 13.00\nINITECH 0.42"`)

	// And the last paragraph.
	stopped := g.stop("commitcast all")
	page.until(`document.getElementById("status").textContent === "offline"`)
	g.run(`psql "$DATABASE_URL" -c "DELETE FROM price WHERE symbol = 'INITECH'"`)
	g.terminal(stopped)
	page.until(`document.getElementById("status").textContent === "live" && document.getElementById("prices").innerText === "ACME 13.00"`)
}

// guide is a reader of a guide, at a shell.
type guide struct {
	t       *testing.T
	dir     string
	env     []string
	screens []*screen
}

// screen is a terminal in which a command goes on, and what it has said. Safe for concurrent use.
type screen struct {
	code string
	cmd  *exec.Cmd
	mu   sync.Mutex
	text []byte
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text = append(s.text, p...)
	return len(p), nil
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return "$ " + s.code + string(s.text)
}

// run runs a block to its end, and stays in the folder that it leaves.
func (g *guide) run(code string) {
	g.t.Helper()
	here := filepath.Join(g.t.TempDir(), "here")
	cmd := exec.CommandContext(g.t.Context(), "bash", "-e", "-c", code+"\npwd > "+here)
	cmd.Dir, cmd.Env = g.dir, g.env
	if out, err := cmd.CombinedOutput(); err != nil {
		g.t.Fatalf("%s: %v\n%s", code, err, out)
	}
	dir, err := os.ReadFile(here)
	if err != nil {
		g.t.Fatal(err)
	}
	g.dir = strings.TrimSpace(string(dir))
}

// terminal begins a block that goes on until the test's end.
func (g *guide) terminal(code string) {
	g.t.Helper()
	cmd := exec.Command("bash", "-e", "-c", code)
	s := &screen{code: code, cmd: cmd}
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = g.dir, g.env, s, s
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.screens = append(g.screens, s)
	g.t.Cleanup(func() {
		if cmd.ProcessState == nil { // it was not stopped
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			cmd.Wait()
		}
		if g.t.Failed() {
			g.t.Log(s)
		}
	})
}

// stop interrupts the terminal whose command begins so, and returns the command.
func (g *guide) stop(command string) string {
	g.t.Helper()
	for _, s := range g.screens {
		if strings.HasPrefix(s.code, command) {
			syscall.Kill(-s.cmd.Process.Pid, syscall.SIGINT)
			s.cmd.Wait()
			return s.code
		}
	}
	g.t.Fatalf("no terminal runs %s", command)
	return ""
}

// shows waits for a text in a terminal.
func (g *guide) shows(text string) {
	g.t.Helper()
	testkit.Eventually(g.t, soon, func() error {
		for _, s := range g.screens {
			if strings.Contains(s.String(), text) {
				return nil
			}
		}
		return errors.New("not there")
	}, "a terminal shows %s", text)
}

// serves waits for a listener.
func (g *guide) serves(address string) {
	g.t.Helper()
	testkit.Eventually(g.t, soon, func() error {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return err
		}
		return conn.Close()
	}, "%s is served", address)
}

// ready waits until it has asked the database: a moment before that, a person does not type the next command.
func (g *guide) ready(url string) {
	g.t.Helper()
	testkit.Eventually(g.t, soon, func() error {
		resp, err := http.Get(url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	}, "%s says ready", url)
}
