package commands

import (
	"context"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/infra/telemetry"
)

// ChangeLocation gives a location other details; what is nil stays as it is.
type ChangeLocation struct {
	Caller     Caller
	ExternalID string
	Name       *string
	Timezone   *string
	Tags       *[]string
	Channel    *location.Channel
	// Secret is that of the Channel; "" keeps the one that there is, or has one made.
	Secret string
}

// LocationChanged is what the change made.
type LocationChanged struct {
	// Secret is that of the channel where the server made it; it is shown this once.
	Secret string
}

// Onto gives details as they are after the change.
func (cmd ChangeLocation) Onto(details location.Details) location.Details {
	if cmd.Name != nil {
		details.Name = *cmd.Name
	}
	if cmd.Timezone != nil {
		details.Timezone = *cmd.Timezone
	}
	if cmd.Tags != nil {
		details.Tags = *cmd.Tags
	}
	if cmd.Channel != nil {
		details.Channel, details.Secret = *cmd.Channel, cmd.Secret
	}
	return details
}

// ChangeLocationHandler carries out ChangeLocation.
type ChangeLocationHandler struct{ *tools }

// Handle changes the location.
func (h ChangeLocationHandler) Handle(ctx context.Context, cmd ChangeLocation) (LocationChanged, error) {
	ctx, span := telemetry.Start(ctx, "command ChangeLocation")
	defer span.End()
	var answer LocationChanged
	position, err := h.changeLocation(ctx, cmd.Caller, cmd.ExternalID, h.metadata(cmd.Caller), func(l location.Location, _ []event.Recorded) ([]event.Payload, error) {
		if !l.Registered {
			return nil, location.NotFound()
		}
		details := cmd.Onto(l.Details)
		var fields fault.Fields
		if cmd.Channel != nil {
			h.CheckDetails(details, &fields)
		} else { // what the operator let the endpoint be when it was made, it may stay
			details.Check(&fields)
		}
		if err := fields.Err(); err != nil {
			return nil, err
		}
		if cmd.Channel != nil {
			details, answer.Secret = h.sealed(cmd.Caller, l.UserID, details, l.Channel)
		}
		return l.Change(details)
	})
	if err != nil {
		return LocationChanged{}, err
	}
	h.settle(ctx, position, Locations)
	return answer, nil
}
