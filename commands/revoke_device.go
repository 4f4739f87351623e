package commands

import (
	"context"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/infra/telemetry"
)

// RevokeDevice ends a player's right to sign in.
type RevokeDevice struct {
	Caller     Caller
	ExternalID string
	DeviceID   string
}

// RevokeDeviceHandler carries out RevokeDevice.
type RevokeDeviceHandler struct{ *tools }

// Handle revokes the device, and answers when it is accepted nowhere any more.
func (h RevokeDeviceHandler) Handle(ctx context.Context, cmd RevokeDevice) error {
	ctx, span := telemetry.Start(ctx, "command RevokeDevice")
	defer span.End()
	position, err := h.changeLocation(ctx, cmd.Caller, cmd.ExternalID, h.metadata(cmd.Caller), func(l location.Location, _ []event.Recorded) ([]event.Payload, error) {
		revoked, err := l.RevokeDevice(cmd.DeviceID)
		return []event.Payload{revoked}, err
	})
	return h.mustHold(ctx, position, err, Locations)
}
