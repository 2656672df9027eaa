package broadcaster

import "github.com/prometheus/client_golang/prometheus"

// metrics of a broadcaster. No label has a value that a client chooses.
type metrics struct {
	connections, subscriptions, topics        prometheus.Gauge
	messages, bytes, delivered, runs          prometheus.Counter
	gaps, healed, stalled, turnedAway, epochs prometheus.Counter
	expired, conflated                        prometheus.Counter
	resets, replayed, refused, tokens         *prometheus.CounterVec
	shut, limits                              *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "commitcast_broadcaster_" + name, Help: help})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "commitcast_broadcaster_" + name, Help: help})
	}
	vec := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "commitcast_broadcaster_" + name, Help: help}, []string{label})
	}
	m := &metrics{
		connections:   gauge("connections", "Clients connected now."),
		subscriptions: gauge("subscriptions", "Subscriptions of all clients now."),
		topics:        gauge("topics", "Topics with a log in memory now."),
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
		resets:        vec("resets_total", "Subscriptions ended by a reset, by reason.", "reason"),
		replayed:      vec("events_replayed_total", "Events read for subscribers that were behind, by source: stream, journal, or memory, which another one's read had brought.", "source"),
		expired:       counter("sessions_expired_total", "Sessions ended because no token came in time, or none after one that expired."),
		tokens:        vec("tokens_total", "Tokens checked, by outcome: accepted, refused, unavailable.", "outcome"),
		shut:          vec("requests_shut_out_total", "HTTP requests refused at the door, by reason: host, origin, token_in_url, body.", "reason"),
		limits:        vec("limits_total", "Times that a limit was hit, by limit.", "limit"),
		refused:       vec("requests_refused_total", "Requests answered with an error, by code.", "code"),
	}
	if r != nil {
		r.MustRegister(m.connections, m.subscriptions, m.topics, m.messages, m.bytes, m.delivered, m.runs, m.gaps,
			m.healed, m.stalled, m.turnedAway, m.epochs, m.resets, m.replayed, m.refused, m.expired, m.tokens, m.shut, m.limits, m.conflated)
	}
	return m
}
