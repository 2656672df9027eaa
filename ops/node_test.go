package ops_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/coder/websocket"
	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/ops"
)

// Any login can name its sessions as processes do. Those that may neither work nor read are not asked at all, and the token goes
// only to where the operator said, and to this machine.
func TestTokenGoesWhereTheOperatorSaid(t *testing.T) {
	d := newDesk(t)
	var mu sync.Mutex
	got := make(map[string]string) // what each address was told
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		got[r.Host] += r.Header.Get("Authorization") + ";"
		mu.Unlock()
		if r.Header.Get("Authorization") == "" {
			http.Error(w, "a token is needed", http.StatusUnauthorized)
			return
		}
		fmt.Fprintln(w, "{}")
	}))
	defer server.Close()
	const named = "192.0.2.9:8081"
	for address, login := range map[string]string{
		"192.0.2.1:8081":         testkit.As(t, d.url, "writer"),
		"192.0.2.2:8081":         testkit.As(t, d.url, "operator"),
		"127.0.0.1:1":            testkit.As(t, d.url, "writer", "operator"),
		"192.0.2.3:8081":         testkit.As(t, d.url, "worker"),
		"192.0.2.4:8081":         testkit.As(t, d.url, "reader"),
		"127.0.0.1:2@192.0.2.5":  d.url, // the owner
		"127.0.0.1:3/@192.0.2.6": d.url,
		"127.0.0.1:8081":         d.url,
		"[::1]:8081":             testkit.As(t, d.url, "worker"),
	} {
		config, err := pgx.ParseConfig(login)
		if err != nil {
			t.Fatal(err)
		}
		config.RuntimeParams["application_name"] = "commitcast@" + address
		conn, err := pgx.ConnectConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.WithoutCancel(t.Context()))
	}
	console := ops.New(d.pool, nil, ops.Config{Who: "alice", Token: "secret", Nodes: []string{named}, HTTP: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, server.Listener.Addr().String())
		}}}})
	defer console.Close()
	nodes, err := console.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	trusted := map[string]bool{named: true, "127.0.0.1:8081": true, "[::1]:8081": true}
	asked := map[string]bool{"192.0.2.3:8081": true, "192.0.2.4:8081": true, "127.0.0.1:2@192.0.2.5": true, "127.0.0.1:3/@192.0.2.6": true}
	for _, n := range nodes {
		switch {
		case trusted[n.Address]:
			if n.Error != "" {
				t.Errorf("%s: %s", n.Address, n.Error)
			}
		case !asked[n.Address]:
			t.Errorf("%s was asked", n.Address)
		case strings.HasSuffix(n.Address, ":8081") && !strings.Contains(n.Error, "it wants a token; name it with --node"):
			t.Errorf("%s: %q", n.Address, n.Error)
		}
	}
	if len(nodes) != len(trusted)+len(asked) {
		t.Errorf("%d nodes", len(nodes))
	}
	for host, told := range got {
		if strings.Contains(told, "secret") && !trusted[host] {
			t.Errorf("%s was told %q", host, told)
		}
	}
	for host := range trusted {
		if !strings.HasPrefix(got[host], "Bearer secret;") {
			t.Errorf("%s was told %q", host, got[host])
		}
	}
}

// A client's token goes to the sockets that the operator named, and never to where a node says that its clients connect.
func TestDoctorKeepsTheClientsToken(t *testing.T) {
	d := newDesk(t)
	heard := make(chan string, 8)
	sockets := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: r.Header["Sec-Websocket-Protocol"]})
		if err != nil {
			return
		}
		defer ws.CloseNow()
		if _, text, err := ws.Read(r.Context()); err == nil {
			heard <- string(text)
		}
	}))
	defer sockets.Close()
	at := "ws" + strings.TrimPrefix(sockets.URL, "http") + "/v1/ws"
	for _, c := range []struct {
		auth, told bool
		urls       []string
		connected  int
	}{{auth: false, connected: 1}, {auth: true, connected: 0}, {auth: true, told: true, urls: []string{at}, connected: 1}} {
		node := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"client_url":%q,"auth":%v,"broadcaster":{"node":"b1"}}`, at, c.auth)
		}))
		console := ops.New(d.pool, nil, ops.Config{Who: "alice", Nodes: []string{node.Listener.Addr().String()}})
		_, err := console.Doctor(t.Context(), ops.DoctorConfig{Event: true, ClientToken: "secret", ClientURLs: c.urls})
		console.Close()
		node.Close()
		if err != nil || len(heard) != c.connected {
			t.Errorf("%+v: connected %d times, %v", c, len(heard), err)
		}
		for len(heard) > 0 {
			if said := <-heard; strings.Contains(said, "secret") != c.told {
				t.Errorf("%+v: %s", c, said)
			}
		}
	}
}
