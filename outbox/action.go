package outbox

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// KeyHeader is the request header with the operation's key: the same for each attempt of one intent.
	KeyHeader = "Idempotency-Key"
	// EventHeader is the answer's header with the ids of the events that were published, joined by commas.
	EventHeader = "Commitcast-Event"
	// RepeatedHeader is "true" on an answer that was given before.
	RepeatedHeader = "Commitcast-Repeated"
)

// Action is a kind of write over HTTP, an http.Handler: it runs a function of yours in a transaction, once for each
// Idempotency-Key, publishes its events, and answers. Make one with [NewAction].
//
// A request whose answer was lost is repeated with the same key, takes effect once, and gets the same answer: status,
// headers, body, Commitcast-Event, and Commitcast-Repeated besides. The same key with another request (method, path, query, body) is
// refused with 422. Two at once: the second waits for the first, and after some seconds gets 503 with Retry-After.
// Refusals are not recorded: what failed may be tried again with the same key.
//
// A [*StaleError] is answered with 409 and a body that is a Problem and a snapshot at once: "state", "cursor",
// "pending" and "epoch" beside "topic", "observed" and "current". It is read after the decision, from the primary, so it is not older.
// Other errors are answered as [ProblemOf] says.
type Action struct {
	db  *pgxpool.Pool
	cfg ActionConfig
}

// ActionConfig says what an Action does. Do and Caller are required.
type ActionConfig struct {
	// Caller names who asks, such as a user's id, by cookie or token: keys of different callers never meet, and no
	// caller is told another one's answer. A *Problem is answered as it is, for example a 401.
	Caller func(r *http.Request) (string, error)

	// Do carries the action out. It is called in a transaction (see Tx) and may be called again if that one failed to
	// commit; r.Body can be read anew each time. What it returns becomes the body, as JSON, with status 200; an
	// [Answer] says more. Guards are its business: see [GuardOf].
	Do func(r *http.Request, tx *Transaction) (any, error)

	// View reads the fresh state for a 409. Its Topic and State get the action's own request. It must have the
	// primary, and State, not Page. nil: a 409 carries none.
	View *View

	// RequireKey refuses requests without Idempotency-Key with 428. Otherwise they are carried out as they are.
	RequireKey bool

	// MaxBody is the largest request body, in bytes; larger ones get 413. Default 64 KiB.
	MaxBody int64

	// Timeout bounds one request. Default 10 s.
	Timeout time.Duration

	// Logger receives the errors that clients are not told. Default slog.Default().
	Logger *slog.Logger
}

// Answer is what Do returns to say more than 200 and a body.
type Answer struct {
	Status int
	// Header is sent and recorded: for example Location.
	Header http.Header
	Body   any
}

// NewAction checks an ActionConfig. db is a pool of the primary.
func NewAction(db *pgxpool.Pool, cfg ActionConfig) (*Action, error) {
	switch {
	case db == nil || cfg.Caller == nil || cfg.Do == nil:
		return nil, errors.New("outbox: NewAction needs a pool, ActionConfig.Caller and ActionConfig.Do")
	case cfg.View != nil && cfg.View.cfg.State == nil:
		return nil, errors.New("outbox: ActionConfig.View must have State: a refusal carries the whole state")
	}
	if cfg.MaxBody <= 0 {
		cfg.MaxBody = maxRequestBody
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = requestTimeout
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Action{db, cfg}, nil
}

func (a *Action) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), a.cfg.Timeout)
	defer cancel()
	r = r.WithContext(ctx)
	out, err := a.act(w, r)
	if err != nil {
		answerProblem(w, r, a.cfg.Logger, a.withFresh(r, err))
		return
	}
	h := w.Header()
	for name, values := range out.Result.Header {
		h[http.CanonicalHeaderKey(name)] = values
	}
	h.Set("Cache-Control", "no-store")
	if len(out.Events) > 0 {
		h.Set(EventHeader, joinIDs(out.Events[:min(len(out.Events), maxEventHeader)]))
	}
	if out.Repeated {
		h.Set(RepeatedHeader, "true")
	}
	if len(out.Result.Body) == 0 {
		w.WriteHeader(out.Result.Status)
		return
	}
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(out.Result.Body)))
	w.WriteHeader(out.Result.Status)
	_, _ = w.Write(out.Result.Body) // the client may be gone; it will repeat the request
}

// recorded is an answer as it is kept for repeats.
type recorded struct {
	Status int             `json:"status"`
	Header http.Header     `json:"header,omitempty"`
	Body   json.RawMessage `json:"body,omitempty"`
}

