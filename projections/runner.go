package projections

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/musique/musique/infra/eventstore"
)

// closeTimeout bounds the wait for the pages in hand when the runner stops.
const closeTimeout = 10 * time.Second

// RunnerConfig says what a Runner works with. Store, Pool and Log are required.
type RunnerConfig struct {
	Store *eventstore.Store
	Pool  *pgxpool.Pool
	// Projections are the ones to run; nil is All.
	Projections []Projection
	// Registry gets the metrics; nil is none.
	Registry prometheus.Registerer
	Log      *slog.Logger
}

// Runner keeps projections in step with the event store: one Watermill handler each, over a subscription of its own. A page of events is one
// transaction with its rows and its checkpoint, so it is applied once or not at all, whatever dies and whenever.
//
// Of each projection one instance is at work in all processes together: the one whose database connection holds the projection's advisory lock, and
// it writes on that same connection. Others stand by. An event that cannot be applied stops its projection and no other: Status tells it, a metric
// counts it, and it is tried again until it works or an operator skips it.
//
// It also builds the new versions of read models that operators asked for (StartRebuild): a process at a time for each, and another where that one dies.
type Runner struct {
	config  RunnerConfig
	metrics metrics
}

type metrics struct {
	position *prometheus.GaugeVec
	events   *prometheus.CounterVec
	failures *prometheus.CounterVec
	leading  *prometheus.GaugeVec
	seconds  *prometheus.HistogramVec
	stopped  *prometheus.GaugeVec
	skipped  *prometheus.CounterVec
}

// NewRunner makes a runner; Run starts it.
func NewRunner(config RunnerConfig) *Runner {
	if config.Projections == nil {
		config.Projections = All()
	}
	label := []string{"projection"}
	r := &Runner{config: config, metrics: metrics{
		position: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "musique_projection_position", Help: "The commit position that the projection has passed."}, label),
		events:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "musique_projection_events_total", Help: "Events applied."}, label),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "musique_projection_failures_total", Help: "Pages that could not be applied."}, label),
		leading:  prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "musique_projection_leading", Help: "1 where this process runs the projection, 0 where it stands by."}, label),
		stopped:  prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "musique_projection_stopped", Help: "1 where this process runs the projection and it stands at an event that cannot be applied."}, label),
		skipped:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "musique_projection_skipped_total", Help: "Events passed without being applied because an operator skipped them."}, label),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "musique_projection_page_seconds", Help: "Time to apply one page.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}, label),
	}}
	for _, p := range config.Projections { // so that they are there before anything goes wrong
		r.metrics.failures.WithLabelValues(p.Name)
		r.metrics.leading.WithLabelValues(p.Name)
		r.metrics.stopped.WithLabelValues(p.Name)
		r.metrics.skipped.WithLabelValues(p.Name)
		r.metrics.events.WithLabelValues(p.Name)
		r.metrics.seconds.WithLabelValues(p.Name)
	}
	if config.Registry != nil {
		config.Registry.MustRegister(r.metrics.position, r.metrics.events, r.metrics.failures, r.metrics.leading, r.metrics.seconds, r.metrics.stopped, r.metrics.skipped)
	}
	return r
}

// Run keeps the projections running until ctx ends; then it lets the pages in hand finish. The tables must be there (Migrate). An event store or a
// database that is away is waited for. An error means that it could not begin.
func (r *Runner) Run(ctx context.Context) error {
	logger := watermill.NewSlogLoggerWithLevelMapping(r.config.Log, map[slog.Level]slog.Level{
		slog.LevelInfo:  slog.LevelDebug,
		slog.LevelError: slog.LevelDebug, // what fails is logged, with its projection and event, where it fails
	})
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: closeTimeout}, logger)
	if err != nil {
		return fmt.Errorf("projections: %w", err)
	}
	router.AddMiddleware(middleware.Recoverer)
	for _, p := range r.config.Projections {
		i := &instance{runner: r, projection: p, log: r.config.Log.With("projection", p.Name)}
		router.AddConsumerHandler(p.Name, p.Name, i, i.handle)
	}
	ctx, cancel := context.WithCancel(ctx)
	var building sync.WaitGroup
	defer building.Wait()
	defer cancel()
	building.Go(func() { r.rebuild(ctx) })
	if err := router.Run(ctx); err != nil {
		return fmt.Errorf("projections: %w", err)
	}
	return nil
}
