package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/commitcast/commitcast/internal/network"
	"github.com/commitcast/commitcast/internal/testkit"
)

// restartAfter is what a supervisor waits before it starts a process again that has ended by itself.
const restartAfter = 100 * time.Millisecond

// process is a supervised worker or broadcaster: one that ends is started again, as in any deployment. It reaches
// Postgres and Redis through proxies of its own, or over the network from a host of its own; clients reach it through another proxy.
type process struct {
	w        *world
	name     string // worker1, broadcaster2
	role     string
	host     *network.Host  // with -hosts
	postgres *testkit.Proxy // without
	redis    *testkit.Proxy // without
	clients  *testkit.Proxy // nil for a worker

	mu      sync.Mutex
	cmd     *exec.Cmd
	ops     string        // URL of the ops listener; "" until it serves
	killed  bool          // by us: its end says nothing
	hold    chan struct{} // closed when it may be started again; nil: at once
	unhold  func()        // closes hold, once
	closing bool
	done    chan struct{} // closed when the supervisor has ended
	up      chan struct{} // closed when it first serves
	upOnce  sync.Once
}

func (w *world) newProcess(role string, n int) (*process, error) {
	p := &process{w: w, name: fmt.Sprintf("%s%d", role, n), role: role, done: make(chan struct{}), up: make(chan struct{})}
	var err error
	if p.host = w.hosts[p.name]; p.host == nil {
		if p.postgres, err = testkit.StartProxy(w.postgres.Addr()); err != nil {
			return nil, err
		}
		if p.redis, err = testkit.StartProxy(w.redis.Addr()); err != nil {
			return nil, err
		}
	}
	if role == "broadcaster" {
		if p.clients, err = testkit.StartProxy("127.0.0.1:1"); err != nil {
			return nil, err
		}
	}
	go p.supervise() // owned by p: close waits for it
	return p, nil
}

// supervise runs the process again and again. The kernel ties "when the parent dies" to the thread that started it.
func (p *process) supervise() {
	runtime.LockOSThread()
	defer close(p.done)
	if p.host == nil {
		defer runtime.UnlockOSThread()
	} else if err := p.host.Enter(); err != nil { // the thread ends with the goroutine, which stays locked to it
		p.w.log.add(p.name, "cannot be started: %v", err)
		return
	}
	for {
		p.mu.Lock()
		hold, closing := p.hold, p.closing
		p.mu.Unlock()
		if closing {
			return
		}
		if hold != nil {
			<-hold
		}
		p.runOnce()
		time.Sleep(restartAfter)
	}
}

// runOnce runs it to its end.
func (p *process) runOnce() {
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	ip, postgres, redis := "127.0.0.1", p.w.postgresURL, p.w.redisURL
	var more []string
	if p.host != nil {
		ip, more = p.host.IP(), []string{"--ops-token-file=" + p.w.opsToken}
	} else {
		postgres, redis = p.postgres.URL(postgres), p.redis.URL(redis)
	}
	args := append([]string{"commitcast", p.role, "--log-format=json", "--ops-listen=" + ip + ":0"}, more...)
	if p.clients != nil {
		args = append(args, "--listen="+ip+":0", "--auth=off", "--allow-public", "--drain=50ms", "--heartbeat=1s", "--node="+p.name)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), "DATABASE_URL="+postgres, "REDIS_URL="+redis)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StderrPipe()
	p.mu.Lock()
	if err == nil && !p.closing {
		err = cmd.Start()
	}
	if err != nil || p.closing {
		p.mu.Unlock()
		if err != nil {
			p.w.log.add(p.name, "cannot be started: %v", err)
		}
		return
	}
	p.cmd, p.killed, p.ops = cmd, false, ""
	p.mu.Unlock()
	p.w.log.add(p.name, "started, pid %d", cmd.Process.Pid)
	served := p.follow(out)
	err = cmd.Wait()

	p.mu.Lock()
	own := !p.killed && !p.closing
	p.cmd, p.ops = nil, ""
	p.mu.Unlock()
	p.w.log.add(p.name, "ended: %v", err)
	if own && served {
		p.w.violate("process-died", "%s ended by itself: %v", p.name, err)
	}
}

// follow reads the process's log to its end. It reports whether the process came to serve.
func (p *process) follow(out io.Reader) (served bool) {
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		text := lines.Text()
		var line struct{ Msg, URL, Level string }
		json.Unmarshal([]byte(text), &line)
		switch {
		case line.Msg == "serving operators":
			p.mu.Lock()
			p.ops = line.URL
			p.mu.Unlock()
			if p.clients == nil {
				served = true
			}
		case line.Msg == "serving clients":
			p.clients.SetTarget(strings.TrimSuffix(strings.TrimPrefix(line.URL, "ws://"), "/v1/ws"))
			served = true
		case strings.HasPrefix(text, "panic:") || strings.HasPrefix(text, "fatal error:") || strings.Contains(text, "panicked"):
			p.w.violate("panic", "%s: %s", p.name, text)
		}
		if served {
			p.upOnce.Do(func() { close(p.up) })
		}
		p.w.log.add(p.name, "%s", text)
	}
	return served
}

// kill ends it as kill -9 does, and starts it again when the returned function is called.
func (p *process) kill() (release func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	hold := make(chan struct{})
	if p.hold != nil {
		return func() {} // another fault holds it down
	}
	p.hold, p.unhold, p.killed = hold, sync.OnceFunc(func() { close(hold) }), true
	unhold := p.unhold
	if p.cmd != nil {
		p.cmd.Process.Kill()
	}
	return func() {
		p.mu.Lock()
		p.hold = nil
		p.mu.Unlock()
		unhold()
	}
}

// signal reaches the process if it runs.
func (p *process) signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return errNotRunning
	}
	return p.cmd.Process.Signal(sig)
}

// get asks the ops listener.
func (p *process) get(path string) (string, error) {
	p.mu.Lock()
	ops := p.ops
	p.mu.Unlock()
	if ops == "" {
		return "", errNotRunning
	}
	client := http.Client{Timeout: 2 * time.Second}
	req, err := http.NewRequest("GET", ops+path, nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+opsToken)
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// close ends it for good.
func (p *process) close() {
	p.mu.Lock()
	p.closing = true
	if p.unhold != nil {
		p.unhold()
	}
	if p.cmd != nil {
		p.cmd.Process.Kill()
	}
	p.mu.Unlock()
	<-p.done
	for _, proxy := range []*testkit.Proxy{p.postgres, p.redis, p.clients} {
		if proxy != nil {
			proxy.Close()
		}
	}
}
