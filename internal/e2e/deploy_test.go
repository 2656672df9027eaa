package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/commitcast/commitcast/internal/services"
	"github.com/commitcast/commitcast/internal/testkit"
)

// deployed reads a file of ops/deploy, with some things replaced, each of which must be there.
func deployed(t *testing.T, path string, replace ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../ops/deploy", path))
	if err != nil {
		t.Fatal(err)
	}
	s := string(text)
	for i := 0; i < len(replace); i += 2 {
		if !strings.Contains(s, replace[i]) {
			t.Fatalf("%s holds no %q any more", path, replace[i])
		}
		s = strings.ReplaceAll(s, replace[i], replace[i+1])
	}
	return s
}

// deployToken is what nodes of these tests show metrics for.
const deployToken = "a-token-of-operators"

// buildCaddy builds the Caddy that ops/deploy/check/caddy names, unless CADDY_BIN does, has it validate the Caddyfile as it is, and says
// where it is.
func buildCaddy(t *testing.T) string {
	t.Helper()
	path := os.Getenv("CADDY_BIN")
	if path == "" {
		dir := t.TempDir()
		if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // root has it run as somebody else
			t.Fatal(err)
		}
		path = filepath.Join(dir, "caddy")
		build := exec.Command("nice", "go", "build", "-o", path, ".") // two minutes of CPU at first; other tests run meanwhile
		build.Dir = "../../ops/deploy/check/caddy"
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("building Caddy: %v\n%s", err, out)
		}
	}
	validate := exec.Command(path, "validate", "--adapter", "caddyfile", "--config", "../../ops/deploy/proxy/Caddyfile")
	validate.Env = append(os.Environ(), "HOME="+t.TempDir()) // where it keeps certificates
	if out, err := validate.CombinedOutput(); err != nil {
		t.Errorf("caddy validate: %v\n%s", err, out)
	}
	return path
}

