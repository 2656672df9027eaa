package outbox

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// pageToken is what "next" holds: where the next page begins, and what it must fit.
type pageToken struct {
	Topic    string `json:"t"`
	After    string `json:"a"`
	Cursor   string `json:"c,omitempty"` // VersionedPages: where the first page stood
	Epoch    string `json:"e,omitempty"`
	Snapshot string `json:"s,omitempty"` // HeldPages: the exported snapshot
}

func (t pageToken) String() string {
	b, _ := json.Marshal(t) // strings only
	return base64.RawURLEncoding.EncodeToString(b)
}

// snapshotName is the form of what pg_export_snapshot returns. SET TRANSACTION SNAPSHOT takes no placeholder.
var snapshotName = regexp.MustCompile(`^[0-9A-F]{8}-[0-9A-F]{8}-[0-9]{1,10}$`)

func parsePage(s, topic string, pages Pages) (t pageToken, err error) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil {
		err = json.Unmarshal(b, &t)
	}
	_, _, isCursor := parseCursor(t.Cursor)
	if err != nil || t.Topic != topic || !validText(t.After) || pages == VersionedPages && !isCursor || pages == HeldPages && !snapshotName.MatchString(t.Snapshot) {
		return t, badRequest("page is not what the page before named as next")
	}
	return t, nil
}

func pagesEnded(detail string) *Problem {
	return &Problem{Type: ProblemPages, Title: "The pages have ended", Status: http.StatusGone, Detail: detail + "; begin again with the first page"}
}

// page is one page of a state.
type page struct {
	state    any
	position Position
	next     string
}

// versioned reads one page in a snapshot of its own.
func (v *View) versioned(ctx context.Context, r *http.Request, topic string, token *pageToken) (p page, err error) {
	var after string
	if token != nil {
		after = token.After
	}
	var last string
	positions, err := Snapshot(ctx, v.db, []string{topic}, func(tx pgx.Tx) (err error) {
		p.state, last, err = v.cfg.Page(r, tx, after)
		return err
	})
	if err != nil {
		return p, err
	}
	p.position = positions[0]
	p.position.Pending = []int64{} // they come again, and versions make that harmless
	if token != nil {
		// What comes after the first page's cursor is all the client will see: this page must hold everything before.
		_, begun, _ := parseCursor(token.Cursor)
		_, head, _ := parseCursor(p.position.Cursor)
		switch {
		case p.position.Epoch != token.Epoch:
			return p, pagesEnded("the database is in another epoch")
		case head < begun:
			return p, unavailable(ProblemBehind, "The replica is behind", "this page would be older than the first one")
		}
		p.position.Cursor = token.Cursor
	}
	if last != "" {
		p.next = pageToken{Topic: topic, After: last, Cursor: p.position.Cursor, Epoch: p.position.Epoch}.String()
	}
	return p, nil
}

// heldPage reads one page in the snapshot of the first one.
func (v *View) heldPage(ctx context.Context, r *http.Request, topic string, token *pageToken) (p page, err error) {
	if token != nil {
		return v.nextHeldPage(ctx, r, topic, *token)
	}
	if !v.held.reserve() {
		return p, unavailable(ProblemBehind, "Too many readers of pages", "as many snapshots are held open as may be")
	}
	keep := false
	defer func() {
		if !keep {
			v.held.unreserve()
		}
	}()
	err = waitEpoch(ctx, func() error {
		tx, err := v.db.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
		if err != nil {
			return fmt.Errorf("outbox: pages: beginning the transaction: %w", err)
		}
		defer func() {
			if !keep {
				rollback(ctx, tx)
			}
		}()
		var last string
		if p, last, err = v.readPage(ctx, r, topic, tx, ""); err != nil || last == "" {
			return err
		}
		var name string
		if err := tx.QueryRow(ctx, `SELECT pg_export_snapshot()`).Scan(&name); err != nil {
			return fmt.Errorf("outbox: pages: exporting the snapshot: %w", err)
		}
		p.next = pageToken{Topic: topic, After: last, Snapshot: name}.String()
		keep = v.held.keep(name, tx)
		return nil
	})
	return p, err
}

func (v *View) nextHeldPage(ctx context.Context, r *http.Request, topic string, token pageToken) (p page, err error) {
	tx, err := v.db.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return p, fmt.Errorf("outbox: pages: beginning the transaction: %w", err)
	}
	defer rollback(ctx, tx)
	if _, err := tx.Exec(ctx, `SET TRANSACTION SNAPSHOT '`+token.Snapshot+`'`); err != nil {
		if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) && !lostDatabase(err) {
			return p, pagesEnded("their snapshot is no longer held")
		}
		return p, fmt.Errorf("outbox: pages: importing the snapshot: %w", err)
	}
	p, last, err := v.readPage(ctx, r, topic, tx, token.After)
	if err != nil {
		return p, err
	}
	if last == "" {
		v.held.release(token.Snapshot)
		return p, nil
	}
	token.After = last
	p.next = token.String()
	return p, nil
}

// readPage reads a page and the position in the same snapshot.
func (v *View) readPage(ctx context.Context, r *http.Request, topic string, tx pgx.Tx, after string) (p page, last string, err error) {
	positions, err := readPositions(ctx, tx, []string{topic})
	if err != nil {
		return p, "", err
	}
	p.position = positions[0]
	p.state, last, err = v.cfg.Page(r, tx, after)
	return p, last, err
}

// holder keeps transactions open whose snapshots are exported.
type holder struct {
	mu     sync.Mutex
	count  int // reserved and open ones
	open   map[string]*heldTx
	closed bool
}

type heldTx struct {
	tx    pgx.Tx
	timer *time.Timer
}

func newHolder() *holder { return &holder{open: map[string]*heldTx{}} }

// reserve takes one of MaxHeldPages places.
func (h *holder) reserve() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || h.count >= MaxHeldPages {
		return false
	}
	h.count++
	return true
}

func (h *holder) unreserve() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.count--
}

// keep holds a transaction until release, close or HeldPagesFor. False: the holder is closed, and the transaction is the
// caller's.
func (h *holder) keep(name string, tx pgx.Tx) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.open[name] = &heldTx{tx, time.AfterFunc(HeldPagesFor, func() { h.release(name) })}
	return true
}

// release ends a transaction, if it is held here.
func (h *holder) release(name string) {
	h.mu.Lock()
	held := h.open[name]
	if held == nil {
		h.mu.Unlock()
		return
	}
	delete(h.open, name)
	h.count--
	h.mu.Unlock()
	held.timer.Stop()
	rollback(context.Background(), held.tx)
}

func (h *holder) close() {
	h.mu.Lock()
	h.closed = true
	names := make([]string, 0, len(h.open))
	for name := range h.open {
		names = append(names, name)
	}
	h.mu.Unlock()
	for _, name := range names {
		h.release(name)
	}
}

// etagMatches says whether an If-None-Match has the tag, by weak comparison (RFC 9110, 13.1.2).
func etagMatches(header, tag string) bool {
	if strings.TrimSpace(header) == "*" {
		return false // the state may exist, but which one the client has it does not say
	}
	for one := range strings.SplitSeq(header, ",") {
		if strings.TrimPrefix(strings.TrimSpace(one), "W/") == strings.TrimPrefix(tag, "W/") {
			return true
		}
	}
	return false
}
