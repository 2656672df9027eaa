package broadcaster

import (
	"bytes"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/commitcast/commitcast/wire"
)

// metrics of a broadcaster. No label has a value that a client chooses.
type metrics struct {
	connections, subscriptions, topics, slow  prometheus.Gauge
	messages, bytes, delivered, runs          prometheus.Counter
	gaps, healed, stalled, turnedAway, epochs prometheus.Counter
	expired, conflated                        prometheus.Counter
	resets, replayed, refused, tokens         *prometheus.CounterVec
	shut, limits                              *prometheus.CounterVec
	delay                                     prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) *metrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "commitcast_broadcaster_" + name, Help: help})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "commitcast_broadcaster_" + name, Help: help})
	}
	// Every value of a label is there from the beginning: an increase of what is not there yet cannot be seen.
	vec := func(name, help, label string, values ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "commitcast_broadcaster_" + name, Help: help}, []string{label})
		for _, value := range values {
			v.WithLabelValues(value)
		}
		return v
	}
	m := &metrics{
		connections:   gauge("connections", "Clients connected now."),
		subscriptions: gauge("subscriptions", "Subscriptions of all clients now."),
		topics:        gauge("topics", "Topics with a log in memory now."),
		slow:          gauge("clients_slow", "Clients that have not taken a message for a second or more."),
		messages:      counter("messages_total", "WebSocket messages written; each holds one or more frames."),
		bytes:         counter("bytes_total", "Bytes of messages written, without headers."),
		delivered:     counter("events_delivered_total", "Events written, summed over subscribers."),
		conflated:     counter("events_conflated_total", "Events left out for conflating subscribers that were behind, summed over them."),
		runs:          counter("runs_total", "Runs of events heard from the stream."),
		gaps:          counter("gaps_total", "Runs that did not follow what was heard before."),
		healed:        counter("events_healed_total", "Events that a log took from storage because the stream did not bring them."),
		stalled:       counter("clients_stalled_total", "Clients closed because they took no byte for a whole write timeout."),
		turnedAway:    counter("connections_refused_total", "Connections answered with 503."),
		epochs:        counter("epochs_total", "Times that the database was found in a new epoch."),
		resets:        vec("resets_total", "Subscriptions ended by a reset, by reason.", "reason", wire.ReasonTrimmed, wire.ReasonAhead, wire.ReasonEpoch),
		replayed:      vec("events_replayed_total", "Events read for subscribers that were behind, by source: stream, journal, or memory, which another one's read had brought.", "source", "stream", "journal", "memory"),
		expired:       counter("sessions_expired_total", "Sessions ended because no token came in time, or none after one that expired."),
		tokens:        vec("tokens_total", "Tokens checked, by outcome: accepted, lasting (accepted, and without an end), refused, unavailable.", "outcome", "accepted", "lasting", "refused", "unavailable"),
		shut:          vec("requests_shut_out_total", "HTTP requests refused at the door, by reason: host, origin, token_in_url, body.", "reason", "host", "origin", "token_in_url", "body"),
		limits: vec("limits_total", "Times that a limit was hit, by limit.", "limit", limitConnections, limitAddress, limitUser, limitSubscriptions, limitRequests,
			limitRefusals, limitPings, limitReplays, limitReplayRate, limitMessage, limitFrames, limitRenewals, limitLogs, limitStrikes, limitStrangers, limitUserRequests),
		refused: vec("requests_refused_total", "Requests answered with an error, by code.", "code", wire.CodeBadRequest, wire.CodeUnknownOp, wire.CodeBadTopic, wire.CodeBadCursor,
			wire.CodeAlreadySubscribed, wire.CodeNotSubscribed, wire.CodeTooMany, wire.CodeForbidden, wire.CodeUnavailable),
		delay: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "commitcast_broadcaster_delay_seconds",
			Help:    "From append in the writer's transaction to heard from the stream, of the newest event of each run; compares two clocks.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60}}),
	}
	if r != nil {
		r.MustRegister(m.connections, m.subscriptions, m.topics, m.slow, m.messages, m.bytes, m.delivered, m.runs, m.gaps,
			m.healed, m.stalled, m.turnedAway, m.epochs, m.resets, m.replayed, m.refused, m.expired, m.tokens, m.shut, m.limits, m.conflated, m.delay)
	}
	return m
}

// heard observes how long a run was under way.
func (m *metrics) heard(frames [][]byte, now time.Time) {
	if len(frames) == 0 {
		return
	}
	if at, ok := appendedAt(frames[len(frames)-1]); ok {
		m.delay.Observe(max(0, now.Sub(at).Seconds()))
	}
}

// appendedAt is when the event of a frame was appended. No topic, type or key before it holds the mark: quotes are escaped there.
func appendedAt(frame []byte) (time.Time, bool) {
	const mark, layout = `,"at":"`, "2006-01-02T15:04:05.000000Z"
	i := bytes.Index(frame, []byte(mark))
	if i < 0 || len(frame) < i+len(mark)+len(layout) {
		return time.Time{}, false // a frame that shows nothing
	}
	at, err := time.Parse(layout, string(frame[i+len(mark):i+len(mark)+len(layout)]))
	return at, err == nil
}

// stateMetrics are those that are looked up when they are asked for.
type stateMetrics struct{ b *Broadcaster }

func stateDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("commitcast_broadcaster_"+name, help, nil, nil)
}

var (
	descBehind   = stateDesc("topics_behind", "Topics with subscribers whose log is behind what is known to exist.")
	descUsers    = stateDesc("users", "Subjects of tokens that are connected now.")
	descUnknown  = stateDesc("unauthenticated", "WebSockets whose clients have yet to say who they are, those that wait for a place included.")
	descPolling  = stateDesc("polling", "1 while events come by polling the journal instead of by push.")
	descDrained  = stateDesc("drained", "1 while an operator has drained this node.")
	descDatabase = stateDesc("database_up", "1 if the last look at the heads succeeded, in every database.")
	descShard    = prometheus.NewDesc("commitcast_broadcaster_shard_up", "1 if the last look at the heads of these topics succeeded, where there are several databases.", []string{"shard"}, nil)
)

// Describe implements prometheus.Collector.
func (s *stateMetrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descBehind, descUsers, descUnknown, descPolling, descDrained, descDatabase, descShard} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (s *stateMetrics) Collect(to chan<- prometheus.Metric) {
	state := s.b.State()
	gauge := func(d *prometheus.Desc, v float64) { to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v) }
	one := map[bool]float64{true: 1}
	gauge(descBehind, float64(state.Behind))
	gauge(descUsers, float64(state.Users))
	s.b.mu.RLock()
	unknown := len(s.b.strangers) + len(s.b.atDoor)
	s.b.mu.RUnlock()
	gauge(descUnknown, float64(unknown))
	gauge(descPolling, one[state.Polling])
	gauge(descDrained, one[state.Drained])
	gauge(descDatabase, one[len(s.b.down()) == 0])
	for _, sh := range state.Shards {
		to <- prometheus.MustNewConstMetric(descShard, prometheus.GaugeValue, one[sh.Up], sh.Topics)
	}
}
