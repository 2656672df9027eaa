package outbox_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/outbox"
)

// reply is an answer, read.
type reply struct {
	status int
	header http.Header
	text   string
	body   map[string]any
}

// ask serves one request. Headers are name, value, name, value …
func ask(h http.Handler, method, target, body string, headers ...string) reply {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	rep := reply{status: w.Code, header: w.Header(), text: w.Body.String()}
	dec := json.NewDecoder(bytes.NewReader(w.Body.Bytes()))
	dec.UseNumber()
	_ = dec.Decode(&rep.body)
	return rep
}

// is fails the test unless the answer is a Problem of a kind.
func (r reply) is(t *testing.T, status int, kind string) {
	t.Helper()
	if r.status != status || r.header.Get("Content-Type") != "application/problem+json" || r.header.Get("Cache-Control") != "no-store" ||
		kind != "" && r.body["type"] != kind || r.body["title"] == "" || fmt.Sprint(r.body["status"]) != strconv.Itoa(status) {
		t.Errorf("%d %s %s, want %d %s", r.status, r.header, r.text, status, kind)
	}
	if (status == http.StatusServiceUnavailable) != (r.header.Get("Retry-After") != "") {
		t.Errorf("status %d, Retry-After %q", status, r.header.Get("Retry-After"))
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// accountTopic is the topic of GET /account?id=1.
func accountTopic(r *http.Request) (string, error) {
	id := r.URL.Query().Get("id")
	if id == "0" {
		return "", &outbox.Problem{Status: http.StatusNotFound, Detail: "there is no account 0"}
	}
	return "account:" + id, nil
}

// accountState is its balance.
func accountState(r *http.Request, tx pgx.Tx) (any, error) {
	var state struct {
		Balance int64 `json:"balance"`
	}
	err := tx.QueryRow(r.Context(), `SELECT balance FROM account WHERE id = $1`, r.URL.Query().Get("id")).Scan(&state.Balance)
	return state, err
}

func accountView(t testing.TB, db outbox.Database, change ...func(*outbox.ViewConfig)) *outbox.View {
	t.Helper()
	cfg := outbox.ViewConfig{Topic: accountTopic, State: accountState, Logger: slog.New(slog.DiscardHandler)}
	for _, c := range change {
		c(&cfg)
	}
	v, err := outbox.NewView(db, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

func sequenceAll(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	exec(t, pool, `SELECT commitcast.sequence(p::smallint, 1, 100000, NULL, NULL) FROM generate_series(0, 31) p`)
}

func depositIn(t testing.TB, pool *pgxpool.Pool, account int) {
	t.Helper()
	if err := outbox.Tx(context.Background(), pool, func(tx *outbox.Transaction) error {
		if _, err := tx.Exec(context.Background(), `UPDATE account SET balance = balance + 1 WHERE id = $1`, account); err != nil {
			return err
		}
		return tx.Publish(event(fmt.Sprint("account:", account)))
	}); err != nil {
		t.Fatal(err)
	}
}
