package console

import (
	"crypto/sha256"
	"crypto/subtle"
	_ "embed"
	"html/template"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/time/rate"
)

//go:embed login.html
var loginHTML string

// The template writes text only; html/template escapes it for where it stands.
var loginPage = template.Must(template.New("login").Parse(loginHTML))

const (
	// maxName is the longest name of an operator, in bytes.
	maxName = 64
	// knocksBurst and knocksEvery are how often one address may try to log in: a person mistypes, and a program that guesses at 96
	// bits needs more. knocksOfAll bounds all addresses together, and maxKnockers how many are kept apart.
	knocksBurst, knocksEvery   = 5, 10 * time.Second
	knocksOfAll, knocksAllRate = 50, 1
	maxKnockers                = 4096
)

// knocks bounds attempts to log in that failed.
type knocks struct {
	mu  sync.Mutex
	all *rate.Limiter
	by  map[string]*rate.Limiter
}

func newKnocks() *knocks {
	return &knocks{all: rate.NewLimiter(knocksAllRate, knocksOfAll), by: make(map[string]*rate.Limiter)}
}

// of is the limiter of an address. mu is held.
func (k *knocks) of(address string) *rate.Limiter {
	l := k.by[address]
	if l == nil {
		if len(k.by) >= maxKnockers {
			clear(k.by) // all begin anew; the limit of all holds
		}
		l = rate.NewLimiter(rate.Every(knocksEvery), knocksBurst)
		k.by[address] = l
	}
	return l
}

// may reports whether an address may try.
func (k *knocks) may(address string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.of(address).Tokens() >= 1 && k.all.Tokens() >= 1
}

// failed counts an attempt.
func (k *knocks) failed(address string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.of(address).Allow()
	k.all.Allow()
}

// cookieName is the cookie of a session. Its prefix makes browsers keep it from other hosts and from plain HTTP, which they do with TLS only.
func cookieName(r *http.Request) string {
	if r.TLS != nil {
		return "__Host-commitcast-console"
	}
	return "commitcast-console"
}

// cookiePath is "/" with TLS, as the prefix demands. Without, other services on this machine must not see the cookie: cookies know no ports.
func cookiePath(r *http.Request) string {
	if r.TLS != nil {
		return "/"
	}
	return Prefix
}

// session is that of a request; nil if there is none.
func (s *Server) session(r *http.Request) *session {
	c, err := r.Cookie(cookieName(r))
	if err != nil {
		return nil
	}
	return s.sessions.find(c.Value)
}

// certified is the name in the certificate that a request has shown; "" if it has shown none.
func certified(r *http.Request) string {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return ""
	}
	leaf := r.TLS.VerifiedChains[0][0]
	if leaf.Subject.CommonName != "" {
		return leaf.Subject.CommonName
	}
	return "certificate " + leaf.SerialNumber.String()
}

type loginView struct {
	Name, Certified, Error string
	Token, Refused         bool // Token: it is asked for. Refused: nobody gets in here without a certificate
}

func (s *Server) getLogin(w http.ResponseWriter, r *http.Request) {
	if s.session(r) != nil {
		http.Redirect(w, r, Prefix, http.StatusSeeOther)
		return
	}
	s.showLogin(w, r, http.StatusOK, "", "")
}

func (s *Server) showLogin(w http.ResponseWriter, r *http.Request, status int, name, problem string) {
	v := loginView{Name: name, Certified: certified(r), Error: problem}
	v.Token = s.cfg.Token != "" && v.Certified == ""
	v.Refused = s.cfg.Token == "" && s.cfg.Certificates && v.Certified == ""
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	loginPage.Execute(w, v)
}

func (s *Server) postLogin(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	name := strings.TrimSpace(r.PostFormValue("name"))
	address := addressOf(r)
	by := certified(r)
	if by != "" {
		name = by
	}
	// Who has the token comes in, however often others have guessed from behind the same proxy.
	want, got := sha256.Sum256([]byte(s.cfg.Token)), sha256.Sum256([]byte(strings.TrimSpace(r.PostFormValue("token"))))
	known := by != "" || s.cfg.Token != "" && subtle.ConstantTimeCompare(want[:], got[:]) == 1 || s.cfg.Token == "" && !s.cfg.Certificates
	if !known && !s.knocks.may(address) {
		w.Header().Set("Retry-After", strconv.Itoa(int(knocksEvery.Seconds())))
		s.showLogin(w, r, http.StatusTooManyRequests, name, "Too many attempts. Wait "+knocksEvery.String()+" and try again.")
		return
	}
	if !known {
		s.knocks.failed(address)
		s.cfg.Logger.Warn("a login to the console was refused", "address", address)
		s.showLogin(w, r, http.StatusForbidden, name, "That is not the token of operators.")
		return
	}
	if name == "" || len(name) > maxName || !utf8.ValidString(name) || strings.ContainsFunc(name, func(c rune) bool { return !unicode.IsPrint(c) }) {
		s.showLogin(w, r, http.StatusBadRequest, "", "Say who you are, in at most "+strconv.Itoa(maxName)+" characters: the record needs a name.")
		return
	}
	cookie, _ := s.sessions.begin(name)
	s.cfg.Logger.Info("an operator has logged in to the console", "who", name, "address", address, "certificate", by != "")
	http.SetCookie(w, &http.Cookie{Name: cookieName(r), Value: cookie, Path: cookiePath(r), HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteStrictMode})
	http.Redirect(w, r, Prefix, http.StatusSeeOther)
}

func addressOf(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

func (s *Server) logout(w http.ResponseWriter, r *http.Request, v *session) (any, error) {
	if c, err := r.Cookie(cookieName(r)); err == nil {
		s.sessions.finish(c.Value)
	}
	http.SetCookie(w, &http.Cookie{Name: cookieName(r), Path: cookiePath(r), MaxAge: -1, HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteStrictMode})
	s.cfg.Logger.Info("an operator has logged out of the console", "who", v.who)
	return map[string]bool{"out": true}, nil
}
