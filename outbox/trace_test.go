package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/trace"

	"github.com/commitcast/commitcast/outbox"
	"github.com/commitcast/commitcast/wire"
)

const traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

// traced is a context with the span of traceparent, as a service has it in which OpenTelemetry is at work.
func traced(ctx context.Context, flags trace.TraceFlags) context.Context {
	state, _ := trace.ParseTraceState("vendor=secret")
	return trace.ContextWithSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{0x4b, 0xf9, 0x2f, 0x35, 0x77, 0xb3, 0x4d, 0xa6, 0xa3, 0xce, 0x92, 0x9d, 0x0e, 0x0e, 0x47, 0x36},
		SpanID:  trace.SpanID{0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7}, TraceFlags: flags, TraceState: state,
	}))
}

// stored are the headers in the outbox, in order; "-" for none.
func stored(t *testing.T, db interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}) []string {
	t.Helper()
	rows, _ := db.Query(t.Context(), `SELECT coalesce(headers::text, '-') FROM commitcast.outbox ORDER BY id`)
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Events carry the span of the context that they were published under, whichever way; unless they have one of their own.
func TestEventsCarryTheSpanOfTheirWriter(t *testing.T) {
	pool := fresh(t)
	own := map[string]string{"traceparent": strings.Replace(traceparent, "4bf9", "0000", 1)}
	other := map[string]string{"a": "b"}
	full := map[string]string{"a": strings.Repeat("x", outbox.MaxHeaders-len(`{"a":""}`))}
	publish := func(tx *outbox.Transaction) error {
		for _, headers := range []map[string]string{nil, other, own, full} {
			e := event("t")
			e.Headers = headers
			if err := tx.Publish(e); err != nil {
				return err
			}
		}
		return nil
	}
	header := `"traceparent":"` + traceparent + `"`
	want := fmt.Sprint([]string{`{` + header + `}`, `{` + header + `,"a":"b"}`, `{"traceparent":"` + own["traceparent"] + `"}`, `{"a":"` + full["a"] + `"}`})
	ctx := traced(t.Context(), trace.FlagsSampled)
	for name, write := range map[string]func() error{
		"Tx": func() error { return outbox.Tx(ctx, pool, publish) },
		"Once": func() error {
			_, err := outbox.Once(ctx, pool, outbox.Operation{Scope: "s", Key: "k"}, func(tx *outbox.Transaction) (int, error) { return 1, publish(tx) })
			return err
		},
		"Append": func() error {
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				for _, headers := range []map[string]string{nil, other, own, full} {
					e := event("t")
					e.Headers = headers
					if _, err := outbox.Append(ctx, tx, e); err != nil {
						return err
					}
				}
				return nil
			})
		},
	} {
		exec(t, pool, `DELETE FROM commitcast.outbox`)
		if err := write(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := fmt.Sprint(stored(t, pool)); got != want {
			t.Errorf("%s: %s\nwant %s", name, got, want)
		}
	}
	if len(other) != 1 || len(own) != 1 || len(full) != 1 {
		t.Error("the caller's headers were written to")
	}
}

// Who decided against recording says so to those who follow; where there is no span nothing is said; a revocation says nothing.
func TestUnsampledAndUntracedWriters(t *testing.T) {
	pool := fresh(t)
	for _, c := range []struct {
		ctx  context.Context
		want string
	}{
		{traced(t.Context(), 0), `[{"traceparent":"` + traceparent[:53] + `00"} -]`},
		{traced(t.Context(), 0xff), `[{"traceparent":"` + traceparent + `"} -]`}, // flags of later versions are not ours to pass on
		{t.Context(), `[- -]`},
	} {
		exec(t, pool, `DELETE FROM commitcast.outbox`)
		if err := outbox.Tx(c.ctx, pool, func(tx *outbox.Transaction) error { return errors.Join(tx.Publish(event("t")), tx.Revoke("ann", "t")) }); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(stored(t, pool)); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}

// A trace never is what makes a transaction too large.
func TestTracesDoNotCountAgainstLimits(t *testing.T) {
	pool := fresh(t)
	err := outbox.Tx(traced(t.Context(), trace.FlagsSampled), pool, func(tx *outbox.Transaction) error {
		for range outbox.MaxEventBytes / outbox.MaxData {
			e := event("t")
			e.Data = text(outbox.MaxData)
			if err := tx.Publish(e); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// Package outbox takes for a traceparent exactly what package wire reads as one; what it does not take is an error. SQL takes
// anything: it is not continued.
func TestMalformedTraceparents(t *testing.T) {
	pool := fresh(t)
	for _, s := range []string{
		traceparent, traceparent[:53] + "00", "cc" + traceparent[2:], "cc" + traceparent[2:] + "-x", "cc" + traceparent[2:] + "x", traceparent + "-x",
		"ff" + traceparent[2:], "", "00", traceparent[:54], traceparent[:54] + "g", strings.ToUpper(traceparent), strings.ReplaceAll(traceparent, "-", "_"),
		"00-" + strings.Repeat("0", 32) + traceparent[35:], traceparent[:36] + strings.Repeat("0", 16) + "-01", "é" + traceparent[2:],
	} {
		e := event("t")
		e.Headers = map[string]string{"traceparent": s}
		err := outbox.Tx(traced(t.Context(), trace.FlagsSampled), pool, func(tx *outbox.Transaction) error { return tx.Publish(e) })
		_, want := wire.ParseTrace([]byte(s))
		if (err == nil) != want || err != nil && (!errors.Is(err, outbox.ErrInvalidEvent) || !strings.Contains(err.Error(), "traceparent")) {
			t.Errorf("%q: %v, wire: %v", s, err, want)
		}
	}
	var id int64
	if err := pool.QueryRow(t.Context(), `SELECT commitcast.append('t', 't', '1', headers => '{"traceparent": "?"}')`).Scan(&id); err != nil {
		t.Error(err)
	}
}
