package commands

import (
	"context"
	"time"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/infra/telemetry"
)

// EnrolDevice lets a player sign in for a location.
type EnrolDevice struct {
	Caller     Caller `json:"-"`
	ExternalID string
	Name       string
}

// DeviceEnrolled is the new device. Its token is shown this once.
type DeviceEnrolled struct {
	DeviceID   string
	Token      string
	ExternalID string
	CreatedAt  time.Time
	Replayed   bool
}

// EnrolDeviceHandler carries out EnrolDevice.
type EnrolDeviceHandler struct{ *tools }

// Handle enrols the device.
func (h EnrolDeviceHandler) Handle(ctx context.Context, cmd EnrolDevice) (DeviceEnrolled, error) {
	ctx, span := telemetry.Start(ctx, "command EnrolDevice")
	defer span.End()
	identity, err := h.identify(cmd.Caller, "enrol device", cmd)
	if err != nil {
		return DeviceEnrolled{}, err
	}
	if _, err := h.claim(ctx, cmd.Caller, identity, "enrol device"); err != nil {
		return DeviceEnrolled{}, err
	}
	meta, secrets := identity.mark(h.metadata(cmd.Caller)), h.secrets(identity, "device token", "dev_")
	answer := DeviceEnrolled{DeviceID: identity.id("dvc_"), Token: secrets[0], ExternalID: cmd.ExternalID, CreatedAt: meta.Time}
	position, err := h.changeLocation(ctx, cmd.Caller, cmd.ExternalID, meta, func(l location.Location, history []event.Recorded) ([]event.Payload, error) {
		if before := identity.done(history); before != nil {
			earlier, err := stillThere(l, answer.DeviceID, before)
			if err != nil {
				return nil, err
			}
			answer.Replayed, answer.CreatedAt = true, earlier.EnrolledAt
			answer.Token, err = h.shownAgain(secrets, earlier.Hash, "enrol another device with a new key")
			return nil, err
		}
		enrolled, err := l.Enrol(answer.DeviceID, cmd.Name, h.Keys.HashToken(secrets[0]))
		return []event.Payload{enrolled}, err
	})
	if err != nil {
		return DeviceEnrolled{}, err
	}
	h.settle(ctx, position, Locations)
	return answer, nil
}

// stillThere is a device as it was before, where it may still sign in.
func stillThere(l location.Location, deviceID string, before []event.Recorded) (location.Device, error) {
	if now, ok := l.Device(deviceID); !ok || now.Revoked { // also with the location that it was of, though there is one again
		return location.Device{}, fault.New(fault.Conflict, "The device of this Idempotency-Key is revoked; use a new key.")
	}
	then, err := location.Load(before)
	if err != nil {
		return location.Device{}, err
	}
	device, _ := then.Device(deviceID)
	return device, nil
}
