package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/client/ts"
	"github.com/commitcast/commitcast/cmd/demo/lmsr"
	"github.com/commitcast/commitcast/outbox"
)

//go:embed web
var web embed.FS

// Limits of the HTTP face.
const (
	// maxBody is far more than an order needs.
	maxBody = 4 << 10
	// requestTimeout bounds how long a request may wait for the database; people have given up before.
	requestTimeout = 5 * time.Second
	// maxPeople bounds how many traders visitors can make, and so the size of the table.
	maxPeople = 5000
	// personDeposit is what a new trader starts with.
	personDeposit = 1000 * lmsr.Unit
	// cookieName names the cookie that says who trades.
	cookieName = "commitcast_demo"
)

// securityHeaders are on every answer. The page loads nothing from elsewhere and runs nothing inline.
var securityHeaders = map[string]string{
	"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
		"manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
	"X-Content-Type-Options":     "nosniff",
	"Referrer-Policy":            "no-referrer",
	"Cross-Origin-Opener-Policy": "same-origin",
	"Permissions-Policy":         "camera=(), microphone=(), geolocation=()",
}

// server is the demo's HTTP face.
type server struct {
	x        *exchange
	fleet    *fleet
	pipe     *pipeline
	tabs     *tabs
	controls bool // whether the page may break things
	log      *slog.Logger
	market   *outbox.View   // of one market, with what the caller holds in it
	trade    *outbox.Action // of one order
}

// newServer makes the handlers of what screens follow and do; the rest is functions below.
func newServer(s server) (*server, error) {
	var err error
	if s.market, err = outbox.NewView(s.x.pool, outbox.ViewConfig{
		Topic: marketTopic, State: s.readMarket, Timeout: requestTimeout, Logger: s.log,
	}); err != nil {
		return nil, err
	}
	fresh, err := outbox.NewView(s.x.pool, outbox.ViewConfig{Topic: marketTopic, State: s.readFresh, Logger: s.log})
	if err != nil {
		return nil, err
	}
	s.trade, err = outbox.NewAction(s.x.pool, outbox.ActionConfig{
		Caller: s.caller, Do: s.doTrade, View: fresh, RequireKey: true, MaxBody: maxBody, Timeout: requestTimeout, Logger: s.log,
	})
	return &s, err
}

// handler is the whole mux: the page, its API, and the broadcaster at /v1/ws, all of one origin.
func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	files, err := fs.Sub(web, "web")
	if err != nil {
		panic(err) // the folder is embedded
	}
	mux.Handle("GET /", noCache(http.FileServerFS(files)))
	mux.Handle("GET /commitcast.js", noCache(http.HandlerFunc(getClient)))
	mux.Handle("POST /api/session", s.api(s.postSession))
	mux.Handle("GET /api/markets", s.api(s.getMarkets))
	mux.Handle("GET /api/markets/{id}", s.market.SnapshotHandler())
	mux.Handle("POST /api/markets/{id}/trades", s.trade)
	mux.Handle("GET /api/check", s.api(s.getCheck))
	mux.Handle("GET /api/status", s.api(s.getStatus))
	mux.Handle("POST /api/bots", s.api(s.control(s.postBots)))
	mux.Handle("POST /api/chaos/cut", s.api(s.control(s.postCut)))
	mux.Handle("POST /api/chaos/flush", s.api(s.control(s.postFlush)))
	mux.Handle("POST /api/chaos/worker", s.api(s.control(s.postWorker)))
	mux.Handle("GET /v1/ws", s.tabs.watch(s.pipe.handler()))

	guarded := http.NewCrossOriginProtection().Handler(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, value := range securityHeaders {
			w.Header().Set(name, value)
		}
		guarded.ServeHTTP(w, r)
	})
}

// noCache makes browsers ask again: the page changes with the binary.
func noCache(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-cache")
		next.ServeHTTP(w, r)
	})
}

