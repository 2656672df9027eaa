package app

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// opsHandler serves health, readiness and metrics. /metrics needs what the door asks for, and /readyz tells why only to who has it;
// whether the process lives and is ready, everybody may know who gets here. No page of a browser is let in: there are no CORS
// headers, and a name that was pointed here is not answered.
func opsHandler(checks map[string]func() error, metrics *prometheus.Registry, door *opsDoor, node *nodeFace) http.Handler {
	mux := http.NewServeMux()
	node.serve(mux, door)
	if node.console != nil {
		serveConsole(mux, node.console)
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		states := make(map[string]string, len(checks))
		status := http.StatusOK
		for name, check := range checks {
			states[name] = "ready"
			if err := check(); err != nil {
				states[name] = "not ready"
				if door.lets(r) {
					states[name] = oneLine(err)
				}
				if !serves(err) {
					status = http.StatusServiceUnavailable
				}
			}
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(states)
	})
	prom := promhttp.HandlerFor(metrics, promhttp.HandlerOpts{})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		if !door.lets(r) {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "the token of --ops-token-file is needed, or a certificate of --ops-client-ca", http.StatusUnauthorized)
			return
		}
		prom.ServeHTTP(w, r)
	})
	return door.named(mux)
}

// named refuses names that were pointed here, where there is nothing that a page of theirs would lack.
func (d *opsDoor) named(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if d.open() && !isAddress(r.Host) {
			http.Error(w, "without --ops-token-file or --ops-client-ca, this is answered by address or as localhost only", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// isAddress reports whether a Host is one that no name server can point elsewhere.
func isAddress(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil || strings.EqualFold(host, "localhost")
}