// act carries the request out, once for its key.
func (a *Action) act(w http.ResponseWriter, r *http.Request) (out Outcome[recorded], err error) {
	caller, err := a.cfg.Caller(r)
	if err != nil {
		return out, err
	}
	keys := r.Header.Values(KeyHeader)
	switch {
	case len(keys) == 0 && a.cfg.RequireKey:
		return out, needed("%s is missing: give each intent a key of its own", KeyHeader)
	case len(keys) > 1 || len(keys) == 1 && !validKey(keys[0]):
		return out, badRequest("%s must be one, of 1 to %d printable ASCII characters", KeyHeader, MaxOperationKey)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, a.cfg.MaxBody))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		p := badRequest("the body is larger than %d bytes", tooLarge.Limit)
		p.Status = http.StatusRequestEntityTooLarge
		return out, p
	} else if err != nil {
		return out, badRequest("the body did not arrive whole")
	}
	do := func(tx *Transaction) (recorded, error) {
		again := r.WithContext(r.Context())
		again.Body = io.NopCloser(bytes.NewReader(body))
		answer, err := a.cfg.Do(again, tx)
		if err != nil {
			return recorded{}, err
		}
		return keepable(answer)
	}
	if len(keys) == 0 {
		err = Tx(r.Context(), a.db, func(tx *Transaction) error {
			if out.Result, err = do(tx); err != nil {
				return err
			}
			out.Events = tx.returnAll()
			return nil
		})
		return out, err
	}
	op := Operation{Scope: caller, Key: keys[0], Fingerprint: fingerprint(r, body)}
	if err := op.check(); err != nil {
		return out, fmt.Errorf("outbox: ActionConfig.Caller: %w", err)
	}
	return Once(r.Context(), a.db, op, do)
}

// keepable makes what Do returned an answer that can be kept.
func keepable(v any) (rec recorded, err error) {
	answer, ok := v.(Answer)
	if p, isPointer := v.(*Answer); isPointer && p != nil {
		answer, ok = *p, true
	}
	if !ok {
		answer = Answer{Body: v}
	}
	rec.Header = answer.Header
	if answer.Body != nil {
		text, err := marshal(answer.Body)
		if err != nil {
			return rec, fmt.Errorf("outbox: encoding the answer: %w", err)
		}
		rec.Body = json.RawMessage(text)
	}
	switch rec.Status = answer.Status; {
	case rec.Status == 0 && answer.Body == nil:
		rec.Status = http.StatusNoContent
	case rec.Status == 0:
		rec.Status = http.StatusOK
	}
	return rec, nil
}

// withFresh adds the fresh state to a refusal. Without it there is no refusal to give: the client is to try again.
func (a *Action) withFresh(r *http.Request, err error) error {
	var stale *StaleError
	if !errors.As(err, &stale) || a.cfg.View == nil {
		return err
	}
	p, _ := ProblemOf(err)
	if p.Status != http.StatusConflict {
		return err
	}
	fresh, err := a.cfg.View.fresh(r, a.db)
	if err != nil {
		return fmt.Errorf("outbox: reading the fresh state: %w", err)
	}
	p.More["state"], p.More["cursor"], p.More["pending"], p.More["epoch"] = fresh.State, fresh.Cursor, fresh.Pending, fresh.Epoch
	return p
}

// fingerprint tells requests apart: what is asked, but not what its author saw, which may differ when it is repeated.
func fingerprint(r *http.Request, body []byte) []byte {
	hash := sha256.New()
	for _, part := range []string{r.Method, r.URL.Path, r.URL.RawQuery, r.Header.Get("Content-Type")} {
		fmt.Fprintf(hash, "%d %s\n", len(part), part)
	}
	hash.Write(body)
	return hash.Sum(nil)
}

func validKey(key string) bool {
	return key != "" && len(key) <= MaxOperationKey && !strings.ContainsFunc(key, func(r rune) bool { return r < ' ' || r > '~' })
}

// returnAll asks for the ids of all buffered events. They are there when Tx has returned nil.
func (t *Transaction) returnAll() []int64 {
	ids := make([]int64, len(t.buffer.rows))
	for i := range ids {
		t.returns = append(t.returns, idReturn{i, &ids[i]})
	}
	return ids
}

// joinIDs is a list of ids, as in "981,982".
func joinIDs(ids []int64) string {
	var b []byte
	for i, id := range ids {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, id, 10)
	}
	return string(b)
}
