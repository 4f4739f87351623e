package commands

import (
	"context"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/infra/telemetry"
)

// RemoveLocation ends a location: its devices are revoked, and what is still queued there is cancelled.
type RemoveLocation struct {
	Caller     Caller
	ExternalID string
}

// RemoveLocationHandler carries out RemoveLocation.
type RemoveLocationHandler struct{ *tools }

// Handle removes the location, and answers when its devices are accepted nowhere any more.
func (h RemoveLocationHandler) Handle(ctx context.Context, cmd RemoveLocation) error {
	ctx, span := telemetry.Start(ctx, "command RemoveLocation")
	defer span.End()
	position, err := h.changeLocation(ctx, cmd.Caller, cmd.ExternalID, h.metadata(cmd.Caller), func(l location.Location, _ []event.Recorded) ([]event.Payload, error) {
		removed, err := l.Remove()
		return []event.Payload{removed}, err
	})
	return h.mustHold(ctx, position, err, Locations)
}
