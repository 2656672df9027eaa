package outbox_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/commitcast/commitcast/outbox"
	"github.com/commitcast/commitcast/wire"
)

func TestLimitsAreThoseOfTheProtocol(t *testing.T) {
	if outbox.MaxTopicLen != wire.MaxTopicLen || outbox.MaxLabelLen != wire.MaxLabelLen || outbox.MaxData != wire.MaxData ||
		outbox.TopicPattern != wire.TopicPattern {
		t.Error("outbox and wire disagree")
	}
}

func raw(s string) json.RawMessage { return json.RawMessage(s) }

// text is a JSON string of n bytes.
func text(n int) json.RawMessage { return raw(`"` + strings.Repeat("x", n-2) + `"`) }

// Go and SQL accept and refuse the same events, with the same message.
func TestGoAndSQLSayTheSame(t *testing.T) {
	pool := fresh(t)
	ok := outbox.Event{Topic: "a", Type: "t", Data: raw(`1`)}
	with := func(change func(*outbox.Event)) outbox.Event { e := ok; change(&e); return e }
	headers := func(n int) map[string]string { return map[string]string{"h": strings.Repeat("x", n-len(`{"h":""}`))} }
	type E = outbox.Event
	for name, c := range map[string]struct {
		e  outbox.Event
		ok bool
	}{
		"plain":                      {ok, true},
		"every character":            {with(func(e *E) { e.Topic = "0Az.9_:/-" }), true},
		"no topic":                   {with(func(e *E) { e.Topic = "" }), false},
		"topic of 128":               {with(func(e *E) { e.Topic = strings.Repeat("a", 128) }), true},
		"topic of 129":               {with(func(e *E) { e.Topic = strings.Repeat("a", 129) }), false},
		"topic of 500":               {with(func(e *E) { e.Topic = strings.Repeat("ab", 250) }), false},
		"topic in Greek":             {with(func(e *E) { e.Topic = strings.Repeat("αβ", 100) }), false},
		"topic with space":           {with(func(e *E) { e.Topic = "a b" }), false},
		"topic with newline":         {with(func(e *E) { e.Topic = "a\n" }), false},
		"topic with quote":           {with(func(e *E) { e.Topic = `a"%s\` }), false},
		"topic begins with dot":      {with(func(e *E) { e.Topic = ".a" }), false},
		"no type":                    {with(func(e *E) { e.Type = "" }), false},
		"type of 128":                {with(func(e *E) { e.Type = strings.Repeat("é", 64) }), true},
		"type of 129":                {with(func(e *E) { e.Type = strings.Repeat("é", 64) + "x" }), false},
		"type of the system's":       {with(func(e *E) { e.Type = "commitcast.x" }), false},
		"type nearly the system's":   {with(func(e *E) { e.Type = "commitcast" }), true},
		"key of 128":                 {with(func(e *E) { e.Key = strings.Repeat("é", 64) }), true},
		"key of 129":                 {with(func(e *E) { e.Key = strings.Repeat("é", 64) + "x" }), false},
		"no data":                    {with(func(e *E) { e.Data = nil }), false},
		"null data":                  {with(func(e *E) { e.Data = raw(`null`) }), true},
		"data of 262144":             {with(func(e *E) { e.Data = text(262144) }), true},
		"data of 262145":             {with(func(e *E) { e.Data = text(262145) }), false},
		"data of 262144 in é":        {with(func(e *E) { e.Data = raw(`"` + strings.Repeat("é", 131071) + `"`) }), true},
		"data of 262146 in é":        {with(func(e *E) { e.Data = raw(`"` + strings.Repeat("é", 131072) + `"`) }), false},
		"headers":                    {with(func(e *E) { e.Headers = map[string]string{"a": "<é>"} }), true},
		"headers of 4096":            {with(func(e *E) { e.Headers = headers(4096) }), true},
		"headers of 4097":            {with(func(e *E) { e.Headers = headers(4097) }), false},
		"everything wrong":           {E{Topic: "?", Type: "", Headers: headers(5000)}, false},
		"all but the topic is wrong": {E{Topic: "a", Type: "", Headers: headers(5000)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			tx, err := pool.Begin(ctx)
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(ctx)
			_, goErr := outbox.Append(ctx, tx, c.e)
			if (goErr == nil) != c.ok {
				t.Fatalf("Go: %v", goErr)
			}
			var goMsg, sqlMsg string
			if goErr != nil {
				goMsg = goErr.Error()
				if !errors.Is(goErr, outbox.ErrInvalidEvent) {
					t.Errorf("%v is not ErrInvalidEvent", goErr)
				}
			}
			// What Go refuses, the table's constraints refuse too, whoever writes.
			sp, err := tx.Begin(ctx)
			if err != nil {
				t.Fatal(err)
			}
			_, err = sp.Exec(ctx, `INSERT INTO commitcast.outbox (partition, topic, type, key, data, headers)
				VALUES (coalesce(commitcast.partition_of($1), 0), $1, $2, $3, $4::text::json, $5::text::json)`, sqlArgs(t, c.e)...)
			if (err == nil) != c.ok {
				t.Errorf("constraints: %v", err)
			}
			sp.Rollback(ctx)

			_, err = tx.Exec(ctx, `SELECT commitcast.append($1, $2, $4::text::json, $3, $5::text::json)`, sqlArgs(t, c.e)...)
			var pg *pgconn.PgError
			if errors.As(err, &pg) {
				sqlMsg = pg.Message
				if pg.Code != "22023" {
					t.Errorf("SQLSTATE %s", pg.Code)
				}
			} else if err != nil {
				t.Fatal(err)
			}
			if goMsg != sqlMsg {
				t.Errorf("Go says  %q\nSQL says %q", goMsg, sqlMsg)
			}
		})
	}
}

// sqlArgs are topic, type, key, data and headers, as a writer in another language would send them.
func sqlArgs(t *testing.T, e outbox.Event) []any {
	var key, data, headers *string
	if e.Key != "" {
		key = &e.Key
	}
	if r, ok := e.Data.(json.RawMessage); ok {
		s := string(r)
		data = &s
	}
	if e.Headers != nil {
		b, err := json.Marshal(e.Headers)
		if err != nil {
			t.Fatal(err)
		}
		s := string(b)
		headers = &s
	}
	return []any{e.Topic, e.Type, key, data, headers}
}

// Mistakes that cannot reach SQL, since they are not text or not JSON.
func TestRefusedInGoAlone(t *testing.T) {
	pool := fresh(t)
	for name, e := range map[string]outbox.Event{
		"NUL in type":             {Topic: "a", Type: "t\x00", Data: 1},
		"NUL in key":              {Topic: "a", Type: "t", Key: "\x00", Data: 1},
		"type not UTF-8":          {Topic: "a", Type: "\xff", Data: 1},
		"key not UTF-8":           {Topic: "a", Type: "t", Key: "\xc3\x28", Data: 1},
		"empty RawMessage":        {Topic: "a", Type: "t", Data: raw(``)},
		"RawMessage cut off":      {Topic: "a", Type: "t", Data: raw(`{"a":`)},
		"RawMessage of two":       {Topic: "a", Type: "t", Data: raw(`1 2`)},
		"RawMessage with NUL":     {Topic: "a", Type: "t", Data: raw("\"\x00\"")},
		"RawMessage not UTF-8":    {Topic: "a", Type: "t", Data: raw("\"\xff\"")},
		"RawMessage with newline": {Topic: "a", Type: "t", Data: raw("\"a\nb\"")},
		"NaN":                     {Topic: "a", Type: "t", Data: math.NaN()},
		"channel":                 {Topic: "a", Type: "t", Data: make(chan int)},
	} {
		err := outbox.Tx(t.Context(), pool, func(tx *outbox.Transaction) error { return tx.Publish(e) })
		if !errors.Is(err, outbox.ErrInvalidEvent) || !strings.HasPrefix(err.Error(), "commitcast: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := events(t, pool); n != 0 {
		t.Errorf("%d events", n)
	}
}

// JSON is stored and given back to the letter, odd as it may be.
func TestJSONToTheLetter(t *testing.T) {
	for _, mode := range modes {
		pool := fresh(t, withMode(mode))
		want := []string{
			`{"a":"\u0000"}`, `"\ud800"`, `["\udc00\ud800", "\ud83d\ude00", "😀"]`, `1e400`, `-0`, `1.0`, `0.1e-999`, `12345678901234567890123`,
			" {\"a\" : 1,\n\t\"a\":2 }\r\n", `"\/\b\f\n\r\t\u2028"`, `""`, `{}`, `[]`, `true`, `"it's \\ $1 $2"`,
			`{"":{"__proto__":null}}`, strings.Repeat("[", 5000) + strings.Repeat("]", 5000),
		}
		err := outbox.Tx(t.Context(), pool, func(tx *outbox.Transaction) error {
			for i, s := range want {
				if err := tx.Publish(outbox.Event{Topic: "a", Type: "t", Key: fmt.Sprint(i), Data: raw(s)}); err != nil {
					return fmt.Errorf("%s: %w", s, err)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		p := one[int](t, pool, `SELECT commitcast.partition_of('a')`)
		exec(t, pool, `SELECT commitcast.sequence($1::int::smallint, 1, 100, NULL, NULL)`, p)
		rows, _ := pool.Query(t.Context(), `SELECT data::text FROM commitcast.journal ORDER BY "offset"`)
		got, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(want) {
			t.Fatalf("%d events, want %d", len(got), len(want))
		}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("%v: stored %q as %q", mode, want[i], got[i])
			}
		}
	}
}

// Values are encoded as encoding/json does, but not for HTML.
func TestDataIsEncoded(t *testing.T) {
	pool := fresh(t)
	for _, c := range []struct {
		data any
		want string
	}{
		{map[string]any{"b": 1, "a": "<&>"}, `{"a":"<&>","b":1}`},
		{struct {
			N int `json:"n"`
		}{3}, `{"n":3}`},
		{(*int)(nil), `null`},
		{"\xff", `"\ufffd"`},
	} {
		exec(t, pool, `DELETE FROM commitcast.outbox`)
		err := outbox.Tx(t.Context(), pool, func(tx *outbox.Transaction) error {
			return tx.Publish(outbox.Event{Topic: "a", Type: "t", Data: c.data})
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := one[string](t, pool, `SELECT data::text FROM commitcast.outbox`); got != c.want {
			t.Errorf("%v became %s, want %s", c.data, got, c.want)
		}
	}
}
