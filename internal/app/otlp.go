package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/slim/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/commitcast/commitcast/wire"
)

const (
	// spanQueue is how many spans may wait to be sent; more are dropped. About 1 MB.
	spanQueue = 4096
	// spanBatch and spanWait bound what is sent at once: so many spans, or what has come within so long.
	spanBatch = 512
	spanWait  = 500 * time.Millisecond
	// spanTimeout is how long the collector may take for a batch; then it is dropped.
	spanTimeout = 5 * time.Second
	// spanFlush is how long sending what is left may take at the end.
	spanFlush = 2 * time.Second
	// spanAnswer is how much of an answer is read, in bytes.
	spanAnswer = 64 << 10
)

// Why spans are dropped, as in the metric.
const (
	droppedFull    = "queue_full"
	droppedFailed  = "not_sent"
	droppedRefused = "refused"
)

// otlpFlags say where spans go.
type otlpFlags struct {
	OTLPEndpoint string `name:"otlp-endpoint" env:"COMMITCAST_OTLP_ENDPOINT,OTEL_EXPORTER_OTLP_ENDPOINT" placeholder:"URL" help:"Send the spans of sampled events to this collector, as OTLP over HTTP: http://localhost:4318, to which /v1/traces is added. OTEL_EXPORTER_OTLP_HEADERS, OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES are respected (none: no spans are made)."`
}

// exporter sends spans to a collector. It never makes anybody wait: what it has no room or no collector for is dropped and counted.
type exporter struct {
	to       string
	header   http.Header
	resource *resourcepb.Resource
	client   *http.Client
	log      *slog.Logger
	queue    chan wire.Span

	sent    prometheus.Counter
	dropped *prometheus.CounterVec
	failing bool // as logged last; of run
}

// exporter makes one; nil without an endpoint. Its metrics are there in any case.
func (f *otlpFlags) exporter(log *slog.Logger, metrics prometheus.Registerer) (*exporter, error) {
	x := &exporter{log: log,
		sent: prometheus.NewCounter(prometheus.CounterOpts{Name: "commitcast_trace_spans_sent_total", Help: "Spans of sampled events that the collector has taken."}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "commitcast_trace_spans_dropped_total",
			Help: "Spans dropped, by why: queue_full, not_sent (the collector did not answer in time, or with an error), refused (it said so in its answer)."}, []string{"why"})}
	for _, why := range []string{droppedFull, droppedFailed, droppedRefused} {
		x.dropped.WithLabelValues(why)
	}
	metrics.MustRegister(x.sent, x.dropped)
	if f.OTLPEndpoint == "" {
		return nil, nil
	}
	u, err := url.Parse(f.OTLPEndpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" { // what it says may be a secret
		return nil, usageError{errors.New("--otlp-endpoint (or OTEL_EXPORTER_OTLP_ENDPOINT) must be a URL such as http://localhost:4318")}
	}
	x.to = u.JoinPath("v1/traces").String()
	if x.header, err = otlpHeaders(os.Getenv("OTEL_EXPORTER_OTLP_HEADERS")); err != nil {
		return nil, err
	}
	if x.resource, err = otlpResource(); err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxConnsPerHost = 1
	x.client = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	x.queue = make(chan wire.Span, spanQueue)
	log.Info("sending spans of sampled events", "to", u.Scheme+"://"+u.Host)
	return x, nil
}

// pairs reads what OpenTelemetry's variables hold: key=value,key=value, percent-encoded.
func pairs(variable, text string, each func(key, value string)) error {
	for pair := range strings.SplitSeq(text, ",") {
		if strings.TrimSpace(pair) == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		key = strings.TrimSpace(key)
		value, err := url.PathUnescape(strings.TrimSpace(value))
		if !ok || key == "" || err != nil { // the pair may be a secret
			return usageError{fmt.Errorf("%s must be key=value,key=value with %%-escapes", variable)}
		}
		each(key, value)
	}
	return nil
}

func otlpHeaders(text string) (http.Header, error) {
	h := http.Header{
		"Content-Type": {"application/x-protobuf"},
		"User-Agent":   {"commitcast/" + strings.Fields(buildVersion())[0]},
		// Spans have ids that follow from their events: a batch that is sent once more does no harm. The header itself is not sent.
		"Idempotency-Key": {},
	}
	err := pairs("OTEL_EXPORTER_OTLP_HEADERS", text, h.Set)
	return h, err
}

// otlpResource is what the spans are of: this process.
func otlpResource() (*resourcepb.Resource, error) {
	host, _ := os.Hostname()
	r := &resourcepb.Resource{Attributes: []*commonpb.KeyValue{
		text("service.version", buildVersion()), text("host.name", host), number("process.pid", int64(os.Getpid())),
	}}
	name := "commitcast"
	err := pairs("OTEL_RESOURCE_ATTRIBUTES", os.Getenv("OTEL_RESOURCE_ATTRIBUTES"), func(key, value string) {
		if key == "service.name" {
			name = value
			return
		}
		r.Attributes = append(r.Attributes, text(key, value))
	})
	if v := os.Getenv("OTEL_SERVICE_NAME"); v != "" {
		name = v
	}
	r.Attributes = append(r.Attributes, text("service.name", name))
	return r, err
}

