package e2e

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/internal/services"
	"github.com/commitcast/commitcast/internal/testkit"
)

// Encrypted on every way: processes verify Postgres and Redis, show Redis a certificate, and serve clients with one that is
// replaced while they run. Servers of another authority or another name are refused, in words that say so.
func TestTLSEverywhere(t *testing.T) {
	ours, others := testkit.NewAuthority(t), testkit.NewAuthority(t)
	cert, key := ours.Issue("127.0.0.1")
	pg, err := services.StartPostgres(t.Context(), services.PostgresConfig{TLS: &services.TLS{Certificate: cert, Key: key}})
	if err != nil {
		t.Fatal(err)
	}
	defer pg.Close()
	cache, err := services.StartRedis(t.Context(), services.RedisConfig{TLS: &services.TLS{Certificate: cert, Key: key, ClientCA: ours.PEM}})
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	ca, wrongCA := testkit.File(t, "ca.pem", ours.PEM), testkit.File(t, "ca.pem", others.PEM)
	database := func(host, ca string) string {
		u, err := url.Parse(pg.URL("postgres"))
		if err != nil {
			t.Fatal(err)
		}
		u.Host = net.JoinHostPort(host, u.Port())
		u.RawQuery = url.Values{"sslmode": {"verify-full"}, "sslrootcert": {ca}}.Encode()
		return u.String()
	}
	redisAt := func(host string) string {
		_, port, err := net.SplitHostPort(cache.TLSAddr())
		if err != nil {
			t.Fatal(err)
		}
		return "rediss://:" + cache.Password() + "@" + net.JoinHostPort(host, port)
	}
	clientCert, clientKey := ours.Files("worker")
	right := database("127.0.0.1", ca)
	u, _ := url.Parse(right)
	password, _ := u.User.Password()
	shows := []string{"--redis-tls-cert=" + clientCert, "--redis-tls-key=" + clientKey}
	trusting := append(shows[:2:2], "--redis-tls-ca="+ca)
	if _, stderr, code := command(t, []string{"DATABASE_URL=" + right}, "migrate", "up"); code != 0 {
		t.Fatal(stderr)
	}
	worker := []string{"worker", "--ops-listen="}
	for name, c := range map[string]struct {
		database, redis string
		args            []string
		want            string
		code            int
	}{
		"Postgres of another authority": {database("127.0.0.1", wrongCA), redisAt("127.0.0.1"), trusting, "unknown authority", 1},
		"Postgres of another name":      {database("localhost", ca), redisAt("127.0.0.1"), trusting, "localhost", 1},
		"Redis of another authority":    {right, redisAt("127.0.0.1"), append(shows[:2:2], "--redis-tls-ca="+wrongCA), "unknown authority", 1},
		"Redis of another name":         {right, redisAt("localhost"), trusting, "localhost", 1},
		"no TLS in the URL":             {right, cache.URL(), trusting, "rediss://", 2},
		"no such authority":             {right, redisAt("127.0.0.1"), append(shows[:2:2], "--redis-tls-ca=/nowhere"), "--redis-tls-ca", 2},
		"an authority that is a key":    {right, redisAt("127.0.0.1"), append(shows[:2:2], "--redis-tls-ca="+clientKey), "no certificate", 2},
		"half of a certificate":         {right, redisAt("127.0.0.1"), shows[:1], "go together", 2},
	} {
		_, stderr, code := command(t, []string{"DATABASE_URL=" + c.database, "REDIS_URL=" + c.redis}, append(worker[:2:2], c.args...)...)
		if code != c.code || !strings.Contains(stderr, c.want) {
			t.Errorf("%s: exit code %d, %q; want %d, %q", name, code, stderr, c.code, c.want)
		}
		if strings.Contains(stderr, cache.Password()) || strings.Contains(stderr, password) {
			t.Errorf("%s: a password is shown: %s", name, stderr)
		}
	}

	served, servedKey := ours.Files("127.0.0.1")
	start(t, right, redisAt("127.0.0.1"), append([]string{"worker"}, trusting...)...)
	b := start(t, right, redisAt("127.0.0.1"), append([]string{"broadcaster", "--tls-cert=" + served, "--tls-key=" + servedKey}, trusting...)...)
	sessions := func(of string) (n int) {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), right)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context())
		if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename LIKE 'commitcast\_test\_%' AND `+of).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if encrypted, plain := sessions("ssl"), sessions("NOT ssl"); encrypted < 3 || plain > 0 {
		t.Errorf("%d encrypted and %d plain sessions of worker and broadcaster", encrypted, plain)
	}
	https := "https" + strings.TrimPrefix(b.URL, "wss")
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: ours.Client()}}
	resp, err := client.Get(https + "/v1/topics/t/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	heard := func(what string) {
		t.Helper()
		for lines.Scan() {
			if strings.Contains(lines.Text(), what) {
				return
			}
		}
		t.Fatalf("%q is not heard: %v", what, lines.Err())
	}
	heard("subscribed")
	exec1(t, right, `SELECT commitcast.append('t', 'test', '"over TLS"')`)
	heard("over TLS")
	if _, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: others.Client()}}).Get(https); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("a client of another authority: %v", err)
	}

	// Replaced under way: new connections see the new one, and the old connection goes on.
	serial := func() string {
		conn, err := tls.Dial("tcp", strings.TrimPrefix(b.URL, "wss://"), ours.Client())
		if err != nil {
			return err.Error()
		}
		defer conn.Close()
		return fmt.Sprint(conn.ConnectionState().PeerCertificates[0].SerialNumber)
	}
	first := serial()
	newCert, newKey := ours.Issue("127.0.0.1")
	for name, content := range map[string][]byte{served: newCert, servedKey: newKey} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Eventually(t, soon, func() bool { return serial() != first }, "the new certificate")
	exec1(t, right, `SELECT commitcast.append('t', 'test', '"goes on"')`)
	heard("goes on")
}
