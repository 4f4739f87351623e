package httpapi

import (
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/token"
	"github.com/musique/musique/infra/blobs"
	"github.com/musique/musique/infra/keys"
	"github.com/musique/musique/projections/tokens"
)

// ReplayConfig is what a replay is read with. All fields are required.
type ReplayConfig struct {
	// Pool reaches the read models as they were.
	Pool *pgxpool.Pool
	// AsOf is the moment that they are as of, and what the API takes for now.
	AsOf time.Time
	// CompanyID and Environment are whose data is shown: whoever reaches the handler needs no token.
	CompanyID   string
	Environment event.Environment
	// Keys seal the cursors of lists.
	Keys *keys.Ring
	Log  *slog.Logger
}

// asOfHeader tells the moment that an answer is as of.
const asOfHeader = "Musique-As-Of"

// NewReplay serves what one company's tokens could have read at a moment: the lists and resources of the API, by the handlers that serve partners. Nothing can be
// changed, and nothing is counted or logged. It is for auditors, on an address that nobody else reaches.
func NewReplay(config ReplayConfig) (http.Handler, error) {
	if config.Pool == nil || config.Keys == nil || config.Log == nil || config.CompanyID == "" || config.Environment == "" {
		return nil, errors.New("httpapi: the configuration of a replay lacks a part")
	}
	metrics, err := newMetrics(prometheus.NewRegistry())
	if err != nil {
		return nil, err
	}
	s := &Server{
		pool: config.Pool, keys: config.Keys, signer: blobs.NewSigner(config.Keys.SigningKeys("media")), log: config.Log, metrics: metrics,
		now: func() time.Time { return config.AsOf },
	}
	var routes []*route
	for _, r := range s.routes() {
		if r.method == http.MethodGet && r.access == byToken && r.scope != "" { // what asks no more than the read models
			routes = append(routes, r)
		}
	}
	caller := tokens.Caller{CompanyID: config.CompanyID, Environment: config.Environment, Permissions: token.Permissions}
	serve := func(c *call) error {
		c.caller = caller
		c.w.Header().Set(asOfHeader, config.AsOf.UTC().Format(time.RFC3339Nano))
		if err := refuseConditions(c.r); err != nil {
			return err
		}
		return c.route.handle(c)
	}
	return s.newRouter(routes, serve, func(_ *call, lost error) error {
		if fault.CodeOf(lost) == fault.NotFound {
			return fault.New(fault.NotFound, "There is no such path in a replay, which has the lists and resources of the API.")
		}
		return lost
	}), nil
}
