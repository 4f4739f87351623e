package commands

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/usage"
	"github.com/musique/musique/infra/eventstore"
)

// RecordUsage notes requests that were served.
type RecordUsage struct {
	Requests []ServedRequest
}

// ServedRequest is one request of a company.
type ServedRequest struct {
	Caller Caller
	Served usage.ApiRequestServed
}

// RecordUsageHandler carries out RecordUsage.
type RecordUsageHandler struct{ *tools }

// Handle appends the requests to the streams of their companies' days.
func (h RecordUsageHandler) Handle(ctx context.Context, cmd RecordUsage) error {
	streams := map[string][]event.Proposed{}
	for _, r := range cmd.Requests {
		meta := h.metadata(r.Caller)
		meta.Time = r.Served.Timestamp
		stream := usage.Stream(r.Caller.CompanyID, r.Caller.Environment, r.Served.Timestamp)
		streams[stream] = append(streams[stream], propose(meta, r.Served)...)
	}
	group, ctx := errgroup.WithContext(ctx)
	for stream, events := range streams {
		group.Go(func() error {
			_, err := h.Store.Append(ctx, stream, eventstore.Any, events...)
			return err
		})
	}
	return group.Wait()
}
