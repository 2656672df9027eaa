package testkit

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
)

// built is the commitcast binary that the tests of a test binary have in common; Main removes it.
var built struct {
	once sync.Once
	dir  string
	err  error
}

// Binary is the path of the commitcast binary under test, built when the first test asks for it.
func Binary(t testing.TB) string {
	t.Helper()
	if !inMain {
		t.Fatal("TestMain must call testkit.Main: it removes the binary")
	}
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "commitcast-binary-"); built.err != nil {
			return
		}
		if out, err := exec.Command("go", "build", "-o", filepath.Join(built.dir, "commitcast"), "github.com/commitcast/commitcast/cmd/commitcast").CombinedOutput(); err != nil {
			built.err = fmt.Errorf("go build: %w\n%s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, "commitcast")
}

// Command runs a short command of the binary to its end, within 30 s, with nothing of the environment but what is given.
func Command(t testing.TB, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return CommandOf(t, Binary(t), env, args...)
}

// CommandOf is Command with another version of the binary.
func CommandOf(t testing.TB, binary string, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, args...)
	cmd.Env = append(os.Environ(), "DATABASE_URL=", "REDIS_URL=")
	cmd.Env = append(cmd.Env, env...)
	var out, err strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &err
	timer := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	defer timer.Stop()
	cmd.Run()
	return out.String(), err.String(), cmd.ProcessState.ExitCode()
}

// Node is a running process of the binary.
type Node struct {
	Cmd  *exec.Cmd
	URL  string        // of clients, or of the console; "" for a worker
	Ops  string        // of its ops listener
	Done chan struct{} // closed when it has ended

	mu  sync.Mutex
	log []string
}

// rolesOf are the database roles of each command.
var rolesOf = map[string][]string{"worker": {"worker"}, "broadcaster": {"reader"}, "all": {"worker", "reader"}}

// Start runs the binary, with no more rights in the database than its command needs, and waits until it is ready. It is
// stopped, in order, at the test's end.
func Start(t testing.TB, database, redis string, args ...string) *Node {
	t.Helper()
	return StartOf(t, Binary(t), database, redis, args...)
}

// StartOf is Start with another version of the binary.
func StartOf(t testing.TB, binary, database, redis string, args ...string) *Node {
	t.Helper()
	database = As(t, database, rolesOf[args[0]]...)
	if !given(args, "--ops-listen=") {
		args = append(args, "--ops-listen=127.0.0.1:0")
	}
	if args[0] != "worker" {
		if !given(args, "--listen=") {
			args = append(args, "--listen=127.0.0.1:0")
		}
		if !given(args, "--drain=") {
			args = append(args, "--drain=100ms")
		}
		if !given(args, "--auth=") {
			args = append(args, "--auth=off")
		}
	}
	n := runOf(t, binary, database, redis, args...)
	Eventually(t, 20*time.Second, func() error {
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

// Run runs a long command of the binary as a login, and waits until it serves. It is stopped, in order, at the test's end.
func Run(t testing.TB, database, redis string, args ...string) *Node {
	t.Helper()
	return runOf(t, Binary(t), database, redis, args...)
}

func runOf(t testing.TB, binary, database, redis string, args ...string) *Node {
	t.Helper()
	n := &Node{Done: make(chan struct{})}
	args = append(args, "--log-format=json")
	n.Cmd = exec.Command(binary, args...)
	n.Cmd.Env = append(os.Environ(), "DATABASE_URL="+database, "REDIS_URL="+redis)
	n.Cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := n.Cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	urls := make(chan [2]string, 8)
	go func() { // owned by the node: ends with the process
		defer close(n.Done)
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
		n.Cmd.Wait()
	}()
	t.Cleanup(func() {
		n.Cmd.Process.Signal(syscall.SIGCONT)
		n.Cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-n.Done:
		case <-time.After(20 * time.Second):
			t.Errorf("%s did not end within 20 s of SIGTERM", args[0])
			n.Cmd.Process.Kill()
			<-n.Done
		}
		if t.Failed() {
			n.mu.Lock()
			defer n.mu.Unlock()
			for _, line := range n.log[max(0, len(n.log)-40):] {
				t.Logf("%s %d: %s", args[0], n.Cmd.Process.Pid, line)
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
		case <-n.Done:
			t.Fatalf("%v ended: %v", args, n.log)
		case <-time.After(20 * time.Second):
			t.Fatalf("%v does not serve: %v", args, n.log)
		}
	}
	return n
}

// Log is what it has logged so far.
func (n *Node) Log() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return strings.Join(n.log, "\n")
}

func given(args []string, flag string) bool {
	return slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, flag) })
}
