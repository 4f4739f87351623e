package commands

import (
	"context"

	"github.com/google/uuid"
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
	// ID is the event's. With it a request that is recorded again, because nobody knows what became of the first time, is there once.
	ID     uuid.UUID
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
		streams[stream] = append(streams[stream], event.Proposed{ID: r.ID, Payload: r.Served, Metadata: meta})
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
