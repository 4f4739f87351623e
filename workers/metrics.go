package workers

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/musique/musique/workers/cloudevents"
)

// Metrics are what the operators' monitoring sees of the workers of this process. A nil Metrics counts nothing.
type Metrics struct {
	leading   *prometheus.GaugeVec
	failures  *prometheus.CounterVec
	published *prometheus.CounterVec
	kafka     *prometheus.CounterVec
	delivered prometheus.Counter
	refused   prometheus.Counter
	aside     prometheus.Counter
}

// The workers that are active in one process at a time, by the names that their locks have.
var leads = []string{"publisher", "dispatch", "closer", "cancellation", "removals", "simulator", "endpoints", "schedule", "scheduler", "expiry", "deleted-audio", "cleanup", "sweep", "history"}

// NewMetrics makes the metrics and registers them.
func NewMetrics(registry prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		leading: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "musique_worker_leading", Help: "1 where this process is the one that does the work of that name, 0 where it stands by or has not that role.",
		}, []string{"worker"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "musique_worker_failures_total", Help: "How often a worker failed and tried again.",
		}, []string{"worker"}),
		published: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "musique_publisher_events_total", Help: "Public events that the brokers took, by topic; what is published again after a crash counts again.",
		}, []string{"topic"}),
		kafka: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "musique_kafka_publish_errors_total", Help: "Calls to publish that the brokers did not take, by worker; they are tried again.",
		}, []string{"worker"}),
		delivered: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "musique_delivery_deliveries_total", Help: "Deliveries that were put into inboxes; what comes again counts again.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "musique_delivery_refused_messages_total", Help: "Messages of the dispatch topic that could not be delivered and come again.",
		}),
		aside: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "musique_delivery_set_aside_messages_total", Help: "Messages of the dispatch topic that can never be delivered, and were put on a topic of their own.",
		}),
	}
	for _, name := range leads {
		m.leading.WithLabelValues(name)
		m.failures.WithLabelValues(name)
	}
	for _, topic := range cloudevents.Topics {
		m.published.WithLabelValues(topic)
	}
	for _, worker := range []string{"publisher", "dispatch"} {
		m.kafka.WithLabelValues(worker)
	}
	for _, c := range []prometheus.Collector{m.leading, m.failures, m.published, m.kafka, m.delivered, m.refused, m.aside} {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

// leads notes that this process begins the work of that name, and gives what notes that it ends.
func (m *Metrics) leads(name string) (ended func()) {
	if m == nil {
		return func() {}
	}
	m.leading.WithLabelValues(name).Set(1)
	return func() { m.leading.WithLabelValues(name).Set(0) }
}

func (m *Metrics) failed(name string) {
	if m != nil {
		m.failures.WithLabelValues(name).Inc()
	}
}

// tookEvents notes what became of a call to publish events.
func (m *Metrics) tookEvents(topic string, n int, err error) {
	switch {
	case m == nil:
	case err != nil:
		m.kafka.WithLabelValues("publisher").Inc()
	default:
		m.published.WithLabelValues(topic).Add(float64(n))
	}
}

// tookDispatch notes what became of a call to publish dispatches.
func (m *Metrics) tookDispatch(err error) {
	if m != nil && err != nil {
		m.kafka.WithLabelValues("dispatch").Inc()
	}
}

func (m *Metrics) tookDeliveries(n int) {
	if m != nil {
		m.delivered.Add(float64(n))
	}
}

func (m *Metrics) setAsideMessage() {
	if m != nil {
		m.aside.Inc()
	}
}

func (m *Metrics) refusedMessage() {
	if m != nil {
		m.refused.Inc()
	}
}
