package e2e

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/trace"
	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/outbox"
)

// otlpSpan is a span as a collector got it.
type otlpSpan struct {
	*tracepb.Span
	service string
	at      map[string]string // attributes
}

// collector takes spans, as OTLP over HTTP has them.
type collector struct {
	*httptest.Server
	mu     sync.Mutex
	spans  []otlpSpan
	wrong  []string
	secret string // that requests have to bring
}

func newCollector(t *testing.T, secret string) *collector {
	c := &collector{secret: secret}
	c.Server = httptest.NewServer(c)
	t.Cleanup(c.Close)
	return c
}

func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var req collectorpb.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(body, &req)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil || r.Method != "POST" || r.URL.Path != "/prefix/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" ||
		r.Header.Get("Authorization") != c.secret || r.Header.Get("Idempotency-Key") != "" {
		c.wrong = append(c.wrong, fmt.Sprintf("%v %s %s %v", err, r.Method, r.URL, r.Header))
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	text := func(kv *commonpb.KeyValue) string {
		if s, ok := kv.Value.Value.(*commonpb.AnyValue_StringValue); ok {
			return s.StringValue
		}
		return fmt.Sprint(kv.Value.GetIntValue())
	}
	for _, rs := range req.ResourceSpans {
		service := ""
		for _, kv := range rs.Resource.Attributes {
			if kv.Key == "service.name" {
				service += text(kv)
			}
		}
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				o := otlpSpan{s, service, map[string]string{}}
				for _, kv := range s.Attributes {
					o.at[kv.Key] = text(kv)
				}
				c.spans = append(c.spans, o)
			}
		}
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// of are the spans of a trace, by name; and how many there are in all.
func (c *collector) of(traceID string) (map[string][]otlpSpan, int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	by := make(map[string][]otlpSpan)
	for _, s := range c.spans {
		if hex.EncodeToString(s.TraceId) == traceID {
			by[s.Name] = append(by[s.Name], s)
		}
	}
	return by, len(c.spans)
}

// An event's trace goes from its writer's span through sequence and publish to each broadcaster with subscribers of it, and to the
// client; whichever way it was written. Of what is not sampled there is nothing.
func TestTraces(t *testing.T) {
	const secret = "Bearer canary-of-the-collector"
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization="+strings.ReplaceAll(secret, " ", "%20"))
	t.Setenv("OTEL_SERVICE_NAME", "trades")
	c := newCollector(t, secret)
	database, redis := testkit.Database(t), testkit.RedisURL(t)
	otlp := "--otlp-endpoint=" + c.URL + "/prefix/"
	w := start(t, database, redis, "worker", otlp, "--log-level=debug")
	nodes := []*node{w}
	var subscribers []*testkit.Client
	for i, n := range []int{1, 3} { // subscribers of each node
		b := start(t, database, redis, "broadcaster", otlp, "--log-level=debug", fmt.Sprintf("--node=b%d", i+1))
		nodes = append(nodes, b)
		for range n {
			s := testkit.Dial(t, b.URL)
			s.Subscribe(1, "t", "")
			s.Expect("subscribed")
			subscribers = append(subscribers, s)
		}
	}
	pool, err := pgxpool.New(t.Context(), testkit.As(t, database, "writer"))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	defer outbox.Flush(context.Background(), pool)
	write := func(ctx context.Context) error {
		return outbox.Tx(ctx, pool, func(tx *outbox.Transaction) error {
			return tx.Publish(outbox.Event{Topic: "t", Type: "trade", Data: json.RawMessage(`1`)})
		})
	}
	under := func(id trace.TraceID, flags trace.TraceFlags) context.Context {
		return trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{TraceID: id, SpanID: trace.SpanID{7}, TraceFlags: flags}))
	}
	begun := time.Now()
	byGo, not := trace.TraceID{1}, trace.TraceID{2}
	const bySQL = "4bf92f3577b34da6a3ce929d0e0e4736"
	for i, err := range []error{
		write(under(byGo, trace.FlagsSampled)), // offset 1
		write(under(not, 0)),                   // 2
		write(t.Context()),                     // 3
	} {
		if err != nil {
			t.Fatalf("event %d: %v", i+1, err)
		}
	}
	exec1(t, database, `SELECT commitcast.append('t', 'trade', '1', headers => '{"traceparent": "00-`+bySQL+`-00f067aa0ba902b7-01"}')`)
	for _, s := range subscribers {
		got := s.ExpectEvents("t", 1, 4)
		for i, want := range []string{byGo.String() + "-0700000000000000-01", not.String() + "-0700000000000000-00", "", bySQL + "-00f067aa0ba902b7-01"} {
			var h map[string]string
			if json.Unmarshal(got[i].Headers, &h); h["traceparent"] != "00-"+want && want != "" || want == "" && got[i].Headers != nil {
				t.Errorf("the client sees %s of event %d", got[i].Headers, i+1)
			}
		}
	}
	testkit.Eventually(t, 10*time.Second, func() error {
		if _, n := c.of(""); n < 8 {
			return fmt.Errorf("%d spans", n)
		}
		return nil
	}, "all spans")
	// A clock of the database, one of ours: the same here.
	sane := func(s otlpSpan, from, to uint64) {
		if s.StartTimeUnixNano < from || s.EndTimeUnixNano < s.StartTimeUnixNano || s.EndTimeUnixNano > to {
			t.Errorf("%s from %d to %d, not within %d and %d", s.Name, s.StartTimeUnixNano, s.EndTimeUnixNano, from, to)
		}
	}
	now := uint64(time.Now().UnixNano())
	for id, parent := range map[string]string{byGo.String(): "0700000000000000", bySQL: "00f067aa0ba902b7"} {
		by, _ := c.of(id)
		if len(by) != 3 || len(by["commitcast.sequence"]) != 1 || len(by["commitcast.publish"]) != 1 || len(by["commitcast.deliver"]) != 2 {
			t.Fatalf("trace %s: %v", id, by)
		}
		sequence, publish := by["commitcast.sequence"][0], by["commitcast.publish"][0]
		if hex.EncodeToString(sequence.ParentSpanId) != parent || string(publish.ParentSpanId) != string(sequence.SpanId) {
			t.Errorf("trace %s: %v\n%v", id, sequence, publish)
		}
		sane(sequence, uint64(begun.Add(-50*time.Millisecond).UnixNano()), now)
		sane(publish, sequence.EndTimeUnixNano, now)
		seen := map[string]string{}
		for _, d := range by["commitcast.deliver"] {
			if string(d.ParentSpanId) != string(publish.SpanId) || d.service != "trades" || d.at["commitcast.topic"] != "t" || d.at["commitcast.event_id"] == "" || d.Kind != tracepb.Span_SPAN_KIND_CONSUMER {
				t.Errorf("trace %s: %v", id, d)
			}
			sane(d, publish.StartTimeUnixNano, now)
			seen[d.at["commitcast.node"]] = d.at["commitcast.subscribers"]
		}
		if fmt.Sprint(seen) != "map[b1:1 b2:3]" {
			t.Errorf("delivered by %v", seen)
		}
		for i, n := range nodes {
			message := []string{"an event was published", "an event was delivered"}[min(i, 1)]
			if !slices.ContainsFunc(strings.Split(n.Log(), "\n"), func(line string) bool {
				return strings.Contains(line, message) && strings.Contains(line, `"trace_id":"`+id+`"`)
			}) {
				t.Errorf("%q with trace %s is not logged", message, id)
			}
		}
	}
	if _, n := c.of(""); n != 8 {
		t.Errorf("%d spans: of what is not sampled, too", n)
	}
	for _, n := range nodes {
		if log := n.Log(); strings.Contains(log, "canary-of") {
			t.Errorf("the collector's secret is logged: %s", log)
		}
	}
	if sent := metric(t, w, "commitcast_trace_spans_sent_total"); sent != 4 || len(c.wrong) > 0 {
		t.Errorf("the worker has sent %v spans; wrong: %v", sent, c.wrong)
	}
}

