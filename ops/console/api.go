package console

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/commitcast/commitcast/ops"
)

const (
	// fresh is how old a look may be that several tabs share; patience, how long a page waits for a newer one when somebody does not
	// answer: then it gets the last, and says how old it is.
	fresh, patience = time.Second, 1500 * time.Millisecond
	// answerWithin bounds a question of a page: nodes, Redis and Postgres may each take their time to say nothing.
	answerWithin = 20 * time.Second
	// actWithin bounds an action: a drain sends clients away slowly.
	actWithin = 3 * time.Minute
	// pageRows is how many rows a page of a list has.
	pageRows = 50
	// maxWhy is the longest reason, in bytes.
	maxWhy = 1000
)

// wantWhy are the actions that are not carried out without a reason.
var wantWhy = map[string]bool{ops.Pause: true, ops.Park: true, ops.Redrive: true, ops.GoFirst: true, ops.RedriveAll: true, ops.Discard: true, ops.BumpEpoch: true}

// api adds what pages ask and order.
func (s *Server) api(mux *http.ServeMux) {
	get := func(path string, f func(ctx context.Context, q query, v *session) (any, error)) {
		mux.HandleFunc("GET "+Prefix+"api/"+path, func(w http.ResponseWriter, r *http.Request) {
			v := s.session(r)
			if v == nil {
				fail(w, refused{http.StatusUnauthorized, "the session is over: log in"})
				return
			}
			ctx, cancel := context.WithTimeout(r.Context(), answerWithin)
			defer cancel()
			answer, err := f(ctx, query{r}, v)
			reply(w, answer, err)
		})
	}
	get("session", func(ctx context.Context, _ query, v *session) (any, error) {
		may, err := s.ops.May(ctx)
		problem := ""
		if err != nil {
			problem = err.Error()
		}
		return map[string]any{"who": v.who, "csrf": v.csrf, "may": may, "may_error": problem, "version": s.cfg.Version, "live": s.cfg.Live != nil}, nil
	})
	get("status", func(ctx context.Context, _ query, _ *session) (any, error) {
		look, err := s.watch.Look(ctx, fresh, patience)
		if err != nil {
			return nil, err
		}
		return newView(look), nil
	})
	get("topics", func(ctx context.Context, q query, _ *session) (any, error) {
		tq := ops.TopicsQuery{Prefix: q.text("prefix"), After: q.text("after"), Lag: q.number("lag"), Limit: pageRows + 1}
		look := s.ops.TopicsByName
		if q.text("order") == "lag" {
			look = s.ops.TopicsByLag
		}
		list, err := look(ctx, tq)
		return pageOf(list), err
	})
	get("topic", func(ctx context.Context, q query, _ *session) (any, error) { return s.ops.Topic(ctx, q.text("name")) })
	get("start", func(ctx context.Context, q query, _ *session) (any, error) {
		return s.ops.Retained(ctx, q.text("name"))
	})
	get("trace", func(ctx context.Context, q query, _ *session) (any, error) {
		return s.ops.Trace(ctx, q.text("name"), q.number("offset"), q.number("id"))
	})
	get("parked", func(ctx context.Context, q query, _ *session) (any, error) {
		list, err := s.ops.Parked(ctx, q.text("after"), pageRows+1)
		return pageOf(list), err
	})
	get("dead", func(ctx context.Context, q query, _ *session) (any, error) {
		dq := ops.DeadQuery{Topic: q.text("topic"), Limit: pageRows + 1}
		if after := q.number("after"); after > 0 {
			dq.After = &ops.DeadLetter{Topic: q.text("after_topic"), Offset: after}
			if dq.Topic == "" {
				at, err := time.Parse(time.RFC3339Nano, q.text("died"))
				if err != nil {
					return nil, badRequest("%q is not a time", q.text("died"))
				}
				dq.After.DiedAt = at
			}
		}
		list, err := s.ops.DeadLetters(ctx, dq)
		return pageOf(list), err
	})
	get("dead/letter", func(ctx context.Context, q query, _ *session) (any, error) {
		return s.ops.DeadHistory(ctx, q.text("topic"), q.number("offset"))
	})
	get("clients", func(ctx context.Context, q query, _ *session) (any, error) {
		if q.text("order") == "behind" {
			return s.ops.ClientsBehind(ctx, q.text("node"), pageRows)
		}
		return s.ops.Clients(ctx, q.text("node"), q.text("subject"), q.text("after"), pageRows+1)
	})
	get("audit", func(ctx context.Context, q query, _ *session) (any, error) {
		list, err := s.ops.Audit(ctx, q.number("before"), pageRows+1)
		return pageOf(list), err
	})
	get("epochs", func(ctx context.Context, q query, _ *session) (any, error) { return s.ops.Epochs(ctx, 20) })
	get("doctor", func(ctx context.Context, q query, _ *session) (any, error) {
		return s.ops.Doctor(ctx, ops.DoctorConfig{})
	})
	get("progress", func(ctx context.Context, q query, _ *session) (any, error) {
		r := &ops.Redriving{Topic: q.text("topic"), Record: q.number("record"), First: q.number("first"), Last: q.number("last"), Next: q.number("first")}
		now, ended, err := s.ops.Progress(ctx, r)
		if err != nil {
			return nil, err
		}
		done, all := now.Done()
		return map[string]any{"redriving": now, "done": done, "all": all, "ended": ended}, nil
	})
	mux.Handle("POST "+Prefix+"api/propose", s.ordered(s.propose))
	mux.Handle("POST "+Prefix+"api/carry", s.ordered(s.carry))
	mux.Handle("POST "+Prefix+"api/doctor", s.ordered(func(w http.ResponseWriter, r *http.Request, v *session) (any, error) {
		ctx, cancel := context.WithTimeout(r.Context(), actWithin)
		defer cancel()
		return s.ops.As(v.who, "").Doctor(ctx, ops.DoctorConfig{Event: true})
	}))
}

