package outbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// Database is a *pgxpool.Pool or a *pgx.Conn, of the primary or of a replica.
type Database interface {
	Beginner
	querier
}

type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// View is a kind of thing that screens follow, such as a market: which topic it has, and how its state is read. It serves
// snapshots ([View.SnapshotHandler]) and digests ([View.DigestHandler]) of it, and gives an [Action] the fresh state for
// a refusal. Make one with [NewView]. Safe for concurrent use.
type View struct {
	db   Database
	cfg  ViewConfig
	held *holder
}

// ViewConfig says what a View is. Topic and State are required.
type ViewConfig struct {
	// Topic names the topic that a request is about, for example "market:" + r.PathValue("id"). This is the place to
	// look whether the caller may see it, too. A *Problem is answered as it is.
	Topic func(r *http.Request) (string, error)

	// State reads the state in the transaction of the snapshot, which is REPEATABLE READ and READ ONLY. It becomes the
	// member "state", through encoding/json. A *Problem is answered as it is, for example a 404. For the fresh state
	// after a refusal, r is the request of the Action.
	State func(r *http.Request, tx pgx.Tx) (any, error)

	// Page is State for a view that is read in pages; then Pages is required, and State is not. after is "" for the
	// first page, and otherwise what the page before returned as next; next is "" on the last page. Pages must follow
	// a key that does not change (ORDER BY id, WHERE id > after), never an OFFSET.
	Page func(r *http.Request, tx pgx.Tx, after string) (state any, next string, err error)

	// Pages says why pages fit together. Default NoPages: nothing says so, and Page is refused.
	Pages Pages

	// Digest says how the rows behind the state are digested; see Digest. With it, an unchanged state costs one read:
	// If-None-Match is answered 304 before anything else is read. Without it, there is no DigestHandler, and a
	// snapshot's ETag is a hash of its bytes. nil: none.
	Digest func(r *http.Request) (DigestQuery, error)

	// Shape goes into each ETag. Change it when the JSON of the state changes its shape, so that nobody is told that
	// what it kept in the old one is still right.
	Shape string

	// Timeout bounds one request. Default 10 s.
	Timeout time.Duration

	// Logger receives the errors that clients are not told. Default slog.Default().
	Logger *slog.Logger
}

// Pages says why the pages of a snapshot fit together with each other and with the events that follow.
type Pages int

const (
	// NoPages: a state is read at once.
	NoPages Pages = iota

	// VersionedPages: every row carries a version that its events carry, too, and the client keeps the newer one. Each
	// page is a snapshot of its own. All of them name the cursor of the first page and no pending ids, so the client
	// follows from there and is shown events again that later pages hold already; versions make that harmless. A client
	// that adds up changes would count them twice: such a view needs HeldPages.
	VersionedPages

	// HeldPages: all pages are read in one snapshot of the database, which is exported (pg_export_snapshot) and held
	// open, by one connection, until the last page or for HeldPagesFor. Exact for any kind of event. A client that
	// comes later than that gets 410 and begins again. At most MaxHeldPages are held at once; then 503. Needs a
	// *pgxpool.Pool. Other nodes may serve the next page if they use the same server.
	HeldPages
)

