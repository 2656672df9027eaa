// Command seatmap is an example: the seats of a hall, on every screen at once. README.md beside it says how to run it.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/outbox"
)

const schema = `CREATE TABLE IF NOT EXISTS seat (id text PRIMARY KEY, holder text NOT NULL DEFAULT '', version bigint NOT NULL DEFAULT 0);
	INSERT INTO seat SELECT chr(r) || c FROM generate_series(65, 70) r, generate_series(1, 8) c ON CONFLICT DO NOTHING`

type seat struct {
	ID      string `json:"id"`
	Holder  string `json:"holder"` // "": free
	Version int64  `json:"version"`
}

func main() {
	listen := flag.String("listen", "127.0.0.1:8090", "where to serve the page")
	commitcast := flag.String("commitcast", "http://127.0.0.1:8080", "URL of a broadcaster")
	dir := flag.String("dir", "examples/seatmap", "folder of index.html and page.js")
	flag.Parse()
	pool := must(pgxpool.New(context.Background(), os.Getenv("DATABASE_URL")))
	must(pool.Exec(context.Background(), schema))
	hall := must(outbox.NewView(pool, outbox.ViewConfig{
		Topic: func(*http.Request) (string, error) { return "hall:1", nil },
		State: func(r *http.Request, tx pgx.Tx) (any, error) {
			rows, _ := tx.Query(r.Context(), `SELECT id, holder, version FROM seat ORDER BY id`)
			return pgx.CollectRows(rows, pgx.RowToStructByPos[seat])
		},
	}))
	http.Handle("GET /api/hall", hall.SnapshotHandler())
	http.Handle("POST /api/seats/{seat}", must(outbox.NewAction(pool, outbox.ActionConfig{View: hall, Caller: guest, Do: take})))
	http.Handle("/v1/", httputil.NewSingleHostReverseProxy(must(url.Parse(*commitcast))))
	http.Handle("/", http.FileServer(http.Dir(*dir)))
	l := must(net.Listen("tcp", *listen))
	log.Printf("open http://%s in two windows", l.Addr())
	log.Fatal(http.Serve(l, nil))
}

// guest is who asks: in earnest, the user of a session.
func guest(r *http.Request) (string, error) {
	if who := r.Header.Get("X-Guest"); who != "" {
		return who, nil
	}
	return "", &outbox.Problem{Status: http.StatusUnauthorized, Title: "Who are you?"}
}

// take gives a seat to who asks, or takes it back, if it is still as it was seen.
func take(r *http.Request, tx *outbox.Transaction) (any, error) {
	s, who := seat{ID: r.PathValue("seat")}, r.Header.Get("X-Guest")
	guard, err := outbox.GuardOf(r, "hall:1")
	if err != nil {
		return nil, err
	}
	if err := tx.QueryRow(r.Context(), `SELECT holder, version FROM seat WHERE id = $1 FOR UPDATE`, s.ID).Scan(&s.Holder, &s.Version); err != nil {
		return nil, err
	}
	if err := guard.Version(r.Context(), tx, s.Version); err != nil {
		return nil, err // 409, with the fresh state
	}
	switch s.Holder {
	case "":
		s.Holder = who
	case who:
		s.Holder = ""
	default:
		return nil, &outbox.Problem{Status: http.StatusForbidden, Title: "That is somebody else's seat"}
	}
	s.Version++
	if _, err := tx.Exec(r.Context(), `UPDATE seat SET holder = $2, version = $3 WHERE id = $1`, s.ID, s.Holder, s.Version); err != nil {
		return nil, err
	}
	return s, tx.Publish(outbox.Event{Topic: "hall:1", Type: "seat", Key: s.ID, Data: s})
}

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}
