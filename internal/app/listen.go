package app

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	// spareConnections is how many TCP connections there may be beyond the clients: those that are in their handshake, are
	// turned away with an answer, or dally.
	spareConnections = 1024
	// tlsReload is how often the files of the certificate are looked at, while there are handshakes.
	tlsReload = 2 * time.Second
	// requestTimeout is how long a request may take to arrive; headerTimeout, its header.
	requestTimeout, headerTimeout = 10 * time.Second, 5 * time.Second
	// idleTimeout is how long a connection may be without a request. Clients have no use for such ones: each answer but one
	// before a request to come closes its connection, and what HTTP/2 is left with costs a place among the clients'.
	idleTimeout = 10 * time.Second
	// maxHeader bounds a header, in bytes: twice the longest token.
	maxHeader = 16 << 10
)

// bounded is a listener that has only so many connections at once. Further ones are closed as soon as they come: what was
// accepted and left waiting would cost as much, and tell nobody.
type bounded struct {
	net.Listener
	places chan struct{}
	refuse func()
}

func bound(l net.Listener, most int, refuse func()) net.Listener {
	return &bounded{l, make(chan struct{}, most), refuse}
}

func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case b.places <- struct{}{}:
			return &place{Conn: c, free: sync.OnceFunc(func() { <-b.places })}, nil
		default:
			b.refuse()
			c.Close()
		}
	}
}

// place is a connection that gives its place back. It shows the TCP connection below it, whose options are set.
type place struct {
	net.Conn
	free func()
}

func (p *place) Close() error {
	defer p.free()
	return p.Conn.Close()
}

// NetConn is the connection itself.
func (p *place) NetConn() net.Conn { return p.Conn }

// SyscallConn implements syscall.Conn: a broadcaster writes to it without waiting.
func (p *place) SyscallConn() (syscall.RawConn, error) {
	c, ok := p.Conn.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return c.SyscallConn()
}

// certificate is a TLS certificate whose files may change under way.
type certificate struct {
	cert, key string
	log       *slog.Logger

	mu      sync.Mutex
	current *tls.Certificate
	stamp   [2]time.Time // of the files that current is from
	looked  time.Time
}

// openCertificate reads a certificate and its key.
func openCertificate(cert, key string, log *slog.Logger) (*certificate, error) {
	c := &certificate{cert: cert, key: key, log: log}
	stamp, err := c.stamps()
	if err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	c.current, c.stamp, c.looked = &pair, stamp, time.Now()
	return c, nil
}

func (c *certificate) stamps() (at [2]time.Time, err error) {
	for i, name := range []string{c.cert, c.key} {
		info, err := os.Stat(name)
		if err != nil {
			return at, err
		}
		at[i] = info.ModTime()
	}
	return at, nil
}

// get is the newest certificate that can be read: one that is half written, or does not fit its key, leaves the last one.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.looked) < tlsReload {
		return c.current, nil
	}
	c.looked = time.Now()
	stamp, err := c.stamps()
	if err == nil && stamp == c.stamp {
		return c.current, nil
	}
	var pair tls.Certificate
	if err == nil {
		pair, err = tls.LoadX509KeyPair(c.cert, c.key)
	}
	if err != nil {
		c.log.Warn("the TLS certificate cannot be read again; the last one stays", "error", err)
		return c.current, nil
	}
	c.current, c.stamp = &pair, stamp
	c.log.Info("the TLS certificate has changed", "expires", pair.Leaf.NotAfter)
	return c.current, nil
}

// config is that of a server. TLS 1.2 is the oldest that browsers still speak.
func (c *certificate) config() *tls.Config {
	return &tls.Config{GetCertificate: c.get, MinVersion: tls.VersionTLS12}
}

// newServer has the limits of a client that means well: a request at once, and nothing after it that the server would time.
func newServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: headerTimeout, ReadTimeout: requestTimeout, MaxHeaderBytes: maxHeader,
		IdleTimeout: idleTimeout, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
}

// tlsFor is how clients are served; nil without TLS.
func (f *clientFlags) tlsFor(log *slog.Logger) (*tls.Config, error) {
	if f.TLSCert == "" {
		return nil, nil
	}
	c, err := openCertificate(f.TLSCert, f.TLSKey, log)
	if err != nil {
		return nil, usageError{fmt.Errorf("--tls-cert, --tls-key: %w", err)}
	}
	return c.config(), nil
}
