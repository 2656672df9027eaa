package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// Problem is an answer of type application/problem+json (RFC 9457), and an error: what a function of yours returns as a
// Problem is answered as it is.
type Problem struct {
	// Type names the kind for programs. Those of this package begin with "urn:commitcast:problem:". "" means
	// about:blank: nothing but the status.
	Type string
	// Title says the kind in words, the same each time. "" means the text of the status.
	Title  string
	Status int
	// Detail says what was wrong this time. Clients see it.
	Detail string
	// RetryAfter, if above zero, is sent as Retry-After, in whole seconds, rounded up.
	RetryAfter time.Duration
	// More holds further members of the JSON object.
	More map[string]any
}

// The types of this package's problems.
const (
	ProblemStale      = "urn:commitcast:problem:stale"       // 409: what the author saw is no longer so; has the fresh snapshot
	ProblemBehind     = "urn:commitcast:problem:behind"      // 503: too many events wait to be sequenced
	ProblemEpoch      = "urn:commitcast:problem:epoch"       // 503: the database's new epoch has not begun
	ProblemUnknown    = "urn:commitcast:problem:unknown"     // 503: the outcome of COMMIT is not known; repeat with the same key
	ProblemBusy       = "urn:commitcast:problem:busy"        // 503: the same operation is under way
	ProblemReused     = "urn:commitcast:problem:reused"      // 422: the key belongs to another request
	ProblemBadRequest = "urn:commitcast:problem:bad-request" // 400, 413, 428: a header or parameter is wrong or missing
	ProblemPages      = "urn:commitcast:problem:pages"       // 410: the pages have ended; begin again with the first
)

func (p *Problem) Error() string {
	if p.Detail == "" {
		return p.title()
	}
	return p.title() + ": " + p.Detail
}

func (p *Problem) title() string {
	if p.Title == "" {
		return http.StatusText(p.Status)
	}
	return p.Title
}

// MarshalJSON writes the members and More in one object; More cannot replace the standard ones.
func (p *Problem) MarshalJSON() ([]byte, error) {
	m := maps.Clone(p.More)
	if m == nil {
		m = map[string]any{}
	}
	m["title"], m["status"] = p.title(), p.Status
	if p.Type != "" {
		m["type"] = p.Type
	}
	if p.Detail != "" {
		m["detail"] = p.Detail
	}
	return json.Marshal(m)
}

// ServeHTTP answers with the problem. Nothing caches it.
func (p *Problem) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	body, err := json.Marshal(p)
	if err != nil { // More holds what JSON cannot say
		body, _ = json.Marshal(&Problem{Status: p.Status, Type: p.Type, Title: p.Title, Detail: p.Detail})
	}
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Del("ETag")
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64((p.RetryAfter+time.Second-1)/time.Second), 10))
	}
	w.WriteHeader(p.Status)
	_, _ = w.Write(body) // the client may be gone
}

// ProblemOf is what a client is told about an error: the Problem in its chain, or one for an error of this package. Any
// other error is the server's own, and the client is told no more than 503 (the database did not answer, or not in
// time) or 500; ours is true then, and the caller logs err. A [*StaleError] becomes a 409 without a fresh state: an
// [Action] adds it.
func ProblemOf(err error) (p *Problem, ours bool) {
	var stale *StaleError
	switch {
	case errors.As(err, &p):
		return p, false
	case errors.As(err, &stale):
		return &Problem{Type: ProblemStale, Title: "Stale", Status: http.StatusConflict, Detail: stale.Error(),
			More: map[string]any{"topic": stale.Topic, "observed": stale.Observed, "current": stale.Current}}, false
	case errors.Is(err, ErrTooManyPending):
		return unavailable(ProblemBehind, "Too far behind", "too many events wait to be sequenced"), false
	case errors.Is(err, ErrEpochPending):
		return unavailable(ProblemEpoch, "The database has just restarted", "no worker has begun its new epoch yet"), false
	case errors.Is(err, ErrOperationBusy):
		return unavailable(ProblemBusy, "The same operation is under way", "repeat it with the same key"), false
	case errors.Is(err, ErrOperationReused):
		return &Problem{Type: ProblemReused, Title: "The key belongs to another request", Status: http.StatusUnprocessableEntity,
			Detail: "this Idempotency-Key was used for a different request; take a new one for each intent"}, false
	case errors.Is(err, ErrCommitUnknown):
		return unavailable(ProblemUnknown, "The outcome is not known", "the answer of the database was lost; repeat it with the same key"), true
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), lostDatabase(err):
		return unavailable("", "", "the database did not answer in time"), true
	}
	return &Problem{Status: http.StatusInternalServerError}, true
}

// lostDatabase reports whether the database, or the way to it, is in the way, and a later attempt may go through.
func lostDatabase(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch pg.Code[:min(2, len(pg.Code))] {
		case "08", "40", "53", "57": // connection, rollback such as a deadlock, resources, shutdown
			return true
		}
		return pg.Code == "55P03" // lock_not_available
	}
	var connect *pgconn.ConnectError
	var network net.Error
	return errors.As(err, &connect) || errors.As(err, &network) || errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF) || pgconn.SafeToRetry(err)
}

func unavailable(kind, title, detail string) *Problem {
	return &Problem{Type: kind, Title: title, Status: http.StatusServiceUnavailable, Detail: detail, RetryAfter: retryAfter}
}

func badRequest(format string, args ...any) *Problem {
	return &Problem{Type: ProblemBadRequest, Title: "The request cannot be served", Status: http.StatusBadRequest,
		Detail: fmt.Sprintf(format, args...)}
}