// getClient serves the TypeScript client, as its package has it.
func getClient(w http.ResponseWriter, r *http.Request) {
	http.ServeContent(w, r, "commitcast.js", time.Time{}, bytes.NewReader(ts.JS))
}

// api turns a function that returns an answer or an error into a handler.
func (s *server) api(f func(w http.ResponseWriter, r *http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
		w.Header().Set("Cache-Control", "no-store")
		r = r.WithContext(ctx)
		answer, err := f(w, r)
		if err != nil {
			writeProblem(w, r, s.log, err)
			return
		}
		body, err := json.Marshal(answer)
		if err != nil {
			writeProblem(w, r, s.log, fmt.Errorf("encoding the answer: %w", err))
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(body) // the client may be gone
	})
}

// control refuses when the page may not break things.
func (s *server) control(f func(http.ResponseWriter, *http.Request) (any, error)) func(http.ResponseWriter, *http.Request) (any, error) {
	return func(w http.ResponseWriter, r *http.Request) (any, error) {
		if !s.controls {
			return nil, newProblem(http.StatusForbidden, "controls-off", "Controls are off", "this demo runs with --no-controls")
		}
		return f(w, r)
	}
}

// decode reads a JSON body: one object, known fields only.
func decode(r *http.Request, into any) error {
	if media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); media != "application/json" {
		return newProblem(http.StatusUnsupportedMediaType, "media-type", "JSON only", "send Content-Type: application/json")
	}
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return newProblem(http.StatusRequestEntityTooLarge, "too-large", "The request is too large",
			fmt.Sprintf("at most %d bytes", maxBody))
	}
	if err != nil {
		return badRequest("the body broke off")
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return badRequest(err.Error())
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return badRequest("more than one JSON value")
	}
	return nil
}

// trader is who sent the request: the id behind the cookie. It returns errUnknownTrader if there is none.
func trader(r *http.Request, db interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}) (id int64, name string, err error) {
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return 0, "", errUnknownTrader
	}
	hash := sha256.Sum256([]byte(cookie.Value))
	err = db.QueryRow(r.Context(), `SELECT id, name FROM demo.trader WHERE secret = $1`, hash[:]).Scan(&id, &name)
	if err = wrapNoRows(err, errUnknownTrader); err != nil && !errors.Is(err, errUnknownTrader) {
		err = fmt.Errorf("looking up the trader: %w", err)
	}
	return id, name, err
}

// caller is whose Idempotency-Key it is.
func (s *server) caller(r *http.Request) (string, error) {
	id, _, err := trader(r, s.x.pool)
	return strconv.FormatInt(id, 10), explained(err)
}

// session is who trades in this browser.
type session struct {
	Trader  int64  `json:"trader"`
	Name    string `json:"name"`
	Deposit int64  `json:"deposit"`
}

// postSession returns the browser's trader, and makes one for a new visitor.
func (s *server) postSession(w http.ResponseWriter, r *http.Request) (any, error) {
	id, name, err := trader(r, s.x.pool)
	if err == nil {
		return session{id, name, personDeposit}, nil
	}
	if !errors.Is(err, errUnknownTrader) {
		return nil, err
	}
	secret := make([]byte, 24)
	_, _ = rand.Read(secret) // never fails
	value := base64.RawURLEncoding.EncodeToString(secret)
	hash := sha256.Sum256([]byte(value))
	name = fmt.Sprintf("guest-%03d", int(hash[0])<<2|int(hash[1])>>6)
	err = s.x.pool.QueryRow(r.Context(), `
		INSERT INTO demo.trader (name, bot, secret, deposit, balance)
		SELECT $1, false, $2, $3, $3 WHERE (SELECT count(*) FROM demo.trader WHERE NOT bot) < $4
		RETURNING id`, name, hash[:], int64(personDeposit), maxPeople).Scan(&id)
	if wrapNoRows(err, nil) == nil && err != nil {
		return nil, newProblem(http.StatusServiceUnavailable, "full", "The exchange is full",
			"this demo has as many traders as it takes; start it anew")
	}
	if err != nil {
		return nil, fmt.Errorf("making a trader: %w", err)
	}
	http.SetCookie(w, &http.Cookie{
		Name: cookieName, Value: value, Path: "/", MaxAge: 30 * 24 * 3600, HttpOnly: true, SameSite: http.SameSiteStrictMode,
	})
	return session{id, name, personDeposit}, nil
}

