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
	conns map[string]net.Conn
}

// maxTabID is the longest name of a tab.
const maxTabID = 64

type connKey struct{}

// remember is the ConnContext of the http.Server.
func (*tabs) remember(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// watch notes which connection carries the socket of which tab (?tab=), for as long as it lives.
func (t *tabs) watch(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tab := r.URL.Query().Get("tab")
		conn, ok := r.Context().Value(connKey{}).(net.Conn)
		if ok && tab != "" && len(tab) <= maxTabID {
			t.mu.Lock()
			if t.conns == nil {
				t.conns = make(map[string]net.Conn)
			}
			t.conns[tab] = conn
			t.mu.Unlock()
			defer func() {
				t.mu.Lock()
				defer t.mu.Unlock()
				if t.conns[tab] == conn {
					delete(t.conns, tab)
				}
			}()
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
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // best effort: a plain close says goodbye at the TCP level only
	}
	_ = conn.Close()
	return true
}
