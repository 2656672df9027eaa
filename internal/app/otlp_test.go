package app

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/commitcast/commitcast/wire"
)

// What cannot be an endpoint is said before anything is opened, and not shown: it may hold a secret.
func TestOTLPEndpoint(t *testing.T) {
	for _, bad := range []string{"secret:4318", "grpc://secret:4317", "http://", "http://secret:x", "/secret", "http://secret\x7f"} {
		var stderr strings.Builder
		code := Run(context.Background(), []string{"all", "--database-url=postgres://127.0.0.1:1/x", "--auth=off", "--listen=127.0.0.1:0", "--ops-listen=", "--otlp-endpoint=" + bad}, io.Discard, &stderr)
		if code != exitUsage || !strings.Contains(stderr.String(), "--otlp-endpoint") || strings.Contains(stderr.String(), "secret") {
			t.Errorf("%q: code %d, %s", bad, code, stderr.String())
		}
	}
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization:secret")
	if _, err := (&otlpFlags{"http://localhost:4318"}).exporter(slog.New(slog.DiscardHandler), prometheus.NewRegistry()); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("headers: %v", err)
	}
}

// every answers requests within the process.
type every func(r *http.Request) (*http.Response, error)

func (f every) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func otlpAnswer(status int, rejected int64) *http.Response {
	body, _ := proto.Marshal(&collectorpb.ExportTraceServiceResponse{PartialSuccess: &collectorpb.ExportTracePartialSuccess{RejectedSpans: rejected}})
	w := httptest.NewRecorder()
	w.WriteHeader(status)
	w.Write(body)
	return w.Result()
}

func counted(c prometheus.Counter) float64 {
	var m dto.Metric
	c.Write(&m)
	return m.GetCounter().GetValue()
}

// What a collector refuses, does not answer or answers with an error is dropped and counted; each is logged when it begins and ends.
// One that hangs costs a bounded time each, and at the end, too.
func TestSpansAreDroppedAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		x, err := (&otlpFlags{"http://localhost:4318"}).exporter(slog.New(slog.NewTextHandler(&log, nil)), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		do := func(*http.Request) (*http.Response, error) { return otlpAnswer(200, 0), nil }
		x.client.Transport = every(func(r *http.Request) (*http.Response, error) { return do(r) })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { x.run(ctx); close(done) }() // ends below
		counts := func(want ...float64) {
			t.Helper()
			got := []float64{counted(x.sent)}
			for _, why := range []string{droppedFull, droppedFailed, droppedRefused} {
				got = append(got, counted(x.dropped.WithLabelValues(why)))
			}
			for i := range want {
				if got[i] != want[i] {
					t.Errorf("sent, full, failed, refused: %v, want %v", got, want)
					return
				}
			}
		}
		span := wire.Span{Hop: wire.HopPublish, Topic: "t", Error: "\xff"}
		x.take(span)
		x.take(span)
		synctest.Wait()
		counts(0, 0, 0, 0)
		time.Sleep(spanWait)
		synctest.Wait()
		counts(2, 0, 0, 0)
		do = func(*http.Request) (*http.Response, error) { return otlpAnswer(200, 1), nil }
		for range spanBatch { // a batch that is full does not wait
			x.take(span)
		}
		synctest.Wait()
		counts(2+spanBatch-1, 0, 0, 1)
		do = func(*http.Request) (*http.Response, error) { return otlpAnswer(503, 0), nil }
		for range 2 {
			x.take(span)
			time.Sleep(spanWait)
		}
		synctest.Wait()
		counts(2+spanBatch-1, 0, 2, 1)
		do = func(*http.Request) (*http.Response, error) { return otlpAnswer(200, 0), nil }
		x.take(span)
		time.Sleep(spanWait)
		synctest.Wait()
		counts(2+spanBatch, 0, 2, 1)
		if text := log.String(); strings.Count(text, "cannot be sent") != 1 || strings.Count(text, "sent again") != 1 {
			t.Errorf("logged\n%s", text)
		}

		do = func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, context.Cause(r.Context())
		}
		for range spanBatch + spanQueue + 5 {
			x.take(span)
			if len(x.queue) == 1 {
				synctest.Wait() // it takes what it can
			}
		}
		synctest.Wait()
		counts(2+spanBatch, 5, 2, 1)
		time.Sleep(spanTimeout)
		synctest.Wait()
		counts(2+spanBatch, 5, 2+spanBatch, 1)
		cancel()
		begun := time.Now()
		<-done
		if took := time.Since(begun); took != spanFlush {
			t.Errorf("it ended after %v", took)
		}
		counts(2+spanBatch, 5, 2+spanBatch+spanQueue, 1)
	})
}