// getMarkets names the markets, in the order in which they are shown. Each is a snapshot of its own.
func (s *server) getMarkets(http.ResponseWriter, *http.Request) (any, error) { return marketIDs(), nil }

// marketTopic is the topic of the market in the path.
func marketTopic(r *http.Request) (string, error) {
	id := r.PathValue("id")
	if !slices.Contains(marketIDs(), id) {
		return "", explained(errUnknownMarket)
	}
	return topicOf(id), nil
}

// readMarket is the state of a market as the caller's screen shows it.
func (s *server) readMarket(r *http.Request, tx pgx.Tx) (any, error) { return s.readOne(r, tx, true) }

// readFresh is the same without the past, which no decision needs.
func (s *server) readFresh(r *http.Request, tx pgx.Tx) (any, error) { return s.readOne(r, tx, false) }

func (s *server) readOne(r *http.Request, tx pgx.Tx, past bool) (any, error) {
	id, _, err := trader(r, tx)
	if err != nil && !errors.Is(err, errUnknownTrader) {
		return nil, err
	}
	markets, err := readMarkets(r.Context(), tx, []string{r.PathValue("id")}, id, past)
	if err != nil {
		return nil, fmt.Errorf("reading the market: %w", err)
	}
	return markets[0], nil // marketTopic knows it
}

// getCheck is the figures alone, for comparison, with the server's clock.
func (s *server) getCheck(_ http.ResponseWriter, r *http.Request) (any, error) {
	id, _, err := trader(r, s.x.pool)
	if err != nil && !errors.Is(err, errUnknownTrader) {
		return nil, err
	}
	figures, err := s.x.Figures(r.Context(), id)
	return struct {
		Figures
		Now int64 `json:"now"` // microseconds since 1970
	}{figures, time.Now().UnixMicro()}, err
}

// orderRequest is the body of an order. Amounts and prices are integers, in millionths. What its author saw is in the
// header Commitcast-Saw: cursor;price, the price being that of the side.
type orderRequest struct {
	Side      string `json:"side"`      // yes or no
	Action    string `json:"action"`    // buy or sell
	Amount    int64  `json:"amount"`    // money when buying, shares when selling
	Tolerance int64  `json:"tolerance"` // how far the price may have moved against the author
}

// order is what a request asks for.
func (q *orderRequest) order(market string, trader int64, guard outbox.Guard) (o Order, err error) {
	o = Order{
		Market: market, Trader: trader, Sell: q.Action == "sell", Amount: q.Amount, Tolerance: q.Tolerance, Side: lmsr.Yes,
		Cursor: guard.Saw.Cursor,
	}
	if q.Side == "no" {
		o.Side = lmsr.No
	}
	o.Seen, err = strconv.ParseInt(guard.Saw.Value, 10, 64)
	switch {
	case guard.Saw.Cursor == "" || err != nil || o.Seen <= 0 || o.Seen >= lmsr.Unit:
		return o, badRequest(outbox.SawHeader + " must be cursor;price, the price between 0 and 1000000")
	case q.Side != "yes" && q.Side != "no":
		return o, badRequest(`side must be "yes" or "no"`)
	case q.Action != "buy" && q.Action != "sell":
		return o, badRequest(`action must be "buy" or "sell"`)
	case q.Amount <= 0 || q.Amount > lmsr.MaxAmount:
		return o, lmsr.ErrAmount
	case q.Tolerance < 0 || q.Tolerance > lmsr.Unit:
		return o, badRequest("tolerance must lie between 0 and 1000000")
	}
	return o, nil
}

