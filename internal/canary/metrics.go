package canary

import (
	"math"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of a canary.
type metrics struct {
	written, arrived, lost, disordered, resets prometheus.Counter
	sockets                                    *prometheus.CounterVec // outcome
	seconds                                    *prometheus.CounterVec // state
	delay                                      prometheus.Histogram
}

// The outcomes and states of the metrics.
const (
	socketOpened, socketFailed = "opened", "failed"
	stateFresh, stateStale     = "fresh", "stale"
)

func newMetrics(r prometheus.Registerer, c *Canary) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "commitcast_canary_" + name, Help: help})
	}
	vec := func(name, help, label string, values ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "commitcast_canary_" + name, Help: help}, []string{label})
		for _, value := range values {
			v.WithLabelValues(value)
		}
		return v
	}
	m := &metrics{
		written:    counter("written_total", "Events of the canary that this node has written; all nodes together write one a second."),
		arrived:    counter("arrived_total", "Events of the canary that have arrived over a socket of this node."),
		lost:       counter("lost_total", "Events of the canary that were passed by a later one."),
		disordered: counter("disordered_total", "Events of the canary that came twice, or after a later one."),
		resets:     counter("resets_total", "Resets that the canary was answered with."),
		sockets:    vec("sockets_total", "Sockets that the canary has opened with this node's own listener, by outcome: opened, failed.", "outcome", socketOpened, socketFailed),
		seconds: vec("seconds_total", "Seconds that this node ran with a canary, by state: fresh if the newest event was at most 3 s old, else stale; not while it is drained.",
			"state", stateFresh, stateStale),
		delay: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "commitcast_canary_delay_seconds",
			Help:    "From append in the database to the socket, by the database's clock.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}}),
	}
	if r == nil {
		return m, nil
	}
	age := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "commitcast_canary_age_seconds",
		Help: "How old the newest event of the canary is that has arrived over a socket of this node; NaN while the node is drained."}, func() float64 {
		if c.cfg.Held() {
			return math.NaN()
		}
		return c.Age().Seconds()
	})
	for _, metric := range []prometheus.Collector{m.written, m.arrived, m.lost, m.disordered, m.resets, m.sockets, m.seconds, m.delay, age} {
		if err := r.Register(metric); err != nil {
			return nil, err
		}
	}
	return m, nil
}
