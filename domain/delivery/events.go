// Package delivery is the aggregate of one send at one location, from the moment that its player has it to its end. Stream:
// `delivery-{sendId}-{userId}`. Every delivery ends exactly once: played, failed, expired or cancelled.
package delivery

import "time"

// Ref says which delivery an event is about. It stands in each of the events, so that consumers need no other.
type Ref struct {
	DeliveryID string `json:"deliveryId"`
	SendID     string `json:"sendId"`
	AudioID    string `json:"audioId"`
	ExternalID string `json:"externalId"`
	UserID     int64  `json:"userId"`
}

// Delivered says that the player has the audio.
type Delivered struct {
	Ref
	// At is when it happened by the player's clock.
	At time.Time `json:"at"`
}

// PlaybackStarted says that the player began to play.
type PlaybackStarted struct {
	Ref
	At time.Time `json:"at"`
}

// Played says that the audio was played to its end.
type Played struct {
	Ref
	At time.Time `json:"at"`
}

// Failed says that the audio will not be played, and why.
type Failed struct {
	Ref
	At     time.Time `json:"at"`
	Reason string    `json:"reason"`
}

// DeviceFailed says that one of the location's players will not play the audio, and why. Another one still may: it does not end the delivery.
type DeviceFailed struct {
	Ref
	DeviceID string    `json:"deviceId"`
	At       time.Time `json:"at"`
	Reason   string    `json:"reason"`
}

// Expired says that the audio was not played before its time was over.
type Expired struct {
	Ref
	At time.Time `json:"at"`
}

// Cancelled says that the delivery was called off before it was played.
type Cancelled struct {
	Ref
	At     time.Time `json:"at"`
	Reason string    `json:"reason"`
}

// EventType implements event.Payload.
func (Delivered) EventType() string { return "AudioDelivered" }

// EventType implements event.Payload.
func (PlaybackStarted) EventType() string { return "PlaybackStarted" }

// EventType implements event.Payload.
func (Played) EventType() string { return "AudioPlayed" }

// EventType implements event.Payload.
func (Failed) EventType() string { return "DeliveryFailed" }

// EventType implements event.Payload.
func (DeviceFailed) EventType() string { return "DeliveryFailedOnDevice" }

// EventType implements event.Payload.
func (Expired) EventType() string { return "DeliveryExpired" }

// EventType implements event.Payload.
func (Cancelled) EventType() string { return "DeliveryCancelled" }
