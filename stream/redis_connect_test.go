package stream

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/commitcast/commitcast/internal/services"
	"github.com/commitcast/commitcast/internal/testkit"
)

// fakeRedis is a server that answers each command as told: for what a real one of this version does not do.
func fakeRedis(t *testing.T, answer func(args []string) string) (url string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	serving.Go(func() { // owned by the test: the cleanup waits for it
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			serving.Go(func() {
				br := bufio.NewReader(conn)
				for {
					_, n, err := readHead(br)
					if err != nil {
						return
					}
					args := make([]string, n)
					for i := range args {
						b, err := readBulk(br)
						if err != nil {
							return
						}
						args[i] = string(b)
					}
					io.WriteString(conn, answer(args))
				}
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		serving.Wait()
	})
	return "redis://:s3cret@" + listener.Addr().String()
}

func infoReply(version string) string {
	info := "# Server\r\nredis_version:" + version + "\r\nredis_mode:standalone\r\n"
	return fmt.Sprintf("$%d\r\n%s\r\n", len(info), info)
}

func TestRedisVersions(t *testing.T) {
	for version, ok := range map[string]bool{
		"2.8.0": false, "6.2.14": false, "7.0.0": true, "7.4.2": true, "8.0.1": true, "10.0.0": true, "": false, "x.y": false,
	} {
		server := fakeRedis(t, func(args []string) string {
			switch strings.ToUpper(args[0]) {
			case "INFO":
				return infoReply(version)
			case "HELLO":
				return "-ERR unknown command\r\n"
			}
			return "+OK\r\n"
		})
		s, err := NewRedis(t.Context(), server, RedisConfig{Logger: quiet})
		if s != nil {
			s.Close()
		}
		if ok != (err == nil) || !ok && !errors.Is(err, ErrRedisTooOld) {
			t.Errorf("version %q: %v", version, err)
		}
		if err != nil && (strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "7.0") || strings.Contains(err.Error(), "s3cret")) {
			t.Errorf("version %q: %v", version, err)
		}
	}
}

// TestValkeyModes: Valkey says in other words what it is.
func TestValkeyModes(t *testing.T) {
	for mode, want := range map[string]string{"standalone": "", "cluster": "use redis+cluster://", "sentinel": "use redis+sentinel://"} {
		info := "# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.0.1\r\nserver_mode:" + mode + "\r\n"
		server := fakeRedis(t, func(args []string) string {
			switch strings.ToUpper(args[0]) {
			case "INFO":
				return fmt.Sprintf("$%d\r\n%s\r\n", len(info), info)
			case "HELLO":
				return "-ERR unknown command\r\n"
			}
			return "+OK\r\n"
		})
		s, err := NewRedis(t.Context(), server, RedisConfig{Logger: quiet})
		if s != nil {
			s.Close()
		}
		if want == "" && err != nil || want != "" && (!errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", mode, err, want)
		}
	}
}

// TestRedisURLs: a URL that cannot be used is refused, and no part of a password is shown.
func TestRedisURLs(t *testing.T) {
	for _, u := range []string{
		"", "s3cret", "localhost:6379", "redis:s3cret@h", "http://u:s3cret@h", "s3cret://h", "rediss//:s3cret@h",
		"redis://u:s3/cret@h", "redis://u:s3#cret@h:6379", "redis://u:s3?cret@h:6379/0", "redis://u:s3cret@h:port",
		"redis://u:s3cret@h/s3cret", "redis://u:s3cret@h/1/2", "redis://u:s3%zzcret@h", "redis://u:s3cret@h?s3cret=1",
		"redis-cluster://u:s3cret@h1,h2", "redis+sentinel://u:s3cret@h", "redis+sentinel://u:s3cret@h,/s3cret", "redis+cluster://u:s3cret@",
		"redis+cluster://u:s3cret@h1,,h2", "redis+cluster://u:s3cret@h1:1,h2:s3cret", "redis+cluster://u:s3cret@h1/1", "redis+cluster://u:s3/cret@h1,h2",
		"redis+cluster://u:s3cret@h1,h2?s3cret=1", "redis+cluster://u:s3cret@h1,u:s3cret@h2", "redis+sentinel://u:s3cret@h1/m/s3cret", "unix+cluster://u:s3cret@h", "unix://u:s3cret@", "redis://u:s3cret\x7f@h",
		"redis://h?dial_timeout=s3cret",
	} {
		s, err := NewRedis(t.Context(), u, RedisConfig{Logger: quiet})
		if err == nil {
			s.Close()
			t.Errorf("%q was accepted", u)
		} else if strings.Contains(err.Error(), "s3") || strings.Contains(err.Error(), "cret") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
}

// TestRedisSecrets: neither errors nor logs show a password, right or wrong, reachable or not.
func TestRedisSecrets(t *testing.T) {
	t.Parallel()
	server := testkit.Redis(t)
	var out lockedBuffer
	cfg := RedisConfig{Logger: slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})), Timeout: time.Second}
	u, err := url.Parse(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	wrong := *u
	wrong.User = url.UserPassword("default", "s3cret-wrong")
	if _, err := NewRedis(t.Context(), wrong.String(), cfg); !errors.Is(err, ErrRefused) || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("wrong password: %v", err)
	}
	none := *u
	none.User = nil
	if _, err := NewRedis(t.Context(), none.String(), cfg); !errors.Is(err, ErrRefused) {
		t.Errorf("no password: %v", err)
	}

	server.Stop()
	s := newRedisStream(t, server.URL(), cfg) // down is no reason to refuse
	h := newRecorder()
	sub, _ := subscribe(t, s, h)
	ch := channel(newEpoch(), "t")
	sub.Add(ch)
	errs := []error{h.waitDown(t, 1), s.Ping(t.Context())}
	if !strings.Contains(out.String(), "cannot be used yet") {
		t.Errorf("the log does not say that redis is down: %s", out.String())
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.waitConfirmed(t, ch)
	for _, err := range errs {
		if err == nil || strings.Contains(err.Error(), server.Password()) {
			t.Errorf("error %v", err)
		}
	}
	if text := out.String(); strings.Contains(text, server.Password()) || strings.Contains(text, "s3cret") {
		t.Errorf("the log shows a password: %s", text)
	}
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// TestRedisTLS: commands and subscriptions over TLS, with a certificate of the client's own. A server of another authority or with
// another name is refused, and so is a client without a certificate.
func TestRedisTLS(t *testing.T) {
	t.Parallel()
	ours, others := testkit.NewAuthority(t), testkit.NewAuthority(t)
	cert, key := ours.Issue("127.0.0.1")
	server, err := services.StartRedis(t.Context(), services.RedisConfig{TLS: &services.TLS{Certificate: cert, Key: key, ClientCA: ours.PEM}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	_, port, err := net.SplitHostPort(server.TLSAddr())
	if err != nil {
		t.Fatal(err)
	}
	at := func(host string) string { return "rediss://:" + server.Password() + "@" + net.JoinHostPort(host, port) }

	s := newRedisStream(t, at("127.0.0.1"), RedisConfig{TLS: ours.Client("worker")})
	h := newRecorder()
	sub, _ := subscribe(t, s, h)
	ch := channel(newEpoch(), "t")
	sub.Add(ch)
	h.waitConfirmed(t, ch)
	offer(t, s, Offer{Run: run(ch, 1, 3)}, Appended, 4)
	h.waitLast(t, ch, 3)

	for name, c := range map[string]struct {
		url  string
		tls  *tls.Config
		want string
	}{
		"another authority": {at("127.0.0.1"), others.Client("worker"), "unknown authority"},
		"the system's":      {at("127.0.0.1"), nil, "unknown authority"},
		"another name":      {at("localhost"), ours.Client("worker"), "localhost"},
		// Redis closes at once, and its alert is lost, or it waits for more of what it takes for a command.
		"no certificate":     {at("127.0.0.1"), ours.Client(), ""},
		"another's":          {at("127.0.0.1"), &tls.Config{RootCAs: ours.Client().RootCAs, Certificates: others.Client("worker").Certificates}, ""},
		"plain, to TLS":      {strings.Replace(at("127.0.0.1"), "rediss", "redis", 1), nil, ""},
		"TLS, to plain text": {"rediss://:" + server.Password() + "@" + server.Addr(), ours.Client("worker"), ""},
	} {
		var out lockedBuffer
		s, err := NewRedis(t.Context(), c.url, RedisConfig{TLS: c.tls, Timeout: 5 * time.Second, Logger: slog.New(slog.NewTextHandler(&out, nil))})
		if err == nil { // it may get better: that is said, and asked again
			if err = s.Ping(t.Context()); !strings.Contains(out.String(), "cannot be used yet") {
				t.Errorf("%s: the log says %q", name, out.String())
			}
			if _, cerr := s.connectFor(t.Context(), tickKey(0)); cerr == nil {
				t.Errorf("%s: a subscription connects", name)
			}
			s.Close()
		} else if !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error()+out.String(), server.Password()) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
	}

	// Subscriptions look as closely as commands do.
	s.options.TLSConfig = others.Client("worker")
	s.options.TLSConfig.ServerName = "127.0.0.1"
	if _, err := s.connectFor(t.Context(), tickKey(0)); !errors.As(err, new(*tls.CertificateVerificationError)) {
		t.Errorf("subscription through an unknown certificate: %v", err)
	}
}
