package app

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/commitcast/commitcast/broadcaster"
)

// opsHandler serves health, readiness and metrics. With a token, /metrics needs it, and /readyz tells why only to who has it;
// whether the process lives and is ready, everybody may know who gets here. No page of a browser is let in: there are no CORS
// headers, and a name that was pointed here is not answered.
func opsHandler(checks map[string]func() error, metrics *prometheus.Registry, token string, node *nodeFace) http.Handler {
	mux := http.NewServeMux()
	node.serve(mux, token)
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
				if brings(r, token) {
					states[name] = oneLine(err)
				}
				// Delivery by polling is late by a fraction of a second, not absent: still ready.
				if !errors.Is(err, broadcaster.ErrPolling) {
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
		if !brings(r, token) {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "the token of --ops-token-file is needed", http.StatusUnauthorized)
			return
		}
		prom.ServeHTTP(w, r)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if token == "" && !isAddress(r.Host) {
			http.Error(w, "without --ops-token-file, this is answered by address or as localhost only", http.StatusMisdirectedRequest)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// brings reports whether a request holds the token; true if there is none.
func brings(r *http.Request, token string) bool {
	scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	want, got := sha256.Sum256([]byte(token)), sha256.Sum256([]byte(given))
	return token == "" || strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare(want[:], got[:]) == 1
}

// isAddress reports whether a Host is one that no name server can point elsewhere.
func isAddress(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil || strings.EqualFold(host, "localhost")
}
