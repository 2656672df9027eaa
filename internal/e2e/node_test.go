package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/commitcast/commitcast/internal/testkit"
)

// binary is the commitcast binary under test, built by TestMain.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "commitcast-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "commitcast")
	if out, err := exec.Command("go", "build", "-o", binary, "../../cmd/commitcast").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		os.Exit(1)
	}
	cleanUp = func() { os.RemoveAll(dir) }
	testkit.Main(cleaned{m})
}

var cleanUp func()

// cleaned removes the binary when the tests have run: testkit.Main exits the process.
type cleaned struct{ *testing.M }

func (c cleaned) Run() int {
	defer cleanUp()
	return c.M.Run()
}

// node is a running process of the binary.
type node struct {
	t    *testing.T
	cmd  *exec.Cmd
	URL  string // of clients; "" for a worker
	Ops  string
	done chan struct{}

	mu  sync.Mutex
	log []string
}

// rolesOf are the database roles of each command.
var rolesOf = map[string][]string{"worker": {"worker"}, "broadcaster": {"reader"}, "all": {"worker", "reader"}}

// start runs the binary, with no more rights in the database than its command needs, and waits until it is ready. It is
// stopped, in order, at the test's end.
func start(t *testing.T, database, redis string, args ...string) *node {
	t.Helper()
	return startOf(t, binary, database, redis, args...)
}

// startOf is start with another version of the binary.
func startOf(t *testing.T, binary, database, redis string, args ...string) *node {
	t.Helper()
	database = testkit.As(t, database, rolesOf[args[0]]...)
	args = append(args, "--ops-listen=127.0.0.1:0")
	if args[0] != "worker" {
		args = append(args, "--listen=127.0.0.1:0")
		if !slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "--drain=") }) {
			args = append(args, "--drain=100ms")
		}
		if !slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "--auth=") }) {
			args = append(args, "--auth=off")
		}
	}
	n := runOf(t, binary, database, redis, args...)
	testkit.Eventually(t, 20*time.Second, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, "GET", n.Ops+"/readyz", nil)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s is not ready: %s", args[0], resp.Status)
		}
		return nil
	}, "%s is ready", args[0])
	return n
}

// run runs a long command of the binary as a login, and waits until it serves. It is stopped, in order, at the test's end.
func run(t *testing.T, database, redis string, args ...string) *node {
	t.Helper()
	return runOf(t, binary, database, redis, args...)
}

func runOf(t *testing.T, binary, database, redis string, args ...string) *node {
	t.Helper()
	n := &node{t: t, done: make(chan struct{})}
	args = append(args, "--log-format=json")
	n.cmd = exec.Command(binary, args...)
	n.cmd.Env = append(os.Environ(), "DATABASE_URL="+database, "REDIS_URL="+redis)
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := n.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	urls := make(chan [2]string, 8)
	go func() { // owned by the node: ends with the process
		defer close(n.done)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			var line struct{ Msg, URL string }
			json.Unmarshal(lines.Bytes(), &line)
			if line.Msg == "serving clients" || line.Msg == "serving operators" || line.Msg == "serving the console" {
				urls <- [2]string{line.Msg, line.URL}
			}
			n.mu.Lock()
			n.log = append(n.log, lines.Text())
			n.mu.Unlock()
		}
		n.cmd.Wait()
	}()
	t.Cleanup(func() {
		n.cmd.Process.Signal(syscall.SIGCONT)
		n.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-n.done:
		case <-time.After(20 * time.Second):
			t.Errorf("%s did not end within 20 s of SIGTERM", args[0])
			n.cmd.Process.Kill()
			<-n.done
		}
		if t.Failed() {
			n.mu.Lock()
			defer n.mu.Unlock()
			for _, line := range n.log[max(0, len(n.log)-40):] {
				t.Logf("%s %d: %s", args[0], n.cmd.Process.Pid, line)
			}
		}
	})
	for n.Ops == "" && args[0] != "ops" || args[0] != "worker" && n.URL == "" {
		select {
		case u := <-urls:
			switch u[0] {
			case "serving clients":
				n.URL = u[1][:len(u[1])-len("/v1/ws")]
			case "serving operators":
				n.Ops = u[1]
			default: // …/console/
				n.URL = u[1]
			}
		case <-n.done:
			t.Fatalf("%v ended: %v", args, n.log)
		case <-time.After(20 * time.Second):
			t.Fatalf("%v does not serve: %v", args, n.log)
		}
	}
	return n
}
