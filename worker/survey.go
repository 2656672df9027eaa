package worker

import (
	"context"
	_ "embed"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/riverqueue/river/rivertype"
)

//go:embed survey.sql
var surveySQL string

const (
	// surveyEvery is the time between two looks at the whole pipeline: as often as it is worth scraping.
	surveyEvery = 5 * time.Second
	// surveyTimeout bounds one.
	surveyTimeout = 2 * time.Second
	// surveyKept is how long an old look is shown when there is no newer one; then nothing is, rather than what was true once.
	surveyKept = 3 * surveyEvery
	// surveyMost is where counts stop that may be large: of waiting events for each partition.
	surveyMost = 1000
)

// surveyed are the values of survey.sql, in order. The database says them: all workers of one database say the same.
var surveyed = []struct{ name, help string }{
	{"waiting_events", "Committed events that have no offset yet; counting stops at 1,000 a partition."},
	{"waiting_seconds", "Age of the oldest of these."},
	{"unpublished_events", "Events with an offset that the stream has not confirmed."},
	{"unpublished_seconds", "Age of the oldest of these."},
	{"paused_partitions", "Partitions that an operator has paused."},
	{"sequenced_events", "Sum of all partitions' seq: events that ever got an offset; falls when the database goes back."},
	{"published_events", "Sum of all partitions' published: events that the stream has confirmed, or that were set aside."},
	{"set_aside_topics", "Topics that are set aside, given up or not; counting stops at 1,000."},
	{"given_up_topics", "Topics that are set aside until redrive: by the last attempt, or by an operator; counting stops at 1,000."},
	{"dead_letters", "Dead letters that were not redriven; counting stops at 1,000."},
	{"journal_bytes", "What the journal takes on disk, indexes included."},
	{"journal_retained_seconds", "Age of the oldest day of the journal, from its beginning."},
	{"journal_days_ahead", "For how many days after today the journal has leaves; below 0 sequencing stands still until a worker makes one."},
	{"outbox_dead_rows", "Rows of the outbox that were removed and that vacuum has not taken yet, as Postgres estimates."},
	{"epoch_ordinal", "Ordinal of the database's epoch; rises when the database went back, or may have."},
}

// jobKinds are those of River's that workers have.
var jobKinds = []string{DrainArgs{}.Kind(), RepublishArgs{}.Kind(), UpkeepArgs{}.Kind()}

// survey is what was seen of the whole pipeline last, as a collector of metrics.
type survey struct {
	descs    []*prometheus.Desc
	jobs     *prometheus.Desc
	appender *prometheus.Desc

	mu        sync.Mutex
	at        time.Time // of the last look; zero: none
	values    []float64
	jobCounts map[[2]string]float64 // by kind and state; states that are over are not counted, but discarded
	seen      map[string]time.Time  // who has appended and not ended, by virtual transaction
}

func newSurvey() *survey {
	s := &survey{
		jobs: prometheus.NewDesc("commitcast_river_jobs", "Jobs of River by kind and state, without those that have completed or were cancelled.", []string{"kind", "state"}, nil),
		appender: prometheus.NewDesc("commitcast_pipeline_open_append_seconds",
			"For how long the oldest transaction has been open that has appended, as far as this process has seen.", nil, nil),
	}
	for _, v := range surveyed {
		s.descs = append(s.descs, prometheus.NewDesc("commitcast_pipeline_"+v.name, v.help, nil, nil))
	}
	return s
}

// Describe implements prometheus.Collector.
func (s *survey) Describe(to chan<- *prometheus.Desc) {
	for _, d := range s.descs {
		to <- d
	}
	to <- s.jobs
	to <- s.appender
}

// jobStates are those of jobs that are not over, and discarded, which somebody has to look at.
var jobStates = []rivertype.JobState{rivertype.JobStateAvailable, rivertype.JobStatePending, rivertype.JobStateRunning,
	rivertype.JobStateRetryable, rivertype.JobStateScheduled, rivertype.JobStateDiscarded}

// Collect implements prometheus.Collector.
func (s *survey) Collect(to chan<- prometheus.Metric) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.at.IsZero() || now.Sub(s.at) > surveyKept {
		return
	}
	for i, d := range s.descs {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, s.values[i])
	}
	for _, kind := range jobKinds {
		for _, state := range jobStates {
			to <- prometheus.MustNewConstMetric(s.jobs, prometheus.GaugeValue, s.jobCounts[[2]string{kind, string(state)}], kind, string(state))
		}
	}
	oldest := 0.0
	for _, since := range s.seen {
		oldest = max(oldest, now.Sub(since).Seconds())
	}
	to <- prometheus.MustNewConstMetric(s.appender, prometheus.GaugeValue, oldest)
}

// survey looks at the whole pipeline until ctx ends.
func (w *Worker) survey(ctx context.Context) {
	for wait := jitter(surveyEvery / 5); sleep(ctx, wait); wait = surveyEvery*9/10 + jitter(surveyEvery/5) {
		if err := w.look(ctx); err != nil && ctx.Err() == nil {
			w.log.DebugContext(ctx, "the pipeline could not be looked at", "error", err)
		}
	}
}

// look looks once.
func (w *Worker) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, surveyTimeout)
	defer cancel()
	values := make([]float64, len(surveyed))
	to := make([]any, 0, len(values)+1)
	for i := range values {
		to = append(to, &values[i])
	}
	var appenders []string
	if err := w.pool.QueryRow(ctx, surveySQL, surveyMost).Scan(append(to, &appenders)...); err != nil {
		return fmt.Errorf("looking at the pipeline: %w", err)
	}
	rows, err := w.pool.Query(ctx, `SELECT kind, state::text, count(*)::float8 FROM commitcast.river_job WHERE state NOT IN ('completed', 'cancelled') GROUP BY 1, 2`)
	if err != nil {
		return fmt.Errorf("counting jobs: %w", err)
	}
	counts := make(map[[2]string]float64)
	var kind, state string
	var n float64
	if _, err := pgx.ForEachRow(rows, []any{&kind, &state, &n}, func() error { counts[[2]string{kind, state}] = n; return nil }); err != nil {
		return fmt.Errorf("counting jobs: %w", err)
	}
	s, now := w.metrics.survey, time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := make(map[string]time.Time, len(appenders))
	for _, who := range appenders {
		since, ok := s.seen[who]
		if !ok {
			since = now
		}
		seen[who] = since
	}
	s.at, s.values, s.jobCounts, s.seen = now, values, counts, seen
	return nil
}
