package stream

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"
)

// redisConn is the connection of one subscription.
//
// It is not a go-redis PubSub: that one reconnects and resubscribes by itself, so losses could not be told apart from
// silence; after a read timeout it goes on in the middle of a half-read message; and a subscribe dials and writes under
// the mutex that the reader needs. Here a connection lives once: any error ends it.
type redisConn struct {
	net.Conn
	raw     net.Conn // below TLS
	br      *bufio.Reader
	timeout time.Duration // of one write
}

// readBuffer takes many small messages in one read.
const readBuffer = 64 << 10

// connectFor is a connection to the master of a key.
func (r *Redis) connectFor(ctx context.Context, key string) (*redisConn, error) {
	actx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	addr, err := r.servers.master(actx, key)
	cancel()
	if err != nil {
		return nil, err
	}
	return r.connect(ctx, addr)
}

// connect dials, authenticates and names the connection within the configured timeout. The caller closes it.
func (r *Redis) connect(ctx context.Context, addr string) (_ *redisConn, err error) {
	opts := r.options
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	dialer := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 5 * time.Second, Interval: time.Second, Count: 3}}
	raw, err := dialer.DialContext(ctx, opts.Network, addr)
	if err != nil {
		return nil, fmt.Errorf("connect to redis: %w", err)
	}
	defer func() {
		if err != nil {
			raw.Close()
		}
	}()
	// Closing is the only way to end a read or write at once when ctx ends; the deadline alone would wait for it.
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	conn := raw
	if opts.TLSConfig != nil {
		config := opts.TLSConfig
		if config.ServerName == "" && !config.InsecureSkipVerify {
			config = config.Clone()
			config.ServerName, _, _ = net.SplitHostPort(addr)
		}
		secured := tls.Client(raw, config)
		if err := secured.HandshakeContext(ctx); err != nil {
			return nil, fmt.Errorf("connect to redis: TLS: %w", err)
		}
		conn = secured
	}
	c := &redisConn{Conn: conn, raw: raw, br: bufio.NewReaderSize(conn, readBuffer), timeout: r.cfg.Timeout}

	var hello []byte
	if opts.Password != "" {
		auth := []string{"AUTH", opts.Username, opts.Password}
		if opts.Username == "" {
			auth = []string{"AUTH", opts.Password}
		}
		hello = appendCommand(hello, auth...)
	}
	hello = appendCommand(hello, "CLIENT", "SETNAME", opts.ClientName+"-subscription")
	if err := c.write(hello); err != nil {
		return nil, fmt.Errorf("connect to redis: %w", err)
	}
	deadline, _ := ctx.Deadline()
	if err := c.SetReadDeadline(deadline); err != nil {
		return nil, fmt.Errorf("connect to redis: %w", err)
	}
	if opts.Password != "" {
		if _, _, err := readHead(c.br); err != nil {
			return nil, fmt.Errorf("authenticate to redis: %w", err)
		}
	}
	// The name is for people who read CLIENT LIST; a user without the right to set one can do without.
	if _, _, err := readHead(c.br); err != nil && !errors.As(err, new(replyError)) {
		return nil, fmt.Errorf("connect to redis: %w", err)
	}
	return c, nil
}

// Close closes without a farewell: TLS would write one, and wait for it on a connection that is stuck.
func (c *redisConn) Close() error { return c.raw.Close() }

// write writes b within the timeout.
func (c *redisConn) write(b []byte) error {
	if err := c.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
		return err
	}
	_, err := c.Conn.Write(b)
	return err
}
