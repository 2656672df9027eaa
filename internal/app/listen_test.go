package app

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/commitcast/commitcast/internal/testkit"
)

var quiet = slog.New(slog.DiscardHandler)

// writeCertificate writes a certificate for a name, and its key.
func writeCertificate(t *testing.T, cert, key, name string, at time.Time) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(at.UnixNano()), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, at, at); err != nil {
			t.Fatal(err)
		}
	}
}

// A certificate that has changed is served without a restart; one that is half written is not.
func TestCertificateReload(t *testing.T) {
	t.Parallel()
	cert, key := filepath.Join(t.TempDir(), "cert"), filepath.Join(t.TempDir(), "key")
	began := time.Now().Add(-time.Hour)
	writeCertificate(t, cert, key, "first", began)
	c, err := openCertificate(cert, key, quiet)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := newServer(http.NotFoundHandler(), quiet)
	server.TLSConfig = c.config()
	go server.ServeTLS(l, "", "") // ends with Close
	defer server.Close()
	served := func() string {
		t.Helper()
		conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	look := func() { // as if the time for the next look had come
		c.mu.Lock()
		c.looked = time.Time{}
		c.mu.Unlock()
	}
	if name := served(); name != "first" {
		t.Errorf("serves %q", name)
	}
	if err := os.WriteFile(cert, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	look()
	if name := served(); name != "first" {
		t.Errorf("serves %q from a broken file", name)
	}
	writeCertificate(t, cert, key, "second", began.Add(time.Minute))
	look()
	if name := served(); name != "second" {
		t.Errorf("serves %q after a change", name)
	}
	if conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11}); err == nil {
		conn.Close()
		t.Error("TLS 1.1 is spoken")
	}
	if _, err := openCertificate(cert, "/nowhere", quiet); err == nil {
		t.Error("no key")
	}
}

// Who sends a header, or a body, a byte at a time is cut off, and keeps nobody else from being served.
func TestSlowloris(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }))
	server.Config = newServer(server.Config.Handler, quiet)
	server.Start()
	defer server.Close()
	ended := make(chan time.Duration, 2)
	for _, begin := range []string{"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", "GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"} {
		c, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		began := time.Now()
		c.SetDeadline(began.Add(30 * time.Second))
		fmt.Fprint(c, begin)
		go func() { // ends with the connection
			for range time.Tick(100 * time.Millisecond) {
				if _, err := c.Write([]byte("x")); err != nil {
					return
				}
			}
		}()
		go func() { // ends with the connection
			io.Copy(io.Discard, c)
			ended <- time.Since(began)
		}()
	}
	for range 2 {
		if resp, err := http.Get(server.URL); err != nil {
			t.Error(err)
		} else {
			resp.Body.Close()
		}
		if d := <-ended; d > 25*time.Second {
			t.Errorf("cut off after %v", d)
		}
	}
	c, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: localhost\r\nX: %s\r\n\r\n", strings.Repeat("x", 64<<10))
	if line, err := bufio.NewReader(c).ReadString('\n'); err == nil && !strings.Contains(line, " 431 ") {
		t.Errorf("a header of 64 KiB: %q", line)
	}
}

// Connections beyond the bound are closed at once; a place that is given up is free.
func TestBoundedListener(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var refused atomic.Int64
	server := newServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}), quiet)
	go server.Serve(bound(l, 2, func() { refused.Add(1) })) // ends with Close
	defer server.Close()
	dial := func() (net.Conn, error) {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
		_, err = bufio.NewReader(c).ReadString('\n')
		return c, err
	}
	first, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dial(); err != nil {
		t.Fatal(err)
	}
	if _, err := dial(); err == nil || refused.Load() != 1 {
		t.Errorf("one too many: %v, %d refused", err, refused.Load())
	}
	first.Close()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := dial(); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("the place is not free: %v", err)
		}
	}
}

// A broadcaster can write to a place without waiting, if there is a socket right below it.
func TestPlaceShowsItsSocket(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if raw, err := (&place{Conn: c}).SyscallConn(); err != nil || raw == nil {
		t.Errorf("no socket below TCP: %v", err)
	}
	if raw, err := (&place{Conn: tls.Client(c, &tls.Config{})}).SyscallConn(); err == nil || raw != nil {
		t.Error("a socket below TLS")
	}
}