// NewView checks a ViewConfig. An unchanged poll and a snapshot may be read from a replica; the view of an Action must
// have the primary, so that a fresh state is not older than the decision.
func NewView(db Database, cfg ViewConfig) (*View, error) {
	switch {
	case db == nil || cfg.Topic == nil:
		return nil, errors.New("outbox: NewView needs a database and ViewConfig.Topic")
	case (cfg.State == nil) == (cfg.Page == nil):
		return nil, errors.New("outbox: ViewConfig needs either State or Page")
	case cfg.Page != nil && cfg.Pages == NoPages:
		return nil, errors.New("outbox: ViewConfig.Page without Pages: pages that are read at different times fit together " +
			"only if rows carry versions (VersionedPages) or one transaction is held (HeldPages)")
	case cfg.Page == nil && cfg.Pages != NoPages:
		return nil, errors.New("outbox: ViewConfig.Pages needs Page")
	case cfg.Page != nil && cfg.Digest != nil:
		return nil, errors.New("outbox: ViewConfig.Digest is for a state that is read at once")
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = requestTimeout
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &View{db: db, cfg: cfg, held: newHolder()}, nil
}

// Close ends the transactions that are held for pages. Call it before closing the pool of a view with HeldPages.
func (v *View) Close() { v.held.close() }

// SnapshotHandler answers GET and HEAD with the state and where it stands, read in one transaction:
//
//	{"state": …, "cursor": "3-7d0a41c2:1041", "pending": [], "epoch": "3-7d0a41c2"}
//
// and, for a view in pages, "pages" ("versioned" or "held") and "next", to be given as the parameter page; the last page
// has none. ETag and If-None-Match work as in RFC 9110; "Cache-Control: private, no-cache" lets a browser keep it and
// obliges it to ask. Answers apart from 200 and 304 are Problems: 503 with Retry-After for [ErrTooManyPending],
// [ErrEpochPending] and a database that does not answer; 410 for pages that have ended; what Topic and State return.
func (v *View) SnapshotHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { v.serve(w, r, v.serveSnapshot) })
}

// DigestHandler answers GET and HEAD with the digest of the state, or 304 if it is that of If-None-Match:
//
//	{"cursor": "3-7d0a41c2:1041", "rows": 12, "modified": "2025-06-01T12:00:00Z", "digest": "9f0c…"}
//
// It costs one statement. "digest" is the hash of DigestQuery, if it has one. While an event of the topic waits to be sequenced the rows
// are newer than the cursor, and nothing can be said; it waits a moment for that to pass, then answers 503.
func (v *View) DigestHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { v.serve(w, r, v.serveDigest) })
}

// serve is what both handlers have in common.
func (v *View) serve(w http.ResponseWriter, r *http.Request, answer func(w http.ResponseWriter, r *http.Request, topic string) error) {
	ctx, cancel := context.WithTimeout(r.Context(), v.cfg.Timeout)
	defer cancel()
	r = r.WithContext(ctx)
	err := func() error {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			return &Problem{Status: http.StatusMethodNotAllowed}
		}
		topic, err := v.cfg.Topic(r)
		if err != nil {
			return err
		}
		if !validTopic(topic) {
			return fmt.Errorf("outbox: ViewConfig.Topic: %w", badTopic(topic))
		}
		return answer(w, r, topic)
	}()
	if err != nil {
		answerProblem(w, r, v.cfg.Logger, err)
	}
}