// doTrade carries out an order, or refuses it with 409 and the fresh quote. It runs once for each Idempotency-Key.
func (s *server) doTrade(r *http.Request, tx *outbox.Transaction) (any, error) {
	topic, err := marketTopic(r)
	if err != nil {
		return nil, err
	}
	var q orderRequest
	if err := decode(r, &q); err != nil {
		return nil, err
	}
	guard, err := outbox.GuardOf(r, topic)
	if err != nil {
		return nil, err
	}
	id, _, err := trader(r, tx)
	if err != nil {
		return nil, explained(err)
	}
	order, err := q.order(r.PathValue("id"), id, guard)
	if err != nil {
		return nil, explained(err)
	}
	fill, err := trade(r.Context(), tx, order)
	return fill, explained(err)
}

// status is how the machinery stands.
type status struct {
	Stream   string       `json:"stream"` // redis or in-process
	Flush    string       `json:"flush"`  // why the stream cannot be flushed from here; "" if it can
	Worker   workerStatus `json:"worker"`
	Bots     botStatus    `json:"bots"`
	Controls bool         `json:"controls"`
}

type botStatus struct {
	Count   int     `json:"count"`
	Rate    float64 `json:"rate"`
	MaxRate float64 `json:"max_rate"`
	Trades  int64   `json:"trades"`
	Refused int64   `json:"refused"`
	Failed  int64   `json:"failed"`
}

func (s *server) getStatus(http.ResponseWriter, *http.Request) (any, error) {
	return s.status(), nil
}

func (s *server) status() status {
	return status{
		Stream: s.pipe.streamName(), Flush: s.pipe.flushBlocked(), Worker: s.pipe.workerStatus(), Controls: s.controls,
		Bots: botStatus{
			Count: len(s.fleet.bots), Rate: s.fleet.Rate(), MaxRate: maxRate, Trades: s.fleet.trades.Load(),
			Refused: s.fleet.refused.Load(), Failed: s.fleet.failed.Load(),
		},
	}
}

func (s *server) postBots(_ http.ResponseWriter, r *http.Request) (any, error) {
	var q struct {
		Rate *float64 `json:"rate"`
	}
	if err := decode(r, &q); err != nil {
		return nil, err
	}
	if q.Rate == nil || *q.Rate < 0 || *q.Rate > maxRate {
		return nil, badRequest(fmt.Sprintf("rate must lie between 0 and %d trades a second", maxRate))
	}
	s.fleet.SetRate(*q.Rate)
	return s.status(), nil
}

func (s *server) postCut(_ http.ResponseWriter, r *http.Request) (any, error) {
	var q struct {
		Tab string `json:"tab"`
	}
	if err := decode(r, &q); err != nil {
		return nil, err
	}
	if !s.tabs.cut(q.Tab) {
		return nil, newProblem(http.StatusNotFound, "unknown-tab", "No such connection", "this tab has no socket open")
	}
	return s.status(), nil
}

func (s *server) postFlush(_ http.ResponseWriter, r *http.Request) (any, error) {
	if err := decode(r, &struct{}{}); err != nil {
		return nil, err
	}
	if why := s.pipe.flushBlocked(); why != "" {
		return nil, newProblem(http.StatusForbidden, "flush", "The stream cannot be flushed from here", why)
	}
	if err := s.pipe.flush(r.Context()); err != nil {
		return nil, fmt.Errorf("flushing Redis: %w", err)
	}
	s.log.Info("Redis flushed from the page")
	return s.status(), nil
}

func (s *server) postWorker(_ http.ResponseWriter, r *http.Request) (any, error) {
	var q struct {
		Running *bool `json:"running"`
	}
	if err := decode(r, &q); err != nil {
		return nil, err
	}
	if q.Running == nil {
		return nil, badRequest(`"running" is missing`)
	}
	var err error
	if *q.Running {
		err = s.pipe.startWorker()
	} else {
		s.pipe.killWorker()
	}
	if err != nil {
		return nil, fmt.Errorf("changing the worker: %w", err)
	}
	return s.status(), nil
}
