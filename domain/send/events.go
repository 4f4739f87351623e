// Package send is the aggregate of one request to play audio at one or many locations. Stream: `send-{sendId}`.
//
// A send's AudioSent events, one per location, are appended in one call: that makes a broadcast atomic. One that is too large for a
// single append is appended in parts, each event marked Unsealed, and closed by one BroadcastSealed; nothing reacts before that.
package send

import "time"

// Destination is one location of a send.
type Destination struct {
	ExternalID string `json:"externalId"`
	UserID     int64  `json:"userId"`
}

// Terms is what the partner asked for, the same for every destination.
type Terms struct {
	AudioID  string `json:"audioId"`
	Priority string `json:"priority"`
	Repeat   int    `json:"repeat"`
	// Volume is in percent.
	Volume int `json:"volume"`
	// ExpiresIn is in seconds, counted from the moment that the audio is due.
	ExpiresIn int64 `json:"expiresIn"`
	// Single is true for a send to one location, false for a broadcast.
	Single bool `json:"single"`
}

// Scheduled says that a send was accepted for later. Its destinations are fixed now.
type Scheduled struct {
	SendID string `json:"sendId"`
	Terms
	// ScheduleAt is when the audio is due (for LocalTime: when it is due at the first location).
	ScheduleAt time.Time `json:"scheduleAt"`
	// LocalTime is the clock time at each location (`2026-12-24T09:00`) if the partner gave one.
	LocalTime    string                 `json:"localTime,omitempty"`
	Destinations []ScheduledDestination `json:"destinations"`
	Total        int                    `json:"total"`
	// Unsealed marks the parts of a large send: the rest of the destinations follow, and a BroadcastSealed closes it.
	Unsealed bool `json:"unsealed,omitempty"`
}

// ScheduledDestination is a location of a scheduled send with the moment that the audio is due there.
type ScheduledDestination struct {
	Destination
	PlayAt time.Time `json:"playAt"`
	// Timezone is the location's at that time. Sends of before do not have it.
	Timezone string `json:"timezone,omitempty"`
}

// Rescheduled says that a scheduled send, of which nothing has gone out, is to be played at another time or in another way. It has all that the send is from
// now on.
type Rescheduled struct {
	SendID string `json:"sendId"`
	Terms
	// ScheduleAt and LocalTime are as those of Scheduled.
	ScheduleAt time.Time `json:"scheduleAt"`
	LocalTime  string    `json:"localTime,omitempty"`
	// Times are when the audio is due in each time zone, for a new LocalTime. Without them it is due at ScheduleAt everywhere or, where there is a LocalTime, when
	// it was due before.
	Times []ZoneTime `json:"times,omitempty"`
}

// ZoneTime is when the audio is due at the locations of a time zone.
type ZoneTime struct {
	Timezone string    `json:"timezone"`
	PlayAt   time.Time `json:"playAt"`
}

// AudioSent says that audio goes to one location now.
type AudioSent struct {
	SendID string `json:"sendId"`
	// DeliveryID names this send at this location; see DeliveryID.
	DeliveryID string `json:"deliveryId"`
	Terms
	Destination
	// Total is how many destinations the whole send has.
	Total int `json:"total"`
	// PlayAt is when a scheduled send is due at this location; nil plays as soon as the priority allows.
	PlayAt *time.Time `json:"playAt,omitempty"`
	// ExpiresAt is when the delivery ends as expired if it was not played.
	ExpiresAt time.Time `json:"expiresAt"`
	// Unsealed marks the parts of a large broadcast: nothing reacts to them before BroadcastSealed.
	Unsealed bool `json:"unsealed,omitempty"`
}

// BroadcastSealed says that every AudioSent of a large broadcast is in the stream.
type BroadcastSealed struct {
	SendID string `json:"sendId"`
	Total  int    `json:"total"`
}

// BroadcastAbandoned says that a large broadcast was never accepted: whoever wrote its parts did not seal it. The parts before it count for nothing.
type BroadcastAbandoned struct {
	SendID string `json:"sendId"`
}

// Cancelled says that a scheduled or queued send is called off; deliveries that were not yet played are cancelled with it.
type Cancelled struct {
	SendID string `json:"sendId"`
	// Refused says that nobody called it off: it was never accepted, because its audio was being deleted when it was recorded.
	Refused bool `json:"refused,omitempty"`
}

// EventType implements event.Payload.
func (Scheduled) EventType() string { return "SendScheduled" }

// EventType implements event.Payload.
func (Rescheduled) EventType() string { return "SendRescheduled" }

// EventType implements event.Payload.
func (AudioSent) EventType() string { return "AudioSent" }

// EventType implements event.Payload.
func (BroadcastSealed) EventType() string { return "BroadcastSealed" }

// EventType implements event.Payload.
func (BroadcastAbandoned) EventType() string { return "BroadcastAbandoned" }

// EventType implements event.Payload.
func (Cancelled) EventType() string { return "SendCancelled" }