// answerProblem answers with an error, and logs it if it is the server's own.
func answerProblem(w http.ResponseWriter, r *http.Request, log *slog.Logger, err error) {
	p, ours := ProblemOf(err)
	if ours && !errors.Is(r.Context().Err(), context.Canceled) {
		log.WarnContext(r.Context(), "request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	p.ServeHTTP(w, r)
}

// snapshotBody is the JSON of a snapshot. The order of its members: what people look for first.
type snapshotBody struct {
	State any `json:"state"`
	Position
	Pages string `json:"pages,omitempty"`
	Next  string `json:"next,omitempty"`
}

func (v *View) serveSnapshot(w http.ResponseWriter, r *http.Request, topic string) error {
	if v.cfg.Page != nil {
		return v.servePage(w, r, topic)
	}
	if r.URL.Query().Has("page") {
		return badRequest("this snapshot has no pages")
	}
	seen := r.Header.Get("If-None-Match")
	var query DigestQuery
	if v.cfg.Digest != nil {
		var err error
		if query, err = v.cfg.Digest(r); err != nil {
			return err
		}
		if seen != "" {
			d, err := ReadDigest(r.Context(), v.db, topic, query)
			if err != nil {
				return err
			}
			if tag := d.snapshotTag(v.cfg.Shape); etagMatches(seen, tag) {
				notModified(w, tag)
				return nil
			}
		}
	}
	var body snapshotBody
	var tag string
	positions, err := Snapshot(r.Context(), v.db, []string{topic}, func(tx pgx.Tx) (err error) {
		if v.cfg.Digest != nil {
			d, err := readDigest(r.Context(), tx, topic, query)
			if err != nil {
				return err
			}
			tag = d.snapshotTag(v.cfg.Shape)
		}
		body.State, err = v.cfg.State(r, tx)
		return err
	})
	if err != nil {
		return err
	}
	body.Position = positions[0]
	return v.answer(w, seen, tag, body)
}

func (v *View) servePage(w http.ResponseWriter, r *http.Request, topic string) error {
	var token *pageToken
	if given := r.URL.Query().Get("page"); given != "" {
		t, err := parsePage(given, topic, v.cfg.Pages)
		if err != nil {
			return err
		}
		token = &t
	}
	read, name := v.versioned, "versioned"
	if v.cfg.Pages == HeldPages {
		read, name = v.heldPage, "held"
	}
	p, err := read(r.Context(), r, topic, token)
	if err != nil {
		return err
	}
	return v.answer(w, r.Header.Get("If-None-Match"), "", snapshotBody{State: p.state, Position: p.position, Pages: name, Next: p.next})
}

func (v *View) serveDigest(w http.ResponseWriter, r *http.Request, topic string) error {
	if v.cfg.Digest == nil {
		return &Problem{Status: http.StatusNotFound, Detail: "this view has no digest"}
	}
	query, err := v.cfg.Digest(r)
	if err != nil {
		return err
	}
	d, err := v.settledDigest(r.Context(), topic, query)
	if err != nil {
		return err
	}
	body := struct {
		Cursor   string     `json:"cursor"`
		Rows     int64      `json:"rows"`
		Modified *time.Time `json:"modified,omitempty"`
		Digest   string     `json:"digest,omitempty"`
	}{Cursor: d.Cursor, Rows: d.Rows, Digest: d.Hash}
	if !d.Modified.IsZero() {
		utc := d.Modified.UTC()
		body.Modified = &utc
	}
	return v.answer(w, r.Header.Get("If-None-Match"), d.tag(v.cfg.Shape), body)
}

// settledDigest reads a digest that has nothing pending.
func (v *View) settledDigest(ctx context.Context, topic string, q DigestQuery) (Digest, error) {
	deadline := time.Now().Add(digestSettle)
	for wait := 5 * time.Millisecond; ; wait *= 2 {
		d, err := ReadDigest(ctx, v.db, topic, q)
		switch {
		case err != nil || len(d.Pending) == 0:
			return d, err
		case time.Now().After(deadline):
			return d, unavailable(ProblemBehind, "Events wait to be sequenced", "the rows are newer than the cursor: nothing can be said now")
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return d, ctx.Err()
		}
	}
}

// answer sends JSON with an ETag, "" meaning a hash of the bytes, or 304.
func (v *View) answer(w http.ResponseWriter, seen, tag string, body any) error {
	text, err := marshal(body)
	if err != nil {
		return fmt.Errorf("outbox: encoding the answer: %w", err)
	}
	if tag == "" {
		tag = etag(v.cfg.Shape, text)
	}
	if seen != "" && etagMatches(seen, tag) {
		notModified(w, tag)
		return nil
	}
	cacheHeaders(w, tag)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	_, _ = io.WriteString(w, text) // the client may be gone
	return nil
}

func notModified(w http.ResponseWriter, tag string) {
	cacheHeaders(w, tag)
	w.WriteHeader(http.StatusNotModified)
}

// cacheHeaders: nobody but the client itself may keep it, not for another user of the same browser, and not without
// asking.
func cacheHeaders(w http.ResponseWriter, tag string) {
	h := w.Header()
	h.Set("Cache-Control", "private, no-cache")
	h.Add("Vary", "Authorization, Cookie")
	h.Set("ETag", tag)
}

// fresh is the snapshot that goes with a refusal. It begins after the decision was made, on the database that made it.
func (v *View) fresh(r *http.Request, db Beginner) (body snapshotBody, err error) {
	topic, err := v.cfg.Topic(r)
	if err != nil {
		return body, err
	}
	positions, err := Snapshot(r.Context(), db, []string{topic}, func(tx pgx.Tx) (err error) {
		body.State, err = v.cfg.State(r, tx)
		return err
	})
	if err != nil {
		return body, err
	}
	body.Position = positions[0]
	return body, nil
}
