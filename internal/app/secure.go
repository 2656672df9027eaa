package app

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
)

// redisTLSFlags say how a rediss:// URL is spoken to. Postgres has all of this in its own URL.
type redisTLSFlags struct {
	RedisTLSCA   string `name:"redis-tls-ca" env:"COMMITCAST_REDIS_TLS_CA" placeholder:"FILE" help:"The authority that Redis' certificate is from, in PEM, for rediss:// (those of the system)."`
	RedisTLSCert string `name:"redis-tls-cert" env:"COMMITCAST_REDIS_TLS_CERT" placeholder:"FILE" help:"A certificate in PEM to show to Redis. It is read again when it has changed."`
	RedisTLSKey  string `name:"redis-tls-key" env:"COMMITCAST_REDIS_TLS_KEY" placeholder:"FILE" help:"The key of --redis-tls-cert."`
}

// redisTLS is how Redis at a URL is spoken to; nil where the URL says all.
func (f *redisTLSFlags) redisTLS(url string, log *slog.Logger) (*tls.Config, error) {
	switch {
	case *f == redisTLSFlags{}:
		return nil, nil
	case !strings.HasPrefix(url, "rediss://") && !strings.HasPrefix(url, "rediss+"): // rediss+cluster, rediss+sentinel
		return nil, usageError{errors.New("--redis-tls-ca, --redis-tls-cert: without rediss:// in --redis-url nothing would be encrypted")}
	case (f.RedisTLSCert == "") != (f.RedisTLSKey == ""):
		return nil, usageError{errors.New("--redis-tls-cert and --redis-tls-key go together")}
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.RedisTLSCA != "" {
		pool, err := readAuthority(f.RedisTLSCA)
		if err != nil {
			return nil, usageError{fmt.Errorf("--redis-tls-ca=%s: %w", f.RedisTLSCA, err)}
		}
		config.RootCAs = pool
	}
	if f.RedisTLSCert != "" {
		c, err := openCertificate(f.RedisTLSCert, f.RedisTLSKey, log)
		if err != nil {
			return nil, usageError{fmt.Errorf("--redis-tls-cert, --redis-tls-key: %w", err)}
		}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.get(nil) }
	}
	return config, nil
}

// readAuthority reads certificates of authorities.
func readAuthority(name string) (*x509.CertPool, error) {
	text, err := readSmall(name)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, errors.New("holds no certificate in PEM")
	}
	return pool, nil
}

// opsDoor says who may see metrics, and why something is not ready: who brings the token, or has shown a certificate of an
// authority; everybody, if it asks for neither.
type opsDoor struct {
	token string
	tls   *tls.Config // nil: plain
}

// open reports whether everybody may who gets here.
func (d *opsDoor) open() bool { return d.token == "" && (d.tls == nil || d.tls.ClientCAs == nil) }

// lets reports whether a request may see everything.
func (d *opsDoor) lets(r *http.Request) bool {
	if d.open() || r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		return true
	}
	scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	want, got := sha256.Sum256([]byte(d.token)), sha256.Sum256([]byte(given))
	return d.token != "" && strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare(want[:], got[:]) == 1
}

// opsDoor is how operators get in.
func (f *processFlags) opsDoor(log *slog.Logger) (*opsDoor, error) {
	return newOpsDoor("--ops-", f.OpsListen, f.OpsToken, f.OpsTLSCert, f.OpsTLSKey, f.OpsClientCA, log)
}

// newOpsDoor opens the door of an address. The flags, but for --ops-token-file, begin with a prefix.
func newOpsDoor(prefix, listen, token, cert, key, clientCA string, log *slog.Logger) (*opsDoor, error) {
	d := new(opsDoor)
	switch {
	case (cert == "") != (key == ""):
		return nil, usageError{fmt.Errorf("%stls-cert and %stls-key go together", prefix, prefix)}
	case clientCA != "" && cert == "":
		return nil, usageError{fmt.Errorf("%sclient-ca needs %stls-cert: without TLS nobody shows a certificate", prefix, prefix)}
	case token == "" && clientCA == "" && listen != "" && !loopback(listen):
		return nil, usageError{fmt.Errorf("%slisten=%s would show everybody how this is doing; give --ops-token-file or %sclient-ca", prefix, listen, prefix)}
	}
	if cert != "" {
		c, err := openCertificate(cert, key, log)
		if err != nil {
			return nil, usageError{fmt.Errorf("%stls-cert, %stls-key: %w", prefix, prefix, err)}
		}
		d.tls = c.config()
	}
	if clientCA != "" {
		pool, err := readAuthority(clientCA)
		if err != nil {
			return nil, usageError{fmt.Errorf("%sclient-ca=%s: %w", prefix, clientCA, err)}
		}
		// Not required: whoever asks for nothing but health need not have one.
		d.tls.ClientCAs, d.tls.ClientAuth = pool, tls.VerifyClientCertIfGiven
	}
	if token == "" {
		return d, nil
	}
	text, err := readSmall(token)
	if err != nil {
		return nil, usageError{fmt.Errorf("--ops-token-file=%s: %w", token, err)}
	}
	if d.token = strings.TrimSpace(string(text)); len(d.token) < minOpsToken {
		return nil, usageError{fmt.Errorf("--ops-token-file=%s: shorter than %d bytes", token, minOpsToken)}
	}
	return d, nil
}

// minOpsToken is the shortest token of operators, in bytes: 96 bits in base64.
const minOpsToken = 16