// A collector that hangs holds up neither delivery nor the end; what it does not take is dropped and counted.
func TestTracesWithoutACollector(t *testing.T) {
	release := make(chan struct{})
	hangs := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-release }))
	defer hangs.Close()
	defer close(release)
	database := testkit.Database(t)
	median := func(n *node) time.Duration {
		s := testkit.Dial(t, n.URL)
		s.Subscribe(1, "t", "")
		head := s.Expect("subscribed").Head
		pool, err := pgxpool.New(t.Context(), database)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		const flood = 3000 // 9,000 spans, twice as many as may wait
		if _, err := pool.Exec(t.Context(), `SELECT commitcast.append('t', 'trade', '1', headers => json_build_object('traceparent', '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01')) FROM generate_series(1, $1)`, flood); err != nil {
			t.Fatal(err)
		}
		s.ExpectEvents("t", head+1, head+flood)
		head += flood
		took := make([]time.Duration, 101)
		for i := range took {
			begun := time.Now()
			if _, err := pool.Exec(t.Context(), `SELECT commitcast.append('t', 'trade', '1', headers => '{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}')`); err != nil {
				t.Fatal(err)
			}
			head++
			s.ExpectEvents("t", head, head)
			took[i] = time.Since(begun)
		}
		slices.Sort(took)
		return took[len(took)/2]
	}
	ends := func(n *node) time.Duration {
		begun := time.Now()
		n.Cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-n.Done:
		case <-time.After(15 * time.Second):
			t.Fatal("it does not end")
		}
		return time.Since(begun)
	}
	without := start(t, database, "", "all")
	plain := median(without)
	plainEnd := ends(without)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", hangs.URL)
	with := start(t, database, "", "all")
	hanging := median(with)
	dropped := metric(t, with, `commitcast_trace_spans_dropped_total{why="queue_full"}`)
	hangingEnd := ends(with)
	t.Logf("median of 101 events %v without a collector, %v with one that hangs, which dropped %v spans; ends in %v and %v", plain, hanging, dropped, plainEnd, hangingEnd)
	if hanging > 2*plain+20*time.Millisecond {
		t.Errorf("an event takes %v while the collector hangs, %v without one", hanging, plain)
	}
	if dropped < 3000 {
		t.Errorf("%v spans dropped", dropped)
	}
	if hangingEnd > plainEnd+4*time.Second {
		t.Errorf("it ended in %v, and without a collector in %v", hangingEnd, plainEnd)
	}
}
