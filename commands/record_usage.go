package commands

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/usage"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/telemetry"
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

const (
	// UsageAge is how long the events of a day's usage, which hold addresses of people, are read: the 90 days that the logs show, and two for a
	// projection that has to catch up.
	UsageAge = (90 + 2) * 24 * time.Hour
	// maxLimitedStreams bounds the streams that are remembered to have that limit. They are forgotten together, and it is set once more then.
	maxLimitedStreams = 50_000
)

// RecordUsageHandler carries out RecordUsage.
type RecordUsageHandler struct {
	*tools
	limited *limitedStreams
}

// limitedStreams are streams whose limit of age this process knows to be set.
type limitedStreams struct {
	mu    sync.Mutex
	names map[string]struct{}
}

func (l *limitedStreams) has(stream string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, known := l.names[stream]
	return known
}

func (l *limitedStreams) add(stream string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.names == nil || len(l.names) >= maxLimitedStreams {
		l.names = map[string]struct{}{}
	}
	l.names[stream] = struct{}{}
}

// Handle appends the requests to the streams of their companies' days.
func (h RecordUsageHandler) Handle(ctx context.Context, cmd RecordUsage) error {
	streams := map[string][]event.Proposed{}
	for _, r := range cmd.Requests {
		meta := h.metadata(r.Caller)
		meta.Time = r.Served.Timestamp
		meta.TraceParent = telemetry.Unfollowed(meta.TraceParent) // what becomes of the note of a request is of no interest in the request's trace
		stream := usage.Stream(r.Caller.CompanyID, r.Caller.Environment, r.Served.Timestamp)
		streams[stream] = append(streams[stream], event.Proposed{ID: r.ID, Payload: r.Served, Metadata: meta})
	}
	group, ctx := errgroup.WithContext(ctx)
	for stream, events := range streams {
		group.Go(func() error {
			if err := h.limitAge(ctx, stream); err != nil {
				return err
			}
			_, err := h.Store.Append(ctx, stream, eventstore.Any, events...)
			return err
		})
	}
	return group.Wait()
}

// limitAge sets the limit of a stream's age before this process's first append to it, so that no process can die between the two and leave a stream
// without one. A store that refuses is told of once by each process for each stream, which is one of a day, and the requests are recorded all the same.
func (h RecordUsageHandler) limitAge(ctx context.Context, stream string) error {
	if h.limited.has(stream) {
		return nil
	}
	err := h.Store.LimitAge(ctx, stream, UsageAge)
	if errors.Is(err, eventstore.ErrUnavailable) || ctx.Err() != nil {
		return err // it would not take the requests either; who records them tries again
	}
	if err != nil {
		h.Log.ErrorContext(ctx, "the event store lets a day's usage be read for ever", "stream", stream, "error", err)
	}
	h.limited.add(stream)
	return nil
}