// The proxies of ops/deploy, really run before two broadcasters with nothing in their configuration changed but addresses: WebSocket and
// SSE, whose address a client has, a drain, and a client that stops reading.
func TestProxies(t *testing.T) {
	t.Parallel()
	database, redis := testkit.Database(t), testkit.RedisURL(t)
	token := testkit.File(t, "ops-token", []byte(deployToken))
	start(t, database, redis, "worker")
	authority := testkit.NewAuthority(t)
	cert, key := authority.Issue("127.0.0.1")
	for _, name := range []string{"nginx", "haproxy", "caddy"} {
		t.Run(name, func(t *testing.T) {
			program := name
			if name == "caddy" {
				program = buildCaddy(t)
			}
			var nodes [2]*node
			health, err := services.FreePort() // Caddy asks all at the same one
			if err != nil {
				t.Fatal(err)
			}
			for i := range nodes {
				flags := []string{"broadcaster", "--trusted-proxy-hops=1", "--ops-token-file=" + token, "--write-timeout=2s", "--heartbeat=1s"}
				if name == "caddy" {
					flags = append(flags, fmt.Sprintf("--listen=127.0.0.%d:0", i+1), fmt.Sprintf("--ops-listen=127.0.0.%d:%d", i+1, health))
				}
				nodes[i] = start(t, database, redis, flags...)
			}
			host := func(url string) string { _, at, _ := strings.Cut(url, "://"); return at }
			port, err := services.FreePort()
			if err != nil {
				t.Fatal(err)
			}
			at := fmt.Sprint("127.0.0.1:", port)
			// The PROXY protocol gives these clients addresses of the world, which loopback has not.
			var files [][2]string
			switch name {
			case "nginx":
				files = [][2]string{{"nginx.conf", deployed(t, "proxy/nginx.conf",
					"10.0.0.11:8080", host(nodes[0].URL), "10.0.0.12:8080", host(nodes[1].URL), "/etc/commitcast", "FOLDER", "/run/nginx.pid", "FOLDER/pid",
					"listen 443 ssl;", "listen "+at+" ssl proxy_protocol; set_real_ip_from 127.0.0.1; real_ip_header proxy_protocol;",
					"worker_rlimit_nofile 120000;", "", "worker_connections 60000;", "worker_connections 500;",
					"access_log off;", "access_log off; client_body_temp_path FOLDER/a; proxy_temp_path FOLDER/b; fastcgi_temp_path FOLDER/c; uwsgi_temp_path FOLDER/d; scgi_temp_path FOLDER/e;")},
					{"tls.crt", string(cert)}, {"tls.key", string(key)}}
			case "caddy":
				files = [][2]string{{"Caddyfile", "{\n admin off\n persist_config off\n auto_https off\n storage file_system FOLDER/storage\n" +
					" servers {\n listener_wrappers {\n proxy_protocol {\n allow 127.0.0.0/8\n }\n tls\n }\n }\n}\n" +
					deployed(t, "proxy/Caddyfile", "10.0.0.11:8080", host(nodes[0].URL), "10.0.0.12:8080", host(nodes[1].URL), "health_port 8081", fmt.Sprint("health_port ", health),
						"live.example.com {", "https://"+at+" {\n tls FOLDER/tls.crt FOLDER/tls.key")},
					{"tls.crt", string(cert)}, {"tls.key", string(key)}}
			default:
				files = [][2]string{{"haproxy.cfg", deployed(t, "proxy/haproxy.cfg",
					"10.0.0.11:8080", host(nodes[0].URL)+" check port "+portOf(nodes[0].Ops), "10.0.0.12:8080", host(nodes[1].URL)+" check port "+portOf(nodes[1].Ops),
					"default-server check port 8081", "default-server", "/etc/commitcast", "FOLDER", "bind :443", "bind "+at+" accept-proxy", "maxconn 50000", "maxconn 500")},
					{"tls.pem", string(cert) + string(key)}}
			}
			proxy, err := services.StartConfigured(t.Context(), nil, program, at, files...)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				proxy.Close()
			})
			p := &proxied{t: t, url: "https://" + at, tls: authority.Client()}

			// A client says that it came for somebody else; who it is is known all the same.
			c := p.dial("203.0.113.9", http.Header{"X-Forwarded-For": {"198.51.100.1"}, "Origin": {"https://" + at}})
			topic := "proxied:" + name
			c.Subscribe(1, topic, "")
			c.Expect("subscribed")
			appendTo := func(data string) {
				exec1(t, database, `SELECT commitcast.append($1, 'test', $2::text::json)`, topic, data)
			}
			appendTo("1")
			c.ExpectEvents(topic, 1, 1)
			var addresses []string
			for _, n := range nodes {
				addresses = append(addresses, clientAddresses(t, n)...)
			}
			if len(addresses) != 1 || addresses[0] != "203.0.113.9/32" {
				t.Errorf("clients of %q, want the one address that the proxy saw", addresses)
			}

			// SSE comes event by event, not when a buffer is full.
			events, end := p.events("203.0.113.10", topic)
			appendTo("2")
			c.ExpectEvents(topic, 2, 2)
			if line, err := nextData(events); err != nil || !strings.Contains(line, `"data":2`) {
				t.Errorf("SSE: %q, %v", line, err)
			}
			end()

			// One node is drained, as before its end: its clients are told to come back, and all who come get to the other one, at once:
			// before the proxy has asked whether it is ready.
			drained, other := nodes[0], nodes[1]
			if slices.Contains(clientAddresses(t, other), "203.0.113.9/32") {
				drained, other = other, drained
			}
			done := make(chan error, 1)
			go func() { done <- orderDrain(drained) }() // it is answered when all are closed; owned by this test, which hears of it
			c.Expect("reconnect")
			c.ExpectClose(1012)
			for i := range 4 {
				again := p.dial(fmt.Sprint("203.0.113.", 20+i), nil)
				again.Subscribe(1, topic, again.Hello.Epoch+":1")
				again.Expect("subscribed")
				again.ExpectEvents(topic, 2, 2)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if at := clientAddresses(t, drained); slices.Contains(at, "203.0.113.20/32") || slices.Contains(at, "203.0.113.23/32") {
				t.Errorf("the node that is drained has %q", at)
			}

			// A client stops reading. It is ended, and costs nobody else anything meanwhile.
			stalled := p.dial("203.0.113.30", nil)
			stalled.Subscribe(1, topic, "")
			lively := p.dial("203.0.113.31", nil)
			lively.Subscribe(1, topic, "")
			lively.Expect("subscribed")
			const batch = 10
			testkit.Eventually(t, time.Minute, func() bool {
				exec1(t, database, `SELECT commitcast.append($1, 'test', to_json(repeat('x', 200000))) FROM generate_series(1, $2::int)`, topic, batch)
				began := time.Now()
				for range batch {
					lively.Expect("event")
				}
				if d := time.Since(began); d > 10*time.Second {
					t.Fatalf("an event took %v while another client did not read", d)
				}
				for _, a := range clientAddresses(t, other) {
					if a == "203.0.113.30/32" {
						return false
					}
				}
				return true
			}, "the client that does not read is ended")
			if t.Failed() {
				t.Log(proxy.Log())
			}
		})
	}
}

func portOf(url string) string { return url[strings.LastIndexByte(url, ':')+1:] }

// proxied dials through a proxy.
type proxied struct {
	t   *testing.T
	url string
	tls *tls.Config
}

