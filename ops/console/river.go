package console

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"riverqueue.com/riverui"

	"github.com/commitcast/commitcast/migrations"
)

// riverPrefix is the path below which River's own interface is.
const riverPrefix = "/console/river"

// riverPolicy is for its pages, which are made of its own scripts, and write styles into them.
var riverPolicy = strings.Replace(policy, "style-src 'self'", "style-src 'self' 'unsafe-inline'", 1)

// newRiver is River's interface, on a client that works on nothing.
func newRiver(pool *pgxpool.Pool, log *slog.Logger) (*riverui.Handler, error) {
	client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{Schema: migrations.RiverSchema, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, fmt.Errorf("river: %w", err)
	}
	// It says at warning and above what it says for each question while the database is away; pages say that once.
	h, err := riverui.NewHandler(&riverui.HandlerOpts{Endpoints: riverui.NewEndpoints(client, nil), Logger: slog.New(slog.DiscardHandler), Prefix: riverPrefix})
	if err != nil {
		return nil, fmt.Errorf("river's interface: %w", err)
	}
	return h, nil
}

// startRiver starts what counts jobs for it; it ends with ctx.
func (s *Server) startRiver(ctx context.Context) error {
	if err := s.river.Start(ctx); err != nil {
		return fmt.Errorf("river's interface: %w", err)
	}
	return nil
}

// jobs is River's interface, for a session. It knows nothing of ours: what changes something is held here to come from a page of
// this origin, to a role that may, and to the record.
func (s *Server) jobs(w http.ResponseWriter, r *http.Request) {
	v := s.session(r)
	if v == nil {
		if strings.HasPrefix(r.URL.Path, riverPrefix+"/api/") {
			fail(w, refused{http.StatusUnauthorized, "the session is over: log in"})
		} else {
			http.Redirect(w, r, Prefix+"login", http.StatusSeeOther)
		}
		return
	}
	w.Header().Set("Content-Security-Policy", riverPolicy)
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		s.river.ServeHTTP(w, r)
		return
	}
	if !sameOrigin(r) {
		fail(w, refused{http.StatusForbidden, "this order does not come from a page of the console"})
		return
	}
	c := s.ops.As(v.who, "")
	may, err := c.May(r.Context())
	if err == nil && !may.Jobs {
		err = refused{http.StatusForbidden, "this console's role may not change River's jobs: that takes commitcast_worker beside commitcast_operator"}
	}
	if err != nil {
		fail(w, err)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		fail(w, refused{http.StatusRequestEntityTooLarge, "the order is too large, or broke off"})
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	answer := &answered{ResponseWriter: w, status: http.StatusOK}
	err = c.Recorded(r.Context(), "river", r.Method+" "+strings.TrimPrefix(r.URL.Path, riverPrefix), map[string]string{"order": string(body)}, func() (string, error) {
		s.river.ServeHTTP(answer, r)
		if answer.status >= 400 {
			return "", fmt.Errorf("it answers %d", answer.status)
		}
		return "done", nil
	})
	if err != nil && !answer.begun {
		fail(w, err)
	}
}

// answered notes how a request was answered.
type answered struct {
	http.ResponseWriter
	status int
	begun  bool
}

func (a *answered) WriteHeader(status int) {
	a.status, a.begun = status, true
	a.ResponseWriter.WriteHeader(status)
}

func (a *answered) Write(p []byte) (int, error) {
	a.begun = true
	return a.ResponseWriter.Write(p)
}
