package commands

import (
	"context"
	"time"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/infra/telemetry"
)

// RotateDeviceToken gives a player another device token; the old one is refused from then on.
type RotateDeviceToken struct {
	Caller     Caller `json:"-"`
	ExternalID string
	DeviceID   string
}

// DeviceTokenRotated is the device with its new token, which is shown this once.
type DeviceTokenRotated struct {
	DeviceID   string
	Token      string
	ExternalID string
	Name       string
	CreatedAt  time.Time // when the device was enrolled
	Replayed   bool
}

// RotateDeviceTokenHandler carries out RotateDeviceToken.
type RotateDeviceTokenHandler struct{ *tools }

// Handle rotates the token, and answers when the old one is accepted nowhere any more. A rotation that is repeated without an Idempotency-Key is another one.
func (h RotateDeviceTokenHandler) Handle(ctx context.Context, cmd RotateDeviceToken) (DeviceTokenRotated, error) {
	ctx, span := telemetry.Start(ctx, "command RotateDeviceToken")
	defer span.End()
	identity, err := h.identify(cmd.Caller, "rotate device token", cmd)
	if err != nil {
		return DeviceTokenRotated{}, err
	}
	if _, err := h.claim(ctx, cmd.Caller, identity, "rotate device token"); err != nil {
		return DeviceTokenRotated{}, err
	}
	meta, secrets := identity.mark(h.metadata(cmd.Caller)), h.secrets(identity, "device token", "dev_")
	answer := DeviceTokenRotated{DeviceID: cmd.DeviceID, Token: secrets[0], ExternalID: cmd.ExternalID}
	position, err := h.changeLocation(ctx, cmd.Caller, cmd.ExternalID, meta, func(l location.Location, history []event.Recorded) ([]event.Payload, error) {
		if before := identity.done(history); before != nil {
			earlier, err := stillThere(l, cmd.DeviceID, before)
			if err != nil {
				return nil, err
			}
			answer.Replayed, answer.Name, answer.CreatedAt = true, earlier.Name, earlier.EnrolledAt
			answer.Token, err = h.shownAgain(secrets, earlier.Hash, "rotate it again with a new key")
			return nil, err
		}
		rotated, err := l.RotateDeviceToken(cmd.DeviceID, h.Keys.HashToken(secrets[0]))
		if err != nil {
			return nil, err
		}
		device, _ := l.Device(cmd.DeviceID) // it is there, or nothing was to be rotated
		answer.Name, answer.CreatedAt = device.Name, device.EnrolledAt
		return []event.Payload{rotated}, nil
	})
	if err := h.mustHold(ctx, position, err, Locations); err != nil {
		return DeviceTokenRotated{}, err
	}
	return answer, nil
}
