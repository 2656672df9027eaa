package main

import (
	"context"
	"net"
	"net/http"
	"sync"
)

// tabs knows the network connection under each tab's socket, so that a tab can have its own one cut for real: with a
// TCP reset, which is what a socket that dies without a goodbye looks like. Safe for concurrent use.
type tabs struct {
	mu    sync.Mutex
	conns map[string]*tabConn
}

// tabConn is a connection that is forgotten when it is closed: the handler of a socket returns long before.
type tabConn struct {
	net.Conn
	tabs *tabs
	tab  string // guarded by tabs.mu; "" while it carries no socket
}

// NetConn is the connection below, as crypto/tls calls it.
func (c *tabConn) NetConn() net.Conn { return c.Conn }

func (c *tabConn) Close() error {
	c.tabs.mu.Lock()
	if c.tabs.conns[c.tab] == c {
		delete(c.tabs.conns, c.tab)
	}
	c.tabs.mu.Unlock()
	return c.Conn.Close()
}

// listener hands out connections that can be cut.
type listener struct {
	net.Listener
	tabs *tabs
}

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &tabConn{Conn: c, tabs: l.tabs}, nil
}

// maxTabID is the longest name of a tab.
const maxTabID = 64

type connKey struct{}

// remember is the ConnContext of the http.Server.
func (*tabs) remember(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// watch notes which connection carries the socket of which tab (?tab=).
func (t *tabs) watch(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tab := r.URL.Query().Get("tab")
		conn, ok := r.Context().Value(connKey{}).(*tabConn)
		if ok && tab != "" && len(tab) <= maxTabID {
			t.mu.Lock()
			if t.conns == nil {
				t.conns = make(map[string]*tabConn)
			}
			conn.tab, t.conns[tab] = tab, conn
			t.mu.Unlock()
		}
		next.ServeHTTP(w, r)
	})
}

// cut breaks a tab's connection. It returns false when the tab has none.
func (t *tabs) cut(tab string) bool {
	t.mu.Lock()
	conn := t.conns[tab]
	t.mu.Unlock()
	if conn == nil {
		return false
	}
	if tcp, ok := conn.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // best effort: a plain close says goodbye at the TCP level only
	}
	_ = conn.Close()
	return true
}
