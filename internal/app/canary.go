package app

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/internal/canary"
	"github.com/commitcast/commitcast/ops"
)

// canaryKey has a broadcaster let this node's own canary in; nil where nobody needs a token.
func (f *clientFlags) canaryKey(c *broadcaster.Config) (*canary.Key, error) {
	if !f.Canary || c.Verifier == nil {
		return nil, nil
	}
	key, err := canary.NewKey(ops.CanaryTopic)
	if err != nil {
		return nil, err
	}
	c.Verifier, c.Authorizer = key.Verifier(c.Verifier), key.Authorizer(c.Authorizer)
	return key, nil
}

// canary is that of a broadcaster behind a listener.
func (f *clientFlags) canary(pool *pgxpool.Pool, b *broadcaster.Broadcaster, at net.Addr, t *tls.Config, key *canary.Key, log *slog.Logger,
	metrics prometheus.Registerer) (*canary.Canary, error) {
	scheme := "ws://"
	var secure *tls.Config
	if t != nil {
		scheme, secure = "wss://", ownTLS(t)
	}
	return canary.New(pool, canary.Config{Topic: ops.CanaryTopic, URL: scheme + reachable(at) + "/v1/ws", TLS: secure, Key: key, Limit: f.CanaryReady,
		Held: b.Held, Logger: log, Registerer: metrics})
}

// reachable is where this process reaches a listener of its own.
func reachable(at net.Addr) string {
	tcp, ok := at.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return at.String()
	}
	ip := net.IPv6loopback
	if tcp.IP.To4() != nil || dualStack(tcp.Port) {
		ip = net.IPv4(127, 0, 0, 1)
	}
	return (&net.TCPAddr{IP: ip, Port: tcp.Port}).String()
}

// dualStack reports whether what listens on [::] takes IPv4, too.
func dualStack(port int) bool {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		return true
	}
	l.Close()
	return false
}

// ownTLS is how this process speaks to a listener of its own: whatever name its certificate has, it is the one that is
// served, and has not expired, which is what clients would find.
func ownTLS(served *tls.Config) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true, // in favour of what follows
		VerifyConnection: func(s tls.ConnectionState) error {
			own, err := served.GetCertificate(nil)
			if err != nil {
				return err
			}
			leaf := s.PeerCertificates[0]
			switch {
			case len(own.Certificate) == 0 || !bytes.Equal(leaf.Raw, own.Certificate[0]):
				return errors.New("somebody else answers at the address of --listen")
			case time.Now().After(leaf.NotAfter):
				return fmt.Errorf("the certificate of --tls-cert has expired at %s", leaf.NotAfter.UTC().Format(time.RFC3339))
			}
			return nil
		}}
}
