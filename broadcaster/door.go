package broadcaster

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"strings"

	"github.com/commitcast/commitcast/wire"
)

// door is what every request passes before anything is done for it.
func (b *Broadcaster) door(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// What is answered is the end of a connection: nobody who was turned away keeps its place. An upgrade says otherwise,
		// and so does what another request follows.
		if r.ProtoMajor == 1 {
			w.Header().Set("Connection", "close")
		}
		switch {
		case !b.answersTo(r.Host):
			// A name that somebody else points here: their page would be of the same origin (DNS rebinding).
			b.shut(w, "host", http.StatusMisdirectedRequest, wire.CodeForbidden, fmt.Sprintf("this server is not %q; its names are said with --hosts", clip(r.Host)))
		case holdsToken(r.URL.RawQuery):
			b.shut(w, "token_in_url", http.StatusBadRequest, wire.CodeBadRequest, "a token must not be in an address, where logs and histories keep it: "+
				`send it in the frame "auth", or in the header Authorization; take this one out of use`)
		case r.ContentLength != 0:
			b.shut(w, "body", http.StatusBadRequest, wire.CodeBadRequest, "no request here has a body")
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// shut refuses a request at the door.
func (b *Broadcaster) shut(w http.ResponseWriter, why string, status int, code, detail string) {
	b.metrics.shut.WithLabelValues(why).Inc()
	problem(w, status, code, detail)
}

// answersTo reports whether a request's Host is a name of this server. An address is, always: no name server can point
// one elsewhere; and localhost is this machine.
func (b *Broadcaster) answersTo(host string) bool {
	if b.cfg.Hosts == nil {
		return true
	}
	name := strings.ToLower(strings.TrimSuffix(hostname(host), "."))
	if _, err := netip.ParseAddr(name); err == nil || name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return true
	}
	for _, pattern := range b.cfg.Hosts {
		if ok, _ := path.Match(strings.ToLower(pattern), name); ok {
			return true
		}
	}
	return false
}

// hostname is a host without its port and brackets.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
}

// checkOrigins refuses patterns that match nothing, or what nobody wants.
func checkOrigins(patterns []string) error {
	for _, p := range patterns {
		scheme, host, full := strings.Cut(p, "://")
		if !full {
			scheme, host = "https", p
		}
		if _, err := path.Match(p, ""); err != nil || host == "" || strings.ContainsAny(host, "/@?#") || scheme != "https" && scheme != "http" {
			return fmt.Errorf("broadcaster: origin %q is not a pattern like https://*.example.com", p)
		}
	}
	return nil
}

// checkOrigin holds the page that asks to Config.Origins. cross is the origin of a page that is allowed and not this
// server's own. A request without an origin is not one of a page, as far as a browser would have sent one: websocket says
// that it would.
func (b *Broadcaster) checkOrigin(r *http.Request, websocket bool) (cross string, err error) {
	list := r.Header.Values("Origin")
	if len(list) == 0 {
		// Browsers say here what they do not say there, for example when a foreign page shows an address as an image.
		if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "same-origin" && site != "none" {
			return "", errors.New("pages of other sites may not load this")
		}
		if websocket && b.cfg.RequireOrigin {
			return "", errors.New("the header Origin is missing")
		}
		return "", nil
	}
	origin := list[0]
	u, err := url.Parse(origin)
	if err != nil || len(list) > 1 || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || !strings.EqualFold(origin, u.Scheme+"://"+u.Host) {
		return "", errors.New("the header Origin is not that of a page")
	}
	if strings.EqualFold(withoutPort(u.Host, u.Scheme), withoutPort(r.Host, u.Scheme)) && (u.Scheme == "https" || !b.secure(r)) {
		return "", nil
	}
	full := strings.ToLower(origin)
	for _, pattern := range b.cfg.Origins {
		if !strings.Contains(pattern, "://") {
			pattern = "https://" + pattern
		}
		if ok, _ := path.Match(strings.ToLower(pattern), full); ok {
			return origin, nil
		}
	}
	return "", fmt.Errorf("pages of %s may not connect here; their origins are said with --origins", clip(origin))
}

// withoutPort takes the port that a scheme has anyway from a host.
func withoutPort(host, scheme string) string {
	if scheme == "https" {
		return strings.TrimSuffix(host, ":443")
	}
	return strings.TrimSuffix(host, ":80")
}

// secure reports whether a request is known to have come by TLS: then a page that did not is not of this origin.
func (b *Broadcaster) secure(r *http.Request) bool {
	if r.TLS != nil || b.cfg.TrustedHops == 0 {
		return r.TLS != nil
	}
	said := strings.Split(strings.Join(r.Header.Values("X-Forwarded-Proto"), ","), ",")
	return strings.EqualFold(strings.TrimSpace(said[len(said)-1]), "https") // each proxy adds at the end
}

// allowOrigin lets the browser of a page that may ask read the answer.
func (b *Broadcaster) allowOrigin(w http.ResponseWriter, r *http.Request) bool {
	w.Header().Add("Vary", "Origin")
	cross, err := b.checkOrigin(r, false)
	if err != nil {
		b.shut(w, "origin", http.StatusForbidden, wire.CodeForbidden, err.Error())
		return false
	}
	if cross != "" {
		w.Header().Set("Access-Control-Allow-Origin", cross)
		w.Header().Set("Access-Control-Allow-Credentials", "true")
	}
	return true
}

// client is the address that a request came from: the peer's, or what the outermost trusted proxy says. Of IPv6 the network
// of a household, which has as many addresses as it likes. Zero for this machine, on which proxies run that say nothing.
func (b *Broadcaster) client(r *http.Request) netip.Prefix {
	from := r.RemoteAddr
	if b.cfg.TrustedHops > 0 {
		// Each proxy adds whom it heard at the end; what stands further left was said by somebody.
		hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
		if i := len(hops) - b.cfg.TrustedHops; i >= 0 && strings.TrimSpace(hops[i]) != "" {
			from = strings.TrimSpace(hops[i])
		}
	}
	ip, err := netip.ParseAddr(hostname(from))
	if err != nil { // not an address: the peer is one, and a limit there must be
		ip, err = netip.ParseAddr(hostname(r.RemoteAddr))
	}
	if err != nil {
		return netip.Prefix{}
	}
	ip = ip.Unmap().WithZone("")
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	if ip.IsLoopback() {
		return netip.Prefix{}
	}
	p, _ := ip.Prefix(bits) // the bits are those of its family
	return p
}

// tokenNames are names of parameters that people put tokens in.
var tokenNames = map[string]bool{"token": true, "access_token": true, "id_token": true, "jwt": true, "auth": true,
	"authorization": true, "bearer": true, "api_key": true, "apikey": true}

// holdsToken reports whether a query holds a token, by its name or by its look.
func holdsToken(query string) bool {
	if query == "" {
		return false
	}
	values, _ := url.ParseQuery(query)     // what can be read of it
	values[""] = append(values[""], query) // and as it stands: in "%0eyJ" a token's beginning is half an escape
	for name, list := range values {
		if tokenNames[strings.ToLower(name)] {
			return true
		}
		for _, v := range append(list, name) {
			if i := strings.Index(v, "eyJ"); i >= 0 && strings.Count(v[i:], ".") >= 2 { // the beginning of {" in base64
				return true
			}
		}
	}
	return false
}

// clip shortens s for an answer.
func clip(s string) string {
	if len(s) <= wire.MaxTopicLen {
		return s
	}
	return s[:wire.MaxTopicLen] + "…"
}
