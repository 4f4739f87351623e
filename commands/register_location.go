package commands

import (
	"context"
	"errors"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/infra/telemetry"
)

// RegisterLocation makes a location that can be sent to.
type RegisterLocation struct {
	Caller     Caller `json:"-"`
	ExternalID string
	Details    location.Details
}

// normal is the command with the defaults filled in.
func (cmd RegisterLocation) normal() RegisterLocation {
	cmd.Details = cmd.Details.Normal()
	return cmd
}

// LocationRegistered is the location as it was registered, whatever became of it since.
type LocationRegistered struct {
	location.Location
	// Secret is that of the channel where the server made it; it is shown with this answer only.
	Secret   string
	Replayed bool
}

// RegisterLocationHandler carries out RegisterLocation.
type RegisterLocationHandler struct{ *tools }

// Handle registers the location; an external ID that is one already is refused.
func (h RegisterLocationHandler) Handle(ctx context.Context, cmd RegisterLocation) (LocationRegistered, error) {
	ctx, span := telemetry.Start(ctx, "command RegisterLocation")
	defer span.End()
	var fields fault.Fields
	location.CheckExternalID("externalId", cmd.ExternalID, &fields)
	h.CheckDetails(cmd.Details, &fields)
	if err := fields.Err(); err != nil {
		return LocationRegistered{}, err
	}
	cmd = cmd.normal()
	identity, err := h.identify(cmd.Caller, "register location", cmd)
	if err != nil {
		return LocationRegistered{}, err
	}
	if _, err := h.claim(ctx, cmd.Caller, identity, "register location"); err != nil {
		return LocationRegistered{}, err
	}
	userID, err := h.mapUser(ctx, cmd.Caller, cmd.ExternalID)
	if err != nil {
		return LocationRegistered{}, err
	}
	stream := location.Stream(cmd.Caller.CompanyID, userID, cmd.Caller.Environment)
	var registeredAt event.Position
	replayed := false
	position, err := h.change(ctx, stream, identity.mark(h.metadata(cmd.Caller)), func(history []event.Recorded) ([]event.Payload, error) {
		if before := identity.done(history); before != nil {
			registeredAt, replayed = end(before), true
			return nil, nil
		}
		l, err := location.Load(history)
		if err != nil {
			return nil, err
		}
		details, _ := h.sealed(cmd.Caller, userID, cmd.Details, location.Channel{})
		registered, err := l.Register(cmd.Caller.CompanyID, cmd.ExternalID, userID, details)
		return []event.Payload{registered}, err
	})
	if err != nil {
		return LocationRegistered{}, err
	}
	history, err := h.Store.Load(ctx, stream)
	if err != nil {
		return LocationRegistered{}, err
	}
	if !replayed {
		registeredAt = position
	}
	l, err := location.Load(upTo(history, registeredAt))
	if err != nil {
		return LocationRegistered{}, err
	}
	if !l.Registered {
		return LocationRegistered{}, errors.New("a location that was registered is not there")
	}
	secret, err := h.shownSecret(cmd.Caller, userID, cmd.Details.Secret, l.Channel.Secret)
	if err != nil {
		return LocationRegistered{}, err
	}
	h.settle(ctx, position, Locations)
	return LocationRegistered{Location: l, Secret: secret, Replayed: replayed}, nil
}

// changeLocation decides on a location that the caller names by its external ID, and its history.
func (t *tools) changeLocation(ctx context.Context, c Caller, externalID string, meta event.Metadata, decide func(location.Location, []event.Recorded) ([]event.Payload, error)) (event.Position, error) {
	if !location.ValidExternalID(externalID) {
		return event.Position{}, location.NotFound()
	}
	userID, found, err := t.findUser(ctx, c.CompanyID, externalID)
	if err != nil {
		return event.Position{}, err
	}
	if !found {
		return event.Position{}, location.NotFound()
	}
	return t.change(ctx, location.Stream(c.CompanyID, userID, c.Environment), meta, func(history []event.Recorded) ([]event.Payload, error) {
		l, err := location.Load(history)
		if err != nil {
			return nil, err
		}
		return decide(l, history)
	})
}
