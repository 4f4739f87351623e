package eventstore

import (
	"errors"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what the operators' monitoring sees of the connection to the event store.
type metrics struct {
	appends *prometheus.HistogramVec
}

// What becomes of an append.
const (
	outcomeDone     = "done"
	outcomeConflict = "conflict"
	outcomeAway     = "unavailable"
	outcomeRefused  = "refused"
)

func newMetrics() metrics {
	m := metrics{appends: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "musique_eventstore_append_duration_seconds", Help: "Time of an append to the event store, its repeats included, by what became of it: done, conflict, unavailable or refused.",
		Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
	}, []string{"outcome"})}
	for _, outcome := range []string{outcomeDone, outcomeConflict, outcomeAway, outcomeRefused} {
		m.appends.WithLabelValues(outcome)
	}
	return m
}

func (m metrics) appended(began time.Time, err error) {
	outcome := outcomeDone
	switch {
	case errors.Is(err, ErrConflict):
		outcome = outcomeConflict
	case errors.Is(err, ErrUnavailable):
		outcome = outcomeAway
	case err != nil:
		outcome = outcomeRefused
	}
	m.appends.WithLabelValues(outcome).Observe(time.Since(began).Seconds())
}

var (
	upDesc    = prometheus.NewDesc("musique_eventstore_up", "1 while there is a connection to the event store that answered, 0 while one is looked for.", nil, nil)
	callsDesc = prometheus.NewDesc("musique_eventstore_calls", "Calls to the event store that are under way, subscriptions included.", nil, nil)
	lostDesc  = prometheus.NewDesc("musique_eventstore_connections_lost_total", "Connections to the event store that were given up because it went away.", nil, nil)
)

// Describe implements prometheus.Collector.
func (s *Store) Describe(descriptions chan<- *prometheus.Desc) {
	prometheus.DescribeByCollect(s, descriptions)
}

// Collect implements prometheus.Collector.
func (s *Store) Collect(to chan<- prometheus.Metric) {
	s.link.appends.Collect(to)
	up, calls, lost := s.link.state()
	to <- prometheus.MustNewConstMetric(upDesc, prometheus.GaugeValue, up)
	to <- prometheus.MustNewConstMetric(callsDesc, prometheus.GaugeValue, calls)
	to <- prometheus.MustNewConstMetric(lostDesc, prometheus.CounterValue, lost)
}

// kindOf is the kind of what a stream is of: `send` of `send-snd_…`.
func kindOf(stream string) string {
	kind, _, _ := strings.Cut(stream, "-")
	return kind
}
