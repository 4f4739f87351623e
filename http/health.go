package httpapi

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/musique/musique/projections"
)

// Check asks one part whether it works now. It honours its context's deadline.
type Check func(context.Context) error

// Checks are the parts that health asks.
type Checks struct {
	Database, Storage, Messaging, EventStore Check
}

// checkTimeout bounds the question to each part; they are asked at the same time.
const checkTimeout = 2 * time.Second

// The states of the whole and of its parts.
const (
	healthy  = "healthy"
	degraded = "degraded"
	down     = "down"
)

type services struct {
	Database   string `json:"database"`
	Storage    string `json:"storage"`
	Messaging  string `json:"messaging"`
	EventStore string `json:"eventStore"`
}

// ask asks every part and gives each its state, and the state of the whole: down without the database, which every call needs, or with nothing left;
// degraded if anything else is away.
func (c Checks) ask(ctx context.Context) (overall string, each services) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	var all sync.WaitGroup
	for _, part := range []struct {
		check Check
		state *string
	}{{c.Database, &each.Database}, {c.Storage, &each.Storage}, {c.Messaging, &each.Messaging}, {c.EventStore, &each.EventStore}} {
		all.Go(func() {
			*part.state = healthy
			if part.check(ctx) != nil {
				*part.state = down
			}
		})
	}
	all.Wait()
	switch {
	case each == services{healthy, healthy, healthy, healthy}:
		return healthy, each
	case each.Database == down:
		return down, each
	}
	return degraded, each
}

type healthData struct {
	Status    string    `json:"status"`
	Version   string    `json:"version"`
	Timestamp timestamp `json:"timestamp"`
	Services  services  `json:"services"`
}

// degradedBy is degraded in place of healthy where a projection stands at an event that it cannot apply: the parts are well, and what is read goes out of date.
func (s *Server) degradedBy(ctx context.Context, overall string) string {
	if overall != healthy {
		return overall
	}
	if stopped, err := projections.Stopped(ctx, s.pool); err != nil || len(stopped) > 0 {
		return degraded
	}
	return overall
}

// health answers how the service is. The question is answered with 200 whatever the answer is.
func (s *Server) health(c *call) error {
	overall, each := s.checks.ask(c.ctx())
	return c.data(http.StatusOK, healthData{Status: s.degradedBy(c.ctx(), overall), Version: s.version, Timestamp: timestamp(s.now()), Services: each})
}
