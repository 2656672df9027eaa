package console

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"riverqueue.com/riverui"

	"github.com/commitcast/commitcast/client/ts"
	"github.com/commitcast/commitcast/ops"
)

//go:embed web
var web embed.FS

// Prefix is the path below which everything of the console is.
const Prefix = "/console/"

const (
	// csrfHeader brings the session's second secret.
	csrfHeader = "Commitcast-Csrf"
	// maxBody is far more than any order needs: a thousand offsets.
	maxBody = 64 << 10
	// tidyEvery is how often sessions that are over are looked for: their connections end with them.
	tidyEvery = time.Minute
)

// policy is what pages may do: load and run their own files, and nothing else. Nothing is ever made of text.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

// Config of a Server. The zero Config lets everybody in who can reach it.
type Config struct {
	// Token is what operators log in with. Default: none is asked for.
	Token string
	// Certificates says that the listener verifies certificates of operators: one of these does for the token, and says who it is.
	Certificates bool
	// Live is the handler of a broadcaster without authentication, which nobody else reaches. Default: none; pages say that nothing is
	// live.
	Live http.Handler
	// Version is shown.
	Version string
	// Logger receives a line for each login, refused login and action. Default slog.Default().
	Logger *slog.Logger
}

// Server serves the console.
type Server struct {
	cfg      Config
	ops      *ops.Console
	watch    *ops.Watch
	sessions *sessions
	knocks   *knocks
	river    *riverui.Handler
	handler  http.Handler
}

// New makes a Server. The pool is that of the Console, and is asked for River's jobs.
func New(c *ops.Console, pool *pgxpool.Pool, cfg Config) (*Server, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Server{cfg: cfg, ops: c, sessions: newSessions(), knocks: newKnocks()}
	var err error
	if s.river, err = newRiver(pool, cfg.Logger); err != nil {
		return nil, err
	}
	s.watch = c.Watch()
	s.handler = s.routes()
	return s, nil
}

// Run runs what goes on in the background until ctx ends, and ends all sessions then.
func (s *Server) Run(ctx context.Context) error {
	defer s.watch.Close()
	defer s.sessions.close()
	if err := s.startRiver(ctx); err != nil {
		return err
	}
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.sessions.tidy()
		}
	}
}

// Handler is everything below Prefix.
func (s *Server) Handler() http.Handler { return s.handler }

func (s *Server) routes() http.Handler {
	files, err := fs.Sub(web, "web")
	if err != nil {
		panic(err) // the folder is embedded
	}
	mux := http.NewServeMux()
	static := http.StripPrefix(Prefix, http.FileServerFS(files))
	mux.HandleFunc("GET "+Prefix+"{$}", func(w http.ResponseWriter, r *http.Request) {
		if s.session(r) == nil {
			http.Redirect(w, r, Prefix+"login", http.StatusSeeOther)
			return
		}
		static.ServeHTTP(w, r)
	})
	mux.HandleFunc("GET "+Prefix+"{file}", func(w http.ResponseWriter, r *http.Request) {
		switch name := r.PathValue("file"); {
		case name == "commitcast.js":
			http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(ts.JS))
		case strings.HasSuffix(name, ".js"), strings.HasSuffix(name, ".css"), strings.HasSuffix(name, ".svg"):
			static.ServeHTTP(w, r) // everybody may know what is in these
		default:
			http.NotFound(w, r)
		}
	})
	mux.HandleFunc("GET "+Prefix+"login", s.getLogin)
	mux.HandleFunc("POST "+Prefix+"login", s.postLogin)
	mux.Handle("POST "+Prefix+"logout", s.ordered(s.logout))
	s.api(mux)
	mux.Handle("GET "+Prefix+"live/v1/ws", http.HandlerFunc(s.live))
	mux.Handle(riverPrefix+"/", http.HandlerFunc(s.jobs))

	guarded := http.NewCrossOriginProtection().Handler(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy+"; require-trusted-types-for 'script'; trusted-types 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), microphone=(), geolocation=()")
		h.Set("Cache-Control", "no-cache")
		guarded.ServeHTTP(w, r)
	})
}

// live is the WebSocket of a page, as long as its session lasts. That the page is of this origin, the broadcaster looks at.
func (s *Server) live(w http.ResponseWriter, r *http.Request) {
	v := s.session(r)
	switch {
	case v == nil:
		http.Error(w, "log in first", http.StatusUnauthorized)
	case s.cfg.Live == nil:
		http.Error(w, "nothing is live here", http.StatusNotFound)
	default:
		http.StripPrefix(strings.TrimSuffix(Prefix, "/")+"/live", s.cfg.Live).ServeHTTP(held{w, v}, r)
	}
}

// sameOrigin reports whether a request is known to be one of a page of this origin: unlike the protection of all, it wants to
// hear so.
func sameOrigin(r *http.Request) bool {
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" {
		return site == "same-origin"
	}
	u, err := url.Parse(r.Header.Get("Origin"))
	return err == nil && u.Host != "" && strings.EqualFold(u.Host, r.Host)
}

// status is the HTTP status of an error of package ops.
func status(err error) int {
	switch {
	case errors.Is(err, ops.ErrInvalid):
		return http.StatusBadRequest
	case errors.Is(err, ops.ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, ops.ErrConflict):
		return http.StatusConflict
	case errors.Is(err, ops.ErrForbidden):
		return http.StatusForbidden
	case errors.Is(err, ops.ErrDatabase), errors.Is(err, context.DeadlineExceeded):
		return http.StatusServiceUnavailable
	}
	return http.StatusBadGateway
}

// refused is an error with a status of its own.
type refused struct {
	status int
	says   string
}

func (e refused) Error() string { return e.says }

func badRequest(format string, args ...any) error {
	return refused{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}
