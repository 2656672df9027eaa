package stream

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of one stream. A second stream on the same Registerer shares them.
type metrics struct {
	answers  *prometheus.CounterVec
	publish  prometheus.Histogram
	up       prometheus.Gauge
	rebuilds *prometheus.CounterVec
	messages prometheus.Counter
	bytes    prometheus.Counter
	garbage  prometheus.Counter
}

// The outcomes of an offer in metrics beside those of Answer.
const (
	outcomeError       = "error"
	outcomeUnavailable = "unavailable"
)

// The reasons of a rebuild.
const (
	reasonProbe       = "probe"       // no tick came through the subscription
	reasonSilent      = "silent"      // nothing came at all, not even the answer to a ping
	reasonConnect     = "connect"     // the connection could not be made
	reasonClosed      = "closed"      // the connection broke, or the server closed it
	reasonWrite       = "write"       // a write failed or passed its deadline
	reasonRefused     = "refused"     // the server answered with an error, or with something that is no answer
	reasonUnsubscribe = "unsubscribe" // the server ended the subscription of a channel
	reasonMoved       = "moved"       // the slot of the channels is with another master of the cluster
	reasonSlow        = "slow"        // the handler fell behind (in-process stream)
)

func newMetrics(reg prometheus.Registerer) *metrics {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "commitcast", Subsystem: "stream", Name: name, Help: help}
	}
	m := &metrics{
		answers: register(reg, prometheus.NewCounterVec(prometheus.CounterOpts(
			opts("answers_total", "Runs offered to the stream, by what became of them.")), []string{"outcome"})),
		publish: register(reg, prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "commitcast", Subsystem: "stream", Name: "publish_seconds",
			Help:    "Time of one Publish: one round trip, or two after a script had to be loaded.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5},
		})),
		up: register(reg, prometheus.NewGauge(prometheus.GaugeOpts(
			opts("subscriptions_up_count", "Connections of subscriptions that are confirmed: one, or in a cluster one a partition that has been listened to.")))),
		rebuilds: register(reg, prometheus.NewCounterVec(prometheus.CounterOpts(
			opts("subscription_rebuilds_total", "Subscriptions that had to be built again, by reason.")), []string{"reason"})),
		messages: register(reg, prometheus.NewCounter(prometheus.CounterOpts(
			opts("messages_total", "Messages received for wanted channels.")))),
		bytes: register(reg, prometheus.NewCounter(prometheus.CounterOpts(
			opts("message_bytes_total", "Bytes of those messages.")))),
		garbage: register(reg, prometheus.NewCounter(prometheus.CounterOpts(
			opts("garbage_total", "Messages that could not be understood and were ignored.")))),
	}
	for _, o := range []string{"appended", "duplicate", "gap", outcomeError, outcomeUnavailable} {
		m.answers.WithLabelValues(o)
	}
	for _, r := range []string{reasonProbe, reasonSilent, reasonConnect, reasonClosed, reasonWrite, reasonRefused, reasonUnsubscribe, reasonSlow} {
		m.rebuilds.WithLabelValues(r)
	}
	return m
}

// register registers c, or returns the collector that is registered already under its name.
func register[C prometheus.Collector](reg prometheus.Registerer, c C) C {
	if reg == nil {
		return c
	}
	err := reg.Register(c)
	if already := (prometheus.AlreadyRegisteredError{}); errors.As(err, &already) {
		if existing, ok := already.ExistingCollector.(C); ok {
			return existing
		}
	}
	return c
}

// published counts one Publish.
func (m *metrics) published(start time.Time, offers int, answers []Answer, err error) {
	m.publish.Observe(time.Since(start).Seconds())
	if err != nil {
		m.answers.WithLabelValues(outcomeUnavailable).Add(float64(offers))
		return
	}
	for _, a := range answers {
		outcome := a.Outcome.String()
		if a.Err != nil {
			outcome = outcomeError
		}
		m.answers.WithLabelValues(outcome).Inc()
	}
}

// String is the name of o in metrics and logs.
func (o Outcome) String() string {
	switch o {
	case Appended:
		return "appended"
	case Duplicate:
		return "duplicate"
	case Gap:
		return "gap"
	default:
		return "none"
	}
}
