package app

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/internal/canary"
	"github.com/commitcast/commitcast/ops"
	"github.com/commitcast/commitcast/worker"
)

const (
	// maxOrder bounds what an operator's order may hold, in bytes.
	maxOrder = 4 << 10
	// maxAppName is what Postgres keeps of an application_name, in bytes.
	maxAppName = 63
)

// nodeFace is what this process tells operators, and does for them, on its ops listener.
type nodeFace struct {
	identity    ops.Identity
	worker      *worker.Worker
	broadcaster *broadcaster.Broadcaster
	canary      *canary.Canary // nil: there is none here
	expiries    expiries
	console     http.Handler // nil: there is none here
}

func newNodeFace() *nodeFace {
	host, _ := os.Hostname()
	return &nodeFace{identity: ops.Identity{Host: host, PID: os.Getpid(), Version: buildVersion(), Started: time.Now()}}
}

// serve adds the paths. Everything but what /readyz tells needs what the door asks for. A page of a browser orders nothing:
// its requests are refused by their origin, with or without token.
func (n *nodeFace) serve(mux *http.ServeMux, door *opsDoor) {
	pages := http.NewCrossOriginProtection()
	handle := func(pattern string, h func(w http.ResponseWriter, r *http.Request)) {
		mux.Handle(pattern, pages.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !door.lets(r) {
				w.Header().Set("WWW-Authenticate", "Bearer")
				http.Error(w, "the token of --ops-token-file is needed, or a certificate of --ops-client-ca", http.StatusUnauthorized)
				return
			}
			if r.Method == http.MethodPost && r.Header.Get("Content-Type") != "application/json" {
				http.Error(w, "orders are application/json", http.StatusUnsupportedMediaType)
				return
			}
			h(w, r)
		})))
	}
	handle("GET "+ops.PathNode, func(w http.ResponseWriter, r *http.Request) { answer(w, n.tell()) })
	if n.broadcaster == nil {
		return
	}
	b := n.broadcaster
	handle("GET "+ops.PathClients, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if q.Get("behind") != "" {
			answer(w, b.ClientsBehind(limitOf(q.Get("limit"))))
			return
		}
		answer(w, b.Clients(q.Get("subject"), q.Get("after"), limitOf(q.Get("limit"))))
	})
	handle("GET "+ops.PathTopics, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if name := q.Get("topic"); name != "" {
			list := []broadcaster.TopicState{}
			if t, ok := b.Topic(name); ok {
				list = append(list, t)
			}
			answer(w, list)
			return
		}
		answer(w, b.Topics(q.Get("after"), limitOf(q.Get("limit"))))
	})
	handle("GET "+ops.PathFollowers, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		answer(w, b.Followers(q.Get("topic"), q.Get("subject"), ops.MaxPage))
	})
	handle("POST "+ops.PathAdvance, func(w http.ResponseWriter, r *http.Request) {
		var order ops.Advance
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxOrder)).Decode(&order); err != nil || order.Topic == "" || order.Subject == "" || order.To < 1 {
			http.Error(w, `say who goes ahead, and how far: {"topic":"…","subject":"…","to":1050}`, http.StatusBadRequest)
			return
		}
		answer(w, b.Advance(order.Topic, order.Subject, order.To, ops.MaxPage))
	})
	handle("POST "+ops.PathDrain, func(w http.ResponseWriter, r *http.Request) {
		if b.State().Drained {
			http.Error(w, "it is drained already", http.StatusConflict)
			return
		}
		patient(w)
		answer(w, ops.Acted{Node: b.Node(), Clients: b.Hold()})
	})
	handle("POST "+ops.PathUndrain, func(w http.ResponseWriter, r *http.Request) {
		if !b.Release() {
			http.Error(w, "it is not drained", http.StatusConflict)
			return
		}
		answer(w, ops.Acted{Node: b.Node()})
	})
	handle("POST "+ops.PathDisconnect, func(w http.ResponseWriter, r *http.Request) {
		var order struct {
			Subject string `json:"subject"`
		}
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxOrder)).Decode(&order); err != nil || order.Subject == "" {
			http.Error(w, `say whose connections: {"subject":"…"}`, http.StatusBadRequest)
			return
		}
		patient(w)
		answer(w, ops.Acted{Node: b.Node(), Clients: b.Disconnect(order.Subject)})
	})
}

// patient lets an answer come when all clients are closed, which is spread over a while.
func patient(w http.ResponseWriter) { http.NewResponseController(w).SetWriteDeadline(time.Time{}) }

func (n *nodeFace) tell() ops.Identity {
	id := n.identity
	id.Now = time.Now()
	if n.worker != nil {
		s := n.worker.State()
		id.Worker = &s
	}
	if n.broadcaster != nil {
		s := n.broadcaster.State()
		id.Broadcaster = &s
	}
	if n.canary != nil {
		id.Canary = &ops.CanaryState{Age: n.canary.Age().Seconds()}
		if n.canary.Stale() {
			id.Canary.Why = n.canary.Why()
		}
	}
	id.Certificates = n.expiries.all()
	return id
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

func limitOf(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil || n <= 0 || n > ops.MaxPage {
		return ops.MaxPage
	}
	return n
}

// announce is the name of this process's sessions with the database, by which operators find it: where its ops listener is
// reached. An address that is too long for a session's name is left out, and said.
func (p *process) announce(l net.Listener) string {
	if l == nil {
		return ""
	}
	at := p.advertise
	if at == "" {
		at = l.Addr().String()
		if host, port, err := net.SplitHostPort(at); err == nil {
			if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
				if name, err := os.Hostname(); err == nil {
					at = net.JoinHostPort(name, port)
				}
			}
		}
	}
	// Who asks has to know that it is TLS before it asks.
	if p.opsDoor.tls != nil && !strings.Contains(at, "://") {
		at = "https://" + at
	}
	at = strings.TrimPrefix(at, "http://")
	// The longest name of a session is that of a worker's listener.
	if len("commitcast listener@")+len(at) > maxAppName {
		p.log.Warn("operators cannot find this process: the address of its ops listener is too long; say a shorter one with --ops-advertise", "address", at)
		return ""
	}
	return at
}

// buildVersion is the version of this binary, and its revision.
func buildVersion() string {
	version, revision := "(devel)", ""
	if info, ok := debug.ReadBuildInfo(); ok {
		if info.Main.Version != "" {
			version = info.Main.Version
		}
		for _, kv := range info.Settings {
			if kv.Key == "vcs.revision" {
				revision = " " + kv.Value
			}
		}
	}
	return strings.TrimSpace(version + revision)
}

// sessionName is a key of the context that OpenDatabase is called with.
type sessionName struct{}

// named has OpenDatabase name its sessions after where this process can be asked.
func named(ctx context.Context, address string) context.Context {
	if address == "" {
		return ctx
	}
	return context.WithValue(ctx, sessionName{}, "commitcast@"+address)
}