// Operators' pages are not for pages of browsers, nor, with a token, for who does not have it.
func TestOperatorsDoor(t *testing.T) {
	t.Parallel()
	checks := map[string]func() error{"worker": func() error { return errors.New("secret address") }}
	ask := func(token, path, host, authorization string) (int, string, http.Header) {
		r := httptest.NewRequest("GET", path, nil)
		r.Host = host
		r.Header.Set("Origin", "http://"+host)
		if authorization != "" {
			r.Header.Set("Authorization", authorization)
		}
		w := httptest.NewRecorder()
		opsHandler(checks, prometheus.NewRegistry(), &opsDoor{token: token}, newNodeFace()).ServeHTTP(w, r)
		return w.Code, w.Body.String(), w.Header()
	}
	const token = "0123456789abcdef"
	for _, c := range []struct {
		token, path, host, authorization string
		status                           int
	}{
		{"", "/metrics", "127.0.0.1:8081", "", 200},
		{"", "/metrics", "[::1]:8081", "", 200},
		{"", "/metrics", "localhost", "", 200},
		{"", "/metrics", "evil.test:8081", "", 421},
		{"", "/healthz", "evil.test", "", 421},
		{token, "/metrics", "node7", "", 401},
		{token, "/metrics", "node7", "Bearer x", 401},
		{token, "/metrics", "node7", "Basic " + token, 401},
		{token, "/metrics", "node7", "Bearer ", 401},
		{token, "/metrics", "node7", "Bearer " + token, 200},
		{token, "/healthz", "node7", "", 200},
		{token, "/readyz", "node7", "", 503},
	} {
		status, _, header := ask(c.token, c.path, c.host, c.authorization)
		if status != c.status || header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%+v: %d %v", c, status, header)
		}
	}
	if _, body, _ := ask(token, "/readyz", "node7", ""); strings.Contains(body, "secret") {
		t.Errorf("tells %s", body)
	}
	if _, body, _ := ask(token, "/readyz", "node7", "Bearer "+token); !strings.Contains(body, "secret") {
		t.Errorf("does not tell: %s", body)
	}
	for listen, ok := range map[string]bool{"127.0.0.1:1": true, "": true, "0.0.0.0:1": false, ":1": false, "10.0.0.1:1": false} {
		if _, err := (&processFlags{OpsListen: listen}).opsDoor(quiet); (err == nil) != ok {
			t.Errorf("--ops-listen=%s: %v", listen, err)
		}
	}
}

// Operators may show a certificate instead of the token: one of the authority, over TLS. Health needs neither; a certificate of
// somebody else's authority ends the handshake.
func TestOperatorsShowCertificates(t *testing.T) {
	t.Parallel()
	ours, others := testkit.NewAuthority(t), testkit.NewAuthority(t)
	cert, key := ours.Files("127.0.0.1")
	flags := processFlags{OpsListen: "0.0.0.0:0", OpsTLSCert: cert, OpsTLSKey: key, OpsClientCA: testkit.File(t, "ca.pem", ours.PEM)}
	const token = "0123456789abcdef"
	for _, file := range []string{"", testkit.File(t, "token", []byte(token+"\n"))} {
		flags.OpsToken = file
		door, err := flags.opsDoor(quiet)
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		checks := map[string]func() error{"worker": func() error { return errors.New("secret address") }}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() {
			ended <- serve("ops", l, door.tls, opsHandler(checks, prometheus.NewRegistry(), door, newNodeFace()), quiet).run(ctx)
		}() // waited for below
		ask := func(client *tls.Config, path, token string) (int, string) {
			r, _ := http.NewRequest("GET", "https://"+l.Addr().String()+path, nil)
			r.Header.Set("Origin", "https://evil.test")
			if token != "" {
				r.Header.Set("Authorization", "Bearer "+token)
			}
			transport := &http.Transport{TLSClientConfig: client}
			defer transport.CloseIdleConnections()
			resp, err := (&http.Client{Transport: transport}).Do(r)
			if err != nil {
				return 0, err.Error()
			}
			defer resp.Body.Close()
			if resp.Header.Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("%s lets pages of browsers in", path)
			}
			body, _ := io.ReadAll(resp.Body)
			return resp.StatusCode, string(body)
		}
		withToken := 401
		if file != "" {
			withToken = 200
		}
		foreign := ours.Client()
		foreign.Certificates = others.Client("operator").Certificates
		for _, c := range []struct {
			client      *tls.Config
			path, token string
			status      int
		}{
			{ours.Client("operator"), "/metrics", "", 200},
			{ours.Client("operator"), "/readyz", "", 503},
			{ours.Client(), "/metrics", "", 401},
			{ours.Client(), "/metrics", token, withToken},
			{ours.Client(), "/metrics", "x", 401},
			{ours.Client(), "/healthz", "", 200},
			{ours.Client(), "/readyz", "", 503},
			{foreign, "/metrics", "", 0},
			{foreign, "/healthz", token, 0},
			{others.Client(), "/healthz", "", 0},
		} {
			status, body := ask(c.client, c.path, c.token)
			if status != c.status {
				t.Errorf("token %q: %s with %q and %d certificates: %d %s, want %d", file, c.path, c.token, len(c.client.Certificates), status, body, c.status)
			}
			if told := strings.Contains(body, "secret"); c.path == "/readyz" && told != (len(c.client.Certificates) > 0) {
				t.Errorf("/readyz with %d certificates: %s", len(c.client.Certificates), body)
			}
		}
		if resp, err := http.Get("http://" + l.Addr().String() + "/metrics"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == 200 {
				t.Error("answers without TLS")
			}
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	for name, f := range map[string]processFlags{
		"no TLS":         {OpsListen: "127.0.0.1:0", OpsClientCA: flags.OpsClientCA},
		"half":           {OpsListen: "127.0.0.1:0", OpsTLSCert: cert},
		"no authority":   {OpsListen: "127.0.0.1:0", OpsTLSCert: cert, OpsTLSKey: key, OpsClientCA: key},
		"TLS for nobody": {OpsListen: "0.0.0.0:0", OpsTLSCert: cert, OpsTLSKey: key},
	} {
		if _, err := f.opsDoor(quiet); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
