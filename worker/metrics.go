package worker

import (
	"context"
	"errors"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"

	"github.com/commitcast/commitcast/internal/pool"
)

// metrics are the worker's. Labels are bounded: never a topic.
type metrics struct {
	sequenced prometheus.Counter
	published *prometheus.CounterVec // outcome
	skipped   prometheus.Counter
	refused   prometheus.Counter
	parked    prometheus.Counter
	dead      prometheus.Counter
	delay     prometheus.Histogram
	publish   prometheus.Histogram
	sequence  prometheus.Histogram
	drains    prometheus.Gauge
	ended     *prometheus.CounterVec // why
	takeovers *prometheus.CounterVec // why
	backlog   prometheus.Gauge
	lagging   prometheus.Gauge
	streamUp  prometheus.Gauge
	dbUp      prometheus.Gauge
	batch     prometheus.Histogram
	jobs      *prometheus.CounterVec // kind, outcome
	pool      *pool.Collector
	survey    *survey
}

// Outcomes of jobs.
const (
	jobCompleted = "completed"
	jobSnoozed   = "snoozed"
	jobCancelled = "cancelled"
	jobFailed    = "failed"
)

// jobMetrics counts what becomes of jobs.
type jobMetrics struct {
	river.MiddlewareDefaults
	m *metrics
}

// Work implements rivertype.WorkerMiddleware.
func (j *jobMetrics) Work(ctx context.Context, job *rivertype.JobRow, do func(context.Context) error) error {
	outcome := jobFailed // unless it gets to its end: a panic passes through here
	defer func() { j.m.jobs.WithLabelValues(job.Kind, outcome).Inc() }()
	err := do(ctx)
	var snooze *rivertype.JobSnoozeError
	var cancel *rivertype.JobCancelError
	switch {
	case err == nil:
		outcome = jobCompleted
	case errors.As(err, &snooze):
		outcome = jobSnoozed
	case errors.As(err, &cancel):
		outcome = jobCancelled
	}
	return err
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	fast := []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60}
	m := &metrics{
		sequenced: prometheus.NewCounter(prometheus.CounterOpts{Name: "commitcast_worker_sequenced_events_total",
			Help: "Events moved from outbox to journal by this process."}),
		published: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "commitcast_worker_published_events_total",
			Help: "Events that the stream confirmed, by outcome: appended, or duplicate if it had them already."}, []string{"outcome"}),
		skipped: prometheus.NewCounter(prometheus.CounterOpts{Name: "commitcast_worker_skipped_events_total",
			Help: "Events that no text frame can hold and that were published as skip frames."}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{Name: "commitcast_worker_refused_attempts_total",
			Help: "Attempts at topics that are set aside which the stream refused although it takes others."}),
		parked: prometheus.NewCounter(prometheus.CounterOpts{Name: "commitcast_worker_parked_topics_total",
			Help: "Topics set aside because the stream refuses them while it takes others."}),
		dead: prometheus.NewCounter(prometheus.CounterOpts{Name: "commitcast_worker_dead_letters_total",
			Help: "Topics given up after the last attempt, until redrive."}),
		delay: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "commitcast_worker_delay_seconds",
			Help: "From append in the writer's transaction to confirmed by the stream, of the oldest event of each batch; compares two clocks.", Buckets: fast}),
		publish: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "commitcast_worker_publish_seconds",
			Help: "One round trip to the stream.", Buckets: fast}),
		sequence: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "commitcast_worker_sequence_seconds",
			Help: "One round trip to Postgres that sequenced at least one event, with the commit and the reading of rows.", Buckets: fast}),
		drains: prometheus.NewGauge(prometheus.GaugeOpts{Name: "commitcast_worker_drains",
			Help: "Partitions that this process drains now."}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "commitcast_worker_drains_ended_total",
			Help: "Drains that ended, by why: idle, passed (a newer term began), stopped, error."}, []string{"why"}),
		takeovers: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "commitcast_worker_takeovers_total",
			Help: "Drains ordered by this process past an earlier one, by why: lost (no session holds its lock), silent, aged, stopped (its process ends)."}, []string{"why"}),
		backlog: prometheus.NewGauge(prometheus.GaugeOpts{Name: "commitcast_worker_unpublished_events",
			Help: "Sequenced but unconfirmed events of the partitions that other processes drain, as of the last sweep."}),
		lagging: prometheus.NewGauge(prometheus.GaugeOpts{Name: "commitcast_worker_lagging_topics",
			Help: "Topics of this process's partitions that are being refilled in the stream."}),
		streamUp: prometheus.NewGauge(prometheus.GaugeOpts{Name: "commitcast_worker_stream_up",
			Help: "1 if the last tick through the stream succeeded."}),
		dbUp: prometheus.NewGauge(prometheus.GaugeOpts{Name: "commitcast_worker_database_up",
			Help: "1 if the dispatcher's last sweep succeeded."}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "commitcast_worker_batch_events",
			Help: "Events sequenced in one transaction, of all partitions.", Buckets: []float64{1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500}}),
		jobs: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "commitcast_worker_jobs_total",
			Help: "Jobs of River that this process has worked on, by kind and outcome: completed, snoozed, cancelled, failed."}, []string{"kind", "outcome"}),
		pool:   pool.NewCollector("worker"),
		survey: newSurvey(),
	}
	for _, kind := range jobKinds {
		for _, outcome := range []string{jobCompleted, jobSnoozed, jobCancelled, jobFailed} {
			m.jobs.WithLabelValues(kind, outcome)
		}
	}
	for vec, values := range map[*prometheus.CounterVec][]string{
		m.published: {"appended", "duplicate"},
		m.ended:     {endIdle, endPassed, endAged, endStopped, endError},
		m.takeovers: {"lost", "silent", "aged", "stopped"},
	} {
		for _, v := range values {
			vec.WithLabelValues(v)
		}
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.sequenced, m.published, m.skipped, m.refused, m.parked, m.dead, m.delay, m.publish, m.sequence,
		m.drains, m.ended, m.takeovers, m.backlog, m.lagging, m.streamUp, m.dbUp, m.batch, m.jobs, m.pool, m.survey} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
