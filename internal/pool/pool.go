// Package pool shows what pools of Postgres sessions do, as metrics.
package pool

import (
	"sync/atomic"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

// Collector is the metrics of one pool, from when it is told which. Safe for concurrent use.
type Collector struct {
	pool    atomic.Pointer[pgxpool.Pool]
	metrics []metric
}

type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	of   func(s *pgxpool.Stat) float64
}

// NewCollector makes one; name tells the pools of a process apart.
func NewCollector(name string) *Collector {
	c := new(Collector)
	add := func(metricName, help string, kind prometheus.ValueType, of func(s *pgxpool.Stat) float64) {
		desc := prometheus.NewDesc("commitcast_pool_"+metricName, help, nil, prometheus.Labels{"pool": name})
		c.metrics = append(c.metrics, metric{desc, kind, of})
	}
	add("connections", "Sessions with Postgres now.", prometheus.GaugeValue, func(s *pgxpool.Stat) float64 { return float64(s.TotalConns()) })
	add("connections_used", "Those that somebody uses now.", prometheus.GaugeValue, func(s *pgxpool.Stat) float64 { return float64(s.AcquiredConns()) })
	add("connections_max", "How many there may be.", prometheus.GaugeValue, func(s *pgxpool.Stat) float64 { return float64(s.MaxConns()) })
	add("connections_opened_total", "Sessions that were opened.", prometheus.CounterValue, func(s *pgxpool.Stat) float64 { return float64(s.NewConnsCount()) })
	add("acquires_total", "Times that a session was asked for and given.", prometheus.CounterValue, func(s *pgxpool.Stat) float64 { return float64(s.AcquireCount()) })
	add("acquires_waited_total", "Those that had to wait, since all were in use or had to be opened.", prometheus.CounterValue,
		func(s *pgxpool.Stat) float64 { return float64(s.EmptyAcquireCount()) })
	add("acquires_given_up_total", "Those that were given up while they waited.", prometheus.CounterValue,
		func(s *pgxpool.Stat) float64 { return float64(s.CanceledAcquireCount()) })
	add("acquire_wait_seconds_total", "How long those waited that had to.", prometheus.CounterValue,
		func(s *pgxpool.Stat) float64 { return s.EmptyAcquireWaitTime().Seconds() })
	return c
}

// Watch says which pool it is.
func (c *Collector) Watch(p *pgxpool.Pool) { c.pool.Store(p) }

// Describe implements [prometheus.Collector].
func (c *Collector) Describe(to chan<- *prometheus.Desc) {
	for _, m := range c.metrics {
		to <- m.desc
	}
}

// Collect implements [prometheus.Collector].
func (c *Collector) Collect(to chan<- prometheus.Metric) {
	p := c.pool.Load()
	if p == nil {
		return
	}
	s := p.Stat()
	for _, m := range c.metrics {
		to <- prometheus.MustNewConstMetric(m.desc, m.kind, m.of(s))
	}
}
