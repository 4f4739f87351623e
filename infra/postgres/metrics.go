package postgres

import (
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

// poolCollector shows how a pool of connections is used.
type poolCollector struct{ pool *pgxpool.Pool }

// Collector gives the metrics of a pool.
func Collector(pool *pgxpool.Pool) prometheus.Collector { return poolCollector{pool} }

var (
	connectionsDesc = prometheus.NewDesc("musique_postgres_pool_connections", "Connections of the pool to PostgreSQL, by state: acquired, idle or constructing.", []string{"state"}, nil)
	maxDesc         = prometheus.NewDesc("musique_postgres_pool_max_connections", "Connections that the pool may have at most.", nil, nil)
	acquiresDesc    = prometheus.NewDesc("musique_postgres_pool_acquires_total", "Connections that were taken from the pool.", nil, nil)
	waitsDesc       = prometheus.NewDesc("musique_postgres_pool_waits_total", "Connections that were waited for, since the pool had none left.", nil, nil)
	canceledDesc    = prometheus.NewDesc("musique_postgres_pool_canceled_acquires_total", "Waits for a connection that were given up.", nil, nil)
	acquiringDesc   = prometheus.NewDesc("musique_postgres_pool_acquire_seconds_total", "Time that was waited for connections of the pool.", nil, nil)
	newDesc         = prometheus.NewDesc("musique_postgres_pool_new_connections_total", "Connections that were opened.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c poolCollector) Describe(to chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, to) }

// Collect implements prometheus.Collector.
func (c poolCollector) Collect(to chan<- prometheus.Metric) {
	s := c.pool.Stat()
	gauge := func(desc *prometheus.Desc, value int32, labels ...string) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(value), labels...)
	}
	counter := func(desc *prometheus.Desc, value float64) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, value)
	}
	gauge(connectionsDesc, s.AcquiredConns(), "acquired")
	gauge(connectionsDesc, s.IdleConns(), "idle")
	gauge(connectionsDesc, s.ConstructingConns(), "constructing")
	gauge(maxDesc, s.MaxConns())
	counter(acquiresDesc, float64(s.AcquireCount()))
	counter(waitsDesc, float64(s.EmptyAcquireCount()))
	counter(canceledDesc, float64(s.CanceledAcquireCount()))
	counter(acquiringDesc, s.AcquireDuration().Seconds())
	counter(newDesc, float64(s.NewConnsCount()))
}