// ordered is a handler of what changes something: for a session, by a page of this origin, as JSON.
func (s *Server) ordered(f func(w http.ResponseWriter, r *http.Request, v *session) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v := s.session(r)
		media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
		switch {
		case v == nil:
			fail(w, refused{http.StatusUnauthorized, "the session is over: log in"})
		case !v.meant(r):
			fail(w, refused{http.StatusForbidden, "this order does not come from a page of the console; load it anew"})
		case media != "application/json":
			fail(w, refused{http.StatusUnsupportedMediaType, "orders are application/json"})
		default:
			http.NewResponseController(w).SetReadDeadline(time.Time{}) // an action may take longer than a request to arrive
			answer, err := f(w, r, v)
			reply(w, answer, err)
		}
	})
}

// propose says what an order would do.
func (s *Server) propose(w http.ResponseWriter, r *http.Request, v *session) (any, error) {
	var o ops.Order
	if err := decode(w, r, &o); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), answerWithin)
	defer cancel()
	c := s.ops.As(v.who, o.Why)
	may, err := c.May(ctx)
	if err != nil {
		return nil, err
	}
	if !may.Act {
		return nil, refused{http.StatusForbidden, "this console logs in to the database with a role that may look and not act; it needs commitcast_operator. Nothing was changed"}
	}
	p, err := c.Propose(ctx, o)
	if err != nil {
		return nil, err
	}
	return map[string]any{"id": v.keep(p, s.sessions.now()), "what": p.What, "plan": p.Plan, "want_why": wantWhy[o.Action]}, nil
}

// carry carries out what was proposed, once.
func (s *Server) carry(w http.ResponseWriter, r *http.Request, v *session) (any, error) {
	var order struct{ ID, Why string }
	if err := decode(w, r, &order); err != nil {
		return nil, err
	}
	order.Why = strings.TrimSpace(order.Why)
	if len(order.Why) > maxWhy || !utf8.ValidString(order.Why) || strings.ContainsRune(order.Why, 0) {
		return nil, badRequest("a reason is text of at most %d bytes; nothing was changed", maxWhy)
	}
	p := v.take(order.ID, s.sessions.now())
	if p == nil {
		return nil, refused{http.StatusConflict, "this was carried out already, or is too long ago: look again. Nothing was changed"}
	}
	if order.Why == "" && wantWhy[p.Action] {
		return nil, badRequest("say why: it is kept in the record. Nothing was changed")
	}
	p.Why = order.Why
	// It is carried through, even if the page goes away: what it began, it also records.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), actWithin)
	defer cancel()
	out, err := s.ops.As(v.who, p.Why).Carry(ctx, p)
	level, problem := s.cfg.Logger.Info, ""
	if err != nil {
		level, problem = s.cfg.Logger.Warn, err.Error()
	}
	level("an operator's order", "who", v.who, "action", p.Action, "what", p.What, "error", problem)
	if err != nil && out.Says != "" {
		return nil, errors.New(strings.TrimSpace(out.Says) + "\n" + err.Error())
	}
	return out, err
}

// query reads what is asked for.
type query struct{ r *http.Request }

func (q query) text(name string) string { return q.r.URL.Query().Get(name) }

// number is 0 for what is none.
func (q query) number(name string) int64 {
	n, _ := strconv.ParseInt(q.text(name), 10, 64)
	return n
}

// listPage is a page of a list.
type listPage[T any] struct {
	Rows []T  `json:"rows"`
	More bool `json:"more"`
}

// pageOf cuts off the one row that was asked for to see whether there are more.
func pageOf[T any](list []T) listPage[T] {
	if list == nil {
		list = []T{}
	}
	return listPage[T]{list[:min(len(list), pageRows)], len(list) > pageRows}
}

func decode(w http.ResponseWriter, r *http.Request, into any) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return refused{http.StatusRequestEntityTooLarge, "the order is too large, or broke off"}
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return badRequest("not an order: %v", err)
	}
	return nil
}

func reply(w http.ResponseWriter, answer any, err error) {
	if err != nil {
		fail(w, err)
		return
	}
	text, err := json.Marshal(answer)
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Write(text)
}

// fail says what is wrong.
func fail(w http.ResponseWriter, err error) {
	code := status(err)
	var own refused
	if errors.As(err, &own) {
		code = own.status
	}
	text, _ := json.Marshal(map[string]string{"error": err.Error()}) // of text
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	w.Write(text)
}
