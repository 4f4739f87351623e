package main

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/commands"
	httpapi "github.com/musique/musique/http"
	"github.com/musique/musique/infra/endpoint"
	"github.com/musique/musique/infra/kafka"
	"github.com/musique/musique/infra/postgres"
	"github.com/musique/musique/infra/telemetry"
	"github.com/musique/musique/projections"
	"github.com/musique/musique/workers"
	"github.com/musique/musique/workers/inbox"
)

// app is the program's own parts, wired together.
type app struct {
	config    serveConfig
	parts     *parts
	registry  *prometheus.Registry
	tracer    *telemetry.Tracer
	metrics   *workers.Metrics // nil counts nothing
	log       *slog.Logger
	positions *projections.Positions
	hub       *inbox.Hub
	reads     *projections.Reads
	commands  *commands.Handlers
}

func assemble(config serveConfig, p *parts, registry *prometheus.Registry, tracer *telemetry.Tracer, log *slog.Logger) *app {
	a := &app{config: config, parts: p, registry: registry, tracer: tracer, log: log}
	a.positions = projections.NewPositions(p.pool, log)
	a.hub = inbox.NewHub(p.pool, log)
	a.reads = projections.NewReads(p.pool, a.positions)
	a.commands = commands.New(commands.Deps{
		Store: p.store, Blobs: p.blobs, Keys: p.keys, Reads: a.reads, Plans: config.plans, Endpoints: endpoint.Policy{AllowPrivate: config.allowPrivateEndpoints},
		Now: time.Now, Log: log,
	})
	return a
}

func (a *app) workerDeps() workers.Deps {
	return workers.Deps{
		Store: a.parts.store, Pool: a.parts.pool, Brokers: a.parts.brokers, Commands: a.commands, Reads: a.reads, Blobs: a.parts.blobs,
		Hub: a.hub, Metrics: a.metrics, Now: time.Now, Log: a.log,
	}
}

// observe registers the metrics of the parts, and of the installation as a whole.
func (a *app) observe(ctx context.Context, running *errgroup.Group) (err error) {
	if a.metrics, err = workers.NewMetrics(a.registry); err != nil {
		return err
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "musique_build_info", Help: "Always 1; its labels say which program this is.", ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	})
	build.Set(1)
	monitor := workers.NewMonitor(a.workerDeps())
	for _, c := range []prometheus.Collector{build, a.parts.store, postgres.Collector(a.parts.pool), monitor} {
		if err := a.registry.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	running.Go(func() error { return monitor.Run(ctx) })
	return nil
}

// start runs the roles' workers until ctx ends.
func (a *app) start(ctx context.Context, running *errgroup.Group) {
	work := func(run func(context.Context) error) { running.Go(func() error { return run(ctx) }) }
	has := func(role string) bool { return slices.Contains(a.config.roles, role) }
	work(a.positions.Run)
	work(a.hub.Run)
	deps := a.workerDeps()
	if has("projections") {
		work(projections.NewRunner(projections.RunnerConfig{Store: a.parts.store, Pool: a.parts.pool, Registry: a.registry, Log: a.log}).Run)
	}
	if has("publisher") {
		work(workers.NewPublisher(deps, workers.PublisherConfig{Partitions: a.config.topicPartitions, Retention: a.config.topicRetention}).Run)
	}
	if has("delivery") {
		work(workers.NewDispatch(deps).Run)
		work(workers.NewDelivery(deps).Run)
		work(workers.NewCloser(deps).Run)
		work(workers.NewCancellation(deps).Run)
		work(workers.NewSimulator(deps).Run)
	}
	if has("scheduler") {
		scheduler, cleanup := workers.NewScheduler(deps), workers.NewCleanup(deps)
		work(scheduler.Follow)
		work(scheduler.Run)
		work(workers.NewExpiry(deps).Run)
		work(cleanup.Follow)
		work(cleanup.Run)
		work(workers.NewHistory(deps, a.historyConfig()).Run)
	}
}

// startEndpoints runs the worker that tells endpoints of locations what to play, until ctx ends. Its messages have URLs of the API in them, so it starts when
// it is known where that is; served is the address that this process serves it on, if it does.
func (a *app) startEndpoints(ctx context.Context, running *errgroup.Group, served string) error {
	if !slices.Contains(a.config.roles, "delivery") {
		return nil
	}
	if served == "" {
		served = a.config.httpAddr
	}
	publicURL := "http://" + served
	if a.config.publicURL != nil {
		publicURL = a.config.publicURL.String()
	}
	endpoints, err := workers.NewEndpoints(a.workerDeps(), workers.EndpointsConfig{
		Keys: a.parts.keys, Policy: endpoint.Policy{AllowPrivate: a.config.allowPrivateEndpoints}, PublicURL: publicURL, Registry: a.registry,
	})
	if err != nil {
		return err
	}
	running.Go(func() error { return endpoints.Run(ctx) })
	return nil
}

// api makes the HTTP side.
func (a *app) api() (*httpapi.Server, error) {
	p := a.parts
	return httpapi.New(httpapi.Config{
		Commands: a.commands, Reads: a.reads, Pool: p.pool, Store: p.store, Blobs: p.blobs, Inbox: a.hub, Keys: p.keys, Plans: a.config.plans,
		Checks: httpapi.Checks{
			Database:   p.pool.Ping,
			Storage:    p.blobs.Ping,
			Messaging:  func(ctx context.Context) error { return kafka.Ping(ctx, p.brokers) },
			EventStore: p.store.Ping,
		},
		Version: version, OpsToken: a.config.opsToken, Backup: p.backup(a.config.dataDir), PublicURL: a.config.publicURL, TrustForwarded: a.config.trustForwarded,
		Tracer: a.tracer, Registry: a.registry, Log: a.log,
	})
}

// readyLine is where everything is, as the log line that a start ends with says it.
type readyLine struct {
	HTTP, Ops, EventStore, Kafka string
}

// announce says that the server is ready: in one line for programs, in a banner with the first commands for people.
func announce(config serveConfig, log *slog.Logger, at readyLine, demo *demoCompany) {
	if config.logFormat == "json" {
		if demo != nil { // a log is no place for its token
			log.Info("this data folder has a demo company: 'musique company rotate-token' shows a token for it", "company", demo.companyID)
		}
		log.Info("ready", "http", at.HTTP, "ops", at.Ops, "eventstore", at.EventStore, "kafka", at.Kafka, "version", version)
		return
	}
	fmt.Print(banner(at, demo))
}
