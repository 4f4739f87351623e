// Package httpapi is the Partner API in HTTP: what partners, players and operators can ask for, and how they are answered. Each resource has a file of
// its own; router.go lists every path.
package httpapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/infra/blobs"
	"github.com/musique/musique/infra/endpoint"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/keys"
	"github.com/musique/musique/infra/telemetry"
	"github.com/musique/musique/projections/tokens"
	"github.com/musique/musique/workers/inbox"
)

// Config is what a Server works with. All fields are required but those that say otherwise.
type Config struct {
	// Commands carry out what changes something.
	Commands *commands.Handlers
	// Reads are those that the commands ask; the API asks them for the quotas.
	Reads commands.Reads
	// Pool reaches the read models.
	Pool *pgxpool.Pool
	// Blobs hold the audio's bytes.
	Blobs *blobs.Store
	// Store tells how far the projections are behind it.
	Store *eventstore.Store
	// Inbox wakes the players' streams; its Run is the caller's to start.
	Inbox *inbox.Hub
	// Keys hash the tokens that callers present.
	Keys *keys.Ring
	// Plans are the plans by name.
	Plans company.Plans
	// Checks ask the parts how they are.
	Checks Checks
	// Version is the program's, as health and information tell it.
	Version string
	// OpsToken is what operators present on the ops address. Empty lets in whoever reaches the address, which is for loopback only.
	OpsToken string
	// PublicURL is the scheme and host that URLs in answers begin with; nil is those that the caller reached us by.
	PublicURL *url.URL
	// TrustForwarded believes X-Forwarded-For, -Proto and -Host: set it only behind a proxy that overwrites them. Default false.
	TrustForwarded bool
	// SpoolDir is where uploads are kept while they arrive; empty is the system's temporary folder.
	SpoolDir string
	// Backup makes the parts of a backup; nil where the event store is a server of its own.
	Backup func() (BackupParts, error)
	// Tracer records the traces of requests; nil records none.
	Tracer *telemetry.Tracer
	// Registry gets the metrics, and /metrics shows it.
	Registry *prometheus.Registry
	Log      *slog.Logger
	// Now tells the time; nil is time.Now.
	Now func() time.Time
}

// Server answers partners, players and operators. It holds no state that matters: any number of processes can serve the same companies.
type Server struct {
	commands       *commands.Handlers
	reads          commands.Reads
	pool           *pgxpool.Pool
	store          *eventstore.Store
	blobs          *blobs.Store
	signer         blobs.Signer
	reports        endpoint.Reports
	inbox          *inbox.Hub
	keys           *keys.Ring
	plans          company.Plans
	checks         Checks
	version        string
	opsToken       string
	publicURL      *url.URL
	makeBackup     func() (BackupParts, error)
	trustForwarded bool
	spoolDir       string
	registry       *prometheus.Registry
	tracer         *telemetry.Tracer
	log            *slog.Logger
	now            func() time.Time

	reference     *reference
	authenticator *tokens.Authenticator

	metrics *metrics
	usage   *usageRecorder
	streams *streams

	partnerAPI http.Handler
	opsAPI     http.Handler

	drainOnce sync.Once
	drained   chan struct{} // closed by Drain
}

// New makes a server. Close ends it.
func New(config Config) (*Server, error) {
	if config.Commands == nil || config.Reads == nil || config.Pool == nil || config.Store == nil || config.Blobs == nil || config.Inbox == nil || config.Keys == nil || config.Plans == nil || config.Registry == nil || config.Log == nil {
		return nil, errors.New("httpapi: the configuration lacks a part")
	}
	if _, ok := config.Plans[company.Standard]; !ok {
		return nil, fmt.Errorf("httpapi: there is no plan %s", company.Standard)
	}
	reference, err := newReference((*Server)(nil).routes())
	if err != nil {
		return nil, err
	}
	metrics, err := newMetrics(config.Registry)
	if err != nil {
		return nil, err
	}
	s := &Server{
		commands: config.Commands, reads: config.Reads, pool: config.Pool, store: config.Store, inbox: config.Inbox, blobs: config.Blobs, signer: blobs.NewSigner(config.Keys.SigningKeys("media")), reports: endpoint.NewReports(config.Keys.SigningKeys("report")), keys: config.Keys, plans: config.Plans, checks: config.Checks,
		version: config.Version, opsToken: config.OpsToken, publicURL: config.PublicURL, makeBackup: config.Backup, trustForwarded: config.TrustForwarded, spoolDir: config.SpoolDir,
		registry: config.Registry, tracer: config.Tracer, log: config.Log, now: config.Now, reference: reference, metrics: metrics, streams: newStreams(), drained: make(chan struct{}),
	}
	if s.now == nil {
		s.now = time.Now
	}
	s.authenticator = tokens.NewAuthenticator(s.pool, s.plans, s.now)
	s.usage = newUsageRecorder(config.Commands.RecordUsage.Handle, func(n int) { metrics.lost.Add(float64(n)) }, func(err error) {
		s.log.Warn("requests wait to be recorded in the usage logs", "error", err)
	})
	s.partnerAPI = s.newPartnerAPI()
	s.opsAPI = s.newOpsAPI()
	go s.watchStreams()
	return s, nil
}

// Partner serves partners and players.
func (s *Server) Partner() http.Handler { return s.partnerAPI }

// Ops serves the operators' address: /livez, /readyz, /metrics and /ops.
func (s *Server) Ops() http.Handler { return s.opsAPI }

func (s *Server) newPartnerAPI() http.Handler {
	return s.newRouter(s.routes(), s.servePartner, s.lostPartner)
}

// Drain begins the end: streams close, and /readyz says that this process should get no more requests. Call it before http.Server.Shutdown, which
// waits for streams and would wait for ever.
func (s *Server) Drain() { s.drainOnce.Do(func() { close(s.drained) }) }

// Close records what is still to be recorded of the requests that were answered. Call it after http.Server.Shutdown. The error says that ctx was over
// before that was done.
func (s *Server) Close(ctx context.Context) error {
	s.Drain()
	return s.usage.close(ctx)
}

func (s *Server) draining() bool {
	select {
	case <-s.drained:
		return true
	default:
		return false
	}
}

// plan is a plan by name; a company whose plan is not configured any more has the standard one.
func (s *Server) plan(name string) company.Plan {
	if p, ok := s.plans[name]; ok {
		return p
	}
	return s.plans[company.Standard]
}
