package app

import (
	"crypto/tls"
	"errors"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/commitcast/commitcast/broadcaster"
)

// buildInfo says which binary this is.
func buildInfo() prometheus.Collector {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "commitcast_build_info", Help: "1, with the version of this binary and of Go."}, []string{"version", "go"})
	g.WithLabelValues(buildVersion(), runtime.Version()).Set(1)
	return g
}

// serves reports whether delivery goes on with what a part says of itself: by polling, late by a fraction of a second; or, with
// several databases, for the topics of the others.
func serves(err error) bool {
	return errors.Is(err, broadcaster.ErrPolling) || errors.Is(err, broadcaster.ErrPartly)
}

// readiness is what /readyz says of each part, as metrics.
type readiness map[string]func() error

var descReady = prometheus.NewDesc("commitcast_ready", "1 if /readyz calls this part of the process ready: worker, broadcaster, canary.", []string{"part"}, nil)

// Describe implements [prometheus.Collector].
func (readiness) Describe(to chan<- *prometheus.Desc) { to <- descReady }

// Collect implements [prometheus.Collector].
func (r readiness) Collect(to chan<- prometheus.Metric) {
	for part, check := range r {
		v := 0.0
		if err := check(); err == nil || serves(err) {
			v = 1
		}
		to <- prometheus.MustNewConstMetric(descReady, prometheus.GaugeValue, v, part)
	}
}

// expiries are the certificates that are served, by listener; nil: none.
type expiries map[string]*tls.Config

var descExpiry = prometheus.NewDesc("commitcast_certificate_expires_timestamp_seconds", "When the certificate expires that is served, by listener: clients, operators.",
	[]string{"listener"}, nil)

// Describe implements [prometheus.Collector].
func (expiries) Describe(to chan<- *prometheus.Desc) { to <- descExpiry }

// Collect implements [prometheus.Collector].
func (e expiries) Collect(to chan<- prometheus.Metric) {
	for listener, end := range e.all() {
		to <- prometheus.MustNewConstMetric(descExpiry, prometheus.GaugeValue, float64(end.Unix()), listener)
	}
}

// all are the ends of those that are served, by listener.
func (e expiries) all() map[string]time.Time {
	ends := make(map[string]time.Time)
	for listener, config := range e {
		if config == nil {
			continue
		}
		if c, err := config.GetCertificate(nil); err == nil && c.Leaf != nil {
			ends[listener] = c.Leaf.NotAfter
		}
	}
	return ends
}