// take takes a span, or drops it. It does not wait.
func (x *exporter) take(s wire.Span) {
	select {
	case x.queue <- s:
	default:
		x.dropped.WithLabelValues(droppedFull).Inc()
	}
}

// run sends spans until ctx ends, and then those that are left.
func (x *exporter) run(ctx context.Context) error {
	defer x.client.CloseIdleConnections()
	// A batch that is under way at the end, and what is left then, have so long together.
	until, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(spanFlush, cancel) })()
	batch := make([]wire.Span, 0, spanBatch)
	send := func() {
		if len(batch) > 0 {
			x.send(until, batch)
			clear(batch)
			batch = batch[:0]
		}
	}
	timer := time.NewTimer(spanWait)
	defer timer.Stop()
	for ctx.Err() == nil {
		select {
		case s := <-x.queue:
			if batch = append(batch, s); len(batch) == 1 {
				timer.Reset(spanWait)
			}
			if len(batch) == spanBatch {
				send()
			}
		case <-timer.C:
			send()
		case <-ctx.Done():
		}
	}
	// Whoever made spans has ended: nothing comes any more.
	for left := len(x.queue); left > 0; left-- {
		if batch = append(batch, <-x.queue); len(batch) == spanBatch {
			send()
		}
	}
	send()
	return nil
}

// send gives a batch to the collector, or drops it.
func (x *exporter) send(ctx context.Context, batch []wire.Span) {
	ctx, cancel := context.WithTimeout(ctx, spanTimeout)
	defer cancel()
	refused, err := x.post(ctx, batch)
	if err != nil {
		x.dropped.WithLabelValues(droppedFailed).Add(float64(len(batch)))
	} else {
		refused = min(max(refused, 0), int64(len(batch)))
		x.dropped.WithLabelValues(droppedRefused).Add(float64(refused))
		x.sent.Add(float64(int64(len(batch)) - refused))
	}
	switch failing := err != nil; {
	case failing && !x.failing:
		x.log.Warn("spans cannot be sent, and are dropped", "error", err)
	case !failing && x.failing:
		x.log.Info("spans are sent again")
	}
	x.failing = err != nil
}

// post sends a batch; refused is how many of its spans the collector did not want.
func (x *exporter) post(ctx context.Context, batch []wire.Span) (refused int64, err error) {
	body, err := proto.Marshal(x.request(batch))
	if err != nil {
		return 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, x.to, bytes.NewReader(body))
	if err != nil {
		return 0, errors.New("the address of the collector is none")
	}
	req.Header = x.header.Clone()
	resp, err := x.client.Do(req)
	if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
		err = wrapped.Err // without the URL
	}
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, spanAnswer))
	switch {
	case resp.StatusCode/100 != 2:
		return 0, fmt.Errorf("the collector answered %s", resp.Status)
	case err != nil:
		return 0, err
	}
	var answer collectorpb.ExportTraceServiceResponse
	if proto.Unmarshal(text, &answer) != nil {
		return 0, nil // it has taken them, and says nothing that we understand
	}
	return answer.GetPartialSuccess().GetRejectedSpans(), nil
}

// request is a batch as OTLP has it.
func (x *exporter) request(batch []wire.Span) *collectorpb.ExportTraceServiceRequest {
	spans := make([]*tracepb.Span, len(batch))
	for i := range batch {
		spans[i] = otlpSpan(&batch[i])
	}
	return &collectorpb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource:   x.resource,
		ScopeSpans: []*tracepb.ScopeSpans{{Scope: &commonpb.InstrumentationScope{Name: "github.com/commitcast/commitcast"}, Spans: spans}},
	}}}
}

func otlpSpan(s *wire.Span) *tracepb.Span {
	id, parent := s.IDs()
	out := &tracepb.Span{
		TraceId: s.Trace.ID[:], SpanId: id[:], ParentSpanId: parent[:], Name: s.Hop, Flags: 1, Kind: tracepb.Span_SPAN_KIND_INTERNAL,
		StartTimeUnixNano: uint64(s.Start.UnixNano()), EndTimeUnixNano: uint64(s.End.UnixNano()),
		Attributes: []*commonpb.KeyValue{text("commitcast.topic", s.Topic), number("commitcast.offset", s.Offset), number("commitcast.event_id", s.Event)},
	}
	switch s.Hop {
	case wire.HopPublish:
		out.Kind = tracepb.Span_SPAN_KIND_PRODUCER
	case wire.HopDeliver:
		out.Kind = tracepb.Span_SPAN_KIND_CONSUMER
		out.Attributes = append(out.Attributes, text("commitcast.node", s.Node), number("commitcast.subscribers", int64(s.Subscribers)))
	}
	if s.Error != "" {
		out.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: strings.ToValidUTF8(s.Error, "\ufffd")}
	}
	return out
}

func text(key, value string) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: strings.ToValidUTF8(value, "\ufffd")}}}
}

func number(key string, value int64) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: value}}}
}