// client is an HTTP client that comes from an address.
func (p *proxied) client(from string) *http.Client {
	transport := &http.Transport{TLSClientConfig: p.tls, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err == nil {
			_, err = fmt.Fprintf(conn, "PROXY TCP4 %s 127.0.0.1 4711 443\r\n", from)
		}
		return conn, err
	}}
	p.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func (p *proxied) dial(from string, header http.Header) *testkit.Client {
	p.t.Helper()
	c, response, err := testkit.Open(p.t, p.url, &websocket.DialOptions{HTTPClient: p.client(from), HTTPHeader: header})
	if err != nil {
		p.t.Fatalf("%v, %+v", err, response)
	}
	c.Hello = c.Expect("hello")
	return c
}

// events follows a topic by SSE.
func (p *proxied) events(from, topic string) (*bufio.Scanner, func()) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 30*time.Second)
	p.t.Cleanup(cancel)
	req, _ := http.NewRequestWithContext(ctx, "GET", p.url+"/v1/topics/"+topic+"/events", nil)
	resp, err := p.client(from).Do(req)
	if err != nil || resp.StatusCode != http.StatusOK {
		p.t.Fatalf("SSE: %v, %+v", err, resp)
	}
	s := bufio.NewScanner(resp.Body)
	s.Buffer(nil, 1<<20)
	for s.Scan() && s.Text() != "event: subscribed" {
	}
	return s, func() { cancel(); resp.Body.Close() }
}

func nextData(s *bufio.Scanner) (string, error) {
	for s.Scan() {
		if data, ok := strings.CutPrefix(s.Text(), "data:"); ok && strings.Contains(data, `"op":"event"`) {
			return data, nil
		}
	}
	return "", s.Err()
}

func askOps(method, url, body string) (*http.Response, error) {
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+deployToken)
	req.Header.Set("Content-Type", "application/json")
	return http.DefaultClient.Do(req)
}

func clientAddresses(t *testing.T, n *node) (addresses []string) {
	t.Helper()
	resp, err := askOps("GET", n.Ops+"/v1/clients", "")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var clients []struct{ Address string }
	if err := json.NewDecoder(resp.Body).Decode(&clients); err != nil {
		t.Fatal(err)
	}
	for _, c := range clients {
		addresses = append(addresses, c.Address)
	}
	return addresses
}

func orderDrain(n *node) error {
	resp, err := askOps("POST", n.Ops+"/v1/drain", "")
	if err == nil {
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("drain: %s", resp.Status)
		}
	}
	return err
}

// As the last stage of the container image: the static binary alone in an empty root, as nobody, with nothing to write to.
func TestBinaryNeedsNothing(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root may change its root")
	}
	dir := t.TempDir()
	for d := dir; d != "/" && d != "."; d = filepath.Dir(d) { // nobody has to get there
		if info, err := os.Stat(d); err == nil && info.Mode()&0o005 != 0o005 && strings.HasPrefix(d, os.TempDir()+"/") {
			os.Chmod(d, 0o755)
		}
	}
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-buildid=", "-o", filepath.Join(dir, "commitcast"), "../../cmd/commitcast")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	database := testkit.As(t, testkit.Database(t), "worker", "reader")
	cmd := exec.Command("/commitcast", "all", "--auth=off", "--listen=127.0.0.1:0", "--ops-listen=127.0.0.1:0")
	cmd.Env = []string{"DATABASE_URL=" + database}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: dir, Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, Pdeathsig: syscall.SIGKILL}
	var log bytes.Buffer
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Signal(syscall.SIGTERM); cmd.Wait() }()
	serves := false
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		fmt.Fprintln(&log, lines.Text())
		if strings.Contains(lines.Text(), "serving operators") {
			serves = true
			break
		}
	}
	if !serves {
		t.Fatalf("it does not run in an empty root as nobody:\n%s", &log)
	}
}

// The hardened units are read by systemd, where it is.
func TestSystemdUnits(t *testing.T) {
	t.Parallel()
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("there is no systemd-analyze here")
	}
	for _, name := range []string{"commitcast-worker.service", "commitcast-broadcaster.service"} {
		unit := filepath.Join(t.TempDir(), name)
		text := deployed(t, "systemd/"+name, "/usr/local/bin/commitcast", testkit.Binary(t)) // it must be there
		if err := os.WriteFile(unit, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(analyze, "verify", "--man=no", unit).CombinedOutput(); err != nil || strings.Contains(string(out), name) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		out, err := exec.Command(analyze, "security", "--offline=true", "--threshold=20", unit).CombinedOutput()
		if err != nil {
			t.Errorf("%s: exposed by more than 2.0 of 10: %v\n%s", name, err, out)
		}
	}
}
